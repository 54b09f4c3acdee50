// What passes between rank_product's entry and its kernels on the CPU.
#pragma once

#include "row_sources.h"

namespace mmfast {

// Sources: the factors, and where they are given grad and present.
struct RankProductArgs {
  RowArgs rows;  // a row holds ranks x cols elements of a factor; cols counts one rank's
  int64_t ranks;
  const void* weights;  // [ranks], or null for ones
  void* out;            // [rows][cols]

  // backward
  int64_t grad_source;
  void* const* grads;  // [count], each [rows][ranks][cols] or null
  void* sums;          // [chunks][ranks], in the accumulator's type, or null
};

}  // namespace mmfast
