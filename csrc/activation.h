// The activations that an operator can fuse behind its result.
#pragma once

#include <string_view>

namespace mmfast {

enum class Activation : int { none, relu, gelu, gelu_tanh, silu, tanh, sigmoid, unknown };

constexpr const char* kActivationNames[] = {"none", "relu", "gelu",   "gelu_tanh",
                                            "silu", "tanh", "sigmoid"};

inline Activation parse_activation(std::string_view name) {
  for (int i = 0; i < static_cast<int>(Activation::unknown); ++i) {
    if (name == kActivationNames[i]) {
      return static_cast<Activation>(i);
    }
  }
  return Activation::unknown;
}

// What backward needs of forward: nothing, the result, or the value before the activation.
enum class Saved : int { nothing, output, preactivation };

inline Saved saved_for_backward(Activation activation) {
  switch (activation) {
    case Activation::relu:
    case Activation::tanh:
    case Activation::sigmoid:
      return Saved::output;
    case Activation::gelu:
    case Activation::gelu_tanh:
    case Activation::silu:
      return Saved::preactivation;
    default:
      return Saved::nothing;
  }
}

}  // namespace mmfast
