// The second extension, crossover_comm._cuda: what needs the CUDA runtime. It is imported only when
// a GPU is asked for and may be absent; its types build on those of crossover_comm._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "core/stream_transport.h"
#include "cuda/cuda_device.h"
#include "cuda/nccl_transport.h"
#include "cuda/runtime.h"
#include "cuda/self_test.h"
#include "cuda/stream_events.h"

namespace py = pybind11;

namespace crossover {
namespace {

nccl::UniqueId to_unique_id(const std::string& bytes) {
  nccl::UniqueId id{};
  if (bytes.size() != sizeof(id.internal)) {
    throw InvalidArgument("unique_id: expected " + std::to_string(sizeof(id.internal)) +
                          " bytes, got " + std::to_string(bytes.size()));
  }
  std::copy(bytes.begin(), bytes.end(), id.internal);
  return id;
}

struct NcclOptions {
  NcclTransportConfig nccl;
  StreamConfig control;
};

std::unique_ptr<PythonTransport> make_transport(std::shared_ptr<NcclLibrary> library,
                                                std::shared_ptr<CudaDevice> device,
                                                const NcclOptions& options,
                                                const std::vector<PythonPipe*>& pipes) {
  static const SteadyClock clock;
  std::vector<std::unique_ptr<Pipe>> taken;
  for (PythonPipe* held : pipes) taken.push_back(held ? std::move(held->pipe) : nullptr);
  auto events = cuda_stream_events(cudart_runtime(), device->ordinal());
  auto control = std::make_unique<StreamTransport>(options.control, std::move(taken));
  return std::make_unique<PythonTransport>(PythonTransport{
      std::make_unique<NcclTransport>(options.nccl, std::move(library), std::move(events),
                                      std::move(device), std::move(control), clock)});
}

void bind_device(py::module_& m) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> unlocked;
  py::class_<CudaDevice, std::shared_ptr<CudaDevice>>(m, "CudaDevice")
      .def(py::init(
               [](int ordinal) { return std::make_shared<CudaDevice>(cudart_runtime(), ordinal); }),
           "ordinal"_a)
      .def_property_readonly("ordinal", &CudaDevice::ordinal);
  m.def("device_count", [] { return cudart_runtime()->device_count(); }, unlocked);
  m.def("check_pack", [](CudaDevice& device) { check_pack(device); }, "device"_a, unlocked);
  m.def("check_mix", [](CudaDevice& device) { check_mix(device); }, "device"_a, unlocked);
  m.def(
      "check_self_exchange",
      [](std::shared_ptr<CudaDevice> device, std::shared_ptr<NcclLibrary> nccl) {
        auto events = cuda_stream_events(cudart_runtime(), device->ordinal());
        check_self_exchange(device, std::move(nccl), std::move(events));
      },
      "device"_a, "nccl"_a, unlocked);
}

void bind_transport(py::module_& m) {
  using namespace py::literals;
  py::class_<PythonTransport>(m, "Transport");
  m.def(
      "nccl_transport",
      [](std::shared_ptr<NcclLibrary> nccl, std::shared_ptr<CudaDevice> device, int rank, int size,
         const std::string& unique_id, const std::vector<PythonPipe*>& pipes, double timeout_s,
         double stall_timeout_s, uint64_t incarnation, int max_ctas, bool host_ready) {
        NcclOptions options;
        options.nccl.communicator = {rank, size, to_unique_id(unique_id), max_ctas};
        options.nccl.host_ready = host_ready;
        options.nccl.timeout_s = timeout_s;
        options.nccl.group_timeout_s = stall_timeout_s;
        for (int peer = 0; peer < size; ++peer) {
          if (peer != rank) options.nccl.warm_peers.push_back(peer);
        }
        options.control = {rank, size, timeout_s, 0, incarnation};
        return make_transport(std::move(nccl), std::move(device), options, pipes);
      },
      py::kw_only(), "nccl"_a, "device"_a, "rank"_a, "size"_a, "unique_id"_a, "pipes"_a,
      "timeout_s"_a, "stall_timeout_s"_a, "incarnation"_a, "max_ctas"_a, "host_ready"_a);
}

}  // namespace
}  // namespace crossover

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA part of crossover_comm; see _cuda.pyi";
  pybind11::module_::import("crossover_comm._C");
  m.attr("architectures") = CROSSOVER_CUDA_ARCHITECTURES;
  crossover::bind_device(m);
  crossover::bind_transport(m);
}
