// What passes between weighted_sum's entry and its kernels on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "../cpu/scalar.h"
#include "rows.h"

namespace mmfast::cuda {

// What has a weight of its own.
enum class WeightsPer : int { modality, feature, row };

// Sources: the inputs, and where they are given grad, present, and weights per row.
struct WeightedSumArgs {
  Rows rows;
  Tiles tiles;
  Groups groups;
  WeightsPer per;
  bool normalize;
  const void* weights;     // [count] or [count][cols]; null if per row
  int32_t weights_source;  // [rows][count]
  int64_t weights_stride;  // of a row's weights
  void* out;               // [rows][cols]

  // backward
  int32_t grad_source;
  void* grad_weights;  // [rows][count], or null
  void* sums;          // [partials][weights], in the accumulator's type, or null
};

// Shared memory for a group of threads: of each modality a product and a sum.
inline int64_t weighted_sum_group_bytes(int64_t count) { return 16 * count; }

void launch_weighted_sum(Element element, const WeightedSumArgs& args, cudaStream_t stream);

// The inputs' gradients alone.
void launch_weighted_sum_inputs(Element element, const WeightedSumArgs& args, cudaStream_t stream);

// Those and the weights': one sum per block, group or line of a block, as weights are per.
void launch_weighted_sum_backward(Element element, const WeightedSumArgs& args,
                                  cudaStream_t stream);

}  // namespace mmfast::cuda
