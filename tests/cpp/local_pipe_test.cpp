// Faults of local pipes; the common contract is in pipe_test.cpp.
#include "host/local_pipe.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "core/error.h"
#include "pipe_pair.h"

namespace crossover::testing {
namespace {

/// Sizes of the window after each of `num_fills` fills.
std::vector<size_t> arrivals(const LocalFaults& faults, int num_fills) {
  LocalNetwork network(2, kDefaultRingBytes, faults);
  PipePair pair = ends_of(network);
  StreamWriter(*pair.a).write_all(10'000);
  std::vector<size_t> sizes;
  for (int k = 0; k < num_fills; ++k) {
    pair.b->fill();
    sizes.push_back(pair.b->read_window().size());
  }
  return sizes;
}

TEST(LocalNetwork, OneFillBringsNoMoreThanItsFaultsAllow) {
  EXPECT_EQ(arrivals({.max_fill_bytes = 4096}, 4),
            (std::vector<size_t>{4096, 8192, 10'000, 10'000}));
}

TEST(LocalNetwork, DelaysAreRepeatedByTheSameSeedAndOnlyByIt) {
  const auto with_seed = [](uint64_t seed) {
    return arrivals({.seed = seed, .delay_probability = 0.5, .max_fill_bytes = 100}, 150);
  };
  EXPECT_EQ(with_seed(1), with_seed(1));
  EXPECT_NE(with_seed(1), with_seed(2));
}

TEST(LocalNetwork, GivesEachRankOnePipePerPeer) {
  LocalNetwork network(3, kDefaultRingBytes, {});
  const auto pipes = network.take_pipes(1);
  ASSERT_EQ(pipes.size(), 3u);
  EXPECT_EQ(pipes[1], nullptr);
  EXPECT_EQ(pipes[2]->describe(), "local pipe to rank 2");
  EXPECT_THROW(network.take_pipes(1), std::logic_error);
}

TEST(LocalNetwork, RefusesRingsThatAreNoPowerOfTwo) {
  EXPECT_THROW(LocalNetwork(2, 100'000, {}), InvalidArgument);
  EXPECT_THROW(LocalNetwork(0, kDefaultRingBytes, {}), InvalidArgument);
}

TEST(LocalNetwork, WhatAKilledRankHadFlushedIsReadBeforeTheEnd) {
  LocalNetwork network(2, kDefaultRingBytes, {});
  PipePair pair = ends_of(network);
  StreamWriter writer(*pair.a);
  writer.write_all(5000);
  pair.a->commit(pair.a->write_window().subspan(0, 64).size());
  network.kill(0);
  EXPECT_FALSE(pair.a->flush());
  StreamReader reader(*pair.b);
  reader.read_to_end(*system_poller());
  EXPECT_EQ(reader.position(), 5000u);
  EXPECT_EQ(pair.b->end_reason(), "rank 0 was killed");
  EXPECT_TRUE(pair.b->write_window().empty());
  EXPECT_TRUE(pair.b->drained());
}

TEST(LocalNetwork, AKillWakesASleepingPeer) {
  LocalNetwork network(2, kDefaultRingBytes, {});
  PipePair pair = ends_of(network);
  std::jthread sleeper([&] { StreamReader(*pair.b).read_to_end(*system_poller()); });
  network.kill(0);
  sleeper.join();
  EXPECT_TRUE(pair.b->ended());
}

TEST(LocalNetwork, NothingMovesToOrFromAFrozenRankUntilItThaws) {
  LocalNetwork network(2, kDefaultRingBytes, {});
  PipePair pair = ends_of(network);
  network.freeze(0, true);
  StreamWriter(*pair.a).write_all(100);
  StreamWriter(*pair.b).write_all(100);
  EXPECT_FALSE(pair.a->fill());
  EXPECT_FALSE(pair.b->fill());
  std::vector<PollItem> items;
  EXPECT_TRUE(pair.b->prepare_to_sleep(false, items));
  EXPECT_FALSE(pair.b->ended());
  network.freeze(0, false);
  system_poller()->wait(items, kLostWakeUpS);
  EXPECT_TRUE(pair.a->flush());
  EXPECT_TRUE(pair.a->fill());
  EXPECT_TRUE(pair.b->fill());
}

TEST(LocalNetwork, InjectedBytesComeBetweenCommits) {
  LocalNetwork network(2, kDefaultRingBytes, {});
  PipePair pair = ends_of(network);
  const auto put = [&](char letter) {
    std::memset(pair.a->write_window().data(), letter, 4);
    pair.a->commit(4);
    pair.a->flush();
  };
  put('a');
  network.inject(0, 1, {'x', 'y'});
  const std::span<std::byte> window = pair.a->write_window();
  network.inject(0, 1, {'z'});
  std::memset(window.data(), 'b', 4);
  pair.a->commit(4);
  pair.a->flush();
  put('c');
  pair.b->fill();
  const auto arrived = pair.b->read_window();
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(arrived.data()), arrived.size()),
            "aaaaxybbbbzcccc");
}

TEST(LocalNetwork, PipesOutliveTheirNetwork) {
  PipePair pair = local_pair();
  StreamWriter(*pair.a).write_all(100);
  EXPECT_TRUE(pair.b->fill());
}

}  // namespace
}  // namespace crossover::testing
