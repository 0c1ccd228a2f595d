#include "core/groups.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/error.h"

namespace crossover {

Grouping::Grouping(std::string_view name, Groups groups) : name_(name), groups_(std::move(groups)) {
  size_t size = 0;
  for (const std::vector<int>& members : groups_) size += members.size();
  places_.assign(size, {-1, -1});
  for (int group = 0; group < num_groups(); ++group) {
    const std::vector<int>& members = groups_[group];
    const std::string where = std::string(name) + ": group " + std::to_string(group);
    if (members.empty()) throw InvalidArgument(where + ": has no members");
    for (int index = 0; index < static_cast<int>(members.size()); ++index) {
      const int rank = members[index];
      if (rank < 0 || rank >= this->size() || places_[rank].group >= 0) {
        throw InvalidArgument(where + ": expected each of the ranks 0.." +
                              std::to_string(this->size() - 1) + " in one group, got " +
                              std::to_string(rank) +
                              (rank < 0 || rank >= this->size() ? "" : " again"));
      }
      places_[rank] = {group, index};
    }
  }
  require_size(name, this->size());
}

Grouping::Place Grouping::place(int rank) const {
  if (rank < 0 || rank >= size()) {
    throw InvalidArgument(std::string(name_) + ": rank: expected 0.." + std::to_string(size() - 1) +
                          ", got " + std::to_string(rank));
  }
  return places_[rank];
}

}  // namespace crossover
