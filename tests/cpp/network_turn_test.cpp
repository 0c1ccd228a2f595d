// Which message leaves when several wait for one network link.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

#include "core/message.h"
#include "world.h"

namespace crossover::testing {
namespace {

constexpr size_t kMessageBytes = size_t{1} << 20;

/// What a test has a pipe say and do.
struct Wire {
  bool blocked = false;          // takes nothing
  size_t bytes_before_link = 0;  // as the pipe tells
};

/// A pipe of the process that says it crosses the network.
class NetworkPipe final : public Pipe {
 public:
  NetworkPipe(std::unique_ptr<Pipe> pipe, const Wire& wire) : pipe_(std::move(pipe)), wire_(wire) {}
  bool crosses_network() const override { return true; }
  size_t bytes_before_link() const override { return wire_.bytes_before_link; }
  std::span<std::byte> write_window() override {
    return wire_.blocked ? std::span<std::byte>() : pipe_->write_window();
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
    return pipe_->prepare_to_sleep(want_write && !wire_.blocked, items);
  }
  std::string describe() const override { return pipe_->describe(); }

 private:
  std::unique_ptr<Pipe> pipe_;
  const Wire& wire_;
};

class Zeros final : public MessageSource {
 public:
  explicit Zeros(size_t num_bytes) : num_bytes_(num_bytes) {}
  size_t num_bytes() const override { return num_bytes_; }
  size_t produce(std::span<std::byte> out) override {
    if (!ready) return 0;
    const size_t made = std::min(out.size(), num_bytes_ - at_);
    std::fill_n(out.begin(), made, std::byte{0});
    at_ += made;
    return made;
  }
  bool ready = true;

 private:
  const size_t num_bytes_;
  size_t at_ = 0;
};

class Count final : public MessageSink {
 public:
  explicit Count(size_t num_bytes) : num_bytes_(num_bytes) {}
  size_t num_bytes() const override { return num_bytes_; }
  size_t consume(std::span<const std::byte> in) override {
    bytes += in.size();
    return in.size();
  }
  double share() const { return static_cast<double>(bytes) / static_cast<double>(num_bytes_); }
  size_t bytes = 0;

 private:
  const size_t num_bytes_;
};

/// Rank 0 has messages for ranks 1 and 2, posted in turn, the first for rank 1.
class NetworkTurn : public ::testing::Test {
 protected:
  NetworkTurn() : fabric_(make_fabric(Medium::kLocal, 3)) {
    for (int rank = 0; rank < 3; ++rank) {
      Pipes pipes;
      for (auto& pipe : fabric_.pipes[rank]) {
        const Wire& wire = rank == 0 ? wires_[pipes.size()] : idle_;
        pipes.push_back(!pipe ? nullptr : std::make_unique<NetworkPipe>(std::move(pipe), wire));
      }
      ranks_.push_back(
          std::make_unique<StreamTransport>(stream_config(rank, 3, 30.0), std::move(pipes)));
    }
  }

  void post(const std::vector<size_t>& sizes) {
    for (const size_t bytes : sizes) {
      const auto index = static_cast<uint32_t>(sinks_.size());
      const int to = 1 + static_cast<int>(index % 2);
      sources_.push_back(std::make_unique<Zeros>(bytes));
      sinks_.push_back(std::make_unique<Count>(bytes));
      ranks_[to]->receive(0, {.segment = index}, *sinks_.back(), index);
      ranks_[0]->send(to, {.segment = index}, *sources_.back(), index);
    }
  }
  void turn() {
    for (const auto& rank : ranks_) rank->progress(clock_.now_s(), events_);
  }
  void turn_often() {
    for (int i = 0; i < 800; ++i) turn();
  }
  double max_sleep_s() {
    std::vector<PollItem> items;
    double max_sleep_s = 1.0;
    EXPECT_TRUE(ranks_[0]->prepare_to_sleep(clock_.now_s(), items, max_sleep_s));
    return max_sleep_s;
  }

  std::array<Wire, 3> wires_;
  const Wire idle_;
  Fabric fabric_;
  ManualClock clock_;
  std::vector<std::unique_ptr<StreamTransport>> ranks_;
  std::vector<TransportEvent> events_;
  std::vector<std::unique_ptr<Zeros>> sources_;
  std::vector<std::unique_ptr<Count>> sinks_;
};

TEST_F(NetworkTurn, MessagesShareTheLinkInProportionToTheirSizes) {
  post({kMessageBytes, 4 * kMessageBytes, 2 * kMessageBytes});
  while (sinks_[0]->share() < 0.5) turn();
  EXPECT_NEAR(sinks_[1]->share(), 0.5, 0.15);
  EXPECT_NEAR(sinks_[2]->share(), 0.5, 0.15);
}

TEST_F(NetworkTurn, OnlyTheOldestMessagesShareIt) {
  post(std::vector<size_t>(kAbreast + 1, kMessageBytes));
  while (sinks_[0]->share() < 0.9) turn();
  EXPECT_EQ(sinks_.back()->bytes, 0u);
  turn_often();
  EXPECT_EQ(sinks_.back()->share(), 1.0);
}

TEST_F(NetworkTurn, OneWhosePipeTakesNothingLetsTheOthersPass) {
  wires_[1].blocked = true;
  post({kMessageBytes, kMessageBytes});
  turn_often();
  EXPECT_EQ(sinks_[0]->bytes, 0u);
  EXPECT_EQ(sinks_[1]->share(), 1.0);
}

TEST_F(NetworkTurn, OneWhoseSourceIsNotReadyLetsTheOthersPassAndLeavesWhenItIs) {
  post({kMessageBytes, kMessageBytes});
  sources_[0]->ready = false;
  turn_often();
  EXPECT_EQ(sinks_[0]->bytes, 0u);
  EXPECT_EQ(sinks_[1]->share(), 1.0);
  sources_[0]->ready = true;
  turn_often();
  EXPECT_EQ(sinks_[0]->share(), 1.0);
}

TEST_F(NetworkTurn, NothingLeavesWhileTheLinkHasEnoughToDo) {
  wires_[2].bytes_before_link = kLinkBacklogBytes;
  post({kMessageBytes});
  turn_often();
  EXPECT_EQ(sinks_[0]->bytes, 0u);
  EXPECT_LT(max_sleep_s(), 0.01);
  wires_[2].bytes_before_link = kLinkBacklogBytes - 1;
  turn_often();
  EXPECT_EQ(sinks_[0]->share(), 1.0);
}

TEST_F(NetworkTurn, ABacklogThatDoesNotMoveKeepsNobodyForLong) {
  wires_[2].bytes_before_link = kLinkBacklogBytes;
  post({kMessageBytes});
  turn_often();
  clock_.advance(2 * kPatience_s);
  turn_often();
  EXPECT_EQ(sinks_[0]->share(), 1.0);
}

TEST_F(NetworkTurn, WithoutMessagesNobodyLooksForRoom) {
  wires_[2].bytes_before_link = kLinkBacklogBytes;
  turn_often();
  EXPECT_EQ(max_sleep_s(), 1.0);
}

}  // namespace
}  // namespace crossover::testing
