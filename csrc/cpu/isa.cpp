#include "isa.h"

#include <atomic>
#include <stdexcept>

#if MMFAST_HAVE_X86_ISAS
#include <cpuid.h>
#endif

namespace mmfast {
namespace {

#if MMFAST_HAVE_X86_ISAS
bool has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
}
#endif

Isa widest() {
#if MMFAST_HAVE_X86_ISAS
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return Isa::baseline;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return Isa::avx2;
  }
  if (!__builtin_cpu_supports("avx512bf16")) {
    return Isa::avx512;
  }
  return has_amx_bf16() ? Isa::amx : Isa::avx512_bf16;
#else
  return Isa::baseline;
#endif
}

const Isa found = widest();
std::atomic<Isa> used{found};

}  // namespace

Isa current_isa() { return used.load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i <= static_cast<int>(found); ++i) {
    names.emplace_back(isa_name(static_cast<Isa>(i)));
  }
  return names;
}

void force_isa(const std::string& name) {
  if (name.empty()) {
    used.store(found);
    return;
  }
  std::string known;
  for (int i = 0; i <= static_cast<int>(found); ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (name == isa_name(isa)) {
      used.store(isa);
      return;
    }
    known += (i ? ", " : "") + std::string(isa_name(isa));
  }
  throw std::invalid_argument("instruction set '" + name +
                              "' is not available here; available: " + known);
}

}  // namespace mmfast
