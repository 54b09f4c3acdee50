// See concat_linear_call.h.
#include "concat_linear_call.h"

#include "../cpu/row_map.h"

namespace mmfast::cuda {
namespace {

Element element_of(ScalarType dtype) {
  switch (dtype) {
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

// The matrix, or a copy of it with unit column stride.
Tensor with_unit_column_stride(const Tensor& matrix) {
  const bool usable = (matrix.size(1) <= 1 || matrix.stride(1) == 1) &&
                      (matrix.size(0) <= 1 || matrix.stride(0) >= matrix.size(1));
  return usable ? matrix : dense(matrix);
}

// Copied only if its strides fit no matrix.
void set_distinct_rows(Source& source, const Tensor& input, const Dims& batch) {
  const auto strides = input.strides();
  const Dims all_strides(strides.begin(), strides.end());
  const DistinctRows found = distinct_rows(sizes_of(input), all_strides, batch);
  source.strides = found.strides;
  source.grad_strides = found.grad_strides;
  source.grad_rows = found.grad_rows;
  source.tensor = found.dense ? input
                              : dense(borrow(input, input.const_data_ptr(), found.sizes,
                                             all_strides, dtype_code(input)));
  source.matrix = Matrix{const_cast<void*>(source.tensor.const_data_ptr()), found.rows,
                         input.size(input.dim() - 1), found.row_stride};
}

void set_indexed_rows(Source& source, const Tensor& input, const Tensor& index, const Dims& batch,
                      cudaStream_t stream) {
  source.tensor = with_unit_column_stride(input);
  source.matrix = matrix_of(source.tensor);
  source.index_tensor = dense(index);
  source.index = static_cast<const int64_t*>(source.index_tensor->const_data_ptr());
  source.entries = index.numel();
  source.strides = entry_strides(sizes_of(index), batch);
  source.grad_strides = source.strides;
  source.grad_rows = source.matrix.rows;
  if (source.entries > 0) {
    check(launch_check_index(source.index, source.entries, source.matrix.rows, stream),
          "concat_linear, index");
  }
}

Picked empty_aligned(const Call& call, int64_t rows, int64_t cols) {
  const int64_t unit = 16 / call.element_size;
  const int64_t stride = (cols + unit - 1) / unit * unit;
  const Tensor tensor = call.empty({rows, stride}, call.dtype);
  return {tensor, Matrix{tensor.mutable_data_ptr(), rows, cols, stride}};
}

}  // namespace

Call make_call(const std::vector<Tensor>& inputs, const Tensor& weight,
               const std::vector<Tensor>& index, const std::vector<int64_t>& indexed,
               bool reads_weight) {
  const DeviceFacts& facts = device_facts(weight.get_device_index());
  STD_TORCH_CHECK(facts.major >= 8, "this GPU has compute capability ", facts.major, ".",
                  facts.minor, "; mmfast needs 8.0 or newer");
  const ConcatLinearShape shape = check_concat_linear(inputs, weight, index, indexed);
  const Tensor usable_weight = reads_weight ? with_unit_column_stride(weight) : weight;
  const Element element = element_of(weight.scalar_type());
  Call call{shape,
            {},
            usable_weight,
            matrix_of(usable_weight),
            element,
            dtype_code(weight),
            element_size(element),
            gpu_of(facts.multiprocessors, facts.major, facts.minor),
            current_stream(weight.get_device_index())};
  constexpr int64_t kMost = INT32_MAX - 1024;  // tiles may end behind the last row
  STD_TORCH_CHECK(call.shape.rows <= kMost && call.shape.cols <= kMost && call.shape.width <= kMost,
                  "the result has ", call.shape.rows, " rows and ", call.shape.cols,
                  " columns, the inputs ", call.shape.width, " features; each must be at most ",
                  kMost, " on a GPU (split the batch)");
  size_t next = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool has_index = next < indexed.size() && indexed[next] == static_cast<int64_t>(i);
    if (inputs[i].size(inputs[i].dim() - 1) > 0) {
      call.sources.push_back(
          Source{static_cast<int64_t>(i), inputs[i], Matrix{}, call.shape.offsets[i], {}, {}, 0});
      if (has_index) {
        set_indexed_rows(call.sources.back(), inputs[i], index[next], call.shape.batch,
                         call.stream);
      } else {
        set_distinct_rows(call.sources.back(), inputs[i], call.shape.batch);
      }
      STD_TORCH_CHECK(call.sources.back().matrix.rows <= kMost, "inputs[", i, "] has ",
                      call.sources.back().matrix.rows, " rows; it may have ", kMost, " on a GPU");
    }
    next += has_index ? 1 : 0;
  }
  return call;
}

GpuPlan plan_call(const Call& call, bool finishing) {
  std::vector<PlanInput> inputs;
  inputs.reserve(call.sources.size());
  for (const Source& source : call.sources) {
    inputs.push_back(PlanInput{source.matrix.cols, source.product_rows(),
                               !source.index && tma_can_read(source.matrix)});
  }
  return plan_concat_linear(inputs, call.shape.rows, call.shape.cols, call.element,
                            tma_can_read(call.weight), finishing, call.gpu);
}

std::vector<RowOffsets> row_offsets_together(const Dims& sizes, const std::vector<Dims>& strides) {
  const RowMapStorage storage(sizes, strides);
  const RowMap map = storage.view();
  STD_TORCH_CHECK(map.dims <= kMaxDims, "the batch shape ", shape_string(sizes), " has ", map.dims,
                  " dimensions that cannot be merged; a GPU takes ", kMaxDims,
                  " (expand the inputs that broadcast, or make them contiguous)");
  std::vector<RowOffsets> found(strides.size());
  for (size_t s = 0; s < strides.size(); ++s) {
    found[s].dims.dims = static_cast<int32_t>(map.dims);
    for (int64_t d = 0; d < map.dims; ++d) {
      found[s].dims.sizes[d] = static_cast<int32_t>(map.sizes[d]);
      found[s].strides[d] = map.strides[static_cast<int64_t>(s) * map.dims + d];
    }
  }
  return found;
}

RowOffsets row_offsets(const Dims& sizes, const Dims& strides) {
  return row_offsets_together(sizes, {strides})[0];
}

Picked pick_rows(const Call& call, const Source& source, const Dims& batch, int64_t rows) {
  Picked picked = empty_aligned(call, rows, source.matrix.cols);
  const PickArgs args{picked.matrix.data,
                      picked.matrix.row_stride,
                      source.matrix.data,
                      source.matrix.row_stride,
                      source.index,
                      row_offsets(batch, source.strides),
                      0,
                      rows,
                      static_cast<int32_t>(source.matrix.cols)};
  check(launch_pick_rows(call.element_size, args, call.stream), "concat_linear, rows picked");
  return picked;
}

Picked align_rows(const Call& call, const Matrix& m) {
  Picked aligned = empty_aligned(call, m.rows, m.cols);
  const PickArgs args{aligned.matrix.data,
                      aligned.matrix.row_stride,
                      m.data,
                      m.row_stride,
                      nullptr,
                      row_offsets({m.rows}, {1}),
                      0,
                      m.rows,
                      static_cast<int32_t>(m.cols)};
  check(launch_pick_rows(call.element_size, args, call.stream), "concat_linear, rows aligned");
  return aligned;
}

Picked widened(const Call& call, const Matrix& m) {
  if (call.element_size != 2) {
    return {call.weight_tensor, m};
  }
  const Tensor tensor = call.empty({m.rows, m.cols}, call.accumulator_dtype());
  const Matrix wide{tensor.mutable_data_ptr(), m.rows, m.cols, m.cols};
  const ConvertArgs args{
      wide.data, wide.row_stride, m.data, m.row_stride, m.rows, static_cast<int32_t>(m.cols), true};
  check(launch_convert(call.element, args, call.stream), "concat_linear, float32 copy");
  return {tensor, wide};
}

void narrow_into(const Call& call, const Matrix& out, const Matrix& from) {
  const ConvertArgs args{out.data,  out.row_stride,
                         from.data, from.row_stride,
                         out.rows,  static_cast<int32_t>(out.cols),
                         false};
  check(launch_convert(call.element, args, call.stream), "concat_linear, rounding");
}

}  // namespace mmfast::cuda
