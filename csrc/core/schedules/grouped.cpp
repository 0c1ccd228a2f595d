#include "core/schedules/grouped.h"

namespace crossover {

GroupedSchedule::GroupedSchedule(std::string_view name, int size, GroupRule rule)
    : name_(name), size_(size), rule_(rule) {
  require_size(name, size);
}

int GroupedSchedule::num_phases(const RoundKey& key) const {
  return num_group_phases(largest_group(key), rule_);
}

Program GroupedSchedule::program(const RoundKey& key, int64_t numel, int rank) const {
  require_rank(*this, rank);
  return group_average(members(key, rank), numel, rank, rule_);
}

}  // namespace crossover
