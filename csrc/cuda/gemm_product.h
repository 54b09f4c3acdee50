// A product of 16-bit matrices by mmfast's own kernels: tensor maps, tiling, launches.
#pragma once

#include <vector>

#include "concat_linear_call.h"
#include "gemm.h"

namespace mmfast::cuda {

// x in forward and weight_gradient: a group's matrix and, if picked by an index, which rows.
struct ProductInput {
  Matrix matrix;
  const int64_t* index = nullptr;
  int64_t rows = 0;  // as picked
};

// out = act(sum of inputs times their columns of `weight` + what the epilogue holds). The
// epilogue's panel 0 is the result, rows x cols of the weight.
void run_forward(const Call& call, bool tma, int64_t rows, const std::vector<ProductInput>& inputs,
                 const std::vector<WeightColumns>& columns, const Matrix& weight,
                 const Epilogue& epilogue);

// panels[g] = dy times the columns of the weight.
void run_input_gradient(const Call& call, bool tma, const Matrix& dy,
                        const std::vector<WeightColumns>& columns,
                        const std::vector<Panel>& panels);

// panels[g] = dy^T inputs[g].
void run_weight_gradient(const Call& call, bool tma, const Matrix& dy,
                         const std::vector<ProductInput>& inputs, const std::vector<Panel>& panels);

}  // namespace mmfast::cuda
