// The gradients' products for any GPU from 8.0 on, compiled.
#include "gemm_sm80.cuh"

namespace mmfast::cuda {

template cudaError_t launch_sm80<BFloat16, GemmKind::input_gradient>(int, const OperandArgs&,
                                                                     cudaStream_t);
template cudaError_t launch_sm80<Float16, GemmKind::input_gradient>(int, const OperandArgs&,
                                                                    cudaStream_t);
template cudaError_t launch_sm80<BFloat16, GemmKind::weight_gradient>(int, const OperandArgs&,
                                                                      cudaStream_t);
template cudaError_t launch_sm80<Float16, GemmKind::weight_gradient>(int, const OperandArgs&,
                                                                     cudaStream_t);

}  // namespace mmfast::cuda
