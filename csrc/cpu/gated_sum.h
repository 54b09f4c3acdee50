// What passes between gated_sum's entry and its kernels on the CPU.
#pragma once

#include "row_sources.h"

namespace mmfast {

// Sources: the values, the gates, and where they are given grad and present.
struct GatedSumArgs {
  RowArgs rows;
  int64_t gates;  // as many as values, or one fewer: then the last logit is 0
  void* out;      // [rows][cols]

  // backward
  int64_t grad_source;
  void* const* grad_values;  // [count], each [rows][cols] or null
  void* const* grad_gates;   // [gates], the same
};

}  // namespace mmfast
