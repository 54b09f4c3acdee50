// What the CUDA operators share on the host: streams, devices, errors, functions found at run time.
//
// libtorch's CUDA half is not linked: one library must load under a torch without CUDA too. What is
// needed of it is looked up when the first CUDA tensor comes along. The driver's functions are
// reached through the runtime, which is linked statically, so that libcuda.so is not needed either.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

namespace mmfast::cuda {

// Makes a tensor's device the current one; kernels are launched on the current device.
class DeviceGuard {
 public:
  explicit DeviceGuard(const torch::stable::Tensor& t);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  DeviceGuardOpaque* guard_ = nullptr;
};

// The stream that PyTorch runs on, on this device.
cudaStream_t current_stream(int32_t device);

struct DeviceFacts {
  int32_t multiprocessors;
  int32_t major;  // of the compute capability
  int32_t minor;
  int32_t shared_per_block;  // bytes, with opt-in
  int32_t l2_bytes;
};

// Asked once per device.
const DeviceFacts& device_facts(int32_t device);

// Throws what the CUDA runtime says went wrong, and during what.
void check(cudaError_t error, const char* during);

// After a kernel launch: whether it could be launched.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

// A function of libtorch's CUDA half, such as aoti_torch_cuda_mm_out. Throws if there is none.
void* find_torch_symbol(const char* name);

template <typename Function>
Function torch_symbol(const char* name) {
  return reinterpret_cast<Function>(find_torch_symbol(name));
}

// A function of the driver, such as cuTensorMapEncodeTiled. Throws if the driver has none.
void* find_driver_symbol(const char* name);

template <typename Function>
Function driver_symbol(const char* name) {
  return reinterpret_cast<Function>(find_driver_symbol(name));
}

}  // namespace mmfast::cuda
