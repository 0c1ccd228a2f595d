#include <algorithm>

#include "core/schedules/matching.h"

namespace crossover {
namespace {

/// Ranks r = c * 2^a + b: first a hypercube over b, then, for each b, the blocks of the odd part.
class Base2Schedule final : public MatchingSchedule {
 public:
  explicit Base2Schedule(int size) : MatchingSchedule("base2", size) {
    while ((size >> num_even_) % 2 == 0) ++num_even_;
    const int odd = size >> num_even_;
    for (int bits = 30; odd > 1 && bits >= 0; --bits) {
      if (((odd >> bits) & 1) != 0) blocks_.push_back({end(), bits});
    }
    if (!blocks_.empty()) num_odd_ = 2 * blocks_[0].bits + 1;
  }

 protected:
  std::optional<WeightedPeer> partner(const RoundKey& key, int rank) const override {
    const int period = num_even_ + num_odd_;
    if (period == 0) return std::nullopt;
    const int round = static_cast<int>((key.round % period + key.segment % period) % period);
    if (round < num_even_) return WeightedPeer{rank ^ (1 << round), 0.5};
    auto other = odd_partner(round - num_even_, rank >> num_even_);
    const int even = rank & ((1 << num_even_) - 1);
    if (other) other->peer = (other->peer << num_even_) | even;
    return other;
  }

 private:
  struct Block {
    int begin;
    int bits;
    int end() const { return begin + (1 << bits); }
  };

  int end() const { return blocks_.empty() ? 0 : blocks_.back().end(); }

  std::optional<WeightedPeer> odd_partner(int round, int node) const {
    const auto own =
        std::ranges::find_if(blocks_, [node](const Block& b) { return node < b.end(); });
    const int first = blocks_[0].bits;
    if (round < first) return within(*own, node, round);
    const auto step = round - first;  // block `step` meets all behind it; those before it are whole
    const auto index = static_cast<int>(own - blocks_.begin());
    if (index < step) return within(*own, node, step - index - 1);
    if (step + 1 >= static_cast<int>(blocks_.size())) return std::nullopt;
    return across(blocks_[step], node);
  }

  static std::optional<WeightedPeer> within(const Block& block, int node, int bit) {
    if (bit >= block.bits) return std::nullopt;
    return WeightedPeer{block.begin + ((node - block.begin) ^ (1 << bit)), 0.5};
  }

  /// The pairs of `block` with the blocks behind it, who have fewer nodes together.
  std::optional<WeightedPeer> across(const Block& block, int node) const {
    const double block_numel = 1 << block.bits;
    const double weight = block_numel / (end() - block.begin);
    if (node >= block.end()) return WeightedPeer{block.begin + node - block.end(), weight};
    const int other = block.end() + node - block.begin;
    if (other >= end()) return std::nullopt;
    return WeightedPeer{other, weight};
  }

  int num_even_ = 0;  // rounds of the hypercube
  int num_odd_ = 0;   // rounds of the blocks
  std::vector<Block> blocks_;
};

}  // namespace

std::unique_ptr<PeerSchedule> base2_schedule(int size) {
  require_size("base2", size);
  return std::make_unique<Base2Schedule>(size);
}

}  // namespace crossover
