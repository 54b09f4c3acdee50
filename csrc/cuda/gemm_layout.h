// Where the elements of a tile lie: shared memory, descriptors, registers. Plain functions, so that
// tests can run them on a machine without a GPU.
//
// A tile in shared memory is a row of blocks; a block is up to 256 lines of 128 bytes, that is of
// 64 16-bit elements. "Line" and "element" are what TMA's box calls its outer and inner dimension:
//   K-major   a line is a row of the tile's M or N, its elements run along K; one block
//   MN-major  a line is a step of K, its elements run along M or N; one block per 64 rows of M or N
// Blocks start at multiples of 1024 bytes, as the 128-byte swizzle asks.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace mmfast::cuda {

enum class Major : int { k = 0, mn = 1 };

constexpr int kBlockK = 64;      // features per step of the pipeline
constexpr int kLineBytes = 128;  // of shared memory: 64 elements of 16 bits
constexpr int kLineElements = 64;
constexpr int kBlockBytes = kBlockK * kLineBytes;  // of an MN-major block, and of 64 K-major lines

// CU_TENSOR_MAP_SWIZZLE_128B: bits 4..6 of the address, which 16-byte unit of a line, are xored
// with bits 7..9, which line of eight. `unit` is in 0 .. 7.
MMFAST_HOST_DEVICE int swizzled_offset(int line, int unit) {
  return line * kLineBytes + ((unit ^ (line & 7)) << 4);
}

// The byte where element (row of M or N, k) of a tile starts.
MMFAST_HOST_DEVICE int element_offset(Major major, int row, int k) {
  if (major == Major::k) {
    return swizzled_offset(row, k >> 3) + (k & 7) * 2;
  }
  return (row >> 6) * kBlockBytes + swizzled_offset(k, (row & 63) >> 3) + (row & 7) * 2;
}

// The wgmma matrix descriptor (PTX ISA, "Asynchronous warpgroup-level matrix multiply, matrix
// descriptor"); addresses and offsets in units of 16 bytes:
//   bits  0..13  start address
//   bits 16..29  leading dimension offset
//   bits 32..45  stride dimension offset
//   bits 49..51  base offset: 0, since the swizzle's pattern starts at multiples of 1024 bytes
//   bits 62..63  swizzle: 1 for 128 bytes
// With the 128-byte swizzle, K-major, the stride offset leads from 8 rows to the next 8, and the
// leading offset is not read. MN-major, the stride offset leads from 8 steps of K to the next 8,
// and the leading offset from 64 rows to the next 64.
MMFAST_HOST_DEVICE uint64_t matrix_descriptor(Major major, uint32_t shared_address) {
  constexpr uint64_t kSwizzle128 = 1;
  const uint64_t leading = major == Major::k ? 1 : kBlockBytes >> 4;
  const uint64_t stride = (8 * kLineBytes) >> 4;
  return static_cast<uint64_t>((shared_address & 0x3FFFF) >> 4) | (leading << 16) | (stride << 32) |
         (kSwizzle128 << 62);
}

// What to add to a descriptor to go 16 features on: 32 bytes along the line, or 16 lines.
MMFAST_HOST_DEVICE constexpr uint64_t descriptor_step(Major major) {
  return (major == Major::k ? 32 : 16 * kLineBytes) >> 4;
}

// Registers of a product of 16 rows and 32 columns in a warp; the layout of four mma.m16n8, and of
// 32 columns of a warp's share of wgmma.m64n*.
constexpr int kFragmentRows = 16;
constexpr int kFragmentCols = 32;
constexpr int kFragmentRegisters = 16;

MMFAST_HOST_DEVICE int fragment_row(int lane, int i) { return (lane >> 2) + ((i >> 1) & 1) * 8; }
MMFAST_HOST_DEVICE int fragment_col(int lane, int i) {
  return (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
}

// A fragment passes through shared memory so that memory sees whole lines: each lane then holds
// four neighbours of a row. The xor keeps both sides free of bank conflicts.
constexpr int kStagingFloats = kFragmentRows * kFragmentCols;

MMFAST_HOST_DEVICE int staging_offset(int row, int col) {
  return row * kFragmentCols + (col ^ ((row & 3) << 3));
}
MMFAST_HOST_DEVICE int staged_row(int lane, int step) { return (lane >> 3) + step * 4; }
MMFAST_HOST_DEVICE int staged_col(int lane) { return (lane & 7) * 4; }
constexpr int kStagedSteps = 4;

// ldmatrix.x4 for mma.m16n8k16: which (row of M or N, k) the address of a lane names, relative to
// the 16 by 16 corner that the four 8 by 8 matrices cover. They arrive in the order of the
// registers of A, or of B for two neighbours of 8 columns. MN-major operands are transposed by the
// load.
struct Corner {
  int row;
  int k;
};
MMFAST_HOST_DEVICE Corner load_corner_a(Major major, int lane) {
  return major == Major::k ? Corner{lane & 15, (lane >> 4) * 8}
                           : Corner{((lane >> 3) & 1) * 8, (lane & 7) + (lane >> 4) * 8};
}
MMFAST_HOST_DEVICE Corner load_corner_b(Major major, int lane) {
  return major == Major::k ? Corner{(lane & 7) + (lane >> 4) * 8, ((lane >> 3) & 1) * 8}
                           : Corner{(lane >> 4) * 8, lane & 15};
}

}  // namespace mmfast::cuda
