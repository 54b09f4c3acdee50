// Which row of a source each row of the result reads.
//
// A source whose batch shape broadcasts keeps its distinct rows once; the map walks the rows of the
// full batch in order and keeps, per source, the index of the distinct row. Where the caller gave
// an index tensor, that is the position in it, and the row is what stands there.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../dims.h"

namespace mmfast {

// The full batch shape, and for each source a stride per dimension counted in distinct rows
// (0 where the source broadcasts). Plain pointers, for the kernels.
struct RowMap {
  int64_t dims;
  const int64_t* sizes;  // [dims]
  int64_t sources;
  const int64_t* strides;       // [sources][dims]
  const int64_t* const* index;  // [sources], each null or the rows to read; or null for none
};

// Owns a RowMap's arrays, with neighbouring dimensions merged wherever every source allows it.
class RowMapStorage {
 public:
  RowMapStorage(const Dims& sizes, const std::vector<Dims>& strides,
                std::vector<const int64_t*> index = {})
      : sources_(static_cast<int64_t>(strides.size())), index_(std::move(index)) {
    Dims first;  // for each merged dimension, its innermost original dimension
    for (int64_t d = 0; d < sizes.size(); ++d) {
      if (sizes[d] == 1) {
        continue;
      }
      bool merge = !sizes_.empty();
      for (const auto& s : strides) {
        merge = merge && s[first[first.size() - 1]] == s[d] * sizes[d];
      }
      if (merge) {
        sizes_[sizes_.size() - 1] *= sizes[d];
        first[first.size() - 1] = d;
      } else {
        sizes_.push_back(sizes[d]);
        first.push_back(d);
      }
    }
    strides_.reserve(strides.size() * first.size());
    for (const auto& s : strides) {
      for (int64_t d : first) {
        strides_.push_back(s[d]);
      }
    }
  }

  RowMap view() const {
    return RowMap{sizes_.size(), sizes_.data(), sources_, strides_.data(),
                  index_.empty() ? nullptr : index_.data()};
  }

 private:
  int64_t sources_;
  Dims sizes_;
  std::vector<int64_t> strides_;
  std::vector<const int64_t*> index_;
};

// A fixed-size array of zeros that needs no heap for the few entries it nearly always has.
class SmallArray {
 public:
  explicit SmallArray(int64_t size)
      : heap_(size > kInline ? new int64_t[size]() : nullptr),
        data_(heap_ ? heap_.get() : inline_) {}
  SmallArray(const SmallArray&) = delete;
  SmallArray& operator=(const SmallArray&) = delete;

  int64_t& operator[](int64_t i) { return data_[i]; }
  int64_t operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr int64_t kInline = 8;
  int64_t inline_[kInline] = {};
  std::unique_ptr<int64_t[]> heap_;
  int64_t* data_;
};

// Walks a RowMap from a given row on. `at(s)` is the distinct row of source s.
class RowCursor {
 public:
  RowCursor(const RowMap& map, int64_t start) : map_(map), row_(map.sources), index_(map.dims) {
    for (int64_t d = map.dims - 1; d >= 0; --d) {
      index_[d] = start % map.sizes[d];
      start /= map.sizes[d];
      for (int64_t s = 0; s < map.sources; ++s) {
        row_[s] += index_[d] * map.strides[s * map.dims + d];
      }
    }
  }

  void next() {
    for (int64_t d = map_.dims - 1; d >= 0; --d) {
      const bool carry = ++index_[d] == map_.sizes[d];
      const int64_t step = carry ? 1 - map_.sizes[d] : 1;
      for (int64_t s = 0; s < map_.sources; ++s) {
        row_[s] += step * map_.strides[s * map_.dims + d];
      }
      if (!carry) {
        return;
      }
      index_[d] = 0;
    }
  }

  int64_t at(int64_t s) const {
    return map_.index && map_.index[s] ? map_.index[s][row_[s]] : row_[s];
  }

 private:
  RowMap map_;
  SmallArray row_;
  SmallArray index_;
};

}  // namespace mmfast
