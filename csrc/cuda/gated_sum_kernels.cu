// Kernels of gated_sum: softmax of the gates over the present modalities, per feature, and the sum
// of the values' tanh weighted by it. One pass, whatever the number of modalities: the sums are
// scaled down when a larger gate comes along.
#include "gated_sum.h"

#include "kernel.cuh"

namespace mmfast::cuda {
namespace {

// A quotient of sums of exponentials; in 16 bits the quick one is exact enough.
template <typename T>
MMFAST_DEVICE wide_t<T> quotient(wide_t<T> a, wide_t<T> b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) {
    return __fdividef(a, b);
  }
#endif
  return a / b;
}

// Of every feature of a packet: the largest gate, the sum of exp(gate - most), and the sum of that
// times tanh(value).
template <typename T>
struct Shares {
  wide_t<T> most[kPacket<T>];
  wide_t<T> total[kPacket<T>];
  wide_t<T> sum[kPacket<T>];
  bool any;
};

// The gates of the same modalities as `values`; the last may have none, and 0 for its logit.
template <typename T>
MMFAST_DEVICE void load_gates(const GatedSumArgs& args, const RowPlace& place,
                              const Together<T>& values, int m0, int64_t col, int n,
                              Packet<T> (&gates)[kTogether]) {
#pragma unroll
  for (int k = 0; k < kTogether; ++k) {
    if (values.there[k] && m0 + k < args.gates) {
      const T* from = row_of<T>(args.rows, args.rows.count + m0 + k, place) + col;
      gates[k] = load(from, n, args.rows.unit);
    } else {
      gates[k] = Packet<T>{};
    }
  }
}

template <typename T>
MMFAST_DEVICE void add_shares(const Together<T>& values, const Packet<T> (&gates)[kTogether],
                              Shares<T>& shares) {
  using A = wide_t<T>;
  bool any = false;
#pragma unroll
  for (int k = 0; k < kTogether; ++k) {
    any = any || values.there[k];
  }
  if (!any) {
    return;
  }
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    A most = shares.most[i];
    bool found = shares.any;
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (values.there[k]) {
        const A gate = wide(gates[k], i);
        most = !found || most < gate ? gate : most;
        found = true;
      }
    }
    if (shares.any) {
      const A factor = wide_exp(shares.most[i] - most);
      shares.total[i] *= factor;
      shares.sum[i] *= factor;
    }
    shares.most[i] = most;
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (values.there[k]) {
        const A share = wide_exp(wide(gates[k], i) - most);
        shares.total[i] += share;
        shares.sum[i] += share * wide_tanh<T>(wide(values.x[k], i));
      }
    }
  }
  shares.any = true;
}

template <typename T>
MMFAST_DEVICE void sum_shares(const GatedSumArgs& args, const RowPlace& place, int64_t col, int n,
                              Shares<T>& shares) {
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    shares.most[i] = 0;
    shares.total[i] = 0;
    shares.sum[i] = 0;
  }
  shares.any = false;
  for (int m0 = 0; m0 < args.rows.count; m0 += kTogether) {
    Together<T> values;
    Packet<T> gates[kTogether];
    load_together(values, args.rows, place, 0, m0, args.rows.count, col, n);
    load_gates(args, place, values, m0, col, n, gates);
    add_shares(values, gates, shares);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    gated_sum_kernel(const __grid_constant__ GatedSumArgs args) {
  for_each_packet<T>(
      args.rows, args.tiles, [&](int64_t row, int64_t col, int n, const RowPlace& place) {
        Shares<T> shares;
        sum_shares(args, place, col, n, shares);
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) {
          shares.sum[i] = shares.any ? quotient<T>(shares.sum[i], shares.total[i]) : 0;
        }
        store_rounded(static_cast<T*>(args.out) + row * args.rows.cols + col, shares.sum, n,
                      args.rows.unit);
      });
}

// What a modality gets: to its value grad share (1 - tanh^2), to its gate grad share (tanh - mean).
template <typename T>
MMFAST_DEVICE void store_grads(const GatedSumArgs& args, int m, bool there, const Packet<T>& value,
                               const Packet<T>& gate, const Packet<T>& grad,
                               const Shares<T>& shares, int64_t at, int n) {
  using A = wide_t<T>;
  T* const to_value = grad_at<T>(args.rows, m, at);
  T* const to_gate = m < args.gates ? grad_at<T>(args.rows, args.rows.count + m, at) : nullptr;
  A of_value[kPacket<T>] = {};
  A of_gate[kPacket<T>] = {};
  if (there) {
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      const A exponential = wide_exp(wide(gate, i) - shares.most[i]);
      const A weighted = wide(grad, i) * quotient<T>(exponential, shares.total[i]);
      const A bent = wide_tanh<T>(wide(value, i));
      of_value[i] = weighted * (A(1) - bent * bent);
      of_gate[i] = weighted * (bent - shares.sum[i]);
    }
  }
  if (to_value) {
    store_rounded(to_value, of_value, n, args.rows.unit);
  }
  if (to_gate) {
    store_rounded(to_gate, of_gate, n, args.rows.unit);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    gated_sum_backward_kernel(const __grid_constant__ GatedSumArgs args) {
  const Rows& rows = args.rows;
  for_each_packet<T>(rows, args.tiles, [&](int64_t row, int64_t col, int n, const RowPlace& place) {
    const int64_t at = row * rows.cols + col;
    const Packet<T> grad = load(row_of<T>(rows, args.grad_source, place) + col, n, rows.unit);
    Shares<T> shares;
    sum_shares(args, place, col, n, shares);
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      shares.sum[i] = quotient<T>(shares.sum[i], shares.total[i]);
    }
    for (int m0 = 0; m0 < rows.count; m0 += kTogether) {  // again, from the cache
      Together<T> values;
      Packet<T> gates[kTogether];
      load_together(values, rows, place, 0, m0, rows.count, col, n);
      load_gates(args, place, values, m0, col, n, gates);
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (m0 + k < rows.count) {
          store_grads(args, m0 + k, values.there[k], values.x[k], gates[k], grad, shares, at, n);
        }
      }
    }
  });
}

template <typename T>
void forward(const GatedSumArgs& args, cudaStream_t stream) {
  launch(gated_sum_kernel<T>, args.tiles.blocks, kThreads, 0, stream, args);
}

template <typename T>
void backward(const GatedSumArgs& args, cudaStream_t stream) {
  launch(gated_sum_backward_kernel<T>, args.tiles.blocks, kThreads, 0, stream, args);
}

}  // namespace

void launch_gated_sum(Element element, const GatedSumArgs& args, cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, forward, args, stream);
}

void launch_gated_sum_backward(Element element, const GatedSumArgs& args, cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, backward, args, stream);
}

}  // namespace mmfast::cuda
