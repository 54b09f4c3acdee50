// Inner loops of weighted_sum; see weighted_sum.h. Included once per instruction set.
#include "lanes.h"
// which the next ones build on
#include "tile_kernels.h"
// and this on both
#include "row_kernels.h"

// The weight of modality m in a row, where it is one number.
template <typename T>
MMFAST_INLINE accumulator_t<T> weight_of(const WeightedSumArgs& args, const Row<T>& row,
                                         int64_t m) {
  return args.per == WeightsPer::row
             ? widen(row.source(args.weights_source)[m * args.weights_stride])
             : widen(static_cast<const T*>(args.weights)[m]);
}

// tile = sum of the weighted rows, columns j0 .. j0 + n; `total` = sum of the weights, per column
// or, in total[0], for all.
template <typename T, typename A>
MMFAST_INLINE bool sum_weighted(const WeightedSumArgs& args, const Row<T>& row, int64_t j0,
                                int64_t n, A* tile, A* total) {
  const bool by_feature = args.per == WeightsPer::feature;
  bool any = false;
  zero_tile(tile, n);
  zero_tile(total, by_feature ? n : 1);
  for (int64_t m = 0; m < args.rows.count; ++m) {
    if (!row.present(m)) {
      continue;
    }
    any = true;
    const T* x = row.source(m) + j0;
    if (by_feature) {
      const T* w = static_cast<const T*>(args.weights) + m * args.rows.cols + j0;
      for (int64_t j = 0; j < n; ++j) {
        tile[j] += widen(w[j]) * widen(x[j]);
      }
      if (args.normalize) {
        add_tile(total, w, n);
      }
    } else {
      const A w = weight_of(args, row, m);
      add_scaled(tile, w, x, n);
      total[0] += w;
    }
  }
  if (any && args.normalize) {
    for (int64_t j = 0; j < n; ++j) {
      tile[j] /= total[by_feature ? j : 0];
    }
  }
  return any;
}

// A whole row where few modalities are all there and each has one weight; false where that is not
// so.
template <typename T>
MMFAST_INLINE bool weighted_sum_few(const WeightedSumArgs& args, const Row<T>& row, T* to) {
  const int64_t count = args.rows.count;
  if (count > kFew || args.per == WeightsPer::feature || args.normalize || !row.all_present()) {
    return false;
  }
  const T* from[kFew];
  accumulator_t<T> weights[kFew];
  for (int64_t m = 0; m < count; ++m) {
    from[m] = row.source(m);
    weights[m] = weight_of(args, row, m);
  }
  const int64_t cols = args.rows.cols;
  with_count(count, [&](auto few) MMFAST_LAMBDA {
    if (args.past_caches && cols % kLanes<accumulator_t<T>> == 0) {
      weigh_past_caches<few>(to, from, weights, cols);
    } else {
      weigh<few, false>(to, from, weights, cols);
    }
  });
  return true;
}

// Rows begin..end of the result.
template <typename T>
void weighted_sum(const WeightedSumArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  A tile[kTile];
  A total[kTile];
  Row<T> row(args.rows, begin);
  for (int64_t r = begin; r < end; ++r, row.cursor.next()) {
    if (weighted_sum_few(args, row, static_cast<T*>(args.out) + r * args.rows.cols)) {
      continue;
    }
    for (int64_t j0 = 0; j0 < args.rows.cols; j0 += kTile) {
      const int64_t n = args.rows.cols - j0 < kTile ? args.rows.cols - j0 : kTile;
      sum_weighted(args, row, j0, n, tile, total);
      store_tile(static_cast<T*>(args.out) + r * args.rows.cols + j0, tile, n);
    }
  }
  if (args.past_caches) {
    finish_streams();
  }
}

// to = weight * grad and the result grad . x, in one pass; the sum is that of dot_of.
template <typename T, typename A>
MMFAST_INLINE A weigh_and_dot(T* to, A weight, const T* grad, const T* x, int64_t n) {
  A total;
  sum_by_blocks<1>(n, &total, [&](int64_t begin, int64_t end, Lanes<A>* sum) MMFAST_LAMBDA {
    for_lanes<A>(end - begin, [&](int64_t j, auto part) MMFAST_LAMBDA {
      const Lanes<A> g = load(grad + begin + j, part);
      *sum += g * load(x + begin + j, part);
      store(to + begin + j, weight * g, part);
    });
  });
  return total;
}

// Gradients of one row where each modality's weight is one number; `weight_sums` takes what is
// summed over rows.
template <typename T, typename A>
MMFAST_INLINE void weighted_sum_row_backward(const WeightedSumArgs& args, const Row<T>& row,
                                             int64_t r, A* dots, A* weight_sums) {
  const int64_t cols = args.rows.cols;
  const T* grad = row.source(args.grad_source);
  const bool at_once = args.weights_wanted && !args.normalize;  // no gradient needs all weights
  A total = 0;
  A mean = 0;
  for (int64_t m = 0; m < args.rows.count; ++m) {
    dots[m] = 0;
    if (row.present(m)) {
      const A w = weight_of(args, row, m);
      if (at_once && args.grads[m]) {
        T* to = static_cast<T*>(args.grads[m]) + r * cols;
        dots[m] = weigh_and_dot(to, w, grad, row.source(m), cols);
      } else if (args.weights_wanted) {
        dots[m] = dot_of(grad, row.source(m), cols, A(0));
      }
      total += w;
      mean += w * dots[m];
    }
  }
  const A scale = args.normalize ? A(1) / total : A(1);
  mean = args.normalize ? mean * scale : A(0);  // not times 0: an infinite one would spread
  for (int64_t m = 0; m < args.rows.count; ++m) {
    const bool present = row.present(m);
    if (args.grads[m] && !(at_once && present)) {
      T* to = static_cast<T*>(args.grads[m]) + r * cols;
      if (present) {
        const A w = weight_of(args, row, m) * scale;
        for (int64_t j = 0; j < cols; ++j) {
          to[j] = narrow<T>(w * widen(grad[j]));
        }
      } else {
        zero_row(to, cols);
      }
    }
    const A weight_grad = present ? (dots[m] - mean) * scale : A(0);
    if (args.grad_weights) {
      static_cast<T*>(args.grad_weights)[r * args.rows.count + m] = narrow<T>(weight_grad);
    } else if (weight_sums) {
      weight_sums[m] += weight_grad;
    }
  }
}

// The same where every feature has weights of its own.
template <typename T, typename A>
MMFAST_INLINE void weighted_sum_feature_backward(const WeightedSumArgs& args, const Row<T>& row,
                                                 int64_t r, A* weight_sums) {
  A tile[kTile];
  A total[kTile];
  const int64_t cols = args.rows.cols;
  for (int64_t j0 = 0; j0 < cols; j0 += kTile) {
    const int64_t n = cols - j0 < kTile ? cols - j0 : kTile;
    const T* grad = row.source(args.grad_source) + j0;
    if (args.normalize) {
      sum_weighted(args, row, j0, n, tile, total);
      for (int64_t j = 0; j < n; ++j) {
        total[j] = A(1) / total[j];
      }
    } else {
      for (int64_t j = 0; j < n; ++j) {
        tile[j] = 0;
        total[j] = 1;
      }
    }
    for (int64_t m = 0; m < args.rows.count; ++m) {
      const bool present = row.present(m);
      T* to = args.grads[m] ? static_cast<T*>(args.grads[m]) + r * cols + j0 : nullptr;
      if (!present) {
        if (to) {
          zero_row(to, n);
        }
        continue;
      }
      const T* w = static_cast<const T*>(args.weights) + m * cols + j0;
      if (to) {
        for (int64_t j = 0; j < n; ++j) {
          to[j] = narrow<T>(widen(w[j]) * total[j] * widen(grad[j]));
        }
      }
      if (weight_sums) {
        A* sums = weight_sums + m * cols + j0;
        const T* x = row.source(m) + j0;
        for (int64_t j = 0; j < n; ++j) {
          sums[j] += widen(grad[j]) * (widen(x[j]) - tile[j]) * total[j];
        }
      }
    }
  }
}

// Chunks begin..end of the rows.
template <typename T>
void weighted_sum_backward(const WeightedSumArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t count = args.rows.count;
  const int64_t size = args.per == WeightsPer::feature ? count * args.rows.cols : count;
  A inline_dots[32];
  A* dots = count <= 32 ? inline_dots : new A[count];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kChunkRows;
    const int64_t last =
        first + kChunkRows < args.rows.total ? first + kChunkRows : args.rows.total;
    A* sums = args.sums ? static_cast<A*>(args.sums) + chunk * size : nullptr;
    if (sums) {
      zero_tile(sums, size);
    }
    if (first >= last) {
      continue;  // an empty batch
    }
    Row<T> row(args.rows, first);
    for (int64_t r = first; r < last; ++r, row.cursor.next()) {
      if (args.per == WeightsPer::feature) {
        weighted_sum_feature_backward(args, row, r, sums);
      } else {
        weighted_sum_row_backward(args, row, r, dots, sums);
      }
    }
  }
  if (dots != inline_dots) {
    delete[] dots;
  }
}
