#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/call.h"
#include "core/call_program.h"
#include "host/host_reduction.h"

namespace py = pybind11;

namespace crossover {
namespace {

using PythonRange = std::pair<uintptr_t, uint64_t>;
using PythonMessage = std::tuple<int, uintptr_t, uint64_t>;

Range range(const PythonRange& given) {
  return {reinterpret_cast<std::byte*>(given.first), given.second};
}

std::vector<Message> messages(const std::vector<PythonMessage>& given) {
  std::vector<Message> made;
  for (const auto& [peer, address, num_bytes] : given) {
    made.push_back({peer, range({address, num_bytes})});
  }
  return made;
}

CallPlace make_place(int rank, int size, int root, const std::string& element,
                     const std::string& op) {
  CallPlace place{rank, size, root, parse_element(element), parse_reduce_op(op), {}};
  place.reduction = host_reduction(place.element, place.op);
  return place;
}

}  // namespace

void bind_calls(py::module_& m) {
  using namespace py::literals;
  py::class_<Call, std::shared_ptr<Call>>(m, "Call").def_property_readonly("id", &Call::id);
  py::class_<CallProgram>(m, "CallProgram").def("describe", [](const CallProgram& program) {
    return program.signature.describe();
  });
  py::class_<CallPlace>(m, "CallPlace")
      .def(py::init(&make_place), "rank"_a, "size"_a, "root"_a, "element"_a, "op"_a);
  m.def(
      "all_reduce_program",
      [](const CallPlace& place, const PythonRange& data) {
        return all_reduce_program(place, range(data));
      },
      "place"_a, "data"_a);
  m.def(
      "reduce_program",
      [](const CallPlace& place, const PythonRange& data) {
        return reduce_program(place, range(data));
      },
      "place"_a, "data"_a);
  m.def(
      "reduce_scatter_program",
      [](const CallPlace& place, const std::vector<PythonRange>& inputs,
         const PythonRange& output) {
        std::vector<Range> converted;
        for (const PythonRange& input : inputs) converted.push_back(range(input));
        return reduce_scatter_program(place, converted, range(output));
      },
      "place"_a, "inputs"_a, "output"_a);
  m.def(
      "broadcast_program",
      [](const CallPlace& place, const PythonRange& data) {
        return broadcast_program(place, range(data));
      },
      "place"_a, "data"_a);
  m.def(
      "exchange_program",
      [](const std::string& kind, const CallPlace& place, uint64_t numel,
         const std::vector<PythonMessage>& sends, const std::vector<PythonMessage>& receives) {
        return exchange_program(parse_call_kind(kind), place, numel, messages(sends),
                                messages(receives));
      },
      "kind"_a, "place"_a, "numel"_a, "sends"_a, "receives"_a);
  m.def(
      "point_to_point_program",
      [](const CallPlace& place, uint32_t tag, const std::vector<PythonMessage>& sends,
         const std::vector<PythonMessage>& receives) {
        CallProgram made = exchange_program(CallKind::kPointToPoint, place, 0, messages(sends),
                                            messages(receives));
        made.point_to_point_tag = tag;
        return made;
      },
      "place"_a, "tag"_a, "sends"_a, "receives"_a);
}

}  // namespace crossover
