// The gradient of concat_linear's result, summed where rows share one of an input's. Every sum has
// one order, so that the same call gives the same bits.
#pragma once

#include "concat_linear_call.h"

namespace mmfast::cuda {

// Sums of rows, chunk by chunk until one is left.
void sum_rows(const Call& call, SumRowsArgs args);

// The entries of an index, sorted by the row they name; of equal ones the first comes first.
struct SortedIndex {
  Tensor order;
  Tensor first;  // where the entries of each row begin
};
SortedIndex sort_index(const Call& call, const Source& source);

// out[row] = the sum of x's rows, one per entry of the index, where the index says `row`; of the
// accumulator's type unless `narrow`. Rows named by many entries are summed in pieces.
void sum_segments(const Call& call, const Source& source, const SortedIndex& sorted,
                  const Matrix& x, bool wide_x, void* out, bool narrow);

// Some rows of the gradient: of the element type, or, `wide`, sums in the accumulator's: sums of
// 16-bit values may not fit 16 bits, and what they are multiplied with may cancel.
struct GradientRows {
  Matrix matrix;
  bool wide;
};

// The gradient summed over rows that share a row of an input. Kept from one request to the next:
// the two products of an input nearly always agree on what is shared.
class SummedGradient {
 public:
  SummedGradient(const Call& call, const Source& source, const Matrix& gradient)
      : call_(call), source_(source), gradient_(gradient) {}

  // A row per row of the input's gradient.
  GradientRows for_input() {
    return source_.index ? by_index() : by(source_.grad_strides, source_.grad_rows);
  }
  // A row per row of the input's matrix.
  GradientRows for_weight() {
    return source_.index ? by_index() : by(source_.strides, source_.matrix.rows);
  }
  // A row per entry of the index.
  GradientRows for_entries() { return by(source_.strides, source_.entries); }

 private:
  bool wide() const { return call_.element_size == 2; }

  GradientRows by(const Dims& strides, int64_t rows);
  GradientRows by_index();

  const Call& call_;
  const Source& source_;
  Matrix gradient_;
  std::optional<Tensor> sums_;
  Dims strides_;
  std::optional<Tensor> indexed_sums_;
};

}  // namespace mmfast::cuda
