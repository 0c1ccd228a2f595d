"""What gossip adds to a step beside the same loop on one rank: Python and engine, mixing apart.

    python benchmarks/overhead.py

Two ranks of this host train a model of tiny tensors, so that moving and mixing them takes next to
nothing: 161 parameters, as many as ResNet-50 has, and 1,000. They take turns at

``alone``      the loop on rank 0, unwrapped, while rank 1 sleeps
``unwrapped``  the same on both ranks at once, which tells what they take from each other
``crossover/OVERLAP/fp32``  wrapped, in every mode

A turn's figures are medians over its steps: time, processor time of the training thread, and of
the process, its progress thread included. What is reported is the median over turns, and of the
difference from ``alone`` in the same round of turns. Mixing is timed in a run of its own, by the
engine's events. Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

import torch
from local_ranks import outputs_of_ranks
from records import RESULTS, Record, merge
from torch import Tensor, nn

import crossover_comm as cc
from crossover_comm.context import current_context

WIDTH: Final = 8
LAYERS_PER_BLOCK: Final = 3
NUM_WARM_UP_STEPS: Final = 10
EVENT_CAPACITY: Final = 1 << 18
MODES: Final = ("none", "forward", "fused", "backward")
METHODS: Final = ("alone", "unwrapped", *(f"crossover/{mode}/fp32" for mode in MODES))
FIGURES: Final = ("step_s", "thread_cpu_s", "process_cpu_s")
KEY: Final = ("parameters", "method")


class Block(nn.Module):
    """Some layers of three parameters each and a residual: one segment."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        layers = [
            (nn.Linear(WIDTH, WIDTH, bias=False), nn.LayerNorm(WIDTH), nn.ReLU())
            for _ in range(num_layers)
        ]
        self.layers = nn.Sequential(*itertools.chain.from_iterable(layers))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.layers(x)
        return added


def tiny_model(num_parameters: int) -> nn.Sequential:
    """A residual network of so many parameters, none of more than 64 elements."""
    num_layers, left = divmod(num_parameters, 3)
    blocks: list[nn.Module] = [
        Block(min(LAYERS_PER_BLOCK, num_layers - first))
        for first in range(0, num_layers, LAYERS_PER_BLOCK)
    ]
    if left:
        blocks.append(nn.Linear(WIDTH, WIDTH, bias=left == 2))
    return nn.Sequential(*blocks)


class Loop:
    """A model wrapped one way, with its optimizer."""

    def __init__(self, method: str, num_parameters: int) -> None:
        torch.manual_seed(0)
        self._model: nn.Module = tiny_model(num_parameters)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-9, momentum=0.9)
        self._x = torch.randn(2, WIDTH)
        if method.startswith("crossover/"):
            _, overlap, wire = method.split("/")
            config = cc.GossipConfig(overlap=overlap, wire=wire)  # type: ignore[arg-type]
            self._model = cc.DistributedDataParallel(self._model, gossip=config)

    def step(self) -> tuple[float, float, float]:
        """One training step; what passed on the clocks of `FIGURES`."""
        before = time.perf_counter(), time.thread_time(), time.process_time()
        self._optimizer.zero_grad()
        self._model(self._x).square().mean().backward()
        self._optimizer.step()
        after = time.perf_counter(), time.thread_time(), time.process_time()
        return after[0] - before[0], after[1] - before[1], after[2] - before[2]

    def timed(self, num_steps: int) -> Record:
        """The median of each figure."""
        steps = [self.step() for _ in range(num_steps)]
        return dict(zip(FIGURES, map(statistics.median, zip(*steps, strict=True)), strict=True))


def turn(method: str, num_parameters: int, num_steps: int) -> Record | None:
    """Called on each rank; None where a rank sleeps through it."""
    if method == "alone" and cc.rank() != 0:
        cc.barrier()
        cc.barrier()
        return None
    loop = Loop(method, num_parameters)
    for _ in range(NUM_WARM_UP_STEPS):
        loop.step()
    cc.barrier()
    figures = loop.timed(num_steps)
    cc.synchronize()
    cc.barrier()
    return figures


def turns(num_parameters: int, num_steps: int, num_turns: int) -> list[dict[str, Record]]:
    """Called on each rank: its figures by method, turn after turn."""
    cc.init(transport="shm")
    found = []
    for _ in range(num_turns):
        figures = {method: turn(method, num_parameters, num_steps) for method in METHODS}
        found.append({method: own for method, own in figures.items() if own is not None})
    cc.shutdown()
    return found


def mixing(num_parameters: int, num_steps: int) -> Record:
    """Called on each rank: number of segments, and by method the median time a round is mixed."""
    cc.init(transport="shm", event_capacity=EVENT_CAPACITY)
    num_segments, mix_s, first = 0, {}, 0
    for mode in MODES:
        method = f"crossover/{mode}/fp32"
        turn(method, num_parameters, num_steps)
        records, first = current_context().engine.events(first)
        begun = {record[2:5]: record[0] for record in records if record[1] == "mix_begun"}
        rounds: dict[tuple[int, int], float] = {}
        for time_s, kind, plan, index, segment, *_ in records:
            if kind == "mixed":
                num_segments = max(num_segments, segment + 1)
                rounds.setdefault((plan, index), 0.0)
                rounds[plan, index] += time_s - begun[plan, index, segment]
        mix_s[method] = statistics.median(rounds.values())
    cc.shutdown()
    return {"segments": num_segments, "mix_s": mix_s}


def summary(
    figures: Sequence[dict[str, Record]], mixed: Record, num_parameters: int
) -> list[Record]:
    """A row per method, from rank 0's turns."""
    rows = []
    for method in METHODS:
        own = [by_method[method] for by_method in figures]
        row: Record = {"parameters": num_parameters, "method": method}
        row |= {name: statistics.median(one[name] for one in own) for name in FIGURES}
        if method != "alone":
            for name in FIGURES:
                extra = (
                    one[name] - by["alone"][name] for one, by in zip(own, figures, strict=True)
                )
                row[f"extra_{name}"] = statistics.median(extra)
        if method in mixed["mix_s"]:
            row |= {"segments": mixed["segments"], "mix_s": mixed["mix_s"][method]}
            row["overhead_s"] = row["extra_step_s"] - row["mix_s"]
        rows.append(row)
    return rows


def measure(num_parameters: int, num_steps: int, num_turns: int) -> list[Record]:
    def of_rank_0(what: str) -> Any:
        size = {"parameters": num_parameters, "steps": num_steps, "turns": num_turns}
        arguments = [text for name, value in size.items() for text in (f"--{name}", str(value))]
        return json.loads(outputs_of_ranks(__file__, [*arguments, "--as-rank", what], 2)[0])

    return summary(of_rank_0("turns"), of_rank_0("mixing"), num_parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parameters", type=int, nargs="+", default=[161, 1000])
    parser.add_argument("--steps", type=int, default=100, help="of each turn at 161 parameters")
    parser.add_argument("--turns", type=int, default=7, help="of each method")
    parser.add_argument("--as-rank", choices=("turns", "mixing"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank is not None:
        torch.set_num_threads(1)
        (num_parameters,) = options.parameters
        if options.as_rank == "turns":
            print(json.dumps(turns(num_parameters, options.steps, options.turns)))
        else:
            print(json.dumps(mixing(num_parameters, options.steps)))
        return
    for num_parameters in options.parameters:
        num_steps = max(10, options.steps * 161 // max(num_parameters, 161))
        rows = measure(num_parameters, num_steps, options.turns)
        merge(RESULTS / "overhead.json", rows, KEY)
        print(f"{num_parameters} parameters, ms: step, beside alone: step, thread, process; mixing")
        for row in rows:
            names = ("step_s", *(f"extra_{name}" for name in FIGURES), "mix_s")
            figures = "".join(f"{1e3 * row[name]:9.3f}" for name in names if name in row)
            print(f"{row['method']:26}{figures}")


if __name__ == "__main__":
    main()
