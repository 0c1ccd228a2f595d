// Memory files and their mappings: owned, and absent in forked children.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "host/unique_fd.h"

namespace crossover {

size_t page_bytes();

/// A memfd of `num_bytes` zeros that nobody can resize any more. Throws TransportError if the
/// system refuses.
UniqueFd create_memory_file(size_t num_bytes);

/// A shared, writable mapping of a part of a memory file. Offsets and sizes are multiples of the
/// page size. All constructors throw TransportError if the system refuses.
class MappedMemory {
 public:
  /// Maps the part once, or `num_copies` times in a row.
  MappedMemory(int fd, size_t offset, size_t num_bytes, int num_copies = 1);
  ~MappedMemory();
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  std::byte* data() const { return data_; }
  /// False in a forked child, where nothing is mapped.
  bool accessible() const noexcept;

 private:
  std::byte* data_ = nullptr;
  size_t reserved_bytes_ = 0;
  uint64_t generation_ = 0;
};

/// Memory of a ring, mapped twice in a row: a stretch that starts anywhere is contiguous.
class MirroredRing {
 public:
  /// A ring in memory of its own. `num_bytes`: a power of two, >= the page size.
  explicit MirroredRing(size_t num_bytes);
  /// A ring in a part of a memory file, which must not be resizable.
  MirroredRing(int fd, size_t offset, size_t num_bytes);

  size_t num_bytes() const { return num_bytes_; }
  /// The `count` bytes (<= num_bytes()) from a position of the stream on.
  std::span<std::byte> at(uint64_t position, size_t count) const {
    return {memory_.data() + (position & (num_bytes_ - 1)), count};
  }

 private:
  size_t num_bytes_;
  MappedMemory memory_;
};

/// Bytes in order, first in, first out, with contiguous windows on the room and on the content.
class ByteQueue {
 public:
  explicit ByteQueue(size_t capacity_bytes) : ring_(capacity_bytes) {}

  size_t capacity_bytes() const { return ring_.num_bytes(); }
  size_t size_bytes() const { return end_ - begin_; }
  size_t room_bytes() const { return ring_.num_bytes() - size_bytes(); }
  /// Where the next bytes go; push() makes its first bytes content.
  std::span<std::byte> room() {
    if (begin_ == end_) begin_ = end_ = 0;  // stay where the cache is warm
    return ring_.at(end_, room_bytes());
  }
  void push(size_t num_bytes) { end_ += num_bytes; }
  std::span<const std::byte> content() const { return ring_.at(begin_, size_bytes()); }
  void pop(size_t num_bytes) { begin_ += num_bytes; }
  void clear() { begin_ = end_; }

 private:
  MirroredRing ring_;
  uint64_t begin_ = 0;
  uint64_t end_ = 0;
};

}  // namespace crossover
