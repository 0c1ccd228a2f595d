#include <algorithm>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "core/random.h"
#include "core/schedules/grouped.h"

namespace crossover {
namespace {

class GroupCrossoverSchedule final : public GroupedSchedule {
 public:
  GroupCrossoverSchedule(int size, int group_size, uint64_t seed)
      : GroupedSchedule("group-crossover", size, GroupRule::kKeepMean),
        num_groups_((size - 1) / group_size + 1),
        seed_(seed) {}

 protected:
  std::vector<int> members(const RoundKey& key, int rank) const override {
    const std::vector<int> order = draw_order(key);
    const auto place = static_cast<int>(std::ranges::find(order, rank) - order.begin());
    const int small = size() / num_groups_;
    const int num_large = size() % num_groups_;  // the first groups, with one member more
    const int first_small = num_large * (small + 1);
    const int width = place < first_small ? small + 1 : small;
    const int origin = place < first_small ? 0 : first_small;
    const auto begin = order.begin() + origin + (place - origin) / width * width;
    std::vector<int> group(begin, begin + width);
    std::ranges::sort(group);
    return group;
  }
  int largest_group(const RoundKey& /*key*/) const override {
    return (size() - 1) / num_groups_ + 1;
  }

 private:
  std::vector<int> draw_order(const RoundKey& key) const {
    CounterStream stream(seed_, key.round, key.segment);
    std::vector<int> order(size());
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size() - 1; i > 0; --i) {
      std::swap(order[i], order[stream.below(static_cast<uint32_t>(i) + 1)]);
    }
    return order;
  }

  const int num_groups_;
  const uint64_t seed_;
};

}  // namespace

std::unique_ptr<Schedule> group_crossover_schedule(int size, int group_size, uint64_t seed) {
  require_size("group-crossover", size);
  if (group_size < 1) {
    throw InvalidArgument("group-crossover: group_size: expected at least 1, got " +
                          std::to_string(group_size));
  }
  return std::make_unique<GroupCrossoverSchedule>(size, group_size, seed);
}

}  // namespace crossover
