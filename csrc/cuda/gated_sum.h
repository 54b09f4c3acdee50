// What passes between gated_sum's entry and its kernels on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "../cpu/scalar.h"
#include "rows.h"

namespace mmfast::cuda {

// Sources: the values, the gates, and where they are given grad and present. The gradients of a
// gate stand with its source, as those of a value.
struct GatedSumArgs {
  Rows rows;
  Tiles tiles;
  int32_t gates;  // as many as values, or one fewer: then the last logit is 0
  void* out;      // [rows][cols]

  int32_t grad_source;  // backward
};

void launch_gated_sum(Element element, const GatedSumArgs& args, cudaStream_t stream);
void launch_gated_sum_backward(Element element, const GatedSumArgs& args, cudaStream_t stream);

}  // namespace mmfast::cuda
