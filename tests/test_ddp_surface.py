"""What else training code touches on torch's wrapper: attributes, copies, ignored parameters."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import mlp
from ranks import lone_rank, run_ranks, state_of
from torch import nn
from torch._C._distributed_c10d import HashStore

from crossover_comm.config import GossipConfig, Overlap
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.ddp_arguments import ABSENT
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import synchronize

OVERLAPS: tuple[Overlap, ...] = ("none", "forward", "backward")


def wrap(context: Context, model: nn.Module | None = None, **options: Any) -> Any:
    model = mlp(4, 8, 3) if model is None else model
    return DistributedDataParallel(model, context=context, init_sync=False, **options)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()


def pickled(ddp: Any) -> Any:
    return pickle.loads(pickle.dumps(ddp))


COPIERS: list[Callable[[Any], Any]] = [copy.deepcopy, pickled]


# --- arguments and attributes


def test_a_bucket_size_becomes_that_of_segments() -> None:
    def work(context: Context) -> int:
        ddp = wrap(context, bucket_cap_mb=40 / 2**20)
        return len(ddp._hooks.gossip.segments)

    assert run_ranks(2, work) == [4, 4]


def test_delayed_reductions_are_taken_where_nothing_is_reduced_in_backward() -> None:
    model = mlp(4, 3)
    delay: dict[str, Any] = {
        "delay_all_reduce_named_params": [("0.bias", model[0].bias)],
        "param_to_hook_all_reduce": model[0].weight,
    }
    wrap(lone_rank(), model, **delay)
    wrap(lone_rank(), model, gossip=GossipConfig(groups="world", overlap="none"), **delay)
    with pytest.raises(InvalidArgument, match="expected overlap='none' with groups"):
        wrap(lone_rank(), model, gossip="allreduce", **delay)


@pytest.mark.skipif(
    "forward_sync_buffers" not in inspect.signature(nn.parallel.DistributedDataParallel).parameters,
    reason="the order is that of torch 2.13, which has an argument amid those of older ones",
)
def test_arguments_come_in_the_order_of_torchs() -> None:
    theirs = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    ours = inspect.signature(DistributedDataParallel).parameters
    assert list(ours)[: len(theirs)] == list(theirs)


def test_a_module_whose_wrapper_is_garbage_can_be_wrapped_again() -> None:
    gc.disable()
    try:

        def work(context: Context) -> None:
            ddp = wrap(context)
            model = ddp.module
            ddp.holds_itself = [ddp]
            del ddp
            wrap(context, model if context.launch.rank == 0 else None)  # one thread collects

        run_ranks(2, work)
    finally:
        gc.enable()


def test_a_module_that_is_wrapped_again_is_gossiped_by_the_newer_wrapper() -> None:
    def work(context: Context) -> int:
        first = wrap(context)
        step(first, torch.optim.SGD(first.parameters(), lr=0.1))
        first(torch.ones(2, 4)).sum().backward()  # leaves a round open
        second = wrap(context, first.module)
        step(second, torch.optim.SGD(second.parameters(), lr=0.1))
        with pytest.raises(InvalidArgument, match="has been wrapped again"):
            first(torch.ones(2, 4))
        return context.engine.round(1, 0)

    assert run_ranks(2, work) == [1, 1]


def test_broadcast_buffers_is_deprecated_where_torch_says_so() -> None:
    torchs = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrap(lone_rank(), broadcast_buffers=False)
    found = [w for w in caught if "broadcast_buffers is deprecated" in str(w.message)]
    assert len(found) == ("forward_sync_buffers" in torchs)


def test_a_deprecated_argument_warns_as_torchs_does() -> None:
    with pytest.warns(FutureWarning, match="check_reduction"):
        wrap(lone_rank(), check_reduction=True)


def test_plain_attributes_are_those_of_torchs_wrapper() -> None:
    ddp = wrap(lone_rank())
    assert ddp.device == torch.device("cpu")
    assert (ddp.device_type, ddp.device_ids, ddp.output_device) == ("cpu", None, None)
    assert ddp.require_backward_grad_sync
    assert ddp.require_forward_param_sync
    assert ddp.broadcast_buffers
    assert ddp.forward_sync_buffers
    assert not ddp.is_multi_device_module
    assert ddp.logger is None
    ddp._set_static_graph()
    assert ddp.static_graph


@pytest.mark.parametrize(
    ("arguments", "synced"),
    [
        ({"broadcast_buffers": False}, False),
        ({"forward_sync_buffers": False}, False),
        ({"broadcast_buffers": False, "forward_sync_buffers": True}, True),
    ],
    ids=str,
)
def test_the_newer_name_of_an_argument_wins(arguments: dict[str, Any], synced: bool) -> None:
    assert wrap(lone_rank(), **arguments).broadcast_buffers == synced


def test_logging_data_has_torchs_keys_and_the_configuration() -> None:
    data = wrap(lone_rank(), gossip="dpsgd")._get_ddp_logging_data()
    assert data["world_size"] == 1
    assert data["backend_name"] == "crossover"
    assert data["total_parameter_size_bytes"] == 4 * (4 * 8 + 8 + 8 * 3 + 3)
    assert data["gossip"]["topology"] == "ring"


@pytest.mark.parametrize("name", ABSENT)
def test_a_member_without_counterpart_says_why(name: str) -> None:
    assert hasattr(nn.parallel.DistributedDataParallel, name) or name == "reducer"
    with pytest.raises(AttributeError, match=f"has no '{name}': .+"):
        getattr(wrap(lone_rank()), name)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_clearing_the_sync_flag_by_hand_is_no_sync(overlap: Overlap) -> None:
    def work(context: Context) -> int:
        ddp = wrap(context, gossip=GossipConfig(overlap=overlap))
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        ddp.require_backward_grad_sync = False
        ddp(torch.ones(2, 4)).sum().backward()
        ddp.require_backward_grad_sync = True
        step(ddp, optimizer)
        synchronize(ddp)
        return context.engine.round(0, 0)

    assert run_ranks(2, work) == [1, 1]


# --- checkpoints


@pytest.fixture
def _lone_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def normed() -> nn.Module:
    return nn.Sequential(mlp(4, 8, 3), nn.BatchNorm1d(3))


@pytest.mark.usefixtures("_lone_group")
@pytest.mark.parametrize("takes_theirs", [True, False])
def test_a_state_of_torchs_wrapper_can_be_loaded_and_the_other_way_round(
    takes_theirs: bool,
) -> None:
    ours: nn.Module = wrap(lone_rank(), normed())
    theirs: nn.Module = nn.parallel.DistributedDataParallel(normed())
    source, target = (theirs, ours) if takes_theirs else (ours, theirs)
    source(torch.randn(6, 4))
    target.load_state_dict(source.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    wanted = state_of(source)
    for name, value in state_of(target).items():
        assert torch.equal(value, wanted[name]), name


# --- copies


@pytest.mark.parametrize("duplicate", COPIERS)
def test_a_copy_of_the_wrapper_holds_the_same_values_and_is_at_rest(
    duplicate: Callable[[Any], Any],
) -> None:
    def work(context: Context) -> None:
        ddp = wrap(context, gossip="dpsgd")
        step(ddp, torch.optim.SGD(ddp.parameters(), lr=0.1))
        synchronize(ddp)
        if context.launch.rank == 0:
            twin = duplicate(ddp).eval()
            x = torch.ones(2, 4)
            assert torch.equal(twin(x), ddp.module(x))
            assert twin._config == ddp._config
            assert list(twin.state_dict()) == list(ddp.state_dict())
        assert context.engine.round(0, 0) == 1

    run_ranks(2, work)


def test_a_copy_that_is_trained_gossips() -> None:
    def work(context: Context) -> int:
        twin = copy.deepcopy(wrap(context))
        step(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
        return context.engine.round(1, 0)

    assert run_ranks(2, work) == [1, 1]


@pytest.mark.parametrize("inner", [False, True], ids=["wrapper", "module"])
def test_an_averaged_model_follows_the_wrapper_or_its_module(inner: bool) -> None:
    def work(context: Context) -> None:
        ddp = wrap(context)
        followed = ddp.module if inner else ddp
        average = torch.optim.swa_utils.AveragedModel(
            followed, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
        )
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        average.update_parameters(followed)
        wanted = [p.detach().clone() for p in ddp.parameters()]
        for _ in range(3):
            step(ddp, optimizer)
            average.update_parameters(followed)
            for mean, p in zip(wanted, ddp.parameters(), strict=True):
                mean.lerp_(p.detach(), 0.5)
        for given, mean in zip(average.parameters(), wanted, strict=True):
            torch.testing.assert_close(given, mean)
        average.eval()(torch.ones(2, 4))
        synchronize(ddp)

    run_ranks(2, work)


# --- ignored parameters


def test_ignored_parameters_are_stepped_and_not_exchanged() -> None:
    replicas = [mlp(4, 8, 3) for _ in range(2)]

    def work(context: Context) -> None:
        model = replicas[context.launch.rank]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["2.weight"])
        before = model.get_parameter("2.weight").detach().clone()
        ddp = wrap(context, model, gossip=GossipConfig(topology="complete"))
        assert len(list(ddp._get_data_parallel_params(ddp.module))) == 3
        optimizer = torch.optim.SGD(
            [{"params": ddp.parameters(), "lr": 0.0}],
        )
        step(ddp, optimizer)
        assert torch.equal(model.get_parameter("2.weight"), before)

    run_ranks(2, work)
    first, second = (state_of(model) for model in replicas)
    assert torch.allclose(first["0.weight"], second["0.weight"])
    assert not torch.allclose(first["2.weight"], second["2.weight"])


def test_names_to_ignore_may_be_set_on_the_module_itself() -> None:
    model = mlp(4, 3)
    model._ddp_params_and_buffers_to_ignore = ["0.bias"]  # type: ignore[assignment]
    ddp = wrap(lone_rank(), model)
    assert ddp.parameters_to_ignore == {"0.bias"}
    assert [name for name, _ in ddp._get_data_parallel_params(model, named_params=True)] == [
        "0.weight"
    ]


def test_a_model_of_which_everything_is_ignored_is_refused() -> None:
    model = mlp(4, 3)
    model._ddp_params_and_buffers_to_ignore = ["0.bias", "0.weight"]  # type: ignore[assignment]
    with pytest.raises(InvalidArgument, match="a parameter that requires a gradient"):
        wrap(lone_rank(), model)
