// Runs the kernels of few_rows.h: packs the inputs, divides the weight among threads. Included
// after gemm_driver.h.
#pragma once

#include <vector>

#include "concat_linear_call.h"
#include "few_rows.h"
#include "gemm_driver.h"

namespace mmfast {
namespace {

inline void call_few_rows(ScalarType from, ScalarType to, const FewRowsArgs& args, int64_t begin,
                          int64_t end) {
#if MMFAST_HAVE_X86_ISAS
  if (from == ScalarType::Float) {
    isa_avx512::few_rows<float, float>(args, begin, end);
  } else if (to == ScalarType::Float) {
    isa_avx512_bf16::few_rows<BFloat16, float>(args, begin, end);
  } else {
    isa_avx512_bf16::few_rows<BFloat16, BFloat16>(args, begin, end);
  }
#endif
}

inline void call_few_rows_input_gradient(ScalarType from, ScalarType to,
                                         const FewRowsInputArgs& args, int64_t begin, int64_t end,
                                         float* sums) {
#if MMFAST_HAVE_X86_ISAS
  if (from == ScalarType::BFloat16) {
    isa_avx512_bf16::few_rows_input_gradient<BFloat16, BFloat16>(args, begin, end, sums);
  } else if (to == ScalarType::BFloat16) {
    isa_avx512_bf16::few_rows_input_gradient<float, BFloat16>(args, begin, end, sums);
  } else {
    isa_avx512::few_rows_input_gradient<float, float>(args, begin, end, sums);
  }
#endif
}

inline void call_few_rows_weight_gradient(ScalarType dtype, bool rounded,
                                          const FewRowsWeightArgs& args, int64_t begin,
                                          int64_t end) {
#if MMFAST_HAVE_X86_ISAS
  if (dtype == ScalarType::Float) {
    isa_avx512::few_rows_weight_gradient<float, float>(args, begin, end);
  } else if (rounded) {
    isa_avx512_bf16::few_rows_weight_gradient<BFloat16, BFloat16>(args, begin, end);
  } else {
    isa_avx512_bf16::few_rows_weight_gradient<BFloat16, float>(args, begin, end);
  }
#endif
}

inline void call_pair_rows(const void* x, int64_t rows, int64_t cols, char* to) {
#if MMFAST_HAVE_X86_ISAS
  isa_avx512_bf16::pair_rows(static_cast<const BFloat16*>(x), rows, cols,
                             reinterpret_cast<uint32_t*>(to));
#endif
}

// Units of work of so many items each that every thread has several.
inline int64_t items_per_unit(int64_t items, int64_t most) {
  return std::clamp<int64_t>(items / (4 * torch::stable::get_num_threads()), 1, most);
}

// Whether so many rows are few, and, packed, fit scratch.
inline bool are_few_rows(int64_t rows, int64_t width) {
  const int64_t padded = (rows + kPanelCols - 1) / kPanelCols * kPanelCols;
  return rows <= kFewRows && padded * width * 4 <= kScratchLimit;
}

// The product of the members; `epilogue` brings rows, cols and what is added. `to`: the
// result's type, float32 or the element type.
inline void run_few_rows(const Call& call, const std::vector<int64_t>& members, void* out,
                         const GemmArgs& epilogue, ScalarType to) {
  struct Piece {
    int64_t source, feature, features, step;
  };
  constexpr int64_t kPieceFeatures = 512;
  std::vector<Piece> pieces;
  std::vector<GemmSegment> segments;
  int64_t steps = 0;
  int64_t segment_end = -1;  // the weight's column after the last segment, where another may follow
  for (int64_t i : members) {
    const Source& source = call.sources[i];
    const int64_t features = source.matrix.cols;
    for (int64_t k = 0; k < features; k += kPieceFeatures) {
      pieces.push_back(
          Piece{i, k, std::min(kPieceFeatures, features - k), steps + k * call.element_size / 4});
    }
    const GemmSegment segment = segment_of(call, call.weight_slice(source.offset, features));
    if (source.offset == segment_end && !segments.back().odd) {
      segments.back().steps += segment.steps;
      segments.back().odd = segment.odd;
    } else {
      segments.push_back(segment);
    }
    segment_end = source.offset + features;
    steps += steps_of(call, features);
  }
  const int64_t panel_bytes = steps * 4 * kPanelCols;
  const int64_t panels = (epilogue.rows + kPanelCols - 1) / kPanelCols;
  const Workspace workspace(panels * panel_bytes);
  const int64_t count = static_cast<int64_t>(pieces.size());
  parallel_for(0, panels * count, grain(4 * panel_bytes / count), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / count * kPanelCols;
      const Piece& piece = pieces[unit % count];
      const Matrix& x = call.sources[piece.source].matrix;
      const int64_t stride = x.row_stride * call.element_size;
      call_pack_transposed(
          call.dtype,
          PackArgs{
              static_cast<const char*>(x.data) + row * stride + piece.feature * call.element_size,
              stride, piece.features, std::min(kPanelCols, epilogue.rows - row),
              workspace.data() + unit / count * panel_bytes + piece.step * 4 * kPanelCols});
    }
  });
  FewRowsArgs args{};
  args.segments = segments.data();
  args.segment_count = static_cast<int64_t>(segments.size());
  args.panels = workspace.data();
  args.panel_bytes = panel_bytes;
  const int64_t tiles = (epilogue.cols + kTileRows - 1) / kTileRows;
  args.unit_cols = items_per_unit(tiles, kUnitCols / kTileRows) * kTileRows;
  args.out = static_cast<char*>(out);
  args.epilogue = epilogue;
  const int64_t units = (epilogue.cols + args.unit_cols - 1) / args.unit_cols;
  parallel_for(
      0, units, grain(args.unit_cols * steps * panels * 4),
      [&](int64_t begin, int64_t end) { call_few_rows(call.dtype, to, args, begin, end); });
}

// The gradients of inputs, from the panels of the weight's columns that belong to them.
inline void run_few_rows_input_gradient(const Call& call, const Matrix& grad,
                                        const std::vector<PanelPlan>& plans, ScalarType to) {
  std::vector<GemmPanel> panels;
  panels.reserve(plans.size());
  for (const PanelPlan& plan : plans) {
    panels.push_back(
        GemmPanel{static_cast<const char*>(call.weight_slice(plan.first_col, plan.cols).data),
                  plan.cols, plan.out, plan.out_stride, plan.col});
  }
  const int64_t count = static_cast<int64_t>(panels.size());
  const FewRowsInputArgs args{static_cast<const char*>(grad.data),        grad.rows,     grad.cols,
                              call.weight.row_stride * call.element_size, panels.data(), count};
  const int64_t units = (count + kUnitPanels - 1) / kUnitPanels;
  parallel_for(0, units, grain(grad.rows * grad.cols * kUnitPanels * 4),
               [&](int64_t begin, int64_t end) {
                 const Workspace sums(kUnitPanels * kFewRows * kPanelCols * 4);
                 call_few_rows_input_gradient(call.dtype, to, args, begin, end,
                                              reinterpret_cast<float*>(sums.data()));
               });
}

// The weight's gradient by strips of its columns, of the element type if `rounded`, else in
// float32. The strips, packed, fit scratch.
inline void run_few_rows_weight_gradient(const Call& call, const Matrix& grad,
                                         const std::vector<GemmStrip>& strips, int64_t out_stride,
                                         bool rounded) {
  const int64_t steps = steps_of(call, grad.rows);
  const int64_t panel_bytes = steps * 4 * kPanelCols;
  std::vector<GemmPanel> panels;
  panels.reserve(strips.size());
  for (const GemmStrip& strip : strips) {
    panels.push_back(GemmPanel{nullptr, strip.cols, strip.out, out_stride, 0});
  }
  const int64_t count = static_cast<int64_t>(panels.size());
  const bool pairs = call.element_size == 2;
  const Workspace workspace(count * panel_bytes + (pairs ? steps * 4 * grad.cols : 0));
  parallel_for(0, count, grain(steps * kPanelCols), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const GemmStrip& strip = strips[p];
      char* panel = workspace.data() + p * panel_bytes;
      call_pack_straight(call.dtype,
                         PackArgs{strip.x, strip.row_stride, grad.rows, strip.cols, panel});
      panels[p].b = panel;
    }
  });
  const char* left = static_cast<const char*>(grad.data);
  if (pairs) {
    char* to = workspace.data() + count * panel_bytes;
    call_pair_rows(grad.data, grad.rows, grad.cols, to);
    left = to;
  }
  const FewRowsWeightArgs args{left, steps, grad.cols, panels.data(), count};
  const int64_t units = (grad.cols + kTileRows - 1) / kTileRows;
  parallel_for(0, units, grain(kTileRows * (steps + 4) * count * 4),
               [&](int64_t begin, int64_t end) {
                 call_few_rows_weight_gradient(call.dtype, rounded, args, begin, end);
               });
}

}  // namespace
}  // namespace mmfast
