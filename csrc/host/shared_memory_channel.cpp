#include "host/shared_memory_channel.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <bit>
#include <memory>

#include "core/error.h"
#include "host/event_fd.h"
#include "host/shared_memory_pipe.h"
#include "host/system_call.h"

namespace crossover {

SharedMemoryChannel create_shared_memory_channel(size_t ring_bytes) {
  if (!std::has_single_bit(ring_bytes) || ring_bytes < page_bytes() || ring_bytes > kMaxRingBytes) {
    throw InvalidArgument("ring of " + std::to_string(ring_bytes) +
                          " bytes: expected a power of two, at least a page (" +
                          std::to_string(page_bytes()) + ")");
  }
  UniqueFd memory = create_memory_file(page_bytes() + 2 * ring_bytes);
  MappedMemory page(memory.get(), 0, page_bytes());
  std::construct_at(reinterpret_cast<ControlPage*>(page.data()))->ring_bytes = ring_bytes;
  return {.memory = std::move(memory), .wake_0 = EventFd().take(), .wake_1 = EventFd().take()};
}

// Without the seal against shrinking, the peer could truncate the file under our feet.
size_t checked_ring_bytes(int memory, const std::string& label) {
  struct stat status{};
  const int seals = ::fcntl(memory, F_GET_SEALS);
  if (seals == -1 || (seals & F_SEAL_SHRINK) == 0 || ::fstat(memory, &status) != 0) {
    throw TransportError(label + ": the descriptor is no memory file sealed against shrinking");
  }
  const auto file_bytes = static_cast<uint64_t>(status.st_size);
  const uint64_t ring_bytes = file_bytes > page_bytes() ? (file_bytes - page_bytes()) / 2 : 0;
  if (!std::has_single_bit(ring_bytes) || ring_bytes < page_bytes() || ring_bytes > kMaxRingBytes ||
      page_bytes() + 2 * ring_bytes != file_bytes) {
    throw TransportError(label + ": a memory file of " + std::to_string(file_bytes) +
                         " bytes does not hold a page and two rings");
  }
  MappedMemory page(memory, 0, page_bytes());
  const auto& control = *reinterpret_cast<const ControlPage*>(page.data());
  if (control.magic != kChannelMagic || control.ring_bytes != ring_bytes) {
    throw TransportError(label + ": the memory does not begin with a channel's header");
  }
  return ring_bytes;
}

}  // namespace crossover
