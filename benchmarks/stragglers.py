"""Throughput with a slow rank and with jitter: this package and torch's DDP, in one run.

    python benchmarks/stragglers.py

8 ranks, one per network namespace without a rate limit. Compute is a sleep (100 ms a step, a third
of it in forward), so that 8 ranks on few cores do not measure the scheduler. "straggler": rank 0 is
50 % slower always. "jitter": one step in ten of each rank is 50 % longer; all methods meet the same
draws. Writes benchmarks/results/stragglers.json.
"""

from __future__ import annotations

import argparse

import netns
from hosts_run import Setting, steps_on
from records import RESULTS, Record, merge
from simulated_compute import DELAYS
from step_methods import available

METHODS = (
    "compute",
    "ddp",
    "crossover/none/fp32",
    "crossover/forward/fp32",
    "crossover/backward/fp32",
    "crossover/backward/fp32/one-peer",
    "crossover/backward/fp32/exponential",
)
WIDTHS = (256, 384, 384, 256)
"""0.34 million parameters, 1.4 MB."""
KEY = ("hosts", "method", "delay")


def with_throughput(rows: list[Record], sleep_s: float) -> list[Record]:
    """Adds each row's throughput as a share of what steps of `sleep_s` alone would give."""
    return [{**row, "throughput": sleep_s / row["mean_step_s"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="see step_methods.py")
    parser.add_argument("--delays", nargs="+", choices=DELAYS, default=DELAYS)
    parser.add_argument("--steps", type=int, default=60, help="of each method and delay")
    parser.add_argument("--sleep-ms", type=float, default=100.0, help="compute of a step")
    parser.add_argument("--port", type=int, default=29500, help="of rank 0's store")
    options = parser.parse_args()
    reason = netns.why_unavailable()
    if reason is not None:
        parser.error(reason)
    setting = Setting(
        methods=tuple(available(options.methods)),
        steps=options.steps,
        blocks=1,
        widths=WIDTHS,
        batch_size=1,
        sleep_s=1e-3 * options.sleep_ms,
        delays=tuple(options.delays),
    )
    with netns.shaped_hosts(options.hosts, None) as hosts:
        rows = steps_on(hosts, setting, options.port)
    rows = with_throughput(rows, setting.sleep_s)
    sleep = {"hosts": options.hosts, "sleep_s": setting.sleep_s}
    merge(RESULTS / "stragglers.json", [{**sleep, **row} for row in rows], KEY)
    print(f"{'':38}{'delay':>12} {'ms a step':>12} {'throughput':>12}")
    for row in rows:
        print(
            f"{row['method']:38}{row['delay']:>12} {1e3 * row['mean_step_s']:12.1f} "
            f"{row['throughput']:12.3f}"
        )


if __name__ == "__main__":
    netns.end_on_sigterm()
    main()
