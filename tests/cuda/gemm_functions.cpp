// The index arithmetic of the CUDA matrix products, for ctypes: see test_gemm_functions.py.
#include <cstring>

#include "gemm_kinds.h"
#include "gemm_setup.h"
#include "gemm_tiles.h"

using namespace mmfast::cuda;

extern "C" {

// visits[row tile][col tile][step] of a forward schedule; steps holds (group, feature) of each
// step.
void visit(int64_t rows, int64_t cols, int groups, const int64_t* widths, int tile_cols, int splits,
           int strip, int32_t* visits, int32_t* steps) {
  GemmArgs args{};
  std::vector<WeightColumns> columns;
  for (int g = 0; g < groups; ++g) {
    columns.push_back({widths[g], 0});
  }
  set_forward(args, rows, cols, columns, Tiling{tile_cols, splits, 0});
  Schedule& schedule = args.schedule;
  schedule.strip_rows = strip;
  for (int32_t t = 0; t < schedule.tiles(); ++t) {
    const GemmTile tile = gemm_tile_at(schedule, t);
    const int32_t end = split_begin(schedule, tile.split + 1);
    for (StepWalker walker = walk_split<GemmKind::forward>(args, tile.split); walker.step < end;
         walker.next()) {
      ++visits[(tile.row * schedule.col_tiles + tile.col) * schedule.k_steps + walker.step];
      steps[walker.step * 2] = walker.group;
      steps[walker.step * 2 + 1] = walker.feature();
    }
  }
}

// (panel, first column in it) of each column tile of a backward schedule; returns their number.
int panels(int groups, const int64_t* widths, int tile_cols, int32_t* out) {
  GemmArgs args{};
  std::vector<WeightColumns> columns;
  for (int g = 0; g < groups; ++g) {
    columns.push_back({widths[g], 0});
  }
  set_backward(args, 1, 1, columns, Tiling{tile_cols, 1, 0});
  for (int32_t t = 0; t < args.schedule.col_tiles; ++t) {
    const TileCols found = tile_cols_of<GemmKind::input_gradient>(args, t, tile_cols);
    out[t * 2] = found.panel;
    out[t * 2 + 1] = found.first;
  }
  return args.schedule.col_tiles;
}

uint64_t descriptor(int mn_major, uint32_t address) {
  return matrix_descriptor(mn_major ? Major::mn : Major::k, address);
}
uint64_t step_of_descriptor(int mn_major) {
  return descriptor_step(mn_major ? Major::mn : Major::k);
}
int swizzled(int line, int unit) { return swizzled_offset(line, unit); }
int place(int mn_major, int row, int k) {
  return element_offset(mn_major ? Major::mn : Major::k, row, k);
}
int staging(int row, int col) { return staging_offset(row, col); }
int row_of_register(int lane, int i) { return fragment_row(lane, i); }
int col_of_register(int lane, int i) { return fragment_col(lane, i); }
int row_of_step(int lane, int step) { return staged_row(lane, step); }
int col_of_step(int lane) { return staged_col(lane); }
int unit(uint64_t address, int64_t stride) {
  return unit_of(reinterpret_cast<const void*>(address), stride);
}

int32_t row_of(int dims, const int32_t* sizes, const int32_t* strides, int32_t row) {
  RowDims shape{};
  shape.dims = dims;
  std::memcpy(shape.sizes, sizes, dims * sizeof(int32_t));
  return distinct_row(shape, strides, row);
}

// tile_cols, splits
void tiling(int multiprocessors, int hopper, int64_t rows, int64_t cols, int k_steps,
            int32_t* out) {
  const Tiling chosen =
      choose_tiling(Gpu{multiprocessors, hopper != 0}, hopper != 0, rows, {cols}, k_steps);
  out[0] = chosen.tile_cols;
  out[1] = chosen.splits;
}

}  // extern "C"
