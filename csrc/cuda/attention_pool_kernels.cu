// Kernels of attention_pool: scores, softmax over the present modalities, weighted sum.
#include "attention_pool.cuh"

namespace mmfast::cuda {
namespace {

struct Nothing {
  MMFAST_DEVICE void operator()(const HeadRow&, int64_t) const {}
};

template <typename T, int kept>
__global__ void __launch_bounds__(kThreads, 1)
    attention_pool_kept_kernel(const __grid_constant__ AttentionPoolArgs args) {
  using A = wide_t<T>;
  const auto body = [&](const HeadRow& at, int64_t) {
    KeptRow<T, kept> query;
    KeptInputs<T, kept> inputs;
    keep_row(args, at, args.query_source, query);
    keep_inputs(args, at, inputs);
    A weights[kTogether];
    dot_kept<T, kept>(args, query, inputs, weights, nullptr);
    softmax_kept(inputs.there, static_cast<A>(args.scale), weights);
    if (!at.active) {
      return;
    }
    T* const to_weights =
        static_cast<T*>(args.weights) + (at.row * args.heads + at.head) * args.rows.count;
#pragma unroll
    for (int m = 0; m < kTogether; ++m) {
      if (at.lane == 0 && m < args.rows.count) {
        to_weights[m] = round_one<T>(weights[m]);
      }
    }
#pragma unroll
    for (int k = 0; k < kept; ++k) {
      const int64_t col = static_cast<int64_t>(at.lane + k * args.groups.lanes) * kPacket<T>;
      if (col < args.size) {
        A sum[kPacket<T>] = {};
#pragma unroll
        for (int m = 0; m < kTogether; ++m) {
          if (inputs.there[m]) {
#pragma unroll
            for (int i = 0; i < kPacket<T>; ++i) {
              sum[i] += weights[m] * wide(inputs.x[k].x[m], i);
            }
          }
        }
        store_rounded(static_cast<T*>(args.out) + at.row * args.rows.cols + at.first + col, sum,
                      packet_size<T>(args, col), args.rows.unit);
      }
    }
  };
  for_each_head_row(args, Nothing(), body, Nothing());
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    attention_pool_kernel(const __grid_constant__ AttentionPoolArgs args) {
  using A = wide_t<T>;
  MMFAST_SHARED_MEMORY(memory);
  const int count = args.rows.count;
  const int lanes = args.groups.lanes;
  A* const weights = reinterpret_cast<A*>(memory) + threadIdx.x / lanes * count;
  A* const scratch = reinterpret_cast<A*>(memory) + groups_in_block(args.groups) * count;
  const auto body = [&](const HeadRow& at, int64_t) {
    dot_shared<T>(args, at, args.query_source, weights, scratch);
    softmax_shared<T>(args, at, weights);
    for (int m = at.lane; at.active && m < count; m += lanes) {
      static_cast<T*>(args.weights)[(at.row * args.heads + at.head) * count + m] =
          round_one<T>(weights[m]);
    }
    for (int64_t col = static_cast<int64_t>(at.lane) * kPacket<T>; at.active && col < args.size;
         col += static_cast<int64_t>(lanes) * kPacket<T>) {
      const int n = packet_size<T>(args, col);
      A sum[kPacket<T>] = {};
      for (int m0 = 0; m0 < count; m0 += kTogether) {
        Together<T> chunk;
        load_together(chunk, args.rows, at.place, 0, m0, count, at.first + col, n);
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          if (chunk.there[k]) {
            const A weight = weights[m0 + k];
#pragma unroll
            for (int i = 0; i < kPacket<T>; ++i) {
              sum[i] += weight * wide(chunk.x[k], i);
            }
          }
        }
      }
      store_rounded(static_cast<T*>(args.out) + at.row * args.rows.cols + at.first + col, sum, n,
                    args.rows.unit);
    }
    sync_group(lanes);  // before the weights of the next row
  };
  for_each_head_row(args, Nothing(), body, Nothing());
}

template <typename T>
void forward(const AttentionPoolArgs& args, cudaStream_t stream) {
  const int64_t packets = (args.size + kPacket<T> - 1) / kPacket<T>;
  const int64_t blocks = args.groups.blocks * args.heads;
  if (!keeps_packets(args.rows.count, packets)) {
    const int64_t bytes = attention_pool_group_bytes(args.rows.count);
    launch(attention_pool_kernel<T>, blocks, kThreads, shared_bytes(args.groups, bytes), stream,
           args);
  } else if (packets <= args.groups.lanes) {
    launch(attention_pool_kept_kernel<T, 1>, blocks, kThreads, 0, stream, args);
  } else {
    launch(attention_pool_kept_kernel<T, kKeptPackets>, blocks, kThreads, 0, stream, args);
  }
}

}  // namespace

void launch_attention_pool(Element element, const AttentionPoolArgs& args, cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, forward, args, stream);
}

}  // namespace mmfast::cuda
