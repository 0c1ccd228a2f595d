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

// Whatever can fail is done here, on the training thread.
PythonTransportLayer nccl_layer(std::shared_ptr<NcclLibrary> library,
                                std::shared_ptr<CudaDevice> device, NcclTransportConfig config) {
  static const SteadyClock clock;
  auto events = cuda_stream_events(cudart_runtime(), device->ordinal());
  const bool carries_weights = config.host_ready;
  auto make = [library = std::move(library), device = std::move(device), config = std::move(config),
               events = std::move(events)](std::unique_ptr<Transport> control) {
    return std::make_unique<NcclTransport>(config, library, events, device, std::move(control),
                                           clock);
  };
  return {{std::move(make), carries_weights}};
}

void bind_device(py::module_& m) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> unlocked;
  py::class_<CudaDevice, Device, std::shared_ptr<CudaDevice>>(m, "CudaDevice", py::module_local())
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

void bind_nccl_layer(py::module_& m) {
  using namespace py::literals;
  m.def(
      "nccl_layer",
      [](std::shared_ptr<NcclLibrary> nccl, std::shared_ptr<CudaDevice> device, int rank, int size,
         const std::string& unique_id, double timeout_s, double stall_timeout_s, int max_ctas,
         bool host_ready) {
        NcclTransportConfig config;
        config.communicator = {rank, size, to_unique_id(unique_id), max_ctas};
        config.host_ready = host_ready;
        config.timeout_s = timeout_s;
        config.group_timeout_s = stall_timeout_s;
        for (int peer = 0; peer < size; ++peer) {
          if (peer != rank) config.warm_peers.push_back(peer);
        }
        return nccl_layer(std::move(nccl), std::move(device), std::move(config));
      },
      py::kw_only(), "nccl"_a, "device"_a, "rank"_a, "size"_a, "unique_id"_a, "timeout_s"_a,
      "stall_timeout_s"_a, "max_ctas"_a, "host_ready"_a);
}

}  // namespace
}  // namespace crossover

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA part of crossover_comm; see _cuda.pyi";
  const auto extension = pybind11::module_::import("crossover_comm._C");
  if (extension.attr("__interface__").cast<std::string>() != CROSSOVER_INTERFACE) {
    throw pybind11::import_error(
        "crossover_comm._cuda and crossover_comm._C are of different builds; install both again");
  }
  m.attr("architectures") = CROSSOVER_CUDA_ARCHITECTURES;
  crossover::bind_device(m);
  crossover::bind_nccl_layer(m);
}
