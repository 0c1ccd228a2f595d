// Schedules in which ranks meet in pairs.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "core/schedule.h"

namespace crossover {

/// Every rank has one partner or none, who has it as partner with the same weight: W is symmetric
/// and doubly stochastic.
class MatchingSchedule : public PeerSchedule {
 public:
  /// Throws InvalidArgument if size < 1. `name` outlives the schedule.
  MatchingSchedule(std::string_view name, int size);
  std::string_view name() const override { return name_; }
  int size() const override { return size_; }
  Stochasticity stochasticity() const override { return Stochasticity::kDoubly; }
  std::vector<PeerRow> rows(const RoundKey& key) const override;
  Neighbours neighbours(const RoundKey& key, int rank) const override;

 protected:
  /// The partner of `rank`, none if it is idle.
  virtual std::optional<WeightedPeer> partner(const RoundKey& key, int rank) const = 0;

 private:
  const std::string_view name_;
  const int size_;
};

}  // namespace crossover
