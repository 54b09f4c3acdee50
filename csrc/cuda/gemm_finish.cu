// The second pass of a product whose K was split: adds the partial sums, always in the same order,
// and finishes the result as the product itself would have.
#include "gemm_epilogue.cuh"

namespace mmfast::cuda {
namespace {

constexpr int kFinishThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    gemm_finish(const __grid_constant__ GemmArgs args) {
  const Epilogue& e = args.epilogue;
  const int32_t fours = e.partial_cols / 4;
  const int64_t count = static_cast<int64_t>(args.rows) * fours;
  const int64_t plane = static_cast<int64_t>(args.rows) * e.partial_cols;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kFinishThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x; i < count;
       i += stride) {
    const int32_t row = static_cast<int32_t>(i / fours);
    const int32_t col = static_cast<int32_t>(i - static_cast<int64_t>(row) * fours) * 4;
    float x[4] = {};
    for (int32_t split = 0; split < args.schedule.splits; ++split) {
      float y[4];
      load_four(e.partial + split * plane + static_cast<int64_t>(row) * e.partial_cols + col, true,
                4, y);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[j] += y[j];
      }
    }
    const int panel = group_of(e.partial_first, e.partial_panels, col);
    const int32_t panel_col = col - e.partial_first[panel];
    for (int j = 0; j < e.addends; ++j) {
      add_four(e, j, addend_row(e, j, row), panel_col, x);
    }
    finish_four<T, GemmKind::forward>(e, panel, row, panel_col, x);
  }
}

}  // namespace

cudaError_t launch_gemm_finish(bool bfloat16, const GemmArgs& args, cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(args.rows) * (args.epilogue.partial_cols / 4);
  const int64_t blocks = (count + kFinishThreads - 1) / kFinishThreads;
  launch(bfloat16 ? gemm_finish<BFloat16> : gemm_finish<Float16>, blocks < 65536 ? blocks : 65536,
         kFinishThreads, 0, stream, args);
  return cudaGetLastError();
}

}  // namespace mmfast::cuda
