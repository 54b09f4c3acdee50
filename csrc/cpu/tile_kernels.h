// Tiles of a row in the accumulator's type: what the kernels of several operators are made of.
// Included as they are, once per instruction set; see foreach_isa.h.

constexpr int64_t kTile = 512;  // columns worked on at a time; 2 KiB of float stays in L1

template <typename T, typename A>
void load_tile(A* to, const T* from, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    to[j] = widen(from[j]);
  }
}

template <typename T, typename A>
void add_tile(A* to, const T* from, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    to[j] += widen(from[j]);
  }
}

template <typename T, typename A>
void store_tile(T* to, const A* from, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    to[j] = narrow<T>(from[j]);
  }
}
