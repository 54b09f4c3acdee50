// Runs CUDA kernels on the host, so that their arithmetic can be tested without a GPU.
//
// A block's threads are fibers of one thread. They are switched at barriers and shuffles only,
// which must be reached as on a GPU: by all threads of the block, or all 32 of a warp. Anything
// else would hang there, and ends the process here. Shared memory holds NaNs until it is written.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;

namespace mmfast::cuda::on_host {

inline unsigned char* shared_memory = nullptr;

enum class Waits { nothing, again, warp, block, done };  // again: for what another thread does

struct Fiber {
  ucontext_t context;
  std::vector<unsigned char> stack = std::vector<unsigned char>(64 * 1024);
  Waits waits;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline uint64_t exchanged[1024];

inline void fail(const char* what) {
  std::fprintf(stderr, "a kernel on the host: %s (block %u)\n", what, blockIdx.x);
  std::abort();
}

inline void wait(Waits what) {
  Fiber& fiber = fibers[threadIdx.x];
  fiber.waits = what;
  swapcontext(&fiber.context, &scheduler);
}

inline void run_fiber() {
  body();
  fibers[threadIdx.x].waits = Waits::done;
  swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

// Lets threads first .. end go on if all of them wait for `what`; whether any of them does.
inline bool release(unsigned first, unsigned end, Waits what) {
  unsigned waiting = 0;
  for (unsigned t = first; t < end; ++t) {
    waiting += fibers[t].waits == what;
  }
  if (waiting == end - first) {
    for (unsigned t = first; t < end; ++t) {
      fibers[t].waits = Waits::nothing;
    }
  }
  return waiting == end - first;
}

// Whether a thread polls for something; ends the process if all have polled in vain for long.
inline bool someone_spins(unsigned threads) {
  constexpr int kLong = 1 << 20;
  static int rounds = 0;
  unsigned spinning = 0;
  unsigned moving = 0;
  for (unsigned t = 0; t < threads; ++t) {
    spinning += fibers[t].waits == Waits::again;
    moving += fibers[t].waits == Waits::nothing;
  }
  rounds = spinning > 0 && moving == 0 ? rounds + 1 : 0;
  if (rounds == kLong) {
    fail("threads wait for something that does not happen");
  }
  return spinning > 0;
}

inline void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.waits = Waits::nothing;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (bool going = true; going;) {
    unsigned done = 0;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].waits <= Waits::again) {
        fibers[t].waits = Waits::nothing;
        threadIdx.x = t;
        swapcontext(&scheduler, &fibers[t].context);
      }
      done += fibers[t].waits == Waits::done;
    }
    if (done == threads) {
      return;
    }
    going = release(0, threads, Waits::block) || someone_spins(threads);
    for (unsigned t = 0; t < threads; t += 32) {
      going = release(t, t + 32 < threads ? t + 32 : threads, Waits::warp) || going;
    }
  }
  fail("not all threads reach the same barrier");
}

template <typename Args>
void run(void (*kernel)(const Args), unsigned blocks, int threads, int64_t shared_bytes,
         const Args& args, unsigned most_blocks = 5, int64_t most_shared = 48 * 1024) {
  constexpr int64_t kGuard = 4096;
  if (shared_bytes > most_shared) {
    fail("more shared memory than a block has");
  }
  std::vector<unsigned char> memory(shared_bytes + kGuard);
  shared_memory = memory.data();
  fibers.resize(threads);
  body = [&] { kernel(args); };
  gridDim.x = blocks < most_blocks ? blocks : most_blocks;  // fewer: they have to take turns
  for (unsigned b = 0; b < gridDim.x; ++b) {
    blockIdx.x = b;
    std::memset(memory.data(), 0xff, memory.size());
    run_block(threads);
    for (int64_t i = shared_bytes; i < shared_bytes + kGuard; ++i) {
      if (memory[i] != 0xff) {
        fail("it writes beyond its shared memory");
      }
    }
  }
}

}  // namespace mmfast::cuda::on_host

inline void __syncthreads() { mmfast::cuda::on_host::wait(mmfast::cuda::on_host::Waits::block); }
inline void __syncwarp() { mmfast::cuda::on_host::wait(mmfast::cuda::on_host::Waits::warp); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  using namespace mmfast::cuda::on_host;
  if (mask != 0xffffffffu) {
    fail("a shuffle of less than a warp");
  }
  std::memcpy(&exchanged[threadIdx.x], &value, sizeof(T));
  __syncwarp();
  T other;
  std::memcpy(&other, &exchanged[threadIdx.x ^ static_cast<unsigned>(lanes)], sizeof(T));
  __syncwarp();
  return other;
}
