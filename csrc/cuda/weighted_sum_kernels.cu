// Kernels of weighted_sum: y = sum of the present inputs, each times its weight.
#include "weighted_sum.h"

#include "kernel.cuh"

namespace mmfast::cuda {
namespace {

// The weight of modality m in a row, where it is one number.
template <typename T>
MMFAST_DEVICE wide_t<T> weight_of(const WeightedSumArgs& args, const RowPlace& place, int m) {
  return args.per == WeightsPer::row
             ? to_wide(row_of<T>(args.rows, args.weights_source, place)[m * args.weights_stride])
             : to_wide(static_cast<const T*>(args.weights)[m]);
}

// The weights of modality m for the features of a packet.
template <typename T, bool by_feature>
MMFAST_DEVICE void weights_of(const WeightedSumArgs& args, const RowPlace& place, int m,
                              int64_t col, int n, wide_t<T>* weights) {
  if constexpr (by_feature) {
    const T* from = static_cast<const T*>(args.weights) + m * args.rows.cols + col;
    const Packet<T> packet = load(from, n, args.rows.unit);
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      weights[i] = wide(packet, i);
    }
  } else {
    const wide_t<T> weight = weight_of<T>(args, place, m);
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      weights[i] = weight;
    }
  }
}

// sum and total of the weights over all present modalities; false if there is none.
template <typename T, bool by_feature>
MMFAST_DEVICE bool sum_weighted(const WeightedSumArgs& args, const RowPlace& place, int64_t col,
                                int n, wide_t<T>* sum, wide_t<T>* total) {
  bool any = false;
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    sum[i] = 0;
    total[i] = 0;
  }
  for (int m0 = 0; m0 < args.rows.count; m0 += kTogether) {
    Together<T> chunk;
    load_together(chunk, args.rows, place, 0, m0, args.rows.count, col, n);
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (chunk.there[k]) {
        any = true;
        wide_t<T> weights[kPacket<T>];
        weights_of<T, by_feature>(args, place, m0 + k, col, n, weights);
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) {
          sum[i] += weights[i] * wide(chunk.x[k], i);
          total[i] += weights[i];
        }
      }
    }
  }
  return any;
}

template <typename T, bool by_feature>
__global__ void __launch_bounds__(kThreads)
    weighted_sum_kernel(const __grid_constant__ WeightedSumArgs args) {
  for_each_packet<T>(
      args.rows, args.tiles, [&](int64_t row, int64_t col, int n, const RowPlace& place) {
        wide_t<T> sum[kPacket<T>];
        wide_t<T> total[kPacket<T>];
        const bool any = sum_weighted<T, by_feature>(args, place, col, n, sum, total);
        if (any && args.normalize) {
#pragma unroll
          for (int i = 0; i < kPacket<T>; ++i) {
            sum[i] /= total[i];
          }
        }
        store_rounded(static_cast<T*>(args.out) + row * args.rows.cols + col, sum, n,
                      args.rows.unit);
      });
}

// The sum of the present modalities' weights, per feature of a packet.
template <typename T, bool by_feature>
MMFAST_DEVICE void total_weights(const WeightedSumArgs& args, const RowPlace& place, int64_t col,
                                 int n, wide_t<T>* total) {
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    total[i] = 0;
  }
  for (int m = 0; m < args.rows.count; ++m) {
    if (is_present(args.rows, place, m)) {
      wide_t<T> weights[kPacket<T>];
      weights_of<T, by_feature>(args, place, m, col, n, weights);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        total[i] += weights[i];
      }
    }
  }
}

// to = grad times the weights of modality m, scaled; zeros if it is absent.
template <typename T, bool by_feature>
MMFAST_DEVICE void store_input_grad(const WeightedSumArgs& args, const RowPlace& place, int m,
                                    bool there, const Packet<T>& grad, const wide_t<T>* scale,
                                    int64_t row, int64_t col, int n) {
  T* to = grad_at<T>(args.rows, m, row * args.rows.cols + col);
  if (to == nullptr) {
    return;
  }
  if (!there) {
    store_zeros(to, n, args.rows.unit);
    return;
  }
  wide_t<T> weights[kPacket<T>];
  weights_of<T, by_feature>(args, place, m, col, n, weights);
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    weights[i] = weights[i] * scale[i] * wide(grad, i);
  }
  store_rounded(to, weights, n, args.rows.unit);
}

template <typename T, bool by_feature>
__global__ void __launch_bounds__(kThreads)
    weighted_sum_inputs_kernel(const __grid_constant__ WeightedSumArgs args) {
  for_each_packet<T>(
      args.rows, args.tiles, [&](int64_t row, int64_t col, int n, const RowPlace& place) {
        using A = wide_t<T>;
        const Packet<T> grad =
            load(row_of<T>(args.rows, args.grad_source, place) + col, n, args.rows.unit);
        A scale[kPacket<T>];
        if (args.normalize) {
          total_weights<T, by_feature>(args, place, col, n, scale);
        }
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) {
          scale[i] = args.normalize ? A(1) / scale[i] : A(1);
        }
        for (int m = 0; m < args.rows.count; ++m) {
          store_input_grad<T, by_feature>(args, place, m, is_present(args.rows, place, m), grad,
                                          scale, row, col, n);
        }
      });
}

// All gradients where each modality's weight is one number: a group of threads per row. Shared
// memory per group: the products of a row, [count], and the sums of its rows, [count] in double.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    weighted_sum_rows_kernel(const __grid_constant__ WeightedSumArgs args) {
  using A = wide_t<T>;
  MMFAST_SHARED_MEMORY(memory);
  const Rows& rows = args.rows;
  const int count = rows.count;
  const int lanes = args.groups.lanes;
  const int in_block = groups_in_block(args.groups);
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  double* const sums = reinterpret_cast<double*>(memory) + group * count;
  A* const dots =
      reinterpret_cast<A*>(reinterpret_cast<double*>(memory) + in_block * count) + group * count;
  A* const scratch =
      reinterpret_cast<A*>(reinterpret_cast<double*>(memory) + in_block * count) + in_block * count;
  for (int64_t block = blockIdx.x; block < args.groups.blocks; block += gridDim.x) {
    for (int m = lane; m < count; m += lanes) {
      sums[m] = 0;
    }
    for (int step = 0; step < args.groups.steps; ++step) {
      const int64_t row = row_at(args.groups, block, group, step);
      const bool active = row < rows.total;
      const RowPlace place = place_of(rows, active ? row : 0);
      A total = 0;
      for (int m = 0; m < count && active; ++m) {
        total += is_present(rows, place, m) ? weight_of<T>(args, place, m) : A(0);
      }
      const A factor = args.normalize ? A(1) / total : A(1);
      A scale[kPacket<T>];
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        scale[i] = factor;
      }
      for (int m0 = 0; m0 < count; m0 += kTogether) {
        A products[kTogether] = {};
        for (int64_t col = static_cast<int64_t>(lane) * kPacket<T>; active && col < rows.cols;
             col += static_cast<int64_t>(lanes) * kPacket<T>) {
          const int64_t left = rows.cols - col;
          const int n = static_cast<int>(left < kPacket<T> ? left : kPacket<T>);
          const Packet<T> grad = load(row_of<T>(rows, args.grad_source, place) + col, n, rows.unit);
          Together<T> chunk;
          load_together(chunk, rows, place, 0, m0, count, col, n);
#pragma unroll
          for (int k = 0; k < kTogether; ++k) {
            products[k] = chunk.there[k] ? dot(grad, chunk.x[k], products[k]) : A(0);
            if (m0 + k < count) {
              store_input_grad<T, false>(args, place, m0 + k, chunk.there[k], grad, scale, row, col,
                                         n);
            }
          }
        }
        sum_group(products, lanes, scratch);
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          if (lane == 0 && m0 + k < count) {
            dots[m0 + k] = products[k];
          }
        }
      }
      sync_group(lanes);
      A mean = 0;
      for (int m = 0; m < count && active && args.normalize; ++m) {
        mean += is_present(rows, place, m) ? weight_of<T>(args, place, m) * dots[m] : A(0);
      }
      mean = args.normalize ? mean * factor : A(0);  // not times 0: an infinite one would spread
      for (int m = lane; m < count && active; m += lanes) {
        const A grad = is_present(rows, place, m) ? (dots[m] - mean) * factor : A(0);
        if (args.grad_weights) {
          static_cast<T*>(args.grad_weights)[row * count + m] = round_one<T>(grad);
        } else {
          sums[m] += grad;
        }
      }
      sync_group(lanes);
    }
    if (args.sums) {
      __syncthreads();
      for (int m = static_cast<int>(threadIdx.x); m < count; m += kThreads) {
        const double* all = reinterpret_cast<const double*>(memory);
        double sum = 0;
        for (int g = 0; g < in_block; ++g) {
          sum += all[g * count + m];
        }
        static_cast<A*>(args.sums)[block * count + m] = static_cast<A>(sum);
      }
      __syncthreads();
    }
  }
}

// All gradients where every feature has weights of its own: a thread sums its packet's over the
// rows that it takes, which are as far apart as its block has lines.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    weighted_sum_features_kernel(const __grid_constant__ WeightedSumArgs args) {
  using A = wide_t<T>;
  const Rows& rows = args.rows;
  const int lines = kThreads / args.tiles.lanes;
  const int line = static_cast<int>(threadIdx.x) / args.tiles.lanes;
  const int steps = args.groups.steps;
  for (int64_t block = blockIdx.x; block < args.tiles.blocks; block += gridDim.x) {
    const Tile tile = tile_at(args.tiles, block, static_cast<int>(threadIdx.x), kPacket<T>);
    const int64_t first = (tile.row - line) * steps + line;
    if (tile.col >= rows.cols) {
      continue;
    }
    const int64_t left = rows.cols - tile.col;
    const int n = static_cast<int>(left < kPacket<T> ? left : kPacket<T>);
    for (int m0 = 0; m0 < rows.count; m0 += kTogether) {
      A sums[kTogether][kPacket<T>] = {};
      for (int step = 0; step < steps; ++step) {
        const int64_t row = first + static_cast<int64_t>(step) * lines;
        if (row >= rows.total) {
          break;
        }
        const RowPlace place = place_of(rows, row);
        const Packet<T> grad =
            load(row_of<T>(rows, args.grad_source, place) + tile.col, n, rows.unit);
        A result[kPacket<T>] = {};
        A scale[kPacket<T>];
        if (args.normalize) {
          sum_weighted<T, true>(args, place, tile.col, n, result, scale);
        }
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) {
          scale[i] = args.normalize ? A(1) / scale[i] : A(1);
          result[i] = args.normalize ? result[i] * scale[i] : A(0);
        }
        Together<T> chunk;
        load_together(chunk, rows, place, 0, m0, rows.count, tile.col, n);
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          if (m0 + k < rows.count) {
            store_input_grad<T, true>(args, place, m0 + k, chunk.there[k], grad, scale, row,
                                      tile.col, n);
          }
          if (chunk.there[k]) {
#pragma unroll
            for (int i = 0; i < kPacket<T>; ++i) {
              sums[k][i] += wide(grad, i) * (wide(chunk.x[k], i) - result[i]) * scale[i];
            }
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (m0 + k < rows.count) {
          A* to =
              static_cast<A*>(args.sums) + (tile.row * rows.count + m0 + k) * rows.cols + tile.col;
#pragma unroll
          for (int i = 0; i < kPacket<T>; ++i) {
            if (i < n) {
              to[i] = sums[k][i];
            }
          }
        }
      }
    }
  }
}

template <typename T>
void forward(const WeightedSumArgs& args, cudaStream_t stream) {
  const auto kernel = args.per == WeightsPer::feature ? weighted_sum_kernel<T, true>
                                                      : weighted_sum_kernel<T, false>;
  launch(kernel, args.tiles.blocks, kThreads, 0, stream, args);
}

template <typename T>
void inputs_backward(const WeightedSumArgs& args, cudaStream_t stream) {
  const auto kernel = args.per == WeightsPer::feature ? weighted_sum_inputs_kernel<T, true>
                                                      : weighted_sum_inputs_kernel<T, false>;
  launch(kernel, args.tiles.blocks, kThreads, 0, stream, args);
}

template <typename T>
void backward(const WeightedSumArgs& args, cudaStream_t stream) {
  if (args.per == WeightsPer::feature) {
    launch(weighted_sum_features_kernel<T>, args.tiles.blocks, kThreads, 0, stream, args);
  } else {
    launch(weighted_sum_rows_kernel<T>, args.groups.blocks, kThreads,
           shared_bytes(args.groups, weighted_sum_group_bytes(args.rows.count)), stream, args);
  }
}

}  // namespace

void launch_weighted_sum(Element element, const WeightedSumArgs& args, cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, forward, args, stream);
}

void launch_weighted_sum_inputs(Element element, const WeightedSumArgs& args, cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, inputs_backward, args, stream);
}

void launch_weighted_sum_backward(Element element, const WeightedSumArgs& args,
                                  cudaStream_t stream) {
  MMFAST_CUDA_DISPATCH(element, backward, args, stream);
}

}  // namespace mmfast::cuda
