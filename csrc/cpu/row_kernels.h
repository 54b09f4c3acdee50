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
MMFAST_INLINE void add_scaled(A* to, A factor, const T* from, int64_t n) {
  for_lanes<A>(n, [&](int64_t j, auto part) MMFAST_LAMBDA {
    store(to + j, load(to + j, part) + factor * load(from + j, part), part);
  });
}

// Where few inputs are combined and all are there, sums stay in registers instead of in a tile.
constexpr int64_t kFew = 4;

// Long sums go by blocks: the rounding errors of one running sum grow with its length. There are as
// many running sums as a vector has lanes; each takes 16 products of a block, then 16 blocks of a
// run. Runs are few: they are added in double.
template <typename A>
constexpr int64_t kDotBlock = 16 * kLanes<A>;
template <typename A>
constexpr int64_t kDotRun = 16 * kDotBlock<A>;

// Calls block(begin, end, sums) for the blocks of n elements, to add products to `sums`; returns
// the totals.
template <int64_t count, typename A, typename Block>
MMFAST_INLINE void sum_by_blocks(int64_t n, A* totals, const Block& block) {
  if (n <= kDotBlock<A>) {  // the same sums, in fewer steps
    Lanes<A> sums[count] = {};
    block(0, n, sums);
    for (int64_t m = 0; m < count; ++m) {
      totals[m] = sum_of_lanes(sums[m]);
    }
    return;
  }
  double all[count] = {};
  for (int64_t i = 0; i < n; i += kDotRun<A>) {
    const int64_t last = i + kDotRun<A> < n ? i + kDotRun<A> : n;
    Lanes<A> run[count] = {};
    for (int64_t j = i; j < last; j += kDotBlock<A>) {
      Lanes<A> sums[count] = {};
      block(j, j + kDotBlock<A> < last ? j + kDotBlock<A> : last, sums);
      for (int64_t m = 0; m < count; ++m) {
        run[m] += sums[m];
      }
    }
    for (int64_t m = 0; m < count; ++m) {
      all[m] += sum_of_lanes(run[m]);
    }
  }
  for (int64_t m = 0; m < count; ++m) {
    totals[m] = A(all[m]);
  }
}

// sums[m] = x . from[m]
template <int64_t count, typename X, typename Y, typename A>
MMFAST_INLINE void dots(const X* x, const Y* const* from, int64_t n, A* totals) {
  const Y* y[count];
  __builtin_memcpy(y, from, sizeof(y));
  sum_by_blocks<count>(n, totals, [&](int64_t begin, int64_t end, Lanes<A>* sums) MMFAST_LAMBDA {
#if MMFAST_ISA_LEVEL >= 3
    if constexpr (std::is_same_v<X, BFloat16> && std::is_same_v<Y, BFloat16>) {
      for_steps<32>(end - begin, [&](int64_t j, auto part) MMFAST_LAMBDA {
        const __m512bh v = (__m512bh)load_pairs(x + begin + j, part);
        for (int64_t m = 0; m < count; ++m) {
          const __m512bh w = (__m512bh)load_pairs(y[m] + begin + j, part);
          sums[m] = (Lanes<A>)_mm512_dpbf16_ps((__m512)sums[m], v, w);
        }
      });
      return;
    }
#endif
    for_lanes<A>(end - begin, [&](int64_t j, auto part) MMFAST_LAMBDA {
      const Lanes<A> v = load(x + begin + j, part);
      for (int64_t m = 0; m < count; ++m) {
        sums[m] += v * load(y[m] + begin + j, part);
      }
    });
  });
}

template <typename X, typename Y, typename A>
MMFAST_INLINE A dot_of(const X* x, const Y* y, int64_t n, A) {
  A total;
  dots<1>(x, &y, n, &total);
  return total;
}

// to = (or, with `add`, to +=) the sum of the weighted rows
template <int64_t count, bool add, typename O, typename T, typename A>
MMFAST_INLINE void weigh(O* to, const T* const* from, const A* weights, int64_t n) {
  const T* x[count];
  A w[count];
  __builtin_memcpy(x, from, sizeof(x));
  __builtin_memcpy(w, weights, sizeof(w));
  for_lanes<A>(n, [&](int64_t j, auto part) MMFAST_LAMBDA {
    Lanes<A> sum = w[0] * load(x[0] + j, part);
    for (int64_t m = 1; m < count; ++m) {
      sum += w[m] * load(x[m] + j, part);
    }
    store(to + j, add ? load(to + j, part) + sum : sum, part);
  });
}

// The same past the caches, where `to` is aligned for that.
template <int64_t count, typename T, typename A>
MMFAST_INLINE void weigh_past_caches(T* to, const T* const* from, const A* weights, int64_t n) {
  const T* x[count];
  A w[count];
  __builtin_memcpy(x, from, sizeof(x));
  __builtin_memcpy(w, weights, sizeof(w));
  for (int64_t j = 0; j < n; j += kLanes<A>) {
    Lanes<A> sum = w[0] * load(x[0] + j, Whole{});
    for (int64_t m = 1; m < count; ++m) {
      sum += w[m] * load(x[m] + j, Whole{});
    }
    stream(to + j, sum);
  }
}

// Calls f with std::integral_constant<int64_t, count> for a count of 1 .. kFew.
template <typename F>
MMFAST_INLINE void with_count(int64_t count, const F& f) {
  switch (count) {
    case 1:
      return f(std::integral_constant<int64_t, 1>());
    case 2:
      return f(std::integral_constant<int64_t, 2>());
    case 3:
      return f(std::integral_constant<int64_t, 3>());
    default:
      return f(std::integral_constant<int64_t, kFew>());
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
