#include <pybind11/pybind11.h>

#include <exception>

#include "bindings/bindings.h"
#include "core/error.h"

namespace py = pybind11;

namespace crossover {
namespace {

void throw_python(const char* name, const char* message) {
  const py::object type = py::module_::import("crossover_comm.errors").attr(name);
  PyErr_SetString(type.ptr(), message);
}

}  // namespace

void bind_errors() {
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const InvalidArgument& e) {
      throw_python("InvalidArgument", e.what());
    } catch (const TransportError& e) {
      throw_python("TransportError", e.what());
    } catch (const DeviceError& e) {
      throw_python("DeviceError", e.what());
    } catch (const ProgressTimeout& e) {
      throw_python("ProgressTimeout", e.what());
    } catch (const NonFiniteError& e) {
      throw_python("NonFiniteError", e.what());
    } catch (const CrossoverError& e) {
      throw_python("CrossoverError", e.what());
    }
  });
}

}  // namespace crossover

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ extension of crossover_comm; see _C.pyi";
  m.attr("__interface__") = CROSSOVER_INTERFACE;
  crossover::bind_errors();
  crossover::bind_schedules(m);
  crossover::bind_pipes(m);
  crossover::bind_calls(m);
  crossover::bind_engine(m);
  crossover::bind_nccl(m);
}
