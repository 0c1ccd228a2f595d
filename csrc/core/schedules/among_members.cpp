#include <algorithm>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/schedule.h"

namespace crossover {
namespace {

constexpr std::string_view kName = "among_members";

/// Who takes which part: `parts[rank]` is a rank of the inner schedule, -1 for outsiders.
class Membership {
 public:
  Membership(std::vector<int> members, int size) : members_(std::move(members)), parts_(size, -1) {
    for (size_t part = 0; part < members_.size(); ++part) {
      const int rank = members_[part];
      if (rank < 0 || rank >= size || parts_[rank] >= 0) {
        throw InvalidArgument(std::string(kName) + ": expected distinct ranks in 0.." +
                              std::to_string(size - 1) + ", got " + std::to_string(rank) +
                              (rank < 0 || rank >= size ? "" : " again"));
      }
      parts_[rank] = static_cast<int>(part);
    }
  }
  int size() const { return static_cast<int>(parts_.size()); }
  int num_members() const { return static_cast<int>(members_.size()); }
  int rank(int part) const { return members_[part]; }
  int part(int rank) const { return parts_[rank]; }

 private:
  std::vector<int> members_;
  std::vector<int> parts_;
};

class AmongMembers final : public Schedule {
 public:
  AmongMembers(std::shared_ptr<const Schedule> inner, Membership membership)
      : inner_(std::move(inner)), membership_(std::move(membership)) {}
  std::string_view name() const override { return inner_->name(); }
  int size() const override { return membership_.size(); }
  Stochasticity stochasticity() const override { return inner_->stochasticity(); }
  int num_phases(const RoundKey& key) const override { return inner_->num_phases(key); }

  Program program(const RoundKey& key, int64_t numel, int rank) const override {
    require_rank(*this, rank);
    const int part = membership_.part(rank);
    if (part < 0) return {};
    Program program = inner_->program(key, numel, part);
    for (Phase& phase : program.phases) {
      for (Send& send : phase.sends) send.peer = membership_.rank(send.peer);
      for (Receive& receive : phase.receives) receive.peer = membership_.rank(receive.peer);
    }
    return program;
  }

 private:
  const std::shared_ptr<const Schedule> inner_;
  const Membership membership_;
};

class PeersAmongMembers final : public PeerSchedule {
 public:
  PeersAmongMembers(std::shared_ptr<const PeerSchedule> inner, Membership membership)
      : inner_(std::move(inner)), membership_(std::move(membership)) {}
  std::string_view name() const override { return inner_->name(); }
  int size() const override { return membership_.size(); }
  Stochasticity stochasticity() const override { return inner_->stochasticity(); }

  std::vector<PeerRow> rows(const RoundKey& key) const override {
    std::vector<PeerRow> all(size());
    std::vector<PeerRow> inner = inner_->rows(key);
    for (int part = 0; part < membership_.num_members(); ++part) {
      all[membership_.rank(part)] = named(std::move(inner[part]));
    }
    return all;
  }

  Neighbours neighbours(const RoundKey& key, int rank) const override {
    const int part = membership_.part(rank);
    if (part < 0) return {};
    Neighbours own = inner_->neighbours(key, part);
    own.receives = named(std::move(own.receives));
    for (int& peer : own.sends) peer = membership_.rank(peer);
    std::ranges::sort(own.sends);
    return own;
  }

 private:
  PeerRow named(PeerRow row) const {
    for (WeightedPeer& entry : row) entry.peer = membership_.rank(entry.peer);
    return row;
  }

  const std::shared_ptr<const PeerSchedule> inner_;
  const Membership membership_;
};

}  // namespace

std::unique_ptr<Schedule> among_members_schedule(std::shared_ptr<const Schedule> inner,
                                                 std::vector<int> members, int size) {
  require_size(kName, size);
  Membership membership(std::move(members), size);
  if (inner->size() != membership.num_members()) {
    throw InvalidArgument(std::string(kName) + ": expected a schedule for " +
                          std::to_string(membership.num_members()) + " members, got one for " +
                          std::to_string(inner->size()));
  }
  auto peers = std::dynamic_pointer_cast<const PeerSchedule>(inner);
  if (peers) return std::make_unique<PeersAmongMembers>(std::move(peers), std::move(membership));
  return std::make_unique<AmongMembers>(std::move(inner), std::move(membership));
}

}  // namespace crossover
