// What concat_linear does to rows besides multiplying them, on a GPU: launches on plain pointers.
// Strides count elements; elements have the type named by `Element`, sums the accumulator's
// (float64 for float64, else float32).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../activation.h"
#include "../cpu/scalar.h"
#include "gemm_args.h"

namespace mmfast::cuda {

// Rows of the batch, and where each is in a tensor.
struct RowOffsets {
  RowDims dims;
  int64_t strides[kMaxDims];
};

MMFAST_HOST_DEVICE int64_t row_offset(const RowOffsets& rows, int64_t row) {
  uint32_t rest = static_cast<uint32_t>(row);
  int64_t found = 0;
  for (int d = rows.dims.dims - 1; d > 0; --d) {
    const uint32_t size = static_cast<uint32_t>(rows.dims.sizes[d]);
    const uint32_t outer = rest / size;
    found += (rest - outer * size) * rows.strides[d];
    rest = outer;
  }
  return found + (rows.dims.dims ? rest * rows.strides[0] : 0);
}

// Asserts, on the device, that all entries lie in 0 .. rows - 1; after a failure the device refuses
// all further work, as after any wrong index in PyTorch.
cudaError_t launch_check_index(const int64_t* index, int64_t entries, int64_t rows,
                               cudaStream_t stream);

// to[m][:] = from[row of m][:], for m in begin .. end
struct PickArgs {
  void* to;
  int64_t to_stride;
  const void* from;
  int64_t from_stride;
  const int64_t* index;  // or null; else the map leads to its entries
  RowOffsets rows;       // in rows of `from`, or in entries
  int64_t begin;
  int64_t end;
  int32_t cols;
};
cudaError_t launch_pick_rows(int64_t element_bytes, const PickArgs& args, cudaStream_t stream);

// What remains after the library's products: out = act(out + addends + bias).
struct FinishArgs {
  void* out;                        // [rows][cols]
  void* preactivation;              // or null
  const void* bias;                 // or null
  const void* addend[kMaxAddends];  // [distinct rows][cols], of the accumulator's type
  const int64_t* addend_index[kMaxAddends];
  RowOffsets addend_rows[kMaxAddends];
  int32_t addends;
  bool has_product;  // else out holds nothing yet
  Activation activation;
  int32_t rows;
  int32_t cols;
};
cudaError_t launch_finish_rows(Element element, const FinishArgs& args, cudaStream_t stream);

// out[row][:] = the gradient before the activation, contiguous.
struct SlopeArgs {
  void* out;
  const void* grad;
  RowOffsets grad_rows;
  int64_t grad_col_stride;
  const void* saved;  // contiguous; null where there is no activation
  Activation activation;
  int32_t rows;
  int32_t cols;
  void* partial;  // or null: column sums too, [sum_chunks(rows)][cols] of the accumulator's type
};
cudaError_t launch_slope(Element element, const SlopeArgs& args, cudaStream_t stream);

// out[kept][:] = sum over s < count of x[kept row + summed row][:]. Deterministic: each chunk of
// kSumRows rows is added by one block, then chunks of chunks, until one is left.
constexpr int kSumRows = 256;
MMFAST_HOST_DEVICE int64_t sum_chunks(int64_t count) { return (count + kSumRows - 1) / kSumRows; }

struct SumRowsArgs {
  void* out;  // [kept_rows][chunks][cols]: of the accumulator's type unless `narrow`
  const void* x;
  bool wide_x;  // x is of the accumulator's type
  bool narrow;  // out is of the element's type
  RowOffsets kept;
  RowOffsets summed;
  int64_t kept_rows;
  int64_t count;
  int32_t cols;
};
cudaError_t launch_sum_rows(Element element, const SumRowsArgs& args, cudaStream_t stream);

// first[s] = how many of the sorted entries are less than s, for s in 0 .. segments
cudaError_t launch_segment_bounds(const int64_t* sorted, int64_t entries, int64_t* first,
                                  int64_t segments, cudaStream_t stream);

// out[segment][piece][:] = the sum of x[order[e]][:] over a piece of the segment's entries.
struct SumSegmentsArgs {
  void* out;  // of the accumulator's type unless `narrow`
  const void* x;
  int64_t x_stride;
  bool wide_x;
  bool narrow;
  const int64_t* order;
  const int64_t* first;
  int64_t segments;
  int32_t pieces;
  int32_t cols;
};
cudaError_t launch_sum_segments(Element element, const SumSegmentsArgs& args, cudaStream_t stream);

// Piece p of a segment begins at this one of its `count` entries.
MMFAST_HOST_DEVICE int64_t piece_begin(int64_t count, int32_t piece, int32_t pieces) {
  return count * piece / pieces;
}

// to = from, converted between the element's and the accumulator's type, row by row.
struct ConvertArgs {
  void* to;
  int64_t to_stride;
  const void* from;
  int64_t from_stride;
  int64_t rows;
  int32_t cols;
  bool widen;
};
cudaError_t launch_convert(Element element, const ConvertArgs& args, cudaStream_t stream);

}  // namespace mmfast::cuda
