// The gradients of concat_linear on the CPU, again without the concatenation.
//
// With g the gradient before the activation: dx_i = g W_i, dW_i = g^T x_i, db = sum of g's rows.
// For an input whose rows repeat, g is summed over the rows that share one before it is multiplied.
#include "../text.h"
#include "concat_linear_call.h"
#include "few_rows.h"
#include "gemm.h"
#include "vector_math.h"

#define MMFAST_ISA_SOURCE "concat_linear_kernels.h"
#include "foreach_isa.h"
#include "gemm_driver.h"

#include "few_rows_driver.h"

namespace mmfast {
namespace {

// The sum of the rows of x (one per row of the batch) that share a distinct row by `strides`;
// with no strides at all, the sum of all rows.
void sum_rows_into(const Call& call, const Matrix& x, const Dims& strides, int64_t kept_rows,
                   void* out, bool wide) {
  Dims kept_sizes, kept_rows_of_x, summed_sizes, summed_rows_of_x;
  int64_t step = call.shape.rows;
  for (int64_t d = 0; d < call.shape.batch.size(); ++d) {
    const bool kept = strides[d] != 0;
    step /= call.shape.batch[d];
    (kept ? kept_sizes : summed_sizes).push_back(call.shape.batch[d]);
    (kept ? kept_rows_of_x : summed_rows_of_x).push_back(step);
  }
  const RowMapStorage kept(kept_sizes, {kept_rows_of_x});
  const RowMapStorage summed(summed_sizes, {summed_rows_of_x});
  const int64_t count = call.shape.rows / kept_rows;
  // Chunks depend on the shape alone, so the bits of the result do not depend on the threads.
  const int64_t chunks = kept_rows < 64 && count >= 256 ? 16 : 1;
  const int64_t accumulator_size = call.dtype == ScalarType::Double ? 2 : 1;
  const Workspace partial(kept_rows * chunks * x.cols * accumulator_size * 4);
  const SumRowsArgs args{out,         wide,          partial.data(), x.data, x.row_stride,
                         kept.view(), summed.view(), count,          chunks, x.cols};
  parallel_for(
      0, kept_rows * chunks, grain(x.cols * std::max<int64_t>(1, count / chunks)),
      [&](int64_t begin, int64_t end) { MMFAST_DISPATCH(call.dtype, sum_rows, args, begin, end); });
  parallel_for(0, kept_rows, grain(x.cols * chunks), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(call.dtype, sum_chunks, args, begin, end);
  });
}

// The gradient before the activation, as a matrix: the given one itself where it can serve.
struct Gradient {
  Tensor tensor;
  Matrix matrix;
};

Gradient before_activation(const Call& call, const Tensor& grad, const Tensor& saved,
                           Activation activation) {
  const int64_t dims = call.shape.batch.size();
  if (activation == Activation::none && grad.is_contiguous()) {
    return {grad, Matrix{const_cast<void*>(grad.const_data_ptr()), call.shape.rows, call.shape.cols,
                         call.shape.cols}};
  }
  Dims strides;
  for (int64_t d = 0; d < dims; ++d) {
    strides.push_back(grad.stride(d));
  }
  const RowMapStorage rows(call.shape.batch, {strides});
  const Tensor usable_saved = contiguous_cpu(saved);
  const Tensor result = empty_cpu(call.shape.output_sizes(), call.dtype_code);
  const ActivationBackwardArgs args{
      result.mutable_data_ptr(),
      grad.const_data_ptr(),
      activation == Activation::none ? nullptr : usable_saved.const_data_ptr(),
      rows.view(),
      grad.stride(dims),
      call.shape.cols,
      activation};
  parallel_for(0, call.shape.rows, grain(call.shape.cols), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(call.dtype, activation_backward, args, begin, end);
  });
  return {result, Matrix{args.out, call.shape.rows, call.shape.cols, call.shape.cols}};
}

// Where the wanted gradients go; null where one is not wanted.
struct Wanted {
  std::vector<void*> inputs;  // per source
  void* weight = nullptr;
  void* bias = nullptr;
};

// out[row] = the sum of x's rows at whose place the index says `row`. Sorted by counting, so that
// every sum has one order.
void sum_segments_into(const Matrix& x, ScalarType dtype, const Source& source, void* out,
                       bool wide) {
  const auto* index = static_cast<const int64_t*>(source.index_tensor->const_data_ptr());
  std::vector<int64_t> first(source.all_rows + 1, 0);
  std::vector<int64_t> order(source.entries);
  for (int64_t e = 0; e < source.entries; ++e) {
    ++first[index[e] + 1];
  }
  for (int64_t row = 0; row < source.all_rows; ++row) {
    first[row + 1] += first[row];
  }
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  for (int64_t e = 0; e < source.entries; ++e) {
    order[next[index[e]]++] = e;
  }
  const SumSegmentsArgs args{out,    wide,         x.data,         x.row_stride,
                             x.cols, order.data(), source.entries, first.data()};
  const int64_t mean = source.entries / std::max<int64_t>(1, source.all_rows) + 1;
  parallel_for(0, source.all_rows, grain(x.cols * mean), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(dtype, sum_segments, args, begin, end);
  });
}

// Some rows of the gradient: of the element type, or, `wide`, sums in the accumulator's.
struct GradientRows {
  Matrix matrix;
  bool wide;
};

// The gradient summed over rows that share a row of an input. Sums of 16-bit values stay in
// float32: they may not fit 16 bits, and what they are multiplied with may cancel. Kept from one
// request to the next: the two products of an input nearly always agree on what is shared.
class SummedGradient {
 public:
  SummedGradient(const Call& call, const Source& source, const Matrix& gradient)
      : call_(call), source_(source), gradient_(gradient), wide_(call.element_size == 2) {}

  // A row per row of the input's gradient.
  GradientRows for_input() {
    return source_.index ? by_index() : by(source_.grad_strides, source_.grad_rows);
  }
  // A row per row of the input's matrix.
  GradientRows for_weight() {
    return source_.index ? by_index() : by(source_.strides, source_.matrix.rows);
  }

 private:
  GradientRows by(const Dims& strides, int64_t rows) {
    if (rows == call_.shape.rows) {
      return {gradient_, false};
    }
    if (!sums_ || strides_ != strides) {
      sums_ = empty_cpu({rows, gradient_.cols}, call_.accumulator_code());
      sum_rows_into(call_, gradient_, strides, rows, sums_->mutable_data_ptr(), wide_);
      strides_ = strides;
    }
    return {matrix_of(*sums_), wide_};
  }

  GradientRows by_index() {
    if (!indexed_sums_) {
      indexed_sums_ = empty_cpu({source_.all_rows, gradient_.cols}, call_.accumulator_code());
      const GradientRows entries = by(source_.strides, source_.entries);
      sum_segments_into(entries.matrix, entries.wide ? ScalarType::Float : call_.dtype, source_,
                        indexed_sums_->mutable_data_ptr(), wide_);
    }
    return {matrix_of(*indexed_sums_), wide_};
  }

  const Call& call_;
  const Source& source_;
  Matrix gradient_;
  bool wide_;
  std::optional<Tensor> sums_;
  Dims strides_;
  std::optional<Tensor> indexed_sums_;
};

void bias_gradient(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  if (wanted.bias) {
    sum_rows_into(call, gradient, Dims(call.shape.batch.size(), 0), 1, wanted.bias, false);
  }
}

// target = g W_i by the library
void input_gradient(const Call& call, const Source& source, const GradientRows& g, void* target) {
  const Matrix weight = call.weight_slice(source.offset, source.matrix.cols);
  const Matrix out{target, g.matrix.rows, weight.cols, weight.cols};
  if (!g.wide) {
    matmul(out, g.matrix, weight, call.dtype_code);
    return;
  }
  std::optional<Tensor> copy;
  const Matrix wide_weight = widened(call, weight, copy);
  const Tensor product = empty_cpu({out.rows, out.cols}, call.accumulator_code());
  matmul(matrix_of(product), g.matrix, wide_weight, call.accumulator_code());
  narrow_into(call, out, product.const_data_ptr());
}

// The columns of a source in the weight's gradient.
Matrix columns_of(const Source& source, const Matrix& grad_weight, int64_t element_size) {
  Matrix columns = grad_weight;
  columns.data = static_cast<char*>(grad_weight.data) + source.offset * element_size;
  columns.cols = source.matrix.cols;
  return columns;
}

// dW_i = g^T x_i by the library, for sums in float32; `out` in float32 too.
void wide_weight_gradient(const Call& call, const Source& source, const Matrix& g,
                          const Matrix& out) {
  std::optional<Tensor> copy;
  const Matrix x = widened(call, source.matrix, copy);
  matmul(out, g.transposed(), x, call.accumulator_code());
}

void backward_library(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  const Matrix grad_weight{wanted.weight, call.shape.cols, call.shape.width, call.shape.width};
  for (size_t i = 0; i < call.sources.size(); ++i) {
    const Source& source = call.sources[i];
    SummedGradient summed(call, source, gradient);
    if (wanted.inputs[i]) {
      input_gradient(call, source, summed.for_input(), wanted.inputs[i]);
    }
    if (wanted.weight) {
      const GradientRows g = summed.for_weight();
      const Matrix out = columns_of(source, grad_weight, call.element_size);
      if (g.wide) {
        const Tensor product = empty_cpu({out.rows, out.cols}, call.accumulator_code());
        wide_weight_gradient(call, source, g.matrix, matrix_of(product));
        narrow_into(call, out, product.const_data_ptr());
      } else {
        matmul(out, g.matrix.transposed(), source.matrix, call.dtype_code);
      }
    }
  }
}

// Writes the gradients of inputs with one product, whose panels go to the inputs they belong to; of
// one input where `g` is wide.
void input_gradients(const Call& call, const GradientRows& g, const Wanted& wanted,
                     const std::vector<int64_t>& members) {
  std::optional<Tensor> copy;
  const Source& first = call.sources[members[0]];
  const int64_t base = g.wide ? first.offset : 0;  // the weight's first column
  const Call work =
      g.wide ? call.in_float(widened(call, call.weight_slice(base, first.matrix.cols), copy))
             : call;
  std::vector<PanelPlan> panels;
  for (int64_t i : members) {
    const Source& source = call.sources[i];
    add_panels(panels, source.offset - base, source.matrix.cols,
               static_cast<char*>(wanted.inputs[i]), source.matrix.cols, call.element_size);
  }
  if (g.matrix.rows <= kFewRows) {
    run_few_rows_input_gradient(work, g.matrix, panels, call.dtype);
    return;
  }
  GemmArgs args{};
  args.rows = g.matrix.rows;
  const auto pack = [&](const PanelPlan& plan, char* memory) {
    const Matrix slice = work.weight_slice(plan.first_col, plan.cols);
    call_pack_straight(
        work.dtype, PackArgs{static_cast<const char*>(slice.data),
                             slice.row_stride * work.element_size, slice.rows, plan.cols, memory});
  };
  run_gemm(work, {segment_of(work, g.matrix)}, steps_of(work, g.matrix.cols), panels, pack, args,
           call.dtype);
}

// grad_weight's columns of the members, in float32 or, `rounded`, in the element type; of one
// member where `g` is wide.
void weight_gradient(const Call& call, const GradientRows& g, const std::vector<int64_t>& members,
                     const Matrix& out, bool rounded) {
  const int64_t out_element_size = rounded ? call.element_size : 4;
  const Call work = g.wide ? call.in_float(call.weight) : call;
  std::optional<Tensor> copy;
  std::vector<GemmStrip> strips;
  for (int64_t i : members) {
    const Source& source = call.sources[i];
    const Matrix x = g.wide ? widened(call, source.matrix, copy) : source.matrix;
    for (int64_t j = 0; j < x.cols; j += kPanelCols) {
      strips.push_back(
          GemmStrip{static_cast<const char*>(x.data) + j * work.element_size,
                    x.row_stride * work.element_size, std::min(kPanelCols, x.cols - j),
                    static_cast<char*>(out.data) + (source.offset + j) * out_element_size});
    }
  }
  const int64_t out_stride = out.row_stride * out_element_size;
  if (are_few_rows(g.matrix.rows, call.shape.width + g.matrix.cols)) {
    run_few_rows_weight_gradient(work, g.matrix, strips, out_stride, rounded);
  } else {
    run_gemm_transposed(work, g.matrix, strips, out_stride, rounded);
  }
}

void backward_kernel(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  const int64_t rows = call.shape.rows;
  std::vector<int64_t> whole_inputs, whole_weights;
  std::optional<Tensor> wide;  // the weight's gradient before rounding to 16 bits
  Matrix grad_weight{wanted.weight, call.shape.cols, call.shape.width, call.shape.width};
  const bool all_whole = std::all_of(
      call.sources.begin(), call.sources.end(),
      [&](const Source& source) { return !source.index && source.matrix.rows == rows; });
  const bool rounded = call.element_size == 2 && all_whole && rows <= transposed_block_rows(call);
  if (wanted.weight && call.element_size == 2 && !rounded) {
    wide = empty_cpu({call.shape.cols, call.shape.width}, call.accumulator_code());
    grad_weight = matrix_of(*wide);
  }
  for (size_t i = 0; i < call.sources.size(); ++i) {
    const Source& source = call.sources[i];
    const int64_t position = static_cast<int64_t>(i);
    SummedGradient summed(call, source, gradient);
    if (wanted.inputs[i] && !source.index && source.grad_rows == rows) {
      whole_inputs.push_back(position);
    } else if (wanted.inputs[i]) {
      input_gradients(call, summed.for_input(), wanted, {position});
    }
    if (wanted.weight && !source.index && source.matrix.rows == rows) {
      whole_weights.push_back(position);
    } else if (wanted.weight) {
      weight_gradient(call, summed.for_weight(), {position}, grad_weight, false);
    }
  }
  if (!whole_inputs.empty()) {
    input_gradients(call, {gradient, false}, wanted, whole_inputs);
  }
  if (!whole_weights.empty()) {
    weight_gradient(call, {gradient, false}, whole_weights, grad_weight, rounded);
  }
  if (wide) {
    narrow_into(call, Matrix{wanted.weight, call.shape.cols, call.shape.width, call.shape.width},
                grad_weight.data);
  }
}

void backward_tiny(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  std::vector<TinySource> sources = tiny_sources(call);
  std::vector<Dims> grad_strides;
  grad_strides.reserve(sources.size());
  bool any = false;
  for (size_t i = 0; i < sources.size(); ++i) {
    sources[i].grad = wanted.inputs[i];
    any = any || wanted.inputs[i];
    grad_strides.push_back(call.sources[i].grad_strides);
  }
  const std::vector<const int64_t*> index = index_of(call.sources);
  const RowMapStorage rows(call.shape.batch, strides_of(call.sources), index);
  const RowMapStorage grad_rows(call.shape.batch, grad_strides, index);
  TinyArgs args = tiny_args(call, sources, rows.view(), true);
  args.grad_input_rows = grad_rows.view();
  args.grad = gradient.data;
  args.grad_weight = wanted.weight;
  args.grad_bias = wanted.bias;
  args.any_grad_input = any;
  MMFAST_DISPATCH(call.dtype, tiny_backward, args);
}

// Gradients of the arguments listed in `wanted`: 0 .. inputs-1 are the inputs, then weight, bias.
std::vector<Tensor> concat_linear_backward(const Tensor& grad, const std::vector<Tensor>& inputs,
                                           const Tensor& weight, const Tensor& saved,
                                           const std::vector<Tensor>& index,
                                           const std::vector<int64_t>& indexed,
                                           const Text& activation_name,
                                           const std::vector<int64_t>& wanted) {
  const Activation activation = check_activation(activation_name);
  const ConcatLinearShape shape = check_concat_linear(inputs, weight, index, indexed);
  check_alike(grad, "grad", weight, "weight");
  check_shape(grad, "grad", shape.output_sizes());
  check_storage(grad, [] { return "grad"; });
  if (activation != Activation::none) {
    check_alike(saved, "saved", weight, "weight");
    check_shape(saved, "saved", shape.output_sizes());
    check_storage(saved, [] { return "saved"; });
  }
  const int64_t count = static_cast<int64_t>(inputs.size());
  // The weight is read for the gradients of inputs alone; else it may be a shape without values.
  const Tensor usable_weight =
      wants_input(wanted, count) ? with_unit_column_stride(weight) : weight;
  std::vector<Source> sources = make_sources(inputs, index, indexed, shape);
  const Call call = make_call(shape, sources, usable_weight);
  const Plan plan = plan_call(call);

  Wanted targets;
  std::vector<void*> per_input(count, nullptr);
  std::vector<bool> seen(count + 2, false);
  std::vector<Tensor> result;
  result.reserve(wanted.size());
  for (int64_t position : wanted) {
    STD_TORCH_CHECK(position >= 0 && position <= count + 1, "wanted holds ", position,
                    "; it must lie in 0 .. ", count + 1);
    const Dims sizes = position < count    ? sizes_of(inputs[position])
                       : position == count ? Dims{shape.cols, shape.width}
                                           : Dims{shape.cols};
    result.push_back(empty_result(sizes, call.dtype_code));
    void*& target = position < count    ? per_input[position]
                    : position == count ? targets.weight
                                        : targets.bias;
    STD_TORCH_CHECK(!seen[position], "wanted holds ", position, " twice");
    seen[position] = true;
    target = result.back().mutable_data_ptr();
    if (plan.method == Method::empty && result.back().numel() > 0) {
      std::memset(target, 0, result.back().numel() * call.element_size);
    }
  }
  targets.inputs.reserve(sources.size());
  for (const Source& source : sources) {
    targets.inputs.push_back(per_input[source.input]);
  }
  if (shape.rows == 0 || shape.cols == 0) {
    return result;
  }
  const Gradient gradient = before_activation(call, grad, saved, activation);
  if (plan.method == Method::tiny && tiny_scratch(call, true) <= kScratchLimit) {
    backward_tiny(call, gradient.matrix, targets);
    return result;
  }
  gather_first(call, sources);
  std::vector<std::optional<Tensor>> picked(sources.size());  // gradients of picked rows
  Wanted direct = targets;
  for (size_t i = 0; i < sources.size(); ++i) {
    if (sources[i].was_gathered() && targets.inputs[i]) {
      picked[i] = empty_cpu({sources[i].entries, sources[i].matrix.cols}, call.dtype_code);
      direct.inputs[i] = picked[i]->mutable_data_ptr();
    }
  }
  if (has_own_kernel(element_of(call.dtype), current_isa())) {
    backward_kernel(call, gradient.matrix, direct);
  } else {
    backward_library(call, gradient.matrix, direct);
  }
  for (size_t i = 0; i < sources.size(); ++i) {
    if (picked[i]) {
      sum_segments_into(matrix_of(*picked[i]), call.dtype, sources[i], targets.inputs[i], false);
    }
  }
  bias_gradient(call, gradient.matrix, targets);
  return result;
}

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("concat_linear_backward", TORCH_BOX(&mmfast::concat_linear_backward));
}
