#!/usr/bin/env bash
# gpu_check.sh OUT [STAGE...]: builds from this checkout on a machine with a GPU and shows what only
# a GPU can show. Logs and JSON go to OUT, one line per stage to OUT/summary.jsonl; the exit status
# is 0 if every stage passed, 1 if one failed, 64 for wrong arguments. Without a GPU it says what it
# would run and why it cannot, runs nothing and ends with 2. Needs python3 with torch, pybind11, pytest and numpy, cmake, ninja, nvcc, and GoogleTest:
# installed, or as sources in GOOGLETEST_SOURCE (default /usr/src/googletest). Downloads nothing.
set -uo pipefail
cd "$(dirname "$0")/.."

ALL=(environment build kernels device memcheck racecheck doctor benchmark training failure
  timeline demo)
declare -A WHAT=(
  [environment]="versions of driver, GPU, CUDA, NCCL and torch"
  [build]="the extension modules, the GPU tests and the benchmark, from this checkout for its GPUs"
  [kernels]="pack and mix bit for bit against the host's kernels"
  [device]="rounds of two ranks on one GPU, resident and through pinned memory"
  [memcheck]="compute-sanitizer memcheck on the kernels and the device"
  [racecheck]="compute-sanitizer racecheck on the kernels"
  [doctor]="python -m crossover_comm.doctor, with its self-tests"
  [benchmark]="bandwidth of pack and mix beside a copy, torch.cat, torch._foreach_* and torch.compile"
  [training]="2 and 4 NCCL ranks on one GPU, and GPU tensors over TCP and shared memory by pinned
               staging, in every mode and wire against the dense reference; collectives"
  [failure]="a killed NCCL rank: the others learn of it in time and end"
  [timeline]="a profiler trace of training steps: exchange beside compute, no allocation in a step"
  [demo]="the digits demo on cuda, crossover against DDP"
)
if [ $# -lt 1 ] || [[ "$1" == -* ]]; then
  echo "usage: $0 OUT [STAGE...]; stages: ${ALL[*]}" >&2
  exit 64
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
stages=("${@:-${ALL[@]}}")
for stage in "${stages[@]}"; do
  [ -n "${WHAT[$stage]-}" ] || { echo "$0: no stage '$stage'; stages: ${ALL[*]}" >&2; exit 64; }
done
build=$out/build

missing() {
  local tool
  nvidia-smi -L 2>/dev/null | grep -q . || echo "no GPU: nvidia-smi shows none"
  for tool in nvcc cmake ninja python3; do
    command -v "$tool" >/dev/null || echo "no $tool on PATH"
  done
}

reasons=$(missing)
if [ -n "$reasons" ]; then
  echo "gpu_check: nothing was run:"
  while read -r reason; do echo "  - $reason"; done <<<"$reasons"
  echo "With them, it would run:"
  for stage in "${stages[@]}"; do printf '  %-12s %s\n' "$stage" "${WHAT[$stage]}"; done
  exit 2
fi

environment() {
  nvidia-smi || return
  nvcc --version || return
  OUT=$out python3 - <<'PY'
import json, os, subprocess
import torch

query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
found = {
    "gpus": subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines(),
    "torch": torch.__version__,
    "torch_cuda": torch.version.cuda,
    "torch_nccl": ".".join(map(str, torch.cuda.nccl.version())),
    "nvcc": subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout.split()[-1],
    "commit": subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip(),
}
print(json.dumps(found, indent=2))
with open(os.path.join(os.environ["OUT"], "environment.json"), "w") as file:
    json.dump(found, file, indent=2)
PY
}

build() {
  local capabilities
  capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | tr -d . | sort -u |
    sed 's/$/-real/' | paste -sd';')
  cmake -S . -B "$build" -G Ninja -DCROSSOVER_CUDA=ON -DCROSSOVER_GPU_TESTS=ON \
    -DCROSSOVER_TESTS=OFF "-DPython_EXECUTABLE=$(command -v python3)" \
    "-DCROSSOVER_GOOGLETEST_SOURCE=${GOOGLETEST_SOURCE:-/usr/src/googletest}" \
    "-DCMAKE_CUDA_ARCHITECTURES=$capabilities" &&
    cmake --build "$build" && cmake --install "$build" --prefix "$PWD"
}

kernels() { "$build/tests/gpu/gpu_test" --gtest_filter='CudaKernels.*' --gtest_output="json:$out/kernels.json"; }
device() { "$build/tests/gpu/gpu_test" --gtest_filter='CudaDevice*' --gtest_output="json:$out/device.json"; }

sanitize() {
  compute-sanitizer --tool "$1" --error-exitcode 9 "$build/tests/gpu/gpu_test" --gtest_filter="$2"
}
memcheck() { sanitize memcheck 'Cuda*'; }
racecheck() { sanitize racecheck 'CudaKernels.MixSeveral*:CudaKernels.WriteNothing*'; }

doctor() { python3 -m crossover_comm.doctor; }
benchmark() {
  python3 benchmarks/gpu_kernels.py --program "$build/tests/gpu/gpu_kernels_bench" \
    --output "$out/gpu_kernels.json"
}
gpu_tests() {
  CROSSOVER_REQUIRE_GPU=1 python3 -m pytest "tests/gpu/test_$1.py" -p no:cacheprovider \
    "--junitxml=$out/$1.xml"
}
training() { gpu_tests training; }
failure() { gpu_tests failure; }
timeline() { python3 benchmarks/gpu_timeline.py --output "$out/timeline"; }
demo() { python3 examples/digits/demo.py --device cuda --output "$out/demo"; }

failed=()
: >"$out/summary.jsonl"
for stage in "${stages[@]}"; do
  echo "== $stage: ${WHAT[$stage]}"
  began=$SECONDS
  "$stage" >"$out/$stage.log" 2>&1
  status=$?
  printf '{"stage": "%s", "status": %d, "seconds": %d}\n' "$stage" $status $((SECONDS - began)) |
    tee -a "$out/summary.jsonl"
  [ $status = 0 ] && continue
  failed+=("$stage")
  tail -n 25 "$out/$stage.log"
  [ "$stage" != build ] || break
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu_check: FAILED: ${failed[*]}; logs in $out"
  exit 1
fi
echo "gpu_check: passed: ${stages[*]}; logs in $out"
