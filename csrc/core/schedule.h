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
  /// The most phases of any rank's program for this draw, whatever the segment's size.
  virtual int num_phases(const RoundKey& key) const = 0;
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
  int num_phases(const RoundKey& /*key*/) const override { return 1; }
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

/// Throws InvalidArgument that names the schedule unless rank is in 0..size()-1.
void require_rank(const Schedule& schedule, int rank);

// The makers below throw InvalidArgument for size < 1. With size 1 every draw is idle. Rows with
// several peers are in ascending order of peer.

/// Uniform derangement per (seed, round, segment), from a counter-based generator: every rank
/// receives from one other and sends to one other, weight 1/2. W = (I + P)/2. From the
/// CounterStream of (seed, round, segment): p = 0..n-1; for i = n-1 down to 1 swap p_i with
/// p_below(i+1); as soon as a final p_i equals i (p_0 included) start again at i = n-1 with p as it
/// is and the next words. Rank i receives from p_i. O(n).
/// Two ablations: not `segmentwise`, every segment takes the map of segment 0; not `fair`, sources
/// are drawn with replacement, W is only row-stochastic and the mean drifts: for i = 0..n-1 the
/// source of rank i is s + [s >= i], s = below(n - 1).
/// Source: Crossover-SGD, arXiv 2012.15198.
std::unique_ptr<PeerSchedule> crossover_schedule(int size, uint64_t seed, bool segmentwise = true,
                                                 bool fair = true);

/// The derangements of the paper's authors, bit for bit: numpy's RandomState(seed) consumed one
/// map per segment per round in model order. `num_segments` >= 1 is part of the state; drawing a
/// segment beyond it throws InvalidArgument. For row i = 0..n-1 one uniform picks among the sources
/// that are unused and not i, but row n-2 takes n-1 without a draw while it is unused. Drawing a
/// round replays the generator from the last one drawn (from the start when going back): O(n^2)
/// per map.
std::unique_ptr<PeerSchedule> crossover_sequential_schedule(int size, uint32_t seed,
                                                            uint32_t num_segments);

/// Everybody looks equally far ahead: rank r receives from r + s mod n and sends to r - s mod n,
/// weight 1/2, s = 1 + below(n - 1) from the CounterStream of (seed, round, segment). O(1).
/// Source: Song et al., EquiTopo, arXiv 2210.07881, whose one-peer graphs draw such shifts.
std::unique_ptr<PeerSchedule> shift_schedule(int size, uint64_t seed);

/// One-peer exponential graph: in phase k rank r sends to r + 2^(k mod L) mod n, L = ceil(log2 n),
/// weight 1/2, with k = round + segment. Source: Assran et al., SGP, arXiv 1811.10792; Ying et
/// al., arXiv 2110.13363.
std::unique_ptr<PeerSchedule> exponential_schedule(int size);

/// Its symmetric form: in phase k rank r exchanges with r xor 2^(k mod L), weight 1/2; a rank whose
/// partner would be n or more is idle. Source: Nguyen et al., arXiv 2311.01317 (hypercubes).
std::unique_ptr<PeerSchedule> exponential_xor_schedule(int size);

/// Pairs that reach the exact average in finite time for any n = 2^a q, q odd. With k = round +
/// segment mod T: for k < a rank r exchanges with r xor 2^k, weight 1/2. The rest is done alike for
/// all ranks with the same r mod 2^a, on nodes c = r div 2^a: these are cut into blocks V_1, V_2,
/// ..., V_L whose sizes 2^p1 > 2^p2 > ... sum to q. First p1 rounds of a hypercube within each
/// block (idle when done). Then for j = 1..L-1 one round in which node i of V_(j+1), ..., V_L,
/// counted through, exchanges with node i of V_j, weight |V_j| / (|V_j| + ... + |V_L|), upon which
/// V_j runs through its hypercube again while the next j goes on. T = a, or a + 2 p1 + 1 if q > 1.
/// Source: Takezawa et al., Beyond Exponential Graph, arXiv 2305.11420.
std::unique_ptr<PeerSchedule> base2_schedule(int size);

/// Exact averages along the digits of the rank: with n = p_0 p_1 ... p_(D-1) and d = round +
/// segment mod D, the p_d ranks that differ in digit d alone (digit 0 is the lowest) take their
/// average, as group_average.h says. D rounds give the exact average of all. `radices` lists the
/// p_d; empty: the prime factors of n, ascending. Throws InvalidArgument unless each is >= 2 and
/// their product is n. Source: Nguyen et al., arXiv 2311.01317 (p-peer hyper-cuboids).
std::unique_ptr<Schedule> mixed_radix_schedule(int size, std::vector<int> radices);

/// Random groups of at most m = `group_size` >= 1 ranks that take their average: a dial from pairs
/// (m = 2) to all-reduce (m >= n). Per draw p = 0..n-1; for i = n-1 down to 1 swap p_i with
/// p_below(i+1), below() from the CounterStream of (seed, round, segment); p is cut into
/// ceil(n / m) runs whose lengths differ by at most one, the longer ones first. O(n).
/// Source: Ryabinin et al., Moshpit SGD, arXiv 2103.03239 (averages in changing groups).
std::unique_ptr<Schedule> group_crossover_schedule(int size, int group_size, uint64_t seed);

/// Both neighbours on a ring, weight 1/3 each (n = 2: the other rank, 1/2).
std::unique_ptr<PeerSchedule> ring_schedule(int size);

/// Every other rank, weight 1/n: an exact average every round.
std::unique_ptr<PeerSchedule> complete_schedule(int size);

/// The same average in two phases, a reduce-scatter and an all-gather: 2 (n - 1)/n segments sent
/// instead of n - 1, and the same bits on every rank where the wire holds them.
std::unique_ptr<Schedule> all_reduce_schedule(int size);

/// A user's own: W of round t, segment s is tables[(t + s * rotate) % tables.size()]. Every table
/// is checked against `property` here; there is at least one, with at least one row, and all have
/// the same number of rows.
std::unique_ptr<PeerSchedule> table_schedule(std::vector<std::vector<PeerRow>> tables,
                                             Stochasticity property, bool rotate_by_segment);

// Schedules made of others; `inner` is not null.

/// Several rounds a step: round t runs rounds t R, ..., t R + R - 1 of `inner` one after the other,
/// as phases of one program. R = `rounds_per_step`; 0 throws InvalidArgument.
std::unique_ptr<Schedule> repeated_schedule(std::shared_ptr<const Schedule> inner,
                                            uint64_t rounds_per_step);

/// all_reduce_schedule() in the rounds t < `first` and, unless `every` is 0, in those with
/// t mod every = every - 1; `inner` in the others. Source: Chen et al., Gossip-PGA,
/// arXiv 2105.09080.
std::unique_ptr<Schedule> exact_average_schedule(std::shared_ptr<const Schedule> inner,
                                                 uint64_t every, uint64_t first);

/// `inner` among some ranks of a job of `size`: rank members[i] takes the part of rank i, the
/// others are idle. A PeerSchedule if `inner` is one. Throws InvalidArgument unless there are
/// inner->size() members, distinct ranks of the job.
std::unique_ptr<Schedule> among_members_schedule(std::shared_ptr<const Schedule> inner,
                                                 std::vector<int> members, int size);

}  // namespace crossover
