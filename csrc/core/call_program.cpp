#include "core/call_program.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.h"

namespace crossover {
namespace {

constexpr std::array<std::string_view, 10> kKindNames{
    "all_reduce", "reduce",  "reduce_scatter", "broadcast", "all_gather",
    "gather",     "scatter", "all_to_all",     "barrier",   "point_to_point"};
constexpr uint64_t kLineNumel = 64;  // shards begin at multiples of this

bool has_root(CallKind kind) {
  return kind == CallKind::kReduce || kind == CallKind::kBroadcast || kind == CallKind::kGather ||
         kind == CallKind::kScatter;
}

/// The `index`-th of `count` nearly equal parts, cut at whole lines of elements.
Range shard(Range data, size_t element_bytes, int index, int count) {
  const uint64_t numel = data.num_bytes / element_bytes;
  const uint64_t lines = (numel + kLineNumel - 1) / kLineNumel;
  const auto edge = [&](int i) {
    return std::min(numel, lines * static_cast<uint64_t>(i) / count * kLineNumel) * element_bytes;
  };
  return {data.data + edge(index), edge(index + 1) - edge(index)};
}

/// Parts of kChunkBytes, the last one shorter. None of an empty range.
std::vector<Range> chunks(Range range) {
  std::vector<Range> parts;
  for (uint64_t at = 0; at < range.num_bytes; at += kChunkBytes) {
    parts.push_back({range.data + at, std::min(kChunkBytes, range.num_bytes - at)});
  }
  return parts;
}

/// At least one: ranks that disagree about the size must meet. The last shard is the last to
/// vanish.
std::vector<Range> chunks_or_empty(Range range) {
  if (range.num_bytes == 0) return {range};
  return chunks(range);
}

/// The ranks after `rank` in the circle, this one left out.
std::vector<int> followers(int rank, int size) {
  std::vector<int> ranks;
  for (int step = 1; step < size; ++step) ranks.push_back((rank + step) % size);
  return ranks;
}

CallProgram program(CallKind kind, const CallPlace& place, uint64_t numel) {
  CallProgram made;
  made.signature = {kind, place.element, place.op, has_root(kind) ? place.root : 0, numel};
  made.reduction = place.reduction;
  if (place.reduction.divide) made.divisor = place.size;
  return made;
}

uint64_t numel_of(const CallPlace& place, Range data) {
  return data.num_bytes / place.reduction.element_bytes;
}

uint32_t last_receive(const CallProgram& program) {
  return static_cast<uint32_t>(program.receives.size() - 1);
}

}  // namespace

std::string_view call_kind_name(CallKind kind) { return kKindNames.at(static_cast<size_t>(kind)); }

CallKind parse_call_kind(std::string_view name) {
  const auto found = std::find(kKindNames.begin(), kKindNames.end(), name);
  if (found == kKindNames.end()) {
    throw InvalidArgument("collective: no kind '" + std::string(name) + "'");
  }
  return static_cast<CallKind>(found - kKindNames.begin());
}

double CallSignature::encoded() const {
  const auto field = [](auto value, int shift) { return static_cast<uint64_t>(value) << shift; };
  return static_cast<double>(field(kind, 49) | field(op, 45) | field(element, 40) |
                             field(root & 0xff, 32) | (numel & 0xffffffff));
}

CallSignature CallSignature::decoded(double code) {
  const auto bits = static_cast<uint64_t>(code);
  const auto field = [&](int shift, uint64_t count) {
    return std::min((bits >> shift) & 0xf, count - 1);
  };
  CallSignature made;
  made.kind = static_cast<CallKind>(field(49, kKindNames.size()));
  made.op = static_cast<ReduceOp>(field(45, 9));
  made.element = static_cast<ElementType>(field(40, 16));
  made.root = static_cast<int>((bits >> 32) & 0xff);
  made.numel = bits & 0xffffffff;
  return made;
}

std::string CallSignature::describe() const {
  std::string text(call_kind_name(kind));
  if (op != ReduceOp::kNone) text += "(" + std::string(reduce_op_name(op)) + ")";
  if (kind == CallKind::kBarrier) return text;
  text += " of " + (numel > 0 ? std::to_string(numel) + " " : std::string());
  text += element_name(element);
  if (has_root(kind)) text += " with root " + std::to_string(root);
  return text;
}

CallProgram all_reduce_program(const CallPlace& place, Range data) {
  CallProgram made = program(CallKind::kAllReduce, place, numel_of(place, data));
  const auto parts_of = [&](int rank) {
    const Range part = shard(data, place.reduction.element_bytes, rank, place.size);
    return rank + 1 == place.size ? chunks_or_empty(part) : chunks(part);
  };
  const std::vector<int> others = followers(place.rank, place.size);
  for (const Range& chunk : parts_of(place.rank)) {
    made.receives.push_back({others, chunk, true});
  }
  const auto num_own = static_cast<uint32_t>(made.receives.size());
  for (const int peer : others) {
    for (const Range& chunk : parts_of(peer)) {
      made.sends.push_back({peer, chunk});
      made.receives.push_back({{peer}, chunk});
    }
  }
  for (uint32_t index = 0; index < num_own; ++index) {
    for (const int peer : others) {
      made.sends.push_back({peer, made.receives[index].into, index});
    }
  }
  return made;
}

CallProgram reduce_program(const CallPlace& place, Range data) {
  CallProgram made = program(CallKind::kReduce, place, numel_of(place, data));
  for (const Range& chunk : chunks_or_empty(data)) {
    if (place.rank == place.root) {
      made.receives.push_back({followers(place.rank, place.size), chunk, true});
    } else {
      made.sends.push_back({place.root, chunk});
    }
  }
  return made;
}

CallProgram reduce_scatter_program(const CallPlace& place, std::span<const Range> inputs,
                                   Range output) {
  check(static_cast<int>(inputs.size()) == place.size, "one input per rank");
  CallProgram made = program(CallKind::kReduceScatter, place, numel_of(place, output));
  const std::vector<int> others = followers(place.rank, place.size);
  for (const Range& chunk : chunks_or_empty(output)) {
    made.receives.push_back({others, chunk, true});
  }
  for (const int peer : others) {
    for (const Range& chunk : chunks_or_empty(inputs[peer])) made.sends.push_back({peer, chunk});
  }
  return made;
}

CallProgram broadcast_program(const CallPlace& place, Range data) {
  CallProgram made = program(CallKind::kBroadcast, place, numel_of(place, data));
  const bool scatters = place.size > 2 && data.num_bytes > kChunkBytes;
  if (!scatters) {
    if (place.rank != place.root) made.receives.push_back({{place.root}, data});
    for (const int peer : followers(place.root, place.size)) {
      if (place.rank == place.root) made.sends.push_back({peer, data});
    }
    return made;
  }
  // Each rank but the root gets its shard first and passes it on to the others.
  const std::vector<int> owners = followers(place.root, place.size);
  for (int index = 0; index + 1 < place.size; ++index) {
    const int owner = owners[index];
    const Range part = shard(data, place.reduction.element_bytes, index, place.size - 1);
    for (const Range& chunk : chunks(part)) {
      if (place.rank == place.root) {
        made.sends.push_back({owner, chunk});
        continue;
      }
      made.receives.push_back({{owner == place.rank ? place.root : owner}, chunk});
      if (owner != place.rank) continue;
      for (const int peer : owners) {
        if (peer != place.rank) made.sends.push_back({peer, chunk, last_receive(made)});
      }
    }
  }
  return made;
}

CallProgram exchange_program(CallKind kind, const CallPlace& place, uint64_t numel,
                             std::span<const Message> sends, std::span<const Message> receives) {
  CallProgram made = program(kind, place, numel);
  for (const Message& message : sends) made.sends.push_back({message.peer, message.range});
  for (const Message& message : receives) made.receives.push_back({{message.peer}, message.range});
  return made;
}

}  // namespace crossover
