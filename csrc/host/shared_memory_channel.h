// The layout of the memory that two processes share, and the checks before it is used.
//
//   page 0                  ControlPage
//   page 1 ...              ring written by side 0
//   page 1 + ring_bytes ... ring written by side 1
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "host/mapped_memory.h"

namespace crossover {

inline constexpr uint64_t kChannelMagic = 0x31676e6972786f63;  // "coxring1"
inline constexpr uint64_t kMaxRingBytes = uint64_t{1} << 40;

/// What a side tells the other about itself.
enum class SideState : uint32_t {
  kOpen = 0,
  kFinished = 1,  // writes no more
  kClosed = 2,    // neither writes nor reads any more
};

/// What a sleeping side is to be woken for; bits of SharedSide::asleep_for.
inline constexpr uint32_t kForBytes = 1;  // new bytes, or another state of the peer
inline constexpr uint32_t kForRoom = 2;   // a write window
inline constexpr uint32_t kForEmpty = 4;  // the peer has read everything

/// Written by one side, read by the other; only `asleep_for` is cleared by the other. One cache
/// line per word, so that the two processors do not contend.
struct SharedSide {
  alignas(64) std::atomic<uint64_t> written_bytes{0};  // since the start, into its own ring
  alignas(64) std::atomic<uint64_t> read_bytes{0};     // since the start, out of the other's ring
  alignas(64) std::atomic<uint32_t> asleep_for{0};
  alignas(64) std::atomic<SideState> state{SideState::kOpen};
};

struct ControlPage {
  uint64_t magic = kChannelMagic;
  uint64_t ring_bytes = 0;
  SharedSide sides[2];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(std::atomic<uint32_t>::is_always_lock_free);
static_assert(std::atomic<SideState>::is_always_lock_free);
static_assert(sizeof(ControlPage) <= 4096);

/// The ring's size, from a memory file of the right size, seals and header. Throws TransportError
/// that begins with `label` and says what is wrong.
size_t checked_ring_bytes(int memory, const std::string& label);

}  // namespace crossover
