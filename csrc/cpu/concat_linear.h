// What passes between concat_linear's entry, its plan and its kernels on the CPU.
#pragma once

#include <cstdint>
#include <vector>

#include "../activation.h"
#include "isa.h"
#include "row_map.h"
#include "scalar.h"

namespace mmfast {

// How the products of a problem are formed.
enum class Method {
  empty,    // nothing to multiply
  tiny,     // own loops, forward and backward: cheaper than any set-up
  dot,      // few rows: a dot product for each element of the result, the weight read once
  kernel,   // own matrix product, one loop over the features of all inputs (gemm.h)
  library,  // library products, one per group of inputs
};

// Inputs multiplied together. For the library, several are gathered side by side, a block of rows
// at a time, into scratch; one alone is multiplied in place. Inputs in no group have few distinct
// rows: each is multiplied once per distinct row, and the epilogue adds those products where they
// belong.
struct Group {
  std::vector<int64_t> members;
  int64_t width;
  int64_t block_rows;  // 0 where nothing is gathered
};

struct Plan {
  Method method = Method::empty;
  std::vector<Group> groups;
  const char* why = "";
};

// Whether gemm.h has kernels for this element type that beat the library's products.
bool has_own_kernel(Element element, Isa isa);

// For inputs that have features (widths above 0). `distinct_rows[i]`: how many different rows input
// i has, out of `rows`.
Plan plan_concat_linear(const std::vector<int64_t>& widths,
                        const std::vector<int64_t>& distinct_rows, int64_t rows, int64_t cols,
                        Element element, Isa isa);

// Kernel arguments. Pointers are to the element type unless said otherwise; rows are contiguous
// and `cols` long unless a stride is given.

struct WidenArgs {
  void* out;  // contiguous, of the accumulator's type
  const void* x;
  int64_t row_stride;
  int64_t cols;
};

struct NarrowArgs {
  void* out;
  int64_t out_stride;
  const void* x;  // contiguous, of the accumulator's type
  int64_t cols;
};

struct FinishArgs {
  void* out;
  void* preactivation;         // or null
  const void* bias;            // or null
  const void* const* addends;  // of the accumulator's type, a row per distinct row of an input
  RowMap addend_rows;
  int64_t cols;
  bool has_product;  // out already holds a product to add to
  Activation activation;
};

struct ActivationBackwardArgs {
  void* out;
  const void* grad;
  const void* saved;  // or null: a plain copy
  RowMap grad_rows;   // one source, strides in elements
  int64_t grad_col_stride;
  int64_t cols;
  Activation activation;
};

struct SumRowsArgs {
  void* out;      // [kept rows][cols]
  bool wide;      // out is of the accumulator's type
  void* partial;  // [kept rows][chunks][cols], in the accumulator's type
  const void* x;
  int64_t row_stride;
  RowMap kept;    // one source: rows of x that start each kept row
  RowMap summed;  // one source: rows of x to be added, relative to that start
  int64_t count;  // rows summed into each kept row
  int64_t chunks;
  int64_t cols;
};

struct SumSegmentsArgs {
  void* out;  // [segments][cols]
  bool wide;  // out is of the accumulator's type
  const void* x;
  int64_t row_stride;
  int64_t cols;
  const int64_t* order;  // [entries]: rows of x, those of one segment after another
  int64_t entries;
  const int64_t* first;  // [segments + 1]: where each segment starts in order
};

struct TinySource {
  const void* data;
  void* grad;  // or null
  int64_t width;
  int64_t offset;
  int64_t row_stride;
  int64_t grad_rows;
};

struct TinyArgs {
  const TinySource* sources;
  RowMap rows;             // of the inputs' data
  RowMap grad_input_rows;  // of the inputs' gradients
  void* scratch;           // see tiny_scratch
  void* out;
  void* preactivation;  // or null
  const void* weight;
  const void* bias;   // or null
  const void* grad;   // before the activation
  void* grad_weight;  // or null
  void* grad_bias;    // or null
  bool any_grad_input;
  int64_t weight_stride;
  int64_t count;
  int64_t cols;
  int64_t width;
  Activation activation;
};

}  // namespace mmfast
