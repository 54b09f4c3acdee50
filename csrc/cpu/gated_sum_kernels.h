// Inner loops of gated_sum; see gated_sum.h. Included once per instruction set.
#include "tile_kernels.h"
// which the next one builds on
#include "row_kernels.h"

constexpr int64_t kGateTile = 128;  // of every modality, so that all stay in cache

// For n features from j0 on: shares[m] = exp(gate_m - most) of what is present, and the sum of
// them. False if every modality is absent.
template <typename T, typename A>
MMFAST_INLINE bool gate_shares(const GatedSumArgs& args, const Row<T>& row, int64_t j0, int64_t n,
                               A* __restrict shares, A* __restrict total) {
  const int64_t count = args.rows.count;
  A most[kGateTile];
  bool any = false;
  for (int64_t m = 0; m < count; ++m) {
    if (!row.present(m)) {
      continue;
    }
    A* share = shares + m * kGateTile;
    if (m < args.gates) {
      load_tile(share, row.source(count + m) + j0, n);
    } else {
      zero_tile(share, n);
    }
    if (any) {
      for (int64_t j = 0; j < n; ++j) {
        most[j] = share[j] < most[j] ? most[j] : share[j];
      }
    } else {
      for (int64_t j = 0; j < n; ++j) {
        most[j] = share[j];
      }
    }
    any = true;
  }
  zero_tile(total, n);
  for (int64_t m = 0; m < count; ++m) {
    if (row.present(m)) {
      A* share = shares + m * kGateTile;
      for (int64_t j = 0; j < n; ++j) {
        share[j] = vexp(share[j] - most[j]);
        total[j] += share[j];
      }
    }
  }
  return any;
}

// Two values and one gate, both there: the unit of the paper, whose softmax is a sigmoid.
template <typename T>
MMFAST_INLINE bool is_pair(const GatedSumArgs& args, const Row<T>& row) {
  return args.rows.count == 2 && args.gates == 1 && row.all_present();
}

// 1 / sigmoid(gate) - 1. Bounded: what is multiplied with it below stays finite.
template <typename A>
MMFAST_INLINE A odds_against(A gate) {
  gate = gate > A(45) ? A(45) : gate;
  return vexp_bounded(gate < A(-45) ? A(45) : -gate);
}

template <typename T>
MMFAST_INLINE void gated_pair(const T* __restrict first, const T* __restrict second,
                              const T* __restrict gate, T* __restrict to, int64_t n) {
  using A = accumulator_t<T>;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const A odds = odds_against<A>(widen(gate[j]));
    const Pair<A> bent = vtanh(A(widen(first[j])), A(widen(second[j])));
    to[j] = narrow<T>((bent.first + odds * bent.second) / (A(1) + odds));
  }
}

// Its gradients.
template <typename T>
MMFAST_INLINE void gated_pair_backward(const T* __restrict grad, const T* __restrict first,
                                       const T* __restrict second, const T* __restrict gate,
                                       T* __restrict to_first, T* __restrict to_second,
                                       T* __restrict to_gate, int64_t n) {
  using A = accumulator_t<T>;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const A odds = odds_against<A>(widen(gate[j]));
    const A share = A(1) / (A(1) + odds);
    const A rest = odds * share;
    const auto [a, b] = vtanh(A(widen(first[j])), A(widen(second[j])));
    const A g = widen(grad[j]);
    to_first[j] = narrow<T>(g * share * (A(1) - a * a));
    to_second[j] = narrow<T>(g * rest * (A(1) - b * b));
    to_gate[j] = narrow<T>(g * share * rest * (a - b));
  }
}

// Rows begin..end of the result.
template <typename T>
void gated_sum(const GatedSumArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  A* shares = new A[args.rows.count * kGateTile];
  A total[kGateTile];
  A tile[kGateTile];
  Row<T> row(args.rows, begin);
  for (int64_t r = begin; r < end; ++r, row.cursor.next()) {
    if (is_pair(args, row)) {
      gated_pair(row.source(0), row.source(1), row.source(2),
                 static_cast<T*>(args.out) + r * args.rows.cols, args.rows.cols);
      continue;
    }
    for (int64_t j0 = 0; j0 < args.rows.cols; j0 += kGateTile) {
      const int64_t n = args.rows.cols - j0 < kGateTile ? args.rows.cols - j0 : kGateTile;
      zero_tile(tile, n);
      if (gate_shares(args, row, j0, n, shares, total)) {
        for (int64_t m = 0; m < args.rows.count; ++m) {
          if (row.present(m)) {
            const A* share = shares + m * kGateTile;
            const T* value = row.source(m) + j0;
            for (int64_t j = 0; j < n; ++j) {
              tile[j] += share[j] * vtanh(widen(value[j]));
            }
          }
        }
        for (int64_t j = 0; j < n; ++j) {
          tile[j] /= total[j];
        }
      }
      store_tile(static_cast<T*>(args.out) + r * args.rows.cols + j0, tile, n);
    }
  }
  delete[] shares;
}

// Rows begin..end.
template <typename T>
void gated_sum_backward(const GatedSumArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t count = args.rows.count;
  const int64_t cols = args.rows.cols;
  A* shares = new A[2 * count * kGateTile];
  A* bent = shares + count * kGateTile;  // tanh of the values
  A total[kGateTile];
  A mean[kGateTile];
  A grad[kGateTile];
  const bool all_wanted = count == 2 && args.gates == 1 && args.grad_values[0] &&
                          args.grad_values[1] && args.grad_gates[0];
  Row<T> row(args.rows, begin);
  for (int64_t r = begin; r < end; ++r, row.cursor.next()) {
    if (all_wanted && is_pair(args, row)) {
      gated_pair_backward(row.source(args.grad_source), row.source(0), row.source(1), row.source(2),
                          static_cast<T*>(args.grad_values[0]) + r * cols,
                          static_cast<T*>(args.grad_values[1]) + r * cols,
                          static_cast<T*>(args.grad_gates[0]) + r * cols, cols);
      continue;
    }
    for (int64_t j0 = 0; j0 < cols; j0 += kGateTile) {
      const int64_t n = cols - j0 < kGateTile ? cols - j0 : kGateTile;
      load_tile(grad, row.source(args.grad_source) + j0, n);
      gate_shares(args, row, j0, n, shares, total);
      zero_tile(mean, n);
      for (int64_t m = 0; m < count; ++m) {
        if (row.present(m)) {
          A* share = shares + m * kGateTile;
          A* t = bent + m * kGateTile;
          const T* value = row.source(m) + j0;
          for (int64_t j = 0; j < n; ++j) {
            share[j] /= total[j];
            t[j] = vtanh(widen(value[j]));
            mean[j] += share[j] * t[j];
          }
        }
      }
      for (int64_t m = 0; m < count; ++m) {
        const int64_t at = r * cols + j0;
        T* to_value = args.grad_values[m] ? static_cast<T*>(args.grad_values[m]) + at : nullptr;
        T* to_gate = m < args.gates && args.grad_gates[m] ? static_cast<T*>(args.grad_gates[m]) + at
                                                          : nullptr;
        const bool present = row.present(m);
        const A* share = shares + m * kGateTile;
        const A* t = bent + m * kGateTile;
        if (to_value && present) {
          for (int64_t j = 0; j < n; ++j) {
            to_value[j] = narrow<T>(grad[j] * share[j] * (A(1) - t[j] * t[j]));
          }
        } else if (to_value) {
          zero_row(to_value, n);
        }
        if (to_gate && present) {
          for (int64_t j = 0; j < n; ++j) {
            to_gate[j] = narrow<T>(grad[j] * share[j] * (t[j] - mean[j]));
          }
        } else if (to_gate) {
          zero_row(to_gate, n);
        }
      }
    }
  }
  delete[] shares;
}
