// The exact average of a group, as programs of its members.
#pragma once

#include <cstdint>
#include <span>

#include "core/program.h"

namespace crossover {

enum class GroupRule {
  /// The sum over the members is kept under any wire: what its rounding takes from an average on
  /// the
  /// way to the others stays with the sender. Two members exchange segments whole, in one phase.
  kKeepMean,
  /// Every member ends with the same bits where the wire holds the average; else with its rounding.
  kSameBits,
};

/// What `rank` does so that all `members`, ascending and `rank` among them, hold their average.
/// Phase 0 brings slice i to member i, who averages it; phase 1 brings it to the others: with m
/// members each sends and receives 2 (m - 1)/m segments. No phases for m = 1 or numel = 0.
Program group_average(std::span<const int> members, int64_t numel, int rank, GroupRule rule);

/// The most phases that group_average() has for a group of `num_members`.
int num_group_phases(int num_members, GroupRule rule);

/// Slice `index` of 0..numel-1 cut into `count` parts that differ by at most kSliceUnitNumel
/// elements and, the last end excepted, start and end at its multiples.
Slice part_of(int64_t numel, int count, int index);

}  // namespace crossover
