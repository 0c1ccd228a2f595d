// Which message leaves when several wait for one network link.
#include <gtest/gtest.h>

#include "core/message.h"
#include "world.h"

namespace crossover::testing {
namespace {

constexpr size_t kMessageBytes = size_t{2} << 20;

/// A pipe of the process that says it crosses the network, and that can be blocked.
class NetworkPipe final : public Pipe {
 public:
  NetworkPipe(std::unique_ptr<Pipe> pipe, const bool& blocked)
      : pipe_(std::move(pipe)), blocked_(blocked) {}
  bool crosses_network() const override { return true; }
  std::span<std::byte> write_window() override {
    return blocked_ ? std::span<std::byte>() : pipe_->write_window();
  }
  void commit(size_t num_bytes) override { pipe_->commit(num_bytes); }
  bool flush() override { return pipe_->flush(); }
  bool drained() const override { return pipe_->drained(); }
  void finish_writing() override { pipe_->finish_writing(); }
  bool fill() override { return pipe_->fill(); }
  std::span<const std::byte> read_window() override { return pipe_->read_window(); }
  void release(size_t num_bytes) override { pipe_->release(num_bytes); }
  size_t min_capacity() const override { return pipe_->min_capacity(); }
  bool ended() const override { return pipe_->ended(); }
  std::string end_reason() const override { return pipe_->end_reason(); }
  bool prepare_to_sleep(bool want_write, std::vector<PollItem>& items) override {
    return pipe_->prepare_to_sleep(want_write && !blocked_, items);
  }
  std::string describe() const override { return pipe_->describe(); }

 private:
  std::unique_ptr<Pipe> pipe_;
  const bool& blocked_;
};

class Zeros final : public MessageSource {
 public:
  size_t num_bytes() const override { return kMessageBytes; }
  size_t produce(std::span<std::byte> out) override {
    const size_t made = std::min(out.size(), kMessageBytes - at_);
    std::fill_n(out.begin(), made, std::byte{0});
    at_ += made;
    return made;
  }

 private:
  size_t at_ = 0;
};

class Count final : public MessageSink {
 public:
  size_t num_bytes() const override { return kMessageBytes; }
  size_t consume(std::span<const std::byte> in) override {
    bytes += in.size();
    return in.size();
  }
  size_t bytes = 0;
};

/// Rank 0 has a message for rank 1 and then one for rank 2.
class NetworkTurn : public ::testing::Test {
 protected:
  NetworkTurn() : fabric_(make_fabric(Medium::kLocal, 3)) {
    for (int rank = 0; rank < 3; ++rank) {
      Pipes pipes;
      for (auto& pipe : fabric_.pipes[rank]) {
        const bool is_first = rank == 0 && pipes.size() == 1;
        pipes.push_back(!pipe ? nullptr
                              : std::make_unique<NetworkPipe>(std::move(pipe),
                                                              is_first ? first_blocked_ : open_));
      }
      ranks_.push_back(
          std::make_unique<StreamTransport>(stream_config(rank, 3, 30.0), std::move(pipes)));
    }
    ranks_[1]->receive(0, {.segment = 1}, sinks_[0], 1);
    ranks_[2]->receive(0, {.segment = 0}, sinks_[1], 2);
    ranks_[0]->send(1, {.segment = 1}, sources_[0], 1);
    ranks_[0]->send(2, {.segment = 0}, sources_[1], 2);
  }

  void turn() {
    for (const auto& rank : ranks_) rank->progress(clock_.now_s(), events_);
  }
  void turn_often() {
    for (int i = 0; i < 200; ++i) turn();
  }

  bool first_blocked_ = false;
  const bool open_ = false;
  Fabric fabric_;
  ManualClock clock_;
  std::vector<std::unique_ptr<StreamTransport>> ranks_;
  std::vector<TransportEvent> events_;
  Zeros sources_[2];
  Count sinks_[2];
};

TEST_F(NetworkTurn, MessagesLeaveOneAfterTheOtherInTheOrderOfTheirPosts) {
  while (sinks_[1].bytes == 0) turn();
  EXPECT_EQ(sinks_[0].bytes, kMessageBytes);
  turn_often();
  EXPECT_EQ(sinks_[1].bytes, kMessageBytes);
}

TEST_F(NetworkTurn, OneThatCannotLeaveLetsTheOthersPassAfterAWhile) {
  first_blocked_ = true;
  turn_often();
  EXPECT_EQ(sinks_[1].bytes, 0u);
  clock_.advance(2 * kPatience_s);
  turn_often();
  EXPECT_EQ(sinks_[0].bytes, 0u);
  EXPECT_EQ(sinks_[1].bytes, kMessageBytes);
}

TEST_F(NetworkTurn, ASleeperWakesWhenItsPatienceEnds) {
  first_blocked_ = true;
  turn_often();
  clock_.advance(kPatience_s / 5);
  std::vector<PollItem> items;
  double max_sleep_s = 1.0;
  EXPECT_TRUE(ranks_[0]->prepare_to_sleep(clock_.now_s(), items, max_sleep_s));
  EXPECT_NEAR(max_sleep_s, 0.8 * kPatience_s, 1e-9);
}

}  // namespace
}  // namespace crossover::testing
