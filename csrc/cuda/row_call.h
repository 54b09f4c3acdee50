// What the entries of operators over rows share on a GPU: the sources put together, the kernels'
// sums added up.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../cpu/row_sources.h"
#include "kernel_tables.h"
#include "rows.h"
#include "runtime.h"
#include "tensors.h"

namespace mmfast::cuda {

using torch::headeronly::ScalarType;

// The tensors of one call, and from them the kernels' view of their rows.
class RowCall {
 public:
  // `like` is the first input: it says where the call runs, and in which dtype.
  RowCall(const Tensor& like, const Dims& batch);

  // Adds (*batch, row), the last `row_dims` dimensions of which form a row, and returns its
  // position. Expanded and sliced tensors are read in place; what is copied is only one whose rows'
  // elements do not stand side by side. `packets`: whether kernels load packets of it.
  int32_t add(const Tensor& t, int64_t row_dims = 1, bool packets = true);
  // Adds (*batch, row) or (row,), which every row of the batch reads.
  int32_t add_repeated(const Tensor& t);
  // Adds (*batch, row) whose elements may stand anywhere; `stride` is set to that of its elements.
  int32_t add_strided(const Tensor& t, int64_t& stride);
  // Adds a tensor whose strides along the batch are given.
  int32_t add_with(const Tensor& t, const Dims& strides, bool packets) {
    return push(t, strides, packets);
  }
  void add_present(const std::optional<Tensor>& present);

  // A dense tensor that kernels read from its start.
  const void* add_dense(const Tensor& t);
  // A new dense tensor that kernels write.
  Tensor add_result(const Dims& sizes);
  // A new tensor shaped like the first input for each source first .. first + count whose gradient
  // is wanted; `results` takes it, at the same position.
  void add_gradients(const std::vector<bool>& wanted, int64_t first, int64_t count,
                     std::vector<std::optional<Tensor>>& results);

  // The kernels' view of rows of `cols` elements, in which packets start at every `step` of them.
  // With `flatten`, rows that follow each other in all sources are seen as a single one.
  Rows rows(int64_t count, int64_t cols, int64_t step, bool flatten = false);

  const Tensor& like() const { return like_; }
  cudaStream_t stream() const { return stream_; }
  Element element() const { return element_; }
  int64_t total() const { return total_; }
  int32_t packet() const { return static_cast<int32_t>(16 / like_.element_size()); }
  int64_t packets(int64_t cols) const { return (cols + packet() - 1) / packet(); }
  // As many as fill the device several times over.
  int64_t many_blocks() const;

 private:
  struct Source {
    Tensor tensor;
    Dims strides;
    bool packets;
    void* grad = nullptr;
  };

  int32_t push(const Tensor& t, const Dims& strides, bool packets);
  // The tensor, or a copy where the batch has more dimensions than kernels walk.
  Tensor walkable(const Tensor& t) const;
  bool is_one_row() const;
  int32_t unit(int64_t step) const;

  Tensor like_;
  DeviceGuard guard_;
  Dims batch_;
  int64_t total_;
  cudaStream_t stream_;
  Element element_;
  std::vector<Source> sources_;
  std::vector<Tensor> kept_;  // what kernels read or write besides
  std::optional<Tensor> table_;
  int32_t present_ = -1;
  int64_t present_stride_ = 0;
};

// An uninitialised tensor for sums in the accumulator's type.
Tensor empty_sums(const RowCall& call, int64_t count, int64_t size);

// The sums added up, in the same order every time, as a tensor of `sizes` in the inputs' type.
Tensor add_sums(const RowCall& call, const Tensor& sums, const Dims& sizes);

std::vector<Tensor> in_order(const std::vector<std::optional<Tensor>>& results,
                             const std::vector<int64_t>& wanted);

// Checks a gradient of the result, which has the shape of `like`.
void check_grad(const Tensor& grad, const Tensor& like, const char* like_name, const Dims& sizes);

// The number of modalities is limited by what a block can keep of each.
void check_count(const char* name, int64_t count);

}  // namespace mmfast::cuda
