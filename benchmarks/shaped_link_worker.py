"""One rank of shaped_link.py: times every method in turn on the same model and data.

The methods take turns in blocks of steps, so that a change of the machine's load meets all alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import netns
import torch
import torch.distributed as dist
from torch import nn

import crossover_comm as cc
from crossover_comm.config import Wire

WIDTHS = (512, 1536, 1536, 1536, 512)
"""Of the MLP: 6.3 million parameters, 25.2 MB."""
BATCH_SIZE = 64
NUM_WARM_UP_STEPS = 2

Record = dict[str, Any]


class Method:
    """A model wrapped one way, and what its steps took and moved.

    Args:
        name: For the report.
        wrap: Makes of a plain model the one that is called.
    """

    def __init__(self, name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(WIDTHS):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        plain = nn.Sequential(*layers[:-1])
        self.model_bytes = 4 * sum(p.numel() for p in plain.parameters())
        self._model = wrap(plain)
        self._optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
        self._generator = torch.Generator().manual_seed(dist.get_rank())
        self.record: Record = {"method": name, "step_s": [], "moved_bytes": {}}

    def run(self, num_steps: int, *, record: bool) -> None:
        """Steps of all ranks at once; bytes are those between the barriers around them."""
        cc.barrier()
        before = self._moved()
        for _ in range(num_steps):
            started = time.perf_counter()
            self._step()
            if record:
                self.record["step_s"].append(time.perf_counter() - started)
        cc.synchronize()
        cc.barrier()
        if record:
            total = self.record["moved_bytes"]
            for name, value in self._moved().items():
                total[name] = total.get(name, 0) + value - before[name]

    def _step(self) -> None:
        x = torch.randn(BATCH_SIZE, WIDTHS[0], generator=self._generator)
        self._optimizer.zero_grad()
        self._model(x).square().mean().backward()
        self._optimizer.step()

    def _moved(self) -> dict[str, int]:
        names = ("payload_sent_bytes", "wire_sent_bytes", "wire_received_bytes")
        moved = {name: int(cc.counters()[name]) for name in names}
        sent, received = netns.interface_bytes()
        return {**moved, "interface_sent_bytes": sent, "interface_received_bytes": received}


def _methods() -> list[Method]:
    def crossover(wire: Wire) -> Callable[[nn.Module], nn.Module]:
        config = cc.GossipConfig(overlap="backward", wire=wire)
        return lambda model: cc.DistributedDataParallel(model, gossip=config)

    return [
        Method("compute alone", lambda model: model),
        Method("crossover, fp32 wire", crossover("fp32")),
        Method("crossover, bf16 wire", crossover("bf16")),
        Method("torch DDP (gloo)", nn.parallel.DistributedDataParallel),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, required=True, help="of each method in each block")
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for this rank's JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cc.init(transport="tcp")
    methods = _methods()
    for method in methods:
        method.run(NUM_WARM_UP_STEPS, record=False)
    for _ in range(options.blocks):
        for method in methods:
            method.run(options.steps, record=True)
    records = [{**method.record, "model_bytes": method.model_bytes} for method in methods]
    (options.output / f"rank{cc.rank()}.json").write_text(json.dumps(records))
    cc.shutdown()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
