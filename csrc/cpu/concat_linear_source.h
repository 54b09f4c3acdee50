// The inputs of concat_linear as matrices of their distinct rows.
#pragma once

#include "../concat_linear.h"
#include "matmul.h"
#include "row_map.h"

namespace mmfast {

struct Source {
  int64_t input;                      // position in the argument list
  Tensor tensor;                      // keeps `matrix` alive
  Matrix matrix;                      // distinct rows x features
  int64_t offset;                     // first column in the weight
  std::vector<int64_t> strides;       // per batch dimension, in distinct rows; 0: repeats
  std::vector<int64_t> grad_strides;  // the same, by size alone: expanded rows count as different
  int64_t grad_rows;
};

// The distinct rows of an input as a matrix with unit column stride, copied only if its strides
// fit no matrix.
inline void set_distinct_rows(Source& source, const Tensor& input,
                              const std::vector<int64_t>& batch) {
  const auto sizes = input.sizes();
  const auto strides = input.strides();
  const int64_t dims = static_cast<int64_t>(sizes.size()) - 1;
  const int64_t lead = static_cast<int64_t>(batch.size()) - dims;
  const int64_t width = sizes[dims];
  source.strides.assign(batch.size(), 0);
  source.grad_strides.assign(batch.size(), 0);

  int64_t rows = 1;
  int64_t row_stride = width;  // of the matrix: the stride of the innermost distinct dimension
  bool dense = width == 1 || strides[dims] == 1;
  std::vector<int64_t> distinct_sizes(sizes.begin(), sizes.end());
  source.grad_rows = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    if (sizes[d] > 1) {
      source.grad_strides[lead + d] = source.grad_rows;
      source.grad_rows *= sizes[d];
    }
    if (sizes[d] > 1 && strides[d] != 0) {
      row_stride = rows == 1 ? strides[d] : row_stride;
      dense = dense && strides[d] == row_stride * rows;
      source.strides[lead + d] = rows;
      rows *= sizes[d];
    } else {
      distinct_sizes[d] = sizes[d] == 0 ? 0 : 1;
    }
  }
  dense = dense && (rows == 1 || row_stride >= width);
  source.tensor = input;
  if (!dense) {
    source.tensor = contiguous_cpu(borrow(const_cast<void*>(input.const_data_ptr()), distinct_sizes,
                                          strides, dtype_of(input)));
    row_stride = width;
  }
  source.matrix = Matrix{const_cast<void*>(source.tensor.const_data_ptr()), rows, width,
                         rows == 1 ? width : row_stride};
}

// The inputs that have features, in order.
inline std::vector<Source> make_sources(const std::vector<Tensor>& inputs,
                                        const ConcatLinearShape& shape) {
  std::vector<Source> sources;
  sources.reserve(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].size(inputs[i].dim() - 1) > 0) {
      sources.push_back(
          Source{static_cast<int64_t>(i), inputs[i], Matrix{}, shape.offsets[i], {}, {}, 0});
      set_distinct_rows(sources.back(), inputs[i], shape.batch);
    }
  }
  return sources;
}

inline std::vector<std::vector<int64_t>> strides_of(const std::vector<Source>& sources) {
  std::vector<std::vector<int64_t>> strides;
  strides.reserve(sources.size());
  for (const Source& source : sources) {
    strides.push_back(source.strides);
  }
  return strides;
}

}  // namespace mmfast
