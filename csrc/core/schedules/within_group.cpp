#include <algorithm>
#include <utility>

#include "core/groups.h"

namespace crossover {
namespace {

class GroupAverage final : public Schedule {
 public:
  GroupAverage(Groups groups, GroupRoute route)
      : grouping_(kName, std::move(groups)), route_(route) {}
  std::string_view name() const override { return kName; }
  int size() const override { return grouping_.size(); }
  Stochasticity stochasticity() const override { return Stochasticity::kDoubly; }
  int num_phases(const RoundKey& /*key*/) const override { return 2; }

  Program program(const RoundKey& key, int64_t numel, int rank) const override {
    const auto [group, own] = grouping_.place(rank);
    const std::vector<int>& members = grouping_.members(group);
    const int num_members = static_cast<int>(members.size());
    if (numel == 0 || num_members == 1) return {};
    const double weight = 1.0 / num_members;
    const Slice owned = slice_of(own, num_members, key.segment, numel);
    Phase reduce;
    Phase gather{.sends = {}, .receives = {}, .copies = true};
    for (int index = 0; index < num_members; ++index) {
      if (index == own) continue;
      const int peer = members[index];
      const Slice theirs = slice_of(index, num_members, key.segment, numel);
      if (theirs.numel() > 0) {
        reduce.sends.push_back({peer, theirs});
        gather.receives.push_back({peer, theirs, 1.0});
      }
      if (owned.numel() > 0) {
        reduce.receives.push_back({peer, owned, weight});
        gather.sends.push_back({peer, owned});
      }
    }
    return {{std::move(reduce), std::move(gather)}, true};
  }

 private:
  static constexpr std::string_view kName = "group-average";

  /// What member `index` owns.
  Slice slice_of(int index, int num_members, uint32_t segment, int64_t numel) const {
    if (route_ == GroupRoute::kRoot) return {0, index == 0 ? numel : 0};
    const int64_t place =
        (index + num_members - static_cast<int>(segment % num_members)) % num_members;
    const int64_t num_units = (numel + kSliceUnitNumel - 1) / kSliceUnitNumel;
    const auto border = [&](int64_t c) {
      return std::min(numel, num_units * c / num_members * kSliceUnitNumel);
    };
    return {border(place), border(place + 1)};
  }

  Grouping grouping_;
  GroupRoute route_;
};

class GroupBroadcast final : public Schedule {
 public:
  explicit GroupBroadcast(Groups groups) : grouping_(kName, std::move(groups)) {}
  std::string_view name() const override { return kName; }
  int size() const override { return grouping_.size(); }
  Stochasticity stochasticity() const override { return Stochasticity::kRow; }
  int num_phases(const RoundKey& /*key*/) const override { return 1; }

  Program program(const RoundKey&, int64_t numel, int rank) const override {
    const auto [group, own] = grouping_.place(rank);
    const std::vector<int>& members = grouping_.members(group);
    if (numel == 0 || members.size() == 1) return {};
    const Slice whole{0, numel};
    Phase phase{.sends = {}, .receives = {}, .copies = true};
    if (own > 0) {
      phase.receives.push_back({members[0], whole, 1.0});
    } else {
      for (size_t index = 1; index < members.size(); ++index) {
        phase.sends.push_back({members[index], whole});
      }
    }
    return {{std::move(phase)}, true};
  }

 private:
  static constexpr std::string_view kName = "group-broadcast";
  Grouping grouping_;
};

}  // namespace

std::unique_ptr<Schedule> group_average_schedule(Groups groups, GroupRoute route) {
  return std::make_unique<GroupAverage>(std::move(groups), route);
}

std::unique_ptr<Schedule> group_broadcast_schedule(Groups groups) {
  return std::make_unique<GroupBroadcast>(std::move(groups));
}

}  // namespace crossover
