// Inner loops of concat_linear. Included once per instruction set by cpu/foreach_isa.h, inside
// namespace mmfast, after every header has been read: what it calls of them was compiled for the
// baseline.

#include "tile_kernels.h"

template <typename T, typename A>
void load_tile_strided(A* to, const T* from, int64_t stride, int64_t n) {
  if (stride == 1) {
    load_tile(to, from, n);
  } else {
    for (int64_t j = 0; j < n; ++j) {
      to[j] = widen(from[j * stride]);
    }
  }
}

template <Activation act, typename A>
void activate_tile(A* x, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    x[j] = activate<act>(x[j]);
  }
}

template <Activation act, typename A>
void activate_backward_tile(A* g, const A* saved, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    g[j] = activate_backward<act>(g[j], saved[j]);
  }
}

#define MMFAST_EACH_ACTIVATION(activation, call, ...) \
  switch (activation) {                               \
    case Activation::relu:                            \
      call<Activation::relu>(__VA_ARGS__);            \
      break;                                          \
    case Activation::gelu:                            \
      call<Activation::gelu>(__VA_ARGS__);            \
      break;                                          \
    case Activation::gelu_tanh:                       \
      call<Activation::gelu_tanh>(__VA_ARGS__);       \
      break;                                          \
    case Activation::silu:                            \
      call<Activation::silu>(__VA_ARGS__);            \
      break;                                          \
    case Activation::tanh:                            \
      call<Activation::tanh>(__VA_ARGS__);            \
      break;                                          \
    case Activation::sigmoid:                         \
      call<Activation::sigmoid>(__VA_ARGS__);         \
      break;                                          \
    default:                                          \
      break;                                          \
  }

// Rows begin..end of x in the accumulator's type.
template <typename T>
void widen_rows(const WidenArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  for (int64_t m = begin; m < end; ++m) {
    load_tile(static_cast<A*>(args.out) + m * args.cols,
              static_cast<const T*>(args.x) + m * args.row_stride, args.cols);
  }
}

// Rows begin..end of x, rounded.
template <typename T>
void narrow_rows(const NarrowArgs& args, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    store_tile(static_cast<T*>(args.out) + m * args.out_stride,
               static_cast<const accumulator_t<T>*>(args.x) + m * args.cols, args.cols);
  }
}

// out[m] = act(out[m] + bias + sum of the addends' rows), rows begin..end; see FinishArgs.
template <typename T>
void finish(const FinishArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  A tile[kTile];
  T* out = static_cast<T*>(args.out);
  T* pre = static_cast<T*>(args.preactivation);
  const T* bias = static_cast<const T*>(args.bias);
  RowCursor cursor(args.addend_rows, begin);
  for (int64_t m = begin; m < end; ++m, cursor.next()) {
    for (int64_t j0 = 0; j0 < args.cols; j0 += kTile) {
      const int64_t n = args.cols - j0 < kTile ? args.cols - j0 : kTile;
      T* row = out + m * args.cols + j0;
      if (args.has_product) {
        load_tile(tile, row, n);
        if (bias) {
          add_tile(tile, bias + j0, n);
        }
      } else if (bias) {
        load_tile(tile, bias + j0, n);
      } else {
        for (int64_t j = 0; j < n; ++j) {
          tile[j] = A(0);
        }
      }
      for (int64_t a = 0; a < args.addend_rows.sources; ++a) {
        const A* addend = static_cast<const A*>(args.addends[a]);
        add_tile(tile, addend + cursor.at(a) * args.cols + j0, n);
      }
      if (pre) {
        store_tile(pre + m * args.cols + j0, tile, n);
      }
      MMFAST_EACH_ACTIVATION(args.activation, activate_tile, tile, n)
      store_tile(row, tile, n);
    }
  }
}

// out[m] = grad[m] * act'(saved[m]), rows begin..end, grad with any strides.
template <typename T>
void activation_backward(const ActivationBackwardArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  A tile[kTile];
  A saved_tile[kTile];
  T* out = static_cast<T*>(args.out);
  const T* grad = static_cast<const T*>(args.grad);
  const T* saved = static_cast<const T*>(args.saved);
  RowCursor cursor(args.grad_rows, begin);
  for (int64_t m = begin; m < end; ++m, cursor.next()) {
    for (int64_t j0 = 0; j0 < args.cols; j0 += kTile) {
      const int64_t n = args.cols - j0 < kTile ? args.cols - j0 : kTile;
      const int64_t at = m * args.cols + j0;
      load_tile_strided(tile, grad + cursor.at(0) + j0 * args.grad_col_stride, args.grad_col_stride,
                        n);
      if (saved) {
        load_tile(saved_tile, saved + at, n);
        MMFAST_EACH_ACTIVATION(args.activation, activate_backward_tile, tile, saved_tile, n)
      }
      store_tile(out + at, tile, n);
    }
  }
}

// Sums go out in the element type, or, `wide`, as they are.
template <typename T, typename A>
void store_sums(void* out, int64_t at, const A* sums, int64_t n, bool wide) {
  if (wide) {
    store_tile(static_cast<A*>(out) + at, sums, n);
  } else {
    store_tile(static_cast<T*>(out) + at, sums, n);
  }
}

// Pairwise sum of `count` rows of a tile of columns: the error grows with log2(count), and the
// order of additions depends on the count alone.
template <typename T, typename A>
void sum_rows_pairwise(const SumRowsArgs& args, int64_t base, int64_t first, int64_t count,
                       int64_t j0, int64_t n, A* total) {
  if (count <= 16) {
    for (int64_t j = 0; j < n; ++j) {
      total[j] = A(0);
    }
    const T* x = static_cast<const T*>(args.x) + j0;
    RowCursor cursor(args.summed, first);
    for (int64_t l = 0; l < count; ++l, cursor.next()) {
      add_tile(total, x + (base + cursor.at(0)) * args.row_stride, n);
    }
    return;
  }
  A right[kTile];
  const int64_t half = count / 2;
  sum_rows_pairwise<T>(args, base, first, half, j0, n, total);
  sum_rows_pairwise<T>(args, base, first + half, count - half, j0, n, right);
  for (int64_t j = 0; j < n; ++j) {
    total[j] += right[j];
  }
}

// One unit of work of sum_rows: a kept row and a chunk of the rows to be summed into it.
template <typename T>
void sum_rows(const SumRowsArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  A tile[kTile];
  A* partial = static_cast<A*>(args.partial);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t kept = unit / args.chunks;
    const int64_t chunk = unit % args.chunks;
    const int64_t first = args.count * chunk / args.chunks;
    const int64_t last = args.count * (chunk + 1) / args.chunks;
    const RowCursor cursor(args.kept, kept);
    for (int64_t j0 = 0; j0 < args.cols; j0 += kTile) {
      const int64_t n = args.cols - j0 < kTile ? args.cols - j0 : kTile;
      sum_rows_pairwise<T>(args, cursor.at(0), first, last - first, j0, n, tile);
      A* to = partial + unit * args.cols + j0;
      for (int64_t j = 0; j < n; ++j) {
        to[j] = tile[j];
      }
    }
  }
}

// Adds up the chunks of each kept row, in order.
template <typename T>
void sum_chunks(const SumRowsArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  A* partial = static_cast<A*>(args.partial);
  for (int64_t kept = begin; kept < end; ++kept) {
    A* total = partial + kept * args.chunks * args.cols;
    for (int64_t width = 1; width < args.chunks; width *= 2) {
      for (int64_t c = 0; c + width < args.chunks; c += 2 * width) {
        const A* other = total + (c + width) * args.cols;
        A* to = total + c * args.cols;
        for (int64_t j = 0; j < args.cols; ++j) {
          to[j] += other[j];
        }
      }
    }
    store_sums<T>(args.out, kept * args.cols, total, args.cols, args.wide);
  }
}

constexpr int64_t kRowsAhead = 8;  // the rows of a list lie anywhere: they are asked for early

template <typename T, typename A>
void sum_listed_pairwise(const SumSegmentsArgs& args, int64_t first, int64_t count, int64_t j0,
                         int64_t n, A* total) {
  if (count <= 16) {
    for (int64_t j = 0; j < n; ++j) {
      total[j] = A(0);
    }
    const T* x = static_cast<const T*>(args.x) + j0;
    for (int64_t l = first; l < first + count; ++l) {
      if (l + kRowsAhead < args.entries) {
        const char* next =
            reinterpret_cast<const char*>(x + args.order[l + kRowsAhead] * args.row_stride);
        for (int64_t byte = 0; byte < n * static_cast<int64_t>(sizeof(T)); byte += 64) {
          __builtin_prefetch(next + byte);
        }
      }
      add_tile(total, x + args.order[l] * args.row_stride, n);
    }
    return;
  }
  A right[kTile];
  const int64_t half = count / 2;
  sum_listed_pairwise<T>(args, first, half, j0, n, total);
  sum_listed_pairwise<T>(args, first + half, count - half, j0, n, right);
  for (int64_t j = 0; j < n; ++j) {
    total[j] += right[j];
  }
}

// Adds up the rows of segments begin..end, each in the order listed.
template <typename T>
void sum_segments(const SumSegmentsArgs& args, int64_t begin, int64_t end) {
  accumulator_t<T> tile[kTile];
  for (int64_t s = begin; s < end; ++s) {
    for (int64_t j0 = 0; j0 < args.cols; j0 += kTile) {
      const int64_t n = args.cols - j0 < kTile ? args.cols - j0 : kTile;
      sum_listed_pairwise<T>(args, args.first[s], args.first[s + 1] - args.first[s], j0, n, tile);
      store_sums<T>(args.out, s * args.cols + j0, tile, n, args.wide);
    }
  }
}

// The sum of products of x and four rows of w, each `n` long.
template <typename T, typename A>
void dot4(const A* __restrict x, const T* __restrict w, int64_t stride, int64_t n, A* result) {
  A s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t k = 0; k < n; ++k) {
    s0 += x[k] * widen(w[k]);
    s1 += x[k] * widen(w[k + stride]);
    s2 += x[k] * widen(w[k + 2 * stride]);
    s3 += x[k] * widen(w[k + 3 * stride]);
  }
  result[0] = s0;
  result[1] = s1;
  result[2] = s2;
  result[3] = s3;
}

template <typename T, typename A>
A dot(const A* __restrict x, const T* __restrict w, int64_t n) {
  A s = 0;
#pragma omp simd reduction(+ : s)
  for (int64_t k = 0; k < n; ++k) {
    s += x[k] * widen(w[k]);
  }
  return s;
}

// Gathers row m of the (never built) concatenation into `row`.
template <typename T, typename A>
void gather_row(const TinyArgs& args, const RowCursor& cursor, A* row) {
  for (int64_t i = 0; i < args.rows.sources; ++i) {
    const TinySource& source = args.sources[i];
    load_tile(row + source.offset,
              static_cast<const T*>(source.data) + cursor.at(i) * source.row_stride, source.width);
  }
}

// Every row of the concatenation, widened: for problems of few rows.
template <typename T>
void gather_rows(const TinyArgs& args) {
  RowCursor cursor(args.rows, 0);
  for (int64_t m = 0; m < args.count; ++m, cursor.next()) {
    gather_row<T>(args, cursor, static_cast<accumulator_t<T>*>(args.scratch) + m * args.width);
  }
}

// Columns begin..end of the result from gathered rows, a dot product each: for problems so small,
// or of so few rows, that packing or a library call costs more than the arithmetic. A few rows of
// the weight at a time meet all rows, so that the weight is read from memory once.
template <typename T>
void dot_rows(const TinyArgs& args, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  constexpr int64_t kColumns = 16;
  A z[kColumns];
  const A* rows = static_cast<const A*>(args.scratch);
  const T* weight = static_cast<const T*>(args.weight);
  for (int64_t j0 = begin; j0 < end; j0 += kColumns) {
    const int64_t n = end - j0 < kColumns ? end - j0 : kColumns;
    for (int64_t m = 0; m < args.count; ++m) {
      const A* x = rows + m * args.width;
      const T* w = weight + j0 * args.weight_stride;
      int64_t j = 0;
      for (; j + 4 <= n; j += 4) {
        dot4(x, w + j * args.weight_stride, args.weight_stride, args.width, z + j);
      }
      for (; j < n; ++j) {
        z[j] = dot(x, w + j * args.weight_stride, args.width);
      }
      if (args.bias) {
        add_tile(z, static_cast<const T*>(args.bias) + j0, n);
      }
      if (args.preactivation) {
        store_tile(static_cast<T*>(args.preactivation) + m * args.cols + j0, z, n);
      }
      MMFAST_EACH_ACTIVATION(args.activation, activate_tile, z, n)
      store_tile(static_cast<T*>(args.out) + m * args.cols + j0, z, n);
    }
  }
}

// Every wanted gradient of a tiny problem, accumulated unrounded in scratch.
template <typename T>
void tiny_backward(const TinyArgs& args) {
  using A = accumulator_t<T>;
  A* x = static_cast<A*>(args.scratch);  // [count][width]
  A* g = x + args.count * args.width;    // [count][cols]: the gradient before the activation
  A* row = g + args.count * args.cols;   // [width]
  A* sums = row + args.width;            // the inputs' gradients, one after another
  const T* weight = static_cast<const T*>(args.weight);

  RowCursor cursor(args.rows, 0);
  for (int64_t m = 0; m < args.count; ++m, cursor.next()) {
    load_tile(g + m * args.cols, static_cast<const T*>(args.grad) + m * args.cols, args.cols);
    if (args.grad_weight) {
      gather_row<T>(args, cursor, x + m * args.width);
    }
  }
  if (args.any_grad_input) {
    int64_t total = 0;
    for (int64_t i = 0; i < args.rows.sources; ++i) {
      total += args.sources[i].grad ? args.sources[i].grad_rows * args.sources[i].width : 0;
    }
    for (int64_t k = 0; k < total; ++k) {
      sums[k] = A(0);
    }
    RowCursor to(args.grad_input_rows, 0);
    for (int64_t m = 0; m < args.count; ++m, to.next()) {
      for (int64_t k = 0; k < args.width; ++k) {
        row[k] = A(0);
      }
      for (int64_t j = 0; j < args.cols; ++j) {
        const A gj = g[m * args.cols + j];
        const T* w = weight + j * args.weight_stride;
        for (int64_t k = 0; k < args.width; ++k) {
          row[k] += gj * widen(w[k]);
        }
      }
      A* sum = sums;
      for (int64_t i = 0; i < args.rows.sources; ++i) {
        const TinySource& source = args.sources[i];
        if (source.grad) {
          add_tile(sum + to.at(i) * source.width, row + source.offset, source.width);
          sum += source.grad_rows * source.width;
        }
      }
    }
    const A* sum = sums;
    for (int64_t i = 0; i < args.rows.sources; ++i) {
      const TinySource& source = args.sources[i];
      if (source.grad) {
        store_tile(static_cast<T*>(source.grad), sum, source.grad_rows * source.width);
        sum += source.grad_rows * source.width;
      }
    }
  }
  if (args.grad_weight) {
    for (int64_t j = 0; j < args.cols; ++j) {
      for (int64_t k = 0; k < args.width; ++k) {
        row[k] = A(0);
      }
      for (int64_t m = 0; m < args.count; ++m) {
        const A gj = g[m * args.cols + j];
        const A* xm = x + m * args.width;
        for (int64_t k = 0; k < args.width; ++k) {
          row[k] += gj * xm[k];
        }
      }
      store_tile(static_cast<T*>(args.grad_weight) + j * args.width, row, args.width);
    }
  }
  if (args.grad_bias) {
    for (int64_t j = 0; j < args.cols; ++j) {
      A sum = 0;
      for (int64_t m = 0; m < args.count; ++m) {
        sum += g[m * args.cols + j];
      }
      static_cast<T*>(args.grad_bias)[j] = narrow<T>(sum);
    }
  }
}

#include "gemm_kernels.h"
// which it builds on
#include "few_rows_kernels.h"

#undef MMFAST_EACH_ACTIVATION
