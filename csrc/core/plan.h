// The segments of a model: agreed once, then a step is only integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace crossover {

/// One segment: tensors of one dtype, exchanged as one message. Elements are the tensors' memory
/// laid end to end, without padding.
struct Segment {
  std::string name;
  Dtype dtype = Dtype::kFloat32;
  std::vector<int64_t> numels;       // per tensor, in order; zero is allowed
  std::vector<std::string> tensors;  // their names, for messages; same length as numels

  int64_t numel() const;
};

/// The cut of one model. Segment indices are the model order that schedules see; `issue_order`
/// is the order in which segments are posted and awaited.
class SegmentPlan {
 public:
  /// Throws InvalidArgument unless issue_order is a permutation of the segments' indices and each
  /// segment has as many names as numels, none negative.
  SegmentPlan(std::vector<Segment> segments, Dtype wire, std::vector<uint32_t> issue_order);

  std::span<const Segment> segments() const { return segments_; }
  const Segment& segment(uint32_t index) const { return segments_[index]; }
  std::span<const uint32_t> issue_order() const { return issue_order_; }
  /// Throws InvalidArgument as the constructor does, and then changes nothing.
  void set_issue_order(std::vector<uint32_t> order);
  /// Element type of segment `index` on the wire, in programs that keep what Q takes.
  Dtype wire(uint32_t index) const { return wire_dtype(segments_[index].dtype, wire_); }
  /// Index of the segment's first tensor in a flat list over all segments in model order.
  size_t first_tensor(uint32_t index) const { return first_tensor_[index]; }
  size_t num_tensors() const { return num_tensors_; }
  /// Bytes of all segments on the wire: what a permutation schedule sends per worker and round.
  int64_t wire_bytes() const;

 private:
  std::vector<Segment> segments_;
  Dtype wire_;
  std::vector<uint32_t> issue_order_;
  std::vector<size_t> first_tensor_;
  size_t num_tensors_ = 0;
};

}  // namespace crossover
