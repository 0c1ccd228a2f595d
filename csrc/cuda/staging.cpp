#include "cuda/staging.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace crossover {

CopyWaker::~CopyWaker() {
  try {
    runtime_.wait_for_stream(stream_.get());
  } catch (const std::exception&) {
    return;
  }
}

void CopyWaker::set(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
}

void CopyWaker::ask(PinnedChunk& chunk) {
  if (std::exchange(chunk.wake_asked, true)) return;
  chunk.copied.hold(stream_.get());
  runtime_.call_host(stream_.get(), &CopyWaker::on_copied, this);
}

// Called with the lock held, so that set() returns only when no call is under way.
void CopyWaker::on_copied(void* self) {
  auto& waker = *static_cast<CopyWaker*>(self);
  const std::lock_guard lock(waker.mutex_);
  if (waker.wake_) waker.wake_();
}

std::shared_ptr<PinnedChunk> Staging::take_chunk() {
  return chunks.take([](PinnedChunk& chunk) { return chunk.copied.is_done(); },
                     [this] { return std::make_unique<PinnedChunk>(*runtime); });
}

OutboundCopy::OutboundCopy(Staging& staging, CudaBuffer& buffer, CudaEvent& packed,
                           size_t num_bytes)
    : staging_(staging), buffer_(buffer), packed_(packed), num_bytes_(num_bytes) {
  packed_.hold(staging_.out.get());
}

void OutboundCopy::fetch() {
  const size_t chunk_of_given = given_bytes_ / kStagingChunkBytes;
  const size_t limit = std::min(num_bytes_, (chunk_of_given + chunks_.size()) * kStagingChunkBytes);
  while (fetched_bytes_ < limit) {
    std::shared_ptr<PinnedChunk>& chunk =
        chunks_[fetched_bytes_ / kStagingChunkBytes % chunks_.size()];
    if (!chunk) chunk = staging_.take_chunk();
    const size_t bytes = std::min(kStagingChunkBytes, num_bytes_ - fetched_bytes_);
    staging_.runtime->copy_to_host(chunk->memory.data(), buffer_.data() + fetched_bytes_, bytes,
                                   staging_.out.get());
    chunk->copied.record(staging_.out.get());
    chunk->wake_asked = false;
    buffer_.read().record(staging_.out.get());
    fetched_bytes_ += bytes;
  }
}

bool OutboundCopy::ready() {
  if (finished()) return false;
  fetch();
  return front().copied.is_done();
}

size_t OutboundCopy::take(std::span<std::byte> out) {
  const size_t at = given_bytes_ % kStagingChunkBytes;
  const size_t bytes = std::min({out.size(), kStagingChunkBytes - at, num_bytes_ - given_bytes_});
  std::memcpy(out.data(), front().memory.data() + at, bytes);
  given_bytes_ += bytes;
  return bytes;
}

void OutboundCopy::ask_to_be_woken() { staging_.waker.ask(front()); }

InboundCopy::InboundCopy(Staging& staging, CudaBuffer& buffer, size_t num_bytes)
    : staging_(staging), buffer_(buffer), num_bytes_(num_bytes) {
  check(num_bytes <= buffer.size_bytes(), "a sink fits its buffer");
}

bool InboundCopy::chunk_is_free() {
  std::shared_ptr<PinnedChunk>& chunk = chunks_[taken_bytes_ / kStagingChunkBytes % chunks_.size()];
  if (!chunk) chunk = staging_.take_chunk();
  if (taken_bytes_ % kStagingChunkBytes != 0 || chunk->copied.is_done()) return true;
  staging_.waker.ask(*chunk);
  return false;
}

size_t InboundCopy::consume(std::span<const std::byte> in) {
  const size_t before = taken_bytes_;
  while (!in.empty() && taken_bytes_ < num_bytes_ && chunk_is_free()) {
    const size_t at = taken_bytes_ % kStagingChunkBytes;
    const size_t bytes = std::min({in.size(), kStagingChunkBytes - at, num_bytes_ - taken_bytes_});
    PinnedChunk& chunk = *chunks_[taken_bytes_ / kStagingChunkBytes % chunks_.size()];
    std::memcpy(chunk.memory.data() + at, in.data(), bytes);
    in = in.subspan(bytes);
    taken_bytes_ += bytes;
    if (at + bytes == kStagingChunkBytes || taken_bytes_ == num_bytes_) send_chunk();
  }
  return taken_bytes_ - before;
}

void InboundCopy::send_chunk() {
  const StreamHandle stream = staging_.in.get();
  if (sent_bytes_ == 0) buffer_.read().hold(stream);
  PinnedChunk& chunk = *chunks_[sent_bytes_ / kStagingChunkBytes % chunks_.size()];
  staging_.runtime->copy_to_device(buffer_.data() + sent_bytes_, chunk.memory.data(),
                                   taken_bytes_ - sent_bytes_, stream);
  chunk.copied.record(stream);
  chunk.wake_asked = false;
  sent_bytes_ = taken_bytes_;
  if (sent_bytes_ == num_bytes_) buffer_.written().record(stream);
}

}  // namespace crossover
