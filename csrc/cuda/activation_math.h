// The activations and their derivatives on a GPU, in float or double.
#pragma once

#include <cmath>

#include "../activation.h"
#include "gemm_layout.h"

namespace mmfast::cuda {

template <typename T>
MMFAST_HOST_DEVICE T sigmoid_of(T x) {
  return T(1) / (T(1) + exp(-x));
}

// By erfc, since 1 + erf loses the digits of large negative arguments.
template <typename T>
MMFAST_HOST_DEVICE T normal_cdf(T x) {
  return T(0.5) * erfc(x * T(-0.7071067811865476));
}

// tanh-approximated GELU is x sigmoid(2 u) with u = sqrt(2/pi) (x + 0.044715 x^3): no
// digits are lost as by 1 + tanh u.
template <typename T>
MMFAST_HOST_DEVICE T gelu_argument(T x) {
  return T(1.5957691216057308) * (x + T(0.044715) * x * x * x);
}

template <typename T>
MMFAST_HOST_DEVICE T activate(Activation activation, T x) {
  switch (activation) {
    case Activation::relu:
      return x < T(0) ? T(0) : x;  // NaN stays
    case Activation::gelu:
      return x * normal_cdf(x);
    case Activation::gelu_tanh:
      return x * sigmoid_of(gelu_argument(x));
    case Activation::silu:
      return x * sigmoid_of(x);
    case Activation::tanh:
      return tanh(x);
    case Activation::sigmoid:
      return sigmoid_of(x);
    default:
      return x;
  }
}

// The derivative but for relu; `saved` is the result for tanh and sigmoid, else the value before
// the activation.
template <typename T>
MMFAST_HOST_DEVICE T activation_slope(Activation activation, T saved) {
  switch (activation) {
    case Activation::gelu: {
      const T density = T(0.3989422804014327) * exp(T(-0.5) * saved * saved);
      return normal_cdf(saved) + saved * density;
    }
    case Activation::gelu_tanh: {
      const T s = sigmoid_of(gelu_argument(saved));
      const T slope = T(1.5957691216057308) * (T(1) + T(3 * 0.044715) * saved * saved);
      return s + saved * s * (T(1) - s) * slope;
    }
    case Activation::silu: {
      const T s = sigmoid_of(saved);
      return s * (T(1) + saved * (T(1) - s));
    }
    case Activation::tanh:
      return T(1) - saved * saved;
    case Activation::sigmoid:
      return saved * (T(1) - saved);
    default:
      return T(1);
  }
}

// The gradient before the activation. What relu cut off gets zero, whatever the gradient holds.
template <typename T>
MMFAST_HOST_DEVICE T activation_gradient(Activation activation, T grad, T saved) {
  if (activation == Activation::relu) {
    return saved <= T(0) ? T(0) : grad;
  }
  return grad * activation_slope(activation, saved);
}

}  // namespace mmfast::cuda
