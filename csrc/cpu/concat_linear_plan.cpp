// Which way concat_linear takes on the CPU, and why: decided by shapes and element size alone, so
// that the same call always takes the same way.
#include <algorithm>

#include "concat_linear.h"
#include "scratch.h"

namespace mmfast {
namespace {

// Below this many multiply-adds the own loop beats a library call and its set-up (2-3 us).
constexpr int64_t kTinyProducts = 32 * 1024;

// A product this wide pays for its own pass over the output.
constexpr int64_t kNarrow = 128;

// With 16-bit results every partial sum is rounded: beyond two of them, gather instead.
constexpr int64_t kMaxHalfSums = 2;

constexpr int64_t kBlockBytes = 1 << 20;

int64_t block_rows(int64_t width, int64_t element_size, int64_t rows) {
  const int64_t fit = kBlockBytes / std::max<int64_t>(1, width * element_size);
  const int64_t most = kScratchLimit / std::max<int64_t>(1, width * element_size);
  return std::min(rows, std::max<int64_t>(1, std::min(most, std::clamp<int64_t>(fit, 64, 2048))));
}

// Consecutive inputs of `members` that stand next to each other in the weight, cut into runs; an
// input for which `alone` holds forms a run of its own.
template <typename Alone>
std::vector<Group> runs(const std::vector<int64_t>& members, const std::vector<int64_t>& widths,
                        Alone alone) {
  std::vector<Group> groups;
  for (int64_t i : members) {
    const bool joins = !groups.empty() && groups.back().last == i && !alone(i) &&
                       !alone(groups.back().last - 1);
    if (joins) {
      groups.back().last = i + 1;
      groups.back().width += widths[i];
    } else {
      groups.push_back(Group{i, i + 1, widths[i], 0});
    }
  }
  return groups;
}

}  // namespace

Plan plan_concat_linear(const std::vector<int64_t>& widths,
                        const std::vector<int64_t>& distinct_rows, int64_t rows, int64_t cols,
                        int64_t element_size) {
  Plan plan;
  const int64_t count = static_cast<int64_t>(widths.size());
  int64_t width = 0;
  std::vector<int64_t> full;  // inputs with a row of their own for every row of the result
  for (int64_t i = 0; i < count; ++i) {
    width += widths[i];
    if (distinct_rows[i] == rows) {
      full.push_back(i);
    }
  }
  if (rows == 0 || cols == 0 || width == 0) {
    plan.why = "the result is empty or no input has features";
    return plan;
  }
  if (rows * cols <= kTinyProducts / width) {
    plan.method = Method::tiny;
    plan.why = "at most " + std::to_string(kTinyProducts) + " multiply-adds: own loop";
    return plan;
  }
  plan.method = Method::blocks;
  const int64_t broadcast = static_cast<int64_t>(full.size()) < count ? 1 : 0;
  const auto too_many_sums = [&] {
    return element_size == 2 &&
           static_cast<int64_t>(plan.groups.size()) + broadcast > kMaxHalfSums;
  };
  plan.groups = runs(full, widths, [&](int64_t i) { return widths[i] >= kNarrow; });
  plan.why = "library products, one per wide input or run of narrow ones";
  if (too_many_sums()) {
    plan.groups = runs(full, widths, [](int64_t) { return false; });
    plan.why = "neighbouring inputs gathered by blocks: fewer roundings to 16 bits";
  }
  if (too_many_sums()) {
    plan.groups = {Group{0, count, width, 0}};
    plan.why = "all inputs gathered by blocks: fewer roundings to 16 bits";
  }
  for (Group& group : plan.groups) {
    if (group.last - group.first > 1) {
      group.block_rows = block_rows(group.width, element_size, rows);
    }
  }
  return plan;
}

}  // namespace mmfast
