// Inner loops of rank_product; see rank_product.h. Included once per instruction set.
#include "tile_kernels.h"
// which the next one builds on
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

// tile += weight * product of two or three factors
template <typename T, typename A>
MMFAST_INLINE void add_product(A* __restrict tile, A weight, const T* __restrict a,
                               const T* __restrict b, const T* __restrict c, int64_t n) {
  if (c) {
    for (int64_t j = 0; j < n; ++j) {
      tile[j] += weight * widen(a[j]) * widen(b[j]) * widen(c[j]);
    }
  } else {
    for (int64_t j = 0; j < n; ++j) {
      tile[j] += weight * widen(a[j]) * widen(b[j]);
    }
  }
}

// Whether a row has two or three factors that are all there: their products stay in registers.
template <typename T>
MMFAST_INLINE bool is_short(const RankProductArgs& args, const Row<T>& row) {
  return (args.rows.count == 2 || args.rows.count == 3) && row.all_present();
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
    for (int64_t j0 = 0; j0 < cols; j0 += kTile) {
      const int64_t n = cols - j0 < kTile ? cols - j0 : kTile;
      zero_tile(tile, n);
      const bool is_short_row = is_short(args, row);
      for (int64_t r = 0; r < args.ranks; ++r) {
        if (is_short_row) {
          const int64_t at = r * cols + j0;
          add_product(tile, rank_weight<T>(args, r), row.source(0) + at, row.source(1) + at,
                      args.rows.count == 3 ? row.source(2) + at : nullptr, n);
          continue;
        }
        fill_tile(product, rank_weight<T>(args, r), n);
        for (int64_t m = 0; m < args.rows.count; ++m) {
          if (row.present(m)) {
            multiply_tile_by(product, row.source(m) + r * cols + j0, n);
          }
        }
        add_tile(tile, product, n);
      }
      store_tile(static_cast<T*>(args.out) + b * cols + j0, tile, n);
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

// The same where two or three factors are all there and all gradients are wanted.
template <typename T, typename A>
MMFAST_INLINE A short_product_backward(const T* __restrict grad, A weight, const T* __restrict a,
                                       const T* __restrict b, T* __restrict to_a,
                                       T* __restrict to_b, int64_t n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const A g = widen(grad[j]);
    const A x = widen(a[j]);
    const A y = widen(b[j]);
    sum += g * (x * y);
    to_a[j] = narrow<T>(weight * g * y);
    to_b[j] = narrow<T>(weight * g * x);
  }
  return sum;
}

template <typename T, typename A>
MMFAST_INLINE A short_product_backward(const T* __restrict grad, A weight, const T* __restrict a,
                                       const T* __restrict b, const T* __restrict c,
                                       T* __restrict to_a, T* __restrict to_b, T* __restrict to_c,
                                       int64_t n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const A g = widen(grad[j]);
    const A x = widen(a[j]);
    const A y = widen(b[j]);
    const A z = widen(c[j]);
    sum += g * (x * y * z);
    to_a[j] = narrow<T>(weight * g * z * y);
    to_b[j] = narrow<T>(weight * g * z * x);
    to_c[j] = narrow<T>(weight * g * (x * y));
  }
  return sum;
}

// Gradients of all ranks of one row, as above.
template <typename T, typename A>
MMFAST_INLINE void short_row_backward(const RankProductArgs& args, const Row<T>& row, int64_t b,
                                      A* weight_sums) {
  const int64_t cols = args.rows.cols;
  const T* grad = row.source(args.grad_source);
  const auto to = [&](int64_t m, int64_t at) {
    return static_cast<T*>(args.grads[m]) + b * args.ranks * cols + at;
  };
  for (int64_t r = 0; r < args.ranks; ++r) {
    const A weight = rank_weight<T>(args, r);
    A row_sum = 0;
    for (int64_t j0 = 0; j0 < cols; j0 += kProductTile) {  // a sum of no more rounds less
      const int64_t n = cols - j0 < kProductTile ? cols - j0 : kProductTile;
      const int64_t at = r * cols + j0;
      const T* x = row.source(0) + at;
      const T* y = row.source(1) + at;
      const A sum = args.rows.count == 2
                        ? short_product_backward(grad + j0, weight, x, y, to(0, at), to(1, at), n)
                        : short_product_backward(grad + j0, weight, x, y, row.source(2) + at,
                                                 to(0, at), to(1, at), to(2, at), n);
      row_sum += sum;
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
        short_row_backward(args, row, b, sums);
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
