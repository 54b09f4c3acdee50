// Element types as the CPU kernels see them, and their exact conversion to and from float.
//
// Conversions are branch-free integer arithmetic, so that loops over them vectorise for every
// instruction set, also where the machine has no half-precision instructions.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#define MMFAST_INLINE inline __attribute__((always_inline))
#define MMFAST_LAMBDA __attribute__((always_inline))

namespace mmfast {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The element types by name, for what is decided at run time.
enum class Element : int { float32, float64, bfloat16, float16 };

inline int64_t element_size(Element element) {
  return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

// The type in which a kernel computes and accumulates.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

MMFAST_INLINE float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

MMFAST_INLINE uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

MMFAST_INLINE double widen(double x) { return x; }
MMFAST_INLINE float widen(float x) { return x; }

MMFAST_INLINE float widen(BFloat16 x) {
  return float_from_bits(static_cast<uint32_t>(x.bits) << 16);
}

MMFAST_INLINE float widen(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t rebias = 112u << 23;  // exponent bias 127 - 15
  const uint32_t normal = (magnitude << 13) + rebias;
  const uint32_t infinite_or_nan = normal + rebias;
  const uint32_t subnormal = bits_from_float(static_cast<float>(static_cast<int32_t>(magnitude)) *
                                             5.9604644775390625e-8f);  // 2^-24
  const uint32_t finite = magnitude < 0x400u ? subnormal : normal;
  return float_from_bits(sign | (magnitude >= 0x7c00u ? infinite_or_nan : finite));
}

// Rounds to nearest, ties to even, as PyTorch does.
template <typename T>
MMFAST_INLINE T narrow(accumulator_t<T> x);

template <>
MMFAST_INLINE double narrow<double>(double x) {
  return x;
}
template <>
MMFAST_INLINE float narrow<float>(float x) {
  return x;
}

template <>
MMFAST_INLINE BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = bits_from_float(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return BFloat16{static_cast<uint16_t>(is_nan ? nan : rounded)};
}

template <>
MMFAST_INLINE Float16 narrow<Float16>(float x) {
  const uint32_t bits = bits_from_float(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t shifted = magnitude - (112u << 23);
  const uint32_t normal = (shifted + 0xfffu + ((shifted >> 13) & 1u)) >> 13;
  // Adding 0.5 leaves the value, in units of 2^-24, rounded in the low bits of the sum.
  const uint32_t subnormal =
      bits_from_float(float_from_bits(magnitude) + 0.5f) - bits_from_float(0.5f);
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t overflow = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return Float16{static_cast<uint16_t>(sign | (magnitude >= 0x477ff000u ? overflow : finite))};
}

}  // namespace mmfast
