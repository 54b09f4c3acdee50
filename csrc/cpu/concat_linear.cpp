// concat_linear on the CPU: y = act(cat(inputs) weight^T + bias), the concatenation never built.
//
// The product is a sum over inputs, cat(x_1, x_2) W^T = x_1 W_1^T + x_2 W_2^T, so wide inputs are
// multiplied by their slice of the weight and accumulated into the result by the library. Narrow
// neighbours, and 16-bit inputs, whose partial sums would be rounded, are gathered into a
// cache-sized block first. An input whose rows repeat is multiplied once per distinct row and added
// in the epilogue, with bias and activation.
#include "concat_linear_call.h"
#include "vector_math.h"

#define MMFAST_ISA_SOURCE "concat_linear_kernels.h"
#include "foreach_isa.h"

namespace mmfast {
namespace {

// Copies rows begin..end of a group's inputs side by side into `block`.
void gather_block(const Call& call, const Group& group, const RowMap& rows, int64_t begin,
                  int64_t end, char* block) {
  const int64_t stride = group.width * call.element_size;
  parallel_for(begin, end, grain(group.width), [&](int64_t from, int64_t to) {
    RowCursor cursor(rows, from);
    for (int64_t m = from; m < to; ++m, cursor.next()) {
      char* target = block + (m - begin) * stride;
      for (int64_t i : group.members) {
        const Matrix& x = call.sources[i].matrix;
        std::memcpy(
            target,
            static_cast<const char*>(x.data) + cursor.row[i] * x.row_stride * call.element_size,
            x.cols * call.element_size);
        target += x.cols * call.element_size;
      }
    }
  });
}

// The weight's columns that meet a group's inputs, side by side; a copy only if others stand
// between them, in which case `copy` keeps it.
Matrix group_weight(const Call& call, const Group& group, std::optional<Tensor>& copy) {
  const int64_t first = call.sources[group.members.front()].offset;
  const Source& last = call.sources[group.members.back()];
  if (last.offset + last.matrix.cols - first == group.width) {
    return call.weight_slice(first, group.width);
  }
  copy = empty_cpu({call.weight.rows, group.width}, call.dtype_code);
  const Matrix packed = matrix_of(*copy);
  parallel_for(0, packed.rows, grain(packed.cols), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      char* target = static_cast<char*>(packed.data) + j * packed.cols * call.element_size;
      for (int64_t i : group.members) {
        const int64_t width = call.sources[i].matrix.cols;
        const Matrix from =
            call.rows_of(call.weight_slice(call.sources[i].offset, width), j, j + 1);
        std::memcpy(target, from.data, width * call.element_size);
        target += width * call.element_size;
      }
    }
  });
  return packed;
}

// out = (or +=) the product of a group, with the bias if it is given and nothing came before.
void multiply_group(const Call& call, const Group& group, const RowMap& rows, const Matrix& out,
                    const void* bias, bool accumulate) {
  std::optional<Tensor> copy;
  const Matrix weight = group_weight(call, group, copy).transposed();
  const auto multiply = [&](const Matrix& to, const Matrix& x) {
    if (bias && !accumulate) {
      matmul_add_row(to, x, weight, bias, call.dtype_code);
    } else {
      matmul(to, x, weight, call.dtype_code, accumulate);
    }
  };
  if (group.block_rows == 0) {
    multiply(out, call.sources[group.members[0]].matrix);
    return;
  }
  char* block = static_cast<char*>(scratch(group.block_rows * group.width * call.element_size));
  for (int64_t begin = 0; begin < out.rows; begin += group.block_rows) {
    const int64_t end = std::min(out.rows, begin + group.block_rows);
    gather_block(call, group, rows, begin, end, block);
    multiply(call.rows_of(out, begin, end), Matrix{block, end - begin, group.width, group.width});
  }
}

// The matrix in the accumulator's type: itself, or for 16-bit elements a copy that `copy` keeps.
Matrix widened(const Call& call, const Matrix& x, std::optional<Tensor>& copy) {
  if (call.element_size > 2) {
    return x;
  }
  copy = empty_cpu({x.rows, x.cols}, call.accumulator_code());
  const WidenArgs args{copy->mutable_data_ptr(), x.data, x.row_stride, x.cols};
  parallel_for(0, x.rows, grain(x.cols), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(call.dtype, widen_rows, args, begin, end);
  });
  return matrix_of(*copy);
}

// The product of an input whose rows repeat: a row per distinct row, unrounded.
Tensor multiply_distinct_rows(const Call& call, const Source& source) {
  std::optional<Tensor> x_copy, weight_copy;
  const Matrix x = widened(call, source.matrix, x_copy);
  const Matrix weight =
      widened(call, call.weight_slice(source.offset, source.matrix.cols), weight_copy);
  const Tensor product = empty_cpu({x.rows, call.shape.cols}, call.accumulator_code());
  matmul(matrix_of(product), x, weight.transposed(), call.accumulator_code());
  return product;
}

void forward_blocks(const Call& call, const Plan& plan, const Matrix& out, const void* bias,
                    Activation activation, void* preactivation) {
  std::vector<bool> grouped(call.sources.size(), false);
  for (const Group& group : plan.groups) {
    for (int64_t i : group.members) {
      grouped[i] = true;
    }
  }
  std::vector<Tensor> products;
  std::vector<const void*> addends;
  std::vector<std::vector<int64_t>> addend_strides;
  for (size_t i = 0; i < call.sources.size(); ++i) {
    if (!grouped[i]) {
      products.push_back(multiply_distinct_rows(call, call.sources[i]));
      addends.push_back(products.back().const_data_ptr());
      addend_strides.push_back(call.sources[i].strides);
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
    const FinishArgs args{out.data,           preactivation, bias,        addends.data(),
                          addend_rows.view(), out.cols,      has_product, activation};
    parallel_for(0, out.rows, grain(out.cols), [&](int64_t begin, int64_t end) {
      MMFAST_DISPATCH(call.dtype, finish, args, begin, end);
    });
  }
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
  const bool keep = training && saved_for_backward(activation) == Saved::preactivation;

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

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("concat_linear", TORCH_BOX(&mmfast::concat_linear));
  m.impl("concat_linear.no_autograd", TORCH_BOX(&mmfast::concat_linear));
}
