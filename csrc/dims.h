// The sizes or strides of a tensor: a vector that needs no heap for as many dimensions as nearly
// every tensor has. Operators of many small inputs would otherwise spend their time in malloc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace mmfast {

class Dims {
 public:
  Dims() = default;
  Dims(std::initializer_list<int64_t> values) : Dims(values.begin(), values.end()) {}
  template <typename Iterator>
  Dims(Iterator begin, Iterator end) {
    for (; begin != end; ++begin) {
      push_back(*begin);
    }
  }
  Dims(int64_t size, int64_t value) {
    for (int64_t d = 0; d < size; ++d) {
      push_back(value);
    }
  }

  int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const int64_t* data() const { return size_ > kInline ? heap_.data() : inline_; }
  int64_t* data() { return size_ > kInline ? heap_.data() : inline_; }
  const int64_t* begin() const { return data(); }
  const int64_t* end() const { return data() + size_; }
  int64_t* begin() { return data(); }
  int64_t* end() { return data() + size_; }
  int64_t operator[](int64_t d) const { return data()[d]; }
  int64_t& operator[](int64_t d) { return data()[d]; }

  void push_back(int64_t value) {
    if (size_ == kInline) {
      heap_.assign(inline_, inline_ + kInline);
    }
    if (size_ < kInline) {
      inline_[size_] = value;
    } else {
      heap_.push_back(value);
    }
    ++size_;
  }

  friend bool operator==(const Dims& a, const Dims& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }
  friend bool operator!=(const Dims& a, const Dims& b) { return !(a == b); }

 private:
  static constexpr int64_t kInline = 6;
  int64_t size_ = 0;
  int64_t inline_[kInline];
  std::vector<int64_t> heap_;
};

}  // namespace mmfast
