#include "kernel_tables.h"

#include "kernel.cuh"

namespace mmfast::cuda {
namespace {

__global__ void table_kernel(const __grid_constant__ TableArgs args) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < args.count) {
    args.table[args.first + i] = args.sources[i];
  }
}

constexpr int kSumThreads = 512;
constexpr int kSumLanes = 16;  // columns of a block

// In double: their number grows with the batch.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    add_sums_kernel(const __grid_constant__ SumsArgs args) {
  using A = wide_t<T>;
  MMFAST_SHARED_MEMORY(memory);
  double* const parts = reinterpret_cast<double*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes;
  const int line = static_cast<int>(threadIdx.x) / kSumLanes;
  constexpr int kLines = kSumThreads / kSumLanes;
  const int64_t blocks = (args.size + kSumLanes - 1) / kSumLanes;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t col = block * kSumLanes + lane;
    double sum = 0;
    if (col < args.size) {
#pragma unroll 4
      for (int64_t row = line; row < args.count; row += kLines) {
        sum += static_cast<const A*>(args.sums)[row * args.size + col];
      }
    }
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (line == 0 && col < args.size) {
      for (int other = 1; other < kLines; ++other) {
        sum += parts[other * kSumLanes + lane];
      }
      static_cast<T*>(args.out)[col] = round_one<T>(static_cast<A>(sum));
    }
    __syncthreads();
  }
}

template <typename T>
void add_sums(const SumsArgs& args, cudaStream_t stream) {
  const int64_t blocks = (args.size + kSumLanes - 1) / kSumLanes;
  launch(add_sums_kernel<T>, blocks, kSumThreads, kSumThreads * sizeof(double), stream, args);
}

}  // namespace

void launch_table(const TableArgs& args, cudaStream_t stream) {
  launch(table_kernel, 1, kInlineSources, 0, stream, args);
}

void launch_add_sums(Element element, const SumsArgs& args, cudaStream_t stream) {
  switch (element) {
    case Element::float32:
      return add_sums<float>(args, stream);
    case Element::bfloat16:
      return add_sums<BFloat16>(args, stream);
    case Element::float16:
      return add_sums<Float16>(args, stream);
    case Element::float64:
      return add_sums<double>(args, stream);
  }
}

}  // namespace mmfast::cuda
