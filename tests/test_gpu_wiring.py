"""Models on a GPU, from the wrapper to the streams, over a GPU and an NCCL of host memory."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import re
from collections.abc import Callable
from unittest import mock

import networkx
import pytest
import torch
from dense_cases import OVERLAPS, Case, TwoByteCase, dense_states
from fake_gpu import CAPTURES, GPU, FakeGpu
from fake_gpu import fake_gpu as fake_gpu  # a fixture
from models import mlp
from ranks import assert_states_close, run_ranks, state_of
from test_stub import PACKAGE, assert_alike
from torch import nn

from crossover_comm import device as device_module
from crossover_comm import doctor, inputs, nccl
from crossover_comm.config import GossipConfig, Overlap, Wire
from crossover_comm.context import Context
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import (
    CrossoverError,
    DeviceError,
    InvalidArgument,
    NonFiniteError,
    TransportError,
)
from crossover_comm.graphs import from_networkx
from crossover_comm.hooks import synchronize
from crossover_comm.settings import NcclOptions, Settings
from crossover_comm.topology import Topology


def wrap(context: Context, model: nn.Module | None = None) -> DistributedDataParallel:
    model = mlp(4, 8, 3) if model is None else model
    config = GossipConfig(overlap="none")
    return DistributedDataParallel(model, gossip=config, context=context, init_sync=False)


def step(ddp: nn.Module, num_steps: int = 1) -> None:
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(num_steps):
        ddp(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()


def trained(case: Case, size: int, transport: str) -> list[dict[str, torch.Tensor]]:
    """The parameters by rank after a training of `case` by gossip."""
    replicas = case.replicas(size)

    def train(context: Context) -> None:
        rank = context.launch.rank
        ddp = DistributedDataParallel(
            replicas[rank], gossip=case.config, context=context, init_sync=False
        )
        optimizer = case.optimizer_of(ddp)
        for x in case.batches(rank):
            optimizer.zero_grad()
            (ddp(x) - x[:, :1]).square().mean().backward()
            optimizer.step()
        synchronize(ddp)

    run_ranks(size, train, transport=transport)
    return [state_of(replica) for replica in replicas]


# --- values


@pytest.mark.parametrize("transport", ["nccl", "tcp"])
@pytest.mark.parametrize(("overlap", "wire"), list(itertools.product(OVERLAPS, ("fp32", "bf16"))))
@pytest.mark.parametrize("topology", ["crossover", "complete"])
@pytest.mark.usefixtures("fake_gpu")
def test_models_on_a_gpu_train_as_the_dense_reference(
    transport: str, overlap: Overlap, wire: Wire, topology: str
) -> None:
    size = 4
    config = GossipConfig(topology=topology, overlap=overlap, wire=wire, seed=size)
    case = Case(topology, config)
    states = trained(case, size, transport)
    for state, wanted in zip(states, dense_states(case, size), strict=True):
        assert_states_close(state, wanted)


def push_sum_graph() -> Topology:
    """Not balanced, so that w leaves 1."""
    return from_networkx(networkx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)]), push_sum=True)


LIKE_THE_CPU = {
    "several phases": GossipConfig(topology="all-reduce", overlap="none"),
    "several rounds and exact averages": GossipConfig(rounds_per_step=2, exact_every=3),
    "bf16 over several phases": GossipConfig(topology="all-reduce", wire="bf16", overlap="forward"),
    "push-sum": GossipConfig(topology=push_sum_graph(), overlap="forward"),
    "exchanged momentum": GossipConfig(momentum="exchanged", overlap="none"),
    "small segments": GossipConfig(segments=40),
    "two-byte parameters": GossipConfig(),
}


@pytest.mark.parametrize("transport", ["nccl", "tcp"])
@pytest.mark.parametrize("name", LIKE_THE_CPU)
@pytest.mark.usefixtures("fake_gpu")
def test_whatever_works_on_the_cpu_gives_the_same_bits_on_a_gpu(name: str, transport: str) -> None:
    case = (TwoByteCase if name == "two-byte parameters" else Case)(name, LIKE_THE_CPU[name])
    with mock.patch.object(device_module, "device_of", lambda tensor: tensor.device):
        on_cpu = trained(case, 3, "tcp")
    for state, wanted in zip(trained(case, 3, transport), on_cpu, strict=True):
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_messages_leave_through_nccl_unless_a_host_transport_is_asked_for(
    fake_gpu: FakeGpu,
) -> None:
    def work(context: Context) -> dict[str, float]:
        step(wrap(context))
        return context.engine.counters()

    copies = {}
    for transport in ("nccl", "auto", "tcp"):
        before = fake_gpu.calls("cudaMemcpyAsync")
        for counters in run_ranks(2, work, transport=transport):
            assert counters["payload_sent_bytes"] == 4 * (4 * 8 + 8 + 8 * 3 + 3)
            assert (counters["first_contact_s"] > 0) == (transport != "tcp")
        copies[transport] = fake_gpu.calls("cudaMemcpyAsync") - before
    assert copies["auto"] == copies["nccl"]
    assert copies["tcp"] == copies["nccl"] + 2 * 2 * 2  # ranks, segments, to the host and back


@pytest.mark.usefixtures("fake_gpu")
def test_a_measured_wire_is_refused_on_a_gpu_for_what_it_is() -> None:
    def work(context: Context) -> None:
        with pytest.raises(InvalidArgument, match=r"expected a model in host memory.*cuda:0"):
            DistributedDataParallel(
                mlp(4, 3), gossip=GossipConfig(wire="auto"), context=context, init_sync=False
            )

    run_ranks(2, work)


@pytest.mark.usefixtures("fake_gpu")
def test_two_models_share_the_device_and_its_nccl() -> None:
    def work(context: Context) -> None:
        first, second = wrap(context), wrap(context)
        for ddp in (first, second, first):
            step(ddp)
        assert context.engine.round(0, 0) == 2
        assert context.engine.round(1, 0) == 1

    run_ranks(2, work)


# --- refusals


def test_nccl_that_cannot_be_used_is_an_error_that_names_the_way_out(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nccl.OVERRIDE_VARIABLE, "/nowhere/libnccl.so.2")

    def work(context: Context) -> None:
        wanted = r"on cuda:0, but NCCL cannot(.|\n)*/nowhere/libnccl(.|\n)*transport='tcp'"
        with pytest.raises(TransportError, match=wanted):
            wrap(context)

    run_ranks(2, work)


def test_a_build_without_the_cuda_part_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "device_of", lambda _: GPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    def work(context: Context) -> None:
        with pytest.raises(
            DeviceError, match=r"on cuda:0: this build has no crossover_comm\._cuda"
        ):
            wrap(context)

    run_ranks(2, work)


def test_a_model_spread_over_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    second = torch.device("cuda", 1)
    monkeypatch.setattr(
        device_module, "device_of", lambda p: second if p.shape == (3,) else p.device
    )

    def work(context: Context) -> None:
        wanted = r"'2.bias': expected it on cpu like parameter '0.weight', got cuda:1"
        with pytest.raises(InvalidArgument, match=wanted):
            wrap(context)

    run_ranks(2, work)


def test_a_second_model_lives_on_the_device_of_the_first(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(context: Context) -> None:
        wrap(context)
        context.group.gather("both are wrapped", None, 30.0)
        monkeypatch.setattr(device_module, "device_of", lambda p: p.device)
        with pytest.raises(InvalidArgument, match="cuda:0 like the models wrapped before, got cpu"):
            wrap(context)

    run_ranks(2, work)


def test_nccl_does_not_move_models_on_the_cpu() -> None:
    def work(context: Context) -> None:
        with pytest.raises(InvalidArgument, match="expected a model on a GPU, got one on the CPU"):
            wrap(context)

    run_ranks(2, work, transport="nccl")


def test_ranks_with_models_on_different_kinds_of_device_differ(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Marked(nn.Linear):
        pass

    on_gpu = nn.Linear(4, 3).weight
    monkeypatch.setattr(
        device_module, "device_of", lambda p: GPU if p is on_gpu else torch.device("cpu")
    )

    def work(context: Context) -> None:
        model = Marked(4, 3, bias=False)
        if context.launch.rank == 1:
            model.weight = on_gpu
        with pytest.raises(InvalidArgument, match='rank 0 has "cpu", rank 1 has "cuda"'):
            wrap(context, model)

    run_ranks(2, work, transport="tcp")


def test_an_nccl_id_that_a_stranger_wrote_is_refused(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(context: Context) -> None:
        gather = context.group.gather

        def forged(call: str, value: object, timeout_s: float) -> list[object]:
            values = gather(call, value, timeout_s)
            if call == "NCCL id":
                values[0]["id"] = bytes(128).hex()
            return values

        monkeypatch.setattr(context.group, "gather", forged)
        with pytest.raises(TransportError, match="does not come from a rank of this job"):
            wrap(context)

    run_ranks(2, work)


@pytest.mark.parametrize("max_ctas", [0, 2.0, True])
def test_the_number_of_blocks_is_an_integer_from_1_on(max_ctas: int) -> None:
    with pytest.raises(InvalidArgument, match="max_ctas: expected"):
        NcclOptions(max_ctas=max_ctas)


# --- failures cross from one extension module to the other as what they are


@pytest.mark.usefixtures("fake_gpu")
def test_a_captured_cuda_graph_is_refused() -> None:
    def work(context: Context) -> None:
        ddp = wrap(context)
        with pytest.raises(InvalidArgument, match="a CUDA graph is being captured"):
            step(ddp)

    with mock.patch.object(torch.cuda, CAPTURES, return_value=True):
        run_ranks(2, work)


def test_a_refused_capture_leaves_the_round_to_be_tried_again(fake_gpu: FakeGpu) -> None:
    def work(context: Context) -> None:
        ddp = wrap(context)
        gossip = ddp._hooks.gossip  # type: ignore[union-attr]
        fake_gpu.capture(True)
        with pytest.raises(InvalidArgument, match="captured into a CUDA graph"):
            gossip.open_round()
        fake_gpu.capture(False)
        gossip.open_round()
        fake_gpu.capture(True)
        with pytest.raises(InvalidArgument, match="captured into a CUDA graph"):
            gossip.close_round()
        fake_gpu.capture(False)
        gossip.close_round()
        assert not gossip.is_open

    run_ranks(2, work)


def failed(fake: FakeGpu, transport: str, spoil: Callable[[nn.Module], None]) -> list[str]:
    """What each of two ranks was told when rank 0 had been spoiled before its first step."""

    def work(context: Context) -> str:
        ddp = wrap(context)
        step(ddp)
        context.group.gather("the first step is over", None, 30.0)
        if context.launch.rank == 0:
            spoil(ddp)
        with pytest.raises(CrossoverError) as caught:
            step(ddp, num_steps=3)
        return f"{type(caught.value).__name__}: {caught.value}"

    return run_ranks(2, work, transport=transport)


@pytest.mark.parametrize("transport", ["nccl", "tcp"])
def test_a_parameter_that_is_not_finite_is_named_on_both_ranks(
    fake_gpu: FakeGpu, transport: str
) -> None:
    def spoil(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter("module.2.bias").fill_(math.nan)

    own, other = failed(fake_gpu, transport, spoil)
    assert own.startswith(NonFiniteError.__name__)
    # By the step in between all are spoiled: whichever segment is looked at first is named.
    named = re.search(r"first in parameter '[02]\.(weight|bias)'", own)
    assert named is not None, own
    assert other.startswith(TransportError.__name__)
    assert "first cause, seen by rank 0" in other
    assert named.group() in other


@pytest.mark.parametrize("call", ["pack", "mix"])
def test_a_failed_call_of_cuda_is_the_first_cause_on_both_ranks(
    fake_gpu: FakeGpu, call: str
) -> None:
    told = failed(fake_gpu, "tcp", lambda _: fake_gpu.fail_next(call))
    assert {text.partition(":")[0] for text in told} == {"DeviceError", "TransportError"}
    assert all(f"CUDA: {call} failed" in text for text in told)


def test_an_error_of_nccl_ends_the_round_on_both_ranks(fake_gpu: FakeGpu) -> None:
    told = failed(fake_gpu, "auto", lambda _: fake_gpu.script_nccl("failing_group=5;rank=0"))
    assert all(text.startswith("TransportError") for text in told)
    assert any("NCCL" in text for text in told)


# --- device_ids, as torch's DDP takes them


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("given", [[0], ["cuda:0"], [GPU], None])
def test_the_modules_gpu_may_be_named(given: list[object] | None) -> None:
    parameters = dict(mlp(4, 3).named_parameters())
    wanted = None if given is None else GPU
    assert inputs.input_device(given, None, parameters) == wanted
    assert inputs.input_device(given, 0, parameters) == wanted
    with pytest.raises(InvalidArgument, match=r"output_device.*on cuda:0, got cuda:1"):
        inputs.input_device(given, 1, parameters)


def test_inputs_are_moved_wherever_they_are_in_the_arguments() -> None:
    meta, x = torch.device("meta"), torch.ones(2)
    packed = nn.utils.rnn.pack_sequence([x])
    given = (x, [x, {"x": (x, 3)}], torch.Size([2]), torch.max(x, 0), packed, "text", None)
    result = inputs.moved(given, meta)
    found = [result[0], result[1][0], result[1][1]["x"][0], result[3].values, result[4].data]
    assert {tensor.device for tensor in found} == {meta}
    assert result[1][1]["x"][1] == 3
    assert result[5:] == ("text", None)


def test_every_setting_has_a_place_in_the_comparison() -> None:
    settings = Settings(0, 2, None, 1.0, 1.0, "auto", None, True, 0)
    changed = dataclasses.replace(settings, nccl=NcclOptions(max_ctas=4))
    with pytest.raises(InvalidArgument, match=r"nccl=.*max_ctas=4.*call shutdown"):
        settings.require_same(changed)


# --- the module beside the stub and the doctor


def test_the_stub_and_the_cuda_part_have_the_same_names_and_arguments(fake_gpu: FakeGpu) -> None:
    assert_alike(PACKAGE / "_cuda.pyi", fake_gpu.module)


def test_the_doctor_says_yes_to_what_works_on_a_gpu(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "cuda_module", lambda: fake_gpu.module)
    monkeypatch.setattr(doctor, "_describe_gpus", lambda: "a fake")
    found = {finding.name: finding for finding in doctor.diagnose()}
    for name in ("GPU: pack", "GPU: mix", "GPU: NCCL exchange with itself"):
        assert found[name] == doctor.Finding("works", name, True, "on GPU 0")
