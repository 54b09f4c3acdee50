// Gradients of attention_pool: with the softmax's weights w and g_m = grad . x_m (+ the gradient of
// w_m), the score's gradient is s_m = w_m (g_m - sum_k w_k g_k) scale; x_m gets w_m grad + s_m
// query, the query the sum of s_m x_m.
#include "attention_pool.cuh"

namespace mmfast::cuda {
namespace {

// to = weight * grad + score * query
template <typename T>
MMFAST_DEVICE void store_input_grad(T* to, wide_t<T> weight, const Packet<T>& grad, wide_t<T> score,
                                    const Packet<T>& query, int n, int unit) {
  wide_t<T> sum[kPacket<T>];
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    sum[i] = weight * wide(grad, i) + score * wide(query, i);
  }
  store_rounded(to, sum, n, unit);
}

template <typename T, int kept>
__global__ void __launch_bounds__(kThreads, 1)
    attention_pool_kept_backward_kernel(const __grid_constant__ AttentionPoolArgs args) {
  using A = wide_t<T>;
  const Rows& rows = args.rows;
  A sums[kept][kPacket<T>];  // of the query's gradient, over the rows of this group
  const auto begin = [&](const HeadRow&, int64_t) {
#pragma unroll
    for (int k = 0; k < kept; ++k) {
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        sums[k][i] = 0;
      }
    }
  };
  const auto body = [&](const HeadRow& at, int64_t) {
    KeptRow<T, kept> query;
    KeptRow<T, kept> grad;
    KeptInputs<T, kept> inputs;
    keep_row(args, at, args.query_source, query);
    keep_row(args, at, args.grad_source, grad);
    keep_inputs(args, at, inputs);
    A weights[kTogether];
    A scores[kTogether];
    dot_kept<T, kept>(args, query, inputs, weights, nullptr);
    softmax_kept(inputs.there, static_cast<A>(args.scale), weights);
    dot_kept<T, kept>(args, grad, inputs, scores, nullptr);
    A mean = 0;
#pragma unroll
    for (int m = 0; m < kTogether; ++m) {
      if (inputs.there[m]) {
        if (args.grad_weights_source >= 0) {
          const T* from = row_of<T>(rows, args.grad_weights_source, at.place);
          scores[m] += to_wide(from[at.head * rows.count + m]);
        }
        mean += weights[m] * scores[m];
      }
    }
#pragma unroll
    for (int m = 0; m < kTogether; ++m) {
      scores[m] =
          inputs.there[m] ? weights[m] * (scores[m] - mean) * static_cast<A>(args.scale) : A(0);
    }
    if (!at.active) {
      return;
    }
#pragma unroll
    for (int k = 0; k < kept; ++k) {
      const int64_t col = static_cast<int64_t>(at.lane + k * args.groups.lanes) * kPacket<T>;
      if (col < args.size) {
        const int n = packet_size<T>(args, col);
        const int64_t to = at.row * rows.cols + at.first + col;
        A of_query[kPacket<T>] = {};
#pragma unroll
        for (int m = 0; m < kTogether; ++m) {
          T* const to_input = m < rows.count ? grad_at<T>(rows, m, to) : nullptr;
          if (inputs.there[m]) {
            if (to_input) {
              store_input_grad(to_input, weights[m], grad.x[k], scores[m], query.x[k], n,
                               rows.unit);
            }
#pragma unroll
            for (int i = 0; i < kPacket<T>; ++i) {
              of_query[i] += scores[m] * wide(inputs.x[k].x[m], i);
            }
          } else if (to_input) {
            store_zeros(to_input, n, rows.unit);
          }
        }
        if (args.grad_query) {
          store_rounded(static_cast<T*>(args.grad_query) + to, of_query, n, rows.unit);
        }
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) {
          sums[k][i] += of_query[i];
        }
      }
    }
  };
  const auto end = [&](const HeadRow& at, int64_t sums_row) {
    if (args.sums) {
#pragma unroll
      for (int k = 0; k < kept; ++k) {
        const int64_t col = static_cast<int64_t>(at.lane + k * args.groups.lanes) * kPacket<T>;
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) {
          if (col + i < args.size) {
            static_cast<A*>(args.sums)[sums_row * rows.cols + at.first + col + i] = sums[k][i];
          }
        }
      }
    }
  };
  for_each_head_row(args, begin, body, end);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    attention_pool_backward_kernel(const __grid_constant__ AttentionPoolArgs args) {
  using A = wide_t<T>;
  MMFAST_SHARED_MEMORY(memory);
  const Rows& rows = args.rows;
  const int count = rows.count;
  const int lanes = args.groups.lanes;
  A* const weights = reinterpret_cast<A*>(memory) + threadIdx.x / lanes * 2 * count;
  A* const scores = weights + count;
  A* const scratch = reinterpret_cast<A*>(memory) + groups_in_block(args.groups) * 2 * count;
  const int64_t first_col = static_cast<int64_t>(threadIdx.x) % lanes * kPacket<T>;
  const int64_t next_col = static_cast<int64_t>(lanes) * kPacket<T>;
  // A packet's sums belong to one thread, which adds to them in memory row by row.
  const auto begin = [&](const HeadRow& at, int64_t sums_row) {
    for (int64_t col = first_col; args.sums && col < args.size; col += next_col) {
      A* const sums = static_cast<A*>(args.sums) + sums_row * rows.cols + at.first + col;
      for (int i = 0; i < packet_size<T>(args, col); ++i) {
        sums[i] = 0;
      }
    }
  };
  const auto body = [&](const HeadRow& at, int64_t sums_row) {
    dot_shared<T>(args, at, args.query_source, weights, scratch);
    softmax_shared<T>(args, at, weights);
    dot_shared<T>(args, at, args.grad_source, scores, scratch);
    const T* const grad_weights =
        args.grad_weights_source >= 0 && at.active
            ? row_of<T>(rows, args.grad_weights_source, at.place) + at.head * count
            : nullptr;
    A mean = 0;
    for (int m = 0; at.active && m < count; ++m) {
      if (is_present(rows, at.place, m)) {
        mean += weights[m] * (scores[m] + (grad_weights ? to_wide(grad_weights[m]) : A(0)));
      }
    }
    sync_group(lanes);  // all have read what is overwritten now
    for (int m = at.lane; at.active && m < count; m += lanes) {
      const A grad = scores[m] + (grad_weights ? to_wide(grad_weights[m]) : A(0));
      scores[m] = is_present(rows, at.place, m)
                      ? weights[m] * (grad - mean) * static_cast<A>(args.scale)
                      : A(0);
    }
    sync_group(lanes);
    for (int64_t col = first_col; at.active && col < args.size; col += next_col) {
      const int n = packet_size<T>(args, col);
      const int64_t to = at.row * rows.cols + at.first + col;
      const Packet<T> grad =
          load(row_of<T>(rows, args.grad_source, at.place) + at.first + col, n, rows.unit);
      const Packet<T> query =
          load(row_of<T>(rows, args.query_source, at.place) + at.first + col, n, rows.unit);
      A of_query[kPacket<T>] = {};
      for (int m0 = 0; m0 < count; m0 += kTogether) {
        Together<T> chunk;
        load_together(chunk, rows, at.place, 0, m0, count, at.first + col, n);
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          T* const to_input = m0 + k < count ? grad_at<T>(rows, m0 + k, to) : nullptr;
          if (chunk.there[k]) {
            if (to_input) {
              store_input_grad(to_input, weights[m0 + k], grad, scores[m0 + k], query, n,
                               rows.unit);
            }
#pragma unroll
            for (int i = 0; i < kPacket<T>; ++i) {
              of_query[i] += scores[m0 + k] * wide(chunk.x[k], i);
            }
          } else if (to_input) {
            store_zeros(to_input, n, rows.unit);
          }
        }
      }
      if (args.grad_query) {
        store_rounded(static_cast<T*>(args.grad_query) + to, of_query, n, rows.unit);
      } else if (args.sums) {
        A* const sums = static_cast<A*>(args.sums) + sums_row * rows.cols + at.first + col;
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) {
          if (i < n) {
            sums[i] += of_query[i];
          }
        }
      }
    }
    sync_group(lanes);  // before the weights of the next row
  };
  for_each_head_row(args, begin, body, [](const HeadRow&, int64_t) {});
}

template <typename T>
void backward(const AttentionPoolArgs& args, cudaStream_t stream) {
  const int64_t packets = (args.size + kPacket<T> - 1) / kPacket<T>;
  const int64_t blocks = args.groups.blocks * args.heads;
  if (!keeps_packets(args.rows.count, packets)) {
    const int64_t bytes = attention_pool_group_bytes(args.rows.count);
    launch(attention_pool_backward_kernel<T>, blocks, kThreads, shared_bytes(args.groups, bytes),
           stream, args);
  } else if (packets <= args.groups.lanes) {
    launch(attention_pool_kept_backward_kernel<T, 1>, blocks, kThreads, 0, stream, args);
  } else {
    launch(attention_pool_kept_backward_kernel<T, kKeptPackets>, blocks, kThreads, 0, stream, args);
  }
}

}  // namespace

void launch_attention_pool_backward(Element element, const AttentionPoolArgs& args,
                                    cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, backward, args, stream);
}

}  // namespace mmfast::cuda
