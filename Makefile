# The README's two commands: `make test` and `make demo`. Both create .venv on first use.
#   PYTHON       interpreter for .venv
#   JOBS         parallel compile and test jobs
#   WERROR       ON: compiler warnings are errors
#   TORCH_INDEX  index with CPU builds of torch (PyPI's own bring gigabytes of CUDA); empty, or not
#                reachable: pip's configured index decides
PYTHON ?= python3
JOBS ?= $(shell nproc)
WERROR ?= OFF
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
SHELL := /bin/bash

CXX_FILES := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
TIDY_FILES := $(filter csrc/core/%.cpp csrc/host/%.cpp,$(CXX_FILES))
PACKAGE_SOURCES := setup.py pyproject.toml CMakeLists.txt crossover_comm/_version.py \
  $(filter csrc/%,$(CXX_FILES))
WARNINGS := -DCROSSOVER_WERROR=$(WERROR)
# Host code only: nvcc knows no sanitizers. What needs nvcc comes with the package.
SANITIZER_TYPE := -DCROSSOVER_CUDA=OFF -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1"

.PHONY: test test-cpp test-python demo lint lint-python lint-cpp sanitize bench-cpp clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

test: test-cpp test-python

test-cpp: $(VENV)/.build
	@echo "== C++ tests"
	@scripts/cpp_tests build/cpp $(JOBS) $(WARNINGS) -DCROSSOVER_CUDA=OFF

test-python: $(VENV)/.package $(VENV)/.test $(VENV)/.demo
	@echo "== Python tests"
	@python -m pytest

demo: $(VENV)/.package $(VENV)/.demo
	@echo "== demo: 4 workers, crossover and DDP"
	@python examples/digits/demo.py

lint: lint-python lint-cpp
	@echo "== lint: clean"

lint-python: $(VENV)/.lint $(VENV)/.torch $(VENV)/.test $(VENV)/.demo
	@echo "== lint: ruff, mypy"
	@ruff check .
	@ruff format --check .
	@mypy

lint-cpp: $(VENV)/.lint $(VENV)/.build
	@echo "== lint: clang-format, clang-tidy"
	@clang-format --dry-run -Werror $(CXX_FILES)
	@cmake -S . -B build/tidy -G Ninja -DCROSSOVER_PYTHON=OFF -DCROSSOVER_TESTS=OFF \
	  -DCROSSOVER_CUDA=OFF >/dev/null
	@printf '%s\n' $(TIDY_FILES) | xargs -P $(JOBS) -n 2 clang-tidy -p build/tidy --quiet

sanitize: sanitize-address,undefined sanitize-thread

sanitize-%: $(VENV)/.build
	@echo "== C++ tests under -fsanitize=$*"
	@scripts/cpp_tests build/sanitize-$* $(JOBS) $(WARNINGS) $(SANITIZER_TYPE) -DCROSSOVER_SANITIZE=$*

# Measures: leave the machine alone meanwhile. Needs Google Benchmark (libbenchmark-dev).
bench-cpp: $(VENV)/.build
	@echo "== C++ benchmarks"
	@scripts/cpp_benchmarks build/bench $(JOBS)

clean:
	rm -rf build dist $(VENV) crossover_comm/_C.*.so crossover_comm/_cuda.*.so

# --- the environment: one stamp for each set of pins
$(VENV)/.created:
	@echo "== environment: $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: requirements/torch.txt | $(VENV)/.created
	@echo "== environment: torch (some hundred MB on first use)"
	@scripts/install_torch $(VENV)/bin/python "$(TORCH_INDEX)"
	@touch $@

$(VENV)/.build $(VENV)/.test $(VENV)/.lint: $(VENV)/.%: requirements/%.txt | $(VENV)/.created
	@echo "== environment: $*"
	@$(PIP) -r $<
	@touch $@

$(VENV)/.demo: requirements/demo.txt | $(VENV)/.torch
	@echo "== environment: demo"
	@$(PIP) -r $<
	@touch $@

$(VENV)/.package: $(PACKAGE_SOURCES) $(VENV)/.build $(VENV)/.torch
	@echo "== package: compile and install"
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@
