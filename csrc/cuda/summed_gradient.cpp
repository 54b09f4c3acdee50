// See summed_gradient.h.
#include "summed_gradient.h"

#include <array>

namespace mmfast::cuda {

void sum_rows(const Call& call, SumRowsArgs args) {
  std::optional<Tensor> chunks;
  void* out = args.out;
  const bool narrow = args.narrow;
  while (true) {
    const int64_t left = sum_chunks(args.count);
    std::optional<Tensor> next;
    if (left > 1) {
      next = call.empty({args.kept_rows * left, args.cols}, call.accumulator_dtype());
    }
    args.out = next ? next->mutable_data_ptr() : out;
    args.narrow = next ? false : narrow;
    check(launch_sum_rows(call.element, args, call.stream), "concat_linear, sums of rows");
    if (!next) {
      return;
    }
    chunks = next;
    args.x = chunks->const_data_ptr();
    args.wide_x = true;
    args.kept = row_offsets({args.kept_rows}, {left * args.cols});
    args.summed = row_offsets({left}, {args.cols});
    args.count = left;
  }
}

namespace {

// The sum of the rows of x (one per row of the batch) that share a distinct row by `strides`.
Tensor sum_shared_rows(const Call& call, const Matrix& x, const Dims& strides, int64_t kept_rows) {
  const Dims& batch = call.shape.batch;
  Dims kept_sizes, kept_strides, summed_sizes, summed_strides;
  int64_t step = call.shape.rows;
  for (int64_t d = 0; d < batch.size(); ++d) {
    step /= batch[d];
    const bool kept = strides[d] != 0;
    (kept ? kept_sizes : summed_sizes).push_back(batch[d]);
    (kept ? kept_strides : summed_strides).push_back(step * x.row_stride);
  }
  const Tensor sums = call.empty({kept_rows, x.cols}, call.accumulator_dtype());
  sum_rows(call, SumRowsArgs{sums.mutable_data_ptr(), x.data, false, false,
                             row_offsets(kept_sizes, kept_strides),
                             row_offsets(summed_sizes, summed_strides), kept_rows,
                             call.shape.rows / kept_rows, static_cast<int32_t>(x.cols)});
  return sums;
}

}  // namespace

SortedIndex sort_index(const Call& call, const Source& source) {
  const Tensor flat =
      borrow(call.weight_tensor, source.index, {source.entries}, {1}, aoti_torch_dtype_int64());
  // aten::sort.stable(Tensor self, *, bool? stable, int dim, bool descending)
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(flat), torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const auto sorted = torch::stable::detail::to<Tensor>(stack[0]);
  const auto order = torch::stable::detail::to<Tensor>(stack[1]);
  const Tensor first = call.empty({source.matrix.rows + 1}, aoti_torch_dtype_int64());
  check(launch_segment_bounds(static_cast<const int64_t*>(sorted.const_data_ptr()), source.entries,
                              static_cast<int64_t*>(first.mutable_data_ptr()), source.matrix.rows,
                              call.stream),
        "concat_linear, sorted index");
  return {order, first};
}

void sum_segments(const Call& call, const Source& source, const SortedIndex& sorted,
                  const Matrix& x, bool wide_x, void* out, bool narrow) {
  const int64_t rows = source.matrix.rows;
  const int64_t mean = source.entries / std::max<int64_t>(1, rows);
  const int32_t pieces = static_cast<int32_t>(std::clamp<int64_t>(mean / kSumRows, 1, 1024));
  SumSegmentsArgs args{out,
                       x.data,
                       x.row_stride,
                       wide_x,
                       narrow,
                       static_cast<const int64_t*>(sorted.order.const_data_ptr()),
                       static_cast<const int64_t*>(sorted.first.const_data_ptr()),
                       rows,
                       pieces,
                       static_cast<int32_t>(x.cols)};
  if (pieces == 1) {
    check(launch_sum_segments(call.element, args, call.stream), "concat_linear, segments");
    return;
  }
  const Tensor parts = call.empty({rows * pieces, x.cols}, call.accumulator_dtype());
  args.out = parts.mutable_data_ptr();
  args.narrow = false;
  check(launch_sum_segments(call.element, args, call.stream), "concat_linear, segments");
  sum_rows(call, SumRowsArgs{out, parts.const_data_ptr(), true, narrow,
                             row_offsets({rows}, {pieces * x.cols}),
                             row_offsets({pieces}, {x.cols}), rows, pieces, args.cols});
}

GradientRows SummedGradient::by(const Dims& strides, int64_t rows) {
  if (rows == call_.shape.rows) {
    return {gradient_, false};
  }
  if (!sums_ || strides_ != strides) {
    sums_ = sum_shared_rows(call_, gradient_, strides, rows);
    strides_ = strides;
  }
  return {matrix_of(*sums_), wide()};
}

GradientRows SummedGradient::by_index() {
  if (!indexed_sums_) {
    const GradientRows entries = for_entries();
    indexed_sums_ = call_.empty({source_.matrix.rows, gradient_.cols}, call_.accumulator_dtype());
    sum_segments(call_, source_, sort_index(call_, source_), entries.matrix, entries.wide,
                 indexed_sums_->mutable_data_ptr(), false);
  }
  return {matrix_of(*indexed_sums_), wide()};
}

}  // namespace mmfast::cuda
