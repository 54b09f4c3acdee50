// concat_linear on the CPU: y = act(cat(inputs) weight^T + bias), the concatenation never built.
//
// The product is a sum over inputs, cat(x_1, x_2) W^T = x_1 W_1^T + x_2 W_2^T. Where mmfast has a
// matrix product of its own (gemm.h), one loop runs over the features of all inputs, and nothing is
// written but the result. Elsewhere wide inputs are multiplied by their slice of the weight and
// accumulated into the result by the library; narrow neighbours, and 16-bit inputs, whose partial
// sums would be rounded, are gathered into a cache-sized block first.
//
// An input whose rows repeat is multiplied once per distinct row and added in the epilogue, with
// bias and activation.
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
            static_cast<const char*>(x.data) + cursor.at(i) * x.row_stride * call.element_size,
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
  const Workspace workspace(group.block_rows * group.width * call.element_size);
  char* block = workspace.data();
  for (int64_t begin = 0; begin < out.rows; begin += group.block_rows) {
    const int64_t end = std::min(out.rows, begin + group.block_rows);
    gather_block(call, group, rows, begin, end, block);
    multiply(call.rows_of(out, begin, end), Matrix{block, end - begin, group.width, group.width});
  }
}

// Columns [plan.first_col, ...) of the result meet these rows of the weight, features in segments.
auto weight_packer(const Call& call, const std::vector<int64_t>& members) {
  return [&call, &members](const PanelPlan& plan, char* memory) {
    for (int64_t i : members) {
      const int64_t features = call.sources[i].matrix.cols;
      const Matrix slice = call.weight_slice(call.sources[i].offset, features);
      const Matrix rows = call.rows_of(slice, plan.first_col, plan.first_col + plan.cols);
      call_pack_transposed(
          call.dtype, PackArgs{static_cast<const char*>(rows.data),
                               rows.row_stride * call.element_size, features, plan.cols, memory});
      memory += steps_of(call, features) * 4 * kPanelCols;
    }
  };
}

// `out` = the product of `members`, with an epilogue; see run_gemm.
void multiply_members(const Call& call, const std::vector<int64_t>& members, const Matrix& out,
                      ScalarType to, const GemmArgs& epilogue) {
  if (are_few_rows(out.rows, call.shape.width)) {
    run_few_rows(call, members, out.data, epilogue, to);
    return;
  }
  std::vector<GemmSegment> segments;
  int64_t steps = 0;
  for (int64_t i : members) {
    segments.push_back(segment_of(call, call.sources[i].matrix));
    steps += steps_of(call, call.sources[i].matrix.cols);
  }
  std::vector<PanelPlan> panels;
  add_panels(panels, 0, out.cols, static_cast<char*>(out.data), out.row_stride,
             to == ScalarType::Float ? 4 : call.element_size);
  run_gemm(call, segments, steps, panels, weight_packer(call, members), epilogue, to);
}

// The product of an input whose rows repeat: a row per distinct row, unrounded.
Tensor multiply_distinct_rows(const Call& call, const Plan& plan, int64_t i) {
  const Source& source = call.sources[i];
  const Tensor product = empty_cpu({source.matrix.rows, call.shape.cols}, call.accumulator_code());
  if (plan.method == Method::kernel) {
    GemmArgs args{};
    args.rows = source.matrix.rows;
    args.cols = call.shape.cols;
    multiply_members(call, {i}, matrix_of(product), ScalarType::Float, args);
    return product;
  }
  std::optional<Tensor> x_copy, weight_copy;
  const Matrix x = widened(call, source.matrix, x_copy);
  const Matrix weight =
      widened(call, call.weight_slice(source.offset, source.matrix.cols), weight_copy);
  matmul(matrix_of(product), x, weight.transposed(), call.accumulator_code());
  return product;
}

// The products that the epilogue adds.
struct Addends {
  std::vector<Tensor> products;
  std::vector<const void*> data;
  std::vector<Dims> strides;
  std::vector<const int64_t*> index;
};

Addends multiply_repeated(const Call& call, const Plan& plan) {
  std::vector<bool> grouped(call.sources.size(), false);
  for (const Group& group : plan.groups) {
    for (int64_t i : group.members) {
      grouped[i] = true;
    }
  }
  Addends addends;
  for (size_t i = 0; i < call.sources.size(); ++i) {
    if (!grouped[i]) {
      addends.products.push_back(multiply_distinct_rows(call, plan, static_cast<int64_t>(i)));
      addends.data.push_back(addends.products.back().const_data_ptr());
      addends.strides.push_back(call.sources[i].strides);
      addends.index.push_back(call.sources[i].index);
    }
  }
  return addends;
}

void finish_rows(const Call& call, const FinishArgs& args, int64_t rows) {
  parallel_for(0, rows, grain(args.cols), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(call.dtype, finish, args, begin, end);
  });
}

void forward_library(const Call& call, const Plan& plan, const Matrix& out, const void* bias,
                     Activation activation, void* preactivation) {
  const Addends addends = multiply_repeated(call, plan);
  const bool has_product = !plan.groups.empty();
  const bool finishing = !addends.data.empty() || !has_product || preactivation != nullptr ||
                         activation != Activation::none;
  // The library adds the bias before it rounds; what the epilogue adds meets a rounded product.
  const bool bias_in_product = addends.data.empty() && has_product;
  const RowMapStorage rows(call.shape.batch, strides_of(call.sources), index_of(call.sources));
  bool accumulate = false;
  for (const Group& group : plan.groups) {
    multiply_group(call, group, rows.view(), out, bias_in_product ? bias : nullptr, accumulate);
    accumulate = true;
  }
  if (finishing) {
    const RowMapStorage addend_rows(call.shape.batch, addends.strides, addends.index);
    finish_rows(
        call,
        FinishArgs{out.data, preactivation, bias_in_product ? nullptr : bias, addends.data.data(),
                   addend_rows.view(), out.cols, has_product, activation},
        out.rows);
  }
}

void forward_kernel(const Call& call, const Plan& plan, const Matrix& out, const void* bias,
                    Activation activation, void* preactivation) {
  const Addends addends = multiply_repeated(call, plan);
  const RowMapStorage addend_rows(call.shape.batch, addends.strides, addends.index);
  if (plan.groups.empty()) {
    finish_rows(call,
                FinishArgs{out.data, preactivation, bias, addends.data.data(), addend_rows.view(),
                           out.cols, false, activation},
                out.rows);
    return;
  }
  GemmArgs args{};
  args.rows = out.rows;
  args.cols = out.cols;
  args.bias = bias;
  args.addends = addends.data.data();
  args.addend_rows = addend_rows.view();
  args.preactivation = preactivation;
  args.activation = activation;
  multiply_members(call, plan.groups[0].members, out, call.dtype, args);
}

void forward_dot(const Call& call, const Matrix& out, const void* bias, Activation activation,
                 void* preactivation) {
  const std::vector<TinySource> sources = tiny_sources(call);
  const RowMapStorage rows(call.shape.batch, strides_of(call.sources), index_of(call.sources));
  TinyArgs args = tiny_args(call, sources, rows.view(), false);
  args.out = out.data;
  args.preactivation = preactivation;
  args.bias = bias;
  args.activation = activation;
  MMFAST_DISPATCH(call.dtype, gather_rows, args);
  parallel_for(0, args.cols, grain(args.count * args.width / 8), [&](int64_t begin, int64_t end) {
    MMFAST_DISPATCH(call.dtype, dot_rows, args, begin, end);
  });
}

// The result, and what the activation was applied to if `preactivation` is not null.
Tensor forward(const std::vector<Tensor>& inputs, const Tensor& weight,
               const std::optional<Tensor>& bias, const std::vector<Tensor>& index,
               const std::vector<int64_t>& indexed, Activation activation,
               std::optional<Tensor>* preactivation) {
  const ConcatLinearShape shape = check_concat_linear(inputs, weight, index, indexed);
  check_bias(bias, weight);

  const Tensor usable_weight = with_unit_column_stride(weight);
  std::vector<Source> sources = make_sources(inputs, index, indexed, shape);
  const Call call = make_call(shape, sources, usable_weight);
  const Tensor result = empty_result(shape.output_sizes(), call.dtype_code);
  void* pre = nullptr;
  if (preactivation != nullptr) {
    *preactivation = empty_cpu(shape.output_sizes(), call.dtype_code);
    pre = (*preactivation)->mutable_data_ptr();
  }
  const Matrix out{result.mutable_data_ptr(), shape.rows, shape.cols, shape.cols};
  const std::optional<Tensor> usable_bias =
      bias ? std::optional(contiguous_cpu(*bias)) : std::nullopt;
  const void* bias_data = bias ? usable_bias->const_data_ptr() : nullptr;
  if (shape.rows == 0 || shape.cols == 0) {
    return result;
  }

  const Plan plan = plan_call(call);
  if (plan.method == Method::tiny || plan.method == Method::dot) {
    forward_dot(call, out, bias_data, activation, pre);
    return result;
  }
  gather_first(call, sources);
  if (plan.method == Method::kernel) {
    forward_kernel(call, plan, out, bias_data, activation, pre);
  } else {
    forward_library(call, plan, out, bias_data, activation, pre);
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
    preactivation = empty_cpu({0}, dtype_of(result));
  }
  return {std::move(result), std::move(*preactivation)};
}

Tensor concat_linear_plain(const std::vector<Tensor>& inputs, const Tensor& weight,
                           const std::optional<Tensor>& bias, int64_t activation) {
  return forward(inputs, weight, bias, {}, {}, check_activation(activation), nullptr);
}

}  // namespace
}  // namespace mmfast

STABLE_TORCH_LIBRARY_IMPL(mmfast, CPU, m) {
  m.impl("concat_linear", TORCH_BOX(&mmfast::concat_linear));
  m.impl("concat_linear.no_autograd", TORCH_BOX(&mmfast::concat_linear));
  m.impl("concat_linear_plain", TORCH_BOX(&mmfast::concat_linear_plain));
}
