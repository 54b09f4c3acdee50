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

// Long sums go by blocks: the rounding errors of one running sum grow with its length.
constexpr int64_t kDotBlock = 256;

template <typename X, typename Y, typename A>
MMFAST_INLINE A dot_of(const X* __restrict x, const Y* __restrict y, int64_t n, A) {
  A total = 0;
  for (int64_t j0 = 0; j0 < n; j0 += kDotBlock) {
    const int64_t end = j0 + kDotBlock < n ? j0 + kDotBlock : n;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = j0; j < end; ++j) {
      sum += A(widen(x[j])) * A(widen(y[j]));
    }
    total += sum;
  }
  return total;
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
