// Inner loops of gated_sum; see gated_sum.h. Included once per instruction set.
#include "lanes.h"
// which the next ones build on
#include "tile_kernels.h"
// and this on both
#include "row_kernels.h"

// Of each lane; T is what the result will be rounded to.
template <typename T, typename V>
MMFAST_INLINE Quotient<V> tanh_lanes(const V& x) {
  using A = accumulator_t<T>;
  A each[kLanes<A>], top[kLanes<A>], bottom[kLanes<A>];
  const V bounded = sizeof(T) == 2 ? clamp(x, -9.02, 9.02) : x;
  __builtin_memcpy(each, &bounded, sizeof(x));
  for (int64_t i = 0; i < kLanes<A>; ++i) {
    Quotient<A> t;
    if constexpr (sizeof(T) == 2) {
      t = tanh_quotient_16_bit(each[i]);
    } else {
      t = tanh_quotient(each[i]);
    }
    top[i] = t.top;
    bottom[i] = t.bottom;
  }
  Quotient<V> result;
  __builtin_memcpy(&result.top, top, sizeof(x));
  __builtin_memcpy(&result.bottom, bottom, sizeof(x));
  return result;
}

// Two values and one gate, both there: the unit of the paper, whose softmax is a sigmoid.
template <typename T>
MMFAST_INLINE bool is_pair(const GatedSumArgs& args, const Row<T>& row) {
  return args.rows.count == 2 && args.gates == 1 && row.all_present();
}

// 1 / sigmoid(gate) - 1. Bounded: what is multiplied with it below stays finite.
template <typename V>
MMFAST_INLINE V odds_against(const V& gate) {
  return exp_lanes(clamp(-gate, -45, 45));
}

template <typename T>
MMFAST_INLINE void gated_pair(const T* first, const T* second, const T* gate, T* to, int64_t n) {
  using A = accumulator_t<T>;
  for_lanes<A>(n, [&](int64_t j, auto part) MMFAST_LAMBDA {
    const Lanes<A> odds = odds_against(load(gate + j, part));
    const auto a = tanh_lanes<T>(load(first + j, part));
    const auto b = tanh_lanes<T>(load(second + j, part));
    const Lanes<A> sum = a.top * b.bottom + odds * (b.top * a.bottom);
    store(to + j, sum / ((odds + A(1)) * (a.bottom * b.bottom)), part);
  });
}

// Its gradients.
template <typename T>
MMFAST_INLINE void gated_pair_backward(const T* grad, const T* first, const T* second,
                                       const T* gate, T* to_first, T* to_second, T* to_gate,
                                       int64_t n) {
  using A = accumulator_t<T>;
  for_lanes<A>(n, [&](int64_t j, auto part) MMFAST_LAMBDA {
    const Lanes<A> odds = odds_against(load(gate + j, part));
    const auto a = tanh_lanes<T>(load(first + j, part));
    const auto b = tanh_lanes<T>(load(second + j, part));
    // One division: 1 / (xyz), times yz, is 1 / x.
    const Lanes<A> whole = odds + A(1);
    const Lanes<A> bottoms = a.bottom * b.bottom;
    const Lanes<A> all = A(1) / (whole * bottoms);
    const Lanes<A> share = all * bottoms;
    const Lanes<A> bent_a = a.top * (all * whole * b.bottom);
    const Lanes<A> bent_b = b.top * (all * whole * a.bottom);
    const Lanes<A> g = load(grad + j, part) * share;
    const Lanes<A> rest = g * odds;
    store(to_first + j, g * (A(1) - bent_a * bent_a), part);
    store(to_second + j, rest * (A(1) - bent_b * bent_b), part);
    store(to_gate + j, rest * share * (bent_a - bent_b), part);
  });
}

// What is there in a row: its values, and its gates, null for the last one where there is none.
template <typename T>
struct Gated {
  const T** values;
  const T** gates;
  int64_t count;
};

template <typename T>
MMFAST_INLINE void find_present(const GatedSumArgs& args, const Row<T>& row, Gated<T>& there) {
  there.count = 0;
  for (int64_t m = 0; m < args.rows.count; ++m) {
    if (row.present(m)) {
      there.values[there.count] = row.source(m);
      there.gates[there.count++] = m < args.gates ? row.source(args.rows.count + m) : nullptr;
    }
  }
}

// The largest gate of each lane, of at least one.
template <typename T, typename P>
MMFAST_INLINE Lanes<accumulator_t<T>> largest_gate(const Gated<T>& there, int64_t j, P part) {
  using V = Lanes<accumulator_t<T>>;
  const auto gate = [&](int64_t k) {
    return there.gates[k] ? load(there.gates[k] + j, part) : V{};
  };
  V most = gate(0);
  for (int64_t k = 1; k < there.count; ++k) {
    const V other = gate(k);
    most = other < most ? most : other;
  }
  return most;
}

template <typename T, typename P>
MMFAST_INLINE Lanes<accumulator_t<T>> odds_of(const Gated<T>& there, int64_t k, int64_t j, P part,
                                              const Lanes<accumulator_t<T>>& most) {
  using A = accumulator_t<T>;
  const Lanes<A> gate = there.gates[k] ? load(there.gates[k] + j, part) : Lanes<A>{};
  return exp_lanes(clamp(gate - most, -87, 0));  // e^-87 adds nothing to the largest, which is 1
}

template <typename T>
MMFAST_INLINE void gated_row(const Gated<T>& there, T* to, int64_t n) {
  using A = accumulator_t<T>;
  for_lanes<A>(n, [&](int64_t j, auto part) MMFAST_LAMBDA {
    const Lanes<A> most = largest_gate(there, j, part);
    Lanes<A> total{};
    Lanes<A> sum{};
    for (int64_t k = 0; k < there.count; ++k) {
      const Lanes<A> odds = odds_of(there, k, j, part, most);
      const auto bent = tanh_lanes<T>(load(there.values[k] + j, part));
      total += odds;
      sum += odds * (bent.top / bent.bottom);
    }
    store(to + j, sum / total, part);
  });
}

// Rows begin..end of the result.
template <typename T>
void gated_sum(const GatedSumArgs& args, int64_t begin, int64_t end) {
  const T** sources = new const T*[2 * args.rows.count];
  Gated<T> there{sources, sources + args.rows.count, 0};
  Row<T> row(args.rows, begin);
  for (int64_t r = begin; r < end; ++r, row.cursor.next()) {
    T* to = static_cast<T*>(args.out) + r * args.rows.cols;
    if (is_pair(args, row)) {
      gated_pair(row.source(0), row.source(1), row.source(2), to, args.rows.cols);
      continue;
    }
    find_present(args, row, there);
    if (there.count > 0) {
      gated_row(there, to, args.rows.cols);
    } else {
      zero_row(to, args.rows.cols);
    }
  }
  delete[] sources;
}

// Gradients of one row. `scratch` has room for two vectors of each modality.
template <typename T, typename A>
MMFAST_INLINE void gated_row_backward(const GatedSumArgs& args, const Row<T>& row, int64_t r,
                                      const Gated<T>& there, A* scratch) {
  const T* grad = row.source(args.grad_source);
  const auto target = [&](void* const* grads, int64_t m) {
    return grads[m] ? static_cast<T*>(grads[m]) + r * args.rows.cols : nullptr;
  };
  const auto shares = [&](int64_t k) { return scratch + 2 * k * kLanes<A>; };
  const auto bents = [&](int64_t k) { return shares(k) + kLanes<A>; };
  const int64_t n = there.count > 0 ? args.rows.cols : 0;
  for_lanes<A>(n, [&](int64_t j, auto part) MMFAST_LAMBDA {
    const Lanes<A> most = largest_gate(there, j, part);
    Lanes<A> total{};
    Lanes<A> mean{};
    for (int64_t k = 0; k < there.count; ++k) {
      const Lanes<A> odds = odds_of(there, k, j, part, most);
      const auto quotient = tanh_lanes<T>(load(there.values[k] + j, part));
      const Lanes<A> bent = quotient.top / quotient.bottom;
      total += odds;
      mean += odds * bent;
      store(shares(k), odds, Whole{});
      store(bents(k), bent, Whole{});
    }
    mean /= total;
    const Lanes<A> g = load(grad + j, part) / total;
    for (int64_t m = 0, k = 0; m < args.rows.count; ++m) {
      if (!row.present(m)) {
        continue;
      }
      const Lanes<A> share = g * load(shares(k), Whole{});
      const Lanes<A> bent = load(bents(k++), Whole{});
      if (T* to = target(args.grad_values, m)) {
        store(to + j, share * (A(1) - bent * bent), part);
      }
      if (T* to = m < args.gates ? target(args.grad_gates, m) : nullptr) {
        store(to + j, share * (bent - mean), part);
      }
    }
  });
  for (int64_t m = 0; m < args.rows.count; ++m) {
    if (!row.present(m)) {
      if (T* to = target(args.grad_values, m)) {
        zero_row(to, args.rows.cols);
      }
      if (T* to = m < args.gates ? target(args.grad_gates, m) : nullptr) {
        zero_row(to, args.rows.cols);
      }
    }
  }
}

// Rows begin..end.
template <typename T>
void gated_sum_backward(const GatedSumArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t count = args.rows.count;
  const int64_t cols = args.rows.cols;
  const T** sources = new const T*[2 * count];
  A* scratch = new A[2 * count * kLanes<A>];
  Gated<T> there{sources, sources + count, 0};
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
    find_present(args, row, there);
    gated_row_backward(args, row, r, there, scratch);
  }
  delete[] scratch;
  delete[] sources;
}
