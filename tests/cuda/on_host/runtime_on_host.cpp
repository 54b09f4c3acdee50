// csrc/cuda/runtime.h without a GPU: a small one is pretended, so that threads take several rows.
#include "csrc/cuda/runtime.h"

#include <torch/headeronly/util/Exception.h>

namespace mmfast::cuda {

DeviceGuard::DeviceGuard(const torch::stable::Tensor&) {}
DeviceGuard::~DeviceGuard() {}

void check(cudaError_t error, const char* during) {
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA error during ", during);
}

cudaStream_t current_stream(int32_t) { return nullptr; }

const DeviceFacts& device_facts(int32_t) {
  static const DeviceFacts facts{1, 9, 0, 48 * 1024, 1 << 20};
  return facts;
}

}  // namespace mmfast::cuda
