// What passes between attention_pool's entry and its kernels on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "../cpu/scalar.h"
#include "rows.h"

namespace mmfast::cuda {

// Sources: the inputs, and where they are given the query, grad, the weights' grad, present.
struct AttentionPoolArgs {
  Rows rows;
  Groups groups;  // of the rows of one head; a block belongs to one head
  int64_t heads;
  int64_t size;          // features of a head
  double scale;          // of the scores
  int32_t query_source;  // [rows or one][cols]
  void* out;             // [rows][cols]
  void* weights;         // [rows][heads][count]

  // backward
  int32_t grad_source;
  int32_t grad_weights_source;  // [rows][heads][count], or -1
  void* grad_query;             // [rows][cols], or null
  void* sums;                   // [groups of all blocks][cols], in the accumulator's type, or null
};

// A lane keeps this many packets of each input where the modalities are few; beyond, inputs are
// read again, from the cache.
constexpr int kKeptPackets = 4;

inline bool keeps_packets(int64_t count, int64_t packets) {
  return count <= kTogether && packets <= 32 * kKeptPackets;
}

// Shared memory for a group of threads: of each modality the weight and its gradient.
inline int64_t attention_pool_group_bytes(int64_t count) { return 16 * count; }

void launch_attention_pool(Element element, const AttentionPoolArgs& args, cudaStream_t stream);
void launch_attention_pool_backward(Element element, const AttentionPoolArgs& args,
                                    cudaStream_t stream);

}  // namespace mmfast::cuda
