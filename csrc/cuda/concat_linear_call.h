// One call of concat_linear on a GPU: what its forward and its backward share.
#pragma once

#include <optional>

#include "../concat_linear.h"
#include "../distinct_rows.h"
#include "concat_linear_plan.h"
#include "concat_linear_rows.h"
#include "matmul.h"

namespace mmfast::cuda {

using torch::headeronly::ScalarType;

// An input as a matrix of its distinct rows.
struct Source {
  int64_t input;      // position in the argument list
  Tensor tensor;      // keeps `matrix` alive
  Matrix matrix;      // distinct rows x features
  int64_t offset;     // first column in the weight
  Dims strides;       // per batch dimension, in distinct rows, or entries of the index; 0: repeats
  Dims grad_strides;  // the same, by size alone: expanded rows count as different
  int64_t grad_rows;

  // For an input whose rows an index picks: `matrix` holds all its rows.
  std::optional<Tensor> index_tensor;
  const int64_t* index = nullptr;
  int64_t entries = 0;

  // Rows to pick before the product, since multiplying all rows would be no cheaper.
  bool picked_first() const { return index && matrix.rows > entries / 2; }
  // Rows that a product with the weight takes.
  int64_t product_rows() const { return picked_first() ? entries : matrix.rows; }
};

// What every step needs to know of one call.
struct Call {
  ConcatLinearShape shape;
  std::vector<Source> sources;  // the inputs that have features, in order
  Tensor weight_tensor;         // keeps `weight` alive; says where new tensors go
  Matrix weight;                // cols x width, unit column stride
  Element element;
  int32_t dtype;  // the same, as the C shims number it
  int64_t element_size;
  Gpu gpu;
  cudaStream_t stream;

  bool bfloat16() const { return element == Element::bfloat16; }
  int32_t accumulator_dtype() const {
    return element == Element::float64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  }
  Tensor empty(const Dims& sizes, int32_t dtype_code) const {
    return cuda::empty(weight_tensor, sizes, dtype_code);
  }
  // The columns of the weight that multiply a source.
  Matrix weight_of(const Source& source) const {
    return Matrix{static_cast<char*>(weight.data) + source.offset * element_size, weight.rows,
                  source.matrix.cols, weight.row_stride};
  }
};

// Everything but the plan; launches the checks of the index tensors. A weight that is not read need
// not lie as products want it.
Call make_call(const std::vector<Tensor>& inputs, const Tensor& weight,
               const std::vector<Tensor>& index, const std::vector<int64_t>& indexed,
               bool reads_weight = true);

GpuPlan plan_call(const Call& call, bool finishing);

// Whether TMA can read a matrix: 16-byte aligned at the start of every row.
inline bool tma_can_read(const Matrix& m) { return unit_of(m.data, m.row_stride) == 16; }

// Rows of the batch in something with these strides; neighbouring dimensions are merged.
RowOffsets row_offsets(const Dims& sizes, const Dims& strides);
// The same for several things, whose dimensions are merged alike.
std::vector<RowOffsets> row_offsets_together(const Dims& sizes, const std::vector<Dims>& strides);

// The rows of a source for each row of the batch (or, of an indexed one, for each entry), in a new
// tensor whose rows are aligned to 16 bytes.
struct Picked {
  Tensor tensor;
  Matrix matrix;
};
Picked pick_rows(const Call& call, const Source& source, const Dims& batch, int64_t rows);
// A matrix, copied so that its rows are aligned to 16 bytes.
Picked align_rows(const Call& call, const Matrix& m);

// `m` in the accumulator's type; `m` itself if that is its type.
Picked widened(const Call& call, const Matrix& m);
// out = `from`, rounded to the element type.
void narrow_into(const Call& call, const Matrix& out, const Matrix& from);

}  // namespace mmfast::cuda
