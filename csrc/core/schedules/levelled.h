// A schedule of several levels, of which each round runs one: the only one whose draws depend on
// more than their key, for whoever measures chooses the level.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/dtype.h"
#include "core/schedule.h"

namespace crossover {

/// One way to run a round: who exchanges with whom, and the widest type on the wire.
struct Level {
  std::shared_ptr<const Schedule> schedule;
  Dtype wire = Dtype::kFloat32;
};

/// Rounds run level 0 until another one is chosen. Ranks that choose the same levels for the same
/// rounds, each before it draws them, draw alike. Programs carry the level's wire, so that their
/// messages are measured (`Program::wire`). Thread-safe.
class LevelledSchedule final : public Schedule {
 public:
  /// Throws InvalidArgument unless there is a level, all are for the same number of ranks, and none
  /// is column-stochastic: push-sum's rounds are single ones.
  explicit LevelledSchedule(std::vector<Level> levels);

  /// Rounds from `first_round` on run `level`; those before it what was chosen last. Throws
  /// InvalidArgument if there is no such level.
  void choose(uint32_t level, uint64_t first_round);

  std::string_view name() const override { return levels_[0].schedule->name(); }
  int size() const override { return levels_[0].schedule->size(); }
  Stochasticity stochasticity() const override { return levels_[0].schedule->stochasticity(); }
  int num_phases(const RoundKey& key) const override;
  Program program(const RoundKey& key, int64_t numel, int rank) const override;

 private:
  const Level& level_of(uint64_t round) const;

  const std::vector<Level> levels_;
  mutable std::mutex mutex_;
  uint32_t before_ = 0;  // the level of rounds before first_round_
  uint32_t chosen_ = 0;
  uint64_t first_round_ = 0;
};

}  // namespace crossover
