// The type of an operator's `str` arguments.
//
// libtorch's conversion to std::string, in torch 2.10 to 2.13, makes one by new and never deletes
// it: every call of an operator would lose some 48 bytes.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <string>

namespace mmfast {

struct Text : std::string {
  using std::string::string;
};

}  // namespace mmfast

template <>
struct torch::stable::detail::ToImpl<mmfast::Text> {
  static mmfast::Text call(StableIValue value, uint64_t /*build_version*/, bool /*is_internal*/) {
    const auto handle = torch::stable::detail::to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    const mmfast::Text text(data, length);
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
