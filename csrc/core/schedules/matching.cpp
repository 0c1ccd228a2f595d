#include "core/schedules/matching.h"

namespace crossover {

MatchingSchedule::MatchingSchedule(std::string_view name, int size) : name_(name), size_(size) {
  require_size(name, size);
}

std::vector<PeerRow> MatchingSchedule::rows(const RoundKey& key) const {
  std::vector<PeerRow> rows(size_);
  for (int rank = 0; rank < size_; ++rank) {
    if (const auto other = partner(key, rank)) rows[rank] = {*other};
  }
  return rows;
}

Neighbours MatchingSchedule::neighbours(const RoundKey& key, int rank) const {
  const auto other = partner(key, rank);
  if (!other) return {};
  return {{*other}, {other->peer}};
}

}  // namespace crossover
