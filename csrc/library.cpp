// Every operator's schema, and the module mmfast._C: what concerns the host and not tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <algorithm>

#include "cpu/concat_linear.h"
#include "cpu/isa.h"
#include "cuda/concat_linear_plan.h"
#include "distinct_rows.h"

#ifdef MMFAST_CUDA
#include <cuda_runtime_api.h>
#endif

// An operator's overload no_autograd is the same kernel without an autograd formula: eager mode
// supplies one through torch.autograd.Function, which costs a third of a registered one per call.
STABLE_TORCH_LIBRARY(mmfast, m) {
  // `index[j]` picks the rows of inputs[indexed[j]]; both lists are empty where none is indexed.
  // `training` asks for what backward needs besides the result: the second output, else empty.
  m.def(
      "concat_linear(Tensor[] inputs, Tensor weight, Tensor? bias, Tensor[] index, int[] indexed, "
      "str activation, bool training) -> (Tensor, Tensor)");
  m.def(
      "concat_linear.no_autograd(Tensor[] inputs, Tensor weight, Tensor? bias, Tensor[] index, "
      "int[] indexed, str activation, bool training) -> (Tensor, Tensor)");
  // Where nothing is indexed and the result is all that is wanted: the three arguments left out
  // took a quarter of a small call. Without an autograd formula. `activation` counts from 0 in
  // csrc/activation.h.
  m.def(
      "concat_linear_plain(Tensor[] inputs, Tensor weight, Tensor? bias, int activation) -> "
      "Tensor");
  // `wanted`: positions of the gradients to compute, 0 .. n-1 the inputs, n weight, n+1 bias.
  m.def(
      "concat_linear_backward(Tensor grad, Tensor[] inputs, Tensor weight, Tensor saved, "
      "Tensor[] index, int[] indexed, str activation, int[] wanted) -> Tensor[]");

  // The operators below combine rows of equal shape. `present` says which inputs of a row are
  // there; `wanted` lists the gradients to compute, by position among the tensors in order.
  m.def(
      "weighted_sum(Tensor[] inputs, Tensor weights, Tensor? present, str per, bool normalize) -> "
      "Tensor");
  m.def(
      "weighted_sum.no_autograd(Tensor[] inputs, Tensor weights, Tensor? present, str per, bool "
      "normalize) -> "
      "Tensor");
  m.def(
      "weighted_sum_backward(Tensor grad, Tensor[] inputs, Tensor weights, Tensor? present, "
      "str per, bool normalize, int[] wanted) -> Tensor[]");
  m.def(
      "attention_pool(Tensor[] inputs, Tensor query, Tensor? present, int num_heads, float scale) "
      "-> (Tensor, Tensor)");
  m.def(
      "attention_pool.no_autograd(Tensor[] inputs, Tensor query, Tensor? present, int num_heads, "
      "float scale) "
      "-> (Tensor, Tensor)");
  m.def(
      "attention_pool_backward(Tensor grad, Tensor? grad_weights, Tensor[] inputs, Tensor query, "
      "Tensor? present, int num_heads, float scale, int[] wanted) -> Tensor[]");
  m.def("gated_sum(Tensor[] values, Tensor[] gates, Tensor? present) -> Tensor");
  m.def("gated_sum.no_autograd(Tensor[] values, Tensor[] gates, Tensor? present) -> Tensor");
  m.def(
      "gated_sum_backward(Tensor grad, Tensor[] values, Tensor[] gates, Tensor? present, "
      "int[] wanted) -> Tensor[]");
  m.def("rank_product(Tensor[] factors, Tensor? weights, Tensor? present) -> Tensor");
  m.def("rank_product.no_autograd(Tensor[] factors, Tensor? weights, Tensor? present) -> Tensor");
  m.def(
      "rank_product_backward(Tensor grad, Tensor[] factors, Tensor? weights, Tensor? present, "
      "int[] wanted) -> Tensor[]");
  // `lses`: the logsumexp of the scores behind each output; -inf says that nothing was attended.
  m.def("merge_attention(Tensor[] outputs, Tensor[] lses) -> (Tensor, Tensor)");
}

namespace py = pybind11;

namespace {

std::string version_string(int major, int minor, int patch) {
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

py::dict build_info() {
  py::dict info;
  info["torch"] = version_string(TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH);
  info["oldest_torch"] =
      version_string((TORCH_FEATURE_VERSION >> 56) & 0xff, (TORCH_FEATURE_VERSION >> 48) & 0xff,
                     (TORCH_FEATURE_VERSION >> 40) & 0xff);
#if defined(__clang__)
  info["compiler"] =
      "clang " + version_string(__clang_major__, __clang_minor__, __clang_patchlevel__);
#elif defined(__GNUC__)
  info["compiler"] = "gcc " + version_string(__GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#else
  info["compiler"] = "unknown";
#endif
  info["flags"] = MMFAST_BUILD_FLAGS;
#ifdef MMFAST_CUDA
  info["cuda"] = true;
  info["cuda_toolkit"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_archs"] = MMFAST_CUDA_ARCHS;
#else
  info["cuda"] = false;
#endif
  return info;
}

mmfast::Element parse_element(const std::string& dtype) {
  constexpr const char* kElements[] = {"float32", "float64", "bfloat16", "float16"};
  const auto* element = std::find(std::begin(kElements), std::end(kElements), dtype);
  if (element == std::end(kElements)) {
    throw std::invalid_argument("dtype is '" + dtype +
                                "'; it must be float32, float64, bfloat16 or float16");
  }
  return static_cast<mmfast::Element>(element - kElements);
}

py::dict plan_dict(const mmfast::Plan& plan) {
  constexpr const char* kMethods[] = {"empty", "tiny", "dot", "kernel", "library"};
  py::list groups;
  for (const mmfast::Group& group : plan.groups) {
    py::dict entry;
    entry["inputs"] = group.members;
    entry["width"] = group.width;
    entry["block_rows"] = group.block_rows;
    groups.append(entry);
  }
  py::dict result;
  result["method"] = kMethods[static_cast<int>(plan.method)];
  result["groups"] = groups;
  result["why"] = plan.why;
  return result;
}

py::dict concat_linear_plan(const std::vector<int64_t>& widths,
                            const std::vector<int64_t>& distinct_rows, int64_t rows, int64_t cols,
                            const std::string& dtype) {
  if (widths.size() != distinct_rows.size()) {
    throw std::invalid_argument("distinct_rows has " + std::to_string(distinct_rows.size()) +
                                " entries but widths has " + std::to_string(widths.size()) +
                                "; they must be equal");
  }
  return plan_dict(mmfast::plan_concat_linear(widths, distinct_rows, rows, cols,
                                              parse_element(dtype), mmfast::current_isa()));
}

// A tensor as far as a plan looks at it: sizes, strides, where it starts, and how many entries the
// index has that picks its rows (-1: none does).
using PlannedTensor = std::tuple<std::vector<int64_t>, std::vector<int64_t>, uintptr_t, int64_t>;

// As csrc/cuda/concat_linear_call.cpp sees an input.
mmfast::cuda::PlanInput planned_input(const PlannedTensor& tensor, const mmfast::Dims& batch) {
  const auto& [sizes, strides, address, entries] = tensor;
  const mmfast::Dims size_dims(sizes.begin(), sizes.end());
  const int64_t width = sizes.back();
  if (entries >= 0) {
    return {width, sizes[0] > entries / 2 ? entries : sizes[0], false};
  }
  const mmfast::DistinctRows found =
      mmfast::distinct_rows(size_dims, mmfast::Dims(strides.begin(), strides.end()), batch);
  const void* data = reinterpret_cast<const void*>(found.dense ? address : 0);
  return {width, found.rows, mmfast::cuda::unit_of(data, found.row_stride) == 16};
}

py::dict concat_linear_cuda_plan(const std::vector<PlannedTensor>& inputs,
                                 const std::vector<int64_t>& batch, const PlannedTensor& weight,
                                 const std::string& dtype, bool finishing,
                                 std::pair<int32_t, int32_t> capability, int32_t multiprocessors) {
  const mmfast::Dims batch_dims(batch.begin(), batch.end());
  std::vector<mmfast::cuda::PlanInput> planned;
  py::list rows_of_inputs;
  for (const PlannedTensor& input : inputs) {
    planned.push_back(planned_input(input, batch_dims));
    rows_of_inputs.append(planned.back().product_rows);
  }
  int64_t rows = 1;
  for (int64_t size : batch) {
    rows *= size;
  }
  const mmfast::cuda::GpuPlan found = mmfast::cuda::plan_concat_linear(
      planned, rows, std::get<0>(weight)[0], parse_element(dtype),
      planned_input(weight, mmfast::Dims{std::get<0>(weight)[0]}).direct, finishing,
      mmfast::cuda::gpu_of(multiprocessors, capability.first, capability.second));
  py::dict result = plan_dict(found.plan);
  result["tma"] = found.tma;
  result["distinct_rows"] = rows_of_inputs;
  return result;
}

}  // namespace

// Free-threaded Pythons need no lock for it: the one thing that changes is an atomic (cpu/isa.cpp).
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "mmfast's kernels; importing this module registers torch.ops.mmfast.*";
  m.def("build_info", &build_info, "How this library was built.");
  m.def(
      "cpu_isa", [] { return mmfast::isa_name(mmfast::current_isa()); },
      "The instruction set that the CPU kernels use.");
  m.def("cpu_isas", &mmfast::available_isas,
        "The instruction sets that this build and this machine have, narrowest first.");
  m.def("force_cpu_isa", &mmfast::force_isa, py::arg("name"),
        "Use this instruction set (empty: the widest one again). For tests.");
  m.def("concat_linear_plan", &concat_linear_plan, py::arg("widths"), py::arg("distinct_rows"),
        py::arg("rows"), py::arg("cols"), py::arg("dtype"),
        "Which way concat_linear takes on the CPU for inputs of these shapes, and why.");
  m.def("concat_linear_cuda_plan", &concat_linear_cuda_plan, py::arg("inputs"), py::arg("batch"),
        py::arg("weight"), py::arg("dtype"), py::arg("finishing"), py::arg("capability"),
        py::arg("multiprocessors"),
        "Which way concat_linear takes on a GPU, and why. A tensor is given as its sizes, strides, "
        "address and the entries of its index, -1 without one.");
}
