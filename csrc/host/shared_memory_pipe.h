// A Pipe between two processes of one host: two rings of bytes in a sealed memfd, woken by
// eventfds.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/pipe.h"
#include "host/unique_fd.h"

namespace crossover {

inline constexpr size_t kDefaultRingBytes = size_t{1} << 20;

/// The descriptors both ends share. Side 0 is the process that created it.
struct SharedMemoryChannel {
  UniqueFd memory;  // memfd, sized and sealed against resizing
  UniqueFd wake_0;  // eventfd that wakes side 0
  UniqueFd wake_1;  // eventfd that wakes side 1
};

/// Makes a channel with `ring_bytes` (a power of two, >= the page size) in each direction. Throws
/// InvalidArgument for another size, TransportError if the system refuses.
SharedMemoryChannel create_shared_memory_channel(size_t ring_bytes = kDefaultRingBytes);

/// One end. `side` 0 or 1; `process` is a pidfd of the peer: when that process ends, so does the
/// pipe, after what is left in the ring. The size of the ring is read from the memory and checked:
/// a channel that does not look like ours raises TransportError. Whatever the peer writes into the
/// memory later, no access leaves the ring: a counter out of range ends the pipe. `label` names the
/// peer in messages, e.g. "process 123". The ring is mapped twice in a row so that windows are
/// contiguous, and is absent in forked children.
std::unique_ptr<Pipe> shared_memory_pipe(SharedMemoryChannel channel, int side, UniqueFd process,
                                         std::string label);

}  // namespace crossover
