// Runs the kernels of gemm.h over a problem: packs, divides the work among threads, keeps scratch
// within bounds. Included after foreach_isa.h, by the file whose copies of the kernels it calls.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "concat_linear_call.h"
#include "gemm.h"

namespace mmfast {
namespace {

constexpr int64_t kLeftBytes = 64 * 1024;  // of rows that meet every panel before the next ones do
constexpr int64_t kCacheBytes = 256 * 1024;  // of a core's second-level cache, for one operand

// The kernels by element type: plans ask for them only where this machine has them.
inline void call_gemm(ScalarType from, ScalarType to, const GemmArgs& args, int64_t begin,
                      int64_t end) {
#if MMFAST_HAVE_X86_ISAS
  if (from == ScalarType::BFloat16) {
    to == ScalarType::Float ? isa_avx512_bf16::gemm<BFloat16, float>(args, begin, end)
                            : isa_avx512_bf16::gemm<BFloat16, BFloat16>(args, begin, end);
  } else {
    to == ScalarType::Float ? isa_avx512::gemm<float, float>(args, begin, end)
                            : isa_avx512_bf16::gemm<float, BFloat16>(args, begin, end);
  }
#endif
}

inline void call_pack_transposed(ScalarType dtype, const PackArgs& args) {
#if MMFAST_HAVE_X86_ISAS
  dtype == ScalarType::Float ? isa_avx512::pack_transposed<float>(args)
                             : isa_avx512_bf16::pack_transposed<BFloat16>(args);
#endif
}

inline void call_pack_straight(ScalarType dtype, const PackArgs& args) {
#if MMFAST_HAVE_X86_ISAS
  dtype == ScalarType::Float ? isa_avx512::pack_straight<float>(args)
                             : isa_avx512_bf16::pack_straight<BFloat16>(args);
#endif
}

inline void call_gemm_transposed(ScalarType dtype, const GemmTransposedArgs& args, int64_t begin,
                                 int64_t end, char* panel, char* pairs) {
#if MMFAST_HAVE_X86_ISAS
  dtype == ScalarType::Float
      ? isa_avx512::gemm_transposed<float>(args, begin, end, panel, pairs)
      : isa_avx512_bf16::gemm_transposed<BFloat16>(args, begin, end, panel, pairs);
#endif
}

// The matrix in the accumulator's type: itself, or for 16-bit elements a copy that `copy` keeps.
inline Matrix widened(const Call& call, const Matrix& x, std::optional<Tensor>& copy) {
  if (call.element_size > 2) {
    return x;
  }
  copy = empty_cpu({x.rows, x.cols}, call.accumulator_code());
  const WidenArgs args{copy->mutable_data_ptr(), x.data, x.row_stride, x.cols};
  parallel_for(0, x.rows, grain(x.cols), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(call.dtype, widen_rows, args, begin, end);
  });
  return matrix_of(*copy);
}

// The opposite: rounds rows of `x`, contiguous and of the accumulator's type, into `out`.
inline void narrow_into(const Call& call, const Matrix& out, const void* x) {
  const NarrowArgs args{out.data, out.row_stride, x, out.cols};
  parallel_for(0, out.rows, grain(out.cols), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(call.dtype, narrow_rows, args, begin, end);
  });
}

inline int64_t steps_of(const Call& call, int64_t features) {
  return (features * call.element_size + 3) / 4;
}

inline GemmSegment segment_of(const Call& call, const Matrix& x) {
  const bool odd = call.element_size == 2 && x.cols % 2 == 1;
  return GemmSegment{static_cast<const char*>(x.data), x.row_stride * call.element_size, 4,
                     x.cols * call.element_size / 4, odd};
}

// Where a panel's columns come from, and go to.
struct PanelPlan {
  int64_t first_col;  // in the right matrix
  int64_t cols;
  char* out;
  int64_t out_stride;
  int64_t col;
};

// Cuts `cols` columns into panels.
inline void add_panels(std::vector<PanelPlan>& panels, int64_t first_col, int64_t cols, char* out,
                       int64_t out_row_stride, int64_t out_element_size) {
  for (int64_t j = 0; j < cols; j += kPanelCols) {
    panels.push_back(PanelPlan{first_col + j, std::min(kPanelCols, cols - j),
                               out + j * out_element_size, out_row_stride * out_element_size, j});
  }
}

// out = act(left right + ...): `left` in segments, `pack(panel plan, memory)` fills one panel of
// `steps` steps. `args` brings rows and epilogue. `to`: the result's type, float32 or the
// element type of `call`.
template <typename Pack>
void run_gemm(const Call& call, const std::vector<GemmSegment>& segments, int64_t steps,
              const std::vector<PanelPlan>& plans, const Pack& pack, GemmArgs args, ScalarType to) {
  const int64_t panel_bytes = steps * 4 * kPanelCols;
  const int64_t count = static_cast<int64_t>(plans.size());
  const int64_t chunk = std::clamp<int64_t>(kScratchLimit / panel_bytes, 1, count);
  const Workspace workspace(chunk * panel_bytes);
  std::vector<GemmPanel> panels(chunk);
  args.segments = segments.data();
  args.segment_count = static_cast<int64_t>(segments.size());
  args.panels = panels.data();
  const int64_t fit = kLeftBytes / (steps * 4);
  args.block_rows = std::max<int64_t>(kTileRows, fit / kTileRows * kTileRows);
  const int64_t blocks = (args.rows + args.block_rows - 1) / args.block_rows;
  const int64_t threads = torch::stable::get_num_threads();
  for (int64_t first = 0; first < count; first += chunk) {
    args.panel_count = std::min(chunk, count - first);
    args.rows_first = args.panel_count * panel_bytes <= kCacheBytes;
    parallel_for(0, args.panel_count, grain(steps * kPanelCols), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const PanelPlan& plan = plans[first + p];
        char* memory = workspace.data() + p * panel_bytes;
        pack(plan, memory);
        panels[p] = GemmPanel{memory, plan.cols, plan.out, plan.out_stride, plan.col};
      }
    });
    // Enough units for every thread; which there are does not change any bit of the result.
    args.panel_groups = std::clamp<int64_t>(4 * threads / blocks, 1, args.panel_count);
    const int64_t units = blocks * args.panel_groups;
    const int64_t work = std::min(args.rows, args.block_rows) * steps * kPanelCols *
                         args.panel_count / args.panel_groups;
    parallel_for(0, units, grain(work / 8),
                 [&](int64_t begin, int64_t end) { call_gemm(call.dtype, to, args, begin, end); });
  }
}

// Rows of the gradient that stay in cache while every strip of the inputs meets them.
inline int64_t transposed_block_rows(const Call& call) {
  const int64_t fit = kCacheBytes / (call.shape.cols * call.element_size) / 2 * 2;
  return std::clamp<int64_t>(fit, 32, 1024);
}

// weight gradient = grad^T inputs: strips of the inputs' columns against all of grad. In float32,
// or `rounded` where one block holds all rows.
inline void run_gemm_transposed(const Call& call, const Matrix& grad,
                                const std::vector<GemmStrip>& strips, int64_t out_stride,
                                bool rounded) {
  const int64_t count = static_cast<int64_t>(strips.size());
  const int64_t tiles = (grad.cols + kTileRows - 1) / kTileRows;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t col_groups = count >= 2 * threads ? 1 : std::min(tiles, threads);
  const GemmTransposedArgs args{static_cast<const char*>(grad.data),
                                grad.rows,
                                grad.cols,
                                strips.data(),
                                out_stride,
                                std::min(grad.rows + grad.rows % 2, transposed_block_rows(call)),
                                rounded,
                                col_groups};
  const int64_t panel_bytes = args.block_rows * 4 * kPanelCols;
  parallel_for(0, count * col_groups, grain(grad.rows * grad.cols / col_groups * kPanelCols / 8),
               [&](int64_t begin, int64_t end) {
                 const int64_t pairs_bytes =
                     call.element_size == 2 ? args.block_rows * 2 * grad.cols : 0;
                 const Workspace workspace(panel_bytes + pairs_bytes);
                 call_gemm_transposed(call.dtype, args, begin, end, workspace.data(),
                                      workspace.data() + panel_bytes);
               });
}

}  // namespace
}  // namespace mmfast
