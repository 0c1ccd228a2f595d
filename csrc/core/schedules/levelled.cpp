#include "core/schedules/levelled.h"

#include <string>
#include <utility>

#include "core/error.h"

namespace crossover {
namespace {

std::vector<Level> checked(std::vector<Level> levels) {
  if (levels.empty()) throw InvalidArgument("levels: expected at least one, got none");
  for (const Level& level : levels) {
    if (level.schedule->size() != levels[0].schedule->size()) {
      throw InvalidArgument("levels: expected schedules for " +
                            std::to_string(levels[0].schedule->size()) + " ranks, got one for " +
                            std::to_string(level.schedule->size()));
    }
    if (level.schedule->stochasticity() == Stochasticity::kColumn) {
      throw InvalidArgument("levels: expected no push-sum, got the column-stochastic schedule '" +
                            std::string(level.schedule->name()) + "'");
    }
  }
  return levels;
}

}  // namespace

LevelledSchedule::LevelledSchedule(std::vector<Level> levels)
    : levels_(checked(std::move(levels))) {}

void LevelledSchedule::choose(uint32_t level, uint64_t first_round) {
  if (level >= levels_.size()) {
    throw InvalidArgument("choose: expected a level below " + std::to_string(levels_.size()) +
                          ", got " + std::to_string(level));
  }
  const std::lock_guard lock(mutex_);
  before_ = std::exchange(chosen_, level);
  first_round_ = first_round;
}

const Level& LevelledSchedule::level_of(uint64_t round) const {
  const std::lock_guard lock(mutex_);
  return levels_[round < first_round_ ? before_ : chosen_];
}

int LevelledSchedule::num_phases(const RoundKey& key) const {
  return level_of(key.round).schedule->num_phases(key);
}

Program LevelledSchedule::program(const RoundKey& key, int64_t numel, int rank) const {
  const Level& level = level_of(key.round);
  Program program = level.schedule->program(key, numel, rank);
  program.wire = level.wire;
  return program;
}

}  // namespace crossover
