// gated_sum on the CPU: softmax of the gates over the present modalities, per feature, and the sum
// of the values' tanh weighted by it; one pass over memory, forward and backward.
#include "gated_sum.h"

#include <torch/csrc/stable/library.h>

#include "concat_linear_call.h"
#include "vector_math.h"

#define MMFAST_ISA_SOURCE "gated_sum_kernels.h"
#include "foreach_isa.h"
#include "row_call.h"

namespace mmfast {
namespace {

// A call's arguments, checked, and what keeps them alive.
struct GatedSum {
  GatedSum(const std::vector<Tensor>& values, const std::vector<Tensor>& gates,
           const std::optional<Tensor>& present, const Tensor* grad)
      : call(values, "values"), dtype(call.dtype()) {
    const int64_t count = static_cast<int64_t>(values.size());
    const Dims sizes = sizes_of(values[0]);
    args.gates = static_cast<int64_t>(gates.size());
    STD_TORCH_CHECK(args.gates == count || args.gates == count - 1, "gates holds ", args.gates,
                    " tensors; it must hold as many as values, ", count, ", or one fewer");
    for (size_t i = 0; i < gates.size(); ++i) {
      call.add(gates[i], Item{"gates", i}, sizes);
    }
    if (grad) {
      args.grad_source = call.add(*grad, "grad", sizes);
    }
    args.rows = call.args(present, sizes[sizes.size() - 1]);
    if (args.rows.cols == 0) {
      args.rows.total = 0;  // rows of nothing cost no memory: there may be too many to visit
    }
  }

  RowCall call;
  GatedSumArgs args{};
  ScalarType dtype;
};

constexpr int64_t kWork = 2;  // a tanh and an exponential, in multiply-adds of a vector

Tensor gated_sum(const std::vector<Tensor>& values, const std::vector<Tensor>& gates,
                 const std::optional<Tensor>& present) {
  GatedSum call(values, gates, present, nullptr);
  const Tensor result = empty_result(sizes_of(values[0]), dtype_of(values[0]));
  call.args.out = result.mutable_data_ptr();
  const RowArgs& rows = call.args.rows;
  parallel_for(0, rows.total, grain(kWork * rows.count * rows.cols),
               [&](int64_t begin, int64_t end) {
                 MMFAST_DISPATCH(call.dtype, gated_sum, call.args, begin, end);
               });
  return result;
}

// wanted: 0 .. count-1 the values, then the gates
std::vector<Tensor> gated_sum_backward(const Tensor& grad, const std::vector<Tensor>& values,
                                       const std::vector<Tensor>& gates,
                                       const std::optional<Tensor>& present,
                                       const std::vector<int64_t>& wanted) {
  GatedSum call(values, gates, present, &grad);
  GatedSumArgs& args = call.args;
  const int64_t count = args.rows.count;
  const std::vector<bool> flags = wanted_flags(wanted, count + args.gates);
  std::vector<std::optional<Tensor>> results(count + args.gates);
  const std::vector<void*> grad_values = gradients_like(values[0], flags, 0, count, results);
  const std::vector<void*> grad_gates =
      gradients_like(values[0], flags, count, args.gates, results);
  args.grad_values = grad_values.data();
  args.grad_gates = grad_gates.data();
  parallel_for(0, args.rows.total, grain(2 * kWork * count * args.rows.cols),
               [&](int64_t begin, int64_t end) {
                 MMFAST_DISPATCH(call.dtype, gated_sum_backward, args, begin, end);
               });
  return in_order(results, wanted);
}

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("gated_sum", TORCH_BOX(&mmfast::gated_sum));
  m.impl("gated_sum.no_autograd", TORCH_BOX(&mmfast::gated_sum));
  m.impl("gated_sum_backward", TORCH_BOX(&mmfast::gated_sum_backward));
}
