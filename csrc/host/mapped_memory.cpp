#include "host/mapped_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <string>

#include "core/error.h"
#include "host/fork_guard.h"
#include "host/system_call.h"

namespace crossover {
namespace {

void* checked_mapping(void* address) {
  if (address == MAP_FAILED) {
    throw TransportError("cannot map shared memory: " + error_text(errno));
  }
  return address;
}

UniqueFd checked_ring_file(size_t num_bytes) {
  check(std::has_single_bit(num_bytes) && num_bytes >= page_bytes(),
        "a ring is a power of two of bytes and at least a page");
  return create_memory_file(num_bytes);
}

}  // namespace

size_t page_bytes() { return static_cast<size_t>(::sysconf(_SC_PAGESIZE)); }

UniqueFd create_memory_file(size_t num_bytes) {
  UniqueFd file(checked(::memfd_create("crossover", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd"));
  checked(::ftruncate(file.get(), static_cast<off_t>(num_bytes)), "size of a memfd");
  checked(::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
          "seals of a memfd");
  return file;
}

MappedMemory::MappedMemory(int fd, size_t offset, size_t num_bytes, int num_copies)
    : reserved_bytes_(num_bytes * num_copies), generation_(fork_guard::generation()) {
  void* reserved = checked_mapping(::mmap(nullptr, reserved_bytes_, PROT_NONE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  data_ = static_cast<std::byte*>(reserved);
  try {
    for (int copy = 0; copy < num_copies; ++copy) {
      checked_mapping(::mmap(data_ + copy * num_bytes, num_bytes, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_FIXED, fd, static_cast<off_t>(offset)));
    }
    checked(::madvise(data_, reserved_bytes_, MADV_DONTFORK), "madvise of shared memory");
  } catch (const TransportError&) {
    ::munmap(data_, reserved_bytes_);
    throw;
  }
}

// In a child other memory may lie at these addresses by now.
MappedMemory::~MappedMemory() {
  if (accessible()) ::munmap(data_, reserved_bytes_);
}

bool MappedMemory::accessible() const noexcept { return generation_ == fork_guard::generation(); }

MirroredRing::MirroredRing(size_t num_bytes)
    : MirroredRing(checked_ring_file(num_bytes).get(), 0, num_bytes) {}

MirroredRing::MirroredRing(int fd, size_t offset, size_t num_bytes)
    : num_bytes_(num_bytes), memory_(fd, offset, num_bytes, 2) {}

}  // namespace crossover
