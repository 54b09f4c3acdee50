// The gradients of concat_linear on a GPU, again without the concatenation.
//
// With g the gradient before the activation: dx_i = g W_i, dW_i = g^T x_i, db = sum of g's rows.
// For an input whose rows repeat, g is summed over the rows that share one before it is multiplied;
// every sum has one order, so that the same call gives the same bits.
#include "../text.h"
#include "gemm_product.h"
#include "summed_gradient.h"

namespace mmfast::cuda {
namespace {

// The gradient before the activation, as a matrix; the given one itself where it can serve. Fills
// in the bias gradient, which the same pass over the gradient yields.
struct Gradient {
  Tensor tensor;
  Matrix matrix;
};

Gradient before_activation(const Call& call, const Tensor& grad, const Tensor& saved,
                           Activation activation, void* bias_gradient) {
  const int64_t rows = call.shape.rows;
  const int64_t cols = call.shape.cols;
  const RowOffsets line = row_offsets({1}, {0});
  SumRowsArgs sum{bias_gradient,
                  nullptr,
                  false,
                  true,
                  line,
                  row_offsets({rows}, {cols}),
                  1,
                  rows,
                  static_cast<int32_t>(cols)};
  if (activation == Activation::none && grad.is_contiguous()) {
    Gradient whole{grad, Matrix{const_cast<void*>(grad.const_data_ptr()), rows, cols, cols}};
    if (bias_gradient) {
      sum.x = whole.matrix.data;
      sum_rows(call, sum);
    }
    return whole;
  }
  const int64_t dims = call.shape.batch.size();
  Dims strides;
  for (int64_t d = 0; d < dims; ++d) {
    strides.push_back(grad.stride(d));
  }
  const Tensor usable_saved = activation == Activation::none ? grad : dense(saved);
  const Tensor result = call.empty(call.shape.output_sizes(), call.dtype);
  std::optional<Tensor> partial;
  if (bias_gradient) {
    partial = call.empty({sum_chunks(rows), cols}, call.accumulator_dtype());
  }
  const SlopeArgs args{result.mutable_data_ptr(),
                       grad.const_data_ptr(),
                       row_offsets(call.shape.batch, strides),
                       grad.stride(dims),
                       usable_saved.const_data_ptr(),
                       activation,
                       static_cast<int32_t>(rows),
                       static_cast<int32_t>(cols),
                       partial ? partial->mutable_data_ptr() : nullptr};
  check(launch_slope(call.element, args, call.stream), "concat_linear, activation gradient");
  if (partial) {
    sum.x = partial->const_data_ptr();
    sum.wide_x = true;
    sum.count = sum_chunks(rows);
    sum.summed = row_offsets({sum.count}, {cols});
    sum_rows(call, sum);
  }
  return {result, Matrix{args.out, rows, cols, cols}};
}

// Where the wanted gradients go; null where one is not wanted.
struct Wanted {
  std::vector<void*> inputs;  // per source
  void* weight = nullptr;
  void* bias = nullptr;
};

// target = g W_i by the library
void input_gradient(const Call& call, const Source& source, const GradientRows& g, void* target) {
  const Matrix weight = call.weight_of(source);
  const Matrix out{target, g.matrix.rows, weight.cols, weight.cols};
  if (!g.wide) {
    matmul(call.weight_tensor, out, g.matrix, weight, call.dtype);
    return;
  }
  const Picked wide_weight = widened(call, weight);
  const Tensor product = call.empty({out.rows, out.cols}, call.accumulator_dtype());
  matmul(call.weight_tensor, matrix_of(product), g.matrix, wide_weight.matrix,
         call.accumulator_dtype());
  narrow_into(call, out, matrix_of(product));
}

// out = g^T x by the library
void weight_gradient(const Call& call, const GradientRows& g, const Matrix& x, const Matrix& out) {
  if (!g.wide) {
    matmul(call.weight_tensor, out, g.matrix.transposed(), x, call.dtype);
    return;
  }
  const Picked wide_x = widened(call, x);
  const Tensor product = call.empty({out.rows, out.cols}, call.accumulator_dtype());
  matmul(call.weight_tensor, matrix_of(product), g.matrix.transposed(), wide_x.matrix,
         call.accumulator_dtype());
  narrow_into(call, out, matrix_of(product));
}

// The columns of a source in the weight's gradient.
Matrix columns_of(const Call& call, const Source& source, void* grad_weight) {
  return Matrix{static_cast<char*>(grad_weight) + source.offset * call.element_size,
                call.shape.cols, source.matrix.cols, call.shape.width};
}

// The gradients of inputs that have a row for every row of the batch.
void whole_input_gradients(const Call& call, const Matrix& gradient,
                           const std::vector<int64_t>& members, const std::vector<void*>& targets) {
  std::vector<int64_t> widths;
  std::vector<WeightColumns> columns;
  std::vector<Panel> panels;
  for (int64_t i : members) {
    const Source& source = call.sources[i];
    const int64_t width = source.matrix.cols;
    widths.push_back(width);
    columns.push_back({width, source.offset});
    panels.push_back({targets[i], width, static_cast<int32_t>(width)});
  }
  const bool tma = call.gpu.hopper && tma_can_read(gradient) && tma_can_read(call.weight);
  if (call.element_size == 2 &&
      gradients_by_kernel(call.gpu, tma, gradient.rows, widths, gradient.cols)) {
    run_input_gradient(call, tma, gradient, columns, panels);
    return;
  }
  for (int64_t i : members) {
    input_gradient(call, call.sources[i], {gradient, false}, targets[i]);
  }
}

// The weight's gradient in the columns of inputs that have a row for every row of the batch.
void whole_weight_gradients(const Call& call, const Matrix& gradient,
                            const std::vector<int64_t>& members,
                            const std::vector<ProductInput>& inputs, void* grad_weight) {
  std::vector<int64_t> widths;
  std::vector<Panel> panels;
  bool tma = call.gpu.hopper && tma_can_read(gradient);
  for (size_t j = 0; j < members.size(); ++j) {
    const Matrix columns = columns_of(call, call.sources[members[j]], grad_weight);
    widths.push_back(columns.cols);
    panels.push_back({columns.data, columns.row_stride, static_cast<int32_t>(columns.cols)});
    tma = tma && tma_can_read(inputs[j].matrix);
  }
  if (call.element_size == 2 &&
      gradients_by_kernel(call.gpu, tma, gradient.cols, widths, gradient.rows)) {
    run_weight_gradient(call, tma, gradient, inputs, panels);
    return;
  }
  for (size_t j = 0; j < members.size(); ++j) {
    weight_gradient(call, {gradient, false}, inputs[j].matrix,
                    columns_of(call, call.sources[members[j]], grad_weight));
  }
}

// An input whose rows were picked before the product: its gradient is that of what was picked,
// summed.
void picked_gradients(const Call& call, const Source& source, SummedGradient& summed,
                      void* input_target, void* weight_target) {
  const GradientRows g = summed.for_entries();
  if (input_target) {
    const Tensor picked = call.empty({source.entries, source.matrix.cols}, call.dtype);
    input_gradient(call, source, g, picked.mutable_data_ptr());
    sum_segments(call, source, sort_index(call, source), matrix_of(picked), false, input_target,
                 true);
  }
  if (weight_target) {
    Source entries = source;
    entries.strides = Dims{1};
    const Picked x = pick_rows(call, entries, {source.entries}, source.entries);
    weight_gradient(call, g, x.matrix, columns_of(call, source, weight_target));
  }
}

void backward(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  std::vector<int64_t> whole_inputs, whole_weights;
  std::vector<ProductInput> weight_inputs;
  for (size_t i = 0; i < call.sources.size(); ++i) {
    const Source& source = call.sources[i];
    SummedGradient summed(call, source, gradient);
    if (source.picked_first()) {
      picked_gradients(call, source, summed, wanted.inputs[i], wanted.weight);
      continue;
    }
    if (wanted.inputs[i] && !source.index && source.grad_rows == gradient.rows) {
      whole_inputs.push_back(static_cast<int64_t>(i));
    } else if (wanted.inputs[i]) {
      input_gradient(call, source, summed.for_input(), wanted.inputs[i]);
    }
    if (wanted.weight && !source.index && source.matrix.rows == gradient.rows) {
      whole_weights.push_back(static_cast<int64_t>(i));
      weight_inputs.push_back({source.matrix});
    } else if (wanted.weight) {
      weight_gradient(call, summed.for_weight(), source.matrix,
                      columns_of(call, source, wanted.weight));
    }
  }
  if (!whole_inputs.empty()) {
    whole_input_gradients(call, gradient, whole_inputs, wanted.inputs);
  }
  if (!whole_weights.empty()) {
    whole_weight_gradients(call, gradient, whole_weights, weight_inputs, wanted.weight);
  }
}

// Gradients of the arguments listed in `wanted`: 0 .. inputs-1 are the inputs, then weight, bias.
std::vector<Tensor> concat_linear_backward(const Tensor& grad, const std::vector<Tensor>& inputs,
                                           const Tensor& weight, const Tensor& saved,
                                           const std::vector<Tensor>& index,
                                           const std::vector<int64_t>& indexed,
                                           const Text& activation_name,
                                           const std::vector<int64_t>& wanted) {
  const DeviceGuard guard(weight);
  const Activation activation = check_activation(activation_name);
  const int64_t count = static_cast<int64_t>(inputs.size());
  // The weight is read for the gradients of inputs alone; else it may be a shape without values.
  const Call call = make_call(inputs, weight, index, indexed, wants_input(wanted, count));
  const ConcatLinearShape& shape = call.shape;
  check_alike(grad, "grad", weight, "weight");
  check_shape(grad, "grad", shape.output_sizes());
  check_storage(grad, [] { return "grad"; });
  if (activation != Activation::none) {
    check_alike(saved, "saved", weight, "weight");
    check_shape(saved, "saved", shape.output_sizes());
    check_storage(saved, [] { return "saved"; });
  }
  const bool empty = shape.rows == 0 || shape.cols == 0;
  Wanted targets;
  std::vector<void*> per_input(count, nullptr);
  std::vector<bool> seen(count + 2, false);
  std::vector<Tensor> result;
  result.reserve(wanted.size());
  for (int64_t position : wanted) {
    STD_TORCH_CHECK(position >= 0 && position <= count + 1, "wanted holds ", position,
                    "; it must lie in 0 .. ", count + 1);
    STD_TORCH_CHECK(!seen[position], "wanted holds ", position, " twice");
    seen[position] = true;
    const Dims sizes = position < count    ? sizes_of(inputs[position])
                       : position == count ? Dims{shape.cols, shape.width}
                                           : Dims{shape.cols};
    result.push_back(call.empty(sizes, call.dtype));
    if (empty) {
      torch::stable::zero_(result.back());
    }
    void*& target = position < count    ? per_input[position]
                    : position == count ? targets.weight
                                        : targets.bias;
    target = result.back().numel() > 0 ? result.back().mutable_data_ptr() : nullptr;
  }
  if (empty) {
    return result;
  }
  for (const Source& source : call.sources) {
    targets.inputs.push_back(per_input[source.input]);
  }
  const Gradient gradient = before_activation(call, grad, saved, activation, targets.bias);
  backward(call, gradient.matrix, targets);
  return result;
}

}  // namespace
}  // namespace mmfast::cuda

STABLE_TORCH_LIBRARY_IMPL(mmfast, CUDA, m) {
  m.impl("concat_linear_backward", TORCH_BOX(&mmfast::cuda::concat_linear_backward));
}
