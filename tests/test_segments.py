"""Where a model is cut, what a segment holds and which module awaits it."""

from __future__ import annotations

import json

import pytest
import torch
from models import Bottleneck, Gpt, ResNet50, mlp
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from crossover_comm.errors import InvalidArgument
from crossover_comm.segments import Segment, cut, describe, issue_order, trainable_parameters


def blocks_of(model: nn.Module) -> list[Segment]:
    return cut(model, trainable_parameters(model), "blocks")


def names_of(segments: list[Segment]) -> list[str]:
    return [segment.name for segment in segments]


def assert_covers(model: nn.Module, segments: list[Segment]) -> None:
    """Every trainable parameter is in exactly one segment, under its own name."""
    found = {n: p for s in segments for n, p in zip(s.tensors, s.parameters, strict=True)}
    assert found == trainable_parameters(model)
    assert sum(len(s.tensors) for s in segments) == len(found)


# --- along blocks


def test_resnet50_is_cut_into_stem_sixteen_bottlenecks_and_fc() -> None:
    model = ResNet50()
    segments = blocks_of(model)
    stages = [f"layer{s}.{i}" for s, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for i in range(n)]
    assert names_of(segments) == ["conv1..bn1", *stages, "fc"]
    assert_covers(model, segments)


def test_each_block_is_awaited_at_itself_and_the_stem_at_each_of_its_layers() -> None:
    segments = blocks_of(ResNet50())
    assert [s.wait_modules for s in segments[:2]] == [("conv1", "bn1"), ("layer1.0",)]
    assert segments[-1].wait_modules == ("fc",)


def test_a_transformer_encoder_is_cut_into_its_layers() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3, enable_nested_tensor=False
    )
    segments = blocks_of(model)
    assert names_of(segments) == ["layers.0", "layers.1", "layers.2"]
    assert [s.wait_modules for s in segments] == [("layers.0",), ("layers.1",), ("layers.2",)]
    assert_covers(model, segments)


def test_a_gpt_is_cut_into_embeddings_blocks_norm_and_head() -> None:
    model = Gpt()
    segments = blocks_of(model)
    assert names_of(segments) == ["wte..wpe", "h.0", "h.1", "h.2", "ln_f", "head"]
    assert_covers(model, segments)


def test_a_sequential_of_layers_is_cut_into_its_layers() -> None:
    assert names_of(blocks_of(mlp(3, 4, 5, 2))) == ["0", "2", "4"]


def test_nested_stages_are_cut_into_their_blocks() -> None:
    stages = nn.Sequential(
        nn.Sequential(*(Bottleneck(16, 4, downsamples=False) for _ in range(2))),
        nn.Sequential(*(Bottleneck(16, 4, downsamples=False) for _ in range(3))),
    )
    assert names_of(blocks_of(stages)) == ["0.0", "0.1", "1.0", "1.1", "1.2"]


def test_a_model_within_a_wrapper_of_the_user_is_cut_as_well() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = ResNet50()
            self.head = nn.Linear(10, 2)

    names = names_of(blocks_of(Classifier()))
    assert names[:2] == ["backbone.conv1..backbone.bn1", "backbone.layer1.0"]
    assert names[-2:] == ["backbone.fc", "head"]


def test_a_backbone_without_lists_is_cut_if_it_is_most_of_the_model() -> None:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = Bottleneck(16, 4, downsamples=False)
            self.up = Bottleneck(16, 4, downsamples=False)

    model = nn.ModuleDict({"net": UNet(), "head": nn.Linear(2, 2)})
    assert names_of(blocks_of(model)) == ["net.down", "net.up", "head"]


def test_multihead_attention_is_never_entered() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    segments = blocks_of(model)
    assert names_of(segments) == ["0", "1"]
    assert segments[1].wait_modules == ("1",)


def test_parameters_of_a_module_on_the_way_belong_to_the_stem() -> None:
    class VisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
            self.patch = nn.Linear(4, 8)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)
            )

    segments = blocks_of(VisionTransformer())
    assert names_of(segments) == ["class_token..patch", "blocks.0", "blocks.1"]
    assert segments[0].wait_modules == ("",)


def test_a_single_layer_is_one_segment_awaited_at_the_model() -> None:
    (segment,) = blocks_of(nn.Linear(3, 2))
    assert (segment.tensors, segment.wait_modules) == (("weight", "bias"), ("",))


def test_compiling_a_model_does_not_change_its_cut() -> None:
    model = Gpt()
    plain = describe(blocks_of(model))
    assert describe(blocks_of(torch.compile(model))) == plain  # type: ignore[arg-type]
    for index, block in enumerate(model.h):
        model.h[index] = torch.compile(block)  # type: ignore[assignment]
    segments = blocks_of(model)
    assert describe(segments) == plain
    assert segments[1].wait_modules == ("h.0",)


# --- tied, frozen and unusual parameters


def test_a_tied_weight_is_exchanged_once_and_awaited_above_both_owners() -> None:
    model = Gpt(tied=True)
    segments = blocks_of(model)
    assert names_of(segments) == ["wte..wpe", "h.0", "h.1", "h.2", "ln_f"]
    assert segments[0].wait_modules == ("",)
    assert_covers(model, segments)


def test_a_module_used_in_two_blocks_is_awaited_above_both() -> None:
    shared = nn.Linear(4, 4)
    first = nn.Sequential(nn.Linear(4, 4), shared)
    second = nn.Sequential(nn.Linear(4, 4), shared)
    segments = cut(nn.Sequential(first, second), dict(shared.named_parameters()), 1 << 20)
    assert segments[0].wait_modules == ("",)


def test_a_parameter_list_is_awaited_at_the_module_that_reads_it() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = x * self.weights[0] + self.weights[1]
            return out

    model = nn.Sequential(nn.Linear(2, 2), Experts())
    segments = cut(model, trainable_parameters(model), 8)
    assert [s.wait_modules for s in segments] == [("0",), ("0",), ("1",), ("1",)]


def test_frozen_parameters_are_left_out() -> None:
    model = mlp(3, 4, 2)
    model[0].requires_grad_(False)
    assert names_of(blocks_of(model)) == ["2"]


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="parameter that requires a gradient"):
        trainable_parameters(mlp(3, 2).requires_grad_(False))


def test_an_optimizer_that_holds_nothing_of_the_model_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="the optimizer and the model together"):
        trainable_parameters(mlp(3, 2), only=mlp(3, 2).parameters())


def test_a_parametrized_layer_is_awaited_where_it_is_called() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    segments = blocks_of(model)
    assert names_of(segments) == ["0", "1"]
    assert segments[0].wait_modules == ("0",)


def test_a_block_of_two_dtypes_becomes_two_segments() -> None:
    model = mlp(3, 4, 2)
    model[0].bias.data = model[0].bias.data.to(torch.bfloat16)
    segments = blocks_of(model)
    assert names_of(segments) == ["0 (float32)", "0 (bfloat16)", "2"]
    assert [s.tensors for s in segments[:2]] == [("0.weight",), ("0.bias",)]


def test_tensors_that_keep_offsets_aligned_come_first_and_keep_their_order() -> None:
    model = nn.ParameterDict(
        {
            name: nn.Parameter(torch.zeros(n))
            for name, n in zip("abcd", (5, 256, 0, 128), strict=True)
        }
    )
    (segment,) = cut(model, trainable_parameters(model), 1 << 20)
    assert segment.tensors == ("b", "c", "d", "a")


# --- at equal bytes


def test_consecutive_parameters_are_packed_up_to_the_given_bytes() -> None:
    model = mlp(4, 4, 4)  # 64, 16, 64 and 16 bytes
    segments = cut(model, trainable_parameters(model), 80)
    assert names_of(segments) == ["0.weight..0.bias", "2.weight..2.bias"]
    segments = cut(model, trainable_parameters(model), 79)
    assert names_of(segments) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert names_of(cut(model, trainable_parameters(model), 160)) == ["0.weight..2.bias"]


def test_a_larger_tensor_is_alone() -> None:
    model = mlp(2, 100, 2)
    assert names_of(cut(model, trainable_parameters(model), 16)) == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]


def test_packing_changes_segment_with_the_dtype() -> None:
    model = mlp(2, 2, 2)
    model[0].bias.data = model[0].bias.data.double()
    segments = cut(model, trainable_parameters(model), 1 << 20)
    assert [s.dtype for s in segments] == [torch.float32, torch.float64, torch.float32]


def test_packed_parameters_are_awaited_at_each_owner_but_attention_as_a_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    (segment,) = cut(model, trainable_parameters(model), 1 << 20)
    assert segment.wait_modules == ("0", "1")


# --- orders and description


def test_backward_starts_at_the_end_of_the_model() -> None:
    assert issue_order(3, "backward") == [2, 1, 0]
    assert issue_order(3, "forward") == issue_order(3, "none") == [0, 1, 2]


def test_a_channels_last_weight_shows_in_the_description() -> None:
    model = nn.Conv2d(3, 4, 3)
    plain = describe(blocks_of(model))
    model.weight.data = model.weight.data.to(memory_format=torch.channels_last)
    last = describe(blocks_of(model))
    assert plain != last
    assert json.loads(json.dumps(last)) == last
