// The index arithmetic of csrc/cuda/rows.h, for ctypes.
#include "csrc/cuda/rows.h"

using namespace mmfast::cuda;

extern "C" {

void mmfast_tiles_of(int64_t rows, int64_t cols, int64_t packet, int64_t* out) {
  const Tiles tiles = tiles_of(rows, cols, static_cast<int>(packet));
  out[0] = tiles.lanes;
  out[1] = tiles.col_blocks;
  out[2] = tiles.blocks;
}

void mmfast_tile_at(int64_t rows, int64_t cols, int64_t packet, int64_t block, int64_t thread,
                    int64_t* out) {
  const Tile tile = tile_at(tiles_of(rows, cols, static_cast<int>(packet)), block,
                            static_cast<int>(thread), static_cast<int>(packet));
  out[0] = tile.row;
  out[1] = tile.col;
}

void mmfast_groups_of(int64_t rows, int64_t packets, int64_t packets_each, int64_t bytes,
                      int64_t wanted, int64_t most, int64_t* out) {
  const Groups groups = groups_of(rows, packets, static_cast<int>(packets_each), bytes, wanted,
                                  static_cast<int>(most));
  out[0] = groups.lanes;
  out[1] = groups.steps;
  out[2] = groups.blocks;
  out[3] = shared_bytes(groups, bytes);
}

int64_t mmfast_row_at(int lanes, int steps, int64_t block, int group, int step) {
  return row_at(Groups{lanes, steps, 0}, block, group, step);
}

int64_t mmfast_offset_of(int dims, const int64_t* sizes, const int64_t* strides, int64_t row) {
  Rows rows{};
  rows.dims = dims;
  RowSource source{};
  for (int d = 0; d < dims; ++d) {
    rows.sizes[d] = d + 1 < dims ? sizes[d] : 0;
    source.strides[d] = strides[d];
  }
  return offset_of(source, place_of(rows, row));
}
}
