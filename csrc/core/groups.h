// Groups of ranks: exact averages inside a group, gossip among groups.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "core/program.h"
#include "core/schedule.h"

namespace crossover {

/// Members by group, in an order of their own: the first is the group's root.
using Groups = std::vector<std::vector<int>>;

/// The groups of a job: each rank 0..size-1 in one of them, none empty.
class Grouping {
 public:
  struct Place {
    int group = 0;
    int index = 0;  // among the group's members
  };

  /// Throws InvalidArgument unless `groups` is as above; `name` is for the message.
  Grouping(std::string_view name, Groups groups);

  int size() const { return static_cast<int>(places_.size()); }
  int num_groups() const { return static_cast<int>(groups_.size()); }
  const std::vector<int>& members(int group) const { return groups_[group]; }
  /// Throws InvalidArgument for a rank outside 0..size()-1.
  Place place(int rank) const;

 private:
  std::string_view name_;
  Groups groups_;
  std::vector<Place> places_;
};

/// Which members carry a segment's bytes.
enum class GroupRoute {
  kSharded,  // each member an equal slice
  kRoot,     // the root all of it
};

/// Every group's exact average, at the end equal bit for bit on its members. Phase 0: whoever owns
/// a slice receives it from the other members, weight 1/g each, in their order; phase 1 copies the
/// averages to all. Slices end at multiples of 128 elements; member (c + segment) mod g owns slice
/// c. Of a segment a member sends about 2(g-1)/g, or 1, the root g-1 under kRoot; the group
/// together 2(g-1). A group of one is idle.
std::unique_ptr<Schedule> group_average_schedule(Groups groups, GroupRoute route);

/// One phase: the members' tensors become the root's.
std::unique_ptr<Schedule> group_broadcast_schedule(Groups groups);

/// Per segment, per member index, the slice that this member of each group exchanges. Together they
/// are the whole segment.
using ShardCuts = std::vector<std::vector<Slice>>;

/// Gossip among groups whose members hold equal tensors, which they stay bit for bit. `inner` is a
/// schedule of as many ranks as there are groups; of its phases member j runs what falls into its
/// slice, with member j of the group that `inner` names; a last phase copies the slices to the
/// other members. stochasticity() is `inner`'s, of W over the groups.
/// Throws InvalidArgument unless each segment has at least one slice, no more than the smallest
/// group has members, and they follow each other from 0 on in some order. Drawing a segment beyond
/// the cuts, or of another number of elements, throws it, too.
std::unique_ptr<Schedule> hierarchical_schedule(std::shared_ptr<const Schedule> inner,
                                                Groups groups, ShardCuts cuts);

}  // namespace crossover
