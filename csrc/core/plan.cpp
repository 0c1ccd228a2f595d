#include "core/plan.h"

#include <numeric>
#include <utility>

#include "core/error.h"

namespace crossover {
namespace {

void check_segment(const Segment& segment, size_t index) {
  const std::string where = "segment " + std::to_string(index) + " '" + segment.name + "': ";
  if (segment.tensors.size() != segment.numels.size()) {
    throw InvalidArgument(where + "expected one name per tensor, got " +
                          std::to_string(segment.tensors.size()) + " names for " +
                          std::to_string(segment.numels.size()) + " tensors");
  }
  if (segment.dtype == Dtype::kInt8Blocks) {
    throw InvalidArgument(where + "expected a floating type, got int8-blocks, a wire's type");
  }
  for (size_t i = 0; i < segment.numels.size(); ++i) {
    if (segment.numels[i] >= 0) continue;
    throw InvalidArgument(where + "tensor '" + segment.tensors[i] +
                          "': expected a number of elements >= 0, got " +
                          std::to_string(segment.numels[i]));
  }
}

void check_permutation(std::span<const uint32_t> order, size_t size) {
  std::vector<bool> seen(size, false);
  bool ok = order.size() == size;
  for (uint32_t index : order) {
    ok = ok && index < size && !seen[index];
    if (!ok) break;
    seen[index] = true;
  }
  if (ok) return;
  throw InvalidArgument("issue_order: expected each of the " + std::to_string(size) +
                        " segments' indices once");
}

}  // namespace

int64_t Segment::numel() const { return std::accumulate(numels.begin(), numels.end(), int64_t{0}); }

SegmentPlan::SegmentPlan(std::vector<Segment> segments, Dtype wire,
                         std::vector<uint32_t> issue_order)
    : segments_(std::move(segments)), wire_(wire), issue_order_(std::move(issue_order)) {
  check_permutation(issue_order_, segments_.size());
  first_tensor_.reserve(segments_.size());
  for (size_t i = 0; i < segments_.size(); ++i) {
    check_segment(segments_[i], i);
    first_tensor_.push_back(num_tensors_);
    num_tensors_ += segments_[i].numels.size();
  }
}

void SegmentPlan::set_issue_order(std::vector<uint32_t> order) {
  check_permutation(order, segments_.size());
  issue_order_ = std::move(order);
}

int64_t SegmentPlan::wire_bytes() const {
  int64_t total = 0;
  for (uint32_t i = 0; i < segments_.size(); ++i) {
    total += static_cast<int64_t>(packed_bytes(wire(i), segments_[i].numel()));
  }
  return total;
}

}  // namespace crossover
