// Matrix products over many inputs on a GPU, in bfloat16 and float16 with float32 sums.
//
//   forward          y   = act(sum_g x_g W_g^T + bias + addends)     one K loop over all inputs
//   input_gradient   dx_g = dy W_g                                   one launch for all inputs
//   weight_gradient  dW_g = dy^T x_g                                 one launch for all inputs
//
// W_g are columns of one weight. Two kernels share tiles, schedule and epilogue: gemm_sm90.cuh (TMA
// and wgmma, Hopper alone) and gemm_sm80.cuh (mma.sync and cp.async, any GPU from 8.0 on, any
// alignment, rows picked by an index). This header is what both are given; gemm.h launches them.
#pragma once

#include <cstdint>

#include "../activation.h"
#include "gemm_schedule.h"

namespace mmfast::cuda {

enum class GemmKind : int { forward, input_gradient, weight_gradient };

// A row-major matrix of 16-bit elements; strides in elements.
struct Operand {
  const void* data;
  const int64_t* index;  // the rows to read, or null
  int64_t stride;
  int32_t rows;
  int32_t cols;
  int32_t unit;  // bytes that may be read at a time: 16, 8, 4 or 2
};

// A float32 matrix of as many columns as the result; row m of the result adds one of its rows.
constexpr int kMaxAddends = 3;

struct Addend {
  const float* data;
  const int64_t* index;  // or null
  int32_t strides[kMaxDims];
};

// Where a group's result goes: columns of a matrix.
struct Panel {
  void* out;
  int64_t stride;
  int32_t cols;
};

struct Epilogue {
  Panel panels[kMaxGroups];           // one, forward
  const void* bias;                   // or null
  void* preactivation;                // or null; shaped like the first panel
  float* partial;                     // or null; [split][row][partial_cols], where K is split
  int32_t partial_first[kMaxGroups];  // a panel's first column in it
  int32_t partial_cols;
  int32_t partial_panels;
  int32_t addends;
  Addend addend[kMaxAddends];
  RowDims row_dims;
  Activation activation;
  bool wide_out;  // float32 instead of the inputs' type
  bool vectors;   // every pointer and stride allows four elements at a time
};

struct GemmArgs {
  Schedule schedule;
  int32_t rows;  // M
  int32_t groups;
  int32_t first[kMaxGroups + 1];  // steps of K (forward) or column tiles (backward) before a group
  int32_t origin[kMaxGroups];     // the weight's first column of a group
  Epilogue epilogue;
};

// Operands in memory; where there is one for all groups it stands at 0.
//   forward          a: inputs, a row per row of the result; b: the weight, from a group's origin
//   on input_gradient   a: dy; b: the weight likewise weight_gradient  a: dy; b: inputs
struct OperandArgs {
  GemmArgs gemm;
  Operand a[kMaxGroups];
  Operand b[kMaxGroups];
};

}  // namespace mmfast::cuda
