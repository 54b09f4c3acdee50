// The kernels behind gemm.h. Included once per instruction set, inside a namespace; see
// foreach_isa.h. Only the AVX-512 copies hold anything: elsewhere the library's products are used.

#if MMFAST_ISA_LEVEL >= 2

typedef float Vector __attribute__((vector_size(64), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4)));

// One multiply-add: 16 columns, one feature in float, two in bfloat16.
template <typename T>
MMFAST_INLINE Vector multiply_add(Vector sum, uint32_t a, Words b) {
#if MMFAST_ISA_LEVEL >= 3
  if constexpr (sizeof(T) == 2) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)),
                                    (__m512bh)b);
  }
#endif
  return sum + float_from_bits(a) * (Vector)b;
}

MMFAST_INLINE uint32_t load_word(const char* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, 4);
  return word;
}

MMFAST_INLINE uint32_t load_half_word(const char* p) {
  uint16_t half;
  __builtin_memcpy(&half, p, 2);
  return half;
}

// After this many steps a sum moves from registers to memory: one running sum over thousands of
// features would lose digits that the library's blocked sums keep.
constexpr int64_t kSumSteps = 128;

// Unrolled by hand, as every loop over `sum` must be, or it would not stay in registers.
template <int rows, int vectors>
MMFAST_INLINE void clear(Vector (&sum)[rows][vectors]) {
#pragma GCC unroll 14
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      sum[i][v] = (Vector)_mm512_setzero_ps();
    }
  }
}

template <int rows, int vectors>
MMFAST_INLINE void flush(Vector (&sum)[rows][vectors], float* c, int64_t ldc, bool add) {
  if (add) {
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        sum[i][v] += *(const Vector*)(c + i * ldc + 16 * v);
      }
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      *(Vector*)(c + i * ldc + 16 * v) = sum[i][v];
    }
  }
}

// Asks for the rows of a narrow input that the next tile will read: with many inputs there are more
// streams of memory than the processor follows.
template <int rows>
MMFAST_INLINE void prefetch_rows(const GemmSegment& segment, const char* a) {
  constexpr int64_t kNarrowBytes = 256;
  const int64_t bytes = 4 * segment.steps;
  if (segment.step_stride == 4 && bytes <= kNarrowBytes) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t byte = 0; byte < bytes; byte += 64) {
        _mm_prefetch(a + i * segment.row_stride + byte, _MM_HINT_T1);
      }
    }
  }
}

// c = (or, with `add`, c +=) the product of `rows` rows of the segments and 16 * vectors columns of
// b, whose steps are b_stride bytes apart.
template <typename T, int rows, int vectors>
void multiply_tile(const GemmSegment* segments, int64_t count, const char* b, float* c, int64_t ldc,
                   bool add) {
  Vector sum[rows][vectors];
  clear(sum);
  int64_t left_to_sum = kSumSteps;
  for (int64_t s = 0; s < count; ++s) {
    const char* a = segments[s].a;
    const int64_t row_stride = segments[s].row_stride;
    const int64_t step_stride = segments[s].step_stride;
    prefetch_rows<rows>(segments[s], a + rows * row_stride);
    for (int64_t left_in_segment = segments[s].steps; left_in_segment > 0;) {
      if (left_to_sum == 0) {
        flush(sum, c, ldc, add);
        clear(sum);
        add = true;
        left_to_sum = kSumSteps;
      }
      const int64_t steps = left_in_segment < left_to_sum ? left_in_segment : left_to_sum;
      left_in_segment -= steps;
      left_to_sum -= steps;
      for (int64_t step = 0; step < steps; ++step) {
        Words right[vectors];
        for (int v = 0; v < vectors; ++v) {
          right[v] = *(const Words*)(b + 64 * v);
        }
#pragma GCC unroll 14
        for (int i = 0; i < rows; ++i) {
          const uint32_t left = load_word(a + i * row_stride);
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) {
            sum[i][v] = multiply_add<T>(sum[i][v], left, right[v]);
          }
        }
        a += step_stride;
        b += 4 * kPanelCols;
      }
    }
    if (segments[s].odd) {
#pragma GCC unroll 14
      for (int i = 0; i < rows; ++i) {
        const uint32_t left = load_half_word(a + i * row_stride);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          sum[i][v] = multiply_add<T>(sum[i][v], left, *(const Words*)(b + 64 * v));
        }
      }
      b += 4 * kPanelCols;
    }
  }
  flush(sum, c, ldc, add);
}

template <typename T, int rows = kTileRows>
MMFAST_INLINE void multiply_rows(int64_t count_rows, int64_t cols, const GemmSegment* segments,
                                 int64_t count, const char* b, float* c, int64_t ldc, bool add) {
  if constexpr (rows > 0) {
    if (count_rows == rows) {
      if (cols > 16) {
        multiply_tile<T, rows, 2>(segments, count, b, c, ldc, add);
      } else {
        multiply_tile<T, rows, 1>(segments, count, b, c, ldc, add);
      }
    } else {
      multiply_rows<T, rows - 1>(count_rows, cols, segments, count, b, c, ldc, add);
    }
  }
}

// A row of a tile, rounded. Unlike store_tile, bfloat16 goes by the processor's own conversion,
// which takes subnormal numbers for zero, as its products do.
template <typename Out>
MMFAST_INLINE void store_panel_row(char* to, const float* from, int64_t n) {
#if MMFAST_ISA_LEVEL >= 3
  if constexpr (sizeof(Out) == 2) {
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) {
      _mm256_storeu_si256((__m256i*)(to + 2 * j),
                          (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + j)));
    }
    if (j < n) {  // masked stores take some processors long
      _mm256_mask_storeu_epi16(to + 2 * j, (1u << (n - j)) - 1,
                               (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + j)));
    }
    return;
  }
#endif
  store_tile(reinterpret_cast<Out*>(to), from, n);
}

// The epilogue of rows first_row .. first_row + rows of the result, columns col .. col + cols,
// whose sums stand in `tile`; `out` is where the first of them goes.
template <typename T, typename Out>
MMFAST_INLINE void finish_tile(const GemmArgs& args, float* tile, int64_t tile_stride,
                               int64_t first_row, int64_t rows, int64_t col, int64_t cols,
                               char* out, int64_t out_stride) {
  if (args.bias) {
    for (int64_t i = 0; i < rows; ++i) {
      add_tile(tile + i * tile_stride, static_cast<const T*>(args.bias) + col, cols);
    }
  }
  if (args.addend_rows.sources) {
    RowCursor cursor(args.addend_rows, first_row);
    for (int64_t i = 0; i < rows; ++i, cursor.next()) {
      for (int64_t s = 0; s < args.addend_rows.sources; ++s) {
        add_tile(tile + i * tile_stride,
                 static_cast<const float*>(args.addends[s]) + cursor.at(s) * args.cols + col, cols);
      }
    }
  }
  if (args.preactivation) {
    for (int64_t i = 0; i < rows; ++i) {
      store_tile(static_cast<Out*>(args.preactivation) + (first_row + i) * args.cols + col,
                 tile + i * tile_stride, cols);
    }
  }
  if (cols == tile_stride) {
    MMFAST_EACH_ACTIVATION(args.activation, activate_tile, tile, rows * tile_stride)
  } else {  // beside what is wanted a tile may hold anything
    for (int64_t i = 0; i < rows; ++i) {
      MMFAST_EACH_ACTIVATION(args.activation, activate_tile, tile + i * tile_stride, cols)
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    store_panel_row<Out>(out + i * out_stride, tile + i * tile_stride, cols);
  }
}

// Asks for what the epilogue will add to the tile that starts at `first`: rows here and there.
MMFAST_INLINE void prefetch_addends(const GemmArgs& args, int64_t first, int64_t last_row) {
  constexpr int64_t kMost = 512;  // bytes of a row; the processor foresees the rest
  const int64_t bytes = 4 * args.cols < kMost ? 4 * args.cols : kMost;
  if (args.addend_rows.sources == 0 || first >= last_row) {
    return;
  }
  const int64_t last = first + kTileRows < last_row ? first + kTileRows : last_row;
  RowCursor cursor(args.addend_rows, first);
  for (int64_t m = first; m < last; ++m, cursor.next()) {
    for (int64_t s = 0; s < args.addend_rows.sources; ++s) {
      const char* row = static_cast<const char*>(args.addends[s]) + cursor.at(s) * args.cols * 4;
      for (int64_t byte = 0; byte < bytes; byte += 64) {
        __builtin_prefetch(row + byte);
      }
    }
  }
}

// Where the sums are short, waiting for the memory they go to takes longer than forming them.
constexpr int64_t kTilesAhead = 4;

// Units of work begin..end; a unit is a block of rows by a group of panels.
template <typename T, typename Out>
void gemm(const GemmArgs& args, int64_t begin, int64_t end) {
  alignas(64) float tile[kTileRows * kPanelCols] = {};
  GemmSegment inline_segments[8];
  GemmSegment* here =
      args.segment_count <= 8 ? inline_segments : new GemmSegment[args.segment_count];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit % args.panel_groups;
    const int64_t first_row = unit / args.panel_groups * args.block_rows;
    const int64_t last_row =
        first_row + args.block_rows < args.rows ? first_row + args.block_rows : args.rows;
    const int64_t first_panel = args.panel_count * group / args.panel_groups;
    const int64_t last_panel = args.panel_count * (group + 1) / args.panel_groups;
    const int64_t panels = last_panel - first_panel;
    const int64_t row_tiles = (last_row - first_row + kTileRows - 1) / kTileRows;
    const auto panel_of = [&](int64_t t) -> const GemmPanel& {
      return args.panels[first_panel + (args.rows_first ? t % panels : t / row_tiles)];
    };
    const auto row_of = [&](int64_t t) {
      return first_row + (args.rows_first ? t / panels : t % row_tiles) * kTileRows;
    };
    const int64_t tiles = row_tiles * panels;
    for (int64_t t = 0; t < tiles; ++t) {
      if (t + kTilesAhead < tiles) {
        const GemmPanel& next = panel_of(t + kTilesAhead);
        const int64_t m = row_of(t + kTilesAhead);
        for (int64_t i = m; i < last_row && i < m + kTileRows; ++i) {
          for (int64_t byte = 0; byte < next.cols * static_cast<int64_t>(sizeof(Out)); byte += 64) {
            __builtin_prefetch(next.out + i * next.out_stride + byte, 1);
          }
        }
      }
      const GemmPanel& panel = panel_of(t);
      const int64_t m = row_of(t);
      if (args.rows_first && t % panels == 0) {
        prefetch_addends(args, m + kTileRows, last_row);
      }
      const int64_t rows = last_row - m < kTileRows ? last_row - m : kTileRows;
      for (int64_t s = 0; s < args.segment_count; ++s) {
        here[s] = args.segments[s];
        here[s].a += m * here[s].row_stride;
      }
      multiply_rows<T>(rows, panel.cols, here, args.segment_count, panel.b, tile, kPanelCols,
                       false);
      finish_tile<T, Out>(args, tile, kPanelCols, m, rows, panel.col, panel.cols,
                          panel.out + m * panel.out_stride, panel.out_stride);
    }
  }
  if (here != inline_segments) {
    delete[] here;
  }
}

// Transposes 16 rows of 16 words.
MMFAST_INLINE void transpose_words(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Packs rows of x as columns: panel[step][column] is the step's features of row `column`. The rows
// beyond args.cols, and the second feature of an odd last step, are zero.
template <typename T>
void pack_transposed(const PackArgs& args) {
  const int64_t bytes = args.rows * static_cast<int64_t>(sizeof(T));  // of one column
  const int64_t steps = (bytes + 3) / 4;
  for (int64_t step = 0; step < steps; step += 16) {
    const int64_t here = bytes - 4 * step < 64 ? bytes - 4 * step : 64;
    const int64_t words = (here + 3) / 4;
    const __mmask64 mask = here == 64 ? ~uint64_t{0} : (uint64_t{1} << here) - 1;
    for (int64_t half = 0; half < 2; ++half) {
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t col = 16 * half + i;
        r[i] = col < args.cols
                   ? _mm512_maskz_loadu_epi8(mask, args.x + col * args.row_stride + 4 * step)
                   : _mm512_setzero_si512();
      }
      transpose_words(r);
      for (int64_t i = 0; i < words; ++i) {
        _mm512_storeu_si512(args.panel + ((step + i) * kPanelCols + 16 * half) * 4, r[i]);
      }
    }
  }
}

// Asks for 32 columns of `rows` rows: they lie too far apart for the processor to foresee.
template <_mm_hint hint>
MMFAST_INLINE void prefetch_columns(const char* x, int64_t row_stride, int64_t rows,
                                    int64_t bytes) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t byte = 0; byte < bytes; byte += 64) {
      _mm_prefetch(x + row * row_stride + byte, hint);
    }
  }
}

// Packs columns of x as they are: panel[step][column] holds one row of x (two, for bfloat16).
template <typename T>
void pack_straight(const PackArgs& args) {
  const __mmask64 mask =
      args.cols * sizeof(T) >= 64 ? ~uint64_t{0} : (uint64_t{1} << (args.cols * sizeof(T))) - 1;
  if constexpr (sizeof(T) == 4) {
    const __mmask64 rest =
        args.cols > 16
            ? (args.cols == 32 ? ~uint64_t{0} : (uint64_t{1} << (4 * (args.cols - 16))) - 1)
            : 0;
    for (int64_t row = 0; row < args.rows; ++row) {
      const char* x = args.x + row * args.row_stride;
      char* to = args.panel + row * kPanelCols * 4;
      _mm512_storeu_si512(to, _mm512_maskz_loadu_epi8(mask, x));
      _mm512_storeu_si512(to + 64, _mm512_maskz_loadu_epi8(rest, x + 64));
    }
  } else {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t row = 0; row < args.rows; row += 2) {
      const char* x = args.x + row * args.row_stride;
      const __m512i first = _mm512_maskz_loadu_epi8(mask, x);
      const __m512i second = row + 1 < args.rows
                                 ? _mm512_maskz_loadu_epi8(mask, x + args.row_stride)
                                 : _mm512_setzero_si512();
      char* to = args.panel + row / 2 * kPanelCols * 4;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(first, low, second));
      _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi16(first, high, second));
    }
  }
}

// Rows of x two by two, element beside element: to[row / 2][col].
template <typename T>
void pair_rows(const T* x, int64_t rows, int64_t cols, uint32_t* to) {
  for (int64_t row = 0; row < rows; row += 2) {
    const T* first = x + row * cols;
    const bool both = row + 1 < rows;
    const T* second = both ? first + cols : first;
    const uint32_t keep = both ? 0xffffffffu : 0xffffu;
    for (int64_t n = 0; n < cols; ++n) {
      to[row / 2 * cols + n] = (first[n].bits | static_cast<uint32_t>(second[n].bits) << 16) & keep;
    }
  }
}

// out[n][k] += sum over rows of grad[row][n] x[row][k] for units begin..end, each a strip by a
// group of grad's columns. Rows go by blocks, so that a block of grad stays in cache while every
// strip meets it. `panel` holds a block of one strip, `pairs` (bfloat16) a block of grad with rows
// taken two by two.
template <typename T>
void gemm_transposed(const GemmTransposedArgs& args, int64_t begin, int64_t end, char* panel,
                     char* pairs) {
  constexpr int64_t features = 4 / sizeof(T);
  alignas(64) float tile[kTileRows * kPanelCols];
  for (int64_t row = 0; row < args.rows; row += args.block_rows) {
    const int64_t rows = args.rows - row < args.block_rows ? args.rows - row : args.block_rows;
    const int64_t steps = (rows + features - 1) / features;
    GemmSegment left{args.grad + row * args.cols * 4, 4, args.cols * 4, steps, false};
    if constexpr (sizeof(T) == 2) {
      pair_rows(reinterpret_cast<const T*>(args.grad) + row * args.cols, rows, args.cols,
                reinterpret_cast<uint32_t*>(pairs));
      left.a = pairs;
    }
    for (int64_t unit = begin; unit < end; ++unit) {
      const GemmStrip& strip = args.strips[unit / args.col_groups];
      const int64_t group = unit % args.col_groups;
      const int64_t tiles = (args.cols + kTileRows - 1) / kTileRows;
      const int64_t first = tiles * group / args.col_groups * kTileRows;
      const int64_t last = tiles * (group + 1) / args.col_groups * kTileRows;
      const int64_t cols = last < args.cols ? last : args.cols;
      pack_straight<T>(
          PackArgs{strip.x + row * strip.row_stride, strip.row_stride, rows, strip.cols, panel});
      if (unit + 1 < end && group + 1 == args.col_groups) {
        const GemmStrip& next = args.strips[unit / args.col_groups + 1];
        prefetch_columns<_MM_HINT_T1>(next.x + row * next.row_stride, next.row_stride, rows,
                                      next.cols * sizeof(T));
      }
      for (int64_t n = first; n < cols; n += kTileRows) {
        const int64_t count = cols - n < kTileRows ? cols - n : kTileRows;
        GemmSegment segment = left;
        segment.a += 4 * n;
        char* out = strip.out + n * args.out_stride;
        if (strip.cols == kPanelCols && !args.rounded) {
          multiply_rows<T>(count, strip.cols, &segment, 1, panel, reinterpret_cast<float*>(out),
                           args.out_stride / 4, row > 0);
          continue;
        }
        multiply_rows<T>(count, strip.cols, &segment, 1, panel, tile, kPanelCols, false);
        for (int64_t i = 0; i < count; ++i) {
          const float* sums = tile + i * kPanelCols;
          char* to = out + i * args.out_stride;
          if (args.rounded) {
            store_panel_row<T>(to, sums, strip.cols);
          } else if (row > 0) {
            add_tile(reinterpret_cast<float*>(to), sums, strip.cols);
          } else {
            store_tile(reinterpret_cast<float*>(to), sums, strip.cols);
          }
        }
      }
    }
  }
}

#endif  // MMFAST_ISA_LEVEL
