// Rows of several tensors of one batch shape, as kernels see them: the index arithmetic, in plain
// functions that also run on the host.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace mmfast::cuda {

constexpr int kRowDims = 4;         // of the batch; where it has more, what is not dense is copied
constexpr int kInlineSources = 40;  // what fits into a kernel's arguments; more lie in a table
constexpr int kTogether = 4;        // modalities whose loads are under way at the same time
constexpr int kThreads = 256;       // of a block
constexpr int kMostModalities = 2048;  // whose scores a block can keep

// Strides in elements, the innermost dimension first; 0 where the source broadcasts.
struct RowSource {
  const void* data;
  int64_t strides[kRowDims];
  void* grad;  // of an input: dense, or null where it is not wanted
};

struct Rows {
  RowSource sources[kInlineSources];
  const RowSource* table;   // of all sources if they are more
  int64_t sizes[kRowDims];  // of the batch, the innermost first
  int32_t dims;
  int32_t count;           // modalities: the first sources
  int32_t present;         // the source that says what is present, or -1
  int32_t unit;            // bytes to which every row is aligned: 16, 8, 4 or 2
  bool whole;              // whether rows consist of aligned packets only
  int64_t present_stride;  // of its elements
  int64_t total;           // rows
  int64_t cols;            // elements of a row
};

MMFAST_HOST_DEVICE RowSource source_of(const Rows& rows, int s) {
  return rows.table ? rows.table[s] : rows.sources[s];
}

// Where a row stands in the batch.
struct RowPlace {
  int64_t index[kRowDims];
};

MMFAST_HOST_DEVICE RowPlace place_of(const Rows& rows, int64_t row) {
  RowPlace place{{row, 0, 0, 0}};
  if (rows.dims > 1) {
#pragma unroll
    for (int d = 0; d < kRowDims; ++d) {
      const int64_t above = d + 1 < rows.dims ? row / rows.sizes[d] : 0;
      place.index[d] = row - above * rows.sizes[d];  // sizes are 0 from the last dimension on
      row = above;
    }
  }
  return place;
}

MMFAST_HOST_DEVICE int64_t offset_of(const RowSource& source, const RowPlace& place) {
  int64_t offset = place.index[0] * source.strides[0];
#pragma unroll
  for (int d = 1; d < kRowDims; ++d) {
    offset += place.index[d] * source.strides[d];
  }
  return offset;
}

template <typename T>
MMFAST_HOST_DEVICE const T* row_of(const Rows& rows, int s, const RowPlace& place) {
  const RowSource source = source_of(rows, s);
  return static_cast<const T*>(source.data) + offset_of(source, place);
}

MMFAST_HOST_DEVICE bool is_present(const Rows& rows, const RowPlace& place, int m) {
  if (rows.present < 0) {
    return true;
  }
  return row_of<bool>(rows, rows.present, place)[m * rows.present_stride];
}

// The gradient of modality m at element `at` of the whole tensor, or null.
template <typename T>
MMFAST_HOST_DEVICE T* grad_at(const Rows& rows, int m, int64_t at) {
  T* grad = static_cast<T*>(source_of(rows, m).grad);
  return grad ? grad + at : nullptr;
}

// ---------------------------------------------------------------------------- who does what
//
// Element by element: a block covers some rows with `lanes` threads each, and so many packets of
// their columns. `lanes` is a power of two.
struct Tiles {
  int32_t lanes;
  int64_t col_blocks;
  int64_t blocks;
};

struct Tile {
  int64_t row;
  int64_t col;  // the first element of the packet
};

MMFAST_HOST_DEVICE int32_t power_of_two_from(int64_t n, int32_t most) {
  int32_t power = 1;
  while (power < n && power < most) {
    power *= 2;
  }
  return power;
}

MMFAST_HOST_DEVICE Tiles tiles_of(int64_t rows, int64_t cols, int packet) {
  const int64_t packets = (cols + packet - 1) / packet;
  Tiles tiles;
  tiles.lanes = power_of_two_from(packets, kThreads);
  tiles.col_blocks = (packets + tiles.lanes - 1) / tiles.lanes;
  const int64_t lines = kThreads / tiles.lanes;
  tiles.blocks = (rows + lines - 1) / lines * tiles.col_blocks;
  return tiles;
}

MMFAST_HOST_DEVICE Tile tile_at(const Tiles& tiles, int64_t block, int thread, int packet) {
  int64_t row_block = block;
  int64_t col_block = 0;
  if (tiles.col_blocks == tiles.blocks) {  // one line of blocks
    row_block = 0;
    col_block = block;
  } else if (tiles.col_blocks > 1) {
    row_block = block / tiles.col_blocks;
    col_block = block - row_block * tiles.col_blocks;
  }
  const int lines = kThreads / tiles.lanes;
  return {row_block * lines + thread / tiles.lanes,
          (col_block * tiles.lanes + thread % tiles.lanes) * packet};
}

// Row by row: a group of `lanes` threads, a power of two, takes `steps` rows. Up to 32 lanes are
// part of a warp; more are the whole block. Rows that neighbouring groups read are neighbours.
struct Groups {
  int32_t lanes;
  int32_t steps;
  int64_t blocks;
};

MMFAST_HOST_DEVICE int32_t groups_in_block(const Groups& groups) { return kThreads / groups.lanes; }

MMFAST_HOST_DEVICE int64_t row_at(const Groups& groups, int64_t block, int group, int step) {
  return (block * groups.steps + step) * groups_in_block(groups) + group;
}

// Shared memory of a block: `bytes` for each group, and what sums over more than a warp need.
constexpr int64_t kSharedBytes = 48 * 1024;
constexpr int64_t kScratchBytes = kThreads / 32 * kTogether * 8;

MMFAST_HOST_DEVICE int64_t shared_bytes(const Groups& groups, int64_t bytes) {
  return groups_in_block(groups) * bytes + kScratchBytes;
}

// `packets_each`: of a row's packets, how many a lane should take; `bytes`: shared memory of a
// group. As few steps as keep `wanted` blocks busy, but no more than `most`: sums of many rows are
// begun anew for every group.
MMFAST_HOST_DEVICE Groups groups_of(int64_t rows, int64_t packets, int packets_each, int64_t bytes,
                                    int64_t wanted, int32_t most) {
  Groups groups;
  const int64_t lanes = (packets + packets_each - 1) / packets_each;
  groups.lanes = lanes > 32 ? kThreads : power_of_two_from(lanes, 32);
  while (groups.lanes < kThreads && shared_bytes(groups, bytes) > kSharedBytes) {
    groups.lanes = groups.lanes < 32 ? 2 * groups.lanes : kThreads;
  }
  const int64_t in_block = groups_in_block(groups);
  const int64_t blocks = (rows + in_block - 1) / in_block;
  const int64_t steps = wanted > 0 ? blocks / wanted : 1;
  groups.steps = static_cast<int32_t>(steps < 1 ? 1 : steps > most ? most : steps);
  groups.blocks = (blocks + groups.steps - 1) / groups.steps;
  return groups;
}

}  // namespace mmfast::cuda
