#include "row_call.h"

#include <algorithm>

#include "../cpu/row_map.h"

namespace mmfast::cuda {
namespace {

Element element_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Element::float32;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    case ScalarType::Half:
      return Element::float16;
    default:
      return Element::float64;
  }
}

Dims strides_of(const Tensor& t, int64_t dims) {
  Dims strides;
  for (int64_t d = 0; d < dims; ++d) {
    strides.push_back(t.size(d) == 1 ? 0 : t.stride(d));
  }
  return strides;
}

}  // namespace

RowCall::RowCall(const Tensor& like, const Dims& batch)
    : like_(like),
      guard_(like),
      batch_(batch),
      total_(product(batch)),
      stream_(current_stream(like.get_device_index())),
      element_(element_of(like)) {}

int32_t RowCall::push(const Tensor& t, const Dims& strides, bool packets) {
  sources_.push_back(Source{t, strides, packets});
  return static_cast<int32_t>(sources_.size()) - 1;
}

Tensor RowCall::walkable(const Tensor& t) const {
  const int64_t dims =
      std::count_if(batch_.begin(), batch_.end(), [](int64_t n) { return n != 1; });
  return dims > kRowDims ? dense(t) : t;
}

int32_t RowCall::add(const Tensor& given, int64_t row_dims, bool packets) {
  const Tensor t = walkable(given);
  const int64_t dims = t.dim() - row_dims;
  bool is_dense = true;
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= dims; --d) {
    is_dense = is_dense && (t.size(d) == 1 || t.stride(d) == expected);
    expected *= t.size(d);
  }
  const Tensor kept = is_dense ? t : dense(t);
  return push(kept, strides_of(kept, dims), packets);
}

int32_t RowCall::add_repeated(const Tensor& t) {
  return t.dim() > 1 || batch_.empty() ? add(t) : push(dense(t), Dims(batch_.size(), 0), true);
}

int32_t RowCall::add_strided(const Tensor& given, int64_t& stride) {
  const Tensor t = walkable(given);
  stride = t.stride(t.dim() - 1);
  return push(t, strides_of(t, t.dim() - 1), false);
}

void RowCall::add_present(const std::optional<Tensor>& present) {
  if (present) {
    present_ = add_strided(*present, present_stride_);
  }
}

const void* RowCall::add_dense(const Tensor& t) {
  kept_.push_back(dense(t));
  return kept_.back().const_data_ptr();
}

Tensor RowCall::add_result(const Dims& sizes) {
  kept_.push_back(empty(like_, sizes, dtype_code(like_)));
  return kept_.back();
}

void RowCall::add_gradients(const std::vector<bool>& wanted, int64_t first, int64_t count,
                            std::vector<std::optional<Tensor>>& results) {
  for (int64_t i = first; i < first + count; ++i) {
    if (wanted[i]) {
      results[i] = add_result(sizes_of(like_));
      sources_[i].grad = results[i]->mutable_data_ptr();
    }
  }
}

int64_t RowCall::many_blocks() const {
  return 16 * static_cast<int64_t>(device_facts(like_.get_device_index()).multiprocessors);
}

bool RowCall::is_one_row() const {
  return present_ < 0 &&
         std::all_of(
             sources_.begin(), sources_.end(),
             [](const Source& source) { return source.packets && source.tensor.is_contiguous(); });
}

int32_t RowCall::unit(int64_t step) const {
  // A bit is set where an address or a distance is not a multiple of twice it.
  const int64_t size = static_cast<int64_t>(like_.element_size());
  uintptr_t bits = 16 | static_cast<uintptr_t>(step * size);
  for (const Source& source : sources_) {
    if (source.packets) {
      bits |= reinterpret_cast<uintptr_t>(source.tensor.const_data_ptr());
      for (int64_t stride : source.strides) {
        bits |= static_cast<uintptr_t>(stride * size);
      }
    }
  }
  for (const Tensor& t : kept_) {
    bits |= reinterpret_cast<uintptr_t>(t.const_data_ptr());
  }
  return static_cast<int32_t>(bits & (~bits + 1));
}

Rows RowCall::rows(int64_t count, int64_t cols, int64_t step, bool flatten) {
  Rows rows{};
  rows.count = static_cast<int32_t>(count);
  rows.present = present_;
  rows.present_stride = present_stride_;
  rows.total = total_;
  rows.cols = cols;
  if (flatten && is_one_row()) {
    rows.total = total_ > 0 ? 1 : 0;
    rows.cols = total_ * cols;
    step = 0;
    for (Source& source : sources_) {
      source.strides = Dims(batch_.size(), 0);
    }
  }
  rows.unit = unit(step);
  rows.whole = rows.unit == 16 && (step == 0 ? rows.cols : step) % packet() == 0;

  std::vector<Dims> strides;
  for (const Source& source : sources_) {
    strides.push_back(source.strides);
  }
  const RowMapStorage storage(batch_, strides);
  const RowMap map = storage.view();
  rows.dims = static_cast<int32_t>(map.dims);
  for (int d = 0; d + 1 < map.dims; ++d) {  // the outermost size is not needed
    rows.sizes[d] = map.sizes[map.dims - 1 - d];
  }
  std::vector<RowSource> sources(sources_.size());
  for (size_t s = 0; s < sources.size(); ++s) {
    sources[s].data = sources_[s].tensor.const_data_ptr();
    sources[s].grad = sources_[s].grad;
    for (int64_t d = 0; d < map.dims; ++d) {
      sources[s].strides[d] = map.strides[s * map.dims + map.dims - 1 - d];
    }
  }
  const int64_t total = static_cast<int64_t>(sources.size());
  if (total <= kInlineSources) {
    std::copy(sources.begin(), sources.end(), rows.sources);
    return rows;
  }
  const int64_t words = total * static_cast<int64_t>(sizeof(RowSource)) / 8;
  table_ = empty(like_, {words}, aoti_torch_dtype_int64());
  TableArgs args{};
  args.table = static_cast<RowSource*>(table_->mutable_data_ptr());
  rows.table = args.table;
  for (int64_t first = 0; first < total; first += kInlineSources) {
    args.first = static_cast<int32_t>(first);
    args.count = static_cast<int32_t>(std::min<int64_t>(kInlineSources, total - first));
    std::copy_n(sources.begin() + first, args.count, args.sources);
    launch_table(args, stream_);
    check_launch("the table of sources");
  }
  return rows;
}

Tensor empty_sums(const RowCall& call, int64_t count, int64_t size) {
  const bool wide = call.element() == Element::float64;
  return empty(call.like(), {count, size},
               wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
}

Tensor add_sums(const RowCall& call, const Tensor& sums, const Dims& sizes) {
  const Tensor result = empty(call.like(), sizes, dtype_code(call.like()));
  launch_add_sums(
      call.element(),
      SumsArgs{sums.const_data_ptr(), sums.size(0), sums.size(1), result.mutable_data_ptr()},
      call.stream());
  check_launch("a sum over rows");
  return result;
}

std::vector<Tensor> in_order(const std::vector<std::optional<Tensor>>& results,
                             const std::vector<int64_t>& wanted) {
  std::vector<Tensor> list;
  for (int64_t position : wanted) {
    list.push_back(*results[position]);
  }
  return list;
}

void check_grad(const Tensor& grad, const Tensor& like, const char* like_name, const Dims& sizes) {
  check_alike(grad, "grad", like, like_name);
  check_shape(grad, "grad", sizes);
  check_storage(grad, [] { return "grad"; });
}

void check_count(const char* name, int64_t count) {
  STD_TORCH_CHECK(count <= kMostModalities, name, " holds ", count,
                  " tensors; on a GPU it must hold at most ", kMostModalities);
}

}  // namespace mmfast::cuda
