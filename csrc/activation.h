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

// Whether backward needs the value before the activation; for the others the result serves.
inline bool needs_preactivation(Activation activation) {
  return activation == Activation::gelu || activation == Activation::gelu_tanh ||
         activation == Activation::silu;
}

}  // namespace mmfast
