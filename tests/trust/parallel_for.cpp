// libtorch's parallel loops on threads that ThreadSanitizer sees; loaded before libtorch's own.
//
// libtorch's run on OpenMP, whose runtime is not compiled for the sanitizer: it would not learn
// that a loop begins after what came before it and ends before what follows, and would call every
// result a race. Starting and joining a std::thread it does know. Ranges are divided whatever the
// grain: correct kernels must allow any division, and small problems then show races too.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kThreads = 4;
thread_local bool inside = false;  // a loop within a loop runs on the thread that meets it

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int32_t torch_get_num_threads(uint32_t* threads) {
  *threads = inside ? 1 : kThreads;
  return 0;
}

__attribute__((visibility("default"))) int32_t torch_parallel_for(
    int64_t begin, int64_t end, int64_t /*grain*/, void (*body)(int64_t, int64_t, void*),
    void* context) {
  const int64_t count = end - begin;
  const int64_t parts = inside ? 1 : std::min(kThreads, count);
  if (parts <= 1) {
    if (count > 0) {
      body(begin, end, context);
    }
    return 0;
  }
  std::vector<std::exception_ptr> errors(parts);
  std::vector<std::thread> threads;
  for (int64_t part = 0; part < parts; ++part) {
    threads.emplace_back([=, &errors] {
      inside = true;
      try {
        body(begin + count * part / parts, begin + count * (part + 1) / parts, context);
      } catch (...) {
        errors[part] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const std::exception_ptr& error : errors) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
  return 0;
}

}  // extern "C"
