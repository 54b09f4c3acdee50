// csrc/cuda/runtime.h without a GPU: a small one is pretended, so that threads take several rows.
#include "csrc/cuda/runtime.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/headeronly/util/Exception.h>

// clang-format off: the second needs what the first defines.
#include "on_host.h"
#include "gemm_ptx_on_host.h"
// clang-format on

namespace mmfast::cuda {

DeviceGuard::DeviceGuard(const torch::stable::Tensor&) {}
DeviceGuard::~DeviceGuard() {}

void check(cudaError_t error, const char* during) {
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA error during ", during);
}

cudaStream_t current_stream(int32_t) { return nullptr; }

namespace {
DeviceFacts facts{1, 9, 0, 48 * 1024, 1 << 20};
}

const DeviceFacts& device_facts(int32_t) { return facts; }

// The library's products are the CPU's.
void* find_torch_symbol(const char* name) {
  if (name == std::string("aoti_torch_cuda_mm_out")) {
    return reinterpret_cast<void*>(&aoti_torch_cpu_mm_out);
  }
  STD_TORCH_CHECK(name == std::string("aoti_torch_cuda_addmm_out"), name, " is not known here");
  return reinterpret_cast<void*>(&aoti_torch_cpu_addmm_out);
}

void* find_driver_symbol(const char*) { return reinterpret_cast<void*>(&cuTensorMapEncodeTiled); }

// How many different kernels of matrix products have run.
extern "C" void mmfast_forget_products() { on_host::launched.clear(); }
extern "C" int mmfast_products_run() { return static_cast<int>(on_host::launched.size()); }

extern "C" void mmfast_pretend_gpu(int major, int minor, int multiprocessors) {
  facts.major = major;
  facts.minor = minor;
  facts.multiprocessors = multiprocessors;
}

}  // namespace mmfast::cuda
