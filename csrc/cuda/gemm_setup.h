// Fills the kernels' arguments from shapes. Plain functions, tested without a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm_args.h"
#include "gemm_tiling.h"

namespace mmfast::cuda {

// A group's columns of the weight: an input's features, and where they begin.
struct WeightColumns {
  int64_t cols;
  int64_t origin;
};

inline int32_t steps_of(int64_t features) { return ceil_div(features, kBlockK); }

// Bytes that may be read at a time from the start of every row.
inline int32_t unit_of(const void* data, int64_t stride) {
  const int64_t misfit = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data)) | stride * 2;
  return misfit % 16 == 0 ? 16 : misfit % 8 == 0 ? 8 : misfit % 4 == 0 ? 4 : 2;
}

inline Operand make_operand(const void* data, int64_t rows, int64_t cols, int64_t stride,
                            const int64_t* index = nullptr) {
  return Operand{data,
                 index,
                 stride,
                 static_cast<int32_t>(rows),
                 static_cast<int32_t>(cols),
                 unit_of(data, stride)};
}

inline const void* columns_from(const void* matrix, int64_t col) {
  return static_cast<const char*>(matrix) + col * 2;
}

inline void set_schedule(GemmArgs& args, int64_t rows, int32_t col_tiles, int32_t k_steps,
                         int32_t splits) {
  args.rows = static_cast<int32_t>(rows);
  // A strip keeps few rows of the inputs, and all of a narrow weight, in L2.
  constexpr int32_t kNarrowTiles = 16;
  constexpr int32_t kStrip = 8;
  args.schedule = Schedule{ceil_div(rows, kTileRows), col_tiles, k_steps, splits,
                           col_tiles <= kNarrowTiles ? 1 : kStrip};
}

// Forward: groups share the K of one result of `cols` columns.
inline void set_forward(GemmArgs& args, int64_t rows, int64_t cols,
                        const std::vector<WeightColumns>& groups, const Tiling& tiling) {
  args.groups = static_cast<int32_t>(groups.size());
  int32_t steps = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    args.first[g] = steps;
    args.origin[g] = static_cast<int32_t>(groups[g].origin);
    steps += steps_of(groups[g].cols);
  }
  args.first[groups.size()] = steps;
  set_schedule(args, rows, ceil_div(cols, tiling.tile_cols), steps, tiling.splits);
}

// Backward: groups are panels of the result; they share a K of `k` features.
inline void set_backward(GemmArgs& args, int64_t rows, int64_t k,
                         const std::vector<WeightColumns>& groups, const Tiling& tiling) {
  args.groups = static_cast<int32_t>(groups.size());
  int32_t tiles = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    args.first[g] = tiles;
    args.origin[g] = static_cast<int32_t>(groups[g].origin);
    tiles += ceil_div(groups[g].cols, tiling.tile_cols);
  }
  args.first[groups.size()] = tiles;
  set_schedule(args, rows, tiles, steps_of(k), tiling.splits);
}

// Columns of the partial sums, panels padded to four columns.
inline int32_t set_partial_cols(Epilogue& e, int panels) {
  int32_t cols = 0;
  for (int p = 0; p < panels; ++p) {
    e.partial_first[p] = cols;
    cols += ceil_div(e.panels[p].cols, 4) * 4;
  }
  e.partial_panels = panels;
  return e.partial_cols = cols;
}

// Whether rows of `stride` elements can be read or written four elements at a time.
inline bool fours(const void* data, int64_t stride, int64_t element_bytes) {
  return stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(4 * element_bytes) == 0;
}

inline bool can_move_fours(const Epilogue& e, int panels) {
  bool whole = fours(e.bias, 0, 2);
  for (int p = 0; p < panels; ++p) {
    const Panel& panel = e.panels[p];
    whole = whole && panel.cols % 4 == 0 && fours(panel.out, panel.stride, e.wide_out ? 4 : 2) &&
            fours(e.preactivation, panel.stride, 2);
  }
  for (int j = 0; j < e.addends; ++j) {
    whole = whole && fours(e.addend[j].data, 0, 4);
  }
  return whole;
}

}  // namespace mmfast::cuda
