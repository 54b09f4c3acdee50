// weighted_sum on a GPU: y = sum of the present inputs, each times its weight; one pass over
// memory, forward and backward.
#include "weighted_sum.h"

#include <torch/csrc/stable/library.h>

#include "../text.h"
#include "row_call.h"

namespace mmfast::cuda {
namespace {

WeightsPer parse_per(const Text& per) {
  if (per == "modality") {
    return WeightsPer::modality;
  }
  if (per == "feature") {
    return WeightsPer::feature;
  }
  STD_TORCH_CHECK(per == "row", "per is '", per, "'; it must be modality, feature or row");
  return WeightsPer::row;
}

struct WeightedSum {
  WeightedSum(const std::vector<Tensor>& inputs, const Tensor& weights,
              const std::optional<Tensor>& present, const Text& per, bool normalize,
              const Tensor* grad)
      : call{(check_list(inputs, "inputs", 1), inputs[0]), batch_of(inputs[0])},  // in this order
        count(static_cast<int64_t>(inputs.size())),
        cols(inputs[0].size(inputs[0].dim() - 1)) {
    check_count("inputs", count);
    args.per = parse_per(per);
    args.normalize = normalize;
    const Dims batch = batch_of(inputs[0]);
    Dims sizes = args.per == WeightsPer::row ? batch : Dims{};
    sizes.push_back(count);
    if (args.per == WeightsPer::feature) {
      sizes.push_back(cols);
    }
    check_alike(weights, "weights", inputs[0], "inputs[0]");
    check_shape(weights, "weights", sizes);
    check_storage(weights, [] { return "weights"; });
    check_present(present, inputs[0], "inputs", batch, count);
    for (const Tensor& x : inputs) {
      call.add(x);
    }
    if (grad) {
      check_grad(*grad, inputs[0], "inputs[0]", sizes_of(inputs[0]));
      args.grad_source = call.add(*grad);
    }
    call.add_present(present);
    if (args.per == WeightsPer::row) {
      args.weights_source = call.add_strided(weights, args.weights_stride);
    } else {
      args.weights = call.add_dense(weights);
    }
  }

  // Blocks of threads for packets, each of which `steps` rows share.
  void spread(bool flatten, int64_t steps = 1) {
    args.rows = call.rows(count, cols, cols, flatten && args.per == WeightsPer::modality);
    args.groups.steps = static_cast<int32_t>(steps);
    args.tiles = tiles_of((args.rows.total + steps - 1) / steps, args.rows.cols, call.packet());
  }

  RowCall call;
  int64_t count;
  int64_t cols;
  WeightedSumArgs args{};
};

Tensor weighted_sum(const std::vector<Tensor>& inputs, const Tensor& weights,
                    const std::optional<Tensor>& present, const Text& per, bool normalize) {
  WeightedSum op(inputs, weights, present, per, normalize, nullptr);
  const Tensor result = op.call.add_result(sizes_of(inputs[0]));
  op.args.out = result.mutable_data_ptr();
  op.spread(true);
  launch_weighted_sum(op.call.element(), op.args, op.call.stream());
  check_launch("weighted_sum");
  return result;
}

constexpr int64_t kMostSteps = 64;  // rows whose products are added one after the other

// wanted: 0 .. count-1 the inputs, count the weights
std::vector<Tensor> weighted_sum_backward(const Tensor& grad, const std::vector<Tensor>& inputs,
                                          const Tensor& weights,
                                          const std::optional<Tensor>& present, const Text& per,
                                          bool normalize, const std::vector<int64_t>& wanted) {
  WeightedSum op(inputs, weights, present, per, normalize, &grad);
  RowCall& call = op.call;
  const int64_t count = op.count;
  const std::vector<bool> flags = wanted_flags(wanted, count + 1);
  std::vector<std::optional<Tensor>> results(count + 1);
  call.add_gradients(flags, 0, count, results);
  if (!flags[count]) {
    op.spread(true);
    launch_weighted_sum_inputs(call.element(), op.args, call.stream());
    check_launch("weighted_sum_backward");
    return in_order(results, wanted);
  }
  std::optional<Tensor> sums;
  if (op.args.per == WeightsPer::feature) {
    const Tiles single = tiles_of(call.total(), op.cols, call.packet());
    const int64_t steps = single.blocks / call.many_blocks();
    op.spread(false, std::clamp<int64_t>(steps, 1, kMostSteps));
    const Tiles& tiles = op.args.tiles;
    const int64_t row_blocks = tiles.col_blocks > 0 ? tiles.blocks / tiles.col_blocks : 0;
    sums = empty_sums(call, row_blocks * (kThreads / tiles.lanes), weights.numel());
  } else {
    op.args.rows = call.rows(count, op.cols, op.cols);
    op.args.groups = groups_of(call.total(), call.packets(op.cols), 4,
                               weighted_sum_group_bytes(count), call.many_blocks(), kMostSteps);
    if (op.args.per == WeightsPer::row) {
      results[count] = call.add_result(sizes_of(weights));
      op.args.grad_weights = results[count]->mutable_data_ptr();
    } else {
      sums = empty_sums(call, op.args.groups.blocks, count);
    }
  }
  op.args.sums = sums ? sums->mutable_data_ptr() : nullptr;
  launch_weighted_sum_backward(call.element(), op.args, call.stream());
  check_launch("weighted_sum_backward");
  if (sums) {
    results[count] = add_sums(call, *sums, sizes_of(weights));
  }
  return in_order(results, wanted);
}

}  // namespace
}  // namespace mmfast::cuda

STABLE_TORCH_LIBRARY_IMPL(mmfast, CUDA, m) {
  m.impl("weighted_sum", TORCH_BOX(&mmfast::cuda::weighted_sum));
  m.impl("weighted_sum.no_autograd", TORCH_BOX(&mmfast::cuda::weighted_sum));
  m.impl("weighted_sum_backward", TORCH_BOX(&mmfast::cuda::weighted_sum_backward));
}
