// Argument checks shared by the operators. Every message names the argument, what it was and what
// it must be. They guard against wrong calls of torch.ops.mmfast.*; the Python functions explain
// the same mistakes at more length.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <string>
#include <vector>

#include "dims.h"

namespace mmfast {

// The name of a list's item, spelled out only where something is wrong with it.
struct Item {
  const char* list;
  size_t i;
};

inline std::ostream& operator<<(std::ostream& out, const Item& item) {
  return out << item.list << "[" << item.i << "]";
}

inline std::string shape_string(const Dims& sizes) {
  std::ostringstream out;
  out << "(";
  for (int64_t d = 0; d < sizes.size(); ++d) {
    out << (d ? ", " : "") << sizes[d];
  }
  out << (sizes.size() == 1 ? ",)" : ")");
  return out.str();
}

inline Dims sizes_of(const torch::stable::Tensor& t) {
  const auto sizes = t.sizes();
  return Dims(sizes.begin(), sizes.end());
}

inline std::string shape_string(const torch::stable::Tensor& t) {
  return shape_string(sizes_of(t));
}

template <typename Name>
void check_shape(const torch::stable::Tensor& t, const Name& name, const Dims& shape) {
  STD_TORCH_CHECK(sizes_of(t) == shape, name, " has shape ", shape_string(t), "; it must be ",
                  shape_string(shape));
}

template <typename Name>
void check_floating(const torch::stable::Tensor& t, const Name& name) {
  using torch::headeronly::ScalarType;
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double ||
                      dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                  name, " has dtype ", torch::headeronly::toString(dtype),
                  "; it must be float32, float64, bfloat16 or float16");
}

// A tensor may outlive its memory: storages can be resized, to nothing or to less than it spans.
template <typename Name>
void check_storage(const torch::stable::Tensor& t, const Name& name) {
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device));
  if (device == aoti_torch_device_type_meta() || t.numel() == 0) {
    return;
  }
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  const auto sizes = t.sizes();
  const auto strides = t.strides();
  int64_t end = t.storage_offset() + 1;
  for (size_t d = 0; d < sizes.size(); ++d) {
    end += (sizes[d] - 1) * strides[d];
  }
  STD_TORCH_CHECK(bytes >= end * static_cast<int64_t>(t.element_size()), name(),
                  " has elements without memory: its storage was freed or shrunk; compute with it "
                  "before that");
}

template <typename Name, typename Reference>
void check_device(const torch::stable::Tensor& t, const Name& name,
                  const torch::stable::Tensor& reference, const Reference& reference_name) {
  int32_t type = 0;
  int32_t reference_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(reference.get(), &reference_type));
  STD_TORCH_CHECK(type == reference_type && t.get_device_index() == reference.get_device_index(),
                  name, " is on another device than ", reference_name,
                  "; they must be on the same one");
}

// `t` lives where `reference` does, with the same dtype.
template <typename Name, typename Reference>
void check_alike(const torch::stable::Tensor& t, const Name& name,
                 const torch::stable::Tensor& reference, const Reference& reference_name) {
  STD_TORCH_CHECK(t.scalar_type() == reference.scalar_type(), name, " has dtype ",
                  torch::headeronly::toString(t.scalar_type()), " but ", reference_name, " has ",
                  torch::headeronly::toString(reference.scalar_type()), "; they must be equal");
  check_device(t, name, reference, reference_name);
}

// `result` broadcasts with `shape`, the batch shape of inputs[i], by the rules of numpy and
// PyTorch.
inline void broadcast_with(Dims& result, const Dims& shape, size_t i) {
  if (result == shape) {
    return;
  }
  if (shape.size() > result.size()) {
    Dims longer(shape.size() - result.size(), 1);
    for (int64_t size : result) {
      longer.push_back(size);
    }
    result = longer;
  }
  const int64_t lead = result.size() - shape.size();
  for (int64_t d = 0; d < shape.size(); ++d) {
    int64_t& size = result[lead + d];
    STD_TORCH_CHECK(shape[d] == size || shape[d] == 1 || size == 1, "inputs[", i,
                    "] has batch shape ", shape_string(shape),
                    ", which does not broadcast with that of the inputs before it, ",
                    shape_string(result));
    size = shape[d] == 1 ? size : shape[d];
  }
}

}  // namespace mmfast
