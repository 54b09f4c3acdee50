// Which instruction set the CPU kernels use.
//
// A wheel must run on every x86-64 machine and still be fast on the newest one, so kernels with
// inner loops of their own are compiled once per instruction set (cpu/foreach_isa.h) and chosen
// here, when the library is loaded. Tests may force a lower one.
#pragma once

#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mmfast {

// amx uses the kernels of avx512_bf16; it says that the library multiplies bfloat16 in tiles, which
// vector kernels do not reach.
enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };

// The instruction set in use: the widest one found, or the one forced.
Isa current_isa();

// Forces an instruction set by name; an empty name returns to the widest one found.
// Throws std::invalid_argument for a name that this machine or build does not have.
void force_isa(const std::string& name);

// Those that both this build and this machine have, narrowest first.
std::vector<std::string> available_isas();

const char* isa_name(Isa isa);

}  // namespace mmfast

// Picks the copy of a kernel that the current instruction set asks for:
//   MMFAST_ISA_CALL(finish<float>, args, begin, end)
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define MMFAST_HAVE_X86_ISAS 1
#define MMFAST_ISA_CALL(kernel, ...)          \
  do {                                        \
    switch (::mmfast::current_isa()) {        \
      case ::mmfast::Isa::amx:                \
      case ::mmfast::Isa::avx512_bf16:        \
        isa_avx512_bf16::kernel(__VA_ARGS__); \
        break;                                \
      case ::mmfast::Isa::avx512:             \
        isa_avx512::kernel(__VA_ARGS__);      \
        break;                                \
      case ::mmfast::Isa::avx2:               \
        isa_avx2::kernel(__VA_ARGS__);        \
        break;                                \
      default:                                \
        isa_baseline::kernel(__VA_ARGS__);    \
    }                                         \
  } while (false)
#else
#define MMFAST_HAVE_X86_ISAS 0
#define MMFAST_ISA_CALL(kernel, ...) isa_baseline::kernel(__VA_ARGS__)
#endif
