// Programs of every topology through the engine, against the same arithmetic on plain arrays.
#include <gtest/gtest.h>

#include "core/engine.h"
#include "dense_reference.h"
#include "engine_world.h"

namespace crossover::testing {
namespace {

std::vector<std::shared_ptr<const Schedule>> every_schedule(int size) {
  const std::shared_ptr<const Schedule> groups = group_crossover_schedule(size, 3, 5);
  const std::shared_ptr<const Schedule> pairs = exponential_xor_schedule(size);
  return {crossover_schedule(size, 5, false),
          crossover_schedule(size, 5, true, false),
          shift_schedule(size, 5),
          pairs,
          base2_schedule(size),
          mixed_radix_schedule(size, {}),
          group_crossover_schedule(size, 2, 5),
          groups,
          group_crossover_schedule(size, 4, 5),
          all_reduce_schedule(size),
          repeated_schedule(pairs, 3),
          repeated_schedule(groups, 2),
          exact_average_schedule(crossover_schedule(size, 5), 3, 1),
          exact_average_schedule(repeated_schedule(crossover_schedule(size, 5), 2), 2, 0)};
}

SegmentPlan odd_plan(Dtype wire) {
  return SegmentPlan({make_segment("stem", {5, 0, 128}), make_segment("empty", {0}),
                      make_segment("body", {1000, 3}), make_segment("one", {1})},
                     wire, {3, 2, 1, 0});
}

class EnginePrograms : public ::testing::TestWithParam<std::tuple<Medium, int>> {};

INSTANTIATE_TEST_SUITE_P(Media, EnginePrograms,
                         ::testing::Combine(::testing::Values(Medium::kLocal,
                                                              Medium::kLocalWithFaults),
                                            ::testing::Values(2, 3, 4, 5, 6, 8, 12)),
                         [](const auto& info) {
                           return medium_name(std::get<0>(info.param)) +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(EnginePrograms, EqualTheirReferenceBitForBitAndSendWhatTheySay) {
  const auto [medium, size] = GetParam();
  EngineWorld world(medium, size);
  for (const Dtype wire : {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kInt8Blocks}) {
    const SegmentPlan plan = odd_plan(wire);
    for (const auto& schedule : every_schedule(size)) {
      std::vector<Replica> replicas = random_replicas(plan, size, 3);
      std::vector<Replica> reference = copy(plan, replicas);
      const uint32_t id = world.add_plan(plan, schedule);
      for (uint64_t round = 0; round < 5; ++round) {
        std::vector<uint64_t> sent_bytes;
        for (auto& e : world.engines) sent_bytes.push_back(e->counters().payload_sent_bytes);
        world.round(id, replicas);
        const auto expected = reference_programs(plan, *schedule, round, reference);
        expect_equal(replicas, reference);
        for (int rank = 0; rank < size; ++rank) {
          const uint64_t total = world.engines[rank]->counters().payload_sent_bytes;
          ASSERT_EQ(total - sent_bytes[rank], expected[rank]) << schedule->name();
        }
      }
      for (auto& engine : world.engines) engine->remove_plan(id);
    }
  }
}

TEST_P(EnginePrograms, AllReduceLeavesTheSameBitsOfTheMeanOnEveryRank) {
  const auto [medium, size] = GetParam();
  EngineWorld world(medium, size);
  const SegmentPlan plan = small_plan();
  std::vector<Replica> replicas = random_replicas(plan, size, 4);
  const std::vector<Replica> before = copy(plan, replicas);
  world.round(world.add_plan(plan, std::shared_ptr(all_reduce_schedule(size))), replicas);
  for (size_t t = 0; t < before[0].tensors.size(); ++t) {
    for (const Replica& replica : replicas) {
      ASSERT_TRUE(replica.tensors[t] == replicas[0].tensors[t]) << "tensor " << t;
    }
    for (size_t k = 0; k < before[0].tensors[t].size(); ++k) {
      double mean = 0;
      for (const Replica& replica : before) mean += replica.tensors[t][k];
      ASSERT_NEAR(replicas[0].tensors[t][k], mean / size, 1e-5);
    }
  }
}

/// A host's device that counts what it is asked for.
class CountingDevice final : public Device {
 public:
  MemoryKind memory() const override { return host_->memory(); }
  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override {
    allocated_bytes += bytes;
    return host_->allocate(bytes);
  }
  std::unique_ptr<MessageSource> source(const PackSpec& spec) override {
    return host_->source(spec);
  }
  std::unique_ptr<MessageSink> sink(DeviceBuffer& buffer, size_t num_bytes) override {
    return host_->sink(buffer, num_bytes);
  }
  void mix(const TensorList& tensors, Dtype own,
           std::span<const WeightedMessage> messages) override {
    host_->mix(tensors, own, messages);
  }
  void replace(const TensorList& tensors, Dtype own,
               std::span<const WeightedMessage> messages) override {
    host_->replace(tensors, own, messages);
  }

  size_t allocated_bytes = 0;

 private:
  const std::shared_ptr<HostDevice> host_ = host_device();
};

TEST(EngineMemory, DoesNotGrowWithTheNumberOfRoundsPerStep) {
  const SegmentPlan plan({make_segment("a", {1000})}, Dtype::kFloat32, {0});
  const auto allocated_bytes = [&](const std::shared_ptr<const Schedule>& schedule) {
    EngineWorld world(Medium::kLocal, 2);
    std::vector<Replica> replicas = random_replicas(plan, 2, 9);
    const auto device = std::make_shared<CountingDevice>();
    uint32_t id = 0;
    for (auto& engine : world.engines) id = engine->add_plan(plan, schedule, device, 0);
    for (int round = 0; round < 4; ++round) world.round(id, replicas);
    return device->allocated_bytes / 2;
  };
  const std::shared_ptr<const Schedule> pairs = exponential_schedule(2);
  EXPECT_EQ(allocated_bytes(pairs), 4000u);
  const size_t two = allocated_bytes(repeated_schedule(pairs, 2));
  EXPECT_LE(two, 4u * 4000);  // two inboxes, the copy, the message that it came from
  EXPECT_EQ(allocated_bytes(repeated_schedule(pairs, 7)), two);
}

TEST(EngineGroups, KeepTheMeanUnderBfloat16ToFloat32Rounding) {
  constexpr int kSize = 7;
  EngineWorld world(Medium::kLocal, kSize);
  const SegmentPlan plan({make_segment("a", {500})}, Dtype::kBfloat16, {0});
  const std::shared_ptr<const Schedule> groups = group_crossover_schedule(kSize, 4, 1);
  for (const auto& schedule :
       {groups, std::shared_ptr<const Schedule>(repeated_schedule(groups, 3)),
        std::shared_ptr<const Schedule>(mixed_radix_schedule(kSize, {}))}) {
    std::vector<Replica> replicas = random_replicas(plan, kSize, 9);
    const auto mean = [&](size_t k) {
      double total = 0;
      for (const Replica& replica : replicas) total += replica.tensors[0][k];
      return total / kSize;
    };
    std::vector<double> before;
    for (size_t k = 0; k < 500; ++k) before.push_back(mean(k));
    const uint32_t id = world.add_plan(plan, schedule);
    for (int round = 0; round < 10; ++round) world.round(id, replicas);
    for (size_t k = 0; k < 500; ++k) ASSERT_NEAR(mean(k), before[k], 2e-5) << schedule->name();
    for (auto& engine : world.engines) engine->remove_plan(id);
  }
}

TEST(EngineBase2, ReachesTheMeanOfTwelveRanksInFiveRounds) {
  constexpr int kSize = 12;
  EngineWorld world(Medium::kLocal, kSize);
  const SegmentPlan plan({make_segment("a", {300})}, Dtype::kFloat32, {0});
  std::vector<Replica> replicas = random_replicas(plan, kSize, 4);
  const std::vector<Replica> before = copy(plan, replicas);
  const uint32_t id = world.add_plan(plan, std::shared_ptr(base2_schedule(kSize)));
  for (int round = 0; round < 5; ++round) world.round(id, replicas);
  for (size_t k = 0; k < 300; ++k) {
    double mean = 0;
    for (const Replica& replica : before) mean += replica.tensors[0][k];
    for (const Replica& replica : replicas) ASSERT_NEAR(replica.tensors[0][k], mean / kSize, 2e-6);
  }
}

}  // namespace
}  // namespace crossover::testing
