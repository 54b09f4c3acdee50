// See gemm_product.h.
#include "gemm_product.h"

#include <memory>

namespace mmfast::cuda {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// Boxes of `lines` rows of 64 elements from a matrix with `cols` elements per row. What a box
// covers beyond the matrix is zero.
CUtensorMap tensor_map(const Call& call, const void* data, int64_t rows, int64_t cols,
                       int64_t stride, int lines) {
  static const auto encode = driver_symbol<EncodeTiled>("cuTensorMapEncodeTiled");
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  // The stride of a single row is not read but must be a multiple of 16 bytes.
  const cuuint64_t strides[] = {
      static_cast<cuuint64_t>(rows > 1 ? stride * 2 : (cols + 7) / 8 * 16)};
  const cuuint32_t box[] = {kLineElements, static_cast<cuuint32_t>(lines)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result = encode(
      &map, call.bfloat16() ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
      const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "concat_linear: the driver refused a tensor map (error ",
                  static_cast<int>(result), ") for a matrix of ", rows, " by ", cols,
                  " elements with row stride ", stride);
  return map;
}

// Runs `launch`, with room for partial sums if K is split, and then adds those.
template <typename Launch>
void with_splits(const Call& call, GemmArgs& args, int panels, const Launch& launch) {
  Epilogue& e = args.epilogue;
  e.vectors = can_move_fours(e, panels);
  std::optional<Tensor> partial;
  if (args.schedule.splits > 1) {
    const int64_t cols = set_partial_cols(e, panels);
    partial = call.empty({args.schedule.splits, args.rows, cols}, aoti_torch_dtype_float32());
    e.partial = static_cast<float*>(partial->mutable_data_ptr());
  }
  check(launch(), "concat_linear, product");
  if (partial) {
    check(launch_gemm_finish(call.bfloat16(), args, call.stream), "concat_linear, partial sums");
  }
}

template <GemmKind kind>
void launch_tma(const Call& call, TensorMapArgs& args, const Tiling& tiling, int panels) {
  with_splits(call, args.gemm, panels, [&] {
    const auto launch = call.bfloat16() ? launch_sm90<BFloat16, kind> : launch_sm90<Float16, kind>;
    return launch(tiling.tile_cols, args, call.gpu.multiprocessors, call.stream);
  });
}

template <GemmKind kind>
void launch_plain(const Call& call, OperandArgs& args, const Tiling& tiling, int panels) {
  with_splits(call, args.gemm, panels, [&] {
    const auto launch = call.bfloat16() ? launch_sm80<BFloat16, kind> : launch_sm80<Float16, kind>;
    return launch(tiling.tile_cols, args, call.stream);
  });
}

Operand operand_of(const ProductInput& input) {
  const Matrix& m = input.matrix;
  return make_operand(m.data, input.index ? input.rows : m.rows, m.cols, m.row_stride, input.index);
}

std::vector<int64_t> panel_cols(const std::vector<Panel>& panels) {
  std::vector<int64_t> cols;
  for (const Panel& panel : panels) {
    cols.push_back(panel.cols);
  }
  return cols;
}

void set_panels(Epilogue& e, const std::vector<Panel>& panels) {
  e.activation = Activation::none;
  std::copy(panels.begin(), panels.end(), e.panels);
}

}  // namespace

void run_forward(const Call& call, bool tma, int64_t rows, const std::vector<ProductInput>& inputs,
                 const std::vector<WeightColumns>& columns, const Matrix& weight,
                 const Epilogue& epilogue) {
  const int64_t cols = weight.rows;
  int32_t steps = 0;
  for (const WeightColumns& group : columns) {
    steps += steps_of(group.cols);
  }
  const Tiling tiling = choose_tiling(call.gpu, tma, rows, {cols}, steps);
  if (tma) {
    const auto args = std::make_unique<TensorMapArgs>();
    args->gemm.epilogue = epilogue;
    set_forward(args->gemm, rows, cols, columns, tiling);
    for (size_t g = 0; g < inputs.size(); ++g) {
      const Matrix& x = inputs[g].matrix;
      args->a[g] = tensor_map(call, x.data, x.rows, x.cols, x.row_stride, kTileRows);
      args->b[g] = tensor_map(call, weight.data, cols, columns[g].origin + columns[g].cols,
                              weight.row_stride, tiling.tile_cols);
    }
    launch_tma<GemmKind::forward>(call, *args, tiling, 1);
    return;
  }
  const auto args = std::make_unique<OperandArgs>();
  args->gemm.epilogue = epilogue;
  set_forward(args->gemm, rows, cols, columns, tiling);
  for (size_t g = 0; g < inputs.size(); ++g) {
    args->a[g] = operand_of(inputs[g]);
    args->b[g] = make_operand(columns_from(weight.data, columns[g].origin), cols, columns[g].cols,
                              weight.row_stride);
  }
  launch_plain<GemmKind::forward>(call, *args, tiling, 1);
}

void run_input_gradient(const Call& call, bool tma, const Matrix& dy,
                        const std::vector<WeightColumns>& columns,
                        const std::vector<Panel>& panels) {
  const int count = static_cast<int>(panels.size());
  const Matrix& weight = call.weight;
  const Tiling tiling =
      choose_tiling(call.gpu, tma, dy.rows, panel_cols(panels), steps_of(dy.cols));
  if (tma) {
    const auto args = std::make_unique<TensorMapArgs>();
    set_panels(args->gemm.epilogue, panels);
    set_backward(args->gemm, dy.rows, dy.cols, columns, tiling);
    args->a[0] = tensor_map(call, dy.data, dy.rows, dy.cols, dy.row_stride, kTileRows);
    for (int g = 0; g < count; ++g) {
      args->b[g] = tensor_map(call, weight.data, weight.rows, columns[g].origin + columns[g].cols,
                              weight.row_stride, kBlockK);
    }
    launch_tma<GemmKind::input_gradient>(call, *args, tiling, count);
    return;
  }
  const auto args = std::make_unique<OperandArgs>();
  set_panels(args->gemm.epilogue, panels);
  set_backward(args->gemm, dy.rows, dy.cols, columns, tiling);
  args->a[0] = operand_of({dy});
  for (int g = 0; g < count; ++g) {
    args->b[g] = make_operand(columns_from(weight.data, columns[g].origin), weight.rows,
                              columns[g].cols, weight.row_stride);
  }
  launch_plain<GemmKind::input_gradient>(call, *args, tiling, count);
}

void run_weight_gradient(const Call& call, bool tma, const Matrix& dy,
                         const std::vector<ProductInput>& inputs,
                         const std::vector<Panel>& panels) {
  const int count = static_cast<int>(panels.size());
  std::vector<WeightColumns> columns;
  for (const Panel& panel : panels) {
    columns.push_back(WeightColumns{panel.cols, 0});  // an operand of its own: no origin
  }
  const Tiling tiling =
      choose_tiling(call.gpu, tma, dy.cols, panel_cols(panels), steps_of(dy.rows));
  if (tma) {
    const auto args = std::make_unique<TensorMapArgs>();
    set_panels(args->gemm.epilogue, panels);
    set_backward(args->gemm, dy.cols, dy.rows, columns, tiling);
    args->a[0] = tensor_map(call, dy.data, dy.rows, dy.cols, dy.row_stride, kBlockK);
    for (int g = 0; g < count; ++g) {
      const Matrix& x = inputs[g].matrix;
      args->b[g] = tensor_map(call, x.data, x.rows, x.cols, x.row_stride, kBlockK);
    }
    launch_tma<GemmKind::weight_gradient>(call, *args, tiling, count);
    return;
  }
  const auto args = std::make_unique<OperandArgs>();
  set_panels(args->gemm.epilogue, panels);
  set_backward(args->gemm, dy.cols, dy.rows, columns, tiling);
  args->a[0] = operand_of({dy});
  for (int g = 0; g < count; ++g) {
    args->b[g] = operand_of(inputs[g]);
  }
  launch_plain<GemmKind::weight_gradient>(call, *args, tiling, count);
}

}  // namespace mmfast::cuda
