// The forward product on Hopper, compiled.
#include "gemm_sm90.cuh"

namespace mmfast::cuda {

template cudaError_t launch_sm90<BFloat16, GemmKind::forward>(int, const TensorMapArgs&, int,
                                                              cudaStream_t);
template cudaError_t launch_sm90<Float16, GemmKind::forward>(int, const TensorMapArgs&, int,
                                                             cudaStream_t);

}  // namespace mmfast::cuda
