// What forward and backward of attention_pool share on a GPU. A group of threads takes a row of one
// head. Two ways: a lane keeps its packets of few inputs in registers, or reads them twice.
#pragma once

#include "attention_pool.h"
#include "kernel.cuh"

namespace mmfast::cuda {

// One row of one head, as a thread of its group sees it.
struct HeadRow {
  int64_t row;
  bool active;
  RowPlace place;
  int64_t head;
  int64_t first;  // column of the head
  int lane;
};

// Calls body(row, step, group) for every row that a thread's group takes; idle groups take part, as
// sums over a warp need them. `begin` and `end` are called before and after a group's rows.
template <typename Begin, typename Body, typename End>
MMFAST_DEVICE void for_each_head_row(const AttentionPoolArgs& args, const Begin& begin,
                                     const Body& body, const End& end) {
  const int lanes = args.groups.lanes;
  const int group = static_cast<int>(threadIdx.x) / lanes;
  HeadRow at;
  at.lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t blocks = args.groups.blocks * args.heads;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t row_block = block / args.heads;
    at.head = block - row_block * args.heads;
    at.first = at.head * args.size;
    const int64_t sums_row = row_block * groups_in_block(args.groups) + group;
    begin(at, sums_row);
    for (int step = 0; step < args.groups.steps; ++step) {
      at.row = row_at(args.groups, row_block, group, step);
      at.active = at.row < args.rows.total;
      at.place = place_of(args.rows, at.active ? at.row : 0);
      body(at, sums_row);
    }
    end(at, sums_row);
  }
}

template <typename T>
MMFAST_DEVICE int packet_size(const AttentionPoolArgs& args, int64_t col) {
  const int64_t left = args.size - col;
  return static_cast<int>(left < kPacket<T> ? left : kPacket<T>);
}

// -------------------------------------------------------------------------- packets in registers

template <typename T, int kept>
struct KeptInputs {
  Together<T> x[kept];
  bool there[kTogether];
};

template <typename T, int kept>
struct KeptRow {
  Packet<T> x[kept];
};

template <typename T, int kept>
MMFAST_DEVICE void keep_inputs(const AttentionPoolArgs& args, const HeadRow& at,
                               KeptInputs<T, kept>& inputs) {
#pragma unroll
  for (int m = 0; m < kTogether; ++m) {
    inputs.there[m] = at.active && m < args.rows.count && is_present(args.rows, at.place, m);
  }
#pragma unroll
  for (int k = 0; k < kept; ++k) {
    const int64_t col = static_cast<int64_t>(at.lane + k * args.groups.lanes) * kPacket<T>;
#pragma unroll
    for (int m = 0; m < kTogether; ++m) {
      if (inputs.there[m] && col < args.size) {
        const T* from = row_of<T>(args.rows, m, at.place) + at.first + col;
        inputs.x[k].x[m] = load(from, packet_size<T>(args, col), args.rows.unit);
      } else {
        inputs.x[k].x[m] = Packet<T>{};
      }
    }
  }
}

template <typename T, int kept>
MMFAST_DEVICE void keep_row(const AttentionPoolArgs& args, const HeadRow& at, int source,
                            KeptRow<T, kept>& row) {
#pragma unroll
  for (int k = 0; k < kept; ++k) {
    const int64_t col = static_cast<int64_t>(at.lane + k * args.groups.lanes) * kPacket<T>;
    if (at.active && col < args.size) {
      const T* from = row_of<T>(args.rows, source, at.place) + at.first + col;
      row.x[k] = load(from, packet_size<T>(args, col), args.rows.unit);
    } else {
      row.x[k] = Packet<T>{};
    }
  }
}

// sums[m] = row . input m; 0 where that is absent.
template <typename T, int kept>
MMFAST_DEVICE void dot_kept(const AttentionPoolArgs& args, const KeptRow<T, kept>& row,
                            const KeptInputs<T, kept>& inputs, wide_t<T> (&sums)[kTogether],
                            wide_t<T>* scratch) {
  using A = wide_t<T>;
#pragma unroll
  for (int m = 0; m < kTogether; ++m) {
    sums[m] = 0;
#pragma unroll
    for (int k = 0; k < kept; ++k) {
      sums[m] = dot(row.x[k], inputs.x[k].x[m], sums[m]);
    }
  }
  sum_group(sums, args.groups.lanes, scratch);
#pragma unroll
  for (int m = 0; m < kTogether; ++m) {
    sums[m] = inputs.there[m] ? sums[m] : A(0);  // 0 times an infinite query is not 0
  }
}

// Scores become the weights of what is there.
template <typename A>
MMFAST_DEVICE void softmax_kept(const bool* there, A scale, A (&weights)[kTogether]) {
  A most = 0;
  bool any = false;
#pragma unroll
  for (int m = 0; m < kTogether; ++m) {
    weights[m] *= scale;
    if (there[m]) {
      most = any && most > weights[m] ? most : weights[m];
      any = true;
    }
  }
  A total = 0;
#pragma unroll
  for (int m = 0; m < kTogether; ++m) {
    weights[m] = there[m] ? wide_exp(weights[m] - most) : A(0);
    total += weights[m];
  }
#pragma unroll
  for (int m = 0; m < kTogether; ++m) {
    weights[m] = any ? weights[m] / total : A(0);
  }
}

// ------------------------------------------------------------------------------ inputs read twice

// sums[m] = the row of `source` . input m for all modalities, in shared memory of the group.
template <typename T>
MMFAST_DEVICE void dot_shared(const AttentionPoolArgs& args, const HeadRow& at, int source,
                              wide_t<T>* sums, wide_t<T>* scratch) {
  using A = wide_t<T>;
  const int lanes = args.groups.lanes;
  for (int m0 = 0; m0 < args.rows.count; m0 += kTogether) {
    A products[kTogether] = {};
    for (int64_t col = static_cast<int64_t>(at.lane) * kPacket<T>; at.active && col < args.size;
         col += static_cast<int64_t>(lanes) * kPacket<T>) {
      const int n = packet_size<T>(args, col);
      const Packet<T> x =
          load(row_of<T>(args.rows, source, at.place) + at.first + col, n, args.rows.unit);
      Together<T> chunk;
      load_together(chunk, args.rows, at.place, 0, m0, args.rows.count, at.first + col, n);
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        products[k] = chunk.there[k] ? dot(x, chunk.x[k], products[k]) : A(0);
      }
    }
    sum_group(products, lanes, scratch);
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (at.lane == 0 && m0 + k < args.rows.count) {
        sums[m0 + k] = products[k];
      }
    }
  }
  sync_group(lanes);
}

// Scores become the weights of what is present, 0 for the rest.
template <typename T>
MMFAST_DEVICE void softmax_shared(const AttentionPoolArgs& args, const HeadRow& at,
                                  wide_t<T>* weights) {
  using A = wide_t<T>;
  const A scale = static_cast<A>(args.scale);
  A most = 0;
  A total = 0;
  bool any = false;
  for (int m = 0; at.active && m < args.rows.count; ++m) {
    if (is_present(args.rows, at.place, m)) {
      const A score = weights[m] * scale;
      most = any && most > score ? most : score;
      any = true;
    }
  }
  for (int m = 0; at.active && m < args.rows.count; ++m) {
    if (is_present(args.rows, at.place, m)) {
      total += wide_exp(weights[m] * scale - most);
    }
  }
  sync_group(args.groups.lanes);  // all have read what is overwritten now
  for (int m = at.lane; at.active && m < args.rows.count; m += args.groups.lanes) {
    weights[m] =
        is_present(args.rows, at.place, m) ? wide_exp(weights[m] * scale - most) / total : A(0);
  }
  sync_group(args.groups.lanes);
}

}  // namespace mmfast::cuda
