#include "core/schedules/one_source.h"

namespace crossover {
namespace {

constexpr double kWeight = 0.5;

}  // namespace

OneSourceSchedule::OneSourceSchedule(std::string_view name, int size, Stochasticity property)
    : name_(name), size_(size), property_(property) {
  require_size(name, size);
}

std::vector<PeerRow> OneSourceSchedule::rows(const RoundKey& key) const {
  std::vector<PeerRow> rows(size_);
  if (size_ == 1) return rows;
  const std::vector<int> source = sources(key);
  for (int rank = 0; rank < size_; ++rank) rows[rank] = {{source[rank], kWeight}};
  return rows;
}

Neighbours OneSourceSchedule::neighbours(const RoundKey& key, int rank) const {
  if (size_ == 1) return {};
  const std::vector<int> source = sources(key);
  Neighbours own{{{source[rank], kWeight}}, {}};
  for (int receiver = 0; receiver < size_; ++receiver) {
    if (source[receiver] == rank) own.sends.push_back(receiver);
  }
  return own;
}

}  // namespace crossover
