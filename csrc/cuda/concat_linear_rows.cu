// See concat_linear_rows.h.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef NDEBUG  // an index out of range must stop the device, in every build
#include <cassert>

#include "activation_math.h"
#include "concat_linear_rows.h"

namespace mmfast::cuda {
namespace {

// Accumulator of an element type.
template <typename T>
struct Sum {
  using type = float;
};
template <>
struct Sum<double> {
  using type = double;
};

template <typename A, typename T>
__device__ __forceinline__ A widen(T x) {
  return static_cast<A>(x);
}
template <>
__device__ __forceinline__ float widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <>
__device__ __forceinline__ float widen(__half x) {
  return __half2float(x);
}
template <typename T, typename A>
__device__ __forceinline__ T narrow(A x) {
  return static_cast<T>(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half narrow(float x) {
  return __float2half_rn(x);
}

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t item_stride() {
  return static_cast<int64_t>(gridDim.x) * kThreads;
}
int grid_for(int64_t items) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < 1 ? 1 : blocks < 32768 ? blocks : 32768);
}

// `n` neighbours at a time: 16 bytes of the widest type involved.
template <typename T, int n>
struct alignas(sizeof(T) * n) Pack {
  T value[n];
};

bool aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

// --- index ----------------------------------------------------------------------------------------

__global__ void check_index(const int64_t* index, int64_t entries, int64_t rows) {
  for (int64_t e = first_item(); e < entries; e += item_stride()) {
    assert(index[e] >= 0 && index[e] < rows && "concat_linear: index out of range");
  }
}

// --- rows picked ----------------------------------------------------------------------------------

template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    pick_rows(const __grid_constant__ PickArgs args, int64_t units) {
  const int64_t count = (args.end - args.begin) * units;
  for (int64_t i = first_item(); i < count; i += item_stride()) {
    const int64_t line = i / units;
    const int64_t unit = i - line * units;
    int64_t row = row_offset(args.rows, args.begin + line);
    row = args.index ? args.index[row] : row;
    static_cast<Unit*>(args.to)[line * args.to_stride + unit] =
        static_cast<const Unit*>(args.from)[row * args.from_stride + unit];
  }
}

// The same with strides and columns counted in units of sizeof(Unit) bytes.
template <typename Unit>
cudaError_t pick_rows_in(int64_t element_bytes, PickArgs args, cudaStream_t stream) {
  const int64_t per_unit = static_cast<int64_t>(sizeof(Unit)) / element_bytes;
  args.to_stride /= per_unit;
  args.from_stride /= per_unit;
  const int64_t units = args.cols / per_unit;
  pick_rows<Unit><<<grid_for((args.end - args.begin) * units), kThreads, 0, stream>>>(args, units);
  return cudaGetLastError();
}

// --- the library's epilogue -----------------------------------------------------------------------

template <typename T>
__global__ void __launch_bounds__(kThreads) finish_rows(const __grid_constant__ FinishArgs args) {
  using A = typename Sum<T>::type;
  const int64_t count = static_cast<int64_t>(args.rows) * args.cols;
  for (int64_t i = first_item(); i < count; i += item_stride()) {
    const int64_t row = i / args.cols;
    const int64_t col = i - row * args.cols;
    A x = args.has_product ? widen<A>(static_cast<const T*>(args.out)[i]) : A(0);
    for (int j = 0; j < args.addends; ++j) {
      int64_t from = row_offset(args.addend_rows[j], row);
      from = args.addend_index[j] ? args.addend_index[j][from] : from;
      x += static_cast<const A*>(args.addend[j])[from * args.cols + col];
    }
    if (args.bias) {
      x += widen<A>(static_cast<const T*>(args.bias)[col]);
    }
    if (args.preactivation) {
      static_cast<T*>(args.preactivation)[i] = narrow<T>(x);
    }
    static_cast<T*>(args.out)[i] = narrow<T>(activate(args.activation, x));
  }
}

// --- sums over rows -------------------------------------------------------------------------------

// A block adds rows in kSumLanes lanes; each lane has kSumCols threads of `n` columns.
constexpr int kSumCols = 32;
constexpr int kSumLanes = kThreads / kSumCols;

// The lanes' sums of a column, added in order; the first lane has the result.
template <typename A, int n>
__device__ __forceinline__ void add_lanes(A (&sums)[n]) {
  __shared__ A shared[kSumLanes][kSumCols * n];
  const int col = threadIdx.x % kSumCols;
  const int lane = threadIdx.x / kSumCols;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    shared[lane][i * kSumCols + col] = sums[i];
  }
  __syncthreads();
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      for (int other = 1; other < kSumLanes; ++other) {
        sums[i] += shared[other][i * kSumCols + col];
      }
    }
  }
}

template <typename To, typename A, int n>
__device__ __forceinline__ void store_sums(To* to, const A (&sums)[n]) {
  Pack<To, n> pack;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    pack.value[i] = narrow<To>(sums[i]);
  }
  *reinterpret_cast<Pack<To, n>*>(to) = pack;
}

template <typename From, typename A, int n>
__device__ __forceinline__ void add_row(const From* from, A (&sums)[n]) {
  const Pack<From, n> pack = *reinterpret_cast<const Pack<From, n>*>(from);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    sums[i] += widen<A>(pack.value[i]);
  }
}

template <typename From, typename To, typename A, int n>
__global__ void __launch_bounds__(kThreads)
    sum_rows(const __grid_constant__ SumRowsArgs args, int64_t chunks) {
  const int64_t kept = blockIdx.x / chunks;
  const int64_t chunk = blockIdx.x - kept * chunks;
  const int col = (blockIdx.y * kSumCols + threadIdx.x % kSumCols) * n;
  const int lane = threadIdx.x / kSumCols;
  const int64_t end = (chunk + 1) * kSumRows < args.count ? (chunk + 1) * kSumRows : args.count;
  A sums[n] = {};
  if (col < args.cols) {
    const From* x = static_cast<const From*>(args.x) + row_offset(args.kept, kept) + col;
    for (int64_t s = chunk * kSumRows + lane; s < end; s += kSumLanes) {
      add_row(x + row_offset(args.summed, s), sums);
    }
  }
  add_lanes(sums);
  if (lane == 0 && col < args.cols) {
    store_sums(static_cast<To*>(args.out) + static_cast<int64_t>(blockIdx.x) * args.cols + col,
               sums);
  }
}

template <typename From, typename To, typename A>
cudaError_t sum_rows_of(const SumRowsArgs& args, cudaStream_t stream) {
  const int64_t chunks = sum_chunks(args.count);
  constexpr int n = sizeof(A) == 8 ? 2 : 4;
  bool whole = args.cols % n == 0 && aligned(args.x, n * sizeof(From)) &&
               aligned(args.out, n * sizeof(To));
  for (int d = 0; d < args.kept.dims.dims; ++d) {
    whole = whole && args.kept.strides[d] % n == 0;
  }
  for (int d = 0; d < args.summed.dims.dims; ++d) {
    whole = whole && args.summed.strides[d] % n == 0;
  }
  const int per_block = kSumCols * (whole ? n : 1);
  const dim3 grid(static_cast<unsigned>(args.kept_rows * chunks),
                  static_cast<unsigned>(ceil_div(args.cols, per_block)));
  if (whole) {
    sum_rows<From, To, A, n><<<grid, kThreads, 0, stream>>>(args, chunks);
  } else {
    sum_rows<From, To, A, 1><<<grid, kThreads, 0, stream>>>(args, chunks);
  }
  return cudaGetLastError();
}

template <typename From, typename To, typename A, int n>
__global__ void __launch_bounds__(kThreads) sum_segments(const __grid_constant__ SumSegmentsArgs args) {
  const int64_t segment = blockIdx.x / args.pieces;
  const int piece = static_cast<int>(blockIdx.x - segment * args.pieces);
  const int col = (blockIdx.y * kSumCols + threadIdx.x % kSumCols) * n;
  const int lane = threadIdx.x / kSumCols;
  const int64_t first = args.first[segment];
  const int64_t count = args.first[segment + 1] - first;
  const int64_t begin = first + piece_begin(count, piece, args.pieces);
  const int64_t end = first + piece_begin(count, piece + 1, args.pieces);
  A sums[n] = {};
  if (col < args.cols) {
    const From* x = static_cast<const From*>(args.x) + col;
    for (int64_t e = begin + lane; e < end; e += kSumLanes) {
      add_row(x + args.order[e] * args.x_stride, sums);
    }
  }
  add_lanes(sums);
  if (lane == 0 && col < args.cols) {
    store_sums(static_cast<To*>(args.out) + static_cast<int64_t>(blockIdx.x) * args.cols + col,
               sums);
  }
}

template <typename From, typename To, typename A>
cudaError_t sum_segments_of(const SumSegmentsArgs& args, cudaStream_t stream) {
  constexpr int n = sizeof(A) == 8 ? 2 : 4;
  const bool whole = args.cols % n == 0 && args.x_stride % n == 0 &&
                     aligned(args.x, n * sizeof(From)) && aligned(args.out, n * sizeof(To));
  const int per_block = kSumCols * (whole ? n : 1);
  const dim3 grid(static_cast<unsigned>(args.segments * args.pieces),
                  static_cast<unsigned>(ceil_div(args.cols, per_block)));
  if (whole) {
    sum_segments<From, To, A, n><<<grid, kThreads, 0, stream>>>(args);
  } else {
    sum_segments<From, To, A, 1><<<grid, kThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

__global__ void segment_bounds(const int64_t* sorted, int64_t entries, int64_t* first,
                               int64_t segments) {
  for (int64_t s = first_item(); s <= segments; s += item_stride()) {
    int64_t low = 0;
    int64_t high = entries;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (sorted[middle] < s) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    first[s] = low;
  }
}

// --- the gradient before the activation -----------------------------------------------------------

template <typename T, int n>
__global__ void __launch_bounds__(kThreads) slope(const __grid_constant__ SlopeArgs args) {
  using A = typename Sum<T>::type;
  const int col = (blockIdx.y * kSumCols + threadIdx.x % kSumCols) * n;
  const int lane = threadIdx.x / kSumCols;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSumRows;
  const int64_t end = begin + kSumRows < args.rows ? begin + kSumRows : args.rows;
  A sums[n] = {};
  if (col < args.cols) {
    for (int64_t row = begin + lane; row < end; row += kSumLanes) {
      const T* grad = static_cast<const T*>(args.grad) + row_offset(args.grad_rows, row) +
                      col * args.grad_col_stride;
      Pack<T, n> g;
      if (n > 1) {
        g = *reinterpret_cast<const Pack<T, n>*>(grad);
      } else {
        g.value[0] = *grad;
      }
      const int64_t at = row * args.cols + col;
      if (args.activation != Activation::none) {
        const auto saved =
            *reinterpret_cast<const Pack<T, n>*>(static_cast<const T*>(args.saved) + at);
#pragma unroll
        for (int i = 0; i < n; ++i) {
          g.value[i] = narrow<T>(
              activation_gradient(args.activation, widen<A>(g.value[i]), widen<A>(saved.value[i])));
        }
      }
      *reinterpret_cast<Pack<T, n>*>(static_cast<T*>(args.out) + at) = g;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        sums[i] += widen<A>(g.value[i]);
      }
    }
  }
  if (args.partial) {
    add_lanes(sums);
    if (lane == 0 && col < args.cols) {
      store_sums(static_cast<A*>(args.partial) + static_cast<int64_t>(blockIdx.x) * args.cols + col,
                 sums);
    }
  }
}

template <typename T>
cudaError_t slope_of(const SlopeArgs& args, cudaStream_t stream) {
  constexpr int n = sizeof(T) == 8 ? 2 : 4;
  bool whole = args.cols % n == 0 && args.grad_col_stride == 1 &&
               aligned(args.grad, n * sizeof(T)) && aligned(args.out, n * sizeof(T)) &&
               aligned(args.saved, n * sizeof(T));
  for (int d = 0; d < args.grad_rows.dims.dims; ++d) {
    whole = whole && args.grad_rows.strides[d] % n == 0;
  }
  const dim3 grid(static_cast<unsigned>(sum_chunks(args.rows)),
                  static_cast<unsigned>(ceil_div(args.cols, kSumCols * (whole ? n : 1))));
  if (whole) {
    slope<T, n><<<grid, kThreads, 0, stream>>>(args);
  } else {
    slope<T, 1><<<grid, kThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

// --- conversions ----------------------------------------------------------------------------------

template <typename To, typename From>
__global__ void __launch_bounds__(kThreads) convert(const __grid_constant__ ConvertArgs args) {
  using A = typename Sum<From>::type;
  const int64_t count = args.rows * args.cols;
  for (int64_t i = first_item(); i < count; i += item_stride()) {
    const int64_t row = i / args.cols;
    const int64_t col = i - row * args.cols;
    static_cast<To*>(args.to)[row * args.to_stride + col] = narrow<To>(
        widen<A>(static_cast<const From*>(args.from)[row * args.from_stride + col]));
  }
}

template <typename To, typename From>
cudaError_t convert_of(const ConvertArgs& args, cudaStream_t stream) {
  convert<To, From><<<grid_for(args.rows * args.cols), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

// --- by element type ------------------------------------------------------------------------------

template <typename T>
cudaError_t sum_rows_as(const SumRowsArgs& args, cudaStream_t stream) {
  using A = typename Sum<T>::type;
  if (args.wide_x) {
    return args.narrow ? sum_rows_of<A, T, A>(args, stream) : sum_rows_of<A, A, A>(args, stream);
  }
  return args.narrow ? sum_rows_of<T, T, A>(args, stream) : sum_rows_of<T, A, A>(args, stream);
}

template <typename T>
cudaError_t sum_segments_as(const SumSegmentsArgs& args, cudaStream_t stream) {
  using A = typename Sum<T>::type;
  if (args.wide_x) {
    return args.narrow ? sum_segments_of<A, T, A>(args, stream)
                       : sum_segments_of<A, A, A>(args, stream);
  }
  return args.narrow ? sum_segments_of<T, T, A>(args, stream)
                     : sum_segments_of<T, A, A>(args, stream);
}

template <typename T>
cudaError_t convert_as(const ConvertArgs& args, cudaStream_t stream) {
  using A = typename Sum<T>::type;
  return args.widen ? convert_of<A, T>(args, stream) : convert_of<T, A>(args, stream);
}

template <typename T>
cudaError_t finish_rows_as(const FinishArgs& args, cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(args.rows) * args.cols;
  finish_rows<T><<<grid_for(count), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

#define MMFAST_BY_ELEMENT(function, element, args, stream) \
  switch (element) {                                       \
    case Element::float32:                                 \
      return function<float>(args, stream);                \
    case Element::float64:                                 \
      return function<double>(args, stream);               \
    case Element::bfloat16:                                \
      return function<__nv_bfloat16>(args, stream);        \
    default:                                               \
      return function<__half>(args, stream);               \
  }

cudaError_t launch_check_index(const int64_t* index, int64_t entries, int64_t rows,
                               cudaStream_t stream) {
  check_index<<<grid_for(entries), kThreads, 0, stream>>>(index, entries, rows);
  return cudaGetLastError();
}

cudaError_t launch_pick_rows(int64_t element_bytes, const PickArgs& args, cudaStream_t stream) {
  const int64_t misfit = static_cast<int64_t>(reinterpret_cast<uintptr_t>(args.to) |
                                              reinterpret_cast<uintptr_t>(args.from)) |
                         args.to_stride * element_bytes | args.from_stride * element_bytes |
                         args.cols * element_bytes;
  if (misfit % 16 == 0) {
    return pick_rows_in<uint4>(element_bytes, args, stream);
  }
  if (misfit % 8 == 0) {
    return pick_rows_in<uint2>(element_bytes, args, stream);
  }
  if (misfit % 4 == 0) {
    return pick_rows_in<uint32_t>(element_bytes, args, stream);
  }
  return pick_rows_in<uint16_t>(element_bytes, args, stream);
}

cudaError_t launch_finish_rows(Element element, const FinishArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(finish_rows_as, element, args, stream)
}

cudaError_t launch_slope(Element element, const SlopeArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(slope_of, element, args, stream)
}

cudaError_t launch_sum_rows(Element element, const SumRowsArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(sum_rows_as, element, args, stream)
}

cudaError_t launch_segment_bounds(const int64_t* sorted, int64_t entries, int64_t* first,
                                  int64_t segments, cudaStream_t stream) {
  segment_bounds<<<grid_for(segments + 1), kThreads, 0, stream>>>(sorted, entries, first, segments);
  return cudaGetLastError();
}

cudaError_t launch_sum_segments(Element element, const SumSegmentsArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(sum_segments_as, element, args, stream)
}

cudaError_t launch_convert(Element element, const ConvertArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(convert_as, element, args, stream)
}

}  // namespace mmfast::cuda
