// Launches of the matrix products of gemm_args.h.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "gemm_args.h"

namespace mmfast::cuda {

// The same through TMA. A map of the weight covers the columns up to a group's last one, so that
// what stands behind them reads as zeros.
struct TensorMapArgs {
  CUtensorMap a[kMaxGroups];
  CUtensorMap b[kMaxGroups];
  GemmArgs gemm;
};

// Launch, and return what that returned. `tile_cols` is 64, 128 or, on Hopper, 256.
template <typename T, GemmKind kind>
cudaError_t launch_sm90(int tile_cols, const TensorMapArgs& args, int multiprocessors,
                        cudaStream_t stream);
template <typename T, GemmKind kind>
cudaError_t launch_sm80(int tile_cols, const OperandArgs& args, cudaStream_t stream);
// Adds the partial sums of a split product in order, and finishes the result.
cudaError_t launch_gemm_finish(bool bfloat16, const GemmArgs& args, cudaStream_t stream);

}  // namespace mmfast::cuda
