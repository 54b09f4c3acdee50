// The product on any GPU from compute capability 8.0 on: cp.async brings tiles, mma.sync
// multiplies.
//
// A block of eight warps per tile of the result. Rows may be picked by an index, and may start at
// any address: what cannot be copied 16 bytes at a time is copied 8, 4 or 2 at a time. What lies
// outside a matrix is written as zeros, so that it adds nothing whatever stands there.
#pragma once

#include "gemm_epilogue.cuh"
#include "gemm_kinds.h"
#include "gemm_tiles.h"

namespace mmfast::cuda {

// Eight elements from column `col` on; `row` is the operand's own, or negative for zeros.
MMFAST_DEVICE void load_unit(const Operand& x, int64_t row, int32_t col, uint32_t to,
                             bool whole_units) {
  const int32_t left = x.cols - col;
  const int count = row < 0 || left <= 0 ? 0 : left < 8 ? left : 8;
  const char* from = static_cast<const char*>(x.data);
  if (count > 0) {
    from += (row * x.stride + col) * 2;
  }
  if (whole_units) {
    copy_async(to, from, count * 2);
  } else if (x.unit == 8) {
    copy_async_narrow<8>(to, from, count * 2);
  } else if (x.unit == 4) {
    copy_async_narrow<4>(to, from, count * 2);
  } else {
    uint32_t words[4] = {0, 0, 0, 0};
    const auto* elements = reinterpret_cast<const uint16_t*>(from);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) {
        words[i / 2] |= static_cast<uint32_t>(elements[i]) << (i % 2 * 16);
      }
    }
    store_shared(to, words);
  }
}

MMFAST_DEVICE int64_t picked_row(const Operand& x, int32_t row) {
  if (row >= x.rows) {
    return -1;
  }
  return x.index ? x.index[row] : row;
}

template <Major major, int rows>
MMFAST_DEVICE void load_nth(const Operand& x, int32_t row, int32_t k, uint32_t to, int i,
                            bool whole_units) {
  const auto [line, unit] = loaded_unit<major, rows>(threadIdx.x, i);
  if constexpr (major == Major::k) {
    load_unit(x, picked_row(x, row + line), k + unit * 8,
              to + element_offset(major, line, unit * 8), whole_units);
  } else {
    load_unit(x, picked_row(x, k + line), row + unit * 8,
              to + element_offset(major, unit * 8, line), whole_units);
  }
}

// The `rows` rows of M or N of a tile from `row` on, one step of K from `k` on.
template <Major major, int rows>
MMFAST_DEVICE void load_tile(const Operand& x, int32_t row, int32_t k, uint32_t to) {
  if (x.unit == 16) {
#pragma unroll 2  // all at once need more registers than two blocks per multiprocessor leave
    for (int i = 0; i < kLoadsPerThread<rows>; ++i) {
      load_nth<major, rows>(x, row, k, to, i, true);
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < kLoadsPerThread<rows>; ++i) {
      load_nth<major, rows>(x, row, k, to, i, false);
    }
  }
}

// sums[fragment] += a warp's share of one step of K.
template <typename T, GemmKind kind, int tile_cols>
MMFAST_DEVICE void multiply_step(
    uint32_t slot, int lane, int warp_row, int warp_col,
    float (&sums)[Sm80Tile<tile_cols>::kFragments][kFragmentRegisters]) {
  using Config = Sm80Tile<tile_cols>;
  constexpr Major major_a = Majors<kind>::a;
  constexpr Major major_b = Majors<kind>::b;
  const Corner corner_a = load_corner_a(major_a, lane);
  const Corner corner_b = load_corner_b(major_b, lane);
#pragma unroll
  for (int k = 0; k < kBlockK; k += 16) {
    uint32_t b[2][4];  // 16 columns each
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      load_matrices<major_b>(
          slot + Config::kBytesA +
              element_offset(major_b, warp_col + j * 16 + corner_b.row, k + corner_b.k),
          b[j]);
    }
#pragma unroll
    for (int i = 0; i < Config::kFragments; ++i) {
      uint32_t a[4];
      load_matrices<major_a>(
          slot + element_offset(major_a, warp_row + i * 16 + corner_a.row, k + corner_a.k), a);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        multiply_add(T(), sums[i] + j * 4, a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

template <typename T, GemmKind kind, int tile_cols>
__global__ void __launch_bounds__(kSm80Threads, 2)
    gemm_sm80(const __grid_constant__ OperandArgs args) {
  using Config = Sm80Tile<tile_cols>;
  MMFAST_GEMM_SHARED(shared);
  const uint32_t slots = shared_address(shared);
  const GemmArgs& gemm = args.gemm;
  const GemmTile tile = gemm_tile_at(gemm.schedule, blockIdx.x);
  const TileCols cols = tile_cols_of<kind>(gemm, tile.col, tile_cols);
  const int32_t tile_row = tile.row * kTileRows;
  const int32_t begin = split_begin(gemm.schedule, tile.split);
  const int32_t end = split_begin(gemm.schedule, tile.split + 1);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int warp_row = Config::warp_row(warp);
  const int warp_col = Config::warp_col(warp);

  StepWalker walker = walk_split<kind>(gemm, tile.split);
  RingPosition filled;
  const auto load_next = [&] {
    if (walker.step < end) {
      const StepLoads loads = step_loads<kind>(gemm, cols, walker);
      const uint32_t slot = slots + filled.slot * Config::kSlotBytes;
      load_tile<Majors<kind>::a, kTileRows>(args.a[loads.a], tile_row, loads.k, slot);
      load_tile<Majors<kind>::b, tile_cols>(args.b[loads.b], cols.first, loads.k,
                                            slot + Config::kBytesA);
      walker.next();
      filled.next(Config::kSlots);
    }
    // One group per step, empty at the end, so that waiting can count them.
    copies_commit();
  };

  float sums[Config::kFragments][kFragmentRegisters] = {};
  RingPosition ready;
  for (int i = 0; i < Config::kSlots - 1; ++i) {
    load_next();
  }
  for (int32_t step = begin; step < end; ++step) {
    copies_wait<Config::kSlots - 2>();
    __syncthreads();  // this step has arrived, and everybody has read the slot to fill next
    load_next();
    multiply_step<T, kind, tile_cols>(slots + ready.slot * Config::kSlotBytes, lane, warp_row,
                                      warp_col, sums);
    ready.next(Config::kSlots);
  }

  copies_wait<0>();
  __syncthreads();  // the ring becomes the epilogue's
  float* staging = reinterpret_cast<float*>(shared) + warp * kStagingFloats;
#pragma unroll
  for (int i = 0; i < Config::kFragments; ++i) {
    const int32_t row = tile_row + warp_row + i * kFragmentRows;
    const AddendRows<kind> addends(gemm, lane, row);
    stage_fragment(staging, lane, sums[i]);
    __syncwarp();
    write_fragment<T>(gemm, staging, lane, cols.panel, tile.split, row, cols.first + warp_col,
                      addends);
    __syncwarp();
  }
}

template <typename T, GemmKind kind, int tile_cols>
cudaError_t launch_sm80(const OperandArgs& args, cudaStream_t stream) {
  using Config = Sm80Tile<tile_cols>;
  return launch_blocks(gemm_sm80<T, kind, tile_cols>, args.gemm.schedule.tiles(), kSm80Threads,
                       Config::kSharedBytes, stream, args);
}

template <typename T, GemmKind kind>
cudaError_t launch_sm80(int tile_cols, const OperandArgs& args, cudaStream_t stream) {
  switch (tile_cols) {
    case 64:
      return launch_sm80<T, kind, 64>(args, stream);
    case 128:
      return launch_sm80<T, kind, 128>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace mmfast::cuda
