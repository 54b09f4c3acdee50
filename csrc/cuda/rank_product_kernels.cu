// Kernels of rank_product: y = sum over ranks of the product of all present factors.
#include "rank_product.h"

#include "kernel.cuh"

namespace mmfast::cuda {
namespace {

template <typename T>
MMFAST_DEVICE wide_t<T> rank_weight(const RankProductArgs& args, int64_t rank) {
  return args.weights ? to_wide(static_cast<const T*>(args.weights)[rank]) : wide_t<T>(1);
}

template <typename T>
MMFAST_DEVICE void multiply(wide_t<T>* product, const Packet<T>& factor) {
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    product[i] *= wide(factor, i);
  }
}

// product *= the present factors m0 .. end of a rank, whose packets start at `at`
template <typename T>
MMFAST_DEVICE void multiply_factors(wide_t<T>* product, const RankProductArgs& args,
                                    const RowPlace& place, int m0, int64_t at, int n) {
  for (; m0 < args.rows.count; m0 += kTogether) {
    Together<T> chunk;
    load_together(chunk, args.rows, place, 0, m0, args.rows.count, at, n);
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (chunk.there[k]) {
        multiply<T>(product, chunk.x[k]);
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    rank_product_kernel(const __grid_constant__ RankProductArgs args) {
  using A = wide_t<T>;
  for_each_packet<T>(
      args.rows, args.tiles, [&](int64_t row, int64_t col, int n, const RowPlace& place) {
        A sum[kPacket<T>] = {};
#pragma unroll 2
        for (int64_t rank = 0; rank < args.ranks; ++rank) {
          A product[kPacket<T>];
          const A weight = rank_weight<T>(args, rank);
#pragma unroll
          for (int i = 0; i < kPacket<T>; ++i) {
            product[i] = weight;
          }
          multiply_factors<T>(product, args, place, 0, rank * args.rows.cols + col, n);
#pragma unroll
          for (int i = 0; i < kPacket<T>; ++i) {
            sum[i] += product[i];
          }
        }
        store_rounded(static_cast<T*>(args.out) + row * args.rows.cols + col, sum, n,
                      args.rows.unit);
      });
}

// Gradients of a packet of one rank: factor m gets weight grad times the product of the others,
// those before it times those behind it. Returns grad . product of all factors.
template <typename T>
MMFAST_DEVICE wide_t<T> packet_backward(const RankProductArgs& args, const RowPlace& place,
                                        const Packet<T>& grad, wide_t<T> weight, int64_t source_at,
                                        int64_t grad_to, int n) {
  using A = wide_t<T>;
  const Rows& rows = args.rows;
  A before[kPacket<T>];
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    before[i] = A(1);
  }
  for (int m0 = 0; m0 < rows.count; m0 += kTogether) {
    Together<T> chunk;
    load_together(chunk, rows, place, 0, m0, rows.count, source_at, n);
    A after[kPacket<T>];  // weight grad and the factors behind this chunk
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      after[i] = weight * wide(grad, i);
    }
    multiply_factors<T>(after, args, place, m0 + kTogether, source_at, n);
#pragma unroll
    for (int k = kTogether - 1; k >= 0; --k) {
      T* const to = m0 + k < rows.count ? grad_at<T>(rows, m0 + k, grad_to) : nullptr;
      if (to && chunk.there[k]) {
        A result[kPacket<T>];
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) {
          result[i] = after[i] * before[i];
        }
#pragma unroll
        for (int other = 0; other < k; ++other) {
          if (chunk.there[other]) {
            multiply<T>(result, chunk.x[other]);
          }
        }
        store_rounded(to, result, n, rows.unit);
      } else if (to) {
        store_zeros(to, n, rows.unit);
      }
      if (chunk.there[k]) {
        multiply<T>(after, chunk.x[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (chunk.there[k]) {
        multiply<T>(before, chunk.x[k]);
      }
    }
  }
  A sum = 0;
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    sum += i < n ? wide(grad, i) * before[i] : A(0);
  }
  return sum;
}

// The tiles are of rows / steps. A block sums the weights' gradients of what it takes.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    rank_product_backward_kernel(const __grid_constant__ RankProductArgs args) {
  using A = wide_t<T>;
  MMFAST_SHARED_MEMORY(memory);
  A* const scratch = reinterpret_cast<A*>(memory);
  const Rows& rows = args.rows;
  const int lines = kThreads / args.tiles.lanes;
  const int line = static_cast<int>(threadIdx.x) / args.tiles.lanes;
  for (int64_t block = blockIdx.x; block < args.tiles.blocks; block += gridDim.x) {
    const Tile tile = tile_at(args.tiles, block, static_cast<int>(threadIdx.x), kPacket<T>);
    const int64_t first = (tile.row - line) * args.steps + line;
    const int64_t left = rows.cols - tile.col;
    const int n = static_cast<int>(left < kPacket<T> ? left : kPacket<T>);
    for (int64_t rank = 0; rank < args.ranks; ++rank) {
      const A weight = rank_weight<T>(args, rank);
      A sum[1] = {};
      for (int step = 0; step < args.steps; ++step) {
        const int64_t row = first + static_cast<int64_t>(step) * lines;
        if (n > 0 && row < rows.total) {
          const RowPlace place = place_of(rows, row);
          const Packet<T> grad =
              load(row_of<T>(rows, args.grad_source, place) + tile.col, n, rows.unit);
          sum[0] += packet_backward<T>(args, place, grad, weight, rank * rows.cols + tile.col,
                                       (row * args.ranks + rank) * rows.cols + tile.col, n);
        }
      }
      if (args.sums) {
        sum_group(sum, kThreads, scratch);
        if (threadIdx.x == 0) {
          static_cast<A*>(args.sums)[block * args.ranks + rank] = sum[0];
        }
      }
    }
  }
}

template <typename T>
void forward(const RankProductArgs& args, cudaStream_t stream) {
  launch(rank_product_kernel<T>, args.tiles.blocks, kThreads, 0, stream, args);
}

template <typename T>
void backward(const RankProductArgs& args, cudaStream_t stream) {
  launch(rank_product_backward_kernel<T>, args.tiles.blocks, kThreads, kScratchBytes, stream, args);
}

}  // namespace

void launch_rank_product(Element element, const RankProductArgs& args, cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, forward, args, stream);
}

void launch_rank_product_backward(Element element, const RankProductArgs& args,
                                  cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, backward, args, stream);
}

}  // namespace mmfast::cuda
