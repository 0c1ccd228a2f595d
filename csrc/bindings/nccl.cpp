#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "cuda/nccl_library.h"

namespace py = pybind11;

namespace crossover {

void bind_nccl(py::module_& m) {
  using namespace py::literals;
  py::class_<NcclLibrary, std::shared_ptr<NcclLibrary>>(m, "Nccl")
      .def_property_readonly("path", [](const NcclLibrary& nccl) { return nccl.origin().path; })
      .def_property_readonly("source", [](const NcclLibrary& nccl) { return nccl.origin().source; })
      .def_property_readonly(
          "version",
          [](const NcclLibrary& nccl) { return nccl_version_text(nccl.origin().version); })
      .def("unique_id", [](const NcclLibrary& nccl) {
        const nccl::UniqueId id = nccl.unique_id();
        return py::bytes(id.internal, sizeof(id.internal));
      });
  m.def(
      "load_nccl",
      [](std::string override_path, std::string wheel_path) {
        return NcclLibrary::load(
            {.override_path = std::move(override_path), .wheel_path = std::move(wheel_path)});
      },
      "override_path"_a, "wheel_path"_a);
}

}  // namespace crossover
