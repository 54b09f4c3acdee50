// Checks of operators over rows, the same on every device.
#pragma once

#include <optional>
#include <vector>

#include "checks.h"

namespace mmfast {

// Every tensor of a list has the shape, dtype and device of the first, and rows of `row_dims`
// dimensions.
inline void check_list(const std::vector<torch::stable::Tensor>& list, const char* name,
                       int64_t row_dims) {
  STD_TORCH_CHECK(!list.empty(), name, " is empty; it must hold at least one tensor");
  for (size_t i = 0; i < list.size(); ++i) {
    const Item item{name, i};
    check_floating(list[i], item);
    STD_TORCH_CHECK(list[i].dim() >= row_dims, item, " has shape ", shape_string(list[i]),
                    "; it must have at least ", row_dims, " dimensions");
    check_storage(list[i], [&] { return item; });
    if (i > 0) {
      check_alike(list[i], item, list[0], Item{name, 0});
      check_shape(list[i], item, sizes_of(list[0]));
    }
  }
}

// `present` is bool (*batch, count) where `like` is, a tensor of the list of that name; or None.
inline void check_present(const std::optional<torch::stable::Tensor>& present,
                          const torch::stable::Tensor& like, const char* name, const Dims& batch,
                          int64_t count) {
  if (!present) {
    return;
  }
  STD_TORCH_CHECK(present->scalar_type() == torch::headeronly::ScalarType::Bool,
                  "present has dtype ", torch::headeronly::toString(present->scalar_type()),
                  "; it must be bool");
  Dims sizes = batch;
  sizes.push_back(count);
  check_shape(*present, "present", sizes);
  check_device(*present, "present", like, name);
  check_storage(*present, [] { return "present"; });
}

}  // namespace mmfast
