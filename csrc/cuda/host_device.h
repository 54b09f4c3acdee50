// Functions for the GPU that also run on the host, where tests can call them.
#pragma once

#ifdef __CUDACC__
#define MMFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MMFAST_HOST_DEVICE inline
#endif
