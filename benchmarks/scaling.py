"""Weak scaling from 2 to 16 ranks over shaped links: this package and torch's DDP.

    python benchmarks/scaling.py                        # 2, 4, 8, 16 hosts at 200 Mbit/s
    python benchmarks/scaling.py --hosts 16 --rate none

One rank per network namespace. Compute is a sleep (100 ms a step), so that 16 ranks on few cores do
not measure the scheduler; the model is as large as such a link moves in about that time. Rows are
merged into benchmarks/results/scaling.json.
"""

from __future__ import annotations

import argparse

import netns
from hosts_run import Setting, steps_on, table
from records import RESULTS, merge
from step_methods import available

METHODS = (
    "compute",
    "ddp",
    "crossover/none/fp32",
    "crossover/backward/fp32",
    "crossover/backward/bf16",
)
WIDTHS = (320, 480, 480, 320)
"""0.54 million parameters, 2.2 MB: 86 ms at 200 Mbit/s."""
KEY = ("hosts", "rate", "method")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--rate", default="200mbit", help="as tc writes it, or none")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="see step_methods.py")
    parser.add_argument("--steps", type=int, default=10, help="of each method in each block")
    parser.add_argument("--blocks", type=int, default=2, help="turns that each method takes")
    parser.add_argument("--sleep-ms", type=float, default=100.0, help="compute of a step")
    parser.add_argument("--port", type=int, default=29500, help="of rank 0's store")
    options = parser.parse_args()
    reason = netns.why_unavailable()
    if reason is not None:
        parser.error(reason)
    setting = Setting(
        methods=tuple(available(options.methods)),
        steps=options.steps,
        blocks=options.blocks,
        widths=WIDTHS,
        batch_size=1,
        sleep_s=1e-3 * options.sleep_ms,
    )
    rate = None if options.rate == "none" else options.rate
    for num_hosts in options.hosts:
        with netns.shaped_hosts(num_hosts, rate) as hosts:
            rows = steps_on(hosts, setting, options.port)
        place = {"hosts": num_hosts, "rate": options.rate, "sleep_s": setting.sleep_s}
        merge(RESULTS / "scaling.json", [{**place, **row} for row in rows], KEY)
        print(f"{num_hosts} hosts, {options.rate}")
        print(table(rows), flush=True)


if __name__ == "__main__":
    netns.end_on_sigterm()
    main()
