// Own matrix products for what a library cannot do: one loop over the features of many inputs,
// accumulated in registers in float32, with bias, broadcast products and activation applied before
// the result is first written; gradients written to many outputs at once.
//
// One kernel serves all: a tile of up to 14 rows by 32 columns, the left matrix read in place by
// broadcasting single elements (pairs, for bfloat16), the right one packed into panels of 32
// columns. Packing is where inputs are gathered, so a concatenation costs nothing.
#pragma once

#include <cstdint>

#include "../activation.h"
#include "row_map.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mmfast {

constexpr int64_t kPanelCols = 32;
constexpr int64_t kTileRows = 14;

// A piece of the left matrix: `steps` multiply-adds, each of one feature (two, for bfloat16).
struct GemmSegment {
  const char* a;
  int64_t row_stride;   // bytes from row to row
  int64_t step_stride;  // bytes from step to step
  int64_t steps;
  bool odd;  // bfloat16: one more step, of a single feature
};

// A panel of the right matrix, and where its columns of the result go.
struct GemmPanel {
  const char* b;
  int64_t cols;        // at most kPanelCols
  char* out;           // first row, first column of the panel
  int64_t out_stride;  // bytes from row to row
  int64_t col;         // of bias, addends and preactivation
};

// rows x panels: out = act(left right + bias + addends)
struct GemmArgs {
  const GemmSegment* segments;
  int64_t segment_count;
  const GemmPanel* panels;
  int64_t panel_count;
  int64_t rows;
  int64_t block_rows;    // rows worked on while they are in cache
  int64_t panel_groups;  // the panels are divided among this many units of work
  bool rows_first;       // a few rows meet every panel before the next ones do
  const void* bias;      // or null
  const void* const* addends;
  RowMap addend_rows;
  void* preactivation;  // or null; rows of `cols`
  int64_t cols;
  Activation activation;
};

// Packs columns [col, col + cols) of the rows [0, rows) of a row-major matrix for use as `right`.
struct PackArgs {
  const char* x;
  int64_t row_stride;  // bytes
  int64_t rows;
  int64_t cols;  // of the panel
  char* panel;
};

// weight[n][k] += sum over rows of grad[row][n] input[row][k], for a strip of inputs' columns
struct GemmStrip {
  const char* x;       // first row, first column
  int64_t row_stride;  // bytes
  int64_t cols;
  char* out;  // first row, first column
};

struct GemmTransposedArgs {
  const char* grad;  // [rows][cols]
  int64_t rows;
  int64_t cols;
  const GemmStrip* strips;
  int64_t out_stride;  // bytes from row to row
  int64_t block_rows;
  bool rounded;        // out is of the element type: only where one block holds all rows
  int64_t col_groups;  // the columns of grad are divided among this many units of work
};

}  // namespace mmfast
