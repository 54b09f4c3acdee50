// Kernels that belong to no operator: the table of many sources, and the sums of sums.
#pragma once

#include <cuda_runtime_api.h>

#include "../cpu/scalar.h"
#include "rows.h"

namespace mmfast::cuda {

// Sources first .. first + count of a table.
struct TableArgs {
  RowSource sources[kInlineSources];
  RowSource* table;
  int32_t first;
  int32_t count;
};

// A kernel writes what it was given: unlike a copy from the host, that can be captured in a graph.
void launch_table(const TableArgs& args, cudaStream_t stream);

struct SumsArgs {
  const void* sums;  // [count][size], in the accumulator's type
  int64_t count;
  int64_t size;
  void* out;  // [size]
};

void launch_add_sums(Element element, const SumsArgs& args, cudaStream_t stream);

}  // namespace mmfast::cuda
