#include "runtime.h"

#include <dlfcn.h>
#include <torch/headeronly/util/Exception.h>

#include <mutex>
#include <unordered_map>

namespace mmfast::cuda {

void check(cudaError_t error, const char* during) {
  if (error != cudaSuccess) {
    const std::string name = cudaGetErrorName(error);
    const std::string text = cudaGetErrorString(error);
    const bool no_code = error == cudaErrorNoKernelImageForDevice;
    STD_TORCH_CHECK(false, "CUDA error during ", during, ": ", text, " (", name, ")",
                    no_code ? "; mmfast was built for other GPUs: build it for this one with "
                              "MMFAST_CUDA_ARCHS, for example \"80 90a 80+PTX\""
                            : "");
  }
}

void* find_torch_symbol(const char* name) {
  // torch loads its libraries without making their symbols global, so they are asked for by name.
  static void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* found = library ? dlsym(library, name) : nullptr;
  found = found ? found : dlsym(RTLD_DEFAULT, name);  // a torch linked in one piece
  STD_TORCH_CHECK(found, "this torch has no function ", name,
                  ", which CUDA tensors need; install a torch with CUDA, 2.10 or newer");
  return found;
}

void* find_driver_symbol(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 13000
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  check(error, name);
  STD_TORCH_CHECK(result == cudaDriverEntryPointSuccess && found,
                  "the CUDA driver has no function ", name, "; install a newer driver");
  return found;
}

DeviceGuard::DeviceGuard(const torch::stable::Tensor& t) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(t.get_device_index(), &guard_));
}

DeviceGuard::~DeviceGuard() { aoti_torch_delete_device_guard(guard_); }

cudaStream_t current_stream(int32_t device) {
  using Function = int32_t (*)(int32_t, void**);
  static const Function function = torch_symbol<Function>("aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(function(device, &stream) == 0, "there is no current stream for CUDA device ",
                  device);
  return static_cast<cudaStream_t>(stream);
}

namespace {

int32_t attribute(cudaDeviceAttr which, int32_t device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

const DeviceFacts& device_facts(int32_t device) {
  static std::mutex mutex;
  static std::unordered_map<int32_t, DeviceFacts> known;  // references to its values stay valid
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) {
    return found->second;
  }
  const DeviceFacts facts{attribute(cudaDevAttrMultiProcessorCount, device),
                          attribute(cudaDevAttrComputeCapabilityMajor, device),
                          attribute(cudaDevAttrComputeCapabilityMinor, device),
                          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                          attribute(cudaDevAttrL2CacheSize, device)};
  return known.emplace(device, facts).first->second;
}

}  // namespace mmfast::cuda
