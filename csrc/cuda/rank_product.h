// What passes between rank_product's entry and its kernels on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "../cpu/scalar.h"
#include "rows.h"

namespace mmfast::cuda {

// Sources: the factors, and where they are given grad and present.
struct RankProductArgs {
  Rows rows;  // a row holds ranks x cols elements of a factor; cols counts one rank's
  Tiles tiles;
  int32_t steps;  // backward: rows that a thread takes, as far apart as its block has lines
  int64_t ranks;
  const void* weights;  // [ranks], or null for ones
  void* out;            // [rows][cols]

  // backward
  int32_t grad_source;
  void* sums;  // [blocks][ranks], in the accumulator's type, or null
};

void launch_rank_product(Element element, const RankProductArgs& args, cudaStream_t stream);
void launch_rank_product_backward(Element element, const RankProductArgs& args,
                                  cudaStream_t stream);

}  // namespace mmfast::cuda
