// Activations and their derivatives, written so that loops over them vectorise: no branches, no
// library calls in float. Polynomials are weighted minimax fits; every function is within about
// 2 units in the last place of its largest term. In double the C library's functions are used:
// that type serves gradient checks, not speed.
#pragma once

#include <cmath>

#include "../activation.h"
#include "scalar.h"

namespace mmfast {

// exp(x) = value * 2^power
struct ExpParts {
  float value;
  int32_t power;
};

MMFAST_INLINE ExpParts exp_parts(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504f + magic;
  const int32_t n =
      static_cast<int32_t>(bits_from_float(shifted)) - static_cast<int32_t>(bits_from_float(magic));
  const float fn = shifted - magic;
  float r = x - fn * 0.693359375f;  // ln 2 in two parts
  r = r + fn * 2.12194440e-4f;
  float p = 0.00139015296f;
  p = p * r + 0.00836373959f;
  p = p * r + 0.0416668616f;
  p = p * r + 0.166665733f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  return {p, n};
}

MMFAST_INLINE float vexp(float x) {
  x = x > 88.8f ? 88.8f : x;      // above: infinity
  x = x < -103.9f ? -103.9f : x;  // below: zero
  const ExpParts e = exp_parts(x);
  // 2^n in two factors, so that results near the ends of the range come out right.
  const int32_t half = e.power >> 1;
  const float scale1 = float_from_bits(static_cast<uint32_t>(half + 127) << 23);
  const float scale2 = float_from_bits(static_cast<uint32_t>(e.power - half + 127) << 23);
  return e.value * scale1 * scale2;
}

// The same for |x| <= 87, in fewer steps.
MMFAST_INLINE float vexp_bounded(float x) {
  const ExpParts e = exp_parts(x);
  return e.value * float_from_bits(static_cast<uint32_t>(e.power + 127) << 23);
}

MMFAST_INLINE float small_tanh(float x) {
  const float u = x * x;
  float p = -0.000591145945f;
  p = p * u + 0.00290672015f;
  p = p * u - 0.00856567174f;
  p = p * u + 0.0218002945f;
  p = p * u - 0.0539604165f;
  p = p * u + 0.133332998f;
  p = p * u - 0.333333343f;
  return x + x * u * p;
}

// tanh(x) = top / bottom: the division is left to the caller, who may have several of them.
template <typename A>
struct Quotient {
  A top;
  A bottom;
};

MMFAST_INLINE Quotient<float> tanh_quotient(float x) {
  const float a = float_from_bits(bits_from_float(x) & 0x7fffffffu);
  // tanh(|x|) = 1 - 1 / it. Bounded where tanh is 1 already.
  const float under = 0.5f * vexp_bounded(a > 9.2f ? 18.4f : 2.0f * a) + 0.5f;
  const float over =
      float_from_bits(bits_from_float(under - 1.0f) | (bits_from_float(x) & 0x80000000u));
  const bool small = a < 0.8f;
  return {small ? small_tanh(x) : over, small ? 1.0f : under};
}

// The same for |x| <= 9.02, where tanh becomes 1, in a third of the steps and exact to 4e-7: for
// results that are rounded to 16 bits.
MMFAST_INLINE Quotient<float> tanh_quotient_16_bit(float x) {
  const float u = x * x;
  float p = 1.04046412e-5f;
  p = p * u + 2.85316934e-3f;
  p = p * u + 0.128334865f;
  p = p * u + 0.999999583f;
  float q = 2.13977174e-7f;
  q = q * u + 2.25022843e-4f;
  q = q * u + 2.34119538e-2f;
  q = q * u + 0.461665303f;
  q = q * u + 1.0f;
  return {x * p, q};
}

MMFAST_INLINE float vtanh(float x) {
  const Quotient<float> t = tanh_quotient(x);
  return t.top / t.bottom;
}

MMFAST_INLINE float vsigmoid(float x) { return 1.0f / (1.0f + vexp(-x)); }

// The normal distribution function, (1 + erf(x / sqrt 2)) / 2.
MMFAST_INLINE float vnormal_cdf(float x) {
  const float t = x * 0.707106781f;
  const float a = float_from_bits(bits_from_float(t) & 0x7fffffffu);
  const float u = t * t;
  float p = 7.85385782e-5f;
  p = p * u - 0.000801019254f;
  p = p * u + 0.00518832775f;
  p = p * u - 0.026853811f;
  p = p * u + 0.112835854f;
  p = p * u - 0.37612626f;
  p = p * u + 1.12837911f;
  const float near = 0.5f + 0.5f * (t * p);
  // erfc(a) exp(a^2) as a polynomial in 1 / (1 + a / 2)
  const float s = 1.0f / (1.0f + 0.5f * a);
  float q = 0.0808911175f;
  q = q * s - 0.185040399f;
  q = q * s + 0.0250598732f;
  q = q * s + 0.105343007f;
  q = q * s + 0.158041179f;
  q = q * s + 0.252967417f;
  q = q * s + 0.28099075f;
  q = q * s + 0.282199413f;
  q = q * s - 4.10342545e-6f;
  const float tail = 0.5f * q * vexp(-u);
  const float far = t > 0.0f ? 1.0f - tail : tail;
  return a < 1.0f ? near : far;
}

MMFAST_INLINE double vexp(double x) { return std::exp(x); }
MMFAST_INLINE double vexp_bounded(double x) { return std::exp(x); }
MMFAST_INLINE double vtanh(double x) { return std::tanh(x); }
MMFAST_INLINE Quotient<double> tanh_quotient(double x) { return {std::tanh(x), 1.0}; }
MMFAST_INLINE double vsigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
MMFAST_INLINE double vnormal_cdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752440); }

template <typename A>
MMFAST_INLINE A gelu_tanh_inner(A x) {
  return A(0.79788456080286535588) * (x + A(0.044715) * x * x * x);
}

// y = act(z)
template <Activation act, typename A>
MMFAST_INLINE A activate(A z) {
  if constexpr (act == Activation::relu) {
    return z < A(0) ? A(0) : z;  // NaN stays NaN
  } else if constexpr (act == Activation::gelu) {
    return z * vnormal_cdf(z);
  } else if constexpr (act == Activation::gelu_tanh) {
    return A(0.5) * z * (A(1) + vtanh(gelu_tanh_inner(z)));
  } else if constexpr (act == Activation::silu) {
    return z / (A(1) + vexp(-z));
  } else if constexpr (act == Activation::tanh) {
    return vtanh(z);
  } else if constexpr (act == Activation::sigmoid) {
    return vsigmoid(z);
  } else {
    return z;
  }
}

// g * act'(z), from what forward saved: y = act(z) for relu, tanh and sigmoid, else z.
template <Activation act, typename A>
MMFAST_INLINE A activate_backward(A g, A saved) {
  if constexpr (act == Activation::relu) {
    return saved <= A(0) ? A(0) : g;
  } else if constexpr (act == Activation::gelu) {
    const A density = A(0.39894228040143267794) * vexp(A(-0.5) * saved * saved);
    return g * (vnormal_cdf(saved) + saved * density);
  } else if constexpr (act == Activation::gelu_tanh) {
    const A t = vtanh(gelu_tanh_inner(saved));
    const A slope = A(0.79788456080286535588) * (A(1) + A(0.134145) * saved * saved);
    return g * (A(0.5) * (A(1) + t) + A(0.5) * saved * (A(1) - t * t) * slope);
  } else if constexpr (act == Activation::silu) {
    const A s = vsigmoid(saved);
    return g * (s * (A(1) + saved * (A(1) - s)));
  } else if constexpr (act == Activation::tanh) {
    return g * (A(1) - saved * saved);
  } else if constexpr (act == Activation::sigmoid) {
    return g * (saved * (A(1) - saved));
  } else {
    return g;
  }
}

}  // namespace mmfast
