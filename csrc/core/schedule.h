// Who exchanges with whom: pure functions of (round, segment), evaluated alike on every rank.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/program.h"

namespace crossover {

/// Which sums of the mixing matrix W (row = receiver, column = source) are 1. kColumn is for
/// push-sum (push_sum.h) alone: there W says which share of its own each source gives away.
enum class Stochasticity { kDoubly, kRow, kColumn };

/// One draw: a round of one segment. `segment` is the index in model order.
struct RoundKey {
  uint64_t round = 0;
  uint32_t segment = 0;
};

struct WeightedPeer {
  int peer = 0;
  double weight = 0.0;
  bool operator==(const WeightedPeer&) const = default;
};

/// Row i of W without its diagonal: whom rank i receives from, in mixing order. The diagonal is
/// 1 minus the sum of the row's weights; with kColumn, 1 minus the sum of the column's.
using PeerRow = std::vector<WeightedPeer>;

/// Draws exchange programs. Thread-safe; two calls with the same arguments give the same answer,
/// on any rank, in any order.
class Schedule {
 public:
  virtual ~Schedule() = default;
  virtual std::string_view name() const = 0;
  virtual int size() const = 0;
  virtual Stochasticity stochasticity() const = 0;
  /// The part of `rank` in the exchange of a segment of `numel` elements; no phases if it is idle
  /// or the segment is empty. Throws InvalidArgument for a rank outside 0..size()-1.
  virtual Program program(const RoundKey& key, int64_t numel, int rank) const = 0;
};

/// One rank's part of a draw: its row, and the ranks whose rows name it, ascending.
struct Neighbours {
  PeerRow receives;
  std::vector<int> sends;
  double keep = 1.0;  // kColumn: the diagonal
  bool operator==(const Neighbours&) const = default;
};

/// A schedule of single-phase programs over whole segments: W is its rows.
class PeerSchedule : public Schedule {
 public:
  /// All `size()` rows of W for this draw.
  virtual std::vector<PeerRow> rows(const RoundKey& key) const = 0;
  /// The same draw as seen by `rank` alone, looked up in rows() unless a schedule has a cheaper
  /// way. rank in 0..size()-1.
  virtual Neighbours neighbours(const RoundKey& key, int rank) const;
  /// One phase: receives are the rank's row in its order, sends go to its neighbours' sends.
  Program program(const RoundKey& key, int64_t numel, int rank) const override;
};

/// Throws InvalidArgument unless every weight is > 0 and finite, no row names its own rank, a
/// peer twice or a peer outside 0..n-1, and W has `property` to 1e-9: every row's diagonal is >= 0
/// and, with kDoubly, every column's sum is 1; with kColumn every column's diagonal is > 0, so that
/// no rank is left without weight. `where` names the table in the message.
void check_rows(const std::vector<PeerRow>& rows, Stochasticity property, const std::string& where);

/// Throws InvalidArgument that names the schedule if size < 1.
void require_size(std::string_view name, int size);

// The makers below throw InvalidArgument for size < 1. With size 1 every draw is idle. Rows with
// several peers are in ascending order of peer.

/// Uniform derangement per (seed, round, segment), from a counter-based generator: every rank
/// receives from one other and sends to one other, weight 1/2. W = (I + P)/2. From the
/// CounterStream of (seed, round, segment): p = 0..n-1; for i = n-1 down to 1 swap p_i with
/// p_below(i+1); as soon as a final p_i equals i (p_0 included) start again at i = n-1 with p as it
/// is and the next words. Rank i receives from p_i. O(n).
/// Source: Crossover-SGD, arXiv 2012.15198.
std::unique_ptr<PeerSchedule> crossover_schedule(int size, uint64_t seed);

/// The derangements of the paper's authors, bit for bit: numpy's RandomState(seed) consumed one
/// map per segment per round in model order. `num_segments` >= 1 is part of the state; drawing a
/// segment beyond it throws InvalidArgument. For row i = 0..n-1 one uniform picks among the sources
/// that are unused and not i, but row n-2 takes n-1 without a draw while it is unused. Drawing a
/// round replays the generator from the last one drawn (from the start when going back): O(n^2)
/// per map.
std::unique_ptr<PeerSchedule> crossover_sequential_schedule(int size, uint32_t seed,
                                                            uint32_t num_segments);

/// One-peer exponential graph: in phase k rank r sends to r + 2^(k mod L) mod n, L = ceil(log2 n),
/// weight 1/2, with k = round + segment. Source: Assran et al., SGP, arXiv 1811.10792; Ying et
/// al., arXiv 2110.13363.
std::unique_ptr<PeerSchedule> exponential_schedule(int size);

/// Both neighbours on a ring, weight 1/3 each (n = 2: the other rank, 1/2).
std::unique_ptr<PeerSchedule> ring_schedule(int size);

/// Every other rank, weight 1/n: an exact average every round.
std::unique_ptr<PeerSchedule> complete_schedule(int size);

/// A user's own: W of round t, segment s is tables[(t + s * rotate) % tables.size()]. Every table
/// is checked against `property` here; there is at least one, with at least one row, and all have
/// the same number of rows.
std::unique_ptr<PeerSchedule> table_schedule(std::vector<std::vector<PeerRow>> tables,
                                             Stochasticity property, bool rotate_by_segment);

}  // namespace crossover
