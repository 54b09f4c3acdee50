// Registers the operators' CUDA entries as mmfast_on_host, for tensors on the CPU.
#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) \
  _STABLE_TORCH_LIBRARY_IMPL(mmfast_on_host, CPU, m, STABLE_UID)
