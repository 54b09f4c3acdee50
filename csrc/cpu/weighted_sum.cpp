// weighted_sum on the CPU: y = sum of the present inputs, each times its weight; one pass over
// memory, forward and backward.
#include "weighted_sum.h"

#include <torch/csrc/stable/library.h>

#include "../text.h"
#include "concat_linear_call.h"
#include "vector_math.h"

#define MMFAST_ISA_SOURCE "weighted_sum_kernels.h"
#include "foreach_isa.h"
#include "row_call.h"

namespace mmfast {
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

// A call's arguments, checked, and what keeps them alive.
struct WeightedSum {
  WeightedSum(const std::vector<Tensor>& inputs, const Tensor& weights,
              const std::optional<Tensor>& present, const Text& per, bool normalize,
              const Tensor* grad)
      : call(inputs, "inputs"), dtype(call.dtype()) {
    const Dims sizes = sizes_of(inputs[0]);
    const int64_t count = static_cast<int64_t>(inputs.size());
    const int64_t cols = sizes[sizes.size() - 1];
    args.per = parse_per(per);
    args.normalize = normalize;
    if (args.per == WeightsPer::row) {
      Dims weights_sizes = call.batch();
      weights_sizes.push_back(count);
      args.weights_source =
          call.add_strided(weights, "weights", weights_sizes, args.weights_stride);
    } else {
      call.check(weights, "weights",
                 args.per == WeightsPer::feature ? Dims{count, cols} : Dims{count});
      dense_weights = contiguous_cpu(weights);
      args.weights = dense_weights->const_data_ptr();
    }
    if (grad) {
      args.grad_source = call.add(*grad, "grad", sizes);
    }
    args.rows = call.args(present, cols);
    if (cols == 0 && args.per != WeightsPer::row) {
      args.rows.total = 0;  // rows of nothing cost no memory: there may be too many to visit
    }
  }

  RowCall call;
  std::optional<Tensor> dense_weights;
  WeightedSumArgs args{};
  ScalarType dtype;
};

constexpr int64_t kPastCaches = 16 << 20;  // bytes

Tensor weighted_sum(const std::vector<Tensor>& inputs, const Tensor& weights,
                    const std::optional<Tensor>& present, const Text& per, bool normalize) {
  WeightedSum call(inputs, weights, present, per, normalize, nullptr);
  const Tensor result = empty_result(sizes_of(inputs[0]), dtype_of(inputs[0]));
  call.args.out = result.mutable_data_ptr();
  call.args.past_caches =
      result.numel() * static_cast<int64_t>(result.element_size()) >= kPastCaches &&
      reinterpret_cast<uintptr_t>(call.args.out) % 64 == 0;
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
                                          const std::optional<Tensor>& present, const Text& per,
                                          bool normalize, const std::vector<int64_t>& wanted) {
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
