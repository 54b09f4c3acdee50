// The instructions that the matrix products are made of and that C++ has no words for. Tests act
// them out on the host: tests/cuda/on_host/gemm_ptx_on_host.h.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "gemm_layout.h"
#include "kernel.cuh"

#define MMFAST_GEMM_SHARED(name) extern __shared__ __align__(1024) char name[]

// wgmma and TMA are for sm_90a code alone. The kernel made of them is launched on compute
// capability 9.0 alone, and is empty in code for others.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MMFAST_SM90A 1
#endif

namespace mmfast::cuda {

MMFAST_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

MMFAST_DEVICE void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
               : "memory");
}
MMFAST_DEVICE void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// One arrival, and `bytes` that TMA will bring before the phase is complete.
MMFAST_DEVICE void barrier_arrive_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}
MMFAST_DEVICE void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Box of a map at (element along the line, line) to shared memory; what lies outside the matrix
// arrives as zeros, and counts as bytes all the same.
MMFAST_DEVICE void tma_load(uint32_t to, const CUtensorMap* map, uint32_t barrier, int32_t element,
                            int32_t line) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
      "l"(map), "r"(element), "r"(line), "r"(barrier)
      : "memory");
}

// Makes the barriers that a thread made known to TMA, which is not of the threads' own proxy.
MMFAST_DEVICE void barriers_made() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Keeps the compiler from moving uses of the sums over the asynchronous products.
template <int count>
MMFAST_DEVICE void pin(float (&d)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    asm volatile("" : "+f"(d[i])::"memory");
  }
}

// wgmma: D (64 rows, float32, in registers) += A B, both in shared memory, 16 features at a time.
// Executed by a warpgroup; warp w of it holds rows 16 w .. 16 w + 15 (gemm_layout.h, fragment_row).
// From PTX ISA, "wgmma.mma_async": scale-d 0 means D = A B; then come the signs of A and B, 1 each;
// then whether A and B are MN-major.

// Orders the registers and the shared memory that a warpgroup wrote before its wgmmas.
MMFAST_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
MMFAST_DEVICE void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most `pending` of the committed groups are unfinished.
template <int pending>
MMFAST_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
}

template <typename T, int cols, Major major_a, Major major_b>
struct Wgmma;

#define MMFAST_ACC_8(d, i)                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MMFAST_ACC_32(d, i) \
  MMFAST_ACC_8(d, i), MMFAST_ACC_8(d, i + 8), MMFAST_ACC_8(d, i + 16), MMFAST_ACC_8(d, i + 24)
#define MMFAST_ACC_64(d, i) MMFAST_ACC_32(d, i), MMFAST_ACC_32(d, i + 32)
#define MMFAST_ACC_128(d, i) MMFAST_ACC_64(d, i), MMFAST_ACC_64(d, i + 64)

#define MMFAST_LIST_32                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MMFAST_LIST_64                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MMFAST_LIST_128                                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// a to trans_b: the placeholders of the descriptors, of scale-d and of the two majors.
#define MMFAST_WGMMA(T, name, cols, registers, a, b, scale, trans_a, trans_b)                     \
  template <Major major_a, Major major_b>                                                         \
  struct Wgmma<T, cols, major_a, major_b> {                                                       \
    static MMFAST_DEVICE void run(float (&d)[registers], uint64_t a_descriptor,                   \
                                  uint64_t b_descriptor, int scale_d) {                           \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " scale                                      \
                   ", 0;\nwgmma.mma_async.sync.aligned.m64n" #cols "k16.f32." name "." name       \
                   " {" MMFAST_LIST_##registers "}, " a ", " b ", p, 1, 1, " trans_a ", " trans_b \
                                                ";\n}\n"                                          \
                   : MMFAST_ACC_##registers(d, 0)                                                 \
                   : "l"(a_descriptor), "l"(b_descriptor), "r"(scale_d),                          \
                     "n"(static_cast<int>(major_a)), "n"(static_cast<int>(major_b)));             \
    }                                                                                             \
  };

MMFAST_WGMMA(BFloat16, "bf16", 64, 32, "%32", "%33", "%34", "%35", "%36")
MMFAST_WGMMA(BFloat16, "bf16", 128, 64, "%64", "%65", "%66", "%67", "%68")
MMFAST_WGMMA(BFloat16, "bf16", 256, 128, "%128", "%129", "%130", "%131", "%132")
MMFAST_WGMMA(Float16, "f16", 64, 32, "%32", "%33", "%34", "%35", "%36")
MMFAST_WGMMA(Float16, "f16", 128, 64, "%64", "%65", "%66", "%67", "%68")
MMFAST_WGMMA(Float16, "f16", 256, 128, "%128", "%129", "%130", "%131", "%132")

#undef MMFAST_WGMMA
#undef MMFAST_LIST_32
#undef MMFAST_LIST_64
#undef MMFAST_LIST_128
#undef MMFAST_ACC_8
#undef MMFAST_ACC_32
#undef MMFAST_ACC_64
#undef MMFAST_ACC_128

// The instructions below exist on every GPU from 8.0 on.

MMFAST_DEVICE void copy_async(uint32_t to, const void* from, int bytes) {
  // The last operand: how many bytes to read; the rest of the 16 becomes zeros.
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
template <int unit>
MMFAST_DEVICE void copy_async_narrow(uint32_t to, const char* from, int bytes) {
#pragma unroll
  for (int i = 0; i < 16; i += unit) {
    const int left = bytes - i;
    const int size = left < 0 ? 0 : left < unit ? left : unit;
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(to + i),
                 "l"(size ? from + i : from), "n"(unit), "r"(size)
                 : "memory");
  }
}

// Every copy asynchronous so far belongs to a group; wait until at most `pending` are unfinished.
MMFAST_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int pending>
MMFAST_DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

MMFAST_DEVICE void store_shared(uint32_t to, const uint32_t (&words)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

// Four 8 by 8 matrices; each lane names a row of one, see load_corner_a and load_corner_b.
template <Major major>
MMFAST_DEVICE void load_matrices(uint32_t from, uint32_t (&to)[4]) {
  if constexpr (major == Major::k) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  }
}

// d (16 by 8) += a (16 by 16) b (16 by 8)
#define MMFAST_MMA(T, name)                                                                        \
  MMFAST_DEVICE void multiply_add(T, float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                            \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"          \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                  \
  }
MMFAST_MMA(BFloat16, "bf16")
MMFAST_MMA(Float16, "f16")
#undef MMFAST_MMA

// Launches a kernel that uses more shared memory than is granted unasked.
template <typename Args>
cudaError_t launch_blocks(void (*kernel)(const Args), int32_t blocks, int threads,
                          int32_t shared_bytes, cudaStream_t stream, const Args& args) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) {
    return error;
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace mmfast::cuda
