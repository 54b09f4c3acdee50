// The kernels behind few_rows.h; included as gemm_kernels.h is, after it.

#if MMFAST_ISA_LEVEL >= 2

// Sums of columns [0, cols) of the result, one column after another, become rows of `tile`.
MMFAST_INLINE void transpose_sums(const float* sums, int64_t rows, int64_t cols, float* tile) {
  for (int64_t n = 0; n < cols; n += 16) {
    for (int64_t m = 0; m < rows; m += 16) {
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i) {
        r[i] = _mm512_loadu_si512(sums + (n + i) * kFewRows + m);
      }
      transpose_words(r);
      for (int64_t i = 0; i < 16; ++i) {
        _mm512_storeu_si512(tile + (m + i) * kUnitCols + n, r[i]);
      }
    }
  }
}

// Units begin..end, of args.unit_cols columns of the result each.
template <typename T, typename Out>
void few_rows(const FewRowsArgs& args, int64_t begin, int64_t end) {
  alignas(64) float sums[kUnitCols * kFewRows] = {};
  alignas(64) float tile[kFewRows * kUnitCols];
  GemmSegment inline_segments[8];
  GemmSegment* here =
      args.segment_count <= 8 ? inline_segments : new GemmSegment[args.segment_count];
  const int64_t rows = args.epilogue.rows;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * args.unit_cols;
    const int64_t cols =
        args.epilogue.cols - first < args.unit_cols ? args.epilogue.cols - first : args.unit_cols;
    for (int64_t n = 0; n < cols; n += kTileRows) {
      const int64_t count = cols - n < kTileRows ? cols - n : kTileRows;
      for (int64_t s = 0; s < args.segment_count; ++s) {
        here[s] = args.segments[s];
        here[s].a += (first + n) * here[s].row_stride;
      }
      for (int64_t m = 0; m < rows; m += kPanelCols) {
        multiply_rows<T>(count, rows - m, here, args.segment_count,
                         args.panels + m / kPanelCols * args.panel_bytes, sums + n * kFewRows + m,
                         kFewRows, false);
      }
    }
    transpose_sums(sums, rows, cols, tile);
    finish_tile<T, Out>(args.epilogue, tile, kUnitCols, 0, rows, first, cols,
                        args.out + first * sizeof(Out), args.epilogue.cols * sizeof(Out));
  }
  if (here != inline_segments) {
    delete[] here;
  }
}

// Units begin..end, of kUnitPanels panels of the weight's columns each; `sums` holds as many panels
// of kFewRows rows.
template <typename T, typename Out>
void few_rows_input_gradient(const FewRowsInputArgs& args, int64_t begin, int64_t end,
                             float* sums) {
  constexpr int64_t kRowsTogether = 64;  // of the weight: more would lie in too many pages
  alignas(64) char packed[kRowsTogether * 4 * kPanelCols];
  const int64_t grad_stride = args.cols * sizeof(T);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * kUnitPanels;
    const int64_t last =
        first + kUnitPanels < args.panel_count ? first + kUnitPanels : args.panel_count;
    for (int64_t n = 0; n < args.cols; n += kRowsTogether) {
      const int64_t features = args.cols - n < kRowsTogether ? args.cols - n : kRowsTogether;
      const bool odd = sizeof(T) == 2 && features % 2 == 1;
      const int64_t steps = features * sizeof(T) / 4;
      for (int64_t p = first; p < last; ++p) {
        const GemmPanel& panel = args.panels[p];
        const char* weight = panel.b + n * args.weight_stride;
        pack_straight<T>(PackArgs{weight, args.weight_stride, features, panel.cols, packed});
        prefetch_columns<_MM_HINT_T0>(weight + kPanelCols * sizeof(T), args.weight_stride, features,
                                      kPanelCols * sizeof(T));
        for (int64_t m = 0; m < args.rows; m += kTileRows) {
          const int64_t count = args.rows - m < kTileRows ? args.rows - m : kTileRows;
          const GemmSegment left{args.grad + m * grad_stride + n * sizeof(T), grad_stride, 4, steps,
                                 odd};
          multiply_rows<T>(count, panel.cols, &left, 1, packed,
                           sums + ((p - first) * kFewRows + m) * kPanelCols, kPanelCols, n > 0);
        }
      }
    }
    for (int64_t p = first; p < last; ++p) {
      const GemmPanel& panel = args.panels[p];
      for (int64_t m = 0; m < args.rows; ++m) {
        store_panel_row<Out>(panel.out + m * panel.out_stride,
                             sums + ((p - first) * kFewRows + m) * kPanelCols, panel.cols);
      }
    }
  }
}

// Units begin..end, of kTileRows rows of the weight's gradient each.
template <typename T, typename Out>
void few_rows_weight_gradient(const FewRowsWeightArgs& args, int64_t begin, int64_t end) {
  alignas(64) float tile[kTileRows * kPanelCols];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit * kTileRows;
    const int64_t count = args.cols - n < kTileRows ? args.cols - n : kTileRows;
    const GemmSegment left{args.grad + 4 * n, 4, 4 * args.cols, args.steps, false};
    for (int64_t p = 0; p < args.panel_count; ++p) {
      const GemmPanel& panel = args.panels[p];
      char* out = panel.out + n * panel.out_stride;
      if (sizeof(Out) == 4 && panel.cols == kPanelCols) {
        multiply_rows<T>(count, panel.cols, &left, 1, panel.b, reinterpret_cast<float*>(out),
                         panel.out_stride / 4, false);
        continue;
      }
      multiply_rows<T>(count, panel.cols, &left, 1, panel.b, tile, kPanelCols, false);
      for (int64_t i = 0; i < count; ++i) {
        store_panel_row<Out>(out + i * panel.out_stride, tile + i * kPanelCols, panel.cols);
      }
    }
  }
}

#endif  // MMFAST_ISA_LEVEL
