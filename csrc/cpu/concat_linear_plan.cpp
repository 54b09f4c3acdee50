// Which way concat_linear takes on the CPU, and why: decided by shapes, element type and
// instruction set alone, so that the same call always takes the same way.
#include <algorithm>

#include "concat_linear.h"
#include "few_rows.h"
#include "scratch.h"

namespace mmfast {
namespace {

// Below this many multiply-adds the own loop beats a library call and its set-up (2-3 us).
constexpr int64_t kTinyProducts = 32 * 1024;

// The own loop adds gradients one after another; longer sums want the pairwise ones.
constexpr int64_t kTinyRows = 64;
constexpr int64_t kTinyCols = 512;

// A product this wide pays for its own pass over the output.
constexpr int64_t kNarrow = 128;

// An input whose rows repeat this often is worth a product, and an epilogue, of its own. With
// 16-bit elements the library makes that product in float32, more slowly than the others.
constexpr int64_t kRepeats = 2;
constexpr int64_t kHalfLibraryRepeats = 8;

// Up to this many rows, or elements of the result, packing for a matrix product costs more than it
// saves.
constexpr int64_t kDotRows = 4;
constexpr int64_t kDotRowsBeforeLibrary = 16;
constexpr int64_t kDotElements = 512;

constexpr int64_t kBlockBytes = 1 << 20;

int64_t block_rows(int64_t width, int64_t element_size, int64_t rows) {
  const int64_t fit = kBlockBytes / std::max<int64_t>(1, width * element_size);
  const int64_t most = kScratchLimit / std::max<int64_t>(1, width * element_size);
  return std::min(rows, std::max<int64_t>(1, std::min(most, std::clamp<int64_t>(fit, 64, 2048))));
}

// Runs of `members` that stand next to each other in the weight; a wide one forms its own.
std::vector<Group> runs(const std::vector<int64_t>& members, const std::vector<int64_t>& widths) {
  std::vector<Group> groups;
  for (int64_t i : members) {
    const int64_t previous = groups.empty() ? -2 : groups.back().members.back();
    if (previous == i - 1 && widths[i] < kNarrow && widths[previous] < kNarrow) {
      groups.back().members.push_back(i);
      groups.back().width += widths[i];
    } else {
      groups.push_back(Group{{i}, widths[i], 0});
    }
  }
  return groups;
}

Plan library_plan(const std::vector<int64_t>& widths, const std::vector<int64_t>& distinct_rows,
                  const std::vector<int64_t>& members, int64_t rows, Element element) {
  Plan plan;
  plan.method = Method::library;
  if (element_size(element) == 2 && !members.empty()) {
    int64_t together = 0;
    for (int64_t i : members) {
      together += widths[i];
    }
    plan.groups = {Group{members, together, 0}};
    plan.why = "16-bit results: one product, since every partial sum would be rounded";
  } else {
    plan.groups = runs(members, widths);
    plan.why = "a product per wide input or run of narrow ones, accumulated in the result";
  }
  for (Group& group : plan.groups) {
    if (group.members.size() > 1 || distinct_rows[group.members[0]] != rows) {
      group.block_rows = block_rows(group.width, element_size(element), rows);
    }
  }
  return plan;
}

}  // namespace

bool has_own_kernel(Element element, Isa isa) {
  switch (element) {
    case Element::float32:
      return isa >= Isa::avx512;
    case Element::bfloat16:
      return isa == Isa::avx512_bf16;
    default:
      return false;
  }
}

Plan plan_concat_linear(const std::vector<int64_t>& widths,
                        const std::vector<int64_t>& distinct_rows, int64_t rows, int64_t cols,
                        Element element, Isa isa) {
  Plan plan;
  const int64_t count = static_cast<int64_t>(widths.size());
  int64_t width = 0;
  for (int64_t w : widths) {
    width += w;
  }
  if (rows == 0 || cols == 0 || width == 0) {
    plan.why = "the result is empty or no input has features";
    return plan;
  }
  if (rows <= kTinyRows && cols <= kTinyCols && rows * cols <= kTinyProducts / width) {
    plan.method = Method::tiny;
    plan.why = "few multiply-adds: own loops";
    return plan;
  }
  const bool own = has_own_kernel(element, isa);
  const int64_t dot_rows = own ? kDotRows : kDotRowsBeforeLibrary;
  if ((rows <= dot_rows || rows * cols <= kDotElements) && isa >= Isa::avx2 &&
      rows * width * 4 <= kScratchLimit && element != Element::float64) {
    plan.method = Method::dot;
    plan.why = "few rows or columns: a dot product per element";
    return plan;
  }
  const int64_t repeats = !own && element_size(element) == 2 ? kHalfLibraryRepeats : kRepeats;
  std::vector<int64_t> members;  // the inputs that are not left to the epilogue
  int64_t together = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (distinct_rows[i] > rows / repeats) {
      members.push_back(i);
      together += widths[i];
    }
  }
  if (!own) {
    return library_plan(widths, distinct_rows, members, rows, element);
  }
  // A member has a row of its own for every row: distinct rows divide rows, and kRepeats is 2.
  static_assert(kRepeats == 2, "the kernel reads its members row by row");
  plan.method = Method::kernel;
  plan.why = rows <= kFewRows
                 ? "few rows: they are packed, the weight is read once where it lies"
                 : "one loop over the features of all inputs, accumulated in registers";
  if (!members.empty()) {
    plan.groups = {Group{members, together, 0}};
  }
  return plan;
}

}  // namespace mmfast
