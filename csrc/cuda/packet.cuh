// 16 bytes of a row: what one thread loads, computes with and stores at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "../cpu/scalar.h"
#include "host_device.h"

namespace mmfast::cuda {

template <typename T>
struct alignas(16) Packet {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

template <typename T>
constexpr int kPacket = Packet<T>::kSize;

MMFAST_HOST_DEVICE double to_wide(double x) { return x; }
MMFAST_HOST_DEVICE float to_wide(float x) { return x; }

MMFAST_HOST_DEVICE float to_wide(BFloat16 x) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#else
  return widen(x);
#endif
}

MMFAST_HOST_DEVICE float to_wide(Float16 x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#else
  return widen(x);
#endif
}

// Rounds two neighbours, to nearest, ties to even.
template <typename T>
MMFAST_HOST_DEVICE void round_pair(const accumulator_t<T>* from, T* to) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) {
    uint32_t bits;  // the first operand becomes the upper half
    if constexpr (std::is_same_v<T, BFloat16>) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(from[1]), "f"(from[0]));
    } else {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(from[1]), "f"(from[0]));
    }
    to[0].bits = static_cast<uint16_t>(bits);
    to[1].bits = static_cast<uint16_t>(bits >> 16);
  } else {
    to[0] = from[0];
    to[1] = from[1];
  }
#else
  to[0] = narrow<T>(from[0]);
  to[1] = narrow<T>(from[1]);
#endif
}

template <typename T>
MMFAST_HOST_DEVICE T round_one(accumulator_t<T> x) {
  const accumulator_t<T> pair[2] = {x, x};
  T rounded[2];
  round_pair<T>(pair, rounded);
  return rounded[0];
}

template <typename T>
MMFAST_HOST_DEVICE Packet<T> pack(const accumulator_t<T>* from) {
  Packet<T> packet;
#pragma unroll
  for (int i = 0; i < kPacket<T>; i += 2) {
    round_pair<T>(from + i, packet.v + i);
  }
  return packet;
}

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
    std::memcpy(&words[i], reinterpret_cast<const Word*>(from) + i, sizeof(Word));
#endif
  }
  memcpy(&packet, words, 16);
}

template <typename Word, typename T>
MMFAST_HOST_DEVICE void store_words(T* to, const Packet<T>& packet) {
  Word words[16 / sizeof(Word)];
  memcpy(words, &packet, 16);
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
  if (n >= kPacket<T> && unit == 16) {
    load_words<Word16>(from, packet);
  } else if (n >= kPacket<T> && unit == 8) {
    load_words<Word8>(from, packet);
  } else if (n >= kPacket<T> && unit == 4) {
    load_words<uint32_t>(from, packet);
  } else {
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      packet.v[i] = i < n ? from[i] : T{};
    }
  }
  return packet;
}

template <typename T>
MMFAST_HOST_DEVICE void store(T* to, const Packet<T>& packet, int n, int unit) {
  if (n >= kPacket<T> && unit == 16) {
    store_words<Word16>(to, packet);
  } else if (n >= kPacket<T> && unit == 8) {
    store_words<Word8>(to, packet);
  } else if (n >= kPacket<T> && unit == 4) {
    store_words<uint32_t>(to, packet);
  } else {
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      if (i < n) {
        to[i] = packet.v[i];
      }
    }
  }
}

template <typename T>
MMFAST_HOST_DEVICE void store_rounded(T* to, const accumulator_t<T>* from, int n, int unit) {
  store(to, pack<T>(from), n, unit);
}

template <typename T>
MMFAST_HOST_DEVICE void store_zeros(T* to, int n, int unit) {
  store(to, Packet<T>{}, n, unit);
}

}  // namespace mmfast::cuda
