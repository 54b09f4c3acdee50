// wgmma: D (64 rows, float32, in registers) += A B, both in shared memory, 16 features at a time.
//
// Executed by a warpgroup; warp w of it holds rows 16 w .. 16 w + 15 (gemm_layout.h, fragment_row).
// From PTX ISA, "wgmma.mma_async": scale-d 0 means D = A B; then come the signs of A and B, 1 each;
// then whether A and B are MN-major.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "gemm_layout.h"

namespace mmfast::cuda {

// Orders the registers and the shared memory that a warpgroup wrote before its wgmmas.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most `pending` of the committed groups are unfinished.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
}

template <typename T, int cols, Major major_a, Major major_b>
struct Wgmma;

#define MMFAST_ACC_8(d, i)                                                                \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MMFAST_ACC_32(d, i) \
  MMFAST_ACC_8(d, i), MMFAST_ACC_8(d, i + 8), MMFAST_ACC_8(d, i + 16), MMFAST_ACC_8(d, i + 24)
#define MMFAST_ACC_64(d, i) MMFAST_ACC_32(d, i), MMFAST_ACC_32(d, i + 32)
#define MMFAST_ACC_128(d, i) MMFAST_ACC_64(d, i), MMFAST_ACC_64(d, i + 64)

#define MMFAST_LIST_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MMFAST_LIST_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MMFAST_LIST_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// a to trans_b: the placeholders of the descriptors, of scale-d and of the two majors.
#define MMFAST_WGMMA(T, name, cols, registers, a, b, scale, trans_a, trans_b)                     \
  template <Major major_a, Major major_b>                                                         \
  struct Wgmma<T, cols, major_a, major_b> {                                                       \
    static __device__ __forceinline__ void run(float (&d)[registers], uint64_t a_descriptor,      \
                                               uint64_t b_descriptor, int scale_d) {              \
      asm volatile(                                                                               \
          "{\n.reg .pred p;\nsetp.ne.b32 p, " scale                                               \
          ", 0;\nwgmma.mma_async.sync.aligned.m64n" #cols "k16.f32." name "." name               \
          " {" MMFAST_LIST_##registers "}, " a ", " b ", p, 1, 1, " trans_a ", " trans_b ";\n}\n"  \
          : MMFAST_ACC_##registers(d, 0)                                                          \
          : "l"(a_descriptor), "l"(b_descriptor), "r"(scale_d), "n"(static_cast<int>(major_a)),   \
            "n"(static_cast<int>(major_b)));                                                      \
    }                                                                                             \
  };

MMFAST_WGMMA(__nv_bfloat16, "bf16", 64, 32, "%32", "%33", "%34", "%35", "%36")
MMFAST_WGMMA(__nv_bfloat16, "bf16", 128, 64, "%64", "%65", "%66", "%67", "%68")
MMFAST_WGMMA(__nv_bfloat16, "bf16", 256, 128, "%128", "%129", "%130", "%131", "%132")
MMFAST_WGMMA(__half, "f16", 64, 32, "%32", "%33", "%34", "%35", "%36")
MMFAST_WGMMA(__half, "f16", 128, 64, "%64", "%65", "%66", "%67", "%68")
MMFAST_WGMMA(__half, "f16", 256, 128, "%128", "%129", "%130", "%131", "%132")

#undef MMFAST_WGMMA
#undef MMFAST_LIST_32
#undef MMFAST_LIST_64
#undef MMFAST_LIST_128
#undef MMFAST_ACC_8
#undef MMFAST_ACC_32
#undef MMFAST_ACC_64
#undef MMFAST_ACC_128

}  // namespace mmfast::cuda
