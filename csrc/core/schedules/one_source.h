// Schedules in which every rank receives from one other.
#pragma once

#include <string_view>
#include <vector>

#include "core/schedule.h"

namespace crossover {

/// W = (I + M)/2, row i of M with a single 1, at the source of rank i. Doubly stochastic if the
/// sources are a permutation.
class OneSourceSchedule : public PeerSchedule {
 public:
  /// Throws InvalidArgument if size < 1. `name` outlives the schedule.
  OneSourceSchedule(std::string_view name, int size, Stochasticity property);
  std::string_view name() const override { return name_; }
  int size() const override { return size_; }
  Stochasticity stochasticity() const override { return property_; }
  std::vector<PeerRow> rows(const RoundKey& key) const override;
  Neighbours neighbours(const RoundKey& key, int rank) const override;

 protected:
  /// The rank that each rank receives from, never itself; the ranks 0..size-1 in another order if
  /// the schedule is doubly stochastic. Only called for size >= 2.
  virtual std::vector<int> sources(const RoundKey& key) const = 0;

 private:
  const std::string_view name_;
  const int size_;
  const Stochasticity property_;
};

}  // namespace crossover
