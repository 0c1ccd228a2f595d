#include "core/random.h"
#include "core/schedule.h"

namespace crossover {
namespace {

class ShiftSchedule final : public PeerSchedule {
 public:
  ShiftSchedule(int size, uint64_t seed) : size_(size), seed_(seed) { require_size(name(), size); }
  std::string_view name() const override { return "shift"; }
  int size() const override { return size_; }
  Stochasticity stochasticity() const override { return Stochasticity::kDoubly; }
  std::vector<PeerRow> rows(const RoundKey& key) const override {
    std::vector<PeerRow> rows(size_);
    if (size_ == 1) return rows;
    const int64_t shift = draw(key);
    for (int rank = 0; rank < size_; ++rank) rows[rank] = {{ahead(rank, shift), 0.5}};
    return rows;
  }
  Neighbours neighbours(const RoundKey& key, int rank) const override {
    if (size_ == 1) return {};
    const int64_t shift = draw(key);
    return {{{ahead(rank, shift), 0.5}}, {ahead(rank, size_ - shift)}};
  }

 private:
  int64_t draw(const RoundKey& key) const {
    CounterStream stream(seed_, key.round, key.segment);
    return int64_t{1} + stream.below(static_cast<uint32_t>(size_) - 1);
  }
  int ahead(int rank, int64_t shift) const { return static_cast<int>((rank + shift) % size_); }

  const int size_;
  const uint64_t seed_;
};

}  // namespace

std::unique_ptr<PeerSchedule> shift_schedule(int size, uint64_t seed) {
  return std::make_unique<ShiftSchedule>(size, seed);
}

}  // namespace crossover
