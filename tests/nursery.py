"""Starts worker processes by forking one that has imported torch: that takes 4 s each time.

A worker is a process as any other: it runs its function at the top level of the interpreter, in a
session and with an environment of its own, ends as a script ends, and is a child of the process
that asked for it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["ForkedWorker", "call"]

_PR_SET_CHILD_SUBREAPER = 36
_LENGTH_BYTES = 4


class ForkedWorker:
    """A worker, used as a `subprocess.Popen` with text pipes.

    Args:
        path: A module's file.
        name: The function in it to be called.
        args: Its arguments.
        env: The whole environment.
    """

    def __init__(self, path: str, name: str, args: Sequence[str], env: Mapping[str, str]) -> None:
        out, child_out = os.pipe()
        err, child_err = os.pipe()
        try:
            request = {"path": path, "name": name, "args": list(args), "env": dict(env)}
            self.pid = _nursery().start(request, [child_out, child_err])
        finally:
            os.close(child_out)
            os.close(child_err)
        self.stdout: IO[str] = open(out)  # noqa: SIM115, closed with this object
        self.stderr: IO[str] = open(err)  # noqa: SIM115
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """As `subprocess.Popen.wait`."""
        if self.returncode is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pidfd)
        return self.returncode


class _Nursery:
    """The process that forks, seen from the one that asks."""

    def __init__(self) -> None:
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
        self._socket, theirs = socket.socketpair()
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno())]
        self._process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(self, request: Mapping[str, object], fds: Sequence[int]) -> int:
        body = json.dumps(request).encode()
        length = len(body).to_bytes(_LENGTH_BYTES, "little")
        socket.send_fds(self._socket, [length], list(fds))
        self._socket.sendall(body)
        return int.from_bytes(_receive(self._socket, _LENGTH_BYTES), "little")


@functools.cache
def _nursery() -> _Nursery:
    return _Nursery()


def call(path: str, name: str, args: Sequence[str]) -> None:
    """Calls the function `name` of the module in the file `path`."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    getattr(module, name)(*args)


def _receive(source: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        part = source.recv(num_bytes - len(data))
        if not part:
            raise EOFError("the nursery has ended")
        data += part
    return data


def _await_request(asker: socket.socket) -> dict[str, Any]:
    """Returns in a new worker, with the request for it; ends this process when nobody asks more."""
    while True:
        length, fds, _, _ = socket.recv_fds(asker, _LENGTH_BYTES, 2)
        if not length:
            sys.exit(0)
        body = _receive(asker, int.from_bytes(length, "little"))
        reading, writing = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork() != 0:  # a worker whose parent ends is a child of the asker
                os._exit(0)
            _settle(fds, writing)
            for fd in (reading, writing, *fds, asker.detach()):
                os.close(fd)
            return dict(json.loads(body))
        os.waitpid(middle, 0)
        asker.sendall(os.read(reading, _LENGTH_BYTES))
        for fd in (reading, writing, *fds):
            os.close(fd)


def _settle(fds: Sequence[int], told_by: int) -> None:
    """Makes this fork a process of its own, then tells its id."""
    os.setsid()
    os.write(told_by, os.getpid().to_bytes(_LENGTH_BYTES, "little"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, standard in zip((nothing, *fds), (0, 1, 2), strict=True):
        os.dup2(fd, standard)
    os.close(nothing)


def _main() -> None:
    import torch._dynamo  # noqa: F401, which the first optimizer imports

    request = _await_request(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[1:1] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = [request["path"]]
    call(request["path"], request["name"], request["args"])


if __name__ == "__main__":
    _main()
