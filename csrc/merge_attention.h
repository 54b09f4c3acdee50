// merge_attention on any device: its arguments, checked once, and the order of its result in
// memory.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "checks.h"

namespace mmfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_merge_attention(const std::vector<Tensor>& outputs,
                                  const std::vector<Tensor>& lses) {
  STD_TORCH_CHECK(!outputs.empty(), "outputs is empty; it must hold at least one tensor");
  STD_TORCH_CHECK(lses.size() == outputs.size(), "lses has ", lses.size(),
                  " tensors but outputs has ", outputs.size(), "; they must be equal");
  const Tensor& first = outputs[0];
  check_floating(first, "outputs[0]");
  STD_TORCH_CHECK(first.dim() == 4, "outputs[0] has shape ", shape_string(first),
                  "; it must be 4-d, (batch, heads, queries, features)");
  const ScalarType wide =
      first.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Dims sizes = sizes_of(first);
  for (size_t s = 0; s < outputs.size(); ++s) {
    const std::string output = "outputs[" + std::to_string(s) + "]";
    const std::string lse = "lses[" + std::to_string(s) + "]";
    check_alike(outputs[s], output, first, "outputs[0]");
    check_shape(outputs[s], output, sizes);
    check_storage(outputs[s], [&] { return output; });
    check_device(lses[s], lse, first, "outputs[0]");
    check_shape(lses[s], lse, {sizes[0], sizes[1], sizes[2]});
    check_storage(lses[s], [&] { return lse; });
    STD_TORCH_CHECK(lses[s].scalar_type() == wide, lse, " has dtype ",
                    torch::headeronly::toString(lses[s].scalar_type()), "; it must be ",
                    torch::headeronly::toString(wide));
  }
}

// Whether heads lie side by side within a query, as projections of tokens leave them.
inline bool heads_are_inner(const Tensor& t) {
  const Dims order = {0, 2, 1, 3};
  int64_t expected = 1;
  for (int64_t d = 3; d >= 0; --d) {
    if (t.size(order[d]) != 1 && t.stride(order[d]) != expected) {
      return false;
    }
    expected *= t.size(order[d]);
  }
  return !t.is_contiguous();
}

// The strides of (batch, heads, queries), in the order in which the result lies in memory.
inline Dims row_strides(const Tensor& t, const Dims& order) {
  return {t.stride(order[0]), t.stride(order[1]), t.stride(order[2])};
}

}  // namespace mmfast
