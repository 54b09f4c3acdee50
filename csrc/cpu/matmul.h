// Library matrix products on plain pointers, through libtorch's C shims: MKL or oneDNN, whatever
// this build of torch uses.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../dims.h"
#include "scratch.h"

namespace mmfast {

// A strided matrix that borrows its memory.
struct Matrix {
  void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride = 1;

  Matrix transposed() const { return Matrix{data, cols, rows, col_stride, row_stride}; }
};

inline int32_t dtype_of(const torch::stable::Tensor& t) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

inline torch::stable::Tensor empty_cpu(const Dims& sizes, int32_t dtype) {
  Dims strides(sizes.size(), 1);
  for (int64_t d = sizes.size() - 1; d >= 1; --d) {
    strides[d - 1] = strides[d] * (sizes[d] > 1 ? sizes[d] : 1);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return torch::stable::Tensor(handle);
}

// A new tensor whose every element is about to be written. What is large comes fresh from the
// operating system, which clears it page by page at the first write: in small pages that can
// take longer than the arithmetic, so large ones are asked for.
inline torch::stable::Tensor empty_result(const Dims& sizes, int32_t dtype) {
  const torch::stable::Tensor result = empty_cpu(sizes, dtype);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(result.const_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(result.numel() * result.element_size());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = end / kHugePage * kHugePage;
  if (first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: it may fail
  }
#endif
  return result;
}

// Scratch while it is small, else memory that is given back.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    if (bytes <= kScratchLimit) {
      data_ = static_cast<char*>(scratch(bytes));
    } else {
      tensor_ = empty_cpu({(bytes + 3) / 4}, aoti_torch_dtype_float32());
      data_ = static_cast<char*>(tensor_->mutable_data_ptr());
    }
  }
  char* data() const { return data_; }

 private:
  std::optional<torch::stable::Tensor> tensor_;
  char* data_;
};

// A tensor over memory that somebody else keeps; it knows nothing of autograd.
inline torch::stable::Tensor borrow(void* data, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                    torch::headeronly::IntHeaderOnlyArrayRef strides,
                                    int32_t dtype) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, dtype,
      aoti_torch_device_type_cpu(), 0, &handle));
  return torch::stable::Tensor(handle);
}

// The copy, where one is needed, is of borrowed memory: autograd must not see it.
inline torch::stable::Tensor contiguous_cpu(const torch::stable::Tensor& t) {
  return t.is_contiguous() ? t
                           : torch::stable::contiguous(borrow(const_cast<void*>(t.const_data_ptr()),
                                                              t.sizes(), t.strides(), dtype_of(t)));
}

inline torch::stable::Tensor as_tensor(const Matrix& m, int32_t dtype) {
  const int64_t sizes[] = {m.rows, m.cols};
  const int64_t strides[] = {m.row_stride, m.col_stride};
  return borrow(m.data, {sizes, 2}, {strides, 2}, dtype);
}

// torch 2.10 takes a 16-bit row or column of a product as if its elements stood side by side.
inline bool is_misread(const Matrix& m, int32_t dtype) {
  const bool wide = dtype == aoti_torch_dtype_float32() || dtype == aoti_torch_dtype_float64();
  return !wide && ((m.cols == 1 && m.row_stride != 1) || (m.rows == 1 && m.col_stride != 1));
}

inline torch::stable::Tensor as_factor(const Matrix& m, int32_t dtype) {
  const auto t = as_tensor(m, dtype);
  return is_misread(m, dtype) ? torch::stable::contiguous(t) : t;
}

// `multiply` writes to what it is given, which is `out` or a copy of it that goes there.
template <typename Multiply>
void write_product(const Matrix& out, int32_t dtype, const Multiply& multiply) {
  const auto o = as_tensor(out, dtype);
  if (is_misread(out, dtype)) {
    auto target = o;
    const auto copy = torch::stable::contiguous(o);
    multiply(copy);
    torch::stable::copy_(target, copy);
  } else {
    multiply(o);
  }
}

// out = a b, or out += a b
inline void matmul(const Matrix& out, const Matrix& a, const Matrix& b, int32_t dtype,
                   bool accumulate = false) {
  const auto x = as_factor(a, dtype);
  const auto y = as_factor(b, dtype);
  write_product(out, dtype, [&](const torch::stable::Tensor& o) {
    if (accumulate) {
      TORCH_ERROR_CODE_CHECK(
          aoti_torch_cpu_addmm_out(o.get(), o.get(), x.get(), y.get(), 1.0, 1.0));
    } else {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(o.get(), x.get(), y.get()));
    }
  });
}

// out = a b + row, the row broadcast over out's rows
inline void matmul_add_row(const Matrix& out, const Matrix& a, const Matrix& b, const void* row,
                           int32_t dtype) {
  const auto x = as_factor(a, dtype);
  const auto y = as_factor(b, dtype);
  const auto r = as_tensor(Matrix{const_cast<void*>(row), out.rows, out.cols, 0, 1}, dtype);
  write_product(out, dtype, [&](const torch::stable::Tensor& o) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(o.get(), r.get(), x.get(), y.get(), 1.0, 1.0));
  });
}

}  // namespace mmfast
