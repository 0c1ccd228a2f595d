"""The wrapper's surface: arguments, names, life and death."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import re
import threading
import weakref
from typing import Any

import pytest
import torch
from models import mlp
from ranks import assert_states_close, joined_ranks, lone_rank, run_joined, run_ranks, state_of
from torch import nn
from torch.optim import optimizer as torch_optimizer

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.ddp_arguments import REFUSED
from crossover_comm.errors import CrossoverError, InvalidArgument
from crossover_comm.hooks import synchronize


def wrap(context: Context, model: nn.Module | None = None, **gossip: Any) -> Any:
    """The wrapper of a small model; one model per rank."""
    model = mlp(4, 8, 3) if model is None else model
    config = GossipConfig(**gossip)
    return DistributedDataParallel(model, gossip=config, context=context, init_sync=False)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_ids": [0, 1]}, "device_ids: expected None or one device, got [0, 1]"),
        ({"device_ids": [0]}, "whose parameter '0.weight' is on cpu, got cuda:0"),
        ({"output_device": "cuda:1"}, "output_device: expected the device of the module"),
        ({"bucket_cap_mb": 0}, "bucket_cap_mb: expected a number of MiB > 0, got 0"),
        ({"bucket_cap_mb": 1, "gossip": GossipConfig(segments=9)}, "expected None beside gossip="),
        ({"bucket_cap_mb_list": [1, 2]}, "use bucket_cap_mb=<MiB>"),
        ({"skip_all_reduce_unused_params": True}, "leave parameters out by _set_params"),
        ({"mixed_precision": "bf16"}, "torch.autocast"),
        ({"param_to_hook_all_reduce": 1}, "expected both or neither"),
        ({"gossip": "unknown"}, "gossip: expected one of the presets"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        DistributedDataParallel(mlp(4, 3), context=lone_rank(), init_sync=False, **arguments)


def test_an_argument_that_torch_does_not_have_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'bucket_cap'"):
        DistributedDataParallel(mlp(4, 3), context=lone_rank(), bucket_cap=1)  # type: ignore[call-arg]


def test_every_argument_of_torch_is_known_with_its_default() -> None:
    theirs = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    ours = inspect.signature(DistributedDataParallel).parameters
    for name, parameter in theirs.items():
        if name != "broadcast_buffers":  # None stands for True; before torch 2.13 it was True
            assert ours[name].default == parameter.default, name
        assert name not in REFUSED or REFUSED[name][0] == parameter.default


@pytest.mark.parametrize(
    "hint",
    [
        {"find_unused_parameters": True},
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"batched_grad_copy": True},
        {"dim": 1},
    ],
    ids=str,
)
def test_a_hint_is_taken_and_shown(hint: dict[str, Any]) -> None:
    ddp = DistributedDataParallel(mlp(4, 3), context=lone_rank(), init_sync=False, **hint)
    for name, value in hint.items():
        assert getattr(ddp, name) == value


def test_a_module_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="a parameter that requires a gradient"):
        wrap(lone_rank(), nn.ReLU())


# --- torch's surface


def test_names_of_the_state_have_the_prefix_of_torchs_wrapper() -> None:
    model = mlp(4, 3)
    ddp = wrap(lone_rank(), model)
    assert ddp.module is model
    assert list(ddp.state_dict()) == ["module.0.weight", "module.0.bias"]


def test_attributes_of_the_module_are_not_forwarded() -> None:
    model = mlp(4, 3)
    model.colour = "red"  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        _ = wrap(lone_rank(), model).colour


def test_train_and_eval_reach_the_module() -> None:
    ddp = wrap(lone_rank())
    assert not ddp.eval().module.training
    assert ddp.train().module.training


def test_one_rank_registers_nothing() -> None:
    before = set(torch_optimizer._global_optimizer_pre_hooks)  # of wrappers not collected yet
    ddp = wrap(lone_rank())
    assert set(torch_optimizer._global_optimizer_pre_hooks) <= before
    assert all(not p._post_accumulate_grad_hooks for p in ddp.parameters())
    with ddp.no_sync():
        ddp(torch.ones(1, 4)).sum().backward()


def test_no_sync_ends_with_its_block_also_by_an_exception() -> None:
    def work(context: Context) -> None:
        ddp = wrap(context, overlap="none")
        with pytest.raises(KeyError), ddp.no_sync(), ddp.no_sync():
            raise KeyError
        step(ddp, torch.optim.SGD(ddp.parameters(), lr=0.1))
        assert context.engine.round(0, 0) == 1

    run_ranks(2, work)


@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_a_copy_of_the_module_is_not_gossiped(overlap: Overlap) -> None:
    def work(context: Context) -> None:
        ddp = wrap(context, overlap=overlap)
        step(ddp, torch.optim.SGD(ddp.parameters(), lr=0.1))
        is_open = context.engine.is_open(0)
        for other in (copy.deepcopy(ddp.module), pickle.loads(pickle.dumps(ddp.module))):
            before = state_of(other)
            step(other, torch.optim.SGD(other.parameters(), lr=0.0))
            assert all(torch.equal(v, before[k]) for k, v in state_of(other).items())
        assert context.engine.is_open(0) == is_open
        synchronize(ddp)

    run_ranks(2, work)


# --- what is refused at start or later


def test_another_model_on_one_rank_is_an_error_on_every_rank_that_names_it() -> None:
    def work(context: Context) -> str:
        with pytest.raises(InvalidArgument) as caught:
            wrap(context, mlp(4, 8 + context.launch.rank, 3))
        return str(caught.value)

    for message in run_ranks(2, work):
        assert "segments[0] '0'" in message
        assert "rank 0" in message
        assert "rank 1" in message


def test_another_configuration_on_one_rank_is_an_error_on_every_rank() -> None:
    def work(context: Context) -> str:
        with pytest.raises(InvalidArgument) as caught:
            wrap(context, seed=context.launch.rank)
        return str(caught.value)

    for message in run_ranks(2, work):
        assert "config.seed: rank 0 has 0, rank 1 has 1" in message


def test_a_parameter_can_be_gossiped_by_one_wrapper_only() -> None:
    def work(context: Context) -> None:
        ddp = wrap(context)
        with pytest.raises(
            InvalidArgument, match=r"'0\.weight': expected one that is not gossiped"
        ):
            wrap(context, nn.Sequential(ddp.module[0]))  # a part of what is gossiped

    run_ranks(2, work)


def test_a_parameter_unfrozen_after_wrapping_is_noticed_at_its_step() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        model[0].requires_grad_(False)
        ddp = wrap(context, model)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)

        def train() -> None:
            step(ddp, optimizer)  # in which the other rank may fail already
            model[0].requires_grad_(True)
            step(ddp, optimizer)

        with pytest.raises(CrossoverError, match=r"'0\.weight': .* unfrozen or put in its place"):
            train()

    run_ranks(2, work)


def test_parameters_replaced_after_wrapping_are_noticed_at_their_step() -> None:
    def work(context: Context) -> None:
        model = mlp(4, 8, 3)
        ddp = wrap(context, model)
        model.load_state_dict(mlp(4, 8, 3).state_dict(), assign=True)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        with pytest.raises(CrossoverError, match=r"'0\.weight': .* unfrozen or put in its place"):
            step(ddp, optimizer)

    run_ranks(2, work)


def test_parameters_of_another_model_in_the_optimizer_are_nobodys_business() -> None:
    def work(context: Context) -> None:
        ddp, other = wrap(context), mlp(2, 2)
        optimizer = torch.optim.SGD([*ddp.parameters(), *other.parameters()], lr=0.1)
        step(ddp, optimizer)
        step(ddp, optimizer)

    run_ranks(2, work)


def test_a_step_of_another_models_optimizer_leaves_the_round_open() -> None:
    def work(context: Context) -> None:
        ddp, other = wrap(context), mlp(4, 3)
        ddp(torch.ones(1, 4))
        step(other, torch.optim.SGD(other.parameters(), lr=0.1))
        assert context.engine.is_open(0)
        synchronize(ddp)
        assert not context.engine.is_open(0)

    run_ranks(2, work)


# --- writing and moving parameters


def add_in_place(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.add_(1.0)


def replace_data(p: nn.Parameter) -> None:
    p.data = p.data + 1.0


@pytest.mark.parametrize(
    ("write", "what"), [(add_in_place, "written"), (replace_data, "moved")], ids=["add_", ".data ="]
)
@pytest.mark.parametrize("overlap", ["forward", "backward"])
def test_a_write_between_post_and_mix_raises_and_says_what_to_do(
    overlap: Overlap, write: Any, what: str
) -> None:
    all_posted = threading.Barrier(2)

    def work(context: Context) -> str:
        ddp = wrap(context, overlap=overlap)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        step(ddp, optimizer)
        if overlap == "backward":
            ddp(torch.ones(1, 4))
        all_posted.wait()
        write(ddp.module[0].weight)
        with pytest.raises(InvalidArgument) as caught:
            step(ddp, optimizer)
        return str(caught.value)

    round_ = 1 if overlap == "backward" else 0
    for message in run_ranks(2, work):
        assert (
            f"segment '0', parameter '0.weight': {what} between post (round {round_}) and mix"
            in (message)
        )
        assert "call crossover_comm.synchronize(model) before writing" in message


@pytest.mark.parametrize("write", [add_in_place, replace_data], ids=["add_", ".data ="])
@pytest.mark.parametrize("overlap", ["none", "forward", "backward"])
def test_after_synchronize_parameters_may_be_written_and_moved(
    overlap: Overlap, write: Any
) -> None:
    def work(context: Context) -> dict[str, torch.Tensor]:
        ddp = wrap(context, topology="complete", overlap=overlap)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.0)
        for _ in range(3):
            step(ddp, optimizer)
            synchronize(ddp)
            for p in ddp.parameters():
                write(p)
        return state_of(ddp)

    first, second = run_ranks(2, work)
    assert_states_close(first, second)


def test_a_parameter_of_another_type_is_refused_by_name() -> None:
    def work(context: Context) -> None:
        ddp = wrap(context)
        ddp.double()
        with pytest.raises(InvalidArgument, match=r"'0\.weight': expected float32 .* got float64"):
            ddp(torch.ones(1, 4, dtype=torch.float64))

    run_ranks(2, work)


# --- segments that a forward does not reach


class Skipping(nn.Module):
    """Calls its second layer in the given forwards only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.uses_second = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        out: torch.Tensor = self.second(x) if self.uses_second else x
        return out


def test_a_segment_whose_module_was_skipped_is_mixed_before_the_next_step() -> None:
    def work(context: Context) -> list[int]:
        model = Skipping()
        ddp = wrap(context, model, overlap="forward")
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for index in range(6):
            model.uses_second = (index + context.launch.rank) % 2 == 0
            step(ddp, optimizer)
        synchronize(ddp)
        return [context.engine.round(0, segment) for segment in range(2)]

    assert run_ranks(2, work) == [[6, 6], [6, 6]]


# --- life and death


def test_gossip_ends_when_the_wrapper_is_no_longer_held() -> None:
    with joined_ranks(2) as contexts:
        models = [mlp(4, 8, 3) for _ in contexts]

        def work(context: Context) -> None:
            ddp = wrap(context, models[context.launch.rank], overlap="forward")
            step(ddp, torch.optim.SGD(ddp.parameters(), lr=0.1))
            synchronize(ddp)

        run_joined(contexts, work)
        gc.collect()
        assert not torch_optimizer._global_optimizer_pre_hooks
        assert not torch_optimizer._global_optimizer_post_hooks
        for context, model in zip(contexts, models, strict=True):
            assert all(not p._post_accumulate_grad_hooks for p in model.parameters())
            assert all(not module._forward_pre_hooks for module in model.modules())
            with pytest.raises(InvalidArgument):
                context.engine.round(0, 0)


def test_a_wrapper_dropped_with_an_open_round_leaves_the_engine_working() -> None:
    def work(context: Context) -> int:
        ddp = wrap(context)
        ddp(torch.ones(1, 4))
        dropped = weakref.ref(ddp)
        del ddp
        gc.collect()
        assert dropped() is None
        other = wrap(context)
        step(other, torch.optim.SGD(other.parameters(), lr=0.1))
        return context.engine.round(1, 0)

    assert run_ranks(2, work) == [1, 1]
