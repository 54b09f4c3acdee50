// The product on Hopper: TMA brings tiles into shared memory, wgmma multiplies them.
//
// A persistent block of two consumer warpgroups and a producer warp. One thread of the producer
// asks TMA for the next step's tiles as soon as a slot of the ring is free, over the bounds of
// inputs and of result tiles. The consumers each multiply 64 rows of the tile and write them. Every
// slot has two barriers: `full` completes when all bytes have arrived, `empty` when every consumer
// warp has read them. Tiles up to 128 columns leave room for two blocks per multiprocessor: one
// multiplies while the other writes. Nine warps leave each thread 96 registers then, and 168 with
// one block: enough for the sums, so that registers need not be moved from producer to consumers.
#pragma once

#include "gemm_epilogue.cuh"
#include "gemm_kinds.h"
#include "gemm_tiles.h"

namespace mmfast::cuda {

// Loads `rows` rows of M or N, from `row` on, of one step of K.
template <Major major, int rows>
MMFAST_DEVICE void load_tile(uint32_t to, const CUtensorMap* map, uint32_t barrier, int32_t row,
                             int32_t k) {
  if constexpr (major == Major::k) {
    tma_load(to, map, barrier, k, row);
  } else {
#pragma unroll
    for (int i = 0; i < rows / kLineElements; ++i) {
      tma_load(to + i * kBlockBytes, map, barrier, row + i * kLineElements, k);
    }
  }
}

template <GemmKind kind, int tile_cols>
MMFAST_DEVICE void produce(const TensorMapArgs& args, uint32_t slots, uint32_t full,
                           uint32_t empty) {
  using Config = Sm90Tile<tile_cols>;
  const Schedule& schedule = args.gemm.schedule;
  RingPosition ring;
  for (int32_t t = blockIdx.x; t < schedule.tiles(); t += gridDim.x) {
    const GemmTile tile = gemm_tile_at(schedule, t);
    const TileCols cols = tile_cols_of<kind>(args.gemm, tile.col, tile_cols);
    const int32_t row = tile.row * kTileRows;
    const int32_t end = split_begin(schedule, tile.split + 1);
    for (StepWalker walker = walk_split<kind>(args.gemm, tile.split); walker.step < end;
         walker.next()) {
      const StepLoads loads = step_loads<kind>(args.gemm, cols, walker);
      const uint32_t slot = slots + ring.slot * Config::kSlotBytes;
      const uint32_t arrived = full + ring.slot * 8;
      barrier_wait(empty + ring.slot * 8, ring.parity ^ 1);
      barrier_arrive_expect(arrived, Config::kSlotBytes);
      load_tile<Majors<kind>::a, kTileRows>(slot, &args.a[loads.a], arrived, row, loads.k);
      load_tile<Majors<kind>::b, tile_cols>(slot + Config::kBytesA, &args.b[loads.b], arrived,
                                            loads.whole_b_row, loads.whole_b_k);
      ring.next(Config::kSlots);
    }
  }
}

template <typename T, GemmKind kind, int tile_cols>
MMFAST_DEVICE void consume(const GemmArgs& args, uint32_t slots, float* staging, uint32_t full,
                           uint32_t empty, int consumer) {
  using Config = Sm90Tile<tile_cols>;
  constexpr Major major_a = Majors<kind>::a;
  constexpr Major major_b = Majors<kind>::b;
  const Schedule& schedule = args.schedule;
  const int lane = threadIdx.x & 31;
  const int warp = (threadIdx.x >> 5) & 3;
  float sums[tile_cols / 2];
  RingPosition ring;
  for (int32_t t = blockIdx.x; t < schedule.tiles(); t += gridDim.x) {
    const GemmTile tile = gemm_tile_at(schedule, t);
    const int32_t begin = split_begin(schedule, tile.split);
    const int32_t end = split_begin(schedule, tile.split + 1);
    uint32_t previous = 0;
    for (int32_t step = begin; step < end; ++step) {
      const uint32_t slot = slots + ring.slot * Config::kSlotBytes;
      barrier_wait(full + ring.slot * 8, ring.parity);
      const uint64_t a = matrix_descriptor(major_a, slot + consumer * 64 * kLineBytes);
      const uint64_t b = matrix_descriptor(major_b, slot + Config::kBytesA);
      pin(sums);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kBlockK / 16; ++k) {
        Wgmma<T, tile_cols, major_a, major_b>::run(sums, a + k * descriptor_step(major_a),
                                                   b + k * descriptor_step(major_b),
                                                   step > begin || k > 0);
      }
      wgmma_commit();
      // The products of the step before are done once only this step's are pending.
      wgmma_wait<1>();
      if (step > begin && lane == 0) {
        barrier_arrive(empty + previous * 8);
      }
      previous = ring.slot;
      ring.next(Config::kSlots);
    }
    wgmma_wait<0>();
    pin(sums);
    if (lane == 0) {
      barrier_arrive(empty + previous * 8);
    }

    const TileCols cols = tile_cols_of<kind>(args, tile.col, tile_cols);
    const int32_t row = tile.row * kTileRows + consumer * 64 + warp * kFragmentRows;
    const AddendRows<kind> mine(args, lane, row);
#pragma unroll 1
    for (int part = 0; part < tile_cols / kFragmentCols; ++part) {
#pragma unroll
      for (int i = 0; i < tile_cols / kFragmentCols; ++i) {
        if (i == part) {
          stage_fragment(staging, lane, sums + i * kFragmentRegisters);
        }
      }
      __syncwarp();
      write_fragment<T>(args, staging, lane, cols.panel, tile.split, row,
                        cols.first + part * kFragmentCols, mine);
      __syncwarp();
    }
  }
}

template <typename T, GemmKind kind, int tile_cols>
__global__ void __launch_bounds__(kSm90Threads, Sm90Tile<tile_cols>::kBlocksPerMultiprocessor)
    gemm_sm90(const __grid_constant__ TensorMapArgs args) {
#ifdef MMFAST_SM90A
  using Config = Sm90Tile<tile_cols>;
  MMFAST_GEMM_SHARED(shared);
  const uint32_t slots = shared_address(shared);
  float* staging = reinterpret_cast<float*>(shared + Config::kSlots * Config::kSlotBytes);
  const uint32_t full = shared_address(staging) + Config::kStagingBytes;
  const uint32_t empty = full + Config::kSlots * 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kSlots; ++i) {
      barrier_init(full + i * 8, 1);   // the producer's, and the bytes it announces
      barrier_init(empty + i * 8, 8);  // one per consumer warp
    }
    barriers_made();
  }
  __syncthreads();
  // The same in every lane of a warp, and the compiler knows it.
  const int warp = __shfl_sync(0xffffffff, threadIdx.x >> 5, 0);
  if (warp == 8) {
    if ((threadIdx.x & 31) == 0) {
      produce<kind, tile_cols>(args, slots, full, empty);
    }
  } else {
    consume<T, kind, tile_cols>(args.gemm, slots, staging + warp * kStagingFloats, full, empty,
                                warp >> 2);
  }
#endif
}

template <typename T, GemmKind kind, int tile_cols>
cudaError_t launch_sm90(const TensorMapArgs& args, int multiprocessors, cudaStream_t stream) {
  using Config = Sm90Tile<tile_cols>;
  const int32_t most = multiprocessors * Config::kBlocksPerMultiprocessor;
  const int32_t tiles = args.gemm.schedule.tiles();
  return launch_blocks(gemm_sm90<T, kind, tile_cols>, tiles < most ? tiles : most, kSm90Threads,
                       Config::kSharedBytes, stream, args);
}

template <typename T, GemmKind kind>
cudaError_t launch_sm90(int tile_cols, const TensorMapArgs& args, int multiprocessors,
                        cudaStream_t stream) {
  switch (tile_cols) {
    case 64:
      return launch_sm90<T, kind, 64>(args, multiprocessors, stream);
    case 128:
      return launch_sm90<T, kind, 128>(args, multiprocessors, stream);
    case 256:
      return launch_sm90<T, kind, 256>(args, multiprocessors, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace mmfast::cuda
