// An input's distinct rows: what its strides say about the matrix that a product needs.
#pragma once

#include "dims.h"

namespace mmfast {

struct DistinctRows {
  Dims strides;       // per dimension of the batch, in distinct rows; 0: repeats
  Dims grad_strides;  // the same, by size alone: expanded rows count as different
  Dims sizes;         // of the input, where it repeats 1
  int64_t rows = 1;
  int64_t grad_rows = 1;
  int64_t row_stride = 0;  // elements from one row to the next, if `dense`
  bool dense = true;       // the rows are those of a matrix with unit column stride
};

// `sizes` and `strides` of an input (*batch_i, features), whose batch shape broadcasts to `batch`.
inline DistinctRows distinct_rows(const Dims& sizes, const Dims& strides, const Dims& batch) {
  const int64_t dims = sizes.size() - 1;
  const int64_t lead = batch.size() - dims;
  const int64_t width = sizes[dims];
  DistinctRows found;
  found.strides = Dims(batch.size(), 0);
  found.grad_strides = found.strides;
  found.sizes = sizes;
  found.row_stride = width;  // the stride of the innermost distinct dimension
  found.dense = width == 1 || strides[dims] == 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    if (sizes[d] > 1) {
      found.grad_strides[lead + d] = found.grad_rows;
      found.grad_rows *= sizes[d];
    }
    if (sizes[d] > 1 && strides[d] != 0) {
      found.row_stride = found.rows == 1 ? strides[d] : found.row_stride;
      found.dense = found.dense && strides[d] == found.row_stride * found.rows;
      found.strides[lead + d] = found.rows;
      found.rows *= sizes[d];
    } else {
      found.sizes[d] = sizes[d] == 0 ? 0 : 1;
    }
  }
  found.dense = found.dense && (found.rows == 1 || found.row_stride >= width);
  found.row_stride = found.dense && found.rows > 1 ? found.row_stride : width;
  return found;
}

// The rows that an index picks, one per entry, and where each is among the entries.
inline Dims entry_strides(const Dims& index_sizes, const Dims& batch) {
  Dims strides(batch.size(), 0);
  const int64_t lead = batch.size() - index_sizes.size();
  int64_t entries = 1;
  for (int64_t d = index_sizes.size() - 1; d >= 0; --d) {
    strides[lead + d] = index_sizes[d] > 1 ? entries : 0;
    entries *= index_sizes[d];
  }
  return strides;
}

}  // namespace mmfast
