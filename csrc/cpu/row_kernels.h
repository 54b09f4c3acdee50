// What the kernels of operators that combine rows have in common. Included once per instruction
// set, after tile_kernels.h; see foreach_isa.h.

// A cursor over the rows of a problem's sources.
template <typename T>
struct Row {
  Row(const RowArgs& args, int64_t start) : args(args), cursor(args.rows, start) {}

  const T* source(int64_t s) const { return static_cast<const T*>(args.data[s]) + cursor.at(s); }
  bool present(int64_t m) const {
    return args.present < 0 || (static_cast<const bool*>(args.data[args.present]) +
                                cursor.at(args.present))[m * args.present_stride];
  }

  bool all_present() const {
    for (int64_t m = 0; args.present >= 0 && m < args.count; ++m) {
      if (!present(m)) {
        return false;
      }
    }
    return true;
  }

  const RowArgs& args;
  RowCursor cursor;
};

template <typename T>
MMFAST_INLINE void zero_row(T* to, int64_t n) {
  __builtin_memset(to, 0, n * sizeof(T));
}

template <typename A>
MMFAST_INLINE void zero_tile(A* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    to[j] = A(0);
  }
}

// to += factor * from
template <typename T, typename A>
MMFAST_INLINE void add_scaled(A* __restrict to, A factor, const T* __restrict from, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    to[j] += factor * widen(from[j]);
  }
}

// Long sums go by blocks: the rounding errors of one running sum grow with its length. There are as
// many running sums as a vector has lanes; each takes 16 products of a block. Blocks are few: they
// are added in double.
constexpr int64_t kDotBlock = MMFAST_ISA_LEVEL >= 2 ? 256 : MMFAST_ISA_LEVEL == 1 ? 128 : 64;

template <typename X, typename Y, typename A>
MMFAST_INLINE A dot_of(const X* __restrict x, const Y* __restrict y, int64_t n, A) {
  double total = 0;
  for (int64_t j0 = 0; j0 < n; j0 += kDotBlock) {
    const int64_t end = j0 + kDotBlock < n ? j0 + kDotBlock : n;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = j0; j < end; ++j) {
      sum += A(widen(x[j])) * A(widen(y[j]));
    }
    total += sum;
  }
  return A(total);
}

// Where few inputs are combined and all are there, sums stay in registers instead of in a tile.
constexpr int64_t kFew = 4;

template <int count, typename O, typename T, typename A>
MMFAST_INLINE void weigh(O* __restrict to, const T* const* from, const A* weights, int64_t n) {
  const T* __restrict x0 = from[0];
  const T* __restrict x1 = from[count > 1 ? 1 : 0];
  const T* __restrict x2 = from[count > 2 ? 2 : 0];
  const T* __restrict x3 = from[count > 3 ? 3 : 0];
  const A w0 = weights[0];
  const A w1 = weights[count > 1 ? 1 : 0];
  const A w2 = weights[count > 2 ? 2 : 0];
  const A w3 = weights[count > 3 ? 3 : 0];
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    A sum = w0 * widen(x0[j]);
    if constexpr (count > 1) {
      sum += w1 * widen(x1[j]);
    }
    if constexpr (count > 2) {
      sum += w2 * widen(x2[j]);
    }
    if constexpr (count > 3) {
      sum += w3 * widen(x3[j]);
    }
    to[j] = narrow<O>(sum);
  }
}

// to = sum of the weighted rows of at most kFew inputs
template <typename O, typename T, typename A>
MMFAST_INLINE void weigh_few(O* to, const T* const* from, const A* weights, int64_t count,
                             int64_t n) {
  switch (count) {
    case 1:
      return weigh<1>(to, from, weights, n);
    case 2:
      return weigh<2>(to, from, weights, n);
    case 3:
      return weigh<3>(to, from, weights, n);
    default:
      return weigh<4>(to, from, weights, n);
  }
}

// The sums of dot_of for several inputs at once.
template <int count, typename T, typename A>
MMFAST_INLINE void dots(const T* __restrict x, const T* const* from, int64_t n, A* sums) {
  const T* __restrict y0 = from[0];
  const T* __restrict y1 = from[count > 1 ? 1 : 0];
  const T* __restrict y2 = from[count > 2 ? 2 : 0];
  const T* __restrict y3 = from[count > 3 ? 3 : 0];
  double totals[kFew] = {};
  for (int64_t j0 = 0; j0 < n; j0 += kDotBlock) {
    const int64_t end = j0 + kDotBlock < n ? j0 + kDotBlock : n;
    A s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t j = j0; j < end; ++j) {
      const A v = widen(x[j]);
      s0 += v * widen(y0[j]);
      if constexpr (count > 1) {
        s1 += v * widen(y1[j]);
      }
      if constexpr (count > 2) {
        s2 += v * widen(y2[j]);
      }
      if constexpr (count > 3) {
        s3 += v * widen(y3[j]);
      }
    }
    totals[0] += s0;
    totals[1] += s1;
    totals[2] += s2;
    totals[3] += s3;
  }
  for (int64_t m = 0; m < count; ++m) {
    sums[m] = A(totals[m]);
  }
}

// sums[m] = x . from[m] for at most kFew inputs
template <typename T, typename A>
MMFAST_INLINE void dot_few(const T* x, const T* const* from, int64_t count, int64_t n, A* sums) {
  switch (count) {
    case 1:
      return dots<1>(x, from, n, sums);
    case 2:
      return dots<2>(x, from, n, sums);
    case 3:
      return dots<3>(x, from, n, sums);
    default:
      return dots<4>(x, from, n, sums);
  }
}

// Adds up `chunks` rows of `size` sums, pairwise, and rounds them.
template <typename T>
void add_chunks(const ChunkArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  A* sums = static_cast<A*>(args.sums);
  for (int64_t width = 1; width < args.chunks; width *= 2) {
    for (int64_t c = 0; c + width < args.chunks; c += 2 * width) {
      const A* other = sums + (c + width) * args.size;
      A* to = sums + c * args.size;
      for (int64_t j = begin; j < end; ++j) {
        to[j] += other[j];
      }
    }
  }
  store_tile(static_cast<T*>(args.out) + begin, sums + begin, end - begin);
}
