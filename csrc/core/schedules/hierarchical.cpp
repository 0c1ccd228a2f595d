#include <algorithm>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/groups.h"

namespace crossover {
namespace {

constexpr std::string_view kName = "hierarchical";

Slice common(const Slice& a, const Slice& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

int64_t numel_of(const std::vector<Slice>& slices) {
  int64_t numel = 0;
  for (const Slice& slice : slices) numel += slice.numel();
  return numel;
}

bool follow_each_other(std::vector<Slice> slices) {
  std::erase_if(slices, [](const Slice& slice) { return slice.numel() == 0; });
  std::ranges::sort(slices, {}, &Slice::begin);
  int64_t end = 0;
  for (const Slice& slice : slices) {
    if (slice.begin != end || slice.numel() < 0) return false;
    end = slice.end;
  }
  return true;
}

class Hierarchical final : public Schedule {
 public:
  Hierarchical(std::shared_ptr<const Schedule> inner, Groups groups, ShardCuts cuts)
      : inner_(std::move(inner)), grouping_(kName, std::move(groups)), cuts_(std::move(cuts)) {
    if (inner_->size() != grouping_.num_groups()) {
      throw InvalidArgument(std::string(kName) + ": expected a schedule for " +
                            std::to_string(grouping_.num_groups()) + " groups, got one for " +
                            std::to_string(inner_->size()));
    }
    for (size_t segment = 0; segment < cuts_.size(); ++segment) check_cuts(segment);
  }
  std::string_view name() const override { return kName; }
  int size() const override { return grouping_.size(); }
  Stochasticity stochasticity() const override { return inner_->stochasticity(); }
  int num_phases(const RoundKey& key) const override { return inner_->num_phases(key) + 1; }

  Program program(const RoundKey& key, int64_t numel, int rank) const override {
    const Grouping::Place place = grouping_.place(rank);
    const std::vector<Slice>& cuts = cuts_of(key.segment, numel);
    Program program = inner_->program(key, numel, place.group);
    if (program.phases.empty()) return program;
    const bool carries = place.index < static_cast<int>(cuts.size());
    const Slice own = carries ? cuts[place.index] : Slice{};
    for (Phase& phase : program.phases) {
      restrict_to(own, place.index, phase.sends);
      restrict_to(own, place.index, phase.receives);
    }
    if (grouping_.members(place.group).size() > 1) program.phases.push_back(gather(place, cuts));
    return program;
  }

 private:
  void check_cuts(size_t segment) const {
    const std::string where = std::string(kName) + ": segment " + std::to_string(segment);
    size_t smallest = grouping_.members(0).size();
    for (int group = 1; group < grouping_.num_groups(); ++group) {
      smallest = std::min(smallest, grouping_.members(group).size());
    }
    if (cuts_[segment].empty() || cuts_[segment].size() > smallest) {
      throw InvalidArgument(where + ": expected 1 to " + std::to_string(smallest) +
                            " slices, got " + std::to_string(cuts_[segment].size()));
    }
    if (!follow_each_other(cuts_[segment])) {
      throw InvalidArgument(where + ": expected slices that follow each other from 0 on");
    }
  }

  const std::vector<Slice>& cuts_of(uint32_t segment, int64_t numel) const {
    const std::string where = std::string(kName) + ": segment " + std::to_string(segment);
    if (segment >= cuts_.size()) {
      throw InvalidArgument(where + ": expected one of " + std::to_string(cuts_.size()));
    }
    if (numel_of(cuts_[segment]) != numel) {
      throw InvalidArgument(where + ": expected " + std::to_string(numel_of(cuts_[segment])) +
                            " elements, got " + std::to_string(numel));
    }
    return cuts_[segment];
  }

  /// Keeps what falls into `own`, with the member `index` of each group in the group's place.
  template <typename Transfer>
  void restrict_to(const Slice& own, int index, std::vector<Transfer>& transfers) const {
    for (Transfer& transfer : transfers) transfer.slice = common(transfer.slice, own);
    std::erase_if(transfers, [](const Transfer& t) { return t.slice.numel() == 0; });
    for (Transfer& transfer : transfers) transfer.peer = grouping_.members(transfer.peer)[index];
  }

  Phase gather(const Grouping::Place& place, const std::vector<Slice>& cuts) const {
    const std::vector<int>& members = grouping_.members(place.group);
    Phase phase{.sends = {}, .receives = {}, .copies = true};
    for (int index = 0; index < static_cast<int>(members.size()); ++index) {
      if (index == place.index) continue;
      const auto holds = [&](int member) {
        return member < static_cast<int>(cuts.size()) && cuts[member].numel() > 0;
      };
      if (holds(place.index)) phase.sends.push_back({members[index], cuts[place.index]});
      if (holds(index)) phase.receives.push_back({members[index], cuts[index], 1.0});
    }
    return phase;
  }

  std::shared_ptr<const Schedule> inner_;
  Grouping grouping_;
  ShardCuts cuts_;
};

}  // namespace

std::unique_ptr<Schedule> hierarchical_schedule(std::shared_ptr<const Schedule> inner,
                                                Groups groups, ShardCuts cuts) {
  return std::make_unique<Hierarchical>(std::move(inner), std::move(groups), std::move(cuts));
}

}  // namespace crossover
