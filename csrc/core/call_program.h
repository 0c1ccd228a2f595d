// One collective of one rank as an exchange program: what it sends and receives, over memory that
// is lent for the time of the call. Pure functions of the arguments; every rank derives its own.
//
// | program        | steps                                                 | bytes sent by a rank |
// | all_reduce     | reduce-scatter and all-gather, chunk behind chunk     | 2 (n-1)/n N          |
// | reduce_scatter | each rank reduces what is its own                     | (n-1)/n N            |
// | reduce         | the root reduces                                      | N                    |
// | broadcast      | small: the root sends; large: it scatters, all gather | N (1 + (n-2)/n)      |
// | exchange       | any set of messages between pairs                     | as told              |
//
// What is reduced is combined in an order that the ranks alone decide, never arrival: the rank that
// reduces, then those that follow it in the circle of ranks. It is computed once and copied, so
// that every rank gets the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/reduction.h"

namespace crossover {

/// Bytes of a chunk: what is reduced or forwarded is so as soon as this much is there, while it is
/// in the cache. Equal on all ranks; a multiple of every element's size.
inline constexpr uint64_t kChunkBytes = uint64_t{128} << 10;

enum class CallKind : uint8_t {
  kAllReduce,
  kReduce,
  kReduceScatter,
  kBroadcast,
  kAllGather,
  kGather,
  kScatter,
  kAllToAll,
  kBarrier,
  kPointToPoint,
};

/// "all_reduce", ...
std::string_view call_kind_name(CallKind kind);
/// Inverse of call_kind_name. Throws InvalidArgument.
CallKind parse_call_kind(std::string_view name);

/// What must be equal on all ranks of a call. It travels with each message, where a gossiped
/// segment has its weight: 53 bits, as an integer that a double holds exactly.
struct CallSignature {
  CallKind kind = CallKind::kBarrier;
  ElementType element = ElementType::kOther;
  ReduceOp op = ReduceOp::kNone;
  int root = 0;        // modulo 256
  uint64_t numel = 0;  // modulo 2^32; 0 if ranks may differ

  double encoded() const;
  static CallSignature decoded(double code);
  /// "all_reduce(sum) of 64 float32", "broadcast of 3 int64 from rank 1".
  std::string describe() const;
};

struct Range {
  std::byte* data = nullptr;
  uint64_t num_bytes = 0;
};

/// Between two ranks the i-th send of one is the i-th receive of the other. Order of the lists
/// alone, not of time.
struct CallProgram {
  /// One message from each of `peers`, each as long as `into`. A receive that does not combine has
  /// one peer, and what arrives is copied. One that combines is of at most kChunkBytes; it does so
  /// in the order of `peers`, onto what `into` holds at the start of the call, and then divides by
  /// `divisor` if the reduction can.
  struct Receive {
    std::vector<int> peers;
    Range into;
    bool combines = false;
  };
  /// `after`: what is sent is what that receive has left. Without it the memory is sent as it is.
  struct Send {
    int peer = 0;
    Range from;
    std::optional<uint32_t> after = {};
  };

  CallSignature signature;
  Reduction reduction;
  int divisor = 1;
  std::vector<Receive> receives;
  std::vector<Send> sends;
  /// Messages between two ranks outside the order of the collectives: matched by this tag, in the
  /// order of their calls.
  std::optional<uint32_t> point_to_point_tag;
};

/// This rank's place, and what its elements are.
struct CallPlace {
  int rank = 0;
  int size = 1;
  int root = 0;
  ElementType element = ElementType::kOther;
  ReduceOp op = ReduceOp::kNone;
  Reduction reduction;
};

/// Every rank's `data` becomes the reduction of all.
CallProgram all_reduce_program(const CallPlace& place, Range data);
/// The root's `data` becomes the reduction of all; the others' stay.
CallProgram reduce_program(const CallPlace& place, Range data);
/// `output`, which holds inputs[rank] already, becomes the reduction of all ranks' inputs[rank].
/// Equal sizes.
CallProgram reduce_scatter_program(const CallPlace& place, std::span<const Range> inputs,
                                   Range output);
/// Every rank's `data` becomes the root's.
CallProgram broadcast_program(const CallPlace& place, Range data);

/// One message to or from a rank.
struct Message {
  int peer = 0;
  Range range;
};
/// Messages that depend on nothing; at most one to and one from each peer. `numel`: of the
/// signature.
CallProgram exchange_program(CallKind kind, const CallPlace& place, uint64_t numel,
                             std::span<const Message> sends, std::span<const Message> receives);

}  // namespace crossover
