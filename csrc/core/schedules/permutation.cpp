#include "core/schedules/permutation.h"

#include <algorithm>

namespace crossover {
namespace {

constexpr double kWeight = 0.5;

}  // namespace

PermutationSchedule::PermutationSchedule(std::string_view name, int size)
    : name_(name), size_(size) {
  require_size(name, size);
}

std::vector<PeerRow> PermutationSchedule::rows(const RoundKey& key) const {
  std::vector<PeerRow> rows(size_);
  if (size_ == 1) return rows;
  const std::vector<int> source = sources(key);
  for (int rank = 0; rank < size_; ++rank) rows[rank] = {{source[rank], kWeight}};
  return rows;
}

Neighbours PermutationSchedule::neighbours(const RoundKey& key, int rank) const {
  if (size_ == 1) return {};
  const std::vector<int> source = sources(key);
  const auto receiver = std::find(source.begin(), source.end(), rank);
  return {{{source[rank], kWeight}}, {static_cast<int>(receiver - source.begin())}};
}

}  // namespace crossover
