"""Hosts joined by slow links, on one machine: network namespaces on a bridge, shaped by tc.

    python benchmarks/netns.py --hosts 4 --rate 200mbit -- python train.py

runs the command once per host, with a torchrun-style environment. Needs root and iproute2. What was
set up is taken down at the end; names carry the process id, so that several runs do not meet. The
hosts use Linux's default congestion control, cubic, whatever the machine's setting.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

__all__ = [
    "INTERFACE",
    "Host",
    "end_on_sigterm",
    "interface_bytes",
    "run_on",
    "shaped_hosts",
    "why_unavailable",
]

INTERFACE = "eth0"
"""The shaped interface of every host."""

_NETWORK = "10.55.0"
_MAX_HOSTS = 250
_SHAPING = ("burst", "256k", "latency", "400ms")
_CONGESTION_CONTROL = "cubic"


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace.

    Attributes:
        index: 0 .. number of hosts - 1.
        name: Of the namespace.
    """

    index: int
    name: str

    @property
    def address(self) -> str:
        return f"{_NETWORK}.{self.index + 1}"

    @property
    def command_prefix(self) -> list[str]:
        """Put before a command that is to run on the host."""
        return ["ip", "netns", "exec", self.name]

    def environment(self, num_hosts: int, port: int) -> dict[str, str]:
        """As torchrun's for the only rank of this host; rank 0 is on host 0."""
        return {
            "RANK": str(self.index),
            "WORLD_SIZE": str(num_hosts),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": f"{_NETWORK}.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }


def interface_bytes() -> tuple[int, int]:
    """Called on a host: what its interface has sent and received, by the kernel's count.

    Link headers, acknowledgements and other connections included.
    """
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == INTERFACE:
            fields = counts.split()
            return int(fields[8]), int(fields[0])
    raise LookupError(f"no interface {INTERFACE!r} here")


def why_unavailable() -> str | None:
    """Why this process cannot make shaped hosts; None if it can."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, this is {sys.platform}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"no '{tool}' (package iproute2)"
    try:
        with shaped_hosts(1, "1gbit"):
            return None
    except subprocess.CalledProcessError as error:
        return f"'{' '.join(error.cmd)}' failed: {error.stderr.strip()}"


@contextlib.contextmanager
def shaped_hosts(num_hosts: int, rate: str | None) -> Iterator[list[Host]]:
    """Hosts that reach each other; taken down on exit, the processes there being the caller's.

    Args:
        num_hosts: 1 .. 250.
        rate: Of each host's link in either direction, as tc writes it: "200mbit"; None: unshaped.

    Raises:
        subprocess.CalledProcessError: The system refuses.
    """
    if not 1 <= num_hosts <= _MAX_HOSTS:
        raise ValueError(f"hosts: expected 1 .. {_MAX_HOSTS}, got {num_hosts}")
    tag = f"cx{os.getpid()}"
    bridge = f"{tag}b"
    with contextlib.ExitStack() as undo:
        undo.callback(_remove, "link", bridge)  # before it is there: a signal may come in between
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        hosts = [Host(index, f"{tag}h{index}") for index in range(num_hosts)]
        for host in hosts:
            outer = f"{tag}v{host.index}"
            undo.callback(_remove, "netns", host.name)
            _ip("netns", "add", host.name)
            undo.callback(_remove, "link", outer)
            _plug_in(host, bridge, outer, rate)
        yield hosts


def run_on(hosts: Sequence[Host], command: Sequence[str], port: int) -> int:
    """Runs a command on every host to the end; 0, or the first code that is not."""
    with contextlib.ExitStack() as ending:
        processes = []
        for host in hosts:
            own = {"OMP_NUM_THREADS": "1", **os.environ, **host.environment(len(hosts), port)}
            process = subprocess.Popen([*host.command_prefix, *command], env=own)
            ending.callback(_end, process)
            processes.append(process)
        codes = [process.wait() for process in processes]
    return next(filter(None, codes), 0)


def _plug_in(host: Host, bridge: str, outer: str, rate: str | None) -> None:
    """Joins a host to the bridge by a pair of interfaces, each of which shapes what it sends."""
    name = host.name
    _ip("link", "add", outer, "type", "veth", "peer", "name", INTERFACE, "netns", name)
    _ip("link", "set", outer, "master", bridge, "up")
    _ip("-n", name, "address", "add", f"{host.address}/24", "dev", INTERFACE)
    _ip("-n", name, "link", "set", INTERFACE, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    route = ("route", "replace", f"{_NETWORK}.0/24", "dev", INTERFACE, "src", host.address)
    _ip("-n", name, *route, "congctl", _CONGESTION_CONTROL)
    if rate is not None:
        for where in ((*host.command_prefix, "tc"), ("tc",)):
            device = outer if where == ("tc",) else INTERFACE
            shape = ("qdisc", "add", "dev", device, "root", "tbf", "rate", rate, *_SHAPING)
            _system(*where, *shape)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _remove(kind: str, name: str) -> None:
    """Deletes a link or namespace, if it is there."""
    subprocess.run(["ip", kind, "del", name], check=False, capture_output=True)


def _ip(*arguments: str) -> str:
    return _system("ip", *arguments)


def _system(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def end_on_sigterm() -> None:
    """Makes SIGTERM an orderly exit of this process, so that hosts are taken down."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", default=None, help="of each link, as tc writes it: 200mbit")
    parser.add_argument("--port", type=int, default=29500, help="of rank 0's store")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    end_on_sigterm()
    reason = why_unavailable()
    if reason is not None:
        parser.error(reason)
    with shaped_hosts(options.hosts, options.rate) as hosts:
        return run_on(hosts, options.command, options.port)


if __name__ == "__main__":
    sys.exit(main())
