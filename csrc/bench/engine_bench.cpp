// What a round costs beside its bytes: the draw of its schedule, the engine's way from post to mix
// (turnstile), a pass through a ring of shared memory.
#include <benchmark/benchmark.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/clock.h"
#include "core/engine.h"
#include "core/stream_transport.h"
#include "host/host_device.h"
#include "host/local_pipe.h"
#include "host/shared_memory_pipe.h"
#include "host/system_poller.h"

namespace crossover {
namespace {

constexpr uint32_t kDrawnSegments = 64;

/// One rank's programs of one round. Arguments: number of ranks.
void draw_round(benchmark::State& state,
                std::unique_ptr<PeerSchedule> (*make)(int size, uint64_t seed)) {
  const auto size = static_cast<int>(state.range(0));
  const std::unique_ptr<PeerSchedule> schedule = make(size, 1);
  uint64_t round = 0;
  for (auto _ : state) {
    for (uint32_t segment = 0; segment < kDrawnSegments; ++segment) {
      benchmark::DoNotOptimize(schedule->program({round, segment}, 1000, size / 2));
    }
    ++round;
  }
}

std::unique_ptr<PeerSchedule> crossover(int size, uint64_t seed) {
  return crossover_schedule(size, seed);
}

/// Two ranks of one thread and a model of tiny segments.
class TwoRanks {
 public:
  explicit TwoRanks(int64_t num_segments) : network_(2, kDefaultRingBytes, {}) {
    std::vector<Segment> segments;
    std::vector<uint32_t> order;
    for (int64_t s = 0; s < num_segments; ++s) {
      segments.push_back({"s" + std::to_string(s), Dtype::kFloat32, {1}, {"w"}});
      order.push_back(static_cast<uint32_t>(s));
    }
    const SegmentPlan plan(std::move(segments), Dtype::kFloat32, order);
    for (int rank = 0; rank < 2; ++rank) {
      EngineConfig config;
      config.rank = rank;
      config.size = 2;
      const StreamConfig stream{rank, 2, 30.0, 0, static_cast<uint64_t>(rank)};
      engines_.push_back(std::make_unique<Engine>(
          config, std::make_unique<StreamTransport>(stream, network_.take_pipes(rank)),
          system_poller(), clock_));
      id_ = engines_.back()->add_plan(plan, crossover_schedule(2, 1), host_device(), 0);
      values_.emplace_back(static_cast<size_t>(num_segments), 1.0F);
      for (float& value : values_.back()) addresses_[rank].push_back(&value);
    }
  }

  void round() {
    for (int rank = 0; rank < 2; ++rank) engines_[rank]->open_round(id_, addresses_[rank]);
    for (bool is_open = true; is_open;) {
      is_open = false;
      for (int rank = 0; rank < 2; ++rank) {
        engines_[rank]->progress_once();
        const WaitStatus status = engines_[rank]->close_round(id_, addresses_[rank], 0.0);
        is_open = status == WaitStatus::kPending || is_open;
      }
    }
  }

 private:
  LocalNetwork network_;
  SteadyClock clock_;
  std::vector<std::unique_ptr<Engine>> engines_;
  std::vector<std::vector<float>> values_;
  std::vector<void*> addresses_[2];
  uint32_t id_ = 0;
};

/// A whole round of both ranks. Argument: number of segments.
void turnstile(benchmark::State& state) {
  TwoRanks ranks(state.range(0));
  for (auto _ : state) ranks.round();
  state.SetItemsProcessed(state.iterations() * state.range(0) * 2);  // segments of both
}

UniqueFd own_process() {
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
}

/// Bytes written, published, read and given back by one core. Argument: bytes of a frame.
void ring(benchmark::State& state) {
  SharedMemoryChannel mine = create_shared_memory_channel();
  const auto copy = [](const UniqueFd& fd) { return UniqueFd(::dup(fd.get())); };
  SharedMemoryChannel theirs{copy(mine.memory), copy(mine.wake_0), copy(mine.wake_1)};
  const auto writer = shared_memory_pipe(std::move(mine), 0, own_process(), "reader");
  const auto reader = shared_memory_pipe(std::move(theirs), 1, own_process(), "writer");
  const auto frame_bytes = static_cast<size_t>(state.range(0));
  const std::vector<std::byte> source(frame_bytes);
  std::vector<std::byte> target(frame_bytes);
  for (auto _ : state) {
    std::memcpy(writer->write_window().data(), source.data(), frame_bytes);
    writer->commit(frame_bytes);
    writer->flush();
    reader->fill();
    std::memcpy(target.data(), reader->read_window().data(), frame_bytes);
    reader->release(frame_bytes);
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

BENCHMARK_CAPTURE(draw_round, crossover, crossover)->Arg(16)->Arg(1024)->Arg(10000);
BENCHMARK_CAPTURE(draw_round, shift, shift_schedule)->Arg(16)->Arg(1024)->Arg(10000);
BENCHMARK(turnstile)->Arg(16)->Arg(161);
BENCHMARK(ring)->Arg(64)->Arg(4096)->Arg(256 << 10);

}  // namespace
}  // namespace crossover
