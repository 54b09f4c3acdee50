// Operators in a forked child.
//
// libtorch's parallel loops run on GNU OpenMP, which keeps a team of threads for every thread that
// has run one. A fork copies the calling thread alone: its team is gone in the child, where the
// next loop, of mmfast or of torch, would wait for it forever. So the team is sent home before the
// fork, and each of the two processes calls a new one when it needs it.
#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>

namespace mmfast {
namespace {

using PauseResources = int(int kind);  // omp_pause_resource_all of OpenMP 5
constexpr int kPauseHard = 2;          // omp_pause_hard

// Of the OpenMP that libtorch was linked with. LLVM's and Intel's know forks and need no help;
// they have GNU's functions too.
PauseResources* gnu_pause() {
  const bool gnu = dlsym(RTLD_DEFAULT, "GOMP_parallel") && !dlsym(RTLD_DEFAULT, "__kmpc_fork_call");
  return gnu ? reinterpret_cast<PauseResources*>(dlsym(RTLD_DEFAULT, "omp_pause_resource_all"))
             : nullptr;
}

PauseResources* const pause_resources = gnu_pause();

// Within a parallel loop it refuses and changes nothing.
void before_fork() { pause_resources(kPauseHard); }

[[maybe_unused]] const int registered =
    pause_resources ? pthread_atfork(before_fork, nullptr, nullptr) : 0;

}  // namespace
}  // namespace mmfast
#endif
