// Includes MMFAST_ISA_SOURCE once per instruction set, each time in a namespace of its own.
// No include guard: one .cpp file may use it for one kernel source.
//
// The target is switched by pragma, after every header has been read: with a compiler flag for the
// whole file, inline functions of the standard library would be compiled for the wide instruction
// set too, and the linker could pick those for everybody.
#ifndef MMFAST_ISA_SOURCE
#error "define MMFAST_ISA_SOURCE before including foreach_isa.h"
#endif

#include "isa.h"

namespace mmfast {
namespace {

#define MMFAST_ISA_LEVEL 0
namespace isa_baseline {
#include MMFAST_ISA_SOURCE
}
#undef MMFAST_ISA_LEVEL

#if MMFAST_HAVE_X86_ISAS

// clang-format off
#define MMFAST_ISA_LEVEL 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace isa_avx2 {
#include MMFAST_ISA_SOURCE
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef MMFAST_ISA_LEVEL

#define MMFAST_ISA_LEVEL 2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
namespace isa_avx512 {
#include MMFAST_ISA_SOURCE
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef MMFAST_ISA_LEVEL

#define MMFAST_ISA_LEVEL 3
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
#endif
namespace isa_avx512_bf16 {
#include MMFAST_ISA_SOURCE
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef MMFAST_ISA_LEVEL

// clang-format on
#endif  // MMFAST_HAVE_X86_ISAS

}  // namespace
}  // namespace mmfast
