// gated_sum on a GPU: softmax of the gates over the present modalities, per feature, and the sum of
// the values' tanh weighted by it; one pass over memory, forward and backward.
#include "gated_sum.h"

#include <torch/csrc/stable/library.h>

#include "row_call.h"

namespace mmfast::cuda {
namespace {

struct GatedSum {
  GatedSum(const std::vector<Tensor>& values, const std::vector<Tensor>& gates,
           const std::optional<Tensor>& present, const Tensor* grad)
      : call{(check_list(values, "values", 1), values[0]), batch_of(values[0])},  // in this order
        count(static_cast<int64_t>(values.size())),
        cols(values[0].size(values[0].dim() - 1)) {
    check_count("values", count);
    args.gates = static_cast<int32_t>(gates.size());
    STD_TORCH_CHECK(args.gates == count || args.gates == count - 1, "gates holds ", args.gates,
                    " tensors; it must hold as many as values, ", count, ", or one fewer");
    check_present(present, values[0], "values", batch_of(values[0]), count);
    for (const Tensor& x : values) {
      call.add(x);
    }
    for (size_t i = 0; i < gates.size(); ++i) {
      const std::string name = "gates[" + std::to_string(i) + "]";
      check_alike(gates[i], name, values[0], "values[0]");
      check_shape(gates[i], name, sizes_of(values[0]));
      check_storage(gates[i], [&] { return name; });
      call.add(gates[i]);
    }
    if (grad) {
      check_grad(*grad, values[0], "values[0]", sizes_of(values[0]));
      args.grad_source = call.add(*grad);
    }
    call.add_present(present);
  }

  void spread() {
    args.rows = call.rows(count, cols, cols, true);
    args.tiles = tiles_of(args.rows.total, args.rows.cols, call.packet());
  }

  RowCall call;
  int64_t count;
  int64_t cols;
  GatedSumArgs args{};
};

Tensor gated_sum(const std::vector<Tensor>& values, const std::vector<Tensor>& gates,
                 const std::optional<Tensor>& present) {
  GatedSum op(values, gates, present, nullptr);
  const Tensor result = op.call.add_result(sizes_of(values[0]));
  op.args.out = result.mutable_data_ptr();
  op.spread();
  launch_gated_sum(op.call.element(), op.args, op.call.stream());
  check_launch("gated_sum");
  return result;
}

// wanted: 0 .. count-1 the values, then the gates
std::vector<Tensor> gated_sum_backward(const Tensor& grad, const std::vector<Tensor>& values,
                                       const std::vector<Tensor>& gates,
                                       const std::optional<Tensor>& present,
                                       const std::vector<int64_t>& wanted) {
  GatedSum op(values, gates, present, &grad);
  const int64_t all = op.count + op.args.gates;
  std::vector<std::optional<Tensor>> results(all);
  op.call.add_gradients(wanted_flags(wanted, all), 0, all, results);
  op.spread();
  launch_gated_sum_backward(op.call.element(), op.args, op.call.stream());
  check_launch("gated_sum_backward");
  return in_order(results, wanted);
}

}  // namespace
}  // namespace mmfast::cuda

STABLE_TORCH_LIBRARY_IMPL(mmfast, CUDA, m) {
  m.impl("gated_sum", TORCH_BOX(&mmfast::cuda::gated_sum));
  m.impl("gated_sum.no_autograd", TORCH_BOX(&mmfast::cuda::gated_sum));
  m.impl("gated_sum_backward", TORCH_BOX(&mmfast::cuda::gated_sum_backward));
}
