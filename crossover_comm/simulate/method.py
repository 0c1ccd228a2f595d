"""What one simulated training does: the method by which workers agree, and the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from crossover_comm.errors import InvalidArgument
from crossover_comm.optim import warm_up_polynomial
from crossover_comm.topology import Topology, topology_from
from crossover_comm.wires import WIRES, WireChoice, levels_within

__all__ = ["MOMENTUM_RULES", "ORDERS", "Method", "Order", "Recipe", "allreduce"]

Order: TypeAlias = Literal["after", "before"]
MomentumRule: TypeAlias = Literal["local", "exchanged", "quasi-global", "decentlam"]

ORDERS: Final = ("after", "before")
MOMENTUM_RULES: Final = ("local", "exchanged", "quasi-global", "decentlam")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How workers agree. x: the replicas, W: a draw, d: the optimizer's direction.

    Args:
        topology: who exchanges with whom; None: gradients are all-reduced, replicas stay equal.
        order: ``"after"``: x <- W (x - lr d), the library's overlap modes none, forward and fused;
            ``"before"``: x <- W x - lr d with d taken at x, the library's mode backward.
        wire: element type on the wire; ``"auto"``: as the library chooses it.
        wire_budget: of ``"auto"``: most bytes of a step, in fp32 rounds of the topology.
        rounds_per_step: draws mixed one after the other in a step.
        interval: steps from one mixing to the next; with ``complete`` this is local SGD.
        group: workers whose gradients are averaged exactly and which step as one.
        momentum_rule: ``"local"``; ``"exchanged"``: mixed as x is, at twice the bytes;
            ``"quasi-global"``: follows the mixed model (Lin et al., arXiv 2102.04761);
            ``"decentlam"``: mixing is part of the gradient (Yuan et al., arXiv 2104.11981).
        exact_every: steps from one exact average to the next (Chen et al., arXiv 2105.09080);
            0: never.
        slow_momentum: of the outer step at each exact average (Wang et al., arXiv 1910.00643).
        warm_up_steps: that end with an exact average, at the start.

    Raises:
        InvalidArgument: a value is none of these.
    """

    topology: str | Topology | None = "crossover"
    order: Order = "after"
    wire: WireChoice = "fp32"
    wire_budget: float = 0.52
    rounds_per_step: int = 1
    interval: int = 1
    group: int = 1
    momentum_rule: MomentumRule = "local"
    exact_every: int = 0
    slow_momentum: float = 0.0
    warm_up_steps: int = 0

    def __post_init__(self) -> None:
        if self.topology is not None:
            topology_from(self.topology)
        for name, value, known in (
            ("order", self.order, ORDERS),
            ("wire", self.wire, (*WIRES, "auto")),
            ("momentum_rule", self.momentum_rule, MOMENTUM_RULES),
        ):
            if value not in known:
                raise InvalidArgument(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        for name in ("rounds_per_step", "interval", "group"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.wire == "auto":
            levels_within(self.wire_budget)
            if self.rounds_per_step != 1:
                raise InvalidArgument(
                    f"wire='auto': expected rounds_per_step=1, got {self.rounds_per_step}"
                )
        if self.slow_momentum and not self.exact_every:
            raise InvalidArgument(
                f"slow_momentum: {self.slow_momentum} needs exact_every, the steps between two of "
                "its outer steps"
            )

    def describe(self) -> dict[str, object]:
        """Every choice, as JSON can hold it."""
        fields = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name != "topology"
        }
        if self.wire != "auto":
            del fields["wire_budget"]
        if self.topology is None:
            return {"topology": None, **fields}
        return {**topology_from(self.topology).describe(), **fields}


def allreduce() -> Method:
    """All-reduce of the gradients."""
    return Method(topology=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The training that all methods share.

    Args:
        steps: optimizer steps.
        global_batch: examples per step, over all workers.
        learning_rate: peak; rises linearly over `warm_up` of the steps, then falls as
            (1 - floor) (1 - u)^power + floor.
        momentum: heavy ball's.
        weight_decay: added to the gradient.
        lars: trust coefficient; 0: plain SGD. See `crossover_comm.optim.LARS`.
    """

    steps: int
    global_batch: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.1
    power: float = 1.0
    floor: float = 0.01
    lars: float = 0.0

    def factor(self, step: int) -> float:
        """Of the learning rate in a step, 0-based."""
        return warm_up_polynomial(
            step,
            total=self.steps,
            warm_up=round(self.warm_up * self.steps),
            power=self.power,
            floor=self.floor,
        )
