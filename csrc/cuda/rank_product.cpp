// rank_product on a GPU: y = sum over ranks of the product of all factors, the end of every
// low-rank bilinear fusion; one pass over memory, forward and backward.
#include "rank_product.h"

#include <torch/csrc/stable/library.h>

#include "row_call.h"

namespace mmfast::cuda {
namespace {

struct RankProduct {
  RankProduct(const std::vector<Tensor>& factors, const std::optional<Tensor>& weights,
              const std::optional<Tensor>& present, const Tensor* grad)
      : call{(check_list(factors, "factors", 2), factors[0]),
             batch_of(factors[0], 2)},  // in this order
        count(static_cast<int64_t>(factors.size())),
        cols(factors[0].size(factors[0].dim() - 1)),
        out_sizes(batch_of(factors[0], 2)) {
    check_count("factors", count);
    args.ranks = factors[0].size(factors[0].dim() - 2);
    out_sizes.push_back(cols);
    check_present(present, factors[0], "factors", batch_of(factors[0], 2), count);
    if (weights) {
      check_alike(*weights, "weights", factors[0], "factors[0]");
      check_shape(*weights, "weights", Dims{args.ranks});
      check_storage(*weights, [] { return "weights"; });
      args.weights = call.add_dense(*weights);
    }
    for (const Tensor& x : factors) {
      call.add(x, 2);
    }
    if (grad) {
      check_grad(*grad, factors[0], "factors[0]", out_sizes);
      args.grad_source = call.add(*grad);
    }
    call.add_present(present);
  }

  void spread(int64_t steps) {
    args.steps = static_cast<int32_t>(steps);
    args.rows = call.rows(count, cols, cols);
    args.tiles = tiles_of((args.rows.total + steps - 1) / steps, cols, call.packet());
  }

  RowCall call;
  int64_t count;
  int64_t cols;
  Dims out_sizes;
  RankProductArgs args{};
};

Tensor rank_product(const std::vector<Tensor>& factors, const std::optional<Tensor>& weights,
                    const std::optional<Tensor>& present) {
  RankProduct op(factors, weights, present, nullptr);
  const Tensor result = op.call.add_result(op.out_sizes);
  op.args.out = result.mutable_data_ptr();
  op.spread(1);
  launch_rank_product(op.call.element(), op.args, op.call.stream());
  check_launch("rank_product");
  return result;
}

constexpr int64_t kMostSteps = 16;  // rows whose products a thread adds one after the other

// wanted: 0 .. count-1 the factors, count the weights
std::vector<Tensor> rank_product_backward(const Tensor& grad, const std::vector<Tensor>& factors,
                                          const std::optional<Tensor>& weights,
                                          const std::optional<Tensor>& present,
                                          const std::vector<int64_t>& wanted) {
  RankProduct op(factors, weights, present, &grad);
  RowCall& call = op.call;
  const int64_t count = op.count;
  const std::vector<bool> flags = wanted_flags(wanted, count + 1);
  STD_TORCH_CHECK(weights || !flags[count], "wanted holds ", count,
                  ", the weights, but weights is None");
  std::vector<std::optional<Tensor>> results(count + 1);
  call.add_gradients(flags, 0, count, results);
  const int64_t blocks = tiles_of(call.total(), op.cols, call.packet()).blocks;
  op.spread(flags[count] ? std::clamp<int64_t>(blocks / call.many_blocks(), 1, kMostSteps) : 1);
  std::optional<Tensor> sums;
  if (flags[count]) {
    sums = empty_sums(call, op.args.tiles.blocks, op.args.ranks);
    op.args.sums = sums->mutable_data_ptr();
  }
  launch_rank_product_backward(call.element(), op.args, call.stream());
  check_launch("rank_product_backward");
  if (sums) {
    results[count] = add_sums(call, *sums, sizes_of(*weights));
  }
  return in_order(results, wanted);
}

}  // namespace
}  // namespace mmfast::cuda

STABLE_TORCH_LIBRARY_IMPL(mmfast, CUDA, m) {
  m.impl("rank_product", TORCH_BOX(&mmfast::cuda::rank_product));
  m.impl("rank_product.no_autograd", TORCH_BOX(&mmfast::cuda::rank_product));
  m.impl("rank_product_backward", TORCH_BOX(&mmfast::cuda::rank_product_backward));
}
