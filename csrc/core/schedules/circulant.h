// Schedules that look the same from every rank.
#pragma once

#include <string_view>
#include <vector>

#include "core/schedule.h"

namespace crossover {

/// In phase k = (round + segment) mod the number of phases, rank r receives from r + d mod n for
/// every offset d of that phase, each with weight 1 / (number of offsets + 1).
class CirculantSchedule final : public PeerSchedule {
 public:
  using Offsets = std::vector<int>;  // distinct, in 1..n-1
  /// There is at least one phase; size >= 1. `name` outlives the schedule.
  CirculantSchedule(std::string_view name, int size, std::vector<Offsets> phases);
  std::string_view name() const override { return name_; }
  int size() const override { return size_; }
  Stochasticity stochasticity() const override { return Stochasticity::kDoubly; }
  std::vector<PeerRow> rows(const RoundKey& key) const override;
  Neighbours neighbours(const RoundKey& key, int rank) const override;

 private:
  const Offsets& offsets(const RoundKey& key) const;
  PeerRow row(const Offsets& offsets, int rank) const;

  const std::string_view name_;
  const int size_;
  const std::vector<Offsets> phases_;
};

}  // namespace crossover
