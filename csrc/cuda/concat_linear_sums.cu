// Sums over rows, and the gradient before the activation; see concat_linear_rows.h.
#include "activation_math.h"
#include "concat_linear_rows.cuh"

namespace mmfast::cuda {
namespace {

// A block adds rows in kSumLanes lanes; each lane has kSumCols threads of `n` columns.
constexpr int kSumCols = 32;
constexpr int kSumLanes = kRowThreads / kSumCols;

// The lanes' sums of a column, added in order; the first lane has the result.
template <typename A, int n>
MMFAST_DEVICE void add_lanes(A (&sums)[n]) {
  MMFAST_SHARED_MEMORY(memory);  // [kSumLanes][kSumCols * n]
  A* shared = reinterpret_cast<A*>(memory);
  const int col = threadIdx.x % kSumCols;
  const int lane = threadIdx.x / kSumCols;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    shared[(lane * n + i) * kSumCols + col] = sums[i];
  }
  __syncthreads();
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      for (int other = 1; other < kSumLanes; ++other) {
        sums[i] += shared[(other * n + i) * kSumCols + col];
      }
    }
  }
  __syncthreads();  // before the next item's
}
template <typename A, int n>
constexpr int kSumBytes = kSumLanes * kSumCols * n * static_cast<int>(sizeof(A));

// A block's share of the columns, and the item (a row of the result) it sums.
struct SumItem {
  int64_t row;
  int32_t col;
  int lane;
};
template <int n>
MMFAST_DEVICE SumItem sum_item(int64_t item, int32_t col_blocks) {
  const int64_t row = item / col_blocks;
  const int32_t block = static_cast<int32_t>(item - row * col_blocks);
  return {row, (block * kSumCols + static_cast<int32_t>(threadIdx.x) % kSumCols) * n,
          static_cast<int>(threadIdx.x) / kSumCols};
}

template <typename To, typename A, int n>
MMFAST_DEVICE void store_sums(To* to, const A (&sums)[n]) {
  Pack<To, n> pack;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    pack.value[i] = round_one<To>(sums[i]);
  }
  *reinterpret_cast<Pack<To, n>*>(to) = pack;
}

template <typename From, typename A, int n>
MMFAST_DEVICE void add_row(const From* from, A (&sums)[n]) {
  const Pack<From, n> pack = *reinterpret_cast<const Pack<From, n>*>(from);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    sums[i] += to_wide(pack.value[i]);
  }
}

template <typename From, typename To, typename A, int n>
__global__ void __launch_bounds__(kRowThreads) sum_rows(const __grid_constant__ SumRowsArgs args) {
  const int64_t chunks = sum_chunks(args.count);
  const int32_t col_blocks = ceil_div(args.cols, kSumCols * n);
  const int64_t items = args.kept_rows * chunks * col_blocks;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const auto [row, col, lane] = sum_item<n>(item, col_blocks);
    const int64_t kept = row / chunks;
    const int64_t begin = (row - kept * chunks) * kSumRows;
    const int64_t end = begin + kSumRows < args.count ? begin + kSumRows : args.count;
    A sums[n] = {};
    if (col < args.cols) {
      const From* x = static_cast<const From*>(args.x) + row_offset(args.kept, kept) + col;
      for (int64_t s = begin + lane; s < end; s += kSumLanes) {
        add_row(x + row_offset(args.summed, s), sums);
      }
    }
    add_lanes(sums);
    if (lane == 0 && col < args.cols) {
      store_sums(static_cast<To*>(args.out) + row * args.cols + col, sums);
    }
  }
}

bool strides_fit(const RowOffsets& rows, int n) {
  for (int d = 0; d < rows.dims.dims; ++d) {
    if (rows.strides[d] % n != 0) {
      return false;
    }
  }
  return true;
}

// Launches `whole` if rows can be read n elements at a time, else `single`.
template <int n, typename A, typename Args>
cudaError_t launch_sums(void (*whole)(const Args), void (*single)(const Args), bool fits,
                        int64_t rows, const Args& args, cudaStream_t stream) {
  const int64_t col_blocks = ceil_div(args.cols, kSumCols * (fits ? n : 1));
  launch(fits ? whole : single, rows * col_blocks, kRowThreads,
         fits ? kSumBytes<A, n> : kSumBytes<A, 1>, stream, args);
  return cudaGetLastError();
}

template <typename From, typename To, typename A>
cudaError_t sum_rows_of(const SumRowsArgs& args, cudaStream_t stream) {
  constexpr int n = sizeof(A) == 8 ? 2 : 4;
  const bool fits = args.cols % n == 0 && aligned(args.x, n * sizeof(From)) &&
                    aligned(args.out, n * sizeof(To)) && strides_fit(args.kept, n) &&
                    strides_fit(args.summed, n);
  return launch_sums<n, A>(sum_rows<From, To, A, n>, sum_rows<From, To, A, 1>, fits,
                           args.kept_rows * sum_chunks(args.count), args, stream);
}

template <typename From, typename To, typename A, int n>
__global__ void __launch_bounds__(kRowThreads)
    sum_segments(const __grid_constant__ SumSegmentsArgs args) {
  const int32_t col_blocks = ceil_div(args.cols, kSumCols * n);
  const int64_t items = args.segments * args.pieces * col_blocks;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const auto [row, col, lane] = sum_item<n>(item, col_blocks);
    const int64_t segment = row / args.pieces;
    const int32_t piece = static_cast<int32_t>(row - segment * args.pieces);
    const int64_t first = args.first[segment];
    const int64_t count = args.first[segment + 1] - first;
    const int64_t end = first + piece_begin(count, piece + 1, args.pieces);
    A sums[n] = {};
    if (col < args.cols) {
      const From* x = static_cast<const From*>(args.x) + col;
      for (int64_t e = first + piece_begin(count, piece, args.pieces) + lane; e < end;
           e += kSumLanes) {
        add_row(x + args.order[e] * args.x_stride, sums);
      }
    }
    add_lanes(sums);
    if (lane == 0 && col < args.cols) {
      store_sums(static_cast<To*>(args.out) + row * args.cols + col, sums);
    }
  }
}

template <typename From, typename To, typename A>
cudaError_t sum_segments_of(const SumSegmentsArgs& args, cudaStream_t stream) {
  constexpr int n = sizeof(A) == 8 ? 2 : 4;
  const bool fits = args.cols % n == 0 && args.x_stride % n == 0 &&
                    aligned(args.x, n * sizeof(From)) && aligned(args.out, n * sizeof(To));
  return launch_sums<n, A>(sum_segments<From, To, A, n>, sum_segments<From, To, A, 1>, fits,
                           args.segments * args.pieces, args, stream);
}

struct BoundsArgs {
  const int64_t* sorted;
  int64_t entries;
  int64_t* first;
  int64_t segments;
};

__global__ void __launch_bounds__(kRowThreads)
    segment_bounds(const __grid_constant__ BoundsArgs args) {
  for (int64_t s = first_item(); s <= args.segments; s += item_stride()) {
    int64_t low = 0;
    int64_t high = args.entries;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (args.sorted[middle] < s) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    args.first[s] = low;
  }
}

// --- the gradient before the activation
// -----------------------------------------------------------

// The gradient before the activation of n neighbours, rounded as it is stored.
template <typename T, int n>
MMFAST_DEVICE Pack<T, n> slope_of(const SlopeArgs& args, int64_t row, int32_t col) {
  const T* grad = static_cast<const T*>(args.grad) + row_offset(args.grad_rows, row) +
                  col * args.grad_col_stride;
  Pack<T, n> g = *reinterpret_cast<const Pack<T, n>*>(grad);
  if (args.activation != Activation::none) {
    const T* saved = static_cast<const T*>(args.saved) + row * args.cols + col;
    const Pack<T, n> s = *reinterpret_cast<const Pack<T, n>*>(saved);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      g.value[i] = round_one<T>(
          activation_gradient(args.activation, to_wide(g.value[i]), to_wide(s.value[i])));
    }
  }
  return g;
}

template <typename T, int n>
__global__ void __launch_bounds__(kRowThreads) slope(const __grid_constant__ SlopeArgs args) {
  using A = accumulator_t<T>;
  const int32_t col_blocks = ceil_div(args.cols, kSumCols * n);
  const int64_t items = sum_chunks(args.rows) * col_blocks;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const auto [chunk, col, lane] = sum_item<n>(item, col_blocks);
    const int64_t begin = chunk * kSumRows;
    const int64_t end = begin + kSumRows < args.rows ? begin + kSumRows : args.rows;
    A sums[n] = {};
    if (col < args.cols) {
      for (int64_t row = begin + lane; row < end; row += kSumLanes) {
        const Pack<T, n> g = slope_of<T, n>(args, row, col);
        *reinterpret_cast<Pack<T, n>*>(static_cast<T*>(args.out) + row * args.cols + col) = g;
#pragma unroll
        for (int i = 0; i < n; ++i) {
          sums[i] += to_wide(g.value[i]);
        }
      }
    }
    if (args.partial) {
      add_lanes(sums);
      if (lane == 0 && col < args.cols) {
        store_sums(static_cast<A*>(args.partial) + chunk * args.cols + col, sums);
      }
    }
  }
}

template <typename T>
cudaError_t slope_as(const SlopeArgs& args, cudaStream_t stream) {
  constexpr int n = sizeof(T) == 8 ? 2 : 4;
  const bool fits = args.cols % n == 0 && args.grad_col_stride == 1 &&
                    aligned(args.grad, n * sizeof(T)) && aligned(args.out, n * sizeof(T)) &&
                    aligned(args.saved, n * sizeof(T)) && strides_fit(args.grad_rows, n);
  return launch_sums<n, accumulator_t<T>>(slope<T, n>, slope<T, 1>, fits, sum_chunks(args.rows),
                                          args, stream);
}

template <typename T>
cudaError_t sum_rows_as(const SumRowsArgs& args, cudaStream_t stream) {
  using A = accumulator_t<T>;
  if (args.wide_x) {
    return args.narrow ? sum_rows_of<A, T, A>(args, stream) : sum_rows_of<A, A, A>(args, stream);
  }
  return args.narrow ? sum_rows_of<T, T, A>(args, stream) : sum_rows_of<T, A, A>(args, stream);
}

template <typename T>
cudaError_t sum_segments_as(const SumSegmentsArgs& args, cudaStream_t stream) {
  using A = accumulator_t<T>;
  if (args.wide_x) {
    return args.narrow ? sum_segments_of<A, T, A>(args, stream)
                       : sum_segments_of<A, A, A>(args, stream);
  }
  return args.narrow ? sum_segments_of<T, T, A>(args, stream)
                     : sum_segments_of<T, A, A>(args, stream);
}

}  // namespace

cudaError_t launch_slope(Element element, const SlopeArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(slope_as, element, args, stream);
}

cudaError_t launch_sum_rows(Element element, const SumRowsArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(sum_rows_as, element, args, stream);
}

cudaError_t launch_segment_bounds(const int64_t* sorted, int64_t entries, int64_t* first,
                                  int64_t segments, cudaStream_t stream) {
  launch(segment_bounds, blocks_for(segments + 1), kRowThreads, 0, stream,
         BoundsArgs{sorted, entries, first, segments});
  return cudaGetLastError();
}

cudaError_t launch_sum_segments(Element element, const SumSegmentsArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(sum_segments_as, element, args, stream);
}

}  // namespace mmfast::cuda
