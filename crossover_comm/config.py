"""What a user chooses about gossip: one frozen object, or a preset's name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from crossover_comm import _C
from crossover_comm.errors import InvalidArgument
from crossover_comm.groups import GroupRule, Hierarchy, frozen_rule
from crossover_comm.topology import Topology, topology_from
from crossover_comm.wires import WIRES, Wire, WireChoice, WireLevel, levels_within

__all__ = [
    "PRESETS",
    "WIRES",
    "BufferRule",
    "GossipConfig",
    "Overlap",
    "SegmentRule",
    "Wire",
    "WireChoice",
    "resolve",
]

Overlap: TypeAlias = Literal["backward", "forward", "fused", "none"]
SegmentRule: TypeAlias = Literal["blocks"] | int
BufferRule: TypeAlias = Literal["local", "average", "broadcast"]
Momentum: TypeAlias = Literal["local", "quasi-global", "decentlam", "exchanged"]

OVERLAPS: Final = ("backward", "forward", "fused", "none")
MOMENTA: Final = ("local", "quasi-global", "decentlam", "exchanged")
BUFFERS: Final = ("local", "average", "broadcast")
HIERARCHIES: Final = ("sharded", "root")
MAX_SEED: Final = 2**64 - 1


def _require_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidArgument(f"{name}: expected one of {_listing(known)}, got {value!r}")


def _is_integer(value: object, *, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _listing(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipConfig:
    """How the parameters of one model are gossiped. The same on every rank.

    Args:
        topology: Who exchanges with whom: a :class:`crossover_comm.topology.Topology` or the name
            of one (``"crossover"``, ``"ring"``, ...).
        overlap: When a round is posted and awaited. ``"backward"``: posted when a forward begins,
            mixed before the optimizer steps, so that the step is applied at ``W x`` with gradients
            taken at ``x`` (the order of D-PSGD). ``"forward"``: posted after the step, each segment
            awaited where the next forward needs it: ``W (x after its step)``, the order of
            Crossover-SGD. ``"none"``: as ``"forward"``, but mixed at once. ``"fused"``: the values
            of ``"none"``, but a segment is stepped and posted inside the backward, once its
            gradients are there, so that its exchange hides behind the rest of it too; the optimizer
            steps each parameter by itself, and nothing comes between backward and step; see
            docs/algorithms.md. Posted parameters may
            not be written: a write is an error, but one through ``p.data`` cannot be seen, so
            call :func:`crossover_comm.synchronize` before it. With several optimizers for one model
            the round runs before the first one steps in ``"backward"``, and once all those whose
            parameters have gradients have stepped in the others. ``None``: the wrapper's
            default, ``"backward"`` for ``DistributedDataParallel`` and ``"forward"`` for
            ``DistributedOptimizer``.
        wire: Widest element type on the wire: ``"fp32"`` sends every tensor as it is, ``"bf16"``
            and ``"fp16"`` round wider ones. A value that fp16 cannot hold (beyond 65504) is an
            error, as NaN and infinity are. ``"int8"`` sends a byte per element and a scale for
            each 128; averages of gradients and exact averages travel in bf16 then. ``"auto"``:
            each step runs fp32, bf16 or int8 rounds, as many as `wire_budget` pays for; the ranks
            agree on which by the distance that they measure between their parameters, see
            docs/algorithms.md. Models in host memory; exact averages of groups travel in fp32.
        wire_budget: Most bytes that a step sends under ``wire="auto"``, in fp32 rounds of the
            topology: 0.52 pays for one bf16 round or two in int8, 1.04 for one in fp32, two in
            bf16 or four in int8.
        segments: ``"blocks"`` cuts along the model's blocks, a number packs consecutive parameters
            into segments of at most so many bytes.
        seed: Seed of the topology's random draws, 0 .. 2**64 - 1.
        momentum: What becomes of the optimizer's momentum. ``"local"``: nothing.
            ``"exchanged"``: mixed as parameters are, twice the bytes; any optimizer with one. For
            ``torch.optim.SGD`` with momentum: ``"quasi-global"``: it is made from what exchanges
            have made of the steps. ``"decentlam"``: the exchange comes before the step and enters
            the gradient, which removes the bias that large batches amplify; ``overlap="none"``.
        rounds_per_step: Rounds of the topology that one step runs, one after the other. Each sends
            what the topology's rounds send; more than one needs a float32 copy of the model.
        exact_every: Every so many rounds an exact average takes the place of the topology's round
            (Gossip-PGA, arXiv 2105.09080): in rounds H - 1, 2 H - 1, ... of 0, 1, 2, ... It sends
            2 (n - 1)/n models. ``None``: never.
        exact_first: As many rounds at the start are exact averages.
        slow_momentum: Factor beta in [0, 1) of a momentum over the periods that `exact_every` makes
            (SlowMo): each exact average becomes a step of its own. Any optimizer.
        slow_lr: Factor alpha > 0 of these steps. Without `slow_momentum`, 1.0 is the average.
        interval: A round happens only every so many steps, at the last of them; steps are counted
            as rounds are, so one under ``no_sync`` does not count. Local SGD is ``interval`` > 1
            with an exact average.
        groups: Ranks that average gradients exactly and stay equal; ``topology`` is then among
            groups. ``None``: no groups. ``"host"``: the ranks of a machine. ``"world"``: all ranks,
            so that nothing is gossiped. A number of consecutive ranks per group, or the groups as
            lists of ranks. Members start from their group's first; each group counts alike,
            whatever its size. Gradients are averaged as torch's DDP does, ``no_sync`` included:
            posted during backward, averaged when it ends (``overlap="none"``: posted then).
        buffers: What becomes of buffers (batch norm's statistics) after the start. ``"local"``:
            each replica keeps its own. ``"average"``: floating-point ones are mixed with the
            parameters' rounds, by draws of the same schedule, and with ``groups="world"`` averaged
            over all ranks; others stay local. ``"broadcast"``: all ranks have rank 0's when the
            first forward after a round begins, which waits for them. ``None``: the wrapper's
            default: ``"local"``, but ``"broadcast"``, torch's, for ``DistributedDataParallel`` with
            ``groups="world"`` and `broadcast_buffers`. All but ``"local"`` leave the graph of a
            compiled wrapper, so ``fullgraph=True`` refuses it.
        hierarchy: ``"sharded"``: each member carries its share of the group's traffic; ``"root"``:
            the first member carries all of it.

    Raises:
        InvalidArgument: If a value is none of these.
    """

    topology: str | Topology = "crossover"
    overlap: Overlap | None = None
    wire: WireChoice = "fp32"
    wire_budget: float = 0.52
    segments: SegmentRule = "blocks"
    seed: int = 0
    momentum: Momentum = "local"
    rounds_per_step: int = 1
    exact_every: int | None = None
    exact_first: int = 0
    slow_momentum: float = 0.0
    slow_lr: float = 1.0
    interval: int = 1
    groups: GroupRule | None = None
    hierarchy: Hierarchy = "sharded"
    buffers: BufferRule | None = None

    def __post_init__(self) -> None:
        topology_from(self.topology)
        if self.overlap is not None:
            _require_one_of("overlap", self.overlap, OVERLAPS)
        _require_one_of("wire", self.wire, (*WIRES, "auto"))
        if self.segments != "blocks" and not _is_integer(self.segments, at_least=1):
            raise InvalidArgument(
                f"segments: expected 'blocks' or a size in bytes >= 1, got {self.segments!r}"
            )
        if not _is_integer(self.seed, at_least=0) or self.seed > MAX_SEED:
            raise InvalidArgument(f"seed: expected an integer in 0 .. 2**64 - 1, got {self.seed!r}")
        for name, least in (("rounds_per_step", 1), ("exact_every", 1), ("exact_first", 0)):
            value = getattr(self, name)
            optional = name == "exact_every" and value is None
            if not optional and not _is_integer(value, at_least=least):
                raise InvalidArgument(f"{name}: expected an integer >= {least}, got {value!r}")
        _require_one_of("momentum", self.momentum, MOMENTA)
        if self.momentum == "decentlam" and self.overlap not in (None, "none"):
            raise InvalidArgument(
                "momentum='decentlam': expected overlap='none', for the step needs the exchange's "
                f"outcome, got {self.overlap!r}"
            )
        self._require_slow_momentum()
        self._require_groups_and_interval()
        self._require_levels()

    def _require_levels(self) -> None:
        if not 0.0 < self.wire_budget < math.inf:
            raise InvalidArgument(f"wire_budget: expected a number > 0, got {self.wire_budget!r}")
        if self.wire != "auto":
            return
        levels_within(self.wire_budget)
        if self.rounds_per_step != 1:
            raise InvalidArgument(
                "wire='auto': expected rounds_per_step=1, for it chooses them within wire_budget, "
                f"got {self.rounds_per_step!r}"
            )
        if self.momentum == "exchanged":
            raise InvalidArgument(
                "wire='auto': expected another momentum than 'exchanged', whose buffers are at "
                "distances of their own"
            )

    def _require_groups_and_interval(self) -> None:
        if not _is_integer(self.interval, at_least=1):
            raise InvalidArgument(f"interval: expected an integer >= 1, got {self.interval!r}")
        if self.groups is not None:
            object.__setattr__(self, "groups", frozen_rule(self.groups))
        _require_one_of("hierarchy", self.hierarchy, HIERARCHIES)
        if self.buffers is not None:
            _require_one_of("buffers", self.buffers, BUFFERS)
        if self.buffers == "average" and self.groups not in (None, "world"):
            raise InvalidArgument(
                f"buffers='average': expected groups=None or 'world', got {self.groups!r}: members "
                "of a group have unlike buffers; use 'broadcast' or 'local'"
            )
        self._require_fusable()
        if self.momentum != "local" and (self.interval > 1 or self.groups == "world"):
            raise InvalidArgument(
                f"momentum={self.momentum!r}: expected a gossip round for every step, got "
                f"interval={self.interval!r}, groups={self.groups!r}"
            )

    def _require_fusable(self) -> None:
        if self.overlap != "fused":
            return
        for name, only in (("momentum", "local"), ("interval", 1), ("groups", None)):
            if getattr(self, name) != only:
                raise InvalidArgument(
                    f"overlap='fused': expected {name}={only!r}, got {getattr(self, name)!r}; use "
                    "another overlap"
                )
        if self.is_slow:
            raise InvalidArgument(
                f"overlap='fused': expected no slow_momentum, got {self.slow_momentum!r} with "
                f"slow_lr={self.slow_lr!r}; use another overlap"
            )

    def _require_slow_momentum(self) -> None:
        if not 0.0 <= self.slow_momentum < 1.0:
            raise InvalidArgument(
                f"slow_momentum: expected a number in [0, 1), got {self.slow_momentum!r}"
            )
        if not 0.0 < self.slow_lr < math.inf:
            raise InvalidArgument(f"slow_lr: expected a number > 0, got {self.slow_lr!r}")
        if self.is_slow and self.exact_every is None:
            raise InvalidArgument(
                "slow_momentum: expected exact_every=<rounds>, whose averages it follows, got None"
            )
        if self.is_slow and self.momentum == "decentlam":
            raise InvalidArgument(
                "slow_momentum: expected another momentum than 'decentlam', which makes a gradient "
                "of an exchange's outcome"
            )

    @property
    def is_slow(self) -> bool:
        """Whether exact averages become steps of their own."""
        return self.slow_momentum > 0.0 or self.slow_lr != 1.0

    @property
    def levels(self) -> tuple[WireLevel, ...]:
        """What a step may do under ``wire="auto"``, finest first; empty with other wires."""
        return levels_within(self.wire_budget) if self.wire == "auto" else ()

    def schedule(
        self, size: int, num_segments: int, rounds_per_step: int | None = None
    ) -> _C.Schedule:
        """What the engine runs in a job of `size` ranks: the topology's rounds, several to a step
        and replaced by exact averages where this says so.

        Args:
            size: Number of ranks.
            num_segments: Of the model.
            rounds_per_step: Of a level of ``wire="auto"``; None: as configured.

        Raises:
            InvalidArgument: The topology does not exist for these arguments.
        """
        schedule = topology_from(self.topology).schedule(size, self.seed, num_segments)
        rounds = rounds_per_step or self.rounds_per_step
        if rounds > 1:
            schedule = _C.repeated_schedule(schedule, rounds)
        if self.exact_every is not None or self.exact_first > 0:
            schedule = _C.exact_average_schedule(schedule, self.exact_every or 0, self.exact_first)
        return schedule

    def overlap_or(self, default: Overlap) -> Overlap:
        """The mode, in a wrapper whose own is `default`."""
        if self.overlap is None and self.momentum == "decentlam":
            return "none"
        return self.overlap or default

    def describe(self) -> dict[str, object]:
        """The configuration, ready for JSON: what must be equal on every rank."""
        return {
            **topology_from(self.topology).describe(),
            "overlap": self.overlap,
            "wire": self.wire,
            "wire_budget": self.wire_budget,
            "segments": self.segments,
            "seed": self.seed,
            "momentum": self.momentum,
            "rounds_per_step": self.rounds_per_step,
            "exact_every": self.exact_every,
            "exact_first": self.exact_first,
            "slow_momentum": self.slow_momentum,
            "slow_lr": self.slow_lr,
            "interval": self.interval,
            "groups": self.groups,
            "hierarchy": self.hierarchy,
            "buffers": self.buffers,
        }


PRESETS: Final[Mapping[str, GossipConfig]] = MappingProxyType(
    {
        "crossover": GossipConfig(),
        "dpsgd": GossipConfig(topology="ring", overlap="backward"),
        "sgp": GossipConfig(topology="exponential", overlap="forward"),
        "allreduce": GossipConfig(groups="world"),
        "localsgd": GossipConfig(topology="all-reduce", overlap="none", interval=8),
    }
)
"""Named configurations. ``"crossover"``: a fresh derangement per round and segment.
``"dpsgd"``: both neighbours of a ring, step and mixing in D-PSGD's order (arXiv 1705.09056).
``"sgp"``: Stochastic Gradient Push without overlap over the directed one-peer exponential graph
(arXiv 1811.10792, algorithm 1): parameters after the step are exchanged, as in mode ``"none"``, and
awaited where the next forward needs them. Every draw is doubly stochastic, so w stays 1; for other
digraphs: ``topology=from_networkx(graph, push_sum=True)``.
``"allreduce"``: gradients averaged over all ranks, as torch's DDP. ``"localsgd"``: parameters
averaged over all ranks after every 8th step (arXiv 1805.09767)."""


def resolve(gossip: str | GossipConfig | None) -> GossipConfig:
    """The configuration that a wrapper's ``gossip=`` means; ``None`` is ``"crossover"``.

    Raises:
        InvalidArgument: If it is neither a preset's name nor a :class:`GossipConfig`.
    """
    if gossip is None:
        return PRESETS["crossover"]
    if isinstance(gossip, GossipConfig):
        return gossip
    if isinstance(gossip, str) and gossip in PRESETS:
        return PRESETS[gossip]
    raise InvalidArgument(
        f"gossip: expected one of the presets {_listing(tuple(PRESETS))} or a GossipConfig, "
        f"got {gossip!r}"
    )
