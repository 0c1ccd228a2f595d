// The order of launches.
#include "cuda/launch_queue.h"

#include <gtest/gtest.h>

#include <vector>

namespace crossover {
namespace {

class Note final : public MessageSink {
 public:
  size_t num_bytes() const override { return 4; }
  size_t consume(std::span<const std::byte>) override { return 0; }
};

class Queue : public ::testing::Test {
 protected:
  uint64_t add(const MessageTag& tag, int peer = 1) {
    return queue_.add({tag, peer, nullptr, &note_, 0, false});
  }
  void agree_all(const std::vector<uint64_t>& ids) {
    for (const uint64_t id : ids) queue_.agree(id);
  }

  LaunchQueue queue_;
  Note note_;
};

TEST_F(Queue, AGroupNeedsItsPostingAndAllItsPeers) {
  const uint64_t first = add({}, 1);
  const uint64_t second = add({}, 2);
  queue_.agree(first);
  EXPECT_FALSE(queue_.launchable());
  queue_.post({}, true);
  EXPECT_FALSE(queue_.launchable());
  queue_.agree(second);
  EXPECT_EQ(queue_.take().size(), 2u);
  EXPECT_FALSE(queue_.launchable());
}

TEST_F(Queue, SegmentsAreLaunchedInTheOrderOfPostingWhateverIsAgreedFirst) {
  add({.segment = 7});
  add({.segment = 3});
  const auto early = queue_.post({.segment = 7}, true);
  const auto late = queue_.post({.segment = 3}, true);
  agree_all(late);
  EXPECT_TRUE(queue_.take().empty());
  agree_all(early);
  EXPECT_EQ(queue_.take().front().tag.segment, 7u);
  EXPECT_EQ(queue_.take().front().tag.segment, 3u);
}

TEST_F(Queue, AllPhasesOfASegmentComeBeforeTheNextSegment) {
  for (const uint32_t phase : {0u, 1u}) add({.segment = 0, .phase = phase});
  add({.segment = 1});
  agree_all(queue_.post({.segment = 0, .phase = 0}, false));
  agree_all(queue_.post({.segment = 1}, true));
  EXPECT_EQ(queue_.take().front().tag.phase, 0u);
  EXPECT_TRUE(queue_.take().empty());
  agree_all(queue_.post({.segment = 0, .phase = 1}, true));
  EXPECT_EQ(queue_.take().front().tag.phase, 1u);
  EXPECT_EQ(queue_.take().front().tag.segment, 1u);
}

TEST_F(Queue, APhaseWithoutMessagesIsSkipped) {
  add({.segment = 1, .phase = 1});
  queue_.post({.segment = 0}, true);
  queue_.post({.segment = 1, .phase = 0}, false);
  agree_all(queue_.post({.segment = 1, .phase = 1}, true));
  EXPECT_EQ(queue_.take().front().tag, (MessageTag{.segment = 1, .phase = 1}));
}

TEST_F(Queue, APlanThatIsForgottenGivesItsTurnToTheNext) {
  const uint64_t dropped = add({.plan = 0});
  add({.plan = 1});
  queue_.post({.plan = 0}, true);
  agree_all(queue_.post({.plan = 1}, true));
  queue_.forget_plan(0);
  queue_.agree(dropped);
  EXPECT_EQ(queue_.take().front().tag.plan, 1u);
}

TEST_F(Queue, KnowsWhomAnAgreedMessageStillInvolves) {
  add({}, 4);
  const auto ids = queue_.post({}, true);
  EXPECT_FALSE(queue_.awaits(4));
  agree_all(ids);
  EXPECT_TRUE(queue_.awaits(4));
  EXPECT_FALSE(queue_.awaits(5));
  queue_.take();
  EXPECT_FALSE(queue_.awaits(4));
}

}  // namespace
}  // namespace crossover
