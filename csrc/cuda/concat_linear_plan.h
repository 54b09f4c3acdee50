// Which way concat_linear takes on a GPU, and why: decided by shapes, alignment, element type and
// GPU alone, so that the same call always takes the same way.
#pragma once

#include <algorithm>
#include <vector>

#include "../cpu/concat_linear.h"
#include "gemm_setup.h"

namespace mmfast::cuda {

// An input as the plan sees it.
struct PlanInput {
  int64_t width;
  int64_t product_rows;  // that a product with the weight takes
  bool direct;           // TMA can read it where it lies: aligned, and no index picks its rows
};

struct GpuPlan {
  Plan plan;         // Method::empty, kernel or library; groups as on the CPU
  bool tma = false;  // of the kernel: gemm_sm90, else gemm_sm80
};

// An input whose rows repeat this often is worth a product of its own.
constexpr int64_t kRepeats = 2;
// Blocks of rows that are gathered for a product of the library have this size.
constexpr int64_t kGatherBytes = 64 << 20;

inline Gpu gpu_of(int32_t multiprocessors, int32_t major, int32_t minor) {
  return Gpu{multiprocessors, major == 9 && minor == 0};
}

inline int64_t gathered_rows(int64_t row_bytes, int64_t rows) {
  return std::min(rows, std::max<int64_t>(128, kGatherBytes / row_bytes / 128 * 128));
}

// The inputs that are multiplied row by row; the epilogue adds the products of the others. It has
// room for kMaxAddends: those that save the most.
inline std::vector<int64_t> members_of(const std::vector<PlanInput>& inputs, int64_t rows) {
  std::vector<int64_t> repeated;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].product_rows <= rows / kRepeats) {
      repeated.push_back(static_cast<int64_t>(i));
    }
  }
  std::stable_sort(repeated.begin(), repeated.end(), [&](int64_t i, int64_t j) {
    return (rows - inputs[i].product_rows) * inputs[i].width >
           (rows - inputs[j].product_rows) * inputs[j].width;
  });
  repeated.resize(std::min<size_t>(repeated.size(), kMaxAddends));
  std::vector<int64_t> members;
  for (int64_t i = 0; i < static_cast<int64_t>(inputs.size()); ++i) {
    if (std::find(repeated.begin(), repeated.end(), i) == repeated.end()) {
      members.push_back(i);
    }
  }
  return members;
}

// A product of its own reads and writes the result once more; gathering an input reads and writes
// the input. So neighbours narrower than the result are gathered, and multiplied together.
inline GpuPlan plan_float(const std::vector<int64_t>& members, const std::vector<PlanInput>& inputs,
                          int64_t rows, int64_t cols, int64_t bytes) {
  GpuPlan result;
  result.plan.method = Method::library;
  result.plan.why =
      "32 and 64 bits: products of the library, one per wide input or run of narrow ones";
  std::vector<mmfast::Group>& groups = result.plan.groups;
  for (int64_t i : members) {
    const bool narrow = inputs[i].width < cols;
    const bool joins = narrow && !groups.empty() && groups.back().members.back() == i - 1 &&
                       inputs[i - 1].width < cols;
    if (joins) {
      groups.back().members.push_back(i);
      groups.back().width += inputs[i].width;
    } else {
      groups.push_back(mmfast::Group{{i}, inputs[i].width, 0});
    }
  }
  for (mmfast::Group& group : groups) {
    if (group.members.size() > 1) {
      group.block_rows = gathered_rows(group.width * bytes, rows);
    }
  }
  return result;
}

// `finishing`: something follows the product that the library cannot do with it.
inline GpuPlan plan_concat_linear(const std::vector<PlanInput>& inputs, int64_t rows, int64_t cols,
                                  Element element, bool weight_direct, bool finishing,
                                  const Gpu& gpu) {
  GpuPlan result;
  int64_t width = 0;
  for (const PlanInput& input : inputs) {
    width += input.width;
  }
  if (rows == 0 || cols == 0 || width == 0) {
    result.plan.why = "the result is empty or no input has features";
    return result;
  }
  const std::vector<int64_t> members = members_of(inputs, rows);
  if (element_size(element) != 2) {
    return plan_float(members, inputs, rows, cols, element_size(element));
  }
  result.plan.method = Method::kernel;
  if (members.empty()) {
    result.tma = gpu.hopper;
    result.plan.why = "every input repeats its rows: products of distinct rows, added up";
    return result;
  }
  int64_t together = 0;
  int32_t steps = 0;
  double copies = weight_direct ? 0 : gather_cycles(gpu, cols, width);
  for (int64_t i : members) {
    together += inputs[i].width;
    steps += steps_of(inputs[i].width);
    copies += inputs[i].direct ? 0 : gather_cycles(gpu, rows, inputs[i].width);
  }
  result.plan.groups = {mmfast::Group{members, together, 0}};
  const double plain = choose_tiling(gpu, false, rows, {cols}, steps).cycles;
  const double with_tma =
      gpu.hopper ? choose_tiling(gpu, true, rows, {cols}, steps).cycles + copies : 2 * plain;
  const bool one = members.size() == 1 && inputs[members[0]].direct;
  const double library =
      library_cycles(gpu, rows, cols, together) + (one ? 0 : gather_cycles(gpu, rows, together)) +
      (finishing || inputs.size() > members.size() ? gather_cycles(gpu, rows, cols) : 0);
  const double own = std::min(plain, with_tma);
  if ((one && inputs.size() == 1 && !finishing) || library < own) {
    result.plan.method = Method::library;
    result.plan.why =
        one ? "one input: what the library is made for"
            : "so many multiply-adds that the library's rate pays for gathering blocks of rows";
    if (!one) {
      result.plan.groups[0].block_rows = gathered_rows(2 * together, rows);
    }
    return result;
  }
  result.tma = with_tma <= plain;
  result.plan.why = result.tma ? "one K loop over the features of all inputs: TMA and wgmma"
                    : gpu.hopper
                        ? "one K loop over the features of all inputs: mma.sync, since rows are "
                          "picked or not aligned to 16 bytes, and a copy would cost more"
                        : "one K loop over the features of all inputs: mma.sync";
  return result;
}

// Whether the gradients of several inputs, or of their columns of the weight, are one product of
// own kernels rather than a library product each. `rows` and `panels` shape the results.
inline bool gradients_by_kernel(const Gpu& gpu, bool tma, int64_t rows,
                                const std::vector<int64_t>& panels, int64_t k) {
  double library = 0;
  for (int64_t cols : panels) {
    library += library_cycles(gpu, rows, cols, k);
  }
  return panels.size() <= kMaxGroups &&
         choose_tiling(gpu, tma, rows, panels, steps_of(k)).cycles < library;
}

}  // namespace mmfast::cuda
