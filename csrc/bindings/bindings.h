// Parts of the Python extension: argument conversion only. Documentation and types are in
// crossover_comm/_C.pyi. Nothing outside this folder knows Python.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "core/pipe.h"
#include "core/transport.h"

namespace crossover {

/// Python holds a pipe until an engine takes it.
struct PythonPipe {
  std::unique_ptr<Pipe> pipe;
};

/// Python holds a layer until an engine takes it.
struct PythonTransportLayer {
  TransportLayer layer;
};

void bind_errors();
void bind_schedules(pybind11::module_& m);
void bind_calls(pybind11::module_& m);
void bind_pipes(pybind11::module_& m);
void bind_engine(pybind11::module_& m);
void bind_nccl(pybind11::module_& m);

}  // namespace crossover
