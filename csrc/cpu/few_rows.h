// Matrix products for up to kFewRows rows of inputs, where the weight is by far the largest thing
// touched: it is read from memory once, in the order in which it lies there, and never packed.
// Forward takes the weight as the left matrix of gemm.h's tile and the packed inputs as the right
// one; the sums come out transposed.
#pragma once

#include "gemm.h"

namespace mmfast {

constexpr int64_t kFewRows = 64;
constexpr int64_t kUnitCols = 8 * kTileRows;  // of the result, at most, in a unit of work
constexpr int64_t kUnitPanels = 8;            // of an input gradient, in a unit of work

// out = act(cat(inputs) weight^T + ...)
struct FewRowsArgs {
  const GemmSegment* segments;  // of the weight's rows
  int64_t segment_count;
  const char* panels;   // the inputs' rows, 32 to a panel, as columns
  int64_t panel_bytes;  // of one
  int64_t unit_cols;    // a multiple of kTileRows up to kUnitCols
  char* out;            // contiguous
  GemmArgs epilogue;    // its rows, cols, bias, addends, preactivation and activation
};

// input gradients = grad weight
struct FewRowsInputArgs {
  const char* grad;  // contiguous
  int64_t rows;
  int64_t cols;
  int64_t weight_stride;    // bytes
  const GemmPanel* panels;  // of the weight's columns, where they lie
  int64_t panel_count;
};

// weight gradient = grad^T inputs
struct FewRowsWeightArgs {
  const char* grad;  // [steps][cols] words: an element, or a pair of rows' elements
  int64_t steps;
  int64_t cols;
  const GemmPanel* panels;  // of the inputs' columns
  int64_t panel_count;
};

}  // namespace mmfast
