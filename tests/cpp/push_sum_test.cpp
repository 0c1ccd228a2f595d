// Push-sum through the engine against the dense x' = P x, w' = P w, z = x / w.
#include "core/push_sum.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>

#include "core/error.h"
#include "engine_world.h"

namespace crossover::testing {
namespace {

/// A ring, so that it is connected, and random edges; rank j keeps as much as it gives to each.
std::vector<PeerRow> irregular_shares(int size, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<std::vector<int>> receivers(size);
  for (int rank = 0; rank < size; ++rank) {
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      if (peer == (rank + 1) % size || generator() % 3 == 0) receivers[rank].push_back(peer);
    }
  }
  std::vector<PeerRow> rows(size);
  for (int rank = 0; rank < size; ++rank) {
    const double share = 1.0 / (1.0 + static_cast<double>(receivers[rank].size()));
    for (const int peer : receivers[rank]) rows[peer].push_back({rank, share});
  }
  return rows;
}

/// x = w z of one element and w, by rank, under dense P.
struct Dense {
  std::vector<double> x, w;
  void step(const std::vector<PeerRow>& rows) {
    Dense next{std::vector<double>(x.size()), std::vector<double>(x.size())};
    std::vector<double> keep(x.size(), 1.0);
    for (size_t i = 0; i < rows.size(); ++i) {
      for (const auto& [j, share] : rows[i]) {
        next.x[i] += share * x[j];
        next.w[i] += share * w[j];
        keep[j] -= share;
      }
    }
    for (size_t i = 0; i < x.size(); ++i) {
      next.x[i] += keep[i] * x[i];
      next.w[i] += keep[i] * w[i];
    }
    *this = next;
  }
};

class PushSumOverMedia : public ::testing::TestWithParam<std::tuple<Medium, int>> {};

INSTANTIATE_TEST_SUITE_P(Media, PushSumOverMedia,
                         ::testing::Combine(::testing::Values(Medium::kLocalWithFaults,
                                                              Medium::kShared, Medium::kSocket),
                                            ::testing::Values(2, 3, 4, 5, 6, 8, 12)),
                         [](const auto& info) {
                           return medium_name(std::get<0>(info.param)) +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(PushSumOverMedia, EqualsTheDenseReferenceAndKeepsTheWeightedMean) {
  const auto [medium, size] = GetParam();
  const std::vector<std::vector<PeerRow>> tables{irregular_shares(size, 1),
                                                 irregular_shares(size, 2)};
  const std::shared_ptr<PeerSchedule> schedule =
      table_schedule(tables, Stochasticity::kColumn, true);
  const SegmentPlan plan({make_segment("a", {3}), make_segment("b", {70001})}, Dtype::kFloat32,
                         {1, 0});
  EngineWorld world(medium, size);
  std::vector<Replica> replicas;
  std::vector<Dense> dense(2);
  for (int rank = 0; rank < size; ++rank) {
    Replica& replica = replicas.emplace_back(plan);
    for (size_t s = 0; s < 2; ++s) {
      const double value = 1.0 + rank * (s + 1.0);
      for (float& element : replica.tensors[s]) element = static_cast<float>(value);
      dense[s].x.push_back(value);
      dense[s].w.push_back(1.0);
    }
  }
  const uint32_t id = world.add_plan(plan, schedule);
  for (size_t round = 0; round < 7; ++round) {
    world.round(id, replicas);
    for (size_t s = 0; s < 2; ++s) {
      dense[s].step(tables[(round + s) % 2]);
      double sum = 0.0;
      for (int rank = 0; rank < size; ++rank) {
        const double w = world.engines[rank]->weights(id)[s];
        ASSERT_NEAR(w, dense[s].w[rank], 1e-12);
        ASSERT_NEAR(replicas[rank].tensors[s].back(), dense[s].x[rank] / w, 1e-5 * size);
        sum += w;
      }
      ASSERT_NEAR(sum, size, 1e-12);
    }
  }
}

TEST(PushSum, KeepsSumsOfWeightedValuesBitForBitWhereNothingRounds) {
  // Ranks 0 and 2 give half to rank 1; then it gives a quarter to each of them.
  const std::vector<PeerRow> gather{{}, {{0, 0.5}, {2, 0.5}}, {}};
  const std::vector<PeerRow> scatter{{{1, 0.25}}, {}, {{1, 0.25}}};
  const SegmentPlan plan({make_segment("a", {1000})}, Dtype::kFloat32, {0});
  EngineWorld world(Medium::kLocal, 3);
  std::vector<Replica> replicas;
  double wanted = 0.0;
  for (int rank = 0; rank < 3; ++rank) {
    Replica& replica = replicas.emplace_back(plan);
    for (float& element : replica.tensors[0]) element = static_cast<float>(rank * rank * 64 - 3);
    wanted += rank * rank * 64 - 3;
  }
  const uint32_t id = world.add_plan(
      plan, std::shared_ptr(table_schedule({gather, scatter}, Stochasticity::kColumn, false)));
  for (int round = 0; round < 4; ++round) {
    world.round(id, replicas);
    double weights = 0.0;
    double sum = 0.0;
    for (int rank = 0; rank < 3; ++rank) {
      const double w = world.engines[rank]->weights(id)[0];
      weights += w;
      sum += w * replicas[rank].tensors[0][999];
    }
    EXPECT_EQ(weights, 3.0);
    EXPECT_EQ(sum, wanted);
  }
}

TEST(PushSum, FindsTheExactMeanWhereRowStochasticMixingDrifts) {
  constexpr int kSize = 6;
  const SegmentPlan plan({make_segment("a", {4})}, Dtype::kFloat32, {0});
  std::vector<PeerRow> rows = irregular_shares(kSize, 2);
  const auto far_from_mean = [&](Stochasticity property) {
    EngineWorld world(Medium::kLocal, kSize);
    std::vector<Replica> replicas;
    for (int rank = 0; rank < kSize; ++rank) {
      replicas.emplace_back(plan).tensors[0].assign(4, static_cast<float>(rank));
    }
    const uint32_t id =
        world.add_plan(plan, std::shared_ptr(table_schedule({rows}, property, false)));
    for (int round = 0; round < 60; ++round) world.round(id, replicas);
    for (const Replica& replica : replicas) {
      EXPECT_NEAR(replica.tensors[0][0], replicas[0].tensors[0][0], 1e-5);
    }
    return std::abs(replicas[0].tensors[0][0] - (kSize - 1) / 2.0);
  };
  EXPECT_LT(far_from_mean(Stochasticity::kColumn), 1e-5);
  for (PeerRow& row : rows) {
    for (WeightedPeer& entry : row) entry.weight = 1.0 / (1.0 + static_cast<double>(row.size()));
  }
  EXPECT_GT(far_from_mean(Stochasticity::kRow), 0.05);
}

TEST(PushSum, ResumesWhereExportedWeightsAndValuesLeftOff) {
  const SegmentPlan plan({make_segment("a", {5})}, Dtype::kFloat32, {0});
  const std::shared_ptr<PeerSchedule> schedule =
      table_schedule({irregular_shares(4, 3)}, Stochasticity::kColumn, false);
  EngineWorld world(Medium::kLocal, 4);
  std::vector<Replica> replicas;
  for (int rank = 0; rank < 4; ++rank) {
    replicas.emplace_back(plan).tensors[0].assign(5, static_cast<float>(rank));
  }
  const uint32_t first = world.add_plan(plan, schedule);
  for (int round = 0; round < 3; ++round) world.round(first, replicas);
  std::vector<Replica> resumed;
  for (const Replica& replica : replicas) {
    resumed.emplace_back(plan).tensors[0] = replica.tensors[0];
    resumed.back().addresses[0] = resumed.back().tensors[0].data();
  }
  const uint32_t second = world.add_plan(plan, schedule, 3);
  for (auto& engine : world.engines) engine->set_weights(second, engine->weights(first));
  for (int round = 0; round < 2; ++round) {
    world.round(first, replicas);
    world.round(second, resumed);
  }
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(replicas[rank].tensors[0], resumed[rank].tensors[0]);
  }
}

std::string refusal(Engine& engine, uint32_t plan, const std::vector<double>& weights) {
  try {
    engine.set_weights(plan, weights);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// As a composite of push-sum and exact averages would be.
class NotOfPeers final : public Schedule {
 public:
  std::string_view name() const override { return "composite"; }
  int size() const override { return 2; }
  Stochasticity stochasticity() const override { return Stochasticity::kColumn; }
  int num_phases(const RoundKey&) const override { return 1; }
  Program program(const RoundKey&, int64_t, int) const override { return {}; }
};

TEST(PushSum, RefusesSchedulesOfOtherThanSinglePhases) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan({make_segment("a", {5})}, Dtype::kFloat32, {0});
  try {
    world.add_plan(plan, std::make_shared<NotOfPeers>());
    FAIL() << "nothing was thrown";
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(std::string(error.what()).substr(0, 68),
              "schedule 'composite' is column-stochastic (push-sum): expected round");
  }
}

TEST(PushSum, RefusesWeightsThatCannotBe) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan({make_segment("a", {5})}, Dtype::kFloat32, {0});
  const uint32_t column = world.add_plan(
      plan, std::shared_ptr(table_schedule({{{}, {{0, 0.5}}}}, Stochasticity::kColumn, false)));
  const uint32_t doubly = world.add_plan(plan, std::shared_ptr(ring_schedule(2)));
  Engine& engine = *world.engines[0];
  EXPECT_EQ(refusal(engine, column, {1.0, 1.0}),
            "push-sum weights: expected 1, one per segment, got 2");
  EXPECT_EQ(refusal(engine, column, {0.0}),
            "segment 0 'a', push-sum weight: expected a finite number > 0, got 0.000000");
  EXPECT_EQ(refusal(engine, doubly, {0.5}),
            "segment 0 'a', push-sum weight: expected 1 in schedule 'ring', got 0.500000");
  Replica replica(plan);
  engine.open_round(column, replica.addresses);
  EXPECT_EQ(refusal(engine, column, {1.0}), "set_weights: plan 0 has an open round");
}

}  // namespace
}  // namespace crossover::testing
