#include "core/event.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace crossover {
namespace {

constexpr size_t kWords = (sizeof(EventRecord) + 7) / 8;
constexpr uint64_t kWriting = UINT64_MAX;
constexpr std::array<std::string_view, 8> kNames{"posted",  "send_begun", "sent",  "received",
                                                 "arrived", "mix_begun",  "mixed", "failed"};

}  // namespace

std::string_view event_kind_name(EventKind kind) { return kNames[static_cast<size_t>(kind)]; }

// A sequence lock per slot: `index` is that of the record held, kWriting while it changes. The
// words are atomics so that a racing read is torn at worst, and then left out.
struct EventRing::Slot {
  std::atomic<uint64_t> index{kWriting};
  std::array<std::atomic<uint64_t>, kWords> words;
};

EventRing::EventRing(size_t capacity)
    : capacity_(capacity), slots_(capacity > 0 ? std::make_unique<Slot[]>(capacity) : nullptr) {}

EventRing::~EventRing() = default;

void EventRing::add(const EventRecord& record) noexcept {
  if (capacity_ == 0) return;
  const uint64_t index = added_.fetch_add(1, std::memory_order_relaxed);
  Slot& slot = slots_[index % capacity_];
  std::array<uint64_t, kWords> words{};
  std::memcpy(words.data(), &record, sizeof(record));
  slot.index.store(kWriting, std::memory_order_seq_cst);
  for (size_t i = 0; i < kWords; ++i) slot.words[i].store(words[i], std::memory_order_seq_cst);
  slot.index.store(index, std::memory_order_seq_cst);
}

std::vector<EventRecord> EventRing::read(uint64_t first, uint64_t& next) const {
  std::vector<EventRecord> records;
  next = added_.load(std::memory_order_acquire);
  const uint64_t oldest = next > capacity_ ? next - capacity_ : 0;
  for (uint64_t index = std::max(first, oldest); index < next; ++index) {
    const Slot& slot = slots_[index % capacity_];
    if (slot.index.load(std::memory_order_seq_cst) != index) continue;
    std::array<uint64_t, kWords> words{};
    for (size_t i = 0; i < kWords; ++i) words[i] = slot.words[i].load(std::memory_order_seq_cst);
    if (slot.index.load(std::memory_order_seq_cst) != index) continue;
    EventRecord record;
    std::memcpy(static_cast<void*>(&record), words.data(), sizeof(record));
    records.push_back(record);
  }
  return records;
}

}  // namespace crossover
