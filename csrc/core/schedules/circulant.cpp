#include "core/schedules/circulant.h"

#include <algorithm>

namespace crossover {
namespace {

int modulo(int64_t rank, int size) { return static_cast<int>((rank % size + size) % size); }

}  // namespace

CirculantSchedule::CirculantSchedule(std::string_view name, int size, std::vector<Offsets> phases)
    : name_(name), size_(size), phases_(std::move(phases)) {}

const CirculantSchedule::Offsets& CirculantSchedule::offsets(const RoundKey& key) const {
  const uint64_t period = phases_.size();
  return phases_[(key.round % period + key.segment % period) % period];
}

PeerRow CirculantSchedule::row(const Offsets& offsets, int rank) const {
  const double weight = 1.0 / (static_cast<double>(offsets.size()) + 1.0);
  PeerRow row;
  row.reserve(offsets.size());
  for (int offset : offsets) row.push_back({modulo(int64_t{rank} + offset, size_), weight});
  std::ranges::sort(row, {}, &WeightedPeer::peer);
  return row;
}

std::vector<PeerRow> CirculantSchedule::rows(const RoundKey& key) const {
  std::vector<PeerRow> rows(size_);
  for (int rank = 0; rank < size_; ++rank) rows[rank] = row(offsets(key), rank);
  return rows;
}

Neighbours CirculantSchedule::neighbours(const RoundKey& key, int rank) const {
  const Offsets& draw = offsets(key);
  std::vector<int> sends;
  sends.reserve(draw.size());
  for (int offset : draw) sends.push_back(modulo(int64_t{rank} - offset, size_));
  std::ranges::sort(sends);
  return {row(draw, rank), std::move(sends)};
}

}  // namespace crossover
