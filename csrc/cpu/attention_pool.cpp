// attention_pool on the CPU: scores, softmax over the present modalities and weighted sum in one
// pass over memory: a row's inputs are read once and are in cache when they are needed again.
#include "attention_pool.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "concat_linear_call.h"
#include "vector_math.h"

#define MMFAST_ISA_SOURCE "attention_pool_kernels.h"
#include "foreach_isa.h"
#include "row_call.h"

namespace mmfast {
namespace {

// A call's arguments, checked, and what keeps them alive.
struct AttentionPool {
  AttentionPool(const std::vector<Tensor>& inputs, const Tensor& query,
                const std::optional<Tensor>& present, int64_t heads, double scale,
                const Tensor* grad, const std::optional<Tensor>& grad_weights)
      : call(inputs, "inputs"),
        shared_query(query.dim() == 1),
        weights_sizes(call.batch()),
        dtype(call.dtype()) {
    const Dims sizes = sizes_of(inputs[0]);
    const int64_t cols = sizes[sizes.size() - 1];
    STD_TORCH_CHECK(heads >= 1 && cols % heads == 0, "num_heads is ", heads,
                    "; it must divide the features of the inputs, ", cols);
    weights_sizes.push_back(heads);
    weights_sizes.push_back(static_cast<int64_t>(inputs.size()));
    args.heads = heads;
    args.scale = scale;
    args.query_source = call.add_repeated(query, "query", shared_query ? Dims{cols} : sizes);
    args.grad_weights_source = -1;
    if (grad) {
      args.grad_source = call.add(*grad, "grad", sizes);
    }
    if (grad_weights) {
      args.grad_weights_source = call.add(*grad_weights, "grad_weights", weights_sizes, 2);
    }
    args.rows = call.args(present, cols);
  }

  RowCall call;
  bool shared_query;
  Dims weights_sizes;
  AttentionPoolArgs args{};
  ScalarType dtype;
};

std::tuple<Tensor, Tensor> attention_pool(const std::vector<Tensor>& inputs, const Tensor& query,
                                          const std::optional<Tensor>& present, int64_t heads,
                                          double scale) {
  AttentionPool call(inputs, query, present, heads, scale, nullptr, std::nullopt);
  const int32_t dtype_code = dtype_of(inputs[0]);
  const Tensor result = empty_result(sizes_of(inputs[0]), dtype_code);
  const Tensor weights = empty_cpu(call.weights_sizes, dtype_code);
  call.args.out = result.mutable_data_ptr();
  call.args.weights = weights.mutable_data_ptr();
  const RowArgs& rows = call.args.rows;
  parallel_for(0, rows.total, grain(2 * rows.count * rows.cols), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(call.dtype, attention_pool, call.args, begin, end);
  });
  return {result, weights};
}

// wanted: 0 .. count-1 the inputs, count the query
std::vector<Tensor> attention_pool_backward(const Tensor& grad,
                                            const std::optional<Tensor>& grad_weights,
                                            const std::vector<Tensor>& inputs, const Tensor& query,
                                            const std::optional<Tensor>& present, int64_t heads,
                                            double scale, const std::vector<int64_t>& wanted) {
  AttentionPool call(inputs, query, present, heads, scale, &grad, grad_weights);
  AttentionPoolArgs& args = call.args;
  const int64_t count = args.rows.count;
  const std::vector<bool> flags = wanted_flags(wanted, count + 1);
  std::vector<std::optional<Tensor>> results(count + 1);
  const std::vector<void*> grads = gradients_like(inputs[0], flags, 0, count, results);
  args.grads = grads.data();
  const int64_t chunks = chunks_of(args.rows.total);
  std::optional<Tensor> sums;
  if (flags[count] && call.shared_query) {
    sums = empty_sums(chunks, args.rows.cols, call.dtype);
    args.sums = sums->mutable_data_ptr();
  } else if (flags[count]) {
    results[count] = empty_cpu(sizes_of(query), dtype_of(query));
    args.grad_query = results[count]->mutable_data_ptr();
  }
  if (args.rows.cols > 0) {  // no features can have any number of heads
    parallel_for(0, chunks, grain(kChunkRows * 3 * count * args.rows.cols),
                 [&](int64_t begin, int64_t end) {
                   MMFAST_DISPATCH(call.dtype, attention_pool_backward, args, begin, end);
                 });
  }
  if (sums) {
    results[count] = sum_chunks_of(*sums, sizes_of(query), call.dtype, dtype_of(query));
  }
  return in_order(results, wanted);
}

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("attention_pool", TORCH_BOX(&mmfast::attention_pool));
  m.impl("attention_pool.no_autograd", TORCH_BOX(&mmfast::attention_pool));
  m.impl("attention_pool_backward", TORCH_BOX(&mmfast::attention_pool_backward));
}
