// What one rank does for one segment in one round: an exchange program.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/dtype.h"

namespace crossover {

/// Slices within a segment begin and end at its multiples, or at the segment's end: they stay
/// aligned, and blocks of an int8 wire stay whole.
inline constexpr int64_t kSliceUnitNumel = 128;

/// Elements [begin, end) of a segment: its tensors laid end to end in plan order.
struct Slice {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t numel() const { return end - begin; }
  bool operator==(const Slice&) const = default;
};

struct Send {
  int peer = 0;
  Slice slice;
};

/// x[slice] += weight * (m_peer[slice] - m_own[slice]), with m = Q(x) at the start of the phase.
///
/// If the peer is the rank itself there is no message, and m_peer is x, unrounded: a rank keeps or
/// gives up what the wire's rounding takes. Mixed before the others; in programs of several phases
/// only. It has no part in W.
struct Receive {
  int peer = 0;
  Slice slice;
  double weight = 0.0;
};

/// Sends and receives that may all be in flight together. Nothing is mixed before all receives of
/// the phase have arrived; then they are mixed in the order of `receives`, whatever the order of
/// arrival. At most one message goes from one rank to another within a phase.
struct Phase {
  std::vector<Send> sends;
  std::vector<Receive> receives;
  double keep = 1.0;  // the rank's own entry in its column of W, see push_sum.h
  /// Receives overwrite instead: x[slice] = what the sender holds, bit for bit. Their weights are
  /// 1 and their slices disjoint.
  bool copies = false;
};

/// Phases run one after the other: phase p + 1 sends what phase p left. An idle rank has no phases
/// or empty ones.
struct Program {
  std::vector<Phase> phases;
  /// At the end the tensors become Q(x) instead of keeping what Q took from them, so ranks that
  /// have received the same values hold equal tensors, whatever they held before. Copies travel in
  /// the wire's type then, else in that of the ranks' sums, uncast.
  bool replaces = false;
  /// The ranks end with the same bits: what Q takes from an average is kept by nobody.
  bool same_bits = false;
  /// Widest type on the wire in this round, in place of the plan's; then its first phase is
  /// measured, see Device::difference.
  std::optional<Dtype> wire = {};
};

}  // namespace crossover
