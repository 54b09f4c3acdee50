// The library's matrix products on a GPU, through libtorch's C shims: cuBLAS, with the settings
// that PyTorch has (TF32 among them).
#pragma once

#include "runtime.h"
#include "tensors.h"

namespace mmfast::cuda {

// A strided matrix that borrows its memory.
struct Matrix {
  void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride = 1;

  Matrix transposed() const { return Matrix{data, cols, rows, col_stride, row_stride}; }
};

// A tensor over memory that somebody else keeps, on the device of `like`; autograd knows nothing of
// it.
inline Tensor borrow(const Tensor& like, const void* data, const Dims& sizes, const Dims& strides,
                     int32_t dtype) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<void*>(data), sizes.size(), sizes.data(), strides.data(), 0, dtype,
      device_type(like), like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor as_tensor(const Tensor& like, const Matrix& m, int32_t dtype) {
  return borrow(like, m.data, {m.rows, m.cols}, {m.row_stride, m.col_stride}, dtype);
}

inline Matrix matrix_of(const Tensor& t) {
  const int64_t rows = t.size(0);
  const int64_t cols = t.size(1);
  return Matrix{const_cast<void*>(t.const_data_ptr()), rows, cols, rows > 1 ? t.stride(0) : cols};
}

using AddmmOut = AOTITorchError (*)(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle,
                                    AtenTensorHandle, double, double);
using MmOut = AOTITorchError (*)(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle);

// out = a b + added, or out = a b
inline void matmul(const Tensor& like, const Matrix& out, const Matrix& a, const Matrix& b,
                   int32_t dtype, const Matrix* added = nullptr) {
  const Tensor o = as_tensor(like, out, dtype);
  const Tensor x = as_tensor(like, a, dtype);
  const Tensor y = as_tensor(like, b, dtype);
  if (added) {
    static const auto addmm = torch_symbol<AddmmOut>("aoti_torch_cuda_addmm_out");
    const Tensor z = as_tensor(like, *added, dtype);
    TORCH_ERROR_CODE_CHECK(addmm(o.get(), z.get(), x.get(), y.get(), 1.0, 1.0));
  } else {
    static const auto mm = torch_symbol<MmOut>("aoti_torch_cuda_mm_out");
    TORCH_ERROR_CODE_CHECK(mm(o.get(), x.get(), y.get()));
  }
}

}  // namespace mmfast::cuda
