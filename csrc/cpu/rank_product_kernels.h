// Inner loops of rank_product; see rank_product.h. Included once per instruction set.
#include "lanes.h"
// which the next ones build on
#include "tile_kernels.h"
// and this on both
#include "row_kernels.h"

constexpr int64_t kProductTile = 128;  // of every factor, so that all stay in cache

template <typename T>
MMFAST_INLINE accumulator_t<T> rank_weight(const RankProductArgs& args, int64_t r) {
  return args.weights ? widen(static_cast<const T*>(args.weights)[r]) : accumulator_t<T>(1);
}

template <typename T, typename A>
MMFAST_INLINE void multiply_tile_by(A* __restrict tile, const T* __restrict factor, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    tile[j] *= widen(factor[j]);
  }
}

template <typename A>
MMFAST_INLINE void fill_tile(A* tile, A value, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    tile[j] = value;
  }
}

// Whether a row has two or three factors that are all there: their products stay in registers.
template <typename T>
MMFAST_INLINE bool is_short(const RankProductArgs& args, const Row<T>& row) {
  return (args.rows.count == 2 || args.rows.count == 3) && row.all_present();
}

// Sum over ranks of the products of so few factors, for `vectors` vectors side by side: they stay
// in registers while the ranks of a row are read in long enough pieces.
template <int64_t count, int64_t vectors, typename T, typename P>
MMFAST_INLINE void short_product(const RankProductArgs& args, const T* const* factors, T* to,
                                 int64_t j, P part) {
  using A = accumulator_t<T>;
  Lanes<A> sum[vectors] = {};
  for (int64_t r = 0; r < args.ranks; ++r) {
    const A weight = rank_weight<T>(args, r);
    const int64_t at = r * args.rows.cols + j;
#pragma GCC unroll 8
    for (int64_t v = 0; v < vectors; ++v) {
      Lanes<A> product = weight * load(factors[0] + at + v * kLanes<A>, part);
      product *= load(factors[1] + at + v * kLanes<A>, part);
      if constexpr (count == 3) {
        product *= load(factors[2] + at + v * kLanes<A>, part);
      }
      sum[v] += product;
    }
  }
#pragma GCC unroll 8
  for (int64_t v = 0; v < vectors; ++v) {
    store(to + j + v * kLanes<A>, sum[v], part);
  }
}

template <int64_t count, typename T>
MMFAST_INLINE void short_row(const RankProductArgs& args, const Row<T>& row, T* to) {
  using A = accumulator_t<T>;
  constexpr int64_t kVectors = 8;
  const T* factors[] = {row.source(0), row.source(1), row.source(count - 1)};
  int64_t j = 0;
  for (; j + kVectors * kLanes<A> <= args.rows.cols; j += kVectors * kLanes<A>) {
    short_product<count, kVectors>(args, factors, to, j, Whole{});
  }
  for_lanes<A>(args.rows.cols - j, [&](int64_t i, auto part) MMFAST_LAMBDA {
    short_product<count, 1>(args, factors, to, j + i, part);
  });
}

// Rows begin..end of the result.
template <typename T>
void rank_product(const RankProductArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t cols = args.rows.cols;
  A tile[kTile];
  A product[kTile];
  Row<T> row(args.rows, begin);
  for (int64_t b = begin; b < end; ++b, row.cursor.next()) {
    T* to = static_cast<T*>(args.out) + b * cols;
    if (is_short(args, row)) {
      if (args.rows.count == 2) {
        short_row<2>(args, row, to);
      } else {
        short_row<3>(args, row, to);
      }
      continue;
    }
    for (int64_t j0 = 0; j0 < cols; j0 += kTile) {
      const int64_t n = cols - j0 < kTile ? cols - j0 : kTile;
      zero_tile(tile, n);
      for (int64_t r = 0; r < args.ranks; ++r) {
        fill_tile(product, rank_weight<T>(args, r), n);
        for (int64_t m = 0; m < args.rows.count; ++m) {
          if (row.present(m)) {
            multiply_tile_by(product, row.source(m) + r * cols + j0, n);
          }
        }
        add_tile(tile, product, n);
      }
      store_tile(to + j0, tile, n);
    }
  }
}

// Gradients of n features of one row and rank. `before` takes, for each factor, the product of
// grad, weight and the factors before it; going back from the last, `after` is the product of those
// behind.
template <typename T, typename A>
MMFAST_INLINE void rank_product_tile_backward(const RankProductArgs& args, const Row<T>& row,
                                              int64_t b, int64_t r, int64_t j0, int64_t n,
                                              A* __restrict before, A* __restrict after,
                                              A* weight_sum) {
  const int64_t count = args.rows.count;
  const int64_t cols = args.rows.cols;
  const T* grad = row.source(args.grad_source) + j0;
  const A weight = rank_weight<T>(args, r);
  fill_tile(after, A(1), n);  // for now: the product of the factors so far
  for (int64_t m = 0; m < count; ++m) {
    A* here = before + m * kProductTile;
    for (int64_t j = 0; j < n; ++j) {
      here[j] = after[j];
    }
    if (row.present(m)) {
      multiply_tile_by(after, row.source(m) + r * cols + j0, n);
    }
  }
  if (weight_sum) {
    *weight_sum += dot_of(grad, after, n, A(0));
  }
  for (int64_t j = 0; j < n; ++j) {
    after[j] = weight * widen(grad[j]);
  }
  for (int64_t m = count - 1; m >= 0; --m) {
    const bool present = row.present(m);
    if (args.grads[m]) {
      T* to = static_cast<T*>(args.grads[m]) + (b * args.ranks + r) * cols + j0;
      if (present) {
        const A* here = before + m * kProductTile;
        for (int64_t j = 0; j < n; ++j) {
          to[j] = narrow<T>(after[j] * here[j]);
        }
      } else {
        zero_row(to, n);
      }
    }
    if (present && m > 0) {
      multiply_tile_by(after, row.source(m) + r * cols + j0, n);
    }
  }
}

// The same where two or three factors are all there and all gradients are wanted; returns what the
// rank's weight gets.
template <int64_t count, typename T, typename A>
MMFAST_INLINE A short_product_backward(const T* grad, A weight, const T* const* factors,
                                       T* const* to, int64_t n) {
  const T* a = factors[0];
  const T* b = factors[1];
  const T* c = factors[count - 1];
  T* to_a = to[0];
  T* to_b = to[1];
  T* to_c = to[count - 1];
  Lanes<A> sum{};
  for_lanes<A>(n, [&](int64_t j, auto part) MMFAST_LAMBDA {
    const Lanes<A> g = load(grad + j, part);
    const Lanes<A> x = load(a + j, part);
    const Lanes<A> y = load(b + j, part);
    const Lanes<A> scaled = weight * g;
    if constexpr (count == 2) {
      sum += g * (x * y);
      store(to_a + j, scaled * y, part);
      store(to_b + j, scaled * x, part);
    } else {
      const Lanes<A> z = load(c + j, part);
      const Lanes<A> behind = scaled * z;
      const Lanes<A> before = x * y;
      sum += g * (before * z);
      store(to_a + j, behind * y, part);
      store(to_b + j, behind * x, part);
      store(to_c + j, scaled * before, part);
    }
  });
  return sum_of_lanes(sum);
}

// Gradients of all ranks of one row, as above.
template <int64_t count, typename T, typename A>
MMFAST_INLINE void short_row_backward(const RankProductArgs& args, const Row<T>& row, int64_t b,
                                      A* weight_sums) {
  const int64_t cols = args.rows.cols;
  const T* grad = row.source(args.grad_source);
  for (int64_t r = 0; r < args.ranks; ++r) {
    const A weight = rank_weight<T>(args, r);
    A row_sum = 0;
    for (int64_t j = 0; j < cols; j += kDotBlock<A>) {  // a sum of no more rounds less
      const T* factors[count];
      T* to[count];
      for (int64_t m = 0; m < count; ++m) {
        factors[m] = row.source(m) + r * cols + j;
        to[m] = static_cast<T*>(args.grads[m]) + (b * args.ranks + r) * cols + j;
      }
      const int64_t n = cols - j < kDotBlock<A> ? cols - j : kDotBlock<A>;
      row_sum += short_product_backward<count>(grad + j, weight, factors, to, n);
    }
    if (weight_sums) {
      weight_sums[r] += row_sum;
    }
  }
}

// Chunks begin..end of the rows.
template <typename T>
void rank_product_backward(const RankProductArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  A* before = new A[args.rows.count * kProductTile];
  A after[kProductTile];
  bool all_wanted = true;
  for (int64_t m = 0; m < args.rows.count; ++m) {
    all_wanted = all_wanted && args.grads[m];
  }
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kChunkRows;
    const int64_t last =
        first + kChunkRows < args.rows.total ? first + kChunkRows : args.rows.total;
    A* sums = args.sums ? static_cast<A*>(args.sums) + chunk * args.ranks : nullptr;
    if (sums) {
      zero_tile(sums, args.ranks);
    }
    if (first >= last) {
      continue;  // an empty batch
    }
    Row<T> row(args.rows, first);
    for (int64_t b = first; b < last; ++b, row.cursor.next()) {
      if (all_wanted && is_short(args, row)) {
        if (args.rows.count == 2) {
          short_row_backward<2>(args, row, b, sums);
        } else {
          short_row_backward<3>(args, row, b, sums);
        }
        continue;
      }
      for (int64_t r = 0; r < args.ranks; ++r) {
        A row_sum = 0;  // of its own: two short sums err less than one long one
        for (int64_t j0 = 0; j0 < args.rows.cols; j0 += kProductTile) {
          const int64_t n = args.rows.cols - j0 < kProductTile ? args.rows.cols - j0 : kProductTile;
          rank_product_tile_backward(args, row, b, r, j0, n, before, after,
                                     sums ? &row_sum : nullptr);
        }
        if (sums) {
          sums[r] += row_sum;
        }
      }
    }
  }
  delete[] before;
}
