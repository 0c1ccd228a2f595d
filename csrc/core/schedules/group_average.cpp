#include "core/schedules/group_average.h"

#include <algorithm>

namespace crossover {
namespace {

Program exchange_whole(int peer, int64_t numel) {
  const Slice whole{0, numel};
  return {{{{{peer, whole}}, {{peer, whole, 0.5}}}}};
}

}  // namespace

Slice part_of(int64_t numel, int count, int index) {
  const int64_t num_units = (numel + kSliceUnitNumel - 1) / kSliceUnitNumel;
  const auto boundary = [&](int64_t i) {
    return std::min(numel, num_units * i / count * kSliceUnitNumel);
  };
  return {boundary(index), boundary(int64_t{index} + 1)};
}

int num_group_phases(int num_members, GroupRule rule) {
  if (num_members == 1) return 0;
  return num_members == 2 && rule == GroupRule::kKeepMean ? 1 : 2;
}

Program group_average(std::span<const int> members, int64_t numel, int rank, GroupRule rule) {
  const int count = static_cast<int>(members.size());
  if (count == 1 || numel == 0) return {};
  if (num_group_phases(count, rule) == 1) {
    return exchange_whole(members[0] == rank ? members[1] : members[0], numel);
  }
  const auto own_index = std::ranges::lower_bound(members, rank) - members.begin();
  const Slice own = part_of(numel, count, static_cast<int>(own_index));
  Program program{std::vector<Phase>(2), false, rule == GroupRule::kSameBits};
  for (int index = 0; index < count; ++index) {
    const int peer = members[index];
    if (peer == rank) continue;
    const Slice theirs = part_of(numel, count, index);
    if (theirs.numel() > 0) {
      program.phases[0].sends.push_back({peer, theirs});
      program.phases[1].receives.push_back({peer, theirs, 1.0});
    }
    if (own.numel() > 0) {
      program.phases[0].receives.push_back({peer, own, 1.0 / count});
      program.phases[1].sends.push_back({peer, own});
    }
  }
  if (rule == GroupRule::kKeepMean && own.numel() > 0) {
    program.phases[0].receives.push_back({rank, own, 1.0 / count - 1.0});
    program.phases[1].receives.push_back({rank, own, count - 1.0});
  }
  return program;
}

}  // namespace crossover
