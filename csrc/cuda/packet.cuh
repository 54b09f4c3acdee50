// 16 bytes of a row: what one thread loads, computes with and stores at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../cpu/scalar.h"
#include "host_device.h"

namespace mmfast::cuda {

// An element of rows that consist of aligned packets only: kernels made for it have no other case.
template <typename T>
struct Whole {
  T value;
};

template <typename T>
struct ElementOf {
  using type = T;
  static constexpr bool whole = false;
};
template <typename T>
struct ElementOf<Whole<T>> {
  using type = T;
  static constexpr bool whole = true;
};
template <typename T>
using element_t = typename ElementOf<T>::type;

template <typename T>
using wide_t = accumulator_t<element_t<T>>;

template <typename T>
constexpr int kPacket = 16 / sizeof(T);

// Elements stay packed until they are used: twice as many fit into registers.
template <typename T>
struct alignas(16) Packet {
  uint32_t words[4];
};

// ------------------------------------------------------------------------------------ conversion

MMFAST_HOST_DEVICE float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return float_from_bits(bits);
#endif
}

MMFAST_HOST_DEVICE float widened(BFloat16 x) {
  return float_of(static_cast<uint32_t>(x.bits) << 16);
}

MMFAST_HOST_DEVICE float widened(Float16 x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#else
  return widen(x);
#endif
}

// One element that stands alone.
template <typename T>
MMFAST_HOST_DEVICE wide_t<T> to_wide(T x) {
  if constexpr (ElementOf<T>::whole) {
    return to_wide(x.value);
  } else if constexpr (sizeof(T) == 2) {
    return widened(x);
  } else {
    return x;
  }
}

// Element i of a packet; i is known to the compiler.
template <typename T>
MMFAST_HOST_DEVICE wide_t<T> wide(const Packet<T>& packet, int i) {
  using E = element_t<T>;
  if constexpr (std::is_same_v<E, double>) {
    double x;
    memcpy(&x, packet.words + 2 * i, 8);
    return x;
  } else if constexpr (std::is_same_v<E, float>) {
    return float_of(packet.words[i]);
  } else if constexpr (std::is_same_v<E, BFloat16>) {
    const uint32_t word = packet.words[i / 2];
    return float_of(i % 2 ? word & 0xffff0000u : word << 16);
  } else {
    const uint32_t word = packet.words[i / 2];
    return widened(Float16{static_cast<uint16_t>(i % 2 ? word >> 16 : word)});
  }
}

// Two neighbours rounded to nearest, ties to even; the first is the lower half.
template <typename E>
MMFAST_HOST_DEVICE uint32_t rounded_pair(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  if constexpr (std::is_same_v<E, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  }
  return bits;
#else
  return narrow<E>(first).bits | static_cast<uint32_t>(narrow<E>(second).bits) << 16;
#endif
}

template <typename T>
MMFAST_HOST_DEVICE Packet<T> pack(const wide_t<T>* from) {
  Packet<T> packet;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      packet.words[i] = rounded_pair<element_t<T>>(from[2 * i], from[2 * i + 1]);
    }
  } else {
    memcpy(packet.words, from, 16);
  }
  return packet;
}

template <typename T>
MMFAST_HOST_DEVICE T round_one(wide_t<T> x) {
  T result;
  if constexpr (sizeof(T) == 2) {
    const uint16_t bits = static_cast<uint16_t>(rounded_pair<element_t<T>>(x, x));
    memcpy(&result, &bits, 2);
  } else {
    memcpy(&result, &x, sizeof(T));
  }
  return result;
}

// --------------------------------------------------------------------------------- loads, stores

#ifndef __CUDACC__
struct alignas(16) Word16 {
  uint32_t v[4];
};
struct alignas(8) Word8 {
  uint32_t v[2];
};
#else
using Word16 = uint4;
using Word8 = uint2;
#endif

template <typename Word, typename T>
MMFAST_HOST_DEVICE void load_words(const T* from, Packet<T>& packet) {
  Word words[16 / sizeof(Word)];
#pragma unroll
  for (int i = 0; i < static_cast<int>(16 / sizeof(Word)); ++i) {
#ifdef __CUDA_ARCH__
    words[i] = __ldg(reinterpret_cast<const Word*>(from) + i);
#else
    words[i] = reinterpret_cast<const Word*>(from)[i];
#endif
  }
  memcpy(packet.words, words, 16);
}

template <typename Word, typename T>
MMFAST_HOST_DEVICE void store_words(T* to, const Packet<T>& packet) {
  Word words[16 / sizeof(Word)];
  memcpy(words, packet.words, 16);
#pragma unroll
  for (int i = 0; i < static_cast<int>(16 / sizeof(Word)); ++i) {
    reinterpret_cast<Word*>(to)[i] = words[i];
  }
}

// `unit` says to how many bytes every row is aligned: 16 for one load, 8 and 4 for more of them,
// else element by element, as where fewer than a packet are left. What is not there is 0.
template <typename T>
MMFAST_HOST_DEVICE Packet<T> load(const T* from, int n, int unit) {
  Packet<T> packet;
  if (ElementOf<T>::whole || (n >= kPacket<T> && unit == 16)) {
    load_words<Word16>(from, packet);
  } else if (n >= kPacket<T> && unit == 8) {
    load_words<Word8>(from, packet);
  } else if (n >= kPacket<T> && unit == 4) {
    load_words<uint32_t>(from, packet);
  } else {
    T elements[kPacket<T>];
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      elements[i] = i < n ? from[i] : T{};
    }
    memcpy(packet.words, elements, 16);
  }
  return packet;
}

template <typename T>
MMFAST_HOST_DEVICE void store(T* to, const Packet<T>& packet, int n, int unit) {
  if (ElementOf<T>::whole || (n >= kPacket<T> && unit == 16)) {
    store_words<Word16>(to, packet);
  } else if (n >= kPacket<T> && unit == 8) {
    store_words<Word8>(to, packet);
  } else if (n >= kPacket<T> && unit == 4) {
    store_words<uint32_t>(to, packet);
  } else {
    T elements[kPacket<T>];
    memcpy(elements, packet.words, 16);
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      if (i < n) {
        to[i] = elements[i];
      }
    }
  }
}

template <typename T>
MMFAST_HOST_DEVICE void store_rounded(T* to, const wide_t<T>* from, int n, int unit) {
  store(to, pack<T>(from), n, unit);
}

template <typename T>
MMFAST_HOST_DEVICE void store_zeros(T* to, int n, int unit) {
  store(to, Packet<T>{}, n, unit);
}

}  // namespace mmfast::cuda
