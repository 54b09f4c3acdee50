// What passes between merge_attention's entry and its kernel on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "../cpu/scalar.h"
#include "rows.h"

namespace mmfast::cuda {

// Sources: the outputs, then the lses, which are in the accumulator's type.
struct MergeAttentionArgs {
  Rows rows;
  Tiles tiles;
  int64_t cols;  // rows.cols is at least 1, so that every row is somebody's
  void* out;     // [rows][cols]
  void* lse;     // [rows]
};

void launch_merge_attention(Element element, const MergeAttentionArgs& args, cudaStream_t stream);

}  // namespace mmfast::cuda
