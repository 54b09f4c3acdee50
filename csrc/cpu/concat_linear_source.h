// The inputs of concat_linear as matrices of their distinct rows.
#pragma once

#include <algorithm>
#include <optional>

#include "../concat_linear.h"
#include "../distinct_rows.h"
#include "matmul.h"
#include "row_map.h"

namespace mmfast {

inline Matrix matrix_of(const Tensor& t) {
  const int64_t rows = t.size(0);
  const int64_t cols = t.size(1);
  return Matrix{const_cast<void*>(t.const_data_ptr()), rows, cols, rows > 1 ? t.stride(0) : cols};
}

struct Source {
  int64_t input;      // position in the argument list
  Tensor tensor;      // keeps `matrix` alive
  Matrix matrix;      // distinct rows x features
  int64_t offset;     // first column in the weight
  Dims strides;       // per batch dimension, in distinct rows; 0: repeats
  Dims grad_strides;  // the same, by size alone: expanded rows count as different
  int64_t grad_rows;

  // For an input whose rows an index picks: `matrix` holds all its rows, the strides count entries
  // of the index.
  std::optional<Tensor> index_tensor;
  const int64_t* index = nullptr;
  int64_t entries = 0;
  int64_t all_rows = 0;  // of the input itself

  // Rows to pick before the product, since multiplying all rows would be no cheaper.
  bool gathered_first() const { return index && matrix.rows > entries / 2; }
  // Its rows were picked before the product: index is null again, matrix holds what was picked.
  bool was_gathered() const { return index_tensor && !index; }
  // Rows that a product with the weight takes.
  int64_t product_rows() const { return gathered_first() ? entries : matrix.rows; }
};

// The distinct rows of an input as a matrix with unit column stride, copied only if its strides
// fit no matrix.
inline void set_distinct_rows(Source& source, const Tensor& input, const Dims& batch) {
  const auto strides = input.strides();
  const DistinctRows found =
      distinct_rows(sizes_of(input), Dims(strides.begin(), strides.end()), batch);
  source.strides = found.strides;
  source.grad_strides = found.grad_strides;
  source.grad_rows = found.grad_rows;
  source.tensor = input;
  if (!found.dense) {
    const Dims& sizes = found.sizes;
    source.tensor = contiguous_cpu(borrow(const_cast<void*>(input.const_data_ptr()),
                                          {sizes.data(), static_cast<size_t>(sizes.size())},
                                          strides, dtype_of(input)));
  }
  source.matrix = Matrix{const_cast<void*>(source.tensor.const_data_ptr()), found.rows,
                         input.size(input.dim() - 1), found.row_stride};
}

inline void set_indexed_rows(Source& source, const Tensor& input, const Tensor& index,
                             const Dims& batch) {
  const bool dense = (input.size(1) == 1 || input.stride(1) == 1) &&
                     (input.size(0) <= 1 || input.stride(0) >= input.size(1));
  source.tensor = dense ? input : contiguous_cpu(input);
  source.matrix = matrix_of(source.tensor);
  source.index_tensor = contiguous_cpu(index);
  source.index = static_cast<const int64_t*>(source.index_tensor->const_data_ptr());
  source.entries = index.numel();
  source.all_rows = source.matrix.rows;
  source.strides = entry_strides(sizes_of(index), batch);
  source.grad_strides = source.strides;
  source.grad_rows = source.matrix.rows;
  int64_t low = 0;
  int64_t high = -1;
  for (int64_t e = 0; e < source.entries; ++e) {
    low = std::min(low, source.index[e]);
    high = std::max(high, source.index[e]);
  }
  STD_TORCH_CHECK(low >= 0 && high < source.matrix.rows, "index[", source.input, "] holds ",
                  low < 0 ? low : high, "; it must lie in 0 .. ", source.matrix.rows - 1,
                  ", the rows of inputs[", source.input, "]");
}

// The inputs that have features, in order.
inline std::vector<Source> make_sources(const std::vector<Tensor>& inputs,
                                        const std::vector<Tensor>& index,
                                        const std::vector<int64_t>& indexed,
                                        const ConcatLinearShape& shape) {
  std::vector<Source> sources;
  sources.reserve(inputs.size());
  size_t next = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool has_index = next < indexed.size() && indexed[next] == static_cast<int64_t>(i);
    if (inputs[i].size(inputs[i].dim() - 1) > 0) {
      sources.push_back(
          Source{static_cast<int64_t>(i), inputs[i], Matrix{}, shape.offsets[i], {}, {}, 0});
      if (has_index) {
        set_indexed_rows(sources.back(), inputs[i], index[next], shape.batch);
      } else {
        set_distinct_rows(sources.back(), inputs[i], shape.batch);
      }
    }
    next += has_index ? 1 : 0;
  }
  return sources;
}

// Empty where nothing is indexed.
inline std::vector<const int64_t*> index_of(const std::vector<Source>& sources) {
  std::vector<const int64_t*> index;
  if (std::none_of(sources.begin(), sources.end(), [](const Source& s) { return s.index; })) {
    return index;
  }
  for (const Source& source : sources) {
    index.push_back(source.index);
  }
  return index;
}

inline std::vector<Dims> strides_of(const std::vector<Source>& sources) {
  std::vector<Dims> strides;
  strides.reserve(sources.size());
  for (const Source& source : sources) {
    strides.push_back(source.strides);
  }
  return strides;
}

}  // namespace mmfast
