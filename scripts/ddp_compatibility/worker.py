"""Runs torch's tests one after the other, each on forked ranks, and tells the outcomes.

    python worker.py SUITE SOURCE OUT [--preset P] [--cpu-for-gpu] [--only NAME ...]

Writes a JSON object {test: {"outcome": passed | failed | skipped, "message": the error's line}}.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

TEST_TIMEOUT_S = 60
_ERROR = re.compile(
    r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Argument|Timeout)(?:: .*)?)$", re.MULTILINE
)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+|/\S+/")


def main() -> None:
    options = _options()
    _prepare_environment(options.world_size)
    import torch
    from stand_in import install

    install(options.preset, cpu_for_gpu=options.cpu_for_gpu)
    from suites import load

    tests = load(options.suite, options.source)
    _fork_ranks(torch, options.cpu_for_gpu)
    outcomes: dict[str, dict[str, object]] = {}
    for name, cls in tests.items():
        if options.only and name not in options.only:
            continue
        started = time.monotonic()
        outcomes[name] = _outcome(cls, name.rpartition(".")[2])
        took_s = time.monotonic() - started
        print(f"{outcomes[name]['outcome']:8} {took_s:5.1f} s  {name}", file=sys.stderr, flush=True)
        options.out.write_text(json.dumps(outcomes, indent=1))
    options.out.write_text(json.dumps(outcomes, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suite")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset")
    parser.add_argument("--cpu-for-gpu", action="store_true")
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--only", nargs="*")
    return parser.parse_args()


def _prepare_environment(world_size: int) -> None:
    """What torch's tests and test runner read when they are imported."""
    folder = tempfile.mkdtemp(prefix="ddp-compatibility-")
    (Path(folder) / "barrier").mkdir()
    (Path(folder) / "init_dir").mkdir()
    os.environ.update(
        BACKEND="gloo",
        WORLD_SIZE=str(world_size),
        TEMP_DIR=folder,
        INIT_METHOD=f"file://{folder}/shared_init_file",
        MASTER_ADDR="127.0.0.1",
        OMP_NUM_THREADS="1",
        DISTRIBUTED_TESTS_DEFAULT_TIMEOUT=str(TEST_TIMEOUT_S),
    )


def _fork_ranks(torch: Any, cpu_for_gpu: bool) -> None:
    """Ranks are forked from this process: to import torch anew in each would take the most time."""
    from stand_in import CpuForGpu
    from torch.testing._internal import common_distributed
    from torch.testing._internal.common_distributed import MultiProcessTestCase

    common_distributed.TIMEOUT_OVERRIDE.clear()
    run_test = MultiProcessTestCase.run_test

    def run_in_place(self: Any, test_name: str, pipe: Any) -> None:
        import crossover_comm

        try:
            if cpu_for_gpu:
                with CpuForGpu():
                    run_test(self, test_name, pipe)
            else:
                run_test(self, test_name, pipe)
        finally:
            crossover_comm.shutdown()

    fork = torch.multiprocessing.get_context("fork").Process
    start: Any = MultiProcessTestCase
    start.run_test = run_in_place
    start._spawn_processes = lambda self: self._start_processes(fork)


def _outcome(cls: type[unittest.TestCase], name: str) -> dict[str, object]:
    result = unittest.TestResult()
    cls(name).run(result)
    if result.skipped:
        return {"outcome": "skipped", "message": result.skipped[0][1]}
    for _, text in [*result.errors, *result.failures]:
        return {"outcome": "failed", "message": _error_line(text)}
    return {"outcome": "passed", "message": ""}


def _error_line(text: str) -> str:
    """The error that the first of the failed ranks ended with, without what differs by run."""
    first = re.split(r"Process \d+ exited with error code \d+ and exception:", text)[1:2] or [text]
    found = _ERROR.findall(first[0])
    return _ADDRESS.sub("", found[-1] if found else text.splitlines()[-1])


if __name__ == "__main__":
    main()
