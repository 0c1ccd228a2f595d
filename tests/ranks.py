"""Several ranks in one process: each on a thread of its own, joined by an in-process network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch._C._distributed_c10d import HashStore, Store

from crossover_comm import _C
from crossover_comm.agreement import StoreGroup
from crossover_comm.config import GossipConfig
from crossover_comm.context import Context, Settings
from crossover_comm.launch import Launch
from crossover_comm.seal import Seal
from crossover_comm.segments import cut, trainable_parameters
from crossover_comm.simulate.wires import quantized
from crossover_comm.topology import mixing_matrix

ResultT = TypeVar("ResultT")

TIMEOUT_S = 60.0


@contextmanager
def joined_ranks(
    size: int, *, transport: str = "auto", network: _C.LocalNetwork | None = None
) -> Iterator[list[Context]]:
    """The contexts of `size` ranks that can reach each other, by `network` if it is given."""
    network = network or _C.LocalNetwork(size)
    store = HashStore()
    contexts = [_context(network, store, rank, size, transport) for rank in range(size)]
    try:
        yield contexts
    finally:
        for context in contexts:
            context.engine.shutdown(1.0)


def run_ranks(
    size: int, work: Callable[[Context], ResultT], *, transport: str = "auto"
) -> list[ResultT]:
    """Runs `work` for every rank at once; the answers by rank, or the first exception."""
    with joined_ranks(size, transport=transport) as contexts:
        return run_joined(contexts, work)


def run_joined(contexts: Sequence[Context], work: Callable[[Context], ResultT]) -> list[ResultT]:
    """As :func:`run_ranks`, on ranks that have met already. A rank that raises fails the others."""
    with ThreadPoolExecutor(len(contexts)) as pool:
        futures = [pool.submit(work, context) for context in contexts]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            error = future.exception()
            if error is not None:
                contexts[futures.index(future)].engine.fail(f"the test raised {error!r}")
                raise error
        return [future.result() for future in futures]


def lone_rank() -> Context:
    """The context of a job of one rank."""
    return _context(_C.LocalNetwork(1), None, 0, 1)


def _context(
    network: _C.LocalNetwork, store: Store | None, rank: int, size: int, transport: str = "auto"
) -> Context:
    settings = Settings(
        rank=rank,
        size=size,
        store=store,
        timeout_s=TIMEOUT_S,
        stall_timeout_s=TIMEOUT_S,
        transport=transport,
        interface=None,
        check_finite=True,
        event_capacity=1000,
    )
    engine = _C.Engine(
        rank=rank,
        size=size,
        pipes=network.take_pipes(rank),
        timeout_s=TIMEOUT_S,
        stall_timeout_s=TIMEOUT_S,
        stall_warning_s=TIMEOUT_S,
        raise_on_non_finite=True,
        event_capacity=1000,
        incarnation=1,
        warn=print,
    )
    group = StoreGroup(store, rank, size)
    seal = Seal(b"the key of the test", b"job")
    return Context(Launch(rank=rank, size=size), settings, group, engine, None, seal)


class DenseMixing:
    """The reference: x <- x + (W - I) Q(x) over plain replicas, segment by segment, in float64.

    Q is the wire's cast; where it changes nothing this is x <- W x.
    """

    def __init__(self, replicas: Sequence[nn.Module], config: GossipConfig) -> None:
        self._segments = [
            cut(replica, trainable_parameters(replica), config.segments) for replica in replicas
        ]
        self._schedule = config.schedule(len(replicas), len(self._segments[0]))
        assert config.wire != "auto"
        self._wire = config.wire
        self.rounds = 0

    @torch.no_grad()
    def mix(self) -> None:
        """One round."""
        for index, per_rank in enumerate(zip(*self._segments, strict=True)):
            matrix = torch.from_numpy(mixing_matrix(self._schedule, self.rounds, index))
            tensors = [list(segment.parameters) for segment in per_rank]
            exact = torch.stack([torch.cat([t.flatten() for t in own]) for own in tensors]).double()
            sent = quantized(exact, self._wire)
            for own, mixed in zip(tensors, exact + matrix @ sent - sent, strict=True):
                parts = mixed.split([t.numel() for t in own])
                for tensor, part in zip(own, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))
        self.rounds += 1


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters and buffers by name, without a wrapper's prefix."""
    return {
        name.removeprefix("module."): value.detach().clone()
        for name, value in model.state_dict().items()
    }


def assert_states_close(
    given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], *, atol: float = 2e-6
) -> None:
    """Both have the same names and, to fp32 rounding, the same values."""
    assert given.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(given[name], value, rtol=1e-5, atol=atol, msg=name)
