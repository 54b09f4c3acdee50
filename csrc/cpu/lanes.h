// A row's elements as vectors of the accumulator's type, as wide as the instruction set has them.
// Included once per instruction set, inside a namespace; see foreach_isa.h.
//
// A plain loop over 16-bit elements vectorises too, but its conversions take more steps than its
// arithmetic. Here they take one or two where the processor has instructions for them, and the end
// of a row is loaded and stored under a mask.

constexpr int64_t kLaneBytes = MMFAST_ISA_LEVEL >= 2 ? 64 : MMFAST_ISA_LEVEL == 1 ? 32 : 16;

template <typename A>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float type __attribute__((vector_size(kLaneBytes)));
};
template <>
struct LanesOf<double> {
  typedef double type __attribute__((vector_size(kLaneBytes)));
};
template <typename A>
using Lanes = typename LanesOf<A>::type;
template <typename A>
constexpr int64_t kLanes = kLaneBytes / sizeof(A);

// How much of a vector is meant: all of it, or its first n elements.
struct Whole {};
struct Part {
  int64_t n;
};

// Calls body(j, Whole{}) for every `step` of n elements, and body(j, Part{..}) for the rest.
template <int64_t step, typename Body>
MMFAST_INLINE void for_steps(int64_t n, const Body& body) {
  int64_t j = 0;
  for (; j + step <= n; j += step) {
    body(j, Whole{});
  }
  if (j < n) {
    body(j, Part{n - j});
  }
}

// The same by vectors.
template <typename A, typename Body>
MMFAST_INLINE void for_lanes(int64_t n, const Body& body) {
  for_steps<kLanes<A>>(n, body);
}

// All lanes the same.
template <typename A>
MMFAST_INLINE Lanes<A> lanes(A x) {
  return x - Lanes<A>{};
}

// f of each lane. The loop vectorises if f does.
template <typename V, typename F>
MMFAST_INLINE V map_lanes(const V& x, const F& f) {
  using A = std::remove_cvref_t<decltype(x[0])>;
  A each[kLanes<A>];
  __builtin_memcpy(each, &x, sizeof(x));
  for (int64_t i = 0; i < kLanes<A>; ++i) {
    each[i] = f(each[i]);
  }
  V result;
  __builtin_memcpy(&result, each, sizeof(x));
  return result;
}

template <typename V>
MMFAST_INLINE auto sum_of_lanes(const V& x) {
  using A = std::remove_cvref_t<decltype(x[0])>;
  A each[kLanes<A>];
  __builtin_memcpy(each, &x, sizeof(x));
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < kLanes<A>; ++i) {
    sum += each[i];
  }
  return sum;
}

// NaN stays NaN.
template <typename V>
MMFAST_INLINE V clamp(const V& x, double low, double high) {
  using A = std::remove_cvref_t<decltype(x[0])>;
  const V most = lanes(A(high)), least = lanes(A(low));
#if MMFAST_ISA_LEVEL >= 2  // where the comparisons below become masks
  if constexpr (sizeof(A) == 4) {
    return (V)_mm512_maskz_max_ps(-1, (__m512)least,
                                  _mm512_maskz_min_ps(-1, (__m512)most, (__m512)x));
  }
#endif
  const V below = most < x ? most : x;
  return below < least ? least : below;
}

// For |x| <= 87.
template <typename V>
MMFAST_INLINE V exp_lanes(const V& x) {
  return map_lanes(x, [](auto each) MMFAST_LAMBDA { return vexp_bounded(each); });
}

#if MMFAST_ISA_LEVEL >= 2

typedef uint32_t Words __attribute__((vector_size(64)));

// The first n bytes; behind them zeros.
MMFAST_INLINE __m512i load_bytes(const void* from, int64_t n) {
  return _mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - n), from);
}
MMFAST_INLINE void store_bytes(void* to, __m512i x, int64_t n) {
  _mm512_mask_storeu_epi8(to, ~uint64_t{0} >> (64 - n), x);
}

// 32 elements as they are, which AVX512-BF16 multiplies and adds in pairs.
MMFAST_INLINE __m512i load_pairs(const BFloat16* from, Whole) { return _mm512_loadu_si512(from); }
MMFAST_INLINE __m512i load_pairs(const BFloat16* from, Part part) {
  return load_bytes(from, part.n * 2);
}

template <typename T>
MMFAST_INLINE Lanes<float> widen_halves(__m256i halves) {
  if constexpr (std::is_same_v<T, Float16>) {
    return (Lanes<float>)_mm512_maskz_cvtph_ps(-1, halves);
  } else {
    return (Lanes<float>)((Words)_mm512_maskz_cvtepu16_epi32(-1, halves) << 16);
  }
}

// As PyTorch rounds, but that AVX512-BF16 takes subnormal numbers for zero.
template <typename T>
MMFAST_INLINE __m256i narrow_halves(Lanes<float> x) {
  if constexpr (std::is_same_v<T, Float16>) {
    return _mm512_maskz_cvtps_ph(-1, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
  } else {
#if MMFAST_ISA_LEVEL >= 3
    return (__m256i)_mm512_cvtneps_pbh((__m512)x);
#else
    const Words bits = (Words)x;
    const Words rounded = x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;  // or NaN
    return _mm512_maskz_cvtepi32_epi16(-1, (__m512i)(rounded >> 16));
#endif
  }
}

template <typename T>
MMFAST_INLINE Lanes<accumulator_t<T>> load(const T* from, Whole) {
  if constexpr (sizeof(T) == 2) {
    return widen_halves<T>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  } else {
    return (Lanes<T>)_mm512_loadu_si512(from);
  }
}

template <typename T>
MMFAST_INLINE Lanes<accumulator_t<T>> load(const T* from, Part part) {
  const __m512i x = load_bytes(from, part.n * sizeof(T));
  if constexpr (sizeof(T) == 2) {
    return widen_halves<T>(_mm512_castsi512_si256(x));
  } else {
    return (Lanes<T>)x;
  }
}

template <typename T>
MMFAST_INLINE void store(T* to, Lanes<accumulator_t<T>> x, Whole) {
  if constexpr (sizeof(T) == 2) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow_halves<T>(x));
  } else {
    _mm512_storeu_si512(to, (__m512i)x);
  }
}

template <typename T>
MMFAST_INLINE void store(T* to, Lanes<accumulator_t<T>> x, Part part) {
  if constexpr (sizeof(T) == 2) {
    store_bytes(to, _mm512_zextsi256_si512(narrow_halves<T>(x)), part.n * sizeof(T));
  } else {
    store_bytes(to, (__m512i)x, part.n * sizeof(T));
  }
}

// Past the caches, which saves reading what is overwritten. `to` is aligned to the bytes written.
template <typename T>
MMFAST_INLINE void stream(T* to, Lanes<accumulator_t<T>> x) {
  if constexpr (sizeof(T) == 2) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), narrow_halves<T>(x));
  } else {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)x);
  }
}
MMFAST_INLINE void finish_streams() { _mm_sfence(); }

#else

template <typename T>
MMFAST_INLINE Lanes<accumulator_t<T>> load(const T* from, Whole) {
  using A = accumulator_t<T>;
  A each[kLanes<A>];
  for (int64_t i = 0; i < kLanes<A>; ++i) {
    each[i] = widen(from[i]);
  }
  Lanes<A> x;
  __builtin_memcpy(&x, each, sizeof(x));
  return x;
}

template <typename T>
MMFAST_INLINE void store(T* to, Lanes<accumulator_t<T>> x, Whole) {
  using A = accumulator_t<T>;
  A each[kLanes<A>];
  __builtin_memcpy(each, &x, sizeof(x));
  for (int64_t i = 0; i < kLanes<A>; ++i) {
    to[i] = narrow<T>(each[i]);
  }
}

template <typename T>
MMFAST_INLINE Lanes<accumulator_t<T>> load(const T* from, Part part) {
  T each[kLanes<accumulator_t<T>>] = {};
  __builtin_memcpy(each, from, part.n * sizeof(T));
  return load(each, Whole{});
}

template <typename T>
MMFAST_INLINE void store(T* to, Lanes<accumulator_t<T>> x, Part part) {
  T each[kLanes<accumulator_t<T>>];
  store(each, x, Whole{});
  __builtin_memcpy(to, each, part.n * sizeof(T));
}

template <typename T>
MMFAST_INLINE void stream(T* to, Lanes<accumulator_t<T>> x) {
  store(to, x, Whole{});
}
MMFAST_INLINE void finish_streams() {}

#endif
