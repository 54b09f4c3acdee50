// What the row kernels are written with: launches, shared memory, sums over a group of threads, and
// the functions of a row of inputs. Tests include it without nvcc, with the words of the language
// defined for the host.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime_api.h>
#endif

#include <cmath>

#include "packet.cuh"
#include "rows.h"

#ifdef __CUDACC__
#define MMFAST_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define MMFAST_SHARED_MEMORY(name) unsigned char* const name = mmfast::cuda::on_host::shared_memory
#endif

namespace mmfast::cuda {

// Kernels take one argument, a structure; it stays where the launch put it.
template <typename Args>
void launch(void (*kernel)(const Args), int64_t blocks, int32_t threads, int64_t shared_bytes,
            cudaStream_t stream, const Args& args) {
  static_assert(sizeof(Args) <= 4096, "more than a kernel's arguments hold before CUDA 12.1");
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  const unsigned grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  if (grid > 0) {
#ifdef __CUDACC__
    kernel<<<grid, threads, shared_bytes, stream>>>(args);
#else
    on_host::run(kernel, grid, threads, shared_bytes, args);
#endif
  }
}

// Calls LAUNCH<T>(args, stream) with the element type that `element` names. Rows of aligned packets
// only, as nearly all are, have kernels of their own; float64, which is for checks, has not.
#define MMFAST_CUDA_DISPATCH(element, LAUNCH, args, stream)                           \
  const bool whole = (args).rows.whole;                                               \
  switch (element) {                                                                  \
    case Element::float32:                                                            \
      whole ? LAUNCH<Whole<float>>(args, stream) : LAUNCH<float>(args, stream);       \
      break;                                                                          \
    case Element::bfloat16:                                                           \
      whole ? LAUNCH<Whole<BFloat16>>(args, stream) : LAUNCH<BFloat16>(args, stream); \
      break;                                                                          \
    case Element::float16:                                                            \
      whole ? LAUNCH<Whole<Float16>>(args, stream) : LAUNCH<Float16>(args, stream);   \
      break;                                                                          \
    case Element::float64:                                                            \
      LAUNCH<double>(args, stream);                                                   \
      break;                                                                          \
  }

#define MMFAST_DEVICE __device__ __forceinline__

// ------------------------------------------------------------------------------------- arithmetic

MMFAST_DEVICE float wide_exp(float x) { return expf(x); }
MMFAST_DEVICE double wide_exp(double x) { return exp(x); }
MMFAST_DEVICE float wide_log(float x) { return logf(x); }
MMFAST_DEVICE double wide_log(double x) { return log(x); }

// For bfloat16 the instruction, whose error is a quarter of that of rounding.
template <typename T>
MMFAST_DEVICE wide_t<T> wide_tanh(wide_t<T> x) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<element_t<T>, BFloat16>) {
    float result;
    asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }
#endif
  if constexpr (std::is_same_v<wide_t<T>, double>) {
    return tanh(x);
  } else {
    return tanhf(x);
  }
}

template <typename A>
MMFAST_DEVICE A infinity() {
  return static_cast<A>(INFINITY);
}

// --------------------------------------------------------------------------------- rows of inputs

// The packets of up to kTogether modalities of a row. Absent ones are not read.
template <typename T>
struct Together {
  Packet<T> x[kTogether];
  bool there[kTogether];
};

// `first`: of the sources that hold the packets, that of modality 0.
template <typename T>
MMFAST_DEVICE void load_together(Together<T>& chunk, const Rows& rows, const RowPlace& place,
                                 int first, int m0, int end, int64_t col, int n) {
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    chunk.there[i] = m0 + i < end && is_present(rows, place, m0 + i);
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    if (chunk.there[i]) {
      chunk.x[i] = load(row_of<T>(rows, first + m0 + i, place) + col, n, rows.unit);
    } else {
      chunk.x[i] = Packet<T>{};
    }
  }
}

// Packets of the tiles that this block takes: body(row, col, n, place).
template <typename T, typename Body>
MMFAST_DEVICE void for_each_packet(const Rows& rows, const Tiles& tiles, const Body& body) {
  for (int64_t block = blockIdx.x; block < tiles.blocks; block += gridDim.x) {
    const Tile tile = tile_at(tiles, block, static_cast<int>(threadIdx.x), kPacket<T>);
    if (tile.row < rows.total && tile.col < rows.cols) {
      const int64_t left = rows.cols - tile.col;
      body(tile.row, tile.col, static_cast<int>(left < kPacket<T> ? left : kPacket<T>),
           place_of(rows, tile.row));
    }
  }
}

// ----------------------------------------------------------------------------- groups of threads

MMFAST_DEVICE void sync_group(int lanes) {
  if (lanes > 32) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

// The sums of each of a group's threads' values, in the same order every time; all threads get
// them. Every thread of a warp, or of the block, must call it. `scratch` is shared memory for
// kThreads / 32 times `count` values.
template <int count, typename A>
MMFAST_DEVICE void sum_group(A (&values)[count], int lanes, A* scratch) {
  for (int offset = (lanes < 32 ? lanes : 32) / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      values[i] += __shfl_xor_sync(0xffffffffu, values[i], offset);
    }
  }
  if (lanes > 32) {
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        scratch[threadIdx.x / 32 * count + i] = values[i];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < count; ++i) {
      values[i] = scratch[i];
      for (int warp = 1; warp < kThreads / 32; ++warp) {
        values[i] += scratch[warp * count + i];
      }
    }
    __syncthreads();
  }
}

template <typename T, typename A>
MMFAST_DEVICE A dot(const Packet<T>& x, const Packet<T>& y, A sum) {
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    sum += wide(x, i) * wide(y, i);
  }
  return sum;
}

}  // namespace mmfast::cuda
