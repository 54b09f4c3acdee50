// Rows picked, finished and converted; see concat_linear_rows.h.
#undef NDEBUG  // an index out of range must stop the device, in every build
#include <cassert>

#include "activation_math.h"
#include "concat_linear_rows.cuh"

namespace mmfast::cuda {
namespace {

// --- index
// ----------------------------------------------------------------------------------------

struct CheckArgs {
  const int64_t* index;
  int64_t entries;
  int64_t rows;
};

__global__ void __launch_bounds__(kRowThreads) check_index(const __grid_constant__ CheckArgs args) {
  for (int64_t e = first_item(); e < args.entries; e += item_stride()) {
    assert(args.index[e] >= 0 && args.index[e] < args.rows && "concat_linear: index out of range");
  }
}

// --- rows picked
// ----------------------------------------------------------------------------------

template <int words>
struct alignas(4 * words) Units {
  uint32_t word[words];
};

template <typename Unit>
__global__ void __launch_bounds__(kRowThreads) pick_rows(const __grid_constant__ PickArgs args) {
  const int64_t units = args.cols;
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

// Counts strides and columns in units of sizeof(Unit) bytes.
template <typename Unit>
cudaError_t pick_rows_in(int64_t element_bytes, PickArgs args, cudaStream_t stream) {
  const int64_t per_unit = static_cast<int64_t>(sizeof(Unit)) / element_bytes;
  args.to_stride /= per_unit;
  args.from_stride /= per_unit;
  args.cols /= static_cast<int32_t>(per_unit);
  launch(pick_rows<Unit>, blocks_for((args.end - args.begin) * args.cols), kRowThreads, 0, stream,
         args);
  return cudaGetLastError();
}

// --- the library's epilogue
// -----------------------------------------------------------------------

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    finish_rows(const __grid_constant__ FinishArgs args) {
  using A = accumulator_t<T>;
  const int64_t count = static_cast<int64_t>(args.rows) * args.cols;
  for (int64_t i = first_item(); i < count; i += item_stride()) {
    const int64_t row = i / args.cols;
    const int64_t col = i - row * args.cols;
    A x = args.has_product ? to_wide(static_cast<const T*>(args.out)[i]) : A(0);
    for (int j = 0; j < args.addends; ++j) {
      int64_t from = row_offset(args.addend_rows[j], row);
      from = args.addend_index[j] ? args.addend_index[j][from] : from;
      x += static_cast<const A*>(args.addend[j])[from * args.cols + col];
    }
    if (args.bias) {
      x += to_wide(static_cast<const T*>(args.bias)[col]);
    }
    if (args.preactivation) {
      static_cast<T*>(args.preactivation)[i] = round_one<T>(x);
    }
    static_cast<T*>(args.out)[i] = round_one<T>(activate(args.activation, x));
  }
}

// --- conversions
// ----------------------------------------------------------------------------------

template <typename To, typename From>
__global__ void __launch_bounds__(kRowThreads) convert(const __grid_constant__ ConvertArgs args) {
  const int64_t count = args.rows * args.cols;
  for (int64_t i = first_item(); i < count; i += item_stride()) {
    const int64_t row = i / args.cols;
    const int64_t col = i - row * args.cols;
    static_cast<To*>(args.to)[row * args.to_stride + col] =
        round_one<To>(to_wide(static_cast<const From*>(args.from)[row * args.from_stride + col]));
  }
}

template <typename To, typename From>
cudaError_t convert_of(const ConvertArgs& args, cudaStream_t stream) {
  launch(convert<To, From>, blocks_for(args.rows * args.cols), kRowThreads, 0, stream, args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t convert_as(const ConvertArgs& args, cudaStream_t stream) {
  using A = accumulator_t<T>;
  return args.widen ? convert_of<A, T>(args, stream) : convert_of<T, A>(args, stream);
}

template <typename T>
cudaError_t finish_rows_as(const FinishArgs& args, cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(args.rows) * args.cols;
  launch(finish_rows<T>, blocks_for(count), kRowThreads, 0, stream, args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_check_index(const int64_t* index, int64_t entries, int64_t rows,
                               cudaStream_t stream) {
  launch(check_index, blocks_for(entries), kRowThreads, 0, stream, CheckArgs{index, entries, rows});
  return cudaGetLastError();
}

cudaError_t launch_pick_rows(int64_t element_bytes, const PickArgs& args, cudaStream_t stream) {
  const int64_t misfit = static_cast<int64_t>(reinterpret_cast<uintptr_t>(args.to) |
                                              reinterpret_cast<uintptr_t>(args.from)) |
                         args.to_stride * element_bytes | args.from_stride * element_bytes |
                         args.cols * element_bytes;
  if (misfit % 16 == 0) {
    return pick_rows_in<Units<4>>(element_bytes, args, stream);
  }
  if (misfit % 8 == 0) {
    return pick_rows_in<Units<2>>(element_bytes, args, stream);
  }
  if (misfit % 4 == 0) {
    return pick_rows_in<Units<1>>(element_bytes, args, stream);
  }
  return pick_rows_in<uint16_t>(element_bytes, args, stream);
}

cudaError_t launch_finish_rows(Element element, const FinishArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(finish_rows_as, element, args, stream);
}

cudaError_t launch_convert(Element element, const ConvertArgs& args, cudaStream_t stream) {
  MMFAST_BY_ELEMENT(convert_as, element, args, stream);
}

}  // namespace mmfast::cuda
