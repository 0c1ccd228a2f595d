// Schedules that cut the ranks into groups, each of which takes its exact average.
#pragma once

#include <string_view>
#include <vector>

#include "core/schedule.h"
#include "core/schedules/group_average.h"

namespace crossover {

/// W is block diagonal up to the order of the ranks: 1/m within a group of m.
class GroupedSchedule : public Schedule {
 public:
  /// Throws InvalidArgument if size < 1. `name` outlives the schedule.
  GroupedSchedule(std::string_view name, int size, GroupRule rule);
  std::string_view name() const override { return name_; }
  int size() const override { return size_; }
  Stochasticity stochasticity() const override { return Stochasticity::kDoubly; }
  int num_phases(const RoundKey& key) const override;
  Program program(const RoundKey& key, int64_t numel, int rank) const override;

 protected:
  /// The group of `rank`, itself included, ascending.
  virtual std::vector<int> members(const RoundKey& key, int rank) const = 0;
  virtual int largest_group(const RoundKey& key) const = 0;

 private:
  const std::string_view name_;
  const int size_;
  const GroupRule rule_;
};

}  // namespace crossover
