// gossip_perf: time and bandwidth of whole gossip rounds, in the manner of nccl-tests.
//
//   gossip_perf -r 4 -t shm -b 1M -e 128M -f 2        4 ranks of this host over shared memory
//   RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. gossip_perf -b 25M     over TCP
//
// A round is posted and awaited at once (mode "none"): pack, exchange and mix, through the engine.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "bench/ranks.h"
#include "core/clock.h"
#include "core/engine.h"
#include "core/error.h"
#include "core/stream_transport.h"
#include "host/host_device.h"
#include "host/system_poller.h"

namespace crossover::bench {
namespace {

constexpr double kTimeout_s = 60.0;
constexpr double kSlice_s = 1.0;

struct Options {
  int ranks = 2;
  Medium medium = Medium::kSharedMemory;
  int64_t min_bytes = int64_t{32} << 20;
  int64_t max_bytes = 0;  // the smallest
  int64_t step_factor = 2;
  int iterations = 20;
  int warmup = 5;
  bool check = true;
  int segments = 16;
  std::string topology = "crossover";
  Dtype wire = Dtype::kFloat32;
  std::string json;
};

constexpr const char* kUsage =
    "usage: gossip_perf [options]\n"
    "  -r, --ranks N          processes on this host (2); ignored under a launcher\n"
    "  -t, --transport NAME   shm or tcp (shm); under a launcher always tcp\n"
    "  -b, --minbytes SIZE    smallest model in bytes, with suffix K, M or G (32M)\n"
    "  -e, --maxbytes SIZE    largest model (the smallest)\n"
    "  -f, --stepfactor N     from one size to the next (2)\n"
    "  -n, --iters N          timed rounds of each size (20)\n"
    "  -w, --warmup_iters N   rounds before them (5)\n"
    "  -c, --check 0|1        compare one round with the dense reference (1)\n"
    "  -s, --segments N       of equal bytes (16)\n"
    "  -p, --topology NAME    crossover, exponential, ring or complete (crossover)\n"
    "  -x, --wire NAME        float32, bfloat16, float16 or int8-blocks\n"
    "                         (float32)\n"
    "  -j, --json FILE        the table as JSON\n";

int64_t parse_number(const std::string& name, const std::string& text) {
  size_t used = 0;
  int64_t value = 0;
  try {
    value = std::stoll(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string suffix = text.substr(used);
  const std::map<std::string, int> shifts{{"", 0}, {"K", 10}, {"M", 20}, {"G", 30}};
  const auto shift = shifts.find(suffix);
  if (used == 0 || value < 0 || shift == shifts.end()) {
    throw InvalidArgument(name + ": expected a number >= 0, perhaps with K, M or G, got '" + text +
                          "'");
  }
  return value << shift->second;
}

Medium parse_medium(const std::string& text) {
  if (text == "shm") return Medium::kSharedMemory;
  if (text == "tcp") return Medium::kTcp;
  throw InvalidArgument("--transport: expected shm or tcp, got '" + text + "'");
}

void set_option(Options& options, const std::string& name, const std::string& value) {
  const auto is = [&](const char* brief, const char* full) {
    return name == brief || name == full;
  };
  const auto number = [&] { return parse_number(name, value); };
  if (is("-r", "--ranks")) {
    options.ranks = static_cast<int>(number());
  } else if (is("-t", "--transport")) {
    options.medium = parse_medium(value);
  } else if (is("-b", "--minbytes")) {
    options.min_bytes = number();
  } else if (is("-e", "--maxbytes")) {
    options.max_bytes = number();
  } else if (is("-f", "--stepfactor")) {
    options.step_factor = number();
  } else if (is("-n", "--iters")) {
    options.iterations = static_cast<int>(number());
  } else if (is("-w", "--warmup_iters")) {
    options.warmup = static_cast<int>(number());
  } else if (is("-c", "--check")) {
    options.check = number() != 0;
  } else if (is("-s", "--segments")) {
    options.segments = static_cast<int>(number());
  } else if (is("-p", "--topology")) {
    options.topology = value;
  } else if (is("-x", "--wire")) {
    options.wire = parse_dtype(value);
  } else if (is("-j", "--json")) {
    options.json = value;
  } else {
    throw InvalidArgument("unknown option '" + name + "'\n" + kUsage);
  }
}

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) set_option(options, argv[i], argv[i + 1]);
  if (argc % 2 == 0) throw InvalidArgument(kUsage);
  options.max_bytes = std::max(options.min_bytes, options.max_bytes);
  if (options.step_factor < 2 || options.iterations < 1 || options.segments < 1 ||
      options.ranks < 2) {
    throw InvalidArgument(
        "expected --stepfactor >= 2, --iters >= 1, --segments >= 1 and --ranks >= 2");
  }
  return options;
}

std::shared_ptr<const PeerSchedule> make_schedule(const std::string& name, int size) {
  if (name == "crossover") return crossover_schedule(size, 1);
  if (name == "exponential") return exponential_schedule(size);
  if (name == "ring") return ring_schedule(size);
  if (name == "complete") return complete_schedule(size);
  throw InvalidArgument("--topology: expected crossover, exponential, ring or complete, got '" +
                        name + "'");
}

/// A model of `bytes`, one float32 tensor for each segment.
SegmentPlan make_plan(int64_t bytes, const Options& options) {
  const int64_t numel = bytes / static_cast<int64_t>(sizeof(float));
  std::vector<Segment> segments;
  for (int64_t s = 0; s < options.segments; ++s) {
    const int64_t own = numel * (s + 1) / options.segments - numel * s / options.segments;
    segments.push_back({"s" + std::to_string(s), Dtype::kFloat32, {own}, {"w"}});
  }
  std::vector<uint32_t> order(segments.size());
  std::iota(order.begin(), order.end(), 0U);
  return SegmentPlan(std::move(segments), options.wire, order);
}

class Model {
 public:
  explicit Model(const SegmentPlan& plan) {
    for (const Segment& segment : plan.segments()) tensors.emplace_back(segment.numel());
    for (auto& tensor : tensors) addresses.push_back(tensor.data());
  }
  /// Small integers, so that every mean of a few of them is exact in float32 and bfloat16.
  void fill(int rank) {
    for (auto& tensor : tensors) {
      for (size_t k = 0; k < tensor.size(); ++k) tensor[k] = value(rank, k);
    }
  }
  static float value(int rank, size_t k) {
    return static_cast<float>((static_cast<size_t>(rank) * 5 + k) % 13);
  }
  std::vector<std::vector<float>> tensors;
  std::vector<void*> addresses;
};

/// Elements that differ from W x by more than rounding, after round 0 from fill().
int64_t count_wrong(const Model& model, const PeerSchedule& schedule, int rank, Dtype wire) {
  const double step = wire == Dtype::kInt8Blocks ? 12.0 / 127.0 : 0.0;
  int64_t wrong = 0;
  for (uint32_t s = 0; s < model.tensors.size(); ++s) {
    const PeerRow row = schedule.rows({0, s})[rank];
    for (size_t k = 0; k < model.tensors[s].size(); ++k) {
      const float own = Model::value(rank, k);
      double expected = own;
      for (const WeightedPeer& from : row) {
        expected += from.weight * (Model::value(from.peer, k) - own);
      }
      if (std::abs(model.tensors[s][k] - expected) > step + 1e-5 * (1.0 + std::abs(expected)))
        ++wrong;
    }
  }
  return wrong;
}

struct Row {
  int64_t bytes = 0;
  double first_s = 0.0;
  double median_s = 0.0;
  double p99_s = 0.0;
  double sent_bytes = 0.0;  // per rank and round, payload
  int64_t wrong = -1;       // -1: not checked
};

double quantile(std::vector<double>& sorted_in_place, double q) {
  std::sort(sorted_in_place.begin(), sorted_in_place.end());
  const auto last = static_cast<double>(sorted_in_place.size() - 1);
  return sorted_in_place[static_cast<size_t>(std::lround(q * last))];
}

class Measurement {
 public:
  Measurement(Rank rank, const Options& options)
      : rank_(std::move(rank)),
        options_(options),
        schedule_(make_schedule(options.topology, rank_.size)) {
    EngineConfig config;
    config.rank = rank_.rank;
    config.size = rank_.size;
    const StreamConfig stream{rank_.rank, rank_.size, kTimeout_s, 0,
                              static_cast<uint64_t>(rank_.rank) + 1};
    engine_ = std::make_unique<Engine>(
        config, std::make_unique<StreamTransport>(stream, std::move(rank_.pipes)), system_poller(),
        clock_);
    engine_->start();
  }

  void run() {
    std::vector<Row> rows;
    if (rank_.rank == 0) print_head();
    for (int64_t bytes = options_.min_bytes; bytes <= options_.max_bytes;
         bytes *= options_.step_factor) {
      rows.push_back(measure(bytes));
      if (rank_.rank == 0) print(rows.back());
      if (bytes == 0) break;
    }
    if (rank_.rank == 0 && !options_.json.empty()) write_json(rows);
    barrier(rank_);
    engine_->shutdown(kTimeout_s);
    for (const Row& row : rows) {
      if (row.wrong > 0) throw TransportError("wrong values; see the column #wrong");
    }
  }

 private:
  void round(uint32_t plan, Model& model) {
    engine_->open_round(plan, model.addresses);
    while (engine_->close_round(plan, model.addresses, kSlice_s) == WaitStatus::kPending) {
    }
  }

  Row measure(int64_t bytes) {
    const SegmentPlan plan = make_plan(bytes, options_);
    Model model(plan);
    model.fill(rank_.rank);
    const uint32_t id = engine_->add_plan(plan, schedule_, host_device(), 0);
    barrier(rank_);
    std::vector<double> own;
    timed_round(id, model, own);
    own.push_back(options_.check ? static_cast<double>(
                                       count_wrong(model, *schedule_, rank_.rank, options_.wire))
                                 : -1.0);
    for (int i = 0; i < options_.warmup; ++i) round(id, model);
    barrier(rank_);
    const uint64_t before = engine_->counters().payload_sent_bytes;
    for (int i = 0; i < options_.iterations; ++i) timed_round(id, model, own);
    const uint64_t sent = engine_->counters().payload_sent_bytes - before;
    own.push_back(static_cast<double>(sent) / options_.iterations);
    const Row row = summary(bytes, gather(rank_, own), own.size());
    barrier(rank_);
    engine_->remove_plan(id);
    return row;
  }

  void timed_round(uint32_t plan, Model& model, std::vector<double>& into) {
    const double began_s = clock_.now_s();
    round(plan, model);
    into.push_back(clock_.now_s() - began_s);
  }

  /// Of each rank: time of the first round, wrong elements, times of the others, bytes sent.
  static Row summary(int64_t bytes, const std::vector<double>& all, size_t per_rank) {
    Row row{.bytes = bytes};
    std::vector<double> times;
    double wrong = 0.0;
    const size_t size = all.size() / per_rank;
    for (size_t rank = 0; rank < size; ++rank) {
      const double* own = all.data() + rank * per_rank;
      row.first_s = std::max(row.first_s, own[0]);
      wrong += own[1];
      times.insert(times.end(), own + 2, own + per_rank - 1);
      row.sent_bytes += own[per_rank - 1] / static_cast<double>(size);
    }
    if (times.empty()) return row;
    row.wrong = wrong < 0 ? -1 : static_cast<int64_t>(wrong);
    row.median_s = quantile(times, 0.5);
    row.p99_s = quantile(times, 0.99);
    return row;
  }

  void print_head() const {
    std::printf("# gossip_perf: %d ranks, %s, topology %s, wire %s, %d segments, %d rounds\n",
                rank_.size, options_.medium == Medium::kTcp ? "tcp" : "shm",
                options_.topology.c_str(), dtype_name(options_.wire).data(), options_.segments,
                options_.iterations);
    std::printf("# algbw: model / p50; busbw: payload sent per rank / p50\n");
    std::printf("#%13s %9s %12s %12s %12s %9s %9s %8s\n", "size (B)", "segments", "p50 (us)",
                "p99 (us)", "first (us)", "algbw", "busbw", "#wrong");
    std::printf("#%13s %9s %12s %12s %12s %9s %9s\n", "", "", "", "", "", "(GB/s)", "(GB/s)");
  }

  void print(const Row& row) const {
    const std::string wrong = row.wrong < 0 ? "N/A" : std::to_string(row.wrong);
    std::printf("%14lld %9d %12.1f %12.1f %12.1f %9.3f %9.3f %8s\n",
                static_cast<long long>(row.bytes), options_.segments, 1e6 * row.median_s,
                1e6 * row.p99_s, 1e6 * row.first_s,
                static_cast<double>(row.bytes) / row.median_s / 1e9,
                row.sent_bytes / row.median_s / 1e9, wrong.c_str());
    std::fflush(stdout);
  }

  void write_json(const std::vector<Row>& rows) const {
    std::ofstream out(options_.json);
    out << "{\"ranks\": " << rank_.size << ", \"transport\": \""
        << (options_.medium == Medium::kTcp ? "tcp" : "shm") << "\", \"topology\": \""
        << options_.topology << "\", \"wire\": \"" << dtype_name(options_.wire)
        << "\", \"segments\": " << options_.segments << ", \"rounds\": " << options_.iterations
        << ", \"sizes\": [";
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      out << (i ? ", " : "") << "{\"bytes\": " << row.bytes << ", \"p50_s\": " << row.median_s
          << ", \"p99_s\": " << row.p99_s << ", \"first_s\": " << row.first_s
          << ", \"sent_bytes\": " << row.sent_bytes << ", \"wrong\": " << row.wrong << "}";
    }
    out << "]}\n";
    if (!out) throw InvalidArgument("--json: cannot write '" + options_.json + "'");
  }

  Rank rank_;
  const Options options_;
  const std::shared_ptr<const PeerSchedule> schedule_;
  SteadyClock clock_;
  std::unique_ptr<Engine> engine_;
};

int run(int argc, char** argv) {
  Options options = parse_options(argc, argv);
  if (!launched()) {
    return run_forked(options.ranks, options.medium,
                      [&](Rank rank) { Measurement(std::move(rank), options).run(); });
  }
  options.medium = Medium::kTcp;
  Measurement(join_launched(), options).run();
  return 0;
}

}  // namespace
}  // namespace crossover::bench

int main(int argc, char** argv) {
  try {
    return crossover::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gossip_perf: %s\n", error.what());
    return 2;
  }
}
