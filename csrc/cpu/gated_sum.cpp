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
      : sources((check_list(values, "values", 1), batch_of(values[0]))) {
    const Dims batch = batch_of(values[0]);
    const int64_t count = static_cast<int64_t>(values.size());
    args.gates = static_cast<int64_t>(gates.size());
    STD_TORCH_CHECK(args.gates == count || args.gates == count - 1, "gates holds ", args.gates,
                    " tensors; it must hold as many as values, ", count, ", or one fewer");
    check_present(present, values[0], batch, count);
    for (const Tensor& x : values) {
      sources.add(x);
    }
    for (size_t i = 0; i < gates.size(); ++i) {
      const std::string name = "gates[" + std::to_string(i) + "]";
      check_alike(gates[i], name, values[0], "values[0]");
      check_shape(gates[i], name, sizes_of(values[0]));
      check_storage(gates[i], [&] { return name; });
      sources.add(gates[i]);
    }
    int64_t next = count + args.gates;
    args.rows.present = -1;
    if (grad) {
      check_alike(*grad, "grad", values[0], "values[0]");
      check_shape(*grad, "grad", sizes_of(values[0]));
      check_storage(*grad, [] { return "grad"; });
      sources.add(*grad);
      args.grad_source = next++;
    }
    if (present) {
      args.rows.present_stride = sources.add_strided(*present);
      args.rows.present = next++;
    }
    map.emplace(sources.rows());
    args.rows.rows = map->view();
    args.rows.data = sources.data();
    args.rows.count = count;
    args.rows.cols = values[0].size(values[0].dim() - 1);
    args.rows.total = product(batch);
    dtype = values[0].scalar_type();
  }

  RowSources sources;
  std::optional<RowMapStorage> map;
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
