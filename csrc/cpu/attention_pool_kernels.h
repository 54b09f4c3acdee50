// Inner loops of attention_pool; see attention_pool.h. Included once per instruction set.
#include "tile_kernels.h"
// which the next one builds on
#include "row_kernels.h"

// Where the features of one head begin in each input, if those are few and all there.
template <typename T>
struct FewInputs {
  FewInputs(const AttentionPoolArgs& args, const Row<T>& row, int64_t first)
      : count(args.rows.count <= kFew && row.all_present() ? args.rows.count : 0) {
    for (int64_t m = 0; m < count; ++m) {
      from[m] = row.source(m) + first;
    }
  }
  explicit operator bool() const { return count > 0; }

  int64_t count;
  const T* from[kFew];
};

// sums[m] = x . input m, 0 where a modality is absent; `size` features of each input from `first`
// on. False if every modality is absent.
template <typename T, typename A>
MMFAST_INLINE bool dot_inputs(const AttentionPoolArgs& args, const Row<T>& row,
                              const FewInputs<T>& few, const T* x, int64_t first, int64_t size,
                              A* sums) {
  if (few) {
    dot_few(x, few.from, few.count, size, sums);
    return true;
  }
  bool any = false;
  for (int64_t m = 0; m < args.rows.count; ++m) {
    const bool present = row.present(m);
    sums[m] = present ? dot_of(x, row.source(m) + first, size, A(0)) : A(0);
    any = any || present;
  }
  return any;
}

// The attention weights of one row and head, 0 where a modality is absent.
template <typename T, typename A>
MMFAST_INLINE void attend(const AttentionPoolArgs& args, const Row<T>& row, const FewInputs<T>& few,
                          int64_t first, int64_t size, A* weights) {
  const T* query = row.source(args.query_source) + first;
  if (!dot_inputs(args, row, few, query, first, size, weights)) {
    return;
  }
  A most = 0;
  bool any = false;
  for (int64_t m = 0; m < args.rows.count; ++m) {
    if (row.present(m)) {
      weights[m] *= A(args.scale);
      most = any && most > weights[m] ? most : weights[m];
      any = true;
    }
  }
  A total = 0;
  for (int64_t m = 0; m < args.rows.count; ++m) {
    if (row.present(m)) {
      weights[m] = vexp(weights[m] - most);
      total += weights[m];
    }
  }
  for (int64_t m = 0; m < args.rows.count; ++m) {
    weights[m] /= total;
  }
}

// Rows begin..end of the result.
template <typename T>
void attention_pool(const AttentionPoolArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t count = args.rows.count;
  const int64_t size = args.rows.cols / args.heads;
  A tile[kTile];
  A inline_weights[32];
  A* weights = count <= 32 ? inline_weights : new A[count];
  Row<T> row(args.rows, begin);
  for (int64_t r = begin; r < end; ++r, row.cursor.next()) {
    for (int64_t h = 0; h < args.heads; ++h) {
      const FewInputs<T> few(args, row, h * size);
      attend(args, row, few, h * size, size, weights);
      store_tile(static_cast<T*>(args.weights) + (r * args.heads + h) * count, weights, count);
      if (few) {
        T* to = static_cast<T*>(args.out) + r * args.rows.cols + h * size;
        weigh_few(to, few.from, weights, count, size);
        continue;
      }
      for (int64_t j0 = h * size; j0 < (h + 1) * size; j0 += kTile) {
        const int64_t n = (h + 1) * size - j0 < kTile ? (h + 1) * size - j0 : kTile;
        zero_tile(tile, n);
        for (int64_t m = 0; m < count; ++m) {
          if (row.present(m)) {
            add_scaled(tile, weights[m], row.source(m) + j0, n);
          }
        }
        store_tile(static_cast<T*>(args.out) + r * args.rows.cols + j0, tile, n);
      }
    }
  }
  if (weights != inline_weights) {
    delete[] weights;
  }
}

// Gradients of one row and head; `grads` takes those of the scores, `query_row` adds up the
// query's.
template <typename T, typename A>
MMFAST_INLINE void attention_pool_head_backward(const AttentionPoolArgs& args, const Row<T>& row,
                                                int64_t r, int64_t h, A* weights, A* grads,
                                                A* query_row) {
  const int64_t count = args.rows.count;
  const int64_t cols = args.rows.cols;
  const int64_t size = cols / args.heads;
  const int64_t first = h * size;
  const T* grad = row.source(args.grad_source) + first;
  const T* query = row.source(args.query_source) + first;
  const FewInputs<T> few(args, row, first);
  attend(args, row, few, first, size, weights);
  dot_inputs(args, row, few, grad, first, size, grads);
  A mean = 0;
  for (int64_t m = 0; m < count; ++m) {
    if (row.present(m)) {
      if (args.grad_weights_source >= 0) {
        grads[m] += widen(row.source(args.grad_weights_source)[h * count + m]);
      }
      mean += weights[m] * grads[m];
    }
  }
  for (int64_t m = 0; m < count; ++m) {
    T* to = args.grads[m] ? static_cast<T*>(args.grads[m]) + r * cols + first : nullptr;
    if (!row.present(m)) {
      if (to) {
        zero_row(to, size);
      }
      continue;
    }
    const A weight = weights[m];
    const A score = weight * (grads[m] - mean) * A(args.scale);
    grads[m] = score;
    if (to) {
      const T* both[] = {grad, query};
      const A factors[] = {weight, score};
      weigh<2>(to, both, factors, size);
    }
    if (query_row && !few) {
      add_scaled(query_row + first, score, row.source(m) + first, size);
    }
  }
  if (query_row && few) {
    weigh_few(query_row + first, few.from, grads, count, size);
  }
}

// Chunks begin..end of the rows; `query_row` holds the query's gradient of one row. Where all rows
// share the query it is added to their sum afterwards: two short sums err less than one long one.
template <typename T>
void attention_pool_backward(const AttentionPoolArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t count = args.rows.count;
  const int64_t cols = args.rows.cols;
  A* scratch = new A[2 * count + cols];
  A* query_row = scratch + 2 * count;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kChunkRows;
    const int64_t last =
        first + kChunkRows < args.rows.total ? first + kChunkRows : args.rows.total;
    A* sums = args.sums ? static_cast<A*>(args.sums) + chunk * cols : nullptr;
    if (sums) {
      zero_tile(sums, cols);
    }
    if (first >= last) {
      continue;  // an empty batch
    }
    Row<T> row(args.rows, first);
    for (int64_t r = first; r < last; ++r, row.cursor.next()) {
      A* to = args.grad_query || sums ? query_row : nullptr;
      if (to) {
        zero_tile(to, cols);
      }
      for (int64_t h = 0; h < args.heads; ++h) {
        attention_pool_head_backward(args, row, r, h, scratch, scratch + count, to);
      }
      if (args.grad_query) {
        store_tile(static_cast<T*>(args.grad_query) + r * cols, query_row, cols);
      } else if (sums) {
        add_tile(sums, query_row, cols);
      }
    }
  }
  delete[] scratch;
}
