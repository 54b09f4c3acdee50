// Runs kernels over rows. Included by an operator's entry after foreach_isa.h has compiled its
// kernels.
#pragma once

#include "concat_linear_call.h"
#include "row_sources.h"

namespace mmfast {
namespace {

inline Tensor empty_sums(int64_t chunks, int64_t size, ScalarType dtype) {
  return empty_cpu({chunks, size}, dtype == ScalarType::Double ? aoti_torch_dtype_float64()
                                                               : aoti_torch_dtype_float32());
}

// The sums of all chunks as a tensor of `sizes`.
inline Tensor sum_chunks_of(const Tensor& sums, const Dims& sizes, ScalarType dtype,
                            int32_t dtype_code) {
  const Tensor result = empty_cpu(sizes, dtype_code);
  const ChunkArgs args{const_cast<void*>(sums.const_data_ptr()), sums.size(0), sums.size(1),
                       result.mutable_data_ptr()};
  parallel_for(0, args.size, grain(args.chunks), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(dtype, add_chunks, args, begin, end);
  });
  return result;
}

// New tensors of the shape of `like` for the positions first .. first + count that are wanted, and
// where they are.
inline std::vector<void*> gradients_like(const Tensor& like, const std::vector<bool>& wanted,
                                         int64_t first, int64_t count,
                                         std::vector<std::optional<Tensor>>& results) {
  std::vector<void*> pointers(count, nullptr);
  for (int64_t i = 0; i < count; ++i) {
    if (wanted[first + i]) {
      results[first + i] = empty_result(sizes_of(like), dtype_of(like));
      pointers[i] = results[first + i]->mutable_data_ptr();
    }
  }
  return pointers;
}

inline std::vector<Tensor> in_order(const std::vector<std::optional<Tensor>>& results,
                                    const std::vector<int64_t>& wanted) {
  std::vector<Tensor> list;
  list.reserve(wanted.size());
  for (int64_t position : wanted) {
    list.push_back(*results[position]);
  }
  return list;
}

}  // namespace
}  // namespace mmfast
