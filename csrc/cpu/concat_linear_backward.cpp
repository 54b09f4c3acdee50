// The gradients of concat_linear on the CPU, again without the concatenation.
//
// With g the gradient before the activation: dx_i = g W_i, dW_i = g^T x_i, db = sum of g's rows.
// For an input whose rows repeat, g is summed over the rows that share one before it is multiplied.
#include "concat_linear_call.h"
#include "gemm.h"
#include "vector_math.h"

#define MMFAST_ISA_SOURCE "concat_linear_kernels.h"
#include "foreach_isa.h"
#include "gemm_driver.h"

namespace mmfast {
namespace {

// The sum of the rows of x (one per row of the batch) that share a distinct row by `strides`;
// with no strides at all, the sum of all rows.
void sum_rows_into(const Call& call, const Matrix& x, const std::vector<int64_t>& strides,
                   int64_t kept_rows, void* out) {
  std::vector<int64_t> kept_sizes, kept_rows_of_x, summed_sizes, summed_rows_of_x;
  int64_t rows = 1;
  for (size_t d = call.shape.batch.size(); d-- > 0;) {
    const bool kept = strides[d] != 0;
    auto& sizes = kept ? kept_sizes : summed_sizes;
    auto& steps = kept ? kept_rows_of_x : summed_rows_of_x;
    sizes.insert(sizes.begin(), call.shape.batch[d]);
    steps.insert(steps.begin(), rows);
    rows *= call.shape.batch[d];
  }
  const RowMapStorage kept(kept_sizes, {kept_rows_of_x});
  const RowMapStorage summed(summed_sizes, {summed_rows_of_x});
  const int64_t count = call.shape.rows / kept_rows;
  // Chunks depend on the shape alone, so the bits of the result do not depend on the threads.
  const int64_t chunks = kept_rows < 64 && count >= 256 ? 16 : 1;
  const int64_t accumulator_size = call.dtype == ScalarType::Double ? 2 : 1;
  const Tensor partial =
      empty_cpu({kept_rows * chunks, x.cols * accumulator_size}, aoti_torch_dtype_float32());
  const SumRowsArgs args{out,         partial.mutable_data_ptr(),
                         x.data,      x.row_stride,
                         kept.view(), summed.view(),
                         count,       chunks,
                         x.cols};
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
  const int64_t dims = static_cast<int64_t>(call.shape.batch.size());
  if (activation == Activation::none && grad.is_contiguous()) {
    return {grad, Matrix{const_cast<void*>(grad.const_data_ptr()), call.shape.rows, call.shape.cols,
                         call.shape.cols}};
  }
  std::vector<int64_t> strides;
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

// The gradient summed over rows that share a distinct row. Kept from one request to the next: the
// two products of an input nearly always agree on what is distinct.
class SummedGradient {
 public:
  SummedGradient(const Call& call, const Matrix& gradient) : call_(call), gradient_(gradient) {}

  Matrix by(const std::vector<int64_t>& strides, int64_t rows) {
    if (rows == call_.shape.rows) {
      return gradient_;
    }
    if (!sums_ || strides_ != strides) {
      sums_ = empty_cpu({rows, gradient_.cols}, call_.dtype_code);
      sum_rows_into(call_, gradient_, strides, rows, sums_->mutable_data_ptr());
      strides_ = strides;
    }
    return matrix_of(*sums_);
  }

 private:
  const Call& call_;
  Matrix gradient_;
  std::optional<Tensor> sums_;
  std::vector<int64_t> strides_;
};

void bias_gradient(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  if (wanted.bias) {
    sum_rows_into(call, gradient, std::vector<int64_t>(call.shape.batch.size(), 0), 1, wanted.bias);
  }
}

void backward_library(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  for (size_t i = 0; i < call.sources.size(); ++i) {
    const Source& source = call.sources[i];
    const int64_t width = source.matrix.cols;
    SummedGradient summed(call, gradient);
    if (wanted.inputs[i]) {
      matmul(Matrix{wanted.inputs[i], source.grad_rows, width, width},
             summed.by(source.grad_strides, source.grad_rows),
             call.weight_slice(source.offset, width), call.dtype_code);
    }
    if (wanted.weight) {
      matmul(Matrix{static_cast<char*>(wanted.weight) + source.offset * call.element_size,
                    call.shape.cols, width, call.shape.width},
             summed.by(source.strides, source.matrix.rows).transposed(), source.matrix,
             call.dtype_code);
    }
  }
}

// Writes the gradients of inputs with one product, whose panels go to the inputs they belong to.
void input_gradients(const Call& call, const Matrix& gradient, const Wanted& wanted,
                     const std::vector<int64_t>& members) {
  std::vector<PanelPlan> panels;
  for (int64_t i : members) {
    const Source& source = call.sources[i];
    add_panels(panels, source.offset, source.matrix.cols, static_cast<char*>(wanted.inputs[i]),
               source.matrix.cols, call.element_size);
  }
  GemmArgs args{};
  args.rows = gradient.rows;
  const auto pack = [&](const PanelPlan& plan, char* memory) {
    const Matrix slice = call.weight_slice(plan.first_col, plan.cols);
    call_pack_straight(
        call.dtype, PackArgs{static_cast<const char*>(slice.data),
                             slice.row_stride * call.element_size, slice.rows, plan.cols, memory});
  };
  run_gemm(call, {segment_of(call, gradient)}, steps_of(call, gradient.cols), panels, pack, args,
           false);
}

// grad_weight's columns of the members, in float32.
void weight_gradient(const Call& call, const Matrix& gradient, const std::vector<int64_t>& members,
                     const Matrix& out) {
  std::vector<GemmStrip> strips;
  for (int64_t i : members) {
    const Source& source = call.sources[i];
    for (int64_t j = 0; j < source.matrix.cols; j += kPanelCols) {
      strips.push_back(
          GemmStrip{static_cast<const char*>(source.matrix.data) + j * call.element_size,
                    source.matrix.row_stride * call.element_size,
                    std::min(kPanelCols, source.matrix.cols - j),
                    static_cast<float*>(out.data) + source.offset + j});
    }
  }
  run_gemm_transposed(call, gradient, strips, out.row_stride);
}

void backward_kernel(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  const int64_t rows = call.shape.rows;
  std::vector<int64_t> whole_inputs, whole_weights;
  std::optional<Tensor> wide;  // the weight's gradient before rounding to 16 bits
  Matrix grad_weight{wanted.weight, call.shape.cols, call.shape.width, call.shape.width};
  if (wanted.weight && call.element_size == 2) {
    wide = empty_cpu({call.shape.cols, call.shape.width}, call.accumulator_code());
    grad_weight = matrix_of(*wide);
  }
  for (size_t i = 0; i < call.sources.size(); ++i) {
    const Source& source = call.sources[i];
    const int64_t index = static_cast<int64_t>(i);
    SummedGradient summed(call, gradient);
    if (wanted.inputs[i]) {
      if (source.grad_rows == rows) {
        whole_inputs.push_back(index);
      } else {
        input_gradients(call, summed.by(source.grad_strides, source.grad_rows), wanted, {index});
      }
    }
    if (wanted.weight) {
      if (source.matrix.rows == rows) {
        whole_weights.push_back(index);
      } else {
        weight_gradient(call, summed.by(source.strides, source.matrix.rows), {index}, grad_weight);
      }
    }
  }
  if (!whole_inputs.empty()) {
    input_gradients(call, gradient, wanted, whole_inputs);
  }
  if (!whole_weights.empty()) {
    weight_gradient(call, gradient, whole_weights, grad_weight);
  }
  if (wide) {
    const NarrowArgs args{wanted.weight, grad_weight.data, call.shape.width};
    parallel_for(0, call.shape.cols, grain(call.shape.width), [&](int64_t begin, int64_t end) {
      MMFAST_DISPATCH(call.dtype, narrow_rows, args, begin, end);
    });
  }
}

void backward_tiny(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  std::vector<TinySource> sources = tiny_sources(call);
  std::vector<std::vector<int64_t>> grad_strides;
  bool any = false;
  for (size_t i = 0; i < sources.size(); ++i) {
    sources[i].grad = wanted.inputs[i];
    any = any || wanted.inputs[i];
    grad_strides.push_back(call.sources[i].grad_strides);
  }
  const RowMapStorage rows(call.shape.batch, strides_of(call.sources));
  const RowMapStorage grad_rows(call.shape.batch, grad_strides);
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
                                           const std::string& activation_name,
                                           const std::vector<int64_t>& wanted) {
  const Activation activation = check_activation(activation_name);
  const ConcatLinearShape shape = check_concat_linear(inputs, weight);
  check_alike(grad, "grad", weight, "weight");
  check_shape(grad, "grad", shape.output_sizes());
  if (activation != Activation::none) {
    check_alike(saved, "saved", weight, "weight");
    check_shape(saved, "saved", shape.output_sizes());
  }
  const Tensor usable_weight = with_unit_column_stride(weight);
  const std::vector<Source> sources = make_sources(inputs, shape);
  const Call call = make_call(shape, sources, usable_weight);
  const Plan plan = plan_call(call);

  const int64_t count = static_cast<int64_t>(inputs.size());
  Wanted targets;
  std::vector<void*> per_input(count, nullptr);
  std::vector<Tensor> result;
  for (int64_t position : wanted) {
    STD_TORCH_CHECK(position >= 0 && position <= count + 1, "wanted holds ", position,
                    "; it must lie in 0 .. ", count + 1);
    const std::vector<int64_t> sizes = position < count    ? sizes_of(inputs[position])
                                       : position == count ? std::vector{shape.cols, shape.width}
                                                           : std::vector{shape.cols};
    result.push_back(empty_cpu(sizes, call.dtype_code));
    void*& target = position < count    ? per_input[position]
                    : position == count ? targets.weight
                                        : targets.bias;
    STD_TORCH_CHECK(target == nullptr, "wanted holds ", position, " twice");
    target = result.back().mutable_data_ptr();
    if (plan.method == Method::empty) {
      std::memset(target, 0, result.back().numel() * call.element_size);
    }
  }
  for (const Source& source : sources) {
    targets.inputs.push_back(per_input[source.input]);
  }
  if (shape.rows == 0 || shape.cols == 0) {
    return result;
  }
  const Gradient gradient = before_activation(call, grad, saved, activation);
  if (plan.method == Method::tiny) {
    backward_tiny(call, gradient.matrix, targets);
    return result;
  }
  if (plan.method == Method::kernel) {
    backward_kernel(call, gradient.matrix, targets);
  } else {
    backward_library(call, gradient.matrix, targets);
  }
  bias_gradient(call, gradient.matrix, targets);
  return result;
}

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("concat_linear_backward", TORCH_BOX(&mmfast::concat_linear_backward));
}
