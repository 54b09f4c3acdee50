// What forward and the two gradients differ in.
#pragma once

#include "gemm_args.h"

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
MMFAST_HOST_DEVICE TileCols tile_cols_of(const GemmArgs& args, int32_t col_tile, int width) {
  if constexpr (kind == GemmKind::forward) {
    return {0, col_tile * width};
  } else {
    const int panel = group_of(args.first, args.groups, col_tile);
    return {panel, (col_tile - args.first[panel]) * width};
  }
}

template <GemmKind kind>
MMFAST_HOST_DEVICE StepWalker walk_split(const GemmArgs& args, int32_t split) {
  return StepWalker(args.first, kind == GemmKind::forward ? args.groups : 1,
                    split_begin(args.schedule, split));
}

// What a step of K reads: which operands, the first of its features, and, where b is the whole
// weight, its first row of N and its first feature there.
struct StepLoads {
  int a;
  int b;
  int32_t k;
  int32_t whole_b_row;
  int32_t whole_b_k;
};
template <GemmKind kind>
MMFAST_HOST_DEVICE StepLoads step_loads(const GemmArgs& args, const TileCols& cols,
                                        const StepWalker& walker) {
  if constexpr (kind == GemmKind::forward) {
    const int32_t k = walker.feature();
    return {walker.group, walker.group, k, cols.first, args.origin[walker.group] + k};
  } else {
    const int32_t k = walker.step * kBlockK;
    const int32_t origin = kind == GemmKind::input_gradient ? args.origin[cols.panel] : 0;
    return {0, cols.panel, k, origin + cols.first, k};
  }
}

}  // namespace mmfast::cuda
