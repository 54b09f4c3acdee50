// What forward and the two gradients differ in.
#pragma once

#include "gemm.h"

namespace mmfast::cuda {

template <GemmKind kind>
struct Majors {  // forward
  static constexpr Major a = Major::k;
  static constexpr Major b = Major::k;
};
template <>
struct Majors<GemmKind::input_gradient> {
  static constexpr Major a = Major::k;
  static constexpr Major b = Major::mn;
};
template <>
struct Majors<GemmKind::weight_gradient> {
  static constexpr Major a = Major::mn;
  static constexpr Major b = Major::mn;
};

// Where a tile's columns are: forward, all in panel 0.
struct TileCols {
  int panel;
  int32_t first;
};
template <GemmKind kind>
__device__ __forceinline__ TileCols tile_cols_of(const GemmArgs& args, int32_t col_tile, int width) {
  if constexpr (kind == GemmKind::forward) {
    return {0, col_tile * width};
  } else {
    const int panel = group_of(args.first, args.groups, col_tile);
    return {panel, (col_tile - args.first[panel]) * width};
  }
}

}  // namespace mmfast::cuda
