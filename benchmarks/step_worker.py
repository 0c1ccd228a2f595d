"""One rank of hosts_run.py: times every method in turn on the same model and data.

The methods take turns in blocks of steps, so that a change of the machine's load meets all alike.
The first step of a block is not recorded: in it the network may be idle.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import netns
import torch
import torch.distributed as dist
from hosts_run import Setting
from records import Record
from simulated_compute import Delay, factor
from step_methods import Method

import crossover_comm as cc

NUM_WARM_UP_STEPS = 2


class Turns:
    """The turns of one method, and what came of them."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._setting = setting
        self._method = Method(name, setting.widths)
        self._generator = torch.Generator().manual_seed(dist.get_rank())
        self._records: dict[Delay, Record] = {
            delay: {
                "method": name,
                "delay": delay,
                "model_bytes": self._method.model_bytes,
                "step_s": [],
                "forward_backward_s": [],
                "block_s": [],
                "moved_bytes": {},
            }
            for delay in setting.delays
        }

    @property
    def records(self) -> list[Record]:
        return list(self._records.values())

    def warm_up(self) -> None:
        for _ in range(NUM_WARM_UP_STEPS):
            self._step("none", 0)
        self._method.quiesce()

    def run(self, delay: Delay) -> None:
        """A block: steps of all ranks at once; bytes are those between the barriers around them."""
        record = self._records[delay]
        cc.barrier()
        before = _moved()
        block_started = time.perf_counter()
        for index in range(self._setting.steps):
            computed_s, step_s = self._step(delay, index)
            if index > 0:
                record["forward_backward_s"].append(computed_s)
                record["step_s"].append(step_s)
        self._method.quiesce()
        record["block_s"].append(time.perf_counter() - block_started)
        cc.barrier()
        total = record["moved_bytes"]
        for name, value in _moved().items():
            total[name] = total.get(name, 0) + value - before[name]

    def _step(self, delay: Delay, index: int) -> tuple[float, float]:
        x = torch.randn(
            self._setting.batch_size, self._setting.widths[0], generator=self._generator
        )
        longer = factor(delay, dist.get_rank(), index)
        return self._method.step(x, self._setting.sleep_s * longer)


def _moved() -> dict[str, int]:
    names = ("payload_sent_bytes", "wire_sent_bytes", "wire_received_bytes")
    moved = {name: int(cc.counters()[name]) for name in names}
    sent, received = netns.interface_bytes()
    return {**moved, "interface_sent_bytes": sent, "interface_received_bytes": received}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--setting", type=Setting.from_json, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for this rank's JSON")
    options = parser.parse_args()
    setting: Setting = options.setting
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cc.init(transport="tcp")
    turns = [Turns(name, setting) for name in setting.methods]
    for turn in turns:
        turn.warm_up()
    for _ in range(setting.blocks):
        for delay in setting.delays:
            for turn in turns:
                turn.run(delay)
    records = [record for turn in turns for record in turn.records]
    (options.output / f"rank{cc.rank()}.json").write_text(json.dumps(records))
    cc.shutdown()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
