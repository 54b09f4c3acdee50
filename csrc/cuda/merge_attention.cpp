// merge_attention on a GPU: attention over several sources from attention over each of them.
#include "../merge_attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "merge_attention.h"
#include "row_call.h"

namespace mmfast::cuda {
namespace {

// An empty tensor whose dimensions `order` says how to lay out in memory.
Tensor empty_in_order(const Tensor& like, const Dims& sizes, const Dims& order) {
  Dims strides(sizes.size(), 1);
  int64_t step = 1;
  for (int64_t d = sizes.size() - 1; d >= 0; --d) {
    strides[order[d]] = step;
    step *= std::max<int64_t>(1, sizes[order[d]]);
  }
  return empty_strided(like, sizes, strides, dtype_code(like));
}

std::tuple<Tensor, Tensor> merge_attention(const std::vector<Tensor>& outputs,
                                           const std::vector<Tensor>& lses) {
  check_merge_attention(outputs, lses);
  const int64_t count = static_cast<int64_t>(outputs.size());
  check_count("outputs", count);
  const Dims order = heads_are_inner(outputs[0]) ? Dims{0, 2, 1, 3} : Dims{0, 1, 2, 3};
  const Dims sizes = sizes_of(outputs[0]);
  const int64_t cols = sizes[3];
  RowCall call(outputs[0], {sizes[order[0]], sizes[order[1]], sizes[order[2]]});
  for (const Tensor& output : outputs) {
    const Tensor kept = cols <= 1 || output.stride(3) == 1 ? output : dense(output);
    call.add_with(kept, row_strides(kept, order), true);
  }
  for (const Tensor& lse : lses) {
    call.add_with(lse, row_strides(lse, order), false);
  }
  const Tensor out = empty_in_order(outputs[0], sizes, order);
  const Tensor lse =
      empty_in_order(lses[0], {sizes[0], sizes[1], sizes[2]}, {order[0], order[1], order[2]});
  MergeAttentionArgs args{};
  args.cols = cols;
  args.rows = call.rows(count, std::max<int64_t>(1, cols), cols);
  args.tiles = tiles_of(args.rows.total, args.rows.cols, call.packet());
  args.out = out.mutable_data_ptr();
  args.lse = lse.mutable_data_ptr();
  launch_merge_attention(call.element(), args, call.stream());
  check_launch("merge_attention");
  return {out, lse};
}

}  // namespace
}  // namespace mmfast::cuda

STABLE_TORCH_LIBRARY_IMPL(mmfast, CUDA, m) {
  m.impl("merge_attention", TORCH_BOX(&mmfast::cuda::merge_attention));
}
