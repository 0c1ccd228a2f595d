#include "core/event.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace crossover {
namespace {

TEST(EventRing, KeepsTheLastRecordsInOrder) {
  EventRing ring(4);
  for (uint64_t i = 0; i < 10; ++i) ring.add({.round = i});
  uint64_t next = 0;
  const std::vector<EventRecord> records = ring.read(0, next);
  ASSERT_EQ(records.size(), 4u);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(records[i].round, 6 + i);
  EXPECT_EQ(next, 10u);
}

TEST(EventRing, ReadsOnFromWhereTheLastReadEnded) {
  EventRing ring(8);
  uint64_t next = 0;
  ring.add({.round = 1});
  EXPECT_EQ(ring.read(next, next).size(), 1u);
  EXPECT_TRUE(ring.read(next, next).empty());
  ring.add({.round = 2, .kind = EventKind::kMixed});
  const std::vector<EventRecord> records = ring.read(next, next);
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].kind, EventKind::kMixed);
}

TEST(EventRing, OfCapacityZeroKeepsNothing) {
  EventRing ring(0);
  ring.add({});
  uint64_t next = 0;
  EXPECT_TRUE(ring.read(0, next).empty());
}

TEST(EventRing, ReadersNeverSeeATornRecord) {
  EventRing ring(16);
  constexpr uint64_t kRecords = 20000;
  std::vector<std::jthread> writers;
  for (uint32_t plan = 0; plan < 2; ++plan) {
    writers.emplace_back([&ring, plan] {
      for (uint64_t i = 0; i < kRecords; ++i) {
        ring.add({.time_s = static_cast<double>(i), .round = i, .bytes = i, .plan = plan});
      }
    });
  }
  uint64_t next = 0;
  while (next < 2 * kRecords) {
    for (const EventRecord& record : ring.read(next, next)) {
      ASSERT_EQ(record.round, record.bytes);
      ASSERT_EQ(record.time_s, static_cast<double>(record.round));
    }
  }
}

}  // namespace
}  // namespace crossover
