// Inner loops of attention_pool; see attention_pool.h. Included once per instruction set.
#include "lanes.h"
// which the next ones build on
#include "tile_kernels.h"
// and this on both
#include "row_kernels.h"

// Rows are worked on in groups: first the scores of all, then the softmax of all, many side by side
// in vectors, then the sums, for which the inputs are still in cache. One row after the other would
// wait for its dot products, its exponentials and its division each time.
constexpr int64_t kGroupScores = 64;
constexpr int64_t kGroupBytes = 64 * 1024;

template <typename T>
MMFAST_INLINE int64_t rows_per_group(const AttentionPoolArgs& args) {
  const int64_t by_scores = kGroupScores / args.heads;
  const int64_t row_bytes = (args.rows.count + 1) * args.rows.cols * int64_t{sizeof(T)};
  const int64_t by_bytes = kGroupBytes / (row_bytes > 0 ? row_bytes : 1);
  const int64_t rows = by_scores < by_bytes ? by_scores : by_bytes;
  return rows > 1 ? rows : 1;
}

// What a group's rows and heads score: a number per modality and pair of a row and a head, those of
// one modality side by side.
template <typename A>
struct Scores {
  Scores(int64_t count, int64_t pairs)
      : count(count),
        stride((pairs + kLanes<A> - 1) / kLanes<A> * kLanes<A>),
        data(new A[3 * count * stride]()) {
    for (int64_t i = 0; i < count * stride; ++i) {
      present(0)[i] = A(1);
    }
  }
  ~Scores() { delete[] data; }
  Scores(const Scores&) = delete;
  Scores& operator=(const Scores&) = delete;

  // The scores, which become the weights; their gradients, at first those of the weights; and 1
  // where the modality is present, else 0.
  A* weights(int64_t m) { return data + m * stride; }
  A* grads(int64_t m) { return data + (count + m) * stride; }
  A* present(int64_t m) { return data + (2 * count + m) * stride; }

  int64_t count;
  int64_t stride;
  A* data;
};

// Whether a row has few inputs that are all there.
template <typename T>
MMFAST_INLINE bool is_few(const Row<T>& row) {
  return row.args.count <= kFew && row.all_present();
}

// Where the features of one head begin in each of few inputs.
template <typename T>
struct FewInputs {
  FewInputs(const Row<T>& row, int64_t first) {
    for (int64_t m = 0; m < row.args.count; ++m) {
      from[m] = row.source(m) + first;
    }
  }
  const T* from[kFew];
};

// products[m * stride] = x . input m, for those that are present; `size` features from `first` on.
template <typename T, typename A>
MMFAST_INLINE void dot_inputs(const Row<T>& row, bool few, const T* x, int64_t first, int64_t size,
                              A* products, int64_t stride) {
  if (few) {
    const FewInputs<T> inputs(row, first);
    A totals[kFew];
    with_count(row.args.count,
               [&](auto count) MMFAST_LAMBDA { dots<count>(x, inputs.from, size, totals); });
    for (int64_t m = 0; m < row.args.count; ++m) {
      products[m * stride] = totals[m];
    }
    return;
  }
  for (int64_t m = 0; m < row.args.count; ++m) {
    products[m * stride] = row.present(m) ? dot_of(x, row.source(m) + first, size, A(0)) : A(0);
  }
}

// The scores of one row, which is the group's row `at`.
template <typename T, typename A>
MMFAST_INLINE void score_row(const AttentionPoolArgs& args, const Row<T>& row, int64_t at,
                             Scores<A>& scores, bool backward) {
  const int64_t size = args.rows.cols / args.heads;
  const bool few = is_few(row);
  for (int64_t h = 0; h < args.heads; ++h) {
    const int64_t pair = at * args.heads + h;
    const int64_t first = h * size;
    dot_inputs(row, few, row.source(args.query_source) + first, first, size,
               scores.weights(0) + pair, scores.stride);
    if (backward) {
      dot_inputs(row, few, row.source(args.grad_source) + first, first, size,
                 scores.grads(0) + pair, scores.stride);
    }
    if (args.rows.present < 0 && args.grad_weights_source < 0) {
      continue;
    }
    for (int64_t m = 0; m < scores.count; ++m) {
      const bool present = row.present(m);
      scores.present(m)[pair] = A(present);
      if (present && args.grad_weights_source >= 0) {
        scores.grads(m)[pair] += widen(row.source(args.grad_weights_source)[h * scores.count + m]);
      }
    }
  }
}

// The softmax of one vector of scores over the modalities that are present.
template <typename A>
MMFAST_INLINE void softmax_of(Scores<A>& scores, int64_t i, A scale) {
  using V = Lanes<A>;
  const V lowest = lanes(A(-3e38));
  V most = lowest;
  for (int64_t m = 0; m < scores.count; ++m) {
    const V score = load(scores.weights(m) + i, Whole{}) * scale;
    const V seen = load(scores.present(m) + i, Whole{}) > A(0) ? score : lowest;
    most = most > seen ? most : seen;
    store(scores.weights(m) + i, seen, Whole{});
  }
  V total{};
  for (int64_t m = 0; m < scores.count; ++m) {
    const V seen = load(scores.weights(m) + i, Whole{});
    const V share = exp_lanes(clamp(seen - most, -87, 0)) * load(scores.present(m) + i, Whole{});
    total += share;
    store(scores.weights(m) + i, share, Whole{});
  }
  const V none = total == A(0) ? lanes(A(1)) : total;
  for (int64_t m = 0; m < scores.count; ++m) {
    store(scores.weights(m) + i, load(scores.weights(m) + i, Whole{}) / none, Whole{});
  }
}

// From the gradients of the weights those of the scores, of one vector.
template <typename A>
MMFAST_INLINE void softmax_backward_of(Scores<A>& scores, int64_t i, A scale) {
  Lanes<A> mean{};
  for (int64_t m = 0; m < scores.count; ++m) {
    mean += load(scores.weights(m) + i, Whole{}) * load(scores.grads(m) + i, Whole{});
  }
  for (int64_t m = 0; m < scores.count; ++m) {
    const Lanes<A> grad = load(scores.grads(m) + i, Whole{}) - mean;
    store(scores.grads(m) + i, load(scores.weights(m) + i, Whole{}) * grad * scale, Whole{});
  }
}

// The weights of `rows` rows, from `row` on, which goes on to the row behind them; in backward, the
// gradients of their scores too.
template <typename T, typename A>
MMFAST_INLINE void attend(const AttentionPoolArgs& args, Row<T>& row, int64_t rows,
                          Scores<A>& scores, bool backward) {
  for (int64_t at = 0; at < rows; ++at, row.cursor.next()) {
    score_row(args, row, at, scores, backward);
  }
  for (int64_t i = 0; i < rows * args.heads; i += kLanes<A>) {
    softmax_of(scores, i, A(args.scale));
    if (backward) {
      softmax_backward_of(scores, i, A(args.scale));
    }
  }
}

// out = sum of the weighted inputs, for one row and head.
template <typename T, typename A>
MMFAST_INLINE void pool(const Row<T>& row, bool few, const A* weights, int64_t first, int64_t size,
                        T* out) {
  if (few) {
    const FewInputs<T> inputs(row, first);
    with_count(row.args.count, [&](auto count) MMFAST_LAMBDA {
      weigh<count, false>(out, inputs.from, weights, size);
    });
    return;
  }
  A tile[kTile];
  for (int64_t j = 0; j < size; j += kTile) {
    const int64_t n = size - j < kTile ? size - j : kTile;
    zero_tile(tile, n);
    for (int64_t m = 0; m < row.args.count; ++m) {
      if (row.present(m)) {
        add_scaled(tile, weights[m], row.source(m) + first + j, n);
      }
    }
    store_tile(out + j, tile, n);
  }
}

// Rows begin..end of the result.
template <typename T>
void attention_pool(const AttentionPoolArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t count = args.rows.count;
  const int64_t size = args.rows.cols / args.heads;
  const int64_t group = rows_per_group<T>(args);
  Scores<A> scores(count, (group < end - begin ? group : end - begin) * args.heads);
  A* weights = new A[count];
  Row<T> ahead(args.rows, begin);
  Row<T> row(args.rows, begin);
  for (int64_t first = begin; first < end; first += group) {
    const int64_t rows = end - first < group ? end - first : group;
    attend(args, ahead, rows, scores, false);
    for (int64_t at = 0; at < rows; ++at, row.cursor.next()) {
      const bool few = is_few(row);
      for (int64_t h = 0; h < args.heads; ++h) {
        for (int64_t m = 0; m < count; ++m) {
          weights[m] = scores.weights(m)[at * args.heads + h];
        }
        const int64_t r = (first + at) * args.heads + h;
        store_tile(static_cast<T*>(args.weights) + r * count, weights, count);
        pool(row, few, weights, h * size, size, static_cast<T*>(args.out) + r * size);
      }
    }
  }
  delete[] weights;
}

// Gradients of one row and head from the weights and those of the scores. `query_to` takes the
// query's, added to what is there or, with `add` false, instead of it.
template <typename T, typename A>
MMFAST_INLINE void attention_pool_head_backward(const AttentionPoolArgs& args, const Row<T>& row,
                                                bool few, int64_t r, int64_t h, const A* weights,
                                                const A* grads, A* query_to, bool add) {
  const int64_t cols = args.rows.cols;
  const int64_t size = cols / args.heads;
  const int64_t first = h * size;
  const T* both[] = {row.source(args.grad_source) + first, row.source(args.query_source) + first};
  for (int64_t m = 0; m < args.rows.count; ++m) {
    if (T* to = static_cast<T*>(args.grads[m])) {
      to += r * cols + first;
      if (row.present(m)) {
        const A factors[] = {weights[m], grads[m]};
        weigh<2, false>(to, both, factors, size);
      } else {
        zero_row(to, size);
      }
    }
  }
  if (query_to && few) {
    const FewInputs<T> inputs(row, first);
    with_count(args.rows.count, [&](auto count) MMFAST_LAMBDA {
      if (add) {
        weigh<count, true>(query_to + first, inputs.from, grads, size);
      } else {
        weigh<count, false>(query_to + first, inputs.from, grads, size);
      }
    });
  }
}

// The query's gradient of one row where modalities are many or absent, in a tile: two short sums
// err less than one long one.
template <typename T, typename A>
MMFAST_INLINE void query_backward(const Row<T>& row, const A* grads, int64_t first, int64_t size,
                                  A* query_to, bool add) {
  A tile[kTile];
  for (int64_t j = 0; j < size; j += kTile) {
    const int64_t n = size - j < kTile ? size - j : kTile;
    zero_tile(tile, n);
    for (int64_t m = 0; m < row.args.count; ++m) {
      if (row.present(m)) {
        add_scaled(tile, grads[m], row.source(m) + first + j, n);
      }
    }
    A* to = query_to + first + j;
    if (add) {
      add_tile(to, tile, n);
    } else {
      store_tile(to, tile, n);
    }
  }
}

// Chunks begin..end of the rows.
template <typename T>
void attention_pool_backward(const AttentionPoolArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const int64_t count = args.rows.count;
  const int64_t cols = args.rows.cols;
  const int64_t size = cols / args.heads;
  const int64_t group = rows_per_group<T>(args);
  Scores<A> scores(count, (group < kChunkRows ? group : kChunkRows) * args.heads);
  A* scratch = new A[2 * count + cols];
  A* grads = scratch + count;
  A* query_row = scratch + 2 * count;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t chunk_end = (chunk + 1) * kChunkRows;
    const int64_t last = chunk_end < args.rows.total ? chunk_end : args.rows.total;
    A* sums = args.sums ? static_cast<A*>(args.sums) + chunk * cols : nullptr;
    if (sums) {
      zero_tile(sums, cols);
    }
    if (chunk * kChunkRows >= last) {
      continue;  // an empty batch
    }
    A* query_to = args.grad_query ? query_row : sums;
    Row<T> ahead(args.rows, chunk * kChunkRows);
    Row<T> row(args.rows, chunk * kChunkRows);
    for (int64_t first = chunk * kChunkRows; first < last; first += group) {
      const int64_t rows = last - first < group ? last - first : group;
      attend(args, ahead, rows, scores, true);
      for (int64_t at = 0; at < rows; ++at, row.cursor.next()) {
        const bool few = is_few(row);
        for (int64_t h = 0; h < args.heads; ++h) {
          for (int64_t m = 0; m < count; ++m) {
            scratch[m] = scores.weights(m)[at * args.heads + h];
            grads[m] = scores.grads(m)[at * args.heads + h];
          }
          attention_pool_head_backward(args, row, few, first + at, h, scratch, grads, query_to,
                                       !args.grad_query);
          if (query_to && !few) {
            query_backward(row, grads, h * size, size, query_to, !args.grad_query);
          }
        }
        if (args.grad_query) {
          store_tile(static_cast<T*>(args.grad_query) + (first + at) * cols, query_row, cols);
        }
      }
    }
  }
  delete[] scratch;
}
