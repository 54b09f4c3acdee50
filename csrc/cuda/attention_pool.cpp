// attention_pool on a GPU: scores, softmax over the present modalities and weighted sum in one pass
// over memory, forward and backward.
#include "attention_pool.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "row_call.h"

namespace mmfast::cuda {
namespace {

struct AttentionPool {
  AttentionPool(const std::vector<Tensor>& inputs, const Tensor& query,
                const std::optional<Tensor>& present, int64_t heads, double scale,
                const Tensor* grad, const std::optional<Tensor>& grad_weights)
      : call{(check_list(inputs, "inputs", 1), inputs[0]), batch_of(inputs[0])},  // in this order
        count(static_cast<int64_t>(inputs.size())),
        cols(inputs[0].size(inputs[0].dim() - 1)),
        shared_query(query.dim() == 1),
        weights_sizes(batch_of(inputs[0])) {
    check_count("inputs", count);
    STD_TORCH_CHECK(heads >= 1 && cols % heads == 0, "num_heads is ", heads,
                    "; it must divide the features of the inputs, ", cols);
    check_alike(query, "query", inputs[0], "inputs[0]");
    check_shape(query, "query", shared_query ? Dims{cols} : sizes_of(inputs[0]));
    check_storage(query, [] { return "query"; });
    check_present(present, inputs[0], "inputs", batch_of(inputs[0]), count);
    weights_sizes.push_back(heads);
    weights_sizes.push_back(count);
    for (const Tensor& x : inputs) {
      call.add(x);
    }
    args.query_source = call.add_repeated(query);
    if (grad) {
      check_grad(*grad, inputs[0], "inputs[0]", sizes_of(inputs[0]));
      args.grad_source = call.add(*grad);
    }
    args.grad_weights_source = -1;
    if (grad_weights) {
      check_alike(*grad_weights, "grad_weights", inputs[0], "inputs[0]");
      check_shape(*grad_weights, "grad_weights", weights_sizes);
      check_storage(*grad_weights, [] { return "grad_weights"; });
      args.grad_weights_source = call.add(*grad_weights, 2, false);
    }
    call.add_present(present);
    args.heads = heads;
    args.size = cols / heads;
    args.scale = scale;
  }

  void group(int64_t most_steps) {
    args.rows = call.rows(count, cols, args.size);
    const int64_t packets = call.packets(args.size);
    const int64_t bytes = keeps_packets(count, packets) ? 0 : attention_pool_group_bytes(count);
    args.groups = groups_of(call.total(), packets, packets <= 32 ? 1 : kKeptPackets, bytes,
                            call.many_blocks() / args.heads + 1, most_steps);
  }

  RowCall call;
  int64_t count;
  int64_t cols;
  bool shared_query;
  Dims weights_sizes;
  AttentionPoolArgs args{};
};

std::tuple<Tensor, Tensor> attention_pool(const std::vector<Tensor>& inputs, const Tensor& query,
                                          const std::optional<Tensor>& present, int64_t heads,
                                          double scale) {
  AttentionPool op(inputs, query, present, heads, scale, nullptr, std::nullopt);
  const Tensor result = op.call.add_result(sizes_of(inputs[0]));
  const Tensor weights = empty(inputs[0], op.weights_sizes, dtype_code(inputs[0]));
  op.args.out = result.mutable_data_ptr();
  op.args.weights = weights.mutable_data_ptr();
  op.group(1);
  launch_attention_pool(op.call.element(), op.args, op.call.stream());
  check_launch("attention_pool");
  return {result, weights};
}

constexpr int32_t kMostSteps = 64;  // rows whose query gradients are added one after the other

// wanted: 0 .. count-1 the inputs, count the query
std::vector<Tensor> attention_pool_backward(const Tensor& grad,
                                            const std::optional<Tensor>& grad_weights,
                                            const std::vector<Tensor>& inputs, const Tensor& query,
                                            const std::optional<Tensor>& present, int64_t heads,
                                            double scale, const std::vector<int64_t>& wanted) {
  AttentionPool op(inputs, query, present, heads, scale, &grad, grad_weights);
  RowCall& call = op.call;
  const int64_t count = op.count;
  const std::vector<bool> flags = wanted_flags(wanted, count + 1);
  std::vector<std::optional<Tensor>> results(count + 1);
  call.add_gradients(flags, 0, count, results);
  const bool summed = flags[count] && op.shared_query;
  if (flags[count] && !op.shared_query) {
    results[count] = call.add_result(sizes_of(query));
    op.args.grad_query = results[count]->mutable_data_ptr();
  }
  op.group(summed ? kMostSteps : 1);
  std::optional<Tensor> sums;
  if (summed) {
    sums = empty_sums(call, op.args.groups.blocks * groups_in_block(op.args.groups), op.cols);
    op.args.sums = sums->mutable_data_ptr();
  }
  if (op.cols > 0) {  // no features can have any number of heads
    launch_attention_pool_backward(call.element(), op.args, call.stream());
    check_launch("attention_pool_backward");
  }
  if (sums) {
    results[count] = add_sums(call, *sums, sizes_of(query));
  }
  return in_order(results, wanted);
}

}  // namespace
}  // namespace mmfast::cuda

STABLE_TORCH_LIBRARY_IMPL(mmfast, CUDA, m) {
  m.impl("attention_pool", TORCH_BOX(&mmfast::cuda::attention_pool));
  m.impl("attention_pool.no_autograd", TORCH_BOX(&mmfast::cuda::attention_pool));
  m.impl("attention_pool_backward", TORCH_BOX(&mmfast::cuda::attention_pool_backward));
}
