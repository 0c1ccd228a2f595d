#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "core/groups.h"
#include "core/schedule.h"
#include "core/schedules/levelled.h"

namespace py = pybind11;

namespace crossover {
namespace {

using PythonRow = std::vector<std::pair<int, double>>;

constexpr std::pair<const char*, Stochasticity> kStochasticities[] = {
    {"doubly", Stochasticity::kDoubly},
    {"row", Stochasticity::kRow},
    {"column", Stochasticity::kColumn}};

std::string stochasticity_name(const Schedule& schedule) {
  for (const auto& [name, value] : kStochasticities) {
    if (value == schedule.stochasticity()) return name;
  }
  return "unknown";
}

Stochasticity parse_stochasticity(const std::string& text) {
  for (const auto& [name, value] : kStochasticities) {
    if (text == name) return value;
  }
  throw InvalidArgument("stochasticity: expected 'doubly', 'row' or 'column', got '" + text + "'");
}

std::vector<PythonRow> python_rows(const PeerSchedule& schedule, uint64_t round, uint32_t segment) {
  std::vector<PythonRow> result;
  for (const PeerRow& row : schedule.rows({round, segment})) {
    PythonRow& converted = result.emplace_back();
    for (const WeightedPeer& entry : row) converted.emplace_back(entry.peer, entry.weight);
  }
  return result;
}

using PythonSend = std::tuple<int, int64_t, int64_t>;
using PythonReceive = std::tuple<int, int64_t, int64_t, double>;
using PythonPhase = std::pair<std::vector<PythonSend>, std::vector<PythonReceive>>;

std::vector<PythonPhase> python_program(const Schedule& schedule, uint64_t round, uint32_t segment,
                                        int64_t numel, int rank) {
  std::vector<PythonPhase> result;
  for (const Phase& phase : schedule.program({round, segment}, numel, rank).phases) {
    auto& [sends, receives] = result.emplace_back();
    for (const Send& s : phase.sends) sends.emplace_back(s.peer, s.slice.begin, s.slice.end);
    for (const Receive& r : phase.receives) {
      receives.emplace_back(r.peer, r.slice.begin, r.slice.end, r.weight);
    }
  }
  return result;
}

std::shared_ptr<PeerSchedule> make_table(const std::vector<std::vector<PythonRow>>& tables,
                                         const std::string& stochasticity, bool rotate_by_segment) {
  std::vector<std::vector<PeerRow>> converted;
  for (const auto& table : tables) {
    auto& rows = converted.emplace_back();
    for (const PythonRow& row : table) {
      PeerRow& entries = rows.emplace_back();
      for (const auto& [peer, weight] : row) entries.push_back({peer, weight});
    }
  }
  return table_schedule(std::move(converted), parse_stochasticity(stochasticity),
                        rotate_by_segment);
}

ShardCuts make_cuts(const std::vector<std::vector<std::pair<int64_t, int64_t>>>& shards) {
  ShardCuts cuts;
  for (const auto& of_segment : shards) {
    std::vector<Slice>& slices = cuts.emplace_back();
    for (const auto& [begin, end] : of_segment) slices.push_back({begin, end});
  }
  return cuts;
}

using PythonLevel = std::pair<std::shared_ptr<Schedule>, std::string>;

std::shared_ptr<LevelledSchedule> make_levelled(const std::vector<PythonLevel>& levels) {
  std::vector<Level> converted;
  for (const auto& [schedule, wire] : levels) converted.push_back({schedule, parse_dtype(wire)});
  return std::make_shared<LevelledSchedule>(std::move(converted));
}

void bind_group_schedules(py::module_& m) {
  using namespace py::literals;
  m.def(
      "group_average_schedule",
      [](Groups groups, bool through_root) {
        const GroupRoute route = through_root ? GroupRoute::kRoot : GroupRoute::kSharded;
        return std::shared_ptr<Schedule>(group_average_schedule(std::move(groups), route));
      },
      "groups"_a, "through_root"_a);
  m.def(
      "group_broadcast_schedule",
      [](Groups groups) {
        return std::shared_ptr<Schedule>(group_broadcast_schedule(std::move(groups)));
      },
      "groups"_a);
  m.def(
      "hierarchical_schedule",
      [](const std::shared_ptr<Schedule>& inner, Groups groups,
         const std::vector<std::vector<std::pair<int64_t, int64_t>>>& shards) {
        return std::shared_ptr<Schedule>(
            hierarchical_schedule(inner, std::move(groups), make_cuts(shards)));
      },
      "inner"_a, "groups"_a, "shards"_a);
}

// Python shares schedules with engines.
template <typename Made, typename... Args>
auto shared(std::unique_ptr<Made> (*make)(Args...)) {
  return [make](Args... args) { return std::shared_ptr<Made>(make(std::move(args)...)); };
}

}  // namespace

void bind_schedules(py::module_& m) {
  using namespace py::literals;
  py::class_<Schedule, std::shared_ptr<Schedule>>(m, "Schedule")
      .def_property_readonly("name", &Schedule::name)
      .def_property_readonly("size", &Schedule::size)
      .def_property_readonly("stochasticity", &stochasticity_name)
      .def("program", &python_program, "round"_a, "segment"_a, "numel"_a, "rank"_a);
  py::class_<PeerSchedule, Schedule, std::shared_ptr<PeerSchedule>>(m, "PeerSchedule")
      .def("rows", &python_rows, "round"_a, "segment"_a);
  py::class_<LevelledSchedule, Schedule, std::shared_ptr<LevelledSchedule>>(m, "LevelledSchedule")
      .def("choose", &LevelledSchedule::choose, "level"_a, "first_round"_a);
  m.def("levelled_schedule", &make_levelled, "levels"_a);
  m.def("crossover_schedule", shared(&crossover_schedule), "size"_a, "seed"_a, "segmentwise"_a,
        "fair"_a);
  m.def("crossover_sequential_schedule", shared(&crossover_sequential_schedule), "size"_a, "seed"_a,
        "num_segments"_a);
  m.def("shift_schedule", shared(&shift_schedule), "size"_a, "seed"_a);
  m.def("exponential_schedule", shared(&exponential_schedule), "size"_a);
  m.def("exponential_xor_schedule", shared(&exponential_xor_schedule), "size"_a);
  m.def("base2_schedule", shared(&base2_schedule), "size"_a);
  m.def("mixed_radix_schedule", shared(&mixed_radix_schedule), "size"_a, "radices"_a);
  m.def("group_crossover_schedule", shared(&group_crossover_schedule), "size"_a, "group_size"_a,
        "seed"_a);
  m.def("ring_schedule", shared(&ring_schedule), "size"_a);
  m.def("complete_schedule", shared(&complete_schedule), "size"_a);
  m.def("all_reduce_schedule", shared(&all_reduce_schedule), "size"_a);
  bind_group_schedules(m);
  m.def("table_schedule", &make_table, "tables"_a, "stochasticity"_a, "rotate_by_segment"_a);
  m.def(
      "repeated_schedule",
      [](const std::shared_ptr<Schedule>& inner, uint64_t rounds_per_step) {
        return std::shared_ptr<Schedule>(repeated_schedule(inner, rounds_per_step));
      },
      "inner"_a, "rounds_per_step"_a);
  m.def(
      "exact_average_schedule",
      [](const std::shared_ptr<Schedule>& inner, uint64_t every, uint64_t first) {
        return std::shared_ptr<Schedule>(exact_average_schedule(inner, every, first));
      },
      "inner"_a, "every"_a, "first"_a);
  m.def(
      "among_members_schedule",
      [](const std::shared_ptr<Schedule>& inner, std::vector<int> members, int size) {
        return std::shared_ptr<Schedule>(among_members_schedule(inner, std::move(members), size));
      },
      "inner"_a, "members"_a, "size"_a);
}

}  // namespace crossover
