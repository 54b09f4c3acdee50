// merge_attention on the CPU: attention over several sources from attention over each of them.
//
// With o_s the output and l_s the logsumexp of the scores of source s, attention over all of them
// is
//   l = log sum_s exp(l_s),   o = sum_s exp(l_s - l) o_s
// so that no source's keys and values need to stand beside another's.
#include <cmath>

#include "../merge_attention.h"
#include "concat_linear_call.h"
#include "vector_math.h"

namespace mmfast {
namespace {

// Plain pointers for the kernel. Sources of `rows`: the outputs, in elements; then the lses.
struct MergeAttentionArgs {
  RowMap rows;
  const void* const* outputs;  // [count]
  const void* const* lses;     // [count], in the accumulator's type
  int64_t count;
  int64_t cols;
  void* out;  // [rows][cols]
  void* lse;  // [rows]
};

}  // namespace
}  // namespace mmfast

#define MMFAST_ISA_SOURCE "merge_attention_kernels.h"
#include "foreach_isa.h"

namespace mmfast {
namespace {

// An empty tensor whose dimensions `order` says how to lay out in memory.
Tensor empty_in_order(const Dims& sizes, const Dims& order, int32_t dtype) {
  Dims strides(sizes.size(), 1);
  int64_t step = 1;
  for (int64_t d = sizes.size() - 1; d >= 0; --d) {
    strides[order[d]] = step;
    step *= std::max<int64_t>(1, sizes[order[d]]);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

std::tuple<Tensor, Tensor> merge_attention(const std::vector<Tensor>& outputs,
                                           const std::vector<Tensor>& lses) {
  check_merge_attention(outputs, lses);
  const int64_t count = static_cast<int64_t>(outputs.size());
  const bool heads_inner = heads_are_inner(outputs[0]);
  const Dims order = heads_inner ? Dims{0, 2, 1, 3} : Dims{0, 1, 2, 3};
  const Dims sizes = sizes_of(outputs[0]);
  const Dims walked = {sizes[order[0]], sizes[order[1]], sizes[order[2]]};
  const int64_t cols = sizes[3];

  std::vector<Tensor> kept;  // copies of outputs whose rows are not dense
  std::vector<Dims> strides;
  std::vector<const void*> output_data, lse_data;
  for (const Tensor& output : outputs) {
    kept.push_back(cols <= 1 || output.stride(3) == 1 ? output : contiguous_cpu(output));
    strides.push_back(row_strides(kept.back(), order));
    output_data.push_back(kept.back().const_data_ptr());
  }
  for (const Tensor& lse : lses) {
    strides.push_back(row_strides(lse, order));
    lse_data.push_back(lse.const_data_ptr());
  }
  const RowMapStorage rows(walked, strides);
  const Tensor out = empty_in_order(sizes, order, dtype_of(outputs[0]));
  const Tensor lse = empty_in_order({sizes[0], sizes[1], sizes[2]}, {order[0], order[1], order[2]},
                                    dtype_of(lses[0]));
  const MergeAttentionArgs args{rows.view(), output_data.data(),     lse_data.data(),       count,
                                cols,        out.mutable_data_ptr(), lse.mutable_data_ptr()};
  const ScalarType dtype = outputs[0].scalar_type();
  parallel_for(0, walked[0] * walked[1] * walked[2], grain(count * (cols + 16)),
               [&](int64_t begin, int64_t end) {
                 std::vector<double> weights(count);
                 MMFAST_DISPATCH(dtype, merge_rows, args, weights.data(), begin, end);
               });
  return {out, lse};
}

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("merge_attention", TORCH_BOX(&mmfast::merge_attention));
}
