// Who computes what: tiles of the result, steps along K, splits of K. Plain functions, so that
// tests can run them on a machine without a GPU.
//
// A product is grouped: forward, over K, whose groups are the inputs; backward, over N, whose
// groups are the inputs' gradients or their columns of the weight's gradient. A group never shares
// a step of K, or a tile of N, with another.
#pragma once

#include <cstdint>

#include "gemm_layout.h"

namespace mmfast::cuda {

constexpr int kMaxGroups = 32;
constexpr int kTileRows = 128;

MMFAST_HOST_DEVICE int32_t ceil_div(int64_t a, int64_t b) {
  return static_cast<int32_t>((a + b - 1) / b);
}

struct Schedule {
  int32_t row_tiles;
  int32_t col_tiles;
  int32_t k_steps;
  int32_t splits;      // of K; no more than k_steps
  int32_t strip_rows;  // row tiles that are computed together, see gemm_tile_at

  MMFAST_HOST_DEVICE int32_t tiles() const { return row_tiles * col_tiles * splits; }
};

struct GemmTile {
  int32_t row;
  int32_t col;
  int32_t split;
};

// Tiles that run at the same time share their operands in L2. Splits come last, so that all tiles
// of a split read the same features. Within one, a strip of `strip_rows` row tiles meets all
// columns before the next begins, column after column.
MMFAST_HOST_DEVICE GemmTile gemm_tile_at(const Schedule& schedule, int32_t t) {
  const int32_t plane = schedule.row_tiles * schedule.col_tiles;
  const int32_t split = t / plane;
  const int32_t in_plane = t - split * plane;
  const int32_t strip_size = schedule.strip_rows * schedule.col_tiles;
  const int32_t strip = in_plane / strip_size;
  const int32_t in_strip = in_plane - strip * strip_size;
  const int32_t first_row = strip * schedule.strip_rows;
  const int32_t left = schedule.row_tiles - first_row;
  const int32_t rows = left < schedule.strip_rows ? left : schedule.strip_rows;
  const int32_t col = in_strip / rows;
  return GemmTile{first_row + in_strip - col * rows, col, split};
}

// Steps begin .. end of K belong to a split; the first of the next one is `split_begin(split + 1)`.
MMFAST_HOST_DEVICE int32_t split_begin(const Schedule& schedule, int32_t split) {
  return static_cast<int32_t>(static_cast<int64_t>(schedule.k_steps) * split / schedule.splits);
}

// first[g] is the first step (or tile) of group g, first[groups] their number.
MMFAST_HOST_DEVICE int group_of(const int32_t* first, int groups, int32_t position) {
  int g = 0;
  while (g + 1 < groups && position >= first[g + 1]) {
    ++g;
  }
  return g;
}

// Walks the steps of K of a product that is grouped over K.
struct StepWalker {
  const int32_t* first;
  int groups;
  int group;
  int32_t step;

  MMFAST_HOST_DEVICE StepWalker(const int32_t* first, int groups, int32_t begin)
      : first(first), groups(groups), group(group_of(first, groups, begin)), step(begin) {}
  // The first feature, within the group, of this step.
  MMFAST_HOST_DEVICE int32_t feature() const { return (step - first[group]) * kBlockK; }
  MMFAST_HOST_DEVICE void next() {
    ++step;
    // A group has at least one step.
    group += group + 1 < groups && step == first[group + 1];
  }
};

// A ring of buffers, and the parity of the round: what mbarrier.try_wait.parity asks for. A barrier
// starts in phase 0; waiting for parity p returns once the phase of that parity is complete, at
// once for the one before the first. So consumers wait for `parity`, producers for its opposite.
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;

  MMFAST_HOST_DEVICE void next(int slots) {
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Rows of the result, and which row of a factor each one adds: batch dimensions, merged, and a
// stride for each in distinct rows.
constexpr int kMaxDims = 8;

struct RowDims {
  int32_t dims;
  int32_t sizes[kMaxDims];
};

MMFAST_HOST_DEVICE int32_t distinct_row(const RowDims& shape, const int32_t* strides, int32_t row) {
  uint32_t rest = static_cast<uint32_t>(row);
  uint32_t found = 0;
  for (int d = shape.dims - 1; d > 0; --d) {
    const uint32_t size = static_cast<uint32_t>(shape.sizes[d]);
    const uint32_t outer = rest / size;
    found += (rest - outer * size) * static_cast<uint32_t>(strides[d]);
    rest = outer;
  }
  return static_cast<int32_t>(found + (shape.dims ? rest * static_cast<uint32_t>(strides[0]) : 0));
}

}  // namespace mmfast::cuda
