// Tensors of one batch shape, read row by row where they lie: what the operators share that combine
// features element by element. A row is a tensor's last dimension, or its last two.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "../row_checks.h"
#include "matmul.h"
#include "row_map.h"
#include "scalar.h"

namespace mmfast {

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;

// Pointers and row strides (in elements) of several tensors. Expanded and sliced ones are read in
// place; what is copied is only a row whose elements do not stand side by side.
class RowSources {
 public:
  explicit RowSources(const Dims& batch) : batch_(batch) {}

  // Adds (*batch, row): the last `row_dims` dimensions form a row.
  void add(const Tensor& t, int64_t row_dims = 1) {
    const int64_t dims = t.dim() - row_dims;
    bool dense = true;
    int64_t expected = 1;
    for (int64_t d = t.dim() - 1; d >= dims; --d) {
      dense = dense && (t.size(d) == 1 || t.stride(d) == expected);
      expected *= t.size(d);
    }
    kept_.push_back(dense ? t : contiguous_cpu(t));
    push_strides(kept_.back(), dims);
    data_.push_back(kept_.back().const_data_ptr());
  }

  // Adds (*batch, row) or (row,), which every row of the batch reads.
  void add_repeated(const Tensor& t) {
    if (t.dim() > 1 || batch_.empty()) {
      add(t);
      return;
    }
    kept_.push_back(contiguous_cpu(t));
    strides_.push_back(Dims(batch_.size(), 0));
    data_.push_back(kept_.back().const_data_ptr());
  }

  // Adds (*batch, row) whose elements may stand anywhere: the stride of a row's elements is
  // returned.
  int64_t add_strided(const Tensor& t) {
    kept_.push_back(t);
    push_strides(t, t.dim() - 1);
    data_.push_back(t.const_data_ptr());
    return t.stride(t.dim() - 1);
  }

  const void* const* data() const { return data_.data(); }
  RowMapStorage rows() const { return RowMapStorage(batch_, strides_); }

 private:
  void push_strides(const Tensor& t, int64_t dims) {
    Dims strides;
    for (int64_t d = 0; d < dims; ++d) {
      strides.push_back(t.size(d) == 1 ? 0 : t.stride(d));
    }
    strides_.push_back(strides);
  }

  Dims batch_;
  std::vector<Tensor> kept_;
  std::vector<Dims> strides_;
  std::vector<const void*> data_;
};

// The sizes of t without the last `row_dims`.
inline Dims batch_of(const Tensor& t, int64_t row_dims = 1) {
  const auto sizes = t.sizes();
  return Dims(sizes.begin(), sizes.end() - row_dims);
}

inline int64_t product(const Dims& sizes) {
  int64_t result = 1;
  for (int64_t size : sizes) {
    result *= size;
  }
  return result;
}

// Which rows a thread takes, and which of a row's sources are there. Plain pointers for kernels.
struct RowArgs {
  RowMap rows;              // of the sources, in the order in which they were added
  const void* const* data;  // [sources]
  int64_t present;          // the source that says what is present, or -1
  int64_t present_stride;   // of its elements
  int64_t count;            // modalities
  int64_t cols;             // elements of a row
  int64_t total;            // rows
};

// The tensors of one call, each checked when it is added: those of a list, which set shape, dtype
// and device of a row, and what else is read along with them.
class RowCall {
 public:
  RowCall(const std::vector<Tensor>& list, const char* name, int64_t row_dims = 1)
      : list_(checked(list, name, row_dims)),
        name_(name),
        batch_(batch_of(list[0], row_dims)),
        sources_(batch_) {
    for (const Tensor& x : list) {
      sources_.add(x, row_dims);
      ++count_;
    }
  }

  const Dims& batch() const { return batch_; }
  ScalarType dtype() const { return list_[0].scalar_type(); }

  template <typename Name>
  void check(const Tensor& t, const Name& name, const Dims& sizes) const {
    check_alike(t, name, list_[0], Item{name_, 0});
    check_shape(t, name, sizes);
    check_storage(t, [&] { return name; });
  }

  // Adds a tensor of these sizes; returns its position among the sources, as all below do.
  template <typename Name>
  int64_t add(const Tensor& t, const Name& name, const Dims& sizes, int64_t row_dims = 1) {
    check(t, name, sizes);
    sources_.add(t, row_dims);
    return count_++;
  }

  // Adds (*batch, row) or (row,).
  int64_t add_repeated(const Tensor& t, const char* name, const Dims& sizes) {
    check(t, name, sizes);
    sources_.add_repeated(t);
    return count_++;
  }

  // Adds (*batch, row), whose elements may stand anywhere; `stride` is theirs.
  int64_t add_strided(const Tensor& t, const char* name, const Dims& sizes, int64_t& stride) {
    check(t, name, sizes);
    stride = sources_.add_strided(t);
    return count_++;
  }

  // What kernels are told. `present`: bool (*batch, list's length).
  RowArgs args(const std::optional<Tensor>& present, int64_t cols) {
    RowArgs args{};
    args.count = static_cast<int64_t>(list_.size());
    args.cols = cols;
    args.total = product(batch_);
    args.present = -1;
    check_present(present, list_[0], name_, batch_, args.count);
    if (present) {
      args.present_stride = sources_.add_strided(*present);
      args.present = count_++;
    }
    map_.emplace(sources_.rows());
    args.rows = map_->view();
    args.data = sources_.data();
    return args;
  }

 private:
  static const std::vector<Tensor>& checked(const std::vector<Tensor>& list, const char* name,
                                            int64_t row_dims) {
    check_list(list, name, row_dims);
    return list;
  }

  const std::vector<Tensor>& list_;
  const char* name_;
  Dims batch_;
  RowSources sources_;
  int64_t count_ = 0;
  std::optional<RowMapStorage> map_;
};

// Sums over all rows of the batch go by chunks of so many, whose sums are added pairwise at the
// end: which thread does what changes no bit of the result. Few, since the rounding errors of a
// running sum grow with its length.
constexpr int64_t kChunkRows = 32;

struct ChunkArgs {
  void* sums;  // [chunks][size], in the accumulator's type
  int64_t chunks;
  int64_t size;
  void* out;  // [size]
};

// At least one, so that there is a sum of no rows too.
inline int64_t chunks_of(int64_t rows) {
  return std::max<int64_t>(1, (rows + kChunkRows - 1) / kChunkRows);
}

// The positions that are wanted, checked: each of 0 .. count-1 at most once.
inline std::vector<bool> wanted_flags(const std::vector<int64_t>& wanted, int64_t count) {
  std::vector<bool> flags(count, false);
  for (int64_t position : wanted) {
    STD_TORCH_CHECK(position >= 0 && position < count, "wanted holds ", position,
                    "; it must lie in 0 .. ", count - 1);
    STD_TORCH_CHECK(!flags[position], "wanted holds ", position, " twice");
    flags[position] = true;
  }
  return flags;
}

}  // namespace mmfast
