#include "core/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/error.h"

namespace crossover {
namespace {

constexpr double kTolerance = 1e-9;

std::string text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), "%.10g", value);
  return buffer;
}

double weight_sum(const PeerRow& row) {
  double sum = 0.0;
  for (const WeightedPeer& entry : row) sum += entry.weight;
  return sum;
}

void check_entries(const PeerRow& row, int rank, int size, const std::string& where) {
  std::vector<bool> named(size, false);
  for (const auto& [peer, weight] : row) {
    const std::string entry = where + ": peer " + std::to_string(peer);
    if (peer < 0 || peer >= size) {
      throw InvalidArgument(entry + ": expected a rank in 0.." + std::to_string(size - 1));
    }
    if (peer == rank) {
      throw InvalidArgument(entry +
                            ": is the row's own rank, whose weight is what the others leave");
    }
    if (named[peer]) throw InvalidArgument(entry + ": is named twice");
    if (!std::isfinite(weight) || weight <= 0.0) {
      throw InvalidArgument(entry + ": expected a finite weight > 0, got " + text(weight));
    }
    named[peer] = true;
  }
}

void check_row_sum(const PeerRow& row, const std::string& where) {
  const double sum = weight_sum(row);
  if (sum > 1.0 + kTolerance) {
    throw InvalidArgument(where + ": expected weights that sum to at most 1, got " + text(sum));
  }
}

void check_columns(const std::vector<PeerRow>& rows, const std::string& where) {
  std::vector<double> sums(rows.size());
  for (size_t rank = 0; rank < rows.size(); ++rank) {
    sums[rank] += 1.0 - weight_sum(rows[rank]);
    for (const auto& [peer, weight] : rows[rank]) sums[peer] += weight;
  }
  for (size_t column = 0; column < sums.size(); ++column) {
    if (std::abs(sums[column] - 1.0) <= kTolerance) continue;
    throw InvalidArgument(where + ", column " + std::to_string(column) +
                          ": expected a sum of 1 with the diagonal, got " + text(sums[column]));
  }
}

std::vector<double> given_shares(const std::vector<PeerRow>& rows) {
  std::vector<double> shares(rows.size());
  for (const PeerRow& row : rows) {
    for (const auto& [peer, weight] : row) shares[peer] += weight;
  }
  return shares;
}

void check_shares(const std::vector<PeerRow>& rows, const std::string& where) {
  const std::vector<double> shares = given_shares(rows);
  for (size_t column = 0; column < shares.size(); ++column) {
    if (shares[column] < 1.0 - kTolerance) continue;
    throw InvalidArgument(where + ", column " + std::to_string(column) +
                          ": expected shares whose sum leaves the rank a part, below 1, got " +
                          text(shares[column]));
  }
}

}  // namespace

Neighbours PeerSchedule::neighbours(const RoundKey& key, int rank) const {
  std::vector<PeerRow> all = rows(key);
  std::vector<int> sends;
  for (size_t receiver = 0; receiver < all.size(); ++receiver) {
    if (std::ranges::find(all[receiver], rank, &WeightedPeer::peer) != all[receiver].end()) {
      sends.push_back(static_cast<int>(receiver));
    }
  }
  const bool gives = stochasticity() == Stochasticity::kColumn;
  const double keep = gives ? 1.0 - given_shares(all)[rank] : 1.0;
  return {std::move(all[rank]), std::move(sends), keep};
}

Program PeerSchedule::program(const RoundKey& key, int64_t numel, int rank) const {
  require_rank(*this, rank);
  if (numel == 0) return {};
  const Neighbours own = neighbours(key, rank);
  if (own.receives.empty() && own.sends.empty()) return {};
  const Slice whole{0, numel};
  Phase phase;
  const bool gives = stochasticity() == Stochasticity::kColumn;
  phase.keep = gives ? own.keep : 1.0 - weight_sum(own.receives);
  for (int peer : own.sends) phase.sends.push_back({peer, whole});
  for (const auto& [peer, weight] : own.receives) phase.receives.push_back({peer, whole, weight});
  return {{std::move(phase)}};
}

void check_rows(const std::vector<PeerRow>& rows, Stochasticity property,
                const std::string& where) {
  const int size = static_cast<int>(rows.size());
  for (int rank = 0; rank < size; ++rank) {
    const std::string row = where + ", row " + std::to_string(rank);
    check_entries(rows[rank], rank, size, row);
    if (property != Stochasticity::kColumn) check_row_sum(rows[rank], row);
  }
  if (property == Stochasticity::kDoubly) check_columns(rows, where);
  if (property == Stochasticity::kColumn) check_shares(rows, where);
}

void require_size(std::string_view name, int size) {
  if (size >= 1) return;
  throw InvalidArgument(std::string(name) + ": size: expected at least 1, got " +
                        std::to_string(size));
}

void require_rank(const Schedule& schedule, int rank) {
  if (rank >= 0 && rank < schedule.size()) return;
  throw InvalidArgument(std::string(schedule.name()) + ": rank: expected 0.." +
                        std::to_string(schedule.size() - 1) + ", got " + std::to_string(rank));
}

}  // namespace crossover
