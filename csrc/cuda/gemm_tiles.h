// The sizes of the kernels' tiles and what follows from them.
#pragma once

#include "gemm_schedule.h"

namespace mmfast::cuda {

// A block of gemm_sm90: two consumer warpgroups of 64 rows each, one producer warp.
constexpr int kSm90Threads = 2 * 128 + 32;

template <int tile_cols>
struct Sm90Tile {
  static constexpr int kBlocksPerMultiprocessor = tile_cols == 256 ? 1 : 2;
  static constexpr int kSlots = tile_cols == 128 ? 3 : 4;
  static constexpr int kBytesA = kTileRows * kLineBytes;
  static constexpr int kBytesB = tile_cols * kLineBytes;
  static constexpr int kSlotBytes = kBytesA + kBytesB;
  static constexpr int kStagingBytes = 8 * kStagingFloats * 4;  // a fragment per consumer warp
  static constexpr int kSharedBytes = kSlots * kSlotBytes + kStagingBytes + 2 * kSlots * 8;
  // A multiprocessor has 228 KiB; each block takes 1 KiB more than it asks for.
  static_assert(kBlocksPerMultiprocessor * (kSharedBytes + 1024) <= 228 * 1024);
};

// A block of gemm_sm80: eight warps, 2 by 4 over 128 columns, 4 by 2 over 64; each has 32 columns.
constexpr int kSm80Threads = 256;

template <int tile_cols>
struct Sm80Tile {
  static constexpr int kSlots = 3;
  static constexpr int kBytesA = kTileRows * kLineBytes;
  static constexpr int kBytesB = tile_cols * kLineBytes;
  static constexpr int kSlotBytes = kBytesA + kBytesB;
  // 96 KiB: within the 99 that the smallest of these GPUs grant. The epilogue reuses it.
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
  static_assert(kSharedBytes <= 99 * 1024);
  static constexpr int kWarpsAcross = tile_cols / kFragmentCols;
  static constexpr int kWarpRows = kTileRows * kWarpsAcross / 8;
  static constexpr int kFragments = kWarpRows / kFragmentRows;

  static MMFAST_HOST_DEVICE int warp_row(int warp) { return warp / kWarpsAcross * kWarpRows; }
  static MMFAST_HOST_DEVICE int warp_col(int warp) { return warp % kWarpsAcross * kFragmentCols; }
};

// Which line and 16-byte unit of a tile of `rows` rows of M or N a thread of gemm_sm80 loads as its
// i-th.
struct LineUnit {
  int line;
  int unit;
};
template <Major major, int rows>
MMFAST_HOST_DEVICE LineUnit loaded_unit(int thread, int i) {
  constexpr int units = major == Major::k ? kBlockK / 8 : rows / 8;  // of a line
  const int at = i * kSm80Threads + thread;
  return {at / units, at % units};
}
template <int rows>
constexpr int kLoadsPerThread = rows * kBlockK / 8 / kSm80Threads;

}  // namespace mmfast::cuda
