// One call of concat_linear on the CPU: what its forward and its backward share.
#pragma once

#include <algorithm>
#include <cstring>

#include "concat_linear.h"
#include "concat_linear_source.h"
#include "scalar.h"
#include "scratch.h"

namespace mmfast {

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;

constexpr int64_t kGrainElements = 16 * 1024;  // below this much work a thread is not worth waking

inline int64_t grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_item));
}

#define MMFAST_DISPATCH(dtype, kernel, ...)           \
  switch (dtype) {                                    \
    case ScalarType::Float:                           \
      MMFAST_ISA_CALL(kernel<float>, __VA_ARGS__);    \
      break;                                          \
    case ScalarType::BFloat16:                        \
      MMFAST_ISA_CALL(kernel<BFloat16>, __VA_ARGS__); \
      break;                                          \
    case ScalarType::Half:                            \
      MMFAST_ISA_CALL(kernel<Float16>, __VA_ARGS__);  \
      break;                                          \
    default:                                          \
      MMFAST_ISA_CALL(kernel<double>, __VA_ARGS__);   \
      break;                                          \
  }

inline Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Element::float32;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    case ScalarType::Half:
      return Element::float16;
    default:
      return Element::float64;
  }
}

// What every step below needs to know of one call.
struct Call {
  const ConcatLinearShape& shape;
  const std::vector<Source>& sources;
  Matrix weight;  // cols x width, unit column stride
  ScalarType dtype;
  int32_t dtype_code;  // the same, as the C shims number it
  int64_t element_size;

  int32_t accumulator_code() const {
    return dtype == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  }
  // The same call, as far as products need it, with a weight in float32.
  Call in_float(const Matrix& float_weight) const {
    return Call{shape, sources, float_weight, ScalarType::Float, aoti_torch_dtype_float32(), 4};
  }
  // The columns of the weight that multiply `width` features from `offset` on.
  Matrix weight_slice(int64_t offset, int64_t width) const {
    return Matrix{static_cast<char*>(weight.data) + offset * element_size, weight.rows, width,
                  weight.row_stride};
  }
  Matrix rows_of(const Matrix& m, int64_t begin, int64_t end) const {
    return Matrix{static_cast<char*>(m.data) + begin * m.row_stride * element_size, end - begin,
                  m.cols, m.row_stride, m.col_stride};
  }
};

inline Tensor with_unit_column_stride(const Tensor& weight) {
  const bool usable = (weight.size(1) <= 1 || weight.stride(1) == 1) &&
                      (weight.size(0) <= 1 || weight.stride(0) >= weight.size(1));
  return usable ? weight : contiguous_cpu(weight);
}

inline Call make_call(const ConcatLinearShape& shape, const std::vector<Source>& sources,
                      const Tensor& weight) {
  return Call{shape,
              sources,
              matrix_of(weight),
              weight.scalar_type(),
              dtype_of(weight),
              static_cast<int64_t>(weight.element_size())};
}

inline Plan plan_call(const Call& call) {
  std::vector<int64_t> widths;
  std::vector<int64_t> distinct_rows;
  widths.reserve(call.sources.size());
  distinct_rows.reserve(call.sources.size());
  for (const Source& source : call.sources) {
    widths.push_back(source.matrix.cols);
    distinct_rows.push_back(source.product_rows());
  }
  return plan_concat_linear(widths, distinct_rows, call.shape.rows, call.shape.cols,
                            element_of(call.dtype), current_isa());
}

// Picks rows before the product where that is the cheaper order: such an input is then like one
// without an index.
inline void gather_first(const Call& call, std::vector<Source>& sources) {
  for (Source& source : sources) {
    if (!source.gathered_first()) {
      continue;
    }
    const Matrix from = source.matrix;
    const Tensor picked = empty_cpu({source.entries, from.cols}, call.dtype_code);
    const Matrix to = matrix_of(picked);
    parallel_for(0, to.rows, grain(to.cols), [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        std::memcpy(call.rows_of(to, e, e + 1).data,
                    call.rows_of(from, source.index[e], source.index[e] + 1).data,
                    from.cols * call.element_size);
      }
    });
    source.tensor = picked;
    source.matrix = to;
    source.grad_rows = source.entries;
    source.index = nullptr;
  }
}

// Bytes of scratch for a tiny problem; see the kernels that divide it.
inline int64_t tiny_scratch(const Call& call, bool backward) {
  const int64_t accumulator_size = call.dtype == ScalarType::Double ? 8 : 4;
  int64_t elements = call.shape.rows * call.shape.width;
  if (backward) {
    elements += call.shape.rows * call.shape.cols + call.shape.width;
    for (const Source& source : call.sources) {
      elements += source.grad_rows * source.matrix.cols;
    }
  }
  return elements * accumulator_size;
}

inline TinyArgs tiny_args(const Call& call, const std::vector<TinySource>& sources,
                          const RowMap& rows, bool backward) {
  TinyArgs args{};
  args.sources = sources.data();
  args.rows = rows;
  args.scratch = scratch(tiny_scratch(call, backward));
  args.weight = call.weight.data;
  args.weight_stride = call.weight.row_stride;
  args.count = call.shape.rows;
  args.cols = call.shape.cols;
  args.width = call.shape.width;
  return args;
}

inline std::vector<TinySource> tiny_sources(const Call& call) {
  std::vector<TinySource> sources;
  sources.reserve(call.sources.size());
  for (const Source& source : call.sources) {
    sources.push_back(TinySource{source.matrix.data, nullptr, source.matrix.cols, source.offset,
                                 source.matrix.row_stride, source.grad_rows});
  }
  return sources;
}

}  // namespace mmfast
