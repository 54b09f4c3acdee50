// From sums to results: addends, bias, activation, the output's type. Shared by the products and by
// the pass that adds the splits of one.
#pragma once

#include "activation_math.h"
#include "gemm.h"
#ifdef __CUDACC__
#include "gemm_ptx.cuh"
#else
#include "gemm_ptx_on_host.h"
#endif

namespace mmfast::cuda {

// Four neighbours, moved at once.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T value[4];
};

// `left` of the four exist; with `vectors`, all or none do.
template <typename T>
MMFAST_DEVICE void load_four(const T* from, bool vectors, int left, float (&to)[4]) {
  if (vectors) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[i] = to_wide(four.value[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[i] = i < left ? to_wide(from[i]) : 0.f;
    }
  }
}

template <typename T>
MMFAST_DEVICE void store_four(T* to, bool vectors, int left, const float (&from)[4]) {
  if (vectors) {
    Four<T> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      four.value[i] = round_one<T>(from[i]);
    }
    *reinterpret_cast<Four<T>*>(to) = four;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < left) {
        to[i] = round_one<T>(from[i]);
      }
    }
  }
}

MMFAST_DEVICE int32_t addend_row(const Epilogue& e, int j, int32_t row) {
  const int32_t entry = distinct_row(e.row_dims, e.addend[j].strides, row);
  return e.addend[j].index ? static_cast<int32_t>(e.addend[j].index[entry]) : entry;
}

// Adds four neighbours of a row of addend j.
MMFAST_DEVICE void add_four(const Epilogue& e, int j, int32_t from, int32_t col, float (&x)[4]) {
  const int32_t cols = e.panels[0].cols;
  if (col < cols) {
    float y[4];
    load_four(e.addend[j].data + static_cast<int64_t>(from) * cols + col, e.vectors, cols - col, y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] += y[i];
    }
  }
}

// Bias, the value before the activation, activation: forward alone.
template <typename T>
MMFAST_DEVICE void activate_four(const Epilogue& e, int64_t offset, int32_t col, int left,
                                 float (&x)[4]) {
  if (e.bias) {
    float y[4];
    load_four(static_cast<const T*>(e.bias) + col, e.vectors, left, y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] += y[i];
    }
  }
  if (e.preactivation) {
    store_four(static_cast<T*>(e.preactivation) + offset, e.vectors, left, x);
  }
  if (e.activation != Activation::none) {
    // One copy of the functions is enough; the four take turns, since registers have no index.
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      const float first = activate(e.activation, x[0]);
      x[0] = x[1];
      x[1] = x[2];
      x[2] = x[3];
      x[3] = first;
    }
  }
}

// Writes four neighbours of a row of a panel. `col` is a multiple of 4.
template <typename T, GemmKind kind>
MMFAST_DEVICE void finish_four(const Epilogue& e, int panel_index, int32_t row, int32_t col,
                               float (&x)[4]) {
  const Panel& panel = e.panels[panel_index];
  const int left = panel.cols - col;
  if (left <= 0) {
    return;
  }
  const int64_t offset = row * panel.stride + col;
  if constexpr (kind == GemmKind::forward) {
    activate_four<T>(e, offset, col, left, x);
  }
  if (e.wide_out) {
    store_four(static_cast<float*>(panel.out) + offset, e.vectors, left, x);
  } else {
    store_four(static_cast<T*>(panel.out) + offset, e.vectors, left, x);
  }
}

struct alignas(8) Two {
  float value[2];
};

// Puts a lane's registers of a 16 by 32 fragment where write_fragment finds them.
MMFAST_DEVICE void stage_fragment(float* staging, int lane, const float* registers) {
#pragma unroll
  for (int i = 0; i < kFragmentRegisters; i += 2) {
    float* to = staging + staging_offset(fragment_row(lane, i), fragment_col(lane, i));
    *reinterpret_cast<Two*>(to) = Two{registers[i], registers[i + 1]};
  }
}

// Which row of each addend the rows of a fragment add: lane l knows row l % 16. Backward adds
// nothing.
template <GemmKind kind>
struct AddendRows {
  MMFAST_DEVICE AddendRows(const GemmArgs&, int, int32_t) {}
  MMFAST_DEVICE void add(const GemmArgs&, int, int32_t, float (&)[4]) const {}
};

template <>
struct AddendRows<GemmKind::forward> {
  int32_t rows[kMaxAddends];

  MMFAST_DEVICE AddendRows(const GemmArgs& args, int lane, int32_t first_row) {
    const Epilogue& e = args.epilogue;
    const int32_t m = first_row + (lane & (kFragmentRows - 1));
#pragma unroll
    for (int j = 0; j < kMaxAddends; ++j) {
      if (j < e.addends && !e.partial) {
        rows[j] = addend_row(e, j, m < args.rows ? m : args.rows - 1);
      }
    }
  }

  // By all lanes of a warp.
  MMFAST_DEVICE void add(const GemmArgs& args, int row, int32_t col, float (&x)[4]) const {
#pragma unroll
    for (int j = 0; j < kMaxAddends; ++j) {
      if (j < args.epilogue.addends) {
        add_four(args.epilogue, j, __shfl_sync(0xffffffff, rows[j], row), col, x);
      }
    }
  }
};

// A warp's 16 by 32 sums, in `staging`, to the result or to the partial sums.
template <typename T, GemmKind kind>
MMFAST_DEVICE void write_fragment(const GemmArgs& args, const float* staging, int lane, int panel,
                                  int32_t split, int32_t row, int32_t col,
                                  const AddendRows<kind>& addends) {
  const Epilogue& e = args.epilogue;
#pragma unroll 1
  for (int step = 0; step < kStagedSteps; ++step) {
    const int local = staged_row(lane, step);
    const int32_t m = row + local;
    const int32_t n = col + staged_col(lane);
    float x[4];
    load_four(staging + staging_offset(local, staged_col(lane)), true, 4, x);
    if (!e.partial) {
      addends.add(args, local, n, x);
    }
    if (m >= args.rows) {
      continue;
    }
    if (!e.partial) {
      finish_four<T, kind>(e, panel, m, n, x);
    } else if (n < e.panels[panel].cols) {
      // Panels of the partial sums are padded to multiples of four columns.
      const int64_t line = static_cast<int64_t>(split) * args.rows + m;
      store_four(e.partial + line * e.partial_cols + e.partial_first[panel] + n, true, 4, x);
    }
  }
}

}  // namespace mmfast::cuda
