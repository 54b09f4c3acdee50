// What passes between attention_pool's entry and its kernels on the CPU.
#pragma once

#include "row_sources.h"

namespace mmfast {

// Sources: the inputs, and where they are given the query, grad, the weights' grad, present.
struct AttentionPoolArgs {
  RowArgs rows;
  int64_t heads;
  double scale;          // of the scores
  int64_t query_source;  // [rows or one][cols]
  void* out;             // [rows][cols]
  void* weights;         // [rows][heads][count]

  // backward
  int64_t grad_source;
  int64_t grad_weights_source;  // [rows][heads][count], or -1
  void* const* grads;           // [count], each [rows][cols] or null
  void* grad_query;             // [rows][cols], or null
  void* sums;                   // [chunks][cols], in the accumulator's type, or null
};

}  // namespace mmfast
