// Schedules in which every rank receives from one other and sends to one other.
#pragma once

#include <string_view>
#include <vector>

#include "core/schedule.h"

namespace crossover {

/// W = (I + P)/2 for a derangement P per draw.
class PermutationSchedule : public PeerSchedule {
 public:
  /// Throws InvalidArgument if size < 1. `name` outlives the schedule.
  PermutationSchedule(std::string_view name, int size);
  std::string_view name() const override { return name_; }
  int size() const override { return size_; }
  Stochasticity stochasticity() const override { return Stochasticity::kDoubly; }
  std::vector<PeerRow> rows(const RoundKey& key) const override;
  Neighbours neighbours(const RoundKey& key, int rank) const override;

 protected:
  /// The rank that each rank receives from: a derangement of 0..size-1. Only called for size >= 2.
  virtual std::vector<int> sources(const RoundKey& key) const = 0;

 private:
  const std::string_view name_;
  const int size_;
};

}  // namespace crossover
