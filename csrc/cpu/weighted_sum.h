// What passes between weighted_sum's entry and its kernels on the CPU.
#pragma once

#include "row_sources.h"

namespace mmfast {

// What has a weight of its own.
enum class WeightsPer { modality, feature, row };

// Sources: the inputs, and where they are given grad, present, and weights per row.
struct WeightedSumArgs {
  RowArgs rows;
  WeightsPer per;
  bool normalize;
  const void* weights;     // [count] or [count][cols]; null if per row
  int64_t weights_source;  // [rows][count]
  int64_t weights_stride;  // of a row's weights
  void* out;               // [rows][cols]
  bool past_caches;        // the result is too large to be found there by whoever reads it

  // backward
  int64_t grad_source;
  bool weights_wanted;
  void* const* grads;  // [count], each [rows][cols] or null
  void* grad_weights;  // [rows][count], or null
  void* sums;          // [chunks][weights], in the accumulator's type, or null
};

}  // namespace mmfast
