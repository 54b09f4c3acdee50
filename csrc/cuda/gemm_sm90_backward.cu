// The gradients' products on Hopper, compiled.
#include "gemm_sm90.cuh"

namespace mmfast::cuda {

template cudaError_t launch_sm90<__nv_bfloat16, GemmKind::input_gradient>(int, const TensorMapArgs&,
                                                                          int, cudaStream_t);
template cudaError_t launch_sm90<__half, GemmKind::input_gradient>(int, const TensorMapArgs&, int,
                                                                   cudaStream_t);
template cudaError_t launch_sm90<__nv_bfloat16, GemmKind::weight_gradient>(int,
                                                                           const TensorMapArgs&,
                                                                           int, cudaStream_t);
template cudaError_t launch_sm90<__half, GemmKind::weight_gradient>(int, const TensorMapArgs&, int,
                                                                    cudaStream_t);

}  // namespace mmfast::cuda
