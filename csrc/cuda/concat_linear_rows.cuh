// What the files of concat_linear_rows.h share: threads over items, neighbours moved at once,
// dispatch.
#pragma once

#include "concat_linear_rows.h"
#include "kernel.cuh"

namespace mmfast::cuda {

constexpr int kRowThreads = 256;

MMFAST_DEVICE int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
}
MMFAST_DEVICE int64_t item_stride() { return static_cast<int64_t>(gridDim.x) * kRowThreads; }
inline int64_t blocks_for(int64_t items) {
  const int64_t blocks = (items + kRowThreads - 1) / kRowThreads;
  return blocks < 1 ? 1 : blocks < 32768 ? blocks : 32768;
}

// `n` neighbours, moved at once.
template <typename T, int n>
struct alignas(sizeof(T) * n) Pack {
  T value[n];
};

inline bool aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

// Calls a function with the element type that `element` names.
#define MMFAST_BY_ELEMENT(function, element, args, stream) \
  switch (element) {                                       \
    case Element::float32:                                 \
      return function<float>(args, stream);                \
    case Element::float64:                                 \
      return function<double>(args, stream);               \
    case Element::bfloat16:                                \
      return function<BFloat16>(args, stream);             \
    default:                                               \
      return function<Float16>(args, stream);              \
  }

}  // namespace mmfast::cuda
