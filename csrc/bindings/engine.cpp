#include "core/engine.h"

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/device.h"
#include "core/schedule.h"
#include "core/stream_transport.h"
#include "host/fork_guard.h"
#include "host/host_device.h"
#include "host/system_poller.h"

namespace py = pybind11;

namespace crossover {
namespace {

constexpr double kSignalCheck_s = 0.2;  // a blocked wait looks for Ctrl-C this often

using Addresses = std::vector<uintptr_t>;

std::vector<void*> pointers(const Addresses& addresses) {
  std::vector<void*> result;
  result.reserve(addresses.size());
  for (const uintptr_t address : addresses) result.push_back(reinterpret_cast<void*>(address));
  return result;
}

using PythonSegment =
    std::tuple<std::string, std::string, std::vector<int64_t>, std::vector<std::string>>;

std::unique_ptr<SegmentPlan> make_plan(const std::vector<PythonSegment>& segments,
                                       const std::string& wire, std::vector<uint32_t> issue_order) {
  std::vector<Segment> converted;
  for (const auto& [name, dtype, numels, tensors] : segments) {
    converted.push_back({name, parse_dtype(dtype), numels, tensors});
  }
  return std::make_unique<SegmentPlan>(std::move(converted), parse_dtype(wire),
                                       std::move(issue_order));
}

std::vector<std::unique_ptr<Pipe>> take(const std::vector<PythonPipe*>& pipes) {
  std::vector<std::unique_ptr<Pipe>> taken;
  for (PythonPipe* held : pipes) taken.push_back(held ? std::move(held->pipe) : nullptr);
  return taken;
}

NonFinitePolicy non_finite_policy(bool raises) {
  return raises ? NonFinitePolicy::kRaise : NonFinitePolicy::kIgnore;
}

struct EngineOptions {
  EngineConfig engine;
  StreamConfig stream;
};

// An engine with what it needs to live in a Python process.
class PythonEngine {
 public:
  PythonEngine(const EngineOptions& options, std::vector<std::unique_ptr<Pipe>> pipes,
               py::function warn)
      : warn_(std::move(warn)),
        engine_(std::make_unique<Engine>(
            options.engine, std::make_unique<StreamTransport>(options.stream, std::move(pipes)),
            system_poller(), clock_)),
        fork_action_(fork_guard::add_child_action([this] { engine_->abandon_after_fork(); })) {
    engine_->start();
  }
  ~PythonEngine() {
    fork_guard::remove_child_action(fork_action_);
    if (fork_guard::generation() != generation_) {
      // A thread of the parent may be waiting in it: its end here would await that thread for ever.
      (void)engine_.release();
      return;
    }
    const py::gil_scoped_release unlocked;  // other threads go on while its devices come to rest
    engine_->shutdown(kShutdown_s);
    engine_.reset();
  }
  PythonEngine(const PythonEngine&) = delete;
  PythonEngine& operator=(const PythonEngine&) = delete;

  Engine& engine() { return *engine_; }

  template <typename Wait>
  void block(Wait wait) {
    for (;;) {
      WaitStatus status = WaitStatus::kPending;
      {
        const py::gil_scoped_release unlocked;
        status = wait();
      }
      if (status == WaitStatus::kMixed) return;
      for (const std::string& warning : engine_->take_warnings()) warn_(warning);
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
  }

 private:
  static constexpr double kShutdown_s = 5.0;
  py::function warn_;
  SteadyClock clock_;
  std::unique_ptr<Engine> engine_;
  int fork_action_;
  const uint64_t generation_ = fork_guard::generation();
};

std::unique_ptr<PythonEngine> make_engine(int rank, int size, const std::vector<PythonPipe*>& pipes,
                                          double timeout_s, double stall_timeout_s,
                                          double stall_warning_s, bool raise_on_non_finite,
                                          size_t event_capacity, uint64_t incarnation,
                                          py::function warn) {
  if (rank < 0 || rank >= size || static_cast<int>(pipes.size()) != size) {
    throw InvalidArgument("Engine: expected 0 <= rank < size and one pipe per rank, got rank " +
                          std::to_string(rank) + ", size " + std::to_string(size) + ", " +
                          std::to_string(pipes.size()) + " pipes");
  }
  for (int peer = 0; peer < size; ++peer) {
    const bool usable = pipes[peer] && pipes[peer]->pipe;
    if (usable != (peer != rank)) {
      throw InvalidArgument("Engine: pipes[" + std::to_string(peer) + "]: expected " +
                            (peer == rank ? "None for this rank" : "a pipe not taken yet"));
    }
  }
  EngineOptions options;
  options.engine = {
      rank,          size, stall_timeout_s, stall_warning_s, non_finite_policy(raise_on_non_finite),
      event_capacity};
  options.stream = {rank, size, timeout_s, 0, incarnation};
  return std::make_unique<PythonEngine>(options, take(pipes), std::move(warn));
}

py::dict python_counters(PythonEngine& self) {
  using namespace py::literals;
  const TransportCounters c = self.engine().counters();
  return py::dict("payload_sent_bytes"_a = c.payload_sent_bytes,
                  "payload_received_bytes"_a = c.payload_received_bytes,
                  "wire_sent_bytes"_a = c.wire_sent_bytes,
                  "wire_received_bytes"_a = c.wire_received_bytes,
                  "messages_sent"_a = c.messages_sent, "messages_received"_a = c.messages_received,
                  "first_contact_s"_a = c.first_contact_s);
}

py::tuple python_events(PythonEngine& self, uint64_t first) {
  uint64_t next = 0;
  py::list records;
  for (const EventRecord& e : self.engine().events().read(first, next)) {
    records.append(py::make_tuple(e.time_s, event_kind_name(e.kind), e.plan, e.round, e.segment,
                                  e.phase, e.peer, e.bytes));
  }
  return py::make_tuple(records, next);
}

py::bytes python_pack(const Addresses& addresses, const std::vector<int64_t>& numels,
                      const std::string& dtype, const std::string& wire) {
  const std::vector<void*> converted = pointers(addresses);
  if (converted.size() != numels.size()) {
    throw InvalidArgument("pack: expected one address per number of elements");
  }
  int64_t total = 0;
  for (const int64_t numel : numels) total += numel;
  const auto source = host_device()->source({{parse_dtype(dtype), converted, numels},
                                             {0, total},
                                             parse_dtype(wire),
                                             NonFinitePolicy::kIgnore,
                                             "pack"});
  std::string out(source->num_bytes(), '\0');
  const auto bytes = std::as_writable_bytes(std::span<char>(out));
  for (size_t at = 0; at < bytes.size();) at += source->produce(bytes.subspan(at));
  return out;
}

}  // namespace

void bind_engine(py::module_& m) {
  using namespace py::literals;
  py::class_<SegmentPlan>(m, "SegmentPlan")
      .def(py::init(&make_plan), "segments"_a, "wire"_a, "issue_order"_a)
      .def_property_readonly("num_segments",
                             [](const SegmentPlan& plan) { return plan.segments().size(); })
      .def_property_readonly("num_tensors", &SegmentPlan::num_tensors)
      .def_property_readonly("wire_bytes", &SegmentPlan::wire_bytes);
  py::class_<Device, std::shared_ptr<Device>>(m, "Device");
  py::class_<PythonTransportLayer>(m, "TransportLayer");
  m.attr("FIRST_CHOSEN_PLAN") = kFirstChosenPlan;
  py::class_<PythonEngine>(m, "Engine")
      .def(py::init(&make_engine), py::kw_only(), "rank"_a, "size"_a, "pipes"_a, "timeout_s"_a,
           "stall_timeout_s"_a, "stall_warning_s"_a, "raise_on_non_finite"_a, "event_capacity"_a,
           "incarnation"_a, "warn"_a)
      .def(
          "add_transport_layer",
          [](PythonEngine& self, PythonTransportLayer& held) {
            if (!held.layer.make)
              throw InvalidArgument("layer: expected one not taken by an engine");
            self.engine().add_transport_layer(std::exchange(held.layer, {}));
          },
          "layer"_a)
      .def(
          "add_plan",
          [](PythonEngine& self, const SegmentPlan& plan, const std::shared_ptr<Schedule>& schedule,
             uint64_t first_round, std::shared_ptr<Device> device,
             std::optional<bool> raise_on_non_finite, std::optional<uint32_t> id) {
            std::optional<NonFinitePolicy> policy;
            if (raise_on_non_finite) policy = non_finite_policy(*raise_on_non_finite);
            return self.engine().add_plan(plan, schedule,
                                          device ? std::move(device) : host_device(), first_round,
                                          policy, id);
          },
          "plan"_a, "schedule"_a, "first_round"_a, "device"_a = nullptr,
          "raise_on_non_finite"_a = py::none(), "id"_a = py::none())
      .def(
          "remove_plan", [](PythonEngine& self, uint32_t plan) { self.engine().remove_plan(plan); },
          "plan"_a)
      .def(
          "open_round",
          [](PythonEngine& self, uint32_t plan, const Addresses& addresses, StreamHandle stream) {
            self.engine().open_round(plan, pointers(addresses), stream);
          },
          "plan"_a, "addresses"_a, "stream"_a = 0)
      .def(
          "open_segment",
          [](PythonEngine& self, uint32_t plan, uint32_t segment, const Addresses& addresses,
             StreamHandle stream) {
            self.engine().open_segment(plan, segment, pointers(addresses), stream);
          },
          "plan"_a, "segment"_a, "addresses"_a, "stream"_a = 0)
      .def(
          "close_round",
          [](PythonEngine& self, uint32_t plan, const Addresses& addresses, StreamHandle stream) {
            const std::vector<void*> converted = pointers(addresses);
            self.block(
                [&] { return self.engine().close_round(plan, converted, kSignalCheck_s, stream); });
          },
          "plan"_a, "addresses"_a, "stream"_a = 0)
      .def(
          "wait_segment",
          [](PythonEngine& self, uint32_t plan, uint32_t segment, const Addresses& addresses,
             StreamHandle stream) {
            const std::vector<void*> converted = pointers(addresses);
            self.block([&] {
              return self.engine().wait_segment(plan, segment, converted, kSignalCheck_s, stream);
            });
          },
          "plan"_a, "segment"_a, "addresses"_a, "stream"_a = 0)
      .def(
          "round",
          [](PythonEngine& self, uint32_t plan, uint32_t segment) {
            return self.engine().round(plan, segment);
          },
          "plan"_a, "segment"_a)
      .def(
          "set_issue_order",
          [](PythonEngine& self, uint32_t plan, std::vector<uint32_t> order) {
            self.engine().set_issue_order(plan, std::move(order));
          },
          "plan"_a, "order"_a)
      .def(
          "is_open", [](PythonEngine& self, uint32_t plan) { return self.engine().is_open(plan); },
          "plan"_a)
      .def(
          "weights", [](PythonEngine& self, uint32_t plan) { return self.engine().weights(plan); },
          "plan"_a)
      .def(
          "set_weights",
          [](PythonEngine& self, uint32_t plan, const std::vector<double>& weights) {
            self.engine().set_weights(plan, weights);
          },
          "plan"_a, "weights"_a)
      .def(
          "differences",
          [](PythonEngine& self, uint32_t plan) {
            std::vector<std::pair<double, double>> found;
            for (const Difference& difference : self.engine().differences(plan)) {
              found.emplace_back(difference.squares, difference.own_squares);
            }
            return found;
          },
          "plan"_a)
      .def("check_failure", [](PythonEngine& self) { self.engine().check_failure(); })
      .def(
          "start_call",
          [](PythonEngine& self, CallProgram& program, double timeout_s) {
            return self.engine().start_call(std::move(program), timeout_s);
          },
          "program"_a, "timeout_s"_a)
      .def(
          "wait_call",
          [](PythonEngine& self, const Call& call, double slice_s) {
            return self.engine().wait_call(call, slice_s);
          },
          "call"_a, "slice_s"_a, py::call_guard<py::gil_scoped_release>())
      .def(
          "is_over",
          [](PythonEngine& self, const Call& call) { return self.engine().is_over(call); },
          "call"_a)
      .def(
          "watch_call", [](PythonEngine& self, Call& call) { self.engine().watch_call(call); },
          "call"_a)
      .def(
          "wait_watched",
          [](PythonEngine& self, double slice_s) { return self.engine().wait_watched(slice_s); },
          "slice_s"_a, py::call_guard<py::gil_scoped_release>())
      .def(
          "fail",
          [](PythonEngine& self, const std::string& cause) {
            self.engine().fail(ErrorKind::kTransport, cause);
          },
          "cause"_a)
      .def(
          "shutdown",
          [](PythonEngine& self, double timeout_s) { self.engine().shutdown(timeout_s); },
          "timeout_s"_a, py::call_guard<py::gil_scoped_release>())
      .def("counters", &python_counters)
      .def("events", &python_events, "first"_a);
  m.def("pack", &python_pack, "addresses"_a, "numels"_a, "dtype"_a, "wire"_a);
}

}  // namespace crossover
