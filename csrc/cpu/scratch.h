// Memory for intermediate blocks: one buffer per calling thread, kept and reused, since fresh pages
// cost more than the arithmetic done in them. Callers keep what they ask for within kScratchLimit.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace mmfast {

constexpr int64_t kScratchLimit = 4 << 20;  // bytes

inline void* scratch(int64_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local int64_t size = 0;
  if (bytes > size) {
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.reset();
    size = 0;
    buffer.reset(std::aligned_alloc(64, rounded));
    if (!buffer) {
      throw std::bad_alloc();
    }
    size = rounded;
  }
  return buffer.get();
}

}  // namespace mmfast
