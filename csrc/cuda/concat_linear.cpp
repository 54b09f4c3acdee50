// concat_linear on a GPU: y = act(cat(inputs) weight^T + bias), the concatenation never built.
//
// 16-bit inputs take mmfast's own product: one K loop runs over the features of all inputs with the
// sums in registers, and bias, activation and the products of inputs whose rows repeat are added
// before the result is first written. 32- and 64-bit inputs take the library's product, one per
// input and accumulated in the result. See concat_linear_plan.h for which way a call takes.
#include "../text.h"
#include "gemm_product.h"

namespace mmfast::cuda {
namespace {

// The product of an input whose rows repeat: a row per distinct row, unrounded.
struct DistinctProduct {
  Tensor product;
  const Source* source;
  const int64_t* index;  // leads from the rows that `strides` name to rows of the product, or null
};

// A source's rows as the product reads them: those that the index picks, if that comes first.
ProductInput product_input(const Source& source) {
  return {source.matrix, source.picked_first() ? source.index : nullptr, source.product_rows()};
}

Tensor multiply_distinct_rows(const Call& call, const Source& source) {
  const int64_t rows = source.product_rows();
  const Tensor product = call.empty({rows, call.shape.cols}, call.accumulator_dtype());
  const Matrix out = matrix_of(product);
  if (call.element_size == 2) {
    Epilogue epilogue{};
    epilogue.panels[0] = {out.data, out.row_stride, static_cast<int32_t>(out.cols)};
    epilogue.wide_out = true;
    const bool tma = call.gpu.hopper && !source.picked_first() && tma_can_read(source.matrix) &&
                     tma_can_read(call.weight);
    run_forward(call, tma, rows, {product_input(source)}, {{source.matrix.cols, source.offset}},
                call.weight, epilogue);
    return product;
  }
  if (!source.picked_first()) {
    matmul(call.weight_tensor, out, source.matrix, call.weight_of(source).transposed(), call.dtype);
    return product;
  }
  Source entries = source;  // entry by entry
  entries.strides = Dims{1};
  const Picked picked = pick_rows(call, entries, {rows}, rows);
  matmul(call.weight_tensor, out, picked.matrix, call.weight_of(source).transposed(), call.dtype);
  return product;
}

std::vector<DistinctProduct> multiply_repeated(const Call& call, const Plan& plan) {
  std::vector<bool> grouped(call.sources.size(), false);
  for (const mmfast::Group& group : plan.groups) {
    for (int64_t i : group.members) {
      grouped[i] = true;
    }
  }
  std::vector<DistinctProduct> addends;
  for (size_t i = 0; i < call.sources.size(); ++i) {
    const Source& source = call.sources[i];
    if (!grouped[i]) {
      addends.push_back({multiply_distinct_rows(call, source), &source,
                         source.picked_first() ? nullptr : source.index});
    }
  }
  return addends;
}

struct Output {
  Matrix matrix;
  void* preactivation;  // or null
  const void* bias;     // or null
  Activation activation;
};

// The epilogue's addends, with one merging of the batch's dimensions for all.
void set_addends(const Call& call, const std::vector<DistinctProduct>& addends, Epilogue& e) {
  if (addends.empty()) {
    return;
  }
  std::vector<Dims> strides;
  for (const DistinctProduct& addend : addends) {
    strides.push_back(addend.source->strides);
  }
  const std::vector<RowOffsets> rows = row_offsets_together(call.shape.batch, strides);
  e.row_dims = rows[0].dims;
  e.addends = static_cast<int32_t>(addends.size());
  for (size_t j = 0; j < addends.size(); ++j) {
    e.addend[j].data = static_cast<const float*>(addends[j].product.const_data_ptr());
    e.addend[j].index = addends[j].index;
    std::copy(rows[j].strides, rows[j].strides + kMaxDims, e.addend[j].strides);
  }
}

void finish(const Call& call, const std::vector<DistinctProduct>& addends, const Output& out,
            bool has_product, const void* bias) {
  FinishArgs args{};
  args.out = out.matrix.data;
  args.preactivation = out.preactivation;
  args.bias = bias;
  args.addends = static_cast<int32_t>(addends.size());
  for (size_t j = 0; j < addends.size(); ++j) {
    args.addend[j] = addends[j].product.const_data_ptr();
    args.addend_index[j] = addends[j].index;
    args.addend_rows[j] = row_offsets(call.shape.batch, addends[j].source->strides);
  }
  args.has_product = has_product;
  args.activation = out.activation;
  args.rows = static_cast<int32_t>(out.matrix.rows);
  args.cols = static_cast<int32_t>(out.matrix.cols);
  check(launch_finish_rows(call.element, args, call.stream), "concat_linear, epilogue");
}

// One product, or, of more inputs than one takes, several: each but the last leaves its sums in
// float32, which the next adds.
void run_in_parts(const Call& call, bool tma, int64_t rows, const std::vector<ProductInput>& inputs,
                  const std::vector<WeightColumns>& columns, const Matrix& weight, Epilogue last) {
  const size_t count = inputs.size();
  std::optional<Tensor> sums;
  for (size_t begin = 0; begin < count; begin += kMaxGroups) {
    const size_t end = std::min(count, begin + kMaxGroups);
    Epilogue epilogue = last;
    if (end < count) {
      const Tensor next = call.empty({rows, weight.rows}, aoti_torch_dtype_float32());
      epilogue.panels[0] = {next.mutable_data_ptr(), weight.rows,
                            static_cast<int32_t>(weight.rows)};
      epilogue.wide_out = true;
      epilogue.bias = nullptr;
      epilogue.preactivation = nullptr;
      epilogue.activation = Activation::none;
      run_forward(call, tma, rows, {inputs.begin() + begin, inputs.begin() + end},
                  {columns.begin() + begin, columns.begin() + end}, weight, epilogue);
      sums = next;
      last.addends = 1;
      last.addend[0] = Addend{static_cast<const float*>(next.const_data_ptr()), nullptr, {1}};
      last.row_dims = RowDims{1, {static_cast<int32_t>(rows)}};
    } else {
      run_forward(call, tma, rows, {inputs.begin() + begin, inputs.end()},
                  {columns.begin() + begin, columns.end()}, weight, epilogue);
    }
  }
}

// Members that the product cannot read where they lie are copied: for TMA, what is not aligned or
// picked by an index; for both kernels, what would have to repeat.
void forward_kernel(const Call& call, const GpuPlan& plan, const Output& out) {
  const std::vector<DistinctProduct> addends = multiply_repeated(call, plan.plan);
  if (plan.plan.groups.empty()) {
    finish(call, addends, out, false, out.bias);
    return;
  }
  std::vector<Picked> copies;
  std::vector<ProductInput> inputs;
  std::vector<WeightColumns> columns;
  for (int64_t i : plan.plan.groups[0].members) {
    const Source& source = call.sources[i];
    const bool whole = source.product_rows() == out.matrix.rows;
    const bool readable = !plan.tma || (!source.index && tma_can_read(source.matrix));
    columns.push_back({source.matrix.cols, source.offset});
    if (whole && readable) {
      inputs.push_back(product_input(source));
    } else {
      copies.push_back(pick_rows(call, source, call.shape.batch, out.matrix.rows));
      inputs.push_back({copies.back().matrix});
    }
  }
  Matrix weight = call.weight;
  if (plan.tma && !tma_can_read(weight)) {
    copies.push_back(align_rows(call, weight));
    weight = copies.back().matrix;
  }
  Epilogue epilogue{};
  epilogue.panels[0] = {out.matrix.data, out.matrix.row_stride,
                        static_cast<int32_t>(out.matrix.cols)};
  epilogue.bias = out.bias;
  epilogue.preactivation = out.preactivation;
  epilogue.activation = out.activation;
  set_addends(call, addends, epilogue);
  run_in_parts(call, plan.tma, out.matrix.rows, inputs, columns, weight, epilogue);
}

// out = x weight^T, with the bias or on top of what `out` holds.
void multiply(const Call& call, const Matrix& out, const Matrix& x, const Matrix& weight,
              const void* bias, bool accumulate) {
  const Matrix row{const_cast<void*>(bias), out.rows, out.cols, 0, 1};
  const Matrix* added = accumulate ? &out : bias ? &row : nullptr;
  matmul(call.weight_tensor, out, x, weight.transposed(), call.dtype, added);
}

// The weight's columns that meet the members, side by side; a copy if others stand between them.
Picked weight_of_group(const Call& call, const mmfast::Group& group) {
  const Source& first = call.sources[group.members.front()];
  const Source& last = call.sources[group.members.back()];
  Matrix slice = call.weight_of(first);
  slice.cols = group.width;
  if (last.offset + last.matrix.cols - first.offset == group.width) {
    return {call.weight_tensor, slice};
  }
  const Tensor tensor = call.empty({slice.rows, group.width}, call.dtype);
  const Matrix packed = matrix_of(tensor);
  int64_t col = 0;
  for (int64_t i : group.members) {
    const Matrix from = call.weight_of(call.sources[i]);
    const PickArgs args{static_cast<char*>(packed.data) + col * call.element_size,
                        packed.row_stride,
                        from.data,
                        from.row_stride,
                        nullptr,
                        row_offsets({from.rows}, {1}),
                        0,
                        from.rows,
                        static_cast<int32_t>(from.cols)};
    check(launch_pick_rows(call.element_size, args, call.stream), "concat_linear, weight gathered");
    col += from.cols;
  }
  return {tensor, packed};
}

// Rows of the members side by side, a block at a time, and one product per block.
void multiply_gathered(const Call& call, const mmfast::Group& group, const Matrix& out,
                       const void* bias, bool accumulate) {
  const Picked weight = weight_of_group(call, group);
  const Tensor tensor = call.empty({group.block_rows, group.width}, call.dtype);
  const Matrix block = matrix_of(tensor);
  for (int64_t begin = 0; begin < out.rows; begin += group.block_rows) {
    const int64_t end = std::min(out.rows, begin + group.block_rows);
    int64_t col = 0;
    for (int64_t i : group.members) {
      const Source& source = call.sources[i];
      const PickArgs args{static_cast<char*>(block.data) + col * call.element_size,
                          group.width,
                          source.matrix.data,
                          source.matrix.row_stride,
                          source.index,
                          row_offsets(call.shape.batch, source.strides),
                          begin,
                          end,
                          static_cast<int32_t>(source.matrix.cols)};
      check(launch_pick_rows(call.element_size, args, call.stream), "concat_linear, rows gathered");
      col += source.matrix.cols;
    }
    const Matrix part{static_cast<char*>(out.data) + begin * out.row_stride * call.element_size,
                      end - begin, out.cols, out.row_stride};
    multiply(call, part, Matrix{block.data, end - begin, group.width, group.width}, weight.matrix,
             bias, accumulate);
  }
}

void forward_library(const Call& call, const GpuPlan& plan, const Output& out) {
  const std::vector<DistinctProduct> addends = multiply_repeated(call, plan.plan);
  const bool has_product = !plan.plan.groups.empty();
  // The library adds the bias before it rounds; what the epilogue adds meets a rounded product.
  const bool bias_in_product = addends.empty() && has_product;
  const void* bias = bias_in_product ? out.bias : nullptr;
  bool accumulate = false;
  for (const mmfast::Group& group : plan.plan.groups) {
    if (group.block_rows > 0) {
      multiply_gathered(call, group, out.matrix, bias, accumulate);
      accumulate = true;
      continue;
    }
    const Source& source = call.sources[group.members[0]];
    const bool direct = !source.index && source.matrix.rows == out.matrix.rows;
    std::optional<Picked> copy;
    if (!direct) {
      copy = pick_rows(call, source, call.shape.batch, out.matrix.rows);
    }
    multiply(call, out.matrix, copy ? copy->matrix : source.matrix, call.weight_of(source), bias,
             accumulate);
    accumulate = true;
  }
  if (!has_product || !addends.empty() || out.preactivation || out.activation != Activation::none) {
    finish(call, addends, out, has_product, bias_in_product ? nullptr : out.bias);
  }
}

// The result, and what the activation was applied to if `preactivation` is not null.
Tensor forward(const std::vector<Tensor>& inputs, const Tensor& weight,
               const std::optional<Tensor>& bias, const std::vector<Tensor>& index,
               const std::vector<int64_t>& indexed, Activation activation,
               std::optional<Tensor>* preactivation) {
  const DeviceGuard guard(weight);
  const Call call = make_call(inputs, weight, index, indexed);
  check_bias(bias, weight);
  const Tensor result = call.empty(call.shape.output_sizes(), call.dtype);
  if (preactivation != nullptr) {
    *preactivation = call.empty(call.shape.output_sizes(), call.dtype);
  }
  if (call.shape.rows == 0 || call.shape.cols == 0) {
    return result;
  }
  const std::optional<Tensor> usable_bias = bias ? std::optional(dense(*bias)) : std::nullopt;
  const Output out{
      Matrix{result.mutable_data_ptr(), call.shape.rows, call.shape.cols, call.shape.cols},
      preactivation != nullptr ? (*preactivation)->mutable_data_ptr() : nullptr,
      usable_bias ? usable_bias->const_data_ptr() : nullptr, activation};
  const GpuPlan plan = plan_call(call, activation != Activation::none);
  if (plan.plan.method == Method::kernel) {
    forward_kernel(call, plan, out);
  } else {
    forward_library(call, plan, out);
  }
  return result;
}

std::tuple<Tensor, Tensor> concat_linear(const std::vector<Tensor>& inputs, const Tensor& weight,
                                         const std::optional<Tensor>& bias,
                                         const std::vector<Tensor>& index,
                                         const std::vector<int64_t>& indexed,
                                         const Text& activation_name, bool training) {
  const Activation activation = check_activation(activation_name);
  std::optional<Tensor> preactivation;
  const bool keep = training && needs_preactivation(activation);
  Tensor result =
      forward(inputs, weight, bias, index, indexed, activation, keep ? &preactivation : nullptr);
  if (!preactivation) {
    preactivation = empty(result, {0}, dtype_code(result));
  }
  return {std::move(result), std::move(*preactivation)};
}

Tensor concat_linear_plain(const std::vector<Tensor>& inputs, const Tensor& weight,
                           const std::optional<Tensor>& bias, int64_t activation) {
  return forward(inputs, weight, bias, {}, {}, check_activation(activation), nullptr);
}

}  // namespace
}  // namespace mmfast::cuda

STABLE_TORCH_LIBRARY_IMPL(mmfast, CUDA, m) {
  m.impl("concat_linear", TORCH_BOX(&mmfast::cuda::concat_linear));
  m.impl("concat_linear.no_autograd", TORCH_BOX(&mmfast::cuda::concat_linear));
  m.impl("concat_linear_plain", TORCH_BOX(&mmfast::cuda::concat_linear_plain));
}
