"""Step times over slow links: this package, torch's DDP and Decent-DP, in one run per link.

    python benchmarks/step_time.py --hosts 4 --rates 200mbit           # one cell of the table
    python benchmarks/step_time.py --hosts 2 4 8 --rates 100mbit 200mbit 1gbit none
    python benchmarks/step_time.py --methods compute ddp crossover/backward/fp32

One rank per network namespace (netns.py; needs root and iproute2), so that everything goes over TCP
and the interface counts the bytes; a 25 MB MLP, batches of 64 samples per rank. Each run also times
gossip_perf on the same links and the compute alone. Rows are merged into
benchmarks/results/step_time.json: a long table can be measured cell by cell.

Decent-DP is compared if `decent_dp` can be imported (PYTHONPATH will do).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import netns
from hosts_run import MLP_WIDTHS, Setting, gossip_perf_program, gossip_perf_s, steps_on, table
from records import RESULTS, Record, merge
from step_methods import available

METHODS = (
    "compute",
    "ddp",
    "decent/ring",
    "decent/one-peer-exp",
    "crossover/none/fp32",
    "crossover/forward/fp32",
    "crossover/fused/fp32",
    "crossover/backward/fp32",
    "crossover/backward/fp32/one-peer",
    "crossover/backward/bf16",
    "crossover/backward/int8",
)
WIRES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8-blocks"}
"""Those that gossip_perf is timed with, by its names."""
KEY = ("hosts", "rate", "method")


def measure_cell(
    num_hosts: int, rate: str, setting: Setting, program: Path, port: int
) -> list[Record]:
    """Rows of every method and of gossip_perf, for one number of hosts and one rate."""
    with netns.shaped_hosts(num_hosts, None if rate == "none" else rate) as hosts:
        rows = steps_on(hosts, setting, port)
        model_bytes = rows[0]["model_bytes"]
        for offset, (wire, name) in enumerate(WIRES.items(), start=1):
            seconds = gossip_perf_s(program, hosts, model_bytes, name, port + offset)
            rows.append({"method": f"gossip_perf/{wire}", "step_s": seconds})
    return [{"hosts": num_hosts, "rate": rate, **row} for row in rows]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[4])
    parser.add_argument("--rates", nargs="+", default=["200mbit"], help="as tc writes it, or none")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="see step_methods.py")
    parser.add_argument("--steps", type=int, default=4, help="of each method in each block")
    parser.add_argument("--blocks", type=int, default=2, help="turns that each method takes")
    parser.add_argument("--port", type=int, default=29500, help="of rank 0's store")
    parser.add_argument("--gossip-perf", type=Path, default=gossip_perf_program())
    parser.add_argument("--output", type=Path, default=RESULTS / "step_time.json")
    options = parser.parse_args()
    if options.gossip_perf is None:
        parser.error("expected gossip_perf under build/*/ (`make test-cpp` builds it)")
    reason = netns.why_unavailable()
    if reason is not None:
        parser.error(reason)
    return options


def main() -> None:
    options = _options()
    methods = tuple(available(options.methods))
    setting = Setting(methods, options.steps, options.blocks, MLP_WIDTHS)
    for num_hosts in options.hosts:
        for rate in options.rates:
            print(f"{num_hosts} hosts, {rate}")
            rows = measure_cell(num_hosts, rate, setting, options.gossip_perf, options.port)
            merge(options.output, rows, KEY)
            print(table(rows[: -len(WIRES)]))
            for row in rows[-len(WIRES) :]:
                print(f"{row['method']:28} {1e3 * row['step_s']:12.1f}", flush=True)


if __name__ == "__main__":
    netns.end_on_sigterm()
    main()
