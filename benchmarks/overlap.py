"""How much of the exchange each mode hides: (T_none - T_mode) / (T_none - T_compute), in one run.

    python benchmarks/overlap.py

4 hosts on 1 Gbit/s links, one rank per network namespace, the 25 MB MLP of step_time.py with
batches of 512 samples, so that compute is about as long as the exchange. Writes
benchmarks/results/overlap.json.
"""

from __future__ import annotations

import argparse

import netns
from hosts_run import Setting, steps_on, table
from records import RESULTS, Record, merge
from step_methods import available

MODES = ("none", "forward", "fused", "backward")
KEY = ("hosts", "rate", "batch_size", "method")


def with_hidden_share(rows: list[Record]) -> list[Record]:
    """Adds to each mode's row the share of the exchange that it hides."""
    step_s = {row["method"]: row["step_s"] for row in rows}
    none_s, compute_s = step_s["crossover/none/fp32"], step_s["compute"]
    return [
        {**row, "hidden": (none_s - row["step_s"]) / (none_s - compute_s)}
        if row["method"] != "compute"
        else row
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", default="1gbit", help="as tc writes it, or none")
    parser.add_argument("--batch-size", type=int, default=512, help="samples per rank")
    parser.add_argument("--steps", type=int, default=6, help="of each mode in each block")
    parser.add_argument("--blocks", type=int, default=3, help="turns that each mode takes")
    parser.add_argument("--port", type=int, default=29500, help="of rank 0's store")
    options = parser.parse_args()
    reason = netns.why_unavailable()
    if reason is not None:
        parser.error(reason)
    methods = ("compute", *(f"crossover/{mode}/fp32" for mode in MODES))
    setting = Setting(
        methods=tuple(available(methods)),
        steps=options.steps,
        blocks=options.blocks,
        batch_size=options.batch_size,
    )
    with netns.shaped_hosts(
        options.hosts, None if options.rate == "none" else options.rate
    ) as hosts:
        rows = with_hidden_share(steps_on(hosts, setting, options.port))
    place = {"hosts": options.hosts, "rate": options.rate, "batch_size": options.batch_size}
    merge(RESULTS / "overlap.json", [{**place, **row} for row in rows], KEY)
    print(table(rows))
    for row in rows:
        if "hidden" in row:
            print(f"{row['method']:28} hides {100 * row['hidden']:6.1f} %")


if __name__ == "__main__":
    netns.end_on_sigterm()
    main()
