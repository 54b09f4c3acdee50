// concat_linear on the CPU: y = act(cat(inputs) weight^T + bias), the concatenation never built.
//
// The product is a sum over inputs, cat(x_1, x_2) W^T = x_1 W_1^T + x_2 W_2^T, so wide inputs are
// multiplied by their slice of the weight and accumulated into the result by the library. Narrow
// neighbours are gathered into a cache-sized block first; an input whose rows repeat is multiplied
// once per distinct row and added in the epilogue, with bias and activation.
#include "concat_linear.h"

#include <algorithm>

#include "concat_linear_source.h"
#include "scalar.h"
#include "scratch.h"
#include "vector_math.h"

#define MMFAST_ISA_SOURCE "concat_linear_kernels.h"
#include "foreach_isa.h"

namespace mmfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;

constexpr int64_t kGrainElements = 16 * 1024;  // below this much work a thread is not worth waking

int64_t grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_item));
}

#define MMFAST_DISPATCH(dtype, kernel, ...)           \
  switch (dtype) {                                    \
    case ScalarType::Float:                           \
      MMFAST_ISA_CALL(kernel<float>, __VA_ARGS__);    \
      break;                                          \
    case ScalarType::BFloat16:                        \
      MMFAST_ISA_CALL(kernel<BFloat16>, __VA_ARGS__); \
      break;                                          \
    case ScalarType::Half:                            \
      MMFAST_ISA_CALL(kernel<Float16>, __VA_ARGS__);  \
      break;                                          \
    default:                                          \
      MMFAST_ISA_CALL(kernel<double>, __VA_ARGS__);   \
      break;                                          \
  }

// What every step below needs to know of one call.
struct Call {
  const ConcatLinearShape& shape;
  const std::vector<Source>& sources;
  Matrix weight;  // cols x width, unit column stride
  ScalarType dtype;
  int32_t dtype_code;  // the same, as the C shims number it
  int64_t element_size;

  // The columns of the weight that multiply `width` features from `offset` on.
  Matrix weight_slice(int64_t offset, int64_t width) const {
    return Matrix{static_cast<char*>(weight.data) + offset * element_size, weight.rows, width,
                  weight.row_stride};
  }
  Matrix rows_of(const Matrix& m, int64_t begin, int64_t end) const {
    return Matrix{static_cast<char*>(m.data) + begin * m.row_stride * element_size, end - begin,
                  m.cols, m.row_stride, m.col_stride};
  }
};

Tensor with_unit_column_stride(const Tensor& weight) {
  const bool usable = (weight.size(1) <= 1 || weight.stride(1) == 1) &&
                      (weight.size(0) <= 1 || weight.stride(0) >= weight.size(1));
  return usable ? weight : contiguous_cpu(weight);
}

Matrix matrix_of(const Tensor& t) {
  const int64_t rows = t.size(0);
  const int64_t cols = t.size(1);
  return Matrix{const_cast<void*>(t.const_data_ptr()), rows, cols, rows > 1 ? t.stride(0) : cols};
}

Call make_call(const ConcatLinearShape& shape, const std::vector<Source>& sources,
               const Tensor& weight) {
  return Call{shape,
              sources,
              matrix_of(weight),
              weight.scalar_type(),
              dtype_of(weight),
              static_cast<int64_t>(weight.element_size())};
}

Plan plan_call(const Call& call) {
  std::vector<int64_t> widths;
  std::vector<int64_t> distinct_rows;
  for (const Source& source : call.sources) {
    widths.push_back(source.matrix.cols);
    distinct_rows.push_back(source.matrix.rows);
  }
  return plan_concat_linear(widths, distinct_rows, call.shape.rows, call.shape.cols,
                            call.element_size);
}

// ---------------------------------------------------------------------------------------- forward

// Copies rows begin..end of a group's inputs side by side into `block`.
void gather_block(const Call& call, const Group& group, const RowMap& rows, int64_t begin,
                  int64_t end, char* block) {
  const int64_t stride = group.width * call.element_size;
  parallel_for(begin, end, grain(group.width), [&](int64_t from, int64_t to) {
    RowCursor cursor(rows, from);
    for (int64_t m = from; m < to; ++m, cursor.next()) {
      char* target = block + (m - begin) * stride;
      for (int64_t i = group.first; i < group.last; ++i) {
        const Matrix& x = call.sources[i].matrix;
        std::memcpy(target,
                    static_cast<const char*>(x.data) +
                        cursor.row[i] * x.row_stride * call.element_size,
                    x.cols * call.element_size);
        target += x.cols * call.element_size;
      }
    }
  });
}

// out = (or +=) the product of a group, with the bias if it is given and nothing came before.
void multiply_group(const Call& call, const Group& group, const RowMap& rows, const Matrix& out,
                    const void* bias, bool accumulate) {
  const Matrix weight =
      call.weight_slice(call.sources[group.first].offset, group.width).transposed();
  const auto multiply = [&](const Matrix& to, const Matrix& x) {
    if (bias && !accumulate) {
      matmul_add_row(to, x, weight, bias, call.dtype_code);
    } else {
      matmul(to, x, weight, call.dtype_code, accumulate);
    }
  };
  if (group.block_rows == 0) {
    multiply(out, call.sources[group.first].matrix);
    return;
  }
  char* block =
      static_cast<char*>(scratch(group.block_rows * group.width * call.element_size));
  for (int64_t begin = 0; begin < out.rows; begin += group.block_rows) {
    const int64_t end = std::min(out.rows, begin + group.block_rows);
    gather_block(call, group, rows, begin, end, block);
    multiply(call.rows_of(out, begin, end), Matrix{block, end - begin, group.width, group.width});
  }
}

void forward_blocks(const Call& call, const Plan& plan, const Matrix& out, const void* bias,
                    Activation activation, void* preactivation) {
  std::vector<bool> grouped(call.sources.size(), false);
  for (const Group& group : plan.groups) {
    std::fill(grouped.begin() + group.first, grouped.begin() + group.last, true);
  }
  std::vector<Tensor> products;  // of broadcast inputs, one row per distinct row
  std::vector<const void*> addends;
  std::vector<std::vector<int64_t>> addend_strides;
  for (size_t i = 0; i < call.sources.size(); ++i) {
    const Source& source = call.sources[i];
    if (!grouped[i]) {
      products.push_back(empty_cpu({source.matrix.rows, out.cols}, call.dtype_code));
      matmul(matrix_of(products.back()), source.matrix,
             call.weight_slice(source.offset, source.matrix.cols).transposed(), call.dtype_code);
      addends.push_back(products.back().const_data_ptr());
      addend_strides.push_back(source.strides);
    }
  }
  const bool has_product = !plan.groups.empty();
  const bool finishing = !addends.empty() || !has_product || preactivation != nullptr ||
                         activation != Activation::none;
  const RowMapStorage rows(call.shape.batch, strides_of(call.sources));
  bool accumulate = false;
  for (const Group& group : plan.groups) {
    multiply_group(call, group, rows.view(), out, finishing ? nullptr : bias, accumulate);
    accumulate = true;
  }
  if (finishing) {
    const RowMapStorage addend_rows(call.shape.batch, addend_strides);
    const FinishArgs args{out.data, preactivation, bias,        addends.data(), addend_rows.view(),
                          out.cols, has_product,   activation};
    parallel_for(0, out.rows, grain(out.cols), [&](int64_t begin, int64_t end) {
      MMFAST_DISPATCH(call.dtype, finish, args, begin, end);
    });
  }
}

// Scratch for a tiny problem, in elements of the accumulator's type; see the tiny kernels.
int64_t tiny_scratch(const Call& call, bool backward) {
  const int64_t accumulator_size = call.dtype == ScalarType::Double ? 8 : 4;
  int64_t elements = call.shape.width + call.shape.cols;
  if (backward) {
    elements = call.shape.rows * (call.shape.width + call.shape.cols) + call.shape.width;
    for (const Source& source : call.sources) {
      elements += source.grad_rows * source.matrix.cols;
    }
  }
  return elements * accumulator_size;
}

TinyArgs tiny_args(const Call& call, const std::vector<TinySource>& sources, const RowMap& rows,
                   bool backward) {
  TinyArgs args{};
  args.sources = sources.data();
  args.rows = rows;
  args.scratch = scratch(tiny_scratch(call, backward));
  args.weight = call.weight.data;
  args.weight_stride = call.weight.row_stride;
  args.count = call.shape.rows;
  args.cols = call.shape.cols;
  args.width = call.shape.width;
  return args;
}

std::vector<TinySource> tiny_sources(const Call& call) {
  std::vector<TinySource> sources;
  for (const Source& source : call.sources) {
    sources.push_back(TinySource{source.matrix.data, nullptr, source.matrix.cols, source.offset,
                                 source.matrix.row_stride, source.grad_rows});
  }
  return sources;
}

void forward_tiny(const Call& call, const Matrix& out, const void* bias, Activation activation,
                  void* preactivation) {
  const std::vector<TinySource> sources = tiny_sources(call);
  const RowMapStorage rows(call.shape.batch, strides_of(call.sources));
  TinyArgs args = tiny_args(call, sources, rows.view(), false);
  args.out = out.data;
  args.preactivation = preactivation;
  args.bias = bias;
  args.activation = activation;
  MMFAST_DISPATCH(call.dtype, tiny_forward, args);
}

std::tuple<Tensor, Tensor> concat_linear(const std::vector<Tensor>& inputs, const Tensor& weight,
                                         const std::optional<Tensor>& bias,
                                         const std::string& activation_name, bool training) {
  const Activation activation = check_activation(activation_name);
  const ConcatLinearShape shape = check_concat_linear(inputs, weight);
  check_bias(bias, weight);
  const bool keep =
      training && saved_for_backward(activation) == Saved::preactivation;

  const Tensor usable_weight = with_unit_column_stride(weight);
  const std::vector<Source> sources = make_sources(inputs, shape);
  const Call call = make_call(shape, sources, usable_weight);
  const Tensor result = empty_cpu(shape.output_sizes(), call.dtype_code);
  const Tensor preactivation =
      empty_cpu(keep ? shape.output_sizes() : std::vector<int64_t>{0}, call.dtype_code);
  const Matrix out{result.mutable_data_ptr(), shape.rows, shape.cols, shape.cols};
  void* pre = keep ? preactivation.mutable_data_ptr() : nullptr;
  const std::optional<Tensor> usable_bias =
      bias ? std::optional(contiguous_cpu(*bias)) : std::nullopt;
  const void* bias_data = bias ? usable_bias->const_data_ptr() : nullptr;
  if (shape.rows == 0 || shape.cols == 0) {
    return {result, preactivation};
  }

  const Plan plan = plan_call(call);
  if (plan.method == Method::tiny) {
    forward_tiny(call, out, bias_data, activation, pre);
  } else {
    forward_blocks(call, plan, out, bias_data, activation, pre);
  }
  return {result, preactivation};
}

// --------------------------------------------------------------------------------------- backward

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
  const SumRowsArgs args{out,           partial.mutable_data_ptr(), x.data, x.row_stride,
                         kept.view(),   summed.view(),              count,  chunks,
                         x.cols};
  parallel_for(0, kept_rows * chunks, grain(x.cols * std::max<int64_t>(1, count / chunks)),
               [&](int64_t begin, int64_t end) {
                 MMFAST_DISPATCH(call.dtype, sum_rows, args, begin, end);
               });
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
    return {grad, Matrix{const_cast<void*>(grad.const_data_ptr()), call.shape.rows,
                         call.shape.cols, call.shape.cols}};
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

void backward_blocks(const Call& call, const Matrix& gradient, const Wanted& wanted) {
  const Matrix grad_weight{wanted.weight, call.shape.cols, call.shape.width, call.shape.width};
  for (size_t i = 0; i < call.sources.size(); ++i) {
    const Source& source = call.sources[i];
    const int64_t width = source.matrix.cols;
    // The gradient summed over rows that share a distinct row; kept between the two products,
    // which nearly always agree on what is distinct.
    std::optional<Tensor> sums;
    Matrix summed{};
    const std::vector<int64_t>* summed_by = nullptr;
    const auto sum_by = [&](const std::vector<int64_t>& strides, int64_t rows) {
      if (rows == call.shape.rows) {
        return gradient;
      }
      if (!summed_by || *summed_by != strides) {
        sums = empty_cpu({rows, gradient.cols}, call.dtype_code);
        sum_rows_into(call, gradient, strides, rows, sums->mutable_data_ptr());
        summed = matrix_of(*sums);
        summed_by = &strides;
      }
      return summed;
    };
    if (wanted.inputs[i]) {
      const Matrix g = sum_by(source.grad_strides, source.grad_rows);
      matmul(Matrix{wanted.inputs[i], source.grad_rows, width, width}, g,
             call.weight_slice(source.offset, width), call.dtype_code);
    }
    if (wanted.weight) {
      const Matrix g = sum_by(source.strides, source.matrix.rows);
      Matrix slice = grad_weight;
      slice.data = static_cast<char*>(wanted.weight) + source.offset * call.element_size;
      slice.cols = width;
      matmul(slice, g.transposed(), source.matrix, call.dtype_code);
    }
  }
  if (wanted.bias) {
    sum_rows_into(call, gradient, std::vector<int64_t>(call.shape.batch.size(), 0), 1,
                  wanted.bias);
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
  } else {
    backward_blocks(call, gradient.matrix, targets);
  }
  return result;
}

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("concat_linear", TORCH_BOX(&mmfast::concat_linear));
  m.impl("concat_linear.no_autograd", TORCH_BOX(&mmfast::concat_linear));
  m.impl("concat_linear_backward", TORCH_BOX(&mmfast::concat_linear_backward));
}
