// concat_linear on any device: its arguments, checked once.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "activation.h"
#include "checks.h"

namespace mmfast {

using torch::stable::Tensor;

struct ConcatLinearShape {
  Dims batch;                    // the inputs' batch shapes, broadcast together
  std::vector<int64_t> offsets;  // first weight column of each input
  int64_t rows = 1;              // product of batch
  int64_t cols = 0;              // N, rows of the weight
  int64_t width = 0;             // sum of K_i, columns of the weight

  Dims output_sizes() const {
    Dims sizes = batch;
    sizes.push_back(cols);
    return sizes;
  }
};

// `index[j]` picks the rows of inputs[indexed[j]], whose batch shape it gives.
inline ConcatLinearShape check_concat_linear(const std::vector<Tensor>& inputs,
                                             const Tensor& weight, const std::vector<Tensor>& index,
                                             const std::vector<int64_t>& indexed) {
  STD_TORCH_CHECK(!inputs.empty(), "inputs is empty; it must hold at least one tensor");
  STD_TORCH_CHECK(weight.dim() == 2, "weight has shape ", shape_string(weight),
                  "; it must be 2-d, (out_features, sum of the inputs' last sizes)");
  check_floating(weight, "weight");
  check_storage(weight, [] { return "weight"; });
  ConcatLinearShape shape;
  shape.cols = weight.size(0);
  shape.offsets.reserve(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Dims sizes = sizes_of(inputs[i]);
    if (sizes.empty() || inputs[i].scalar_type() != weight.scalar_type() ||
        inputs[i].get_device_index() != weight.get_device_index()) {
      const std::string name = "inputs[" + std::to_string(i) + "]";
      STD_TORCH_CHECK(!sizes.empty(), name, " is 0-d; it must be (*batch, features)");
      check_alike(inputs[i], name, weight, "weight");
    }
    check_storage(inputs[i], [i] { return "inputs[" + std::to_string(i) + "]"; });
    shape.offsets.push_back(shape.width);
    shape.width += sizes[sizes.size() - 1];
  }
  STD_TORCH_CHECK(shape.width == weight.size(1), "weight has ", weight.size(1),
                  " columns but the inputs' last sizes add up to ", shape.width,
                  "; they must be equal");
  STD_TORCH_CHECK(index.size() == indexed.size(), "index holds ", index.size(),
                  " tensors but indexed names ", indexed.size(), " inputs; they must be equal");
  for (size_t j = 0; j < index.size(); ++j) {
    const int64_t i = indexed[j];
    STD_TORCH_CHECK(
        i >= 0 && i < static_cast<int64_t>(inputs.size()) && (j == 0 || indexed[j - 1] < i),
        "indexed holds ", i, "; it must ascend within 0 .. ", inputs.size() - 1);
    const std::string name = "index[" + std::to_string(i) + "]";
    STD_TORCH_CHECK(index[j].scalar_type() == torch::headeronly::ScalarType::Long, name,
                    " has dtype ", torch::headeronly::toString(index[j].scalar_type()),
                    "; it must be int64");
    check_device(index[j], name, weight, "weight");
    check_storage(index[j], [&] { return name; });
    STD_TORCH_CHECK(inputs[i].dim() == 2, "inputs[", i, "] has shape ", shape_string(inputs[i]),
                    "; an indexed input must be 2-d, (rows, features)");
  }
  size_t next = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool has_index = next < indexed.size() && indexed[next] == static_cast<int64_t>(i);
    const auto sizes = inputs[i].sizes();
    const Dims batch = has_index ? sizes_of(index[next]) : Dims(sizes.begin(), sizes.end() - 1);
    next += has_index ? 1 : 0;
    if (i == 0) {
      shape.batch = batch;
    } else {
      broadcast_with(shape.batch, batch, i);
    }
  }
  for (int64_t size : shape.batch) {
    shape.rows *= size;
  }
  return shape;
}

inline void check_bias(const std::optional<Tensor>& bias, const Tensor& weight) {
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "bias has shape ",
                    shape_string(*bias), "; it must be (", weight.size(0), ",), a value per row ",
                    "of weight");
    check_alike(*bias, "bias", weight, "weight");
    check_storage(*bias, [] { return "bias"; });
  }
}

// Whether one of the gradients to compute is that of an input.
inline bool wants_input(const std::vector<int64_t>& wanted, int64_t inputs) {
  return std::any_of(wanted.begin(), wanted.end(), [inputs](int64_t i) { return i < inputs; });
}

inline Activation check_activation(const std::string& name) {
  const Activation activation = parse_activation(name);
  STD_TORCH_CHECK(activation != Activation::unknown, "activation is '", name,
                  "'; it must be none, relu, gelu, gelu_tanh, silu, tanh or sigmoid");
  return activation;
}

inline Activation check_activation(int64_t code) {
  STD_TORCH_CHECK(0 <= code && code < static_cast<int64_t>(Activation::unknown), "activation is ",
                  code,
                  "; it must be a position in none, relu, gelu, gelu_tanh, silu, tanh, sigmoid");
  return static_cast<Activation>(code);
}

}  // namespace mmfast
