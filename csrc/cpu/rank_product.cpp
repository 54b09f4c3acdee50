// rank_product on the CPU: y = sum over ranks of the product of all factors, the end of every
// low-rank bilinear fusion; one pass over memory, forward and backward.
#include "rank_product.h"

#include <torch/csrc/stable/library.h>

#include "concat_linear_call.h"
#include "vector_math.h"

#define MMFAST_ISA_SOURCE "rank_product_kernels.h"
#include "foreach_isa.h"
#include "row_call.h"

namespace mmfast {
namespace {

// A call's arguments, checked, and what keeps them alive.
struct RankProduct {
  RankProduct(const std::vector<Tensor>& factors, const std::optional<Tensor>& weights,
              const std::optional<Tensor>& present, const Tensor* grad)
      : call(factors, "factors", 2), out_sizes(call.batch()), dtype(call.dtype()) {
    const int64_t dims = factors[0].dim();
    const int64_t cols = factors[0].size(dims - 1);
    args.ranks = factors[0].size(dims - 2);
    out_sizes.push_back(cols);
    if (weights) {
      call.check(*weights, "weights", Dims{args.ranks});
      dense_weights = contiguous_cpu(*weights);
      args.weights = dense_weights->const_data_ptr();
    }
    if (grad) {
      args.grad_source = call.add(*grad, "grad", out_sizes);
    }
    args.rows = call.args(present, cols);
    if (cols == 0 || (grad && args.ranks == 0)) {
      args.rows.total = 0;  // rows of nothing cost no memory: there may be too many to visit
    }
  }

  RowCall call;
  std::optional<Tensor> dense_weights;
  Dims out_sizes;
  RankProductArgs args{};
  ScalarType dtype;
};

Tensor rank_product(const std::vector<Tensor>& factors, const std::optional<Tensor>& weights,
                    const std::optional<Tensor>& present) {
  RankProduct call(factors, weights, present, nullptr);
  const Tensor result = empty_result(call.out_sizes, dtype_of(factors[0]));
  call.args.out = result.mutable_data_ptr();
  const RowArgs& rows = call.args.rows;
  parallel_for(0, rows.total, grain(rows.count * call.args.ranks * rows.cols),
               [&](int64_t begin, int64_t end) {
                 MMFAST_DISPATCH(call.dtype, rank_product, call.args, begin, end);
               });
  return result;
}

// wanted: 0 .. count-1 the factors, count the weights
std::vector<Tensor> rank_product_backward(const Tensor& grad, const std::vector<Tensor>& factors,
                                          const std::optional<Tensor>& weights,
                                          const std::optional<Tensor>& present,
                                          const std::vector<int64_t>& wanted) {
  RankProduct call(factors, weights, present, &grad);
  RankProductArgs& args = call.args;
  const int64_t count = args.rows.count;
  const std::vector<bool> flags = wanted_flags(wanted, count + 1);
  std::vector<std::optional<Tensor>> results(count + 1);
  const std::vector<void*> grads = gradients_like(factors[0], flags, 0, count, results);
  args.grads = grads.data();
  const int64_t chunks = chunks_of(args.rows.total);
  std::optional<Tensor> sums;
  if (flags[count]) {
    STD_TORCH_CHECK(weights, "wanted holds ", count, ", the weights, but weights is None");
    sums = empty_sums(chunks, args.ranks, call.dtype);
    args.sums = sums->mutable_data_ptr();
  }
  parallel_for(0, chunks, grain(kChunkRows * 2 * count * args.ranks * args.rows.cols),
               [&](int64_t begin, int64_t end) {
                 MMFAST_DISPATCH(call.dtype, rank_product_backward, args, begin, end);
               });
  if (sums) {
    results[count] = sum_chunks_of(*sums, sizes_of(*weights), call.dtype, dtype_of(*weights));
  }
  return in_order(results, wanted);
}

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("rank_product", TORCH_BOX(&mmfast::rank_product));
  m.impl("rank_product.no_autograd", TORCH_BOX(&mmfast::rank_product));
  m.impl("rank_product_backward", TORCH_BOX(&mmfast::rank_product_backward));
}
