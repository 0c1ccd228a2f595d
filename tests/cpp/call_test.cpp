// Collectives of engines turned by hand, over every medium, against the obvious loops.
#include "core/call.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/call_program.h"
#include "engine_world.h"
#include "host/host_reduction.h"

namespace crossover::testing {
namespace {

constexpr int64_t kChunkNumel = kChunkBytes / sizeof(float);

using Values = std::vector<std::vector<float>>;  // by rank

Values make_values(int size, int64_t numel) {
  Values values(size);
  for (int rank = 0; rank < size; ++rank) {
    for (int64_t k = 0; k < numel; ++k) values[rank].push_back(static_cast<float>(rank + k % 7));
  }
  return values;
}

Range range(std::vector<float>& values) {
  return {reinterpret_cast<std::byte*>(values.data()), values.size() * sizeof(float)};
}

CallPlace place(int rank, int size, ReduceOp op = ReduceOp::kSum, int root = 0) {
  return {rank, size, root, ElementType::kFloat32, op, host_reduction(ElementType::kFloat32, op)};
}

using MakeProgram = std::function<CallProgram(int rank)>;

class Calls : public ::testing::TestWithParam<std::tuple<Medium, int>> {
 protected:
  Medium medium() const { return std::get<0>(GetParam()); }
  int size() const { return std::get<1>(GetParam()); }

  void run(const MakeProgram& make) {
    EngineWorld world(medium(), size());
    std::vector<std::shared_ptr<Call>> calls;
    for (int rank = 0; rank < size(); ++rank) {
      calls.push_back(world.engines[rank]->start_call(make(rank), 30.0));
    }
    for (int turns = 0; turns < 200000; ++turns) {
      world.turn();
      bool all = true;
      for (int rank = 0; rank < size(); ++rank) {
        all = world.engines[rank]->wait_call(*calls[rank], 0.0) && all;
      }
      if (all) return;
    }
    FAIL() << "the calls did not end";
  }
};

TEST_P(Calls, AllReduceLeavesTheSumEverywhere) {
  for (const int64_t numel : {int64_t{0}, int64_t{1}, int64_t{65}, 5 * kChunkNumel + 3}) {
    Values values = make_values(size(), numel);
    std::vector<float> wanted(numel, 0.0f);
    for (const auto& own : values) {
      for (int64_t k = 0; k < numel; ++k) wanted[k] += own[k];
    }
    run([&](int rank) { return all_reduce_program(place(rank, size()), range(values[rank])); });
    for (const auto& found : values) EXPECT_EQ(found, wanted);
  }
}

TEST_P(Calls, BroadcastLeavesTheRootsValuesEverywhere) {
  for (const int64_t numel : {int64_t{5}, 3 * kChunkNumel + 1}) {
    Values values = make_values(size(), numel);
    const std::vector<float> wanted = values[size() - 1];
    run([&](int rank) {
      return broadcast_program(place(rank, size(), ReduceOp::kNone, size() - 1),
                               range(values[rank]));
    });
    for (const auto& found : values) EXPECT_EQ(found, wanted);
  }
}

TEST_P(Calls, ReduceScatterSumsEachRanksPart) {
  const int64_t numel = kChunkNumel + 1;
  std::vector<Values> inputs(size());
  Values outputs(size());
  std::vector<float> wanted(numel, 0.0f);
  for (int rank = 0; rank < size(); ++rank) {
    inputs[rank] = make_values(size(), numel);
    outputs[rank] = inputs[rank][rank];
  }
  run([&](int rank) {
    std::vector<Range> ranges;
    for (auto& part : inputs[rank]) ranges.push_back(range(part));
    return reduce_scatter_program(place(rank, size()), ranges, range(outputs[rank]));
  });
  for (int rank = 0; rank < size(); ++rank) {
    for (int64_t k = 0; k < numel; ++k) {
      ASSERT_EQ(outputs[rank][k], static_cast<float>(size()) * inputs[0][rank][k]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Media, Calls,
                         ::testing::Combine(::testing::Values(Medium::kLocal,
                                                              Medium::kLocalWithFaults,
                                                              Medium::kShared, Medium::kSocket),
                                            ::testing::Values(1, 2, 3, 5)),
                         [](const auto& tested) {
                           return medium_name(std::get<0>(tested.param)) +
                                  std::to_string(std::get<1>(tested.param));
                         });

// Sums of float32 depend on their order: equal bits mean that nobody adds in the order of arrival.
TEST(Call, TheOrderOfASumIsThatOfTheRanks) {
  const std::vector<float> terms{1e8f, 1.0f, -1e8f, 3.0f};
  const float wanted = ((terms[3] + terms[0]) + terms[1]) + terms[2];  // the last rank reduces
  for (uint64_t turns = 0; turns < 4; ++turns) {
    EngineWorld world(Medium::kLocalWithFaults, 4);
    Values values;
    std::vector<std::shared_ptr<Call>> calls(4);
    for (const float term : terms) values.push_back({term});
    for (int k = 0; k < 4; ++k) {
      const int rank = static_cast<int>((turns + k) % 4);
      calls[rank] = world.engines[rank]->start_call(
          all_reduce_program(place(rank, 4), range(values[rank])), 30.0);
      world.turn();
    }
    while (!world.engines[0]->wait_call(*calls[0], 0.0)) world.turn();
    EXPECT_EQ(values[0][0], wanted);
  }
}

TEST(Call, ALateOneFailsAndNamesWhoHasNotCome) {
  EngineWorld world(Medium::kLocal, 3);
  std::vector<float> values(8, 1.0f);
  std::vector<float> others(8, 1.0f);
  const auto call =
      world.engines[0]->start_call(all_reduce_program(place(0, 3), range(values)), 5.0);
  world.engines[1]->start_call(all_reduce_program(place(1, 3), range(others)), 50.0);
  for (int k = 0; k < 10; ++k) world.turn();
  world.clock.advance(5.0);
  for (int k = 0; k < 3; ++k) world.turn();
  try {
    world.engines[0]->wait_call(*call, 0.0);
    FAIL() << "expected ProgressTimeout";
  } catch (const ProgressTimeout& error) {
    EXPECT_NE(std::string(error.what()).find("waited 5 s for rank 2: alive"), std::string::npos)
        << error.what();
  }
  EXPECT_THROW(world.engines[0]->start_call(all_reduce_program(place(0, 3), range(values)), 5.0),
               ProgressTimeout);
}

TEST(Call, AfterAFailureNothingIsWrittenToItsMemory) {
  EngineWorld world(Medium::kLocal, 2);
  std::vector<float> into(1000, -1.0f);
  std::vector<float> from(1000, 2.0f);
  const Message expected{1, range(into)};
  const Message sent{0, range(from)};
  const auto call = world.engines[0]->start_call(
      exchange_program(CallKind::kAllToAll, place(0, 2, ReduceOp::kNone), 0, {}, {&expected, 1}),
      30.0);
  world.turn();
  world.engines[0]->fail(ErrorKind::kTransport, "the test says so");
  world.engines[0]->progress_once();
  EXPECT_THROW(world.engines[0]->wait_call(*call, 0.0), TransportError);
  EXPECT_TRUE(world.engines[0]->is_over(*call));
  world.engines[1]->start_call(
      exchange_program(CallKind::kAllToAll, place(1, 2, ReduceOp::kNone), 0, {&sent, 1}, {}), 30.0);
  for (int k = 0; k < 10; ++k) world.turn();
  EXPECT_EQ(into, std::vector<float>(1000, -1.0f));
}

TEST(CallSignature, SurvivesItsWayThroughADouble) {
  const CallSignature given{CallKind::kScatter, ElementType::kOther, ReduceOp::kXor, 255,
                            0xffffffff};
  EXPECT_EQ(CallSignature::decoded(given.encoded()).describe(), given.describe());
  EXPECT_EQ(given.describe(), "scatter(xor) of 4294967295 other with root 255");
}

}  // namespace
}  // namespace crossover::testing
