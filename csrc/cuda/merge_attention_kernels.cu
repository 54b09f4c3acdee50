// Kernel of merge_attention: with o_s the output and l_s the logsumexp of the scores of source s,
//   l = log sum_s exp(l_s),   o = sum_s exp(l_s - l) o_s
#include "merge_attention.h"

#include "kernel.cuh"

namespace mmfast::cuda {
namespace {

template <typename A>
MMFAST_DEVICE A lse_of(const MergeAttentionArgs& args, const RowPlace& place, int s) {
  return *row_of<A>(args.rows, args.rows.count + s, place);
}

// exp(lse - top); 0 for a source to which nothing attended.
template <typename A>
MMFAST_DEVICE A exponential(A lse, A top) {
  return lse == -infinity<A>() ? A(0) : wide_exp(lse - top);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    merge_attention_kernel(const __grid_constant__ MergeAttentionArgs args) {
  using A = wide_t<T>;
  const Rows& rows = args.rows;
  for_each_packet<T>(rows, args.tiles, [&](int64_t row, int64_t col, int, const RowPlace& place) {
    const int64_t left = args.cols - col;
    const int n = static_cast<int>(left < kPacket<T> ? left : kPacket<T>);
    A top = -infinity<A>();
    for (int s = 0; s < rows.count; ++s) {
      const A lse = lse_of<A>(args, place, s);
      top = lse > top || lse != lse ? lse : top;  // NaN, once met, stays
    }
    const bool nothing = top == -infinity<A>();
    A total = 0;
    for (int s = 0; s < rows.count && !nothing; ++s) {
      total += exponential(lse_of<A>(args, place, s), top);
    }
    A sum[kPacket<T>] = {};
    for (int s = 0; s < rows.count && !nothing; ++s) {
      const A share = exponential(lse_of<A>(args, place, s), top) / total;
      if (share == A(0)) {
        continue;  // whatever the row holds
      }
      const Packet<T> x = load(row_of<T>(rows, s, place) + col, n, rows.unit);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        sum[i] += share * wide(x, i);
      }
    }
    store_rounded(static_cast<T*>(args.out) + row * args.cols + col, sum, n, rows.unit);
    if (col == 0) {
      static_cast<A*>(args.lse)[row] = nothing ? top : top + wide_log(total);
    }
  });
}

template <typename T>
void forward(const MergeAttentionArgs& args, cudaStream_t stream) {
  launch(merge_attention_kernel<T>, args.tiles.blocks, kThreads, 0, stream, args);
}

}  // namespace

void launch_merge_attention(Element element, const MergeAttentionArgs& args, cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, forward, args, stream);
}

}  // namespace mmfast::cuda
