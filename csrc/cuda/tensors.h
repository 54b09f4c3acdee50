// Making tensors where others are.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../dims.h"

namespace mmfast::cuda {

using torch::stable::Tensor;

inline int32_t dtype_code(const Tensor& t) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

inline int32_t device_type(const Tensor& t) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

// A new tensor on the device of `like`.
inline Tensor empty_strided(const Tensor& like, const Dims& sizes, const Dims& strides,
                            int32_t dtype) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype,
                                                  device_type(like), like.get_device_index(),
                                                  &handle));
  return Tensor(handle);
}

inline Tensor empty(const Tensor& like, const Dims& sizes, int32_t dtype) {
  Dims strides(sizes.size(), 1);
  for (int64_t d = sizes.size() - 1; d >= 1; --d) {
    strides[d - 1] = strides[d] * (sizes[d] > 1 ? sizes[d] : 1);
  }
  return empty_strided(like, sizes, strides, dtype);
}

// The tensor, or a dense copy. The copy is of borrowed memory: autograd must not see it.
inline Tensor dense(const Tensor& t) {
  if (t.is_contiguous()) {
    return t;
  }
  const auto sizes = t.sizes();
  const auto strides = t.strides();
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<void*>(t.const_data_ptr()), static_cast<int64_t>(sizes.size()), sizes.data(),
      strides.data(), 0, dtype_code(t), device_type(t), t.get_device_index(), &handle));
  return torch::stable::contiguous(Tensor(handle));
}

}  // namespace mmfast::cuda
