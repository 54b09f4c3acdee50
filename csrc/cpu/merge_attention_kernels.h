// Inner loop of merge_attention. Included once per instruction set by cpu/foreach_isa.h, inside
// namespace mmfast, after every header has been read.

#include "tile_kernels.h"

// The logarithm of the sum of exp over a row's sources. weights[s] becomes the share of source s.
template <typename A>
A merge_lses(const MergeAttentionArgs& args, const RowCursor& cursor, A* weights) {
  A top = -A(INFINITY);
  for (int64_t s = 0; s < args.count; ++s) {
    const A lse = static_cast<const A*>(args.lses[s])[cursor.at(args.count + s)];
    weights[s] = lse;
    top = lse > top || lse != lse ? lse : top;  // NaN, once met, stays
  }
  if (top == -A(INFINITY)) {
    for (int64_t s = 0; s < args.count; ++s) {
      weights[s] = A(0);
    }
    return top;
  }
  A total = 0;
  for (int64_t s = 0; s < args.count; ++s) {
    weights[s] = weights[s] == -A(INFINITY) ? A(0) : vexp(weights[s] - top);
    total += weights[s];
  }
  for (int64_t s = 0; s < args.count; ++s) {
    weights[s] /= total;
  }
  return top + std::log(total);
}

// Rows begin..end; `weights` has room for a number per source.
template <typename T>
void merge_rows(const MergeAttentionArgs& args, void* weights, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  A tile[kTile];
  A* share = static_cast<A*>(weights);
  RowCursor cursor(args.rows, begin);
  for (int64_t m = begin; m < end; ++m, cursor.next()) {
    static_cast<A*>(args.lse)[m] = merge_lses(args, cursor, share);
    T* out = static_cast<T*>(args.out) + m * args.cols;
    for (int64_t j0 = 0; j0 < args.cols; j0 += kTile) {
      const int64_t n = args.cols - j0 < kTile ? args.cols - j0 : kTile;
      for (int64_t j = 0; j < n; ++j) {
        tile[j] = A(0);
      }
      for (int64_t s = 0; s < args.count; ++s) {
        const A w = share[s];
        if (w == A(0)) {
          continue;  // whatever the row holds
        }
        const T* x = static_cast<const T*>(args.outputs[s]) + cursor.at(s) + j0;
        for (int64_t j = 0; j < n; ++j) {
          tile[j] += w * widen(x[j]);
        }
      }
      store_tile(out + j0, tile, n);
    }
  }
}
