#include <fcntl.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "host/local_pipe.h"
#include "host/shared_memory_pipe.h"
#include "host/tcp_pipe.h"
#include "host/unique_fd.h"

namespace py = pybind11;

namespace crossover {
namespace {

// For Python to own; it becomes guarded again with the pipe that is made of it.
int unguarded_copy(const UniqueFd& fd) {
  const int copy = fcntl(fd.get(), F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw TransportError("cannot duplicate a descriptor");
  return copy;
}

std::vector<std::unique_ptr<PythonPipe>> hold(std::vector<std::unique_ptr<Pipe>> pipes) {
  std::vector<std::unique_ptr<PythonPipe>> held;
  for (auto& pipe : pipes) {
    held.push_back(pipe ? std::make_unique<PythonPipe>(std::move(pipe)) : nullptr);
  }
  return held;
}

std::tuple<int, int, int> make_channel_descriptors() {
  SharedMemoryChannel channel = create_shared_memory_channel();
  return {unguarded_copy(channel.memory), unguarded_copy(channel.wake_0),
          unguarded_copy(channel.wake_1)};
}

std::unique_ptr<LocalNetwork> make_network(int size, size_t ring_bytes, uint64_t seed,
                                           double delay_probability, size_t max_fill_bytes) {
  return std::make_unique<LocalNetwork>(size, ring_bytes,
                                        LocalFaults{seed, delay_probability, max_fill_bytes});
}

}  // namespace

void bind_pipes(py::module_& m) {
  using namespace py::literals;
  py::class_<PythonPipe>(m, "Pipe").def("describe", [](const PythonPipe& held) {
    return held.pipe ? held.pipe->describe() : "taken by an engine";
  });
  m.def(
      "tcp_pipe",
      [](int fd, std::string label) {
        return std::make_unique<PythonPipe>(tcp_pipe(UniqueFd(fd), std::move(label)));
      },
      "fd"_a, "label"_a);
  m.def("create_shared_memory_channel", &make_channel_descriptors);
  m.def(
      "shared_memory_pipe",
      [](int memory_fd, int wake_0_fd, int wake_1_fd, int side, int process_fd, std::string label) {
        SharedMemoryChannel channel{UniqueFd(memory_fd), UniqueFd(wake_0_fd), UniqueFd(wake_1_fd)};
        return std::make_unique<PythonPipe>(
            shared_memory_pipe(std::move(channel), side, UniqueFd(process_fd), std::move(label)));
      },
      "memory_fd"_a, "wake_0_fd"_a, "wake_1_fd"_a, "side"_a, "process_fd"_a, "label"_a);
  py::class_<LocalNetwork>(m, "LocalNetwork")
      .def(py::init(&make_network), "size"_a, "ring_bytes"_a = kDefaultRingBytes, "seed"_a = 0,
           "delay_probability"_a = 0.0, "max_fill_bytes"_a = 0)
      .def(
          "take_pipes",
          [](LocalNetwork& network, int rank) { return hold(network.take_pipes(rank)); }, "rank"_a)
      .def("kill", &LocalNetwork::kill, "rank"_a)
      .def("freeze", &LocalNetwork::freeze, "rank"_a, "frozen"_a)
      .def(
          "inject",
          [](LocalNetwork& network, int source, int destination, const std::string& data) {
            network.inject(source, destination, {data.begin(), data.end()});
          },
          "source"_a, "destination"_a, "data"_a);
}

}  // namespace crossover
