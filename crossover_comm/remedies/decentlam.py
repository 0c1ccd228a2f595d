"""DecentLaM: momentum whose bias large batches do not amplify."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from crossover_comm.remedies.demands import learning_rate, require_sgd
from crossover_comm.remedies.remedy import Remedy, held_by

__all__ = ["DecentLaM"]


class DecentLaM(Remedy):
    """The exchange enters the momentum: it runs before the step, and SGD gets its outcome.

        g~ <- (x - W (x - lr g)) / lr,   then SGD from x with g~ for a gradient

    With momentum 0 that is W (x - lr g). Where lr is 0 the step is x <- W x with gradient 0. A
    parameter without a gradient takes part with g = 0. Weight decay is SGD's own, unmixed. Memory:
    a copy of the model for the time of the exchange. Bytes: none beside the exchange.
    Source: Yuan et al., DecentLaM, arXiv 2104.11981.
    """

    _before: dict[int, torch.Tensor] | None = None

    @torch.no_grad()
    def step_begins(self, optimizer: Optimizer, *, closure: bool, exchanges: bool) -> None:
        require_sgd(self.gossip, "decentlam", optimizer, closure=closure)
        self._require_all(optimizer)
        self._before = None
        if not exchanges:
            return
        self._before = {id(p): p.detach().clone() for p in self.gossip.parameters}
        for group in optimizer.param_groups:
            lr = learning_rate(group)
            for p in group["params"]:
                if id(p) in self._before and p.grad is not None:
                    p.add_(p.grad, alpha=lr if group["maximize"] else -lr)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        if self._before is None:
            return
        for group in optimizer.param_groups:
            lr = learning_rate(group)
            for p in group["params"]:
                before = self._before.get(id(p))
                if before is not None:
                    self._take(p, before, -lr if group["maximize"] else lr)
        self._before = None

    @staticmethod
    def _take(p: torch.Tensor, before: torch.Tensor, lr: float) -> None:
        """Makes the gradient of what the exchange has left in `p`, and puts `p` back."""
        if p.grad is None or p.grad.is_sparse:
            p.grad = torch.zeros_like(p)
        if lr == 0.0:
            p.grad.zero_()
            return
        torch.sub(before, p, out=p.grad)
        p.grad.div_(lr)
        p.copy_(before)

    def _require_all(self, optimizer: Optimizer) -> None:
        held = held_by(optimizer)
        for name, p in self.gossip.named_parameters.items():
            if id(p) not in held:
                self.gossip.fail(
                    "momentum='decentlam': expected one optimizer that holds all gossiped "
                    f"parameters, got one without '{name}'"
                )
