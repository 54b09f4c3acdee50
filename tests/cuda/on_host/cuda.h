// Stands where the CUDA toolkit's header would: tensor maps, as far as the products need them.
#pragma once

#include <cstdint>

#include "cuda_runtime_api.h"

using CUresult = int;
constexpr CUresult CUDA_SUCCESS = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;
using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;

enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

// A matrix of 16-bit elements and the lines of a box of 64 elements.
struct CUtensorMap {
  const char* data;
  int64_t cols;
  int64_t rows;
  int64_t stride_bytes;
  int lines;
};

// Refuses what the driver's documentation says that it refuses.
inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank,
                                       void* data, const cuuint64_t* sizes,
                                       const cuuint64_t* strides, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave,
                                       CUtensorMapSwizzle, CUtensorMapL2promotion,
                                       CUtensorMapFloatOOBfill) {
  const bool good = rank == 2 && reinterpret_cast<uintptr_t>(data) % 16 == 0 && sizes[0] >= 1 &&
                    sizes[1] >= 1 && sizes[0] <= (1ull << 32) && sizes[1] <= (1ull << 32) &&
                    strides[0] % 16 == 0 && strides[0] < (1ull << 40) && box[0] * 2 == 128 &&
                    box[1] >= 1 && box[1] <= 256 && steps[0] == 1 && steps[1] == 1;
  *map = CUtensorMap{static_cast<const char*>(data), static_cast<int64_t>(sizes[0]),
                     static_cast<int64_t>(sizes[1]), static_cast<int64_t>(strides[0]),
                     static_cast<int>(box[1])};
  return good ? CUDA_SUCCESS : 1;
}
