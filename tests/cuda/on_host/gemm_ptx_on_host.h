// csrc/cuda/gemm_ptx.cuh acted out: what the instructions do, from the PTX ISA, so that the kernels
// made of them run on the host. Asynchronous instructions act at once; TMA and mbarrier keep count.
#pragma once

#include <map>
#include <set>

#include "csrc/cuda/gemm_layout.h"
#include "csrc/cuda/kernel.cuh"
#include "cuda.h"

#define MMFAST_SM90A 1
#define MMFAST_GEMM_SHARED(name) \
  char* const name = reinterpret_cast<char*>(mmfast::cuda::on_host::shared_memory)

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  using namespace mmfast::cuda::on_host;
  if (mask != 0xffffffffu) {
    fail("a shuffle of less than a warp");
  }
  std::memcpy(&exchanged[threadIdx.x], &value, sizeof(T));
  __syncwarp();
  T other;
  std::memcpy(&other, &exchanged[(threadIdx.x & ~31u) + static_cast<unsigned>(lane)], sizeof(T));
  __syncwarp();
  return other;
}

namespace mmfast::cuda {

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - on_host::shared_memory);
}

// --- mbarrier
// -------------------------------------------------------------------------------------

namespace on_host {

struct Barrier {
  int arrivals;   // of a phase
  int pending;    // arrivals that the phase still waits for
  int bytes = 0;  // that TMA still owes the phase; less than none if it came first
  int phase = 0;  // how many are complete
};
inline std::map<uint32_t, Barrier> barriers;

inline Barrier& barrier_at(uint32_t address) {
  const auto found = barriers.find(address);
  if (address % 8 != 0 || found == barriers.end()) {
    fail("a barrier that was not made");
  }
  return found->second;
}

inline void complete_if_done(Barrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.pending = barrier.arrivals;
    ++barrier.phase;
  }
}

}  // namespace on_host

inline void barrier_init(uint32_t barrier, int arrivals) {
  on_host::barriers[barrier] = on_host::Barrier{arrivals, arrivals};
}
inline void barriers_made() {}

inline void barrier_arrive_expect(uint32_t address, int bytes) {
  on_host::Barrier& barrier = on_host::barrier_at(address);
  if (barrier.pending == 0) {
    on_host::fail("more arrivals than a phase of the barrier has");
  }
  barrier.bytes += bytes;
  --barrier.pending;
  on_host::complete_if_done(barrier);
}
inline void barrier_arrive(uint32_t address) { barrier_arrive_expect(address, 0); }

// The phase of this parity is complete if the current one has the other parity.
inline void barrier_wait(uint32_t address, uint32_t parity) {
  const on_host::Barrier& barrier = on_host::barrier_at(address);
  while (static_cast<uint32_t>(barrier.phase & 1) == parity) {
    on_host::wait(on_host::Waits::again);
  }
}

// --- TMA
// ------------------------------------------------------------------------------------------

// The box's lines of 64 elements lie one after another; bits 4..6 of each address are xored with
// bits 7..9. Outside the matrix there are zeros.
inline void tma_load(uint32_t to, const CUtensorMap* map, uint32_t barrier_address, int32_t element,
                     int32_t line) {
  if (to % 1024 != 0) {
    on_host::fail("a box that does not start where the swizzle's pattern does");
  }
  for (int i = 0; i < map->lines; ++i) {
    for (int j = 0; j < 64; ++j) {
      const int64_t row = static_cast<int64_t>(line) + i;
      const int64_t col = static_cast<int64_t>(element) + j;
      uint16_t value = 0;
      if (row >= 0 && row < map->rows && col >= 0 && col < map->cols) {
        std::memcpy(&value, map->data + row * map->stride_bytes + col * 2, 2);
      }
      uint32_t address = to + static_cast<uint32_t>(i * 128 + j * 2);
      address ^= ((address >> 7) & 7) << 4;
      std::memcpy(on_host::shared_memory + address, &value, 2);
    }
  }
  on_host::Barrier& barrier = on_host::barrier_at(barrier_address);
  barrier.bytes -= map->lines * 128;
  on_host::complete_if_done(barrier);
}

// --- wgmma
// ----------------------------------------------------------------------------------------

namespace on_host {

template <typename T>
float value_at(uint32_t address) {
  T value;
  std::memcpy(&value, shared_memory + address, sizeof(T));
  return to_wide(value);
}

// The address of (row of M or N, k) under a descriptor, from the canonical layouts of the 128-byte
// swizzle: K-major ((8, m), (8, 2)) : ((64, stride), (1, 8)), MN-major ((8, 8, m), (8, k)) :
// ((1, 8, leading), (64, stride)), in elements, then swizzled.
inline uint32_t wgmma_address(uint64_t descriptor, bool mn_major, int row, int k) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4;
  const uint32_t leading = static_cast<uint32_t>((descriptor >> 16) & 0x3FFF) << 4;
  const uint32_t stride = static_cast<uint32_t>((descriptor >> 32) & 0x3FFF) << 4;
  if (descriptor >> 62 != 1 || ((descriptor >> 49) & 7) != 0) {
    fail("a descriptor of another swizzle");
  }
  const uint32_t offset =
      static_cast<uint32_t>(mn_major ? row % 64 * 2 + row / 64 * static_cast<int>(leading) +
                                           k % 8 * 128 + k / 8 * static_cast<int>(stride)
                                     : row % 8 * 128 + row / 8 * static_cast<int>(stride) + k * 2);
  const uint32_t address = start + offset;
  return address ^ (((address >> 7) & 7) << 4);
}

}  // namespace on_host

inline void wgmma_fence() {}
inline void wgmma_commit() {}
// The threads of a warp multiply together: when one is done, all are.
template <int pending>
void wgmma_wait() {
  __syncwarp();
}
template <int count>
void pin(float (&)[count]) {}

// A thread's registers of D; which elements they are is written here anew.
template <typename T, int cols, Major major_a, Major major_b>
struct Wgmma {
  static void run(float (&d)[cols / 2], uint64_t a, uint64_t b, int scale_d) {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    float rows[2][16];
    for (int half = 0; half < 2; ++half) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + half * 8;
      for (int k = 0; k < 16; ++k) {
        rows[half][k] =
            on_host::value_at<T>(on_host::wgmma_address(a, major_a == Major::mn, row, k));
      }
    }
    for (int n = 0; n < cols / 4; ++n) {  // the columns that a thread holds, each in two rows
      const int col = n / 2 * 8 + thread % 4 * 2 + n % 2;
      float sums[2] = {0, 0};
      for (int k = 0; k < 16; ++k) {
        const float value =
            on_host::value_at<T>(on_host::wgmma_address(b, major_b == Major::mn, col, k));
        sums[0] += rows[0][k] * value;
        sums[1] += rows[1][k] * value;
      }
      for (int half = 0; half < 2; ++half) {
        float& sum = d[n / 2 * 4 + half * 2 + n % 2];
        sum = (scale_d ? sum : 0.f) + sums[half];
      }
    }
  }
};

// --- cp.async, ldmatrix, mma
// ----------------------------------------------------------------------

inline void copy_async(uint32_t to, const void* from, int bytes) {
  if (to % 16 != 0 || (bytes > 0 && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    on_host::fail("a copy that is not aligned to 16 bytes");
  }
  std::memset(on_host::shared_memory + to, 0, 16);
  std::memcpy(on_host::shared_memory + to, from, static_cast<size_t>(bytes));
}
template <int unit>
void copy_async_narrow(uint32_t to, const char* from, int bytes) {
  if (bytes > 0 && reinterpret_cast<uintptr_t>(from) % unit != 0) {
    on_host::fail("a copy that is not aligned to its unit");
  }
  std::memset(on_host::shared_memory + to, 0, 16);
  std::memcpy(on_host::shared_memory + to, from, static_cast<size_t>(bytes));
}
inline void copies_commit() {}
template <int pending>
void copies_wait() {}
inline void store_shared(uint32_t to, const uint32_t (&words)[4]) {
  std::memcpy(on_host::shared_memory + to, words, 16);
}

namespace on_host {
inline uint32_t registers[1024][6];
}

// Lane l names row l % 8 of matrix l / 8; register i of lane l gets elements 2 (l % 4) and the next
// of row l / 4 of matrix i, of the matrix's transpose with .trans.
template <Major major>
void load_matrices(uint32_t from, uint32_t (&to)[4]) {
  if (from % 16 != 0) {
    on_host::fail("a row of a matrix that is not aligned to 16 bytes");
  }
  const unsigned warp = threadIdx.x & ~31u;
  const int lane = static_cast<int>(threadIdx.x & 31);
  on_host::registers[threadIdx.x][0] = from;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int row = major == Major::k ? lane / 4 : lane % 4 * 2 + j;
      const int col = major == Major::k ? lane % 4 * 2 + j : lane / 4;
      const uint32_t line = on_host::registers[warp + static_cast<unsigned>(i * 8 + row)][0];
      std::memcpy(&pair[j], on_host::shared_memory + line + col * 2, 2);
    }
    std::memcpy(&to[i], pair, 4);
  }
  __syncwarp();
}

// A's registers are (row g, k 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), B's (k 2t, column g),
// (2t + 8, g), D's (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1), with g = lane / 4, t = lane
// % 4.
template <typename T>
void multiply_add(T, float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const unsigned warp = threadIdx.x & ~31u;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  std::memcpy(on_host::registers[threadIdx.x], mine, sizeof(mine));
  __syncwarp();
  const auto half = [&](int of_lane, int i, int j) {
    T pair[2];
    std::memcpy(pair, &on_host::registers[warp + static_cast<unsigned>(of_lane)][i], 4);
    return to_wide(pair[j]);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int col = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const int t = k % 8 / 2;
      sum +=
          half(row % 8 * 4 + t, row / 8 + k / 8 * 2, k % 2) * half(col * 4 + t, 4 + k / 8, k % 2);
    }
    d[i] += sum;
  }
  __syncwarp();
}

namespace on_host {
inline std::set<void*> launched;  // the kernels that have run
}

template <typename Args>
cudaError_t launch_blocks(void (*kernel)(const Args), int32_t blocks, int threads,
                          int32_t shared_bytes, cudaStream_t, const Args& args) {
  constexpr int kMostShared = 227 * 1024;
  on_host::barriers.clear();
  on_host::launched.insert(reinterpret_cast<void*>(kernel));
  on_host::run(kernel, static_cast<unsigned>(blocks), threads, shared_bytes, args,
               static_cast<unsigned>(blocks), kMostShared);
  return cudaSuccess;
}

}  // namespace mmfast::cuda
