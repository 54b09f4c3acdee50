// Which tiles a product is cut into, and whether its K is split: by a model of the time, from the
// shape and the GPU's size alone. Everything the model assumes stands in the one table below; none
// of it has been measured by mmfast.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gemm_schedule.h"

namespace mmfast::cuda {

// Per multiprocessor and clock cycle, of an H200 where not said otherwise.
struct GemmModel {
  double products_sm90 = 2048;  // multiply-adds of bfloat16: 989 TFLOP/s, 132 of them, 1.83 GHz
  double products_sm80 = 1024;  // mma.sync reaches about half of that on Hopper
  double load_bytes = 36;       // from L2 into shared memory, all multiprocessors loading
  double memory_bytes = 19;     // from memory: 4.3 TB/s
  double tile_cycles = 2000;    // to fill the pipeline and to write a tile
  double launch_cycles = 5000;  // a further kernel
  double clock = 1.75e9;        // cycles per second
  // The library: its rate for products this large, of the peak, and a launch from the host.
  double library_efficiency = 0.8;
  int32_t least_steps = 4;  // of K per split
  int32_t most_splits = 32;
};
constexpr GemmModel kGemmModel;

struct Gpu {
  int32_t multiprocessors;
  bool hopper;  // compute capability 9.0: TMA and wgmma
};

struct Tiling {
  int32_t tile_cols;
  int32_t splits;
  double cycles;  // what the model says
};

inline int32_t tiles_of(const std::vector<int64_t>& extents, int32_t size) {
  int32_t tiles = 0;
  for (int64_t extent : extents) {
    tiles += ceil_div(extent, size);
  }
  return tiles;
}

// `panels`: columns of each result; `tma`: gemm_sm90 rather than gemm_sm80.
inline double model_cycles(const Gpu& gpu, bool tma, int64_t rows,
                           const std::vector<int64_t>& panels, int32_t k_steps, int32_t tile_cols,
                           int32_t splits) {
  const GemmModel& model = kGemmModel;
  const int32_t blocks = tma && tile_cols == 256 ? 1 : 2;  // per multiprocessor
  const int64_t tiles =
      static_cast<int64_t>(ceil_div(rows, kTileRows)) * tiles_of(panels, tile_cols) * splits;
  // Rows that are not there are not loaded, but multiplied all the same.
  const int64_t loaded_rows = std::min<int64_t>(rows, kTileRows);
  const double step =
      std::max(static_cast<double>(kTileRows) * tile_cols * kBlockK /
                   (tma ? model.products_sm90 : model.products_sm80),
               static_cast<double>(loaded_rows + tile_cols) * kLineBytes / model.load_bytes);
  const double tile = step * ceil_div(k_steps, splits) + model.tile_cycles / blocks;
  const int64_t at_once = static_cast<int64_t>(gpu.multiprocessors) * blocks;
  const int64_t rest = tiles % at_once;
  double cycles = static_cast<double>(tiles / at_once) * blocks * tile +
                  (rest ? ceil_div(rest, gpu.multiprocessors) * tile + model.tile_cycles : 0);
  int64_t cols = 0;
  for (int64_t panel : panels) {
    cols += panel;
  }
  const double memory = model.memory_bytes * gpu.multiprocessors;
  const double operands = 2. * kBlockK * k_steps * static_cast<double>(rows + cols);
  cycles = std::max(cycles, operands / memory + model.tile_cycles);
  if (splits > 1) {
    const double partial = 4. * static_cast<double>(rows) * static_cast<double>(cols) * splits;
    cycles += 2 * partial / memory + model.launch_cycles;
  }
  return cycles;
}

inline Tiling choose_tiling(const Gpu& gpu, bool tma, int64_t rows,
                            const std::vector<int64_t>& panels, int32_t k_steps) {
  Tiling best{0, 0, 0};
  for (const int32_t tile_cols : {256, 128, 64}) {
    if (tile_cols == 256 && !tma) {
      continue;
    }
    const int32_t most = std::clamp(k_steps / kGemmModel.least_steps, 1, kGemmModel.most_splits);
    for (int32_t splits = 1; splits <= most; ++splits) {
      const double cycles = model_cycles(gpu, tma, rows, panels, k_steps, tile_cols, splits);
      if (best.tile_cols == 0 || cycles < best.cycles) {
        best = Tiling{tile_cols, splits, cycles};
      }
    }
  }
  return best;
}

// What the library takes for a product, were its operands in one piece.
inline double library_cycles(const Gpu& gpu, int64_t rows, int64_t cols, int64_t width) {
  const GemmModel& model = kGemmModel;
  const double rows_cols = static_cast<double>(rows) * static_cast<double>(cols);
  const double arithmetic = rows_cols * static_cast<double>(width) /
                            ((gpu.hopper ? model.products_sm90 : model.products_sm80) *
                             model.library_efficiency * gpu.multiprocessors);
  const double bytes =
      2 * (static_cast<double>(rows + cols) * static_cast<double>(width) + rows_cols);
  return std::max(arithmetic, bytes / (model.memory_bytes * gpu.multiprocessors)) +
         model.launch_cycles;
}

// What gathering `width` features of every row into one piece takes: a read and a write.
inline double gather_cycles(const Gpu& gpu, int64_t rows, int64_t width) {
  return 4 * static_cast<double>(rows) * static_cast<double>(width) /
             (kGemmModel.memory_bytes * gpu.multiprocessors) +
         kGemmModel.launch_cycles;
}

}  // namespace mmfast::cuda
