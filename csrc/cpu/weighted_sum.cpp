// weighted_sum on the CPU: y = sum of the present inputs, each times its weight; one pass over
// memory, forward and backward.
#include "weighted_sum.h"

#include <torch/csrc/stable/library.h>

#include "concat_linear_call.h"
#include "vector_math.h"

#define MMFAST_ISA_SOURCE "weighted_sum_kernels.h"
#include "foreach_isa.h"
#include "row_call.h"

namespace mmfast {
namespace {

WeightsPer parse_per(const std::string& per) {
  if (per == "modality") {
    return WeightsPer::modality;
  }
  if (per == "feature") {
    return WeightsPer::feature;
  }
  STD_TORCH_CHECK(per == "row", "per is '", per, "'; it must be modality, feature or row");
  return WeightsPer::row;
}

// A call's arguments, checked, and what keeps them alive.
struct WeightedSum {
  WeightedSum(const std::vector<Tensor>& inputs, const Tensor& weights,
              const std::optional<Tensor>& present, const std::string& per_name, bool normalize,
              const Tensor* grad)
      : sources((check_list(inputs, "inputs", 1), batch_of(inputs[0]))) {
    const Dims batch = batch_of(inputs[0]);
    const int64_t count = static_cast<int64_t>(inputs.size());
    const int64_t cols = inputs[0].size(inputs[0].dim() - 1);
    const WeightsPer per = parse_per(per_name);
    Dims sizes = per == WeightsPer::row ? batch : Dims{};
    sizes.push_back(count);
    if (per == WeightsPer::feature) {
      sizes.push_back(cols);
    }
    check_alike(weights, "weights", inputs[0], "inputs[0]");
    check_shape(weights, "weights", sizes);
    check_storage(weights, [] { return "weights"; });
    check_present(present, inputs[0], batch, count);
    for (const Tensor& x : inputs) {
      sources.add(x);
    }
    int64_t next = count;
    args.rows.present = -1;
    if (grad) {
      check_alike(*grad, "grad", inputs[0], "inputs[0]");
      check_shape(*grad, "grad", sizes_of(inputs[0]));
      check_storage(*grad, [] { return "grad"; });
      sources.add(*grad);
      args.grad_source = next++;
    }
    if (present) {
      args.rows.present_stride = sources.add_strided(*present);
      args.rows.present = next++;
    }
    if (per == WeightsPer::row) {
      args.weights_stride = sources.add_strided(weights);
      args.weights_source = next++;
    } else {
      dense_weights = contiguous_cpu(weights);
      args.weights = dense_weights->const_data_ptr();
    }
    map.emplace(sources.rows());
    args.rows.rows = map->view();
    args.rows.data = sources.data();
    args.rows.count = count;
    args.rows.cols = cols;
    args.rows.total = product(batch);
    args.per = per;
    args.normalize = normalize;
    dtype = inputs[0].scalar_type();
  }

  RowSources sources;
  std::optional<Tensor> dense_weights;
  std::optional<RowMapStorage> map;
  WeightedSumArgs args{};
  ScalarType dtype;
};

Tensor weighted_sum(const std::vector<Tensor>& inputs, const Tensor& weights,
                    const std::optional<Tensor>& present, const std::string& per, bool normalize) {
  WeightedSum call(inputs, weights, present, per, normalize, nullptr);
  const Tensor result = empty_result(sizes_of(inputs[0]), dtype_of(inputs[0]));
  call.args.out = result.mutable_data_ptr();
  const RowArgs& rows = call.args.rows;
  if (result.numel() > 0) {
    parallel_for(0, rows.total, grain(rows.count * rows.cols), [&](int64_t begin, int64_t end) {
      MMFAST_DISPATCH(call.dtype, weighted_sum, call.args, begin, end);
    });
  }
  return result;
}

// wanted: 0 .. count-1 the inputs, count the weights
std::vector<Tensor> weighted_sum_backward(const Tensor& grad, const std::vector<Tensor>& inputs,
                                          const Tensor& weights,
                                          const std::optional<Tensor>& present,
                                          const std::string& per, bool normalize,
                                          const std::vector<int64_t>& wanted) {
  WeightedSum call(inputs, weights, present, per, normalize, &grad);
  WeightedSumArgs& args = call.args;
  const int64_t count = args.rows.count;
  const std::vector<bool> flags = wanted_flags(wanted, count + 1);
  std::vector<std::optional<Tensor>> results(count + 1);
  const std::vector<void*> grads = gradients_like(inputs[0], flags, 0, count, results);
  args.grads = grads.data();
  args.weights_wanted = flags[count];
  const int64_t chunks = chunks_of(args.rows.total);
  std::optional<Tensor> sums;
  if (flags[count] && args.per == WeightsPer::row) {
    results[count] = empty_cpu(sizes_of(weights), dtype_of(weights));
    args.grad_weights = results[count]->mutable_data_ptr();
  } else if (flags[count]) {
    sums = empty_sums(chunks, weights.numel(), call.dtype);
    args.sums = sums->mutable_data_ptr();
  }
  parallel_for(0, chunks, grain(kChunkRows * count * args.rows.cols),
               [&](int64_t begin, int64_t end) {
                 MMFAST_DISPATCH(call.dtype, weighted_sum_backward, args, begin, end);
               });
  if (sums) {
    results[count] = sum_chunks_of(*sums, sizes_of(weights), call.dtype, dtype_of(weights));
  }
  return in_order(results, wanted);
}

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("weighted_sum", TORCH_BOX(&mmfast::weighted_sum));
  m.impl("weighted_sum.no_autograd", TORCH_BOX(&mmfast::weighted_sum));
  m.impl("weighted_sum_backward", TORCH_BOX(&mmfast::weighted_sum_backward));
}
