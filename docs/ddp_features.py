"""What each argument, method and feature of torch's DistributedDataParallel means under gossip.

The table of docs/ddp-compatibility.md is made of these rows.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

__all__ = ["FEATURES", "Feature"]


class Feature(NamedTuple):
    """One row. `test` is ``file.py::function`` below tests/."""

    name: str
    kind: Literal["argument", "method", "attribute", "feature", "tool"]
    meaning: str
    test: str


_HINT = "test_ddp.py::test_a_hint_is_taken_and_shown"
_PART = "test_members.py::test_process_groups_and_meshes_confine_everything_to_their_ranks"
_REFUSED = "test_ddp.py::test_what_is_not_supported_is_refused_with_the_reason"
_PLAIN = "test_ddp_surface.py::test_plain_attributes_are_those_of_torchs_wrapper"

ARGUMENTS: Final = [
    Feature(
        "module",
        "argument",
        "The replica. It need not be equal to the others: gossip keeps replicas close, not equal; "
        "preset `allreduce` keeps them equal.",
        "test_semantics.py::test_the_wrapped_model_trains_as_the_dense_reference",
    ),
    Feature(
        "device_ids",
        "argument",
        "None or the module's one GPU: inputs are moved there.",
        _REFUSED,
    ),
    Feature("output_device", "argument", "None or the module's one GPU.", _REFUSED),
    Feature("dim", "argument", "Any value: a replica has one device, nothing is split.", _HINT),
    Feature(
        "broadcast_buffers",
        "argument",
        "Whether buffers are broadcast from rank 0 at the start and, in preset `allreduce`, before "
        "the first forward after each average. Under gossip each replica keeps the statistics of "
        "its own parameters, unless `GossipConfig(buffers=)` is `average` or `broadcast`.",
        "test_buffers.py::"
        "test_where_gradients_are_averaged_all_have_the_buffers_of_rank_0_as_in_torch",
    ),
    Feature(
        "forward_sync_buffers",
        "argument",
        "As `broadcast_buffers`, but the broadcast at the start always takes place.",
        "test_buffers.py::test_torchs_argument_keeps_buffers_local",
    ),
    Feature(
        "init_sync",
        "argument",
        "Whether parameters and buffers are broadcast from rank 0 at the start.",
        "test_collectives.py::test_broadcast_parameters_makes_models_equal_bit_for_bit",
    ),
    Feature("process_group", "argument", "Gossip and everything else is among its ranks.", _PART),
    Feature("device_mesh", "argument", "The same, of one dimension: `mesh['replicate']`.", _PART),
    Feature(
        "bucket_cap_mb",
        "argument",
        "Segments of at most so many MiB. None: cut along the model's blocks.",
        "test_ddp_surface.py::test_a_bucket_size_becomes_that_of_segments",
    ),
    Feature("bucket_cap_mb_list", "argument", "Refused: segments have one size.", _REFUSED),
    Feature(
        "find_unused_parameters",
        "argument",
        "Any value: a parameter is exchanged whether it is used or not.",
        "test_transparency.py::test_gradients_after_closed_rounds_are_those_of_the_plain_model",
    ),
    Feature(
        "check_reduction",
        "argument",
        "No meaning, in torch neither; the same warning.",
        "test_ddp_surface.py::test_a_deprecated_argument_warns_as_torchs_does",
    ),
    Feature(
        "gradient_as_bucket_view",
        "argument",
        "Any value: there are no buckets. Preset `allreduce` averages `p.grad` in place, so the "
        "memory it saves in torch is not spent.",
        _HINT,
    ),
    Feature("static_graph", "argument", "Any value: no graph is analysed.", _HINT),
    Feature(
        "delay_all_reduce_named_params",
        "argument",
        "Both or neither of this and the next. Parameter gossip knows no all-reduce to delay. With "
        'groups (preset `allreduce`) only with `overlap="none"`, which averages at the end.',
        "test_ddp_surface.py::test_delayed_reductions_are_taken_where_nothing_is_reduced_in_backward",
    ),
    Feature(
        "param_to_hook_all_reduce",
        "argument",
        "See the line above.",
        "test_ddp_surface.py::test_delayed_reductions_are_taken_where_nothing_is_reduced_in_backward",
    ),
    Feature(
        "mixed_precision",
        "argument",
        'Refused: `torch.autocast` to compute, `GossipConfig(wire="bf16")` to send.',
        _REFUSED,
    ),
    Feature(
        "skip_all_reduce_unused_params",
        "argument",
        "Refused: unused parameters are exchanged, so that no rank need know which these are.",
        _REFUSED,
    ),
    Feature("batched_grad_copy", "argument", "Any value: gradients are not copied.", _HINT),
]

METHODS: Final = [
    Feature(
        "no_sync",
        "method",
        "Forwards inside and their backwards count for no round of their own.",
        "test_semantics.py::test_accumulation_under_no_sync_is_one_round_a_step",
    ),
    Feature(
        "join",
        "method",
        "A rank without data is still exchanged with and mixed until the last has none; preset "
        "`allreduce`: it adds gradients of zero, and ends with the model of a rank that took all "
        "steps. No collective per step. One model at a time; not with groups that gossip.",
        "test_uneven.py::test_a_rank_without_data_is_still_mixed_until_the_last_has_none",
    ),
    Feature(
        "join(divide_by_initial_world_size=)",
        "method",
        "For averages of gradients as in torch; no meaning where parameters are gossiped.",
        "test_uneven.py::test_averages_divide_by_all_ranks_or_by_those_with_data",
    ),
    Feature(
        "join(throw_on_early_termination=)",
        "method",
        "Every rank raises RuntimeError after as many rounds, and may train on.",
        "test_uneven.py::test_all_ranks_raise_when_one_ends_early_and_can_go_on",
    ),
    Feature(
        "join_hook, join_device, join_process_group",
        "method",
        "For `torch.distributed.algorithms.Join` with several models; it needs a process group.",
        "test_uneven.py::test_the_hook_of_torchs_join_takes_part_in_one_step_of_the_others",
    ),
    Feature(
        "train",
        "method",
        "Reaches the module, as `eval` does.",
        "test_ddp.py::test_train_and_eval_reach_the_module",
    ),
    Feature(
        "_set_params_and_buffers_to_ignore_for_model",
        "method",
        "These are neither broadcast nor exchanged.",
        "test_ddp_surface.py::test_ignored_parameters_are_stepped_and_not_exchanged",
    ),
    Feature(
        "_get_data_parallel_params",
        "method",
        "The parameters that are not ignored.",
        "test_ddp_surface.py::test_names_to_ignore_may_be_set_on_the_module_itself",
    ),
    Feature("_set_static_graph", "method", "As the argument.", _PLAIN),
    Feature(
        "_get_ddp_logging_data",
        "method",
        "torch's keys where they have a meaning, and the gossip configuration.",
        "test_ddp_surface.py::test_logging_data_has_torchs_keys_and_the_configuration",
    ),
    Feature(
        "will_sync_module_buffers",
        "method",
        "Whether buffers are exchanged after the start.",
        "test_buffers.py::test_rank_0_may_evaluate_alone",
    ),
    Feature(
        "register_comm_hook",
        "method",
        "Preset `allreduce`: as in torch, with torch's own hooks too; a parameter without a "
        "gradient on any rank keeps None. Under gossip the hook says what is sent in place of "
        "parameters: `x_i + sum_j w_ij (s_j - s_i)`, `s = hook(x)`. Not called with one rank; not "
        "with several groups, push-sum or shards. Buckets have `peers()` too.",
        "test_comm_hook.py::test_gossip_sends_what_the_hook_makes_of_parameters",
    ),
    Feature(
        "scatter, gather, to_kwargs",
        "method",
        "Absent: a process trains one replica on one device. The error says so.",
        "test_ddp_surface.py::test_a_member_without_counterpart_says_why",
    ),
]

ATTRIBUTES: Final = [
    Feature(
        "module",
        "attribute",
        "The replica.",
        "test_ddp.py::test_names_of_the_state_have_the_prefix_of_torchs_wrapper",
    ),
    Feature(
        "require_backward_grad_sync",
        "attribute",
        "May be set: False is what `no_sync` sets.",
        "test_ddp_surface.py::test_clearing_the_sync_flag_by_hand_is_no_sync",
    ),
    Feature(
        "device, device_type, device_ids, output_device, device_mesh",
        "attribute",
        "As torch's.",
        _PLAIN,
    ),
    Feature("logger", "attribute", "None.", _PLAIN),
    Feature(
        "parameters_to_ignore",
        "attribute",
        "The names to ignore.",
        "test_ddp_surface.py::test_names_to_ignore_may_be_set_on_the_module_itself",
    ),
    Feature(
        "reducer",
        "attribute",
        "Absent: there are segments of parameters, no buckets of gradients. The error says so.",
        "test_ddp_surface.py::test_a_member_without_counterpart_says_why",
    ),
]

GENERAL: Final = [
    Feature(
        "state_dict, load_state_dict",
        "feature",
        "The same names as torch's wrapper (`module.`): interchangeable in both directions.",
        "test_ddp_surface.py::test_a_state_of_torchs_wrapper_can_be_loaded_and_the_other_way_round",
    ),
    Feature(
        "copy.deepcopy, pickle",
        "feature",
        "A copy holds the values, evaluates, and gossips from its first recorded forward in "
        "training mode on, which is a collective call.",
        "test_ddp_surface.py::test_a_copy_of_the_wrapper_holds_the_same_values_and_is_at_rest",
    ),
    Feature(
        "a module wrapped again",
        "feature",
        "The newer wrapper gossips it; a call of the older one is an error. A wrapper of a part of "
        "it is refused.",
        "test_ddp_surface.py::test_a_module_that_is_wrapped_again_is_gossiped_by_the_newer_wrapper",
    ),
    Feature(
        "several wrapped models",
        "feature",
        "Each has rounds of its own.",
        "test_semantics.py::test_two_wrapped_models_of_a_gan_train_as_the_dense_reference",
    ),
    Feature(
        "several optimizers of one model",
        "feature",
        "Their steps belong to one round: it comes before the first in mode `backward`, after the "
        "last in the others.",
        "test_semantics.py::test_two_optimizers_of_one_model_train_as_the_dense_reference",
    ),
]

TOOLS: Final = [
    Feature(
        "torch.optim.swa_utils.AveragedModel",
        "tool",
        "Over the wrapper or its module; the average is local to the rank.",
        "test_ddp_surface.py::test_an_averaged_model_follows_the_wrapper_or_its_module",
    ),
    Feature(
        "torch.amp.GradScaler",
        "tool",
        "An overflow on one rank skips that rank's step; its round takes place. In preset "
        "`allreduce` every rank skips.",
        "test_semantics.py::test_an_overflow_on_one_rank_skips_its_step_and_no_round",
    ),
    Feature(
        "torch.utils.checkpoint",
        "tool",
        "Both variants; a recomputed forward is no round.",
        "test_transparency.py::test_gradients_after_closed_rounds_are_those_of_the_plain_model",
    ),
    Feature(
        "clip_grad_norm_, LR schedulers, DistributedSampler, channels_last",
        "tool",
        "As on a plain model: gradients are local.",
        "test_tools.py::test_clipping_schedules_samplers_and_channels_last_train_as_on_plain_replicas",
    ),
    Feature(
        "ZeroRedundancyOptimizer",
        "tool",
        "Refused at its first step where parameters are gossiped, for it overwrites them by those "
        "of other ranks. Works in preset `allreduce`.",
        "test_tools.py::test_an_optimizer_that_makes_replicas_equal_by_itself_is_refused_under_gossip",
    ),
    Feature(
        "evaluation and saving on rank 0 alone",
        "tool",
        "No call of the others is needed after a step; they wait in their next round.",
        "test_tools.py::test_rank_0_evaluates_and_saves_alone",
    ),
    Feature(
        "torch.nn.SyncBatchNorm",
        "tool",
        "torch's own: it needs torch's process group and a GPU; without a process group it is "
        "batch norm. For common statistics on a CPU: `GossipConfig(buffers=)`.",
        "test_tools.py::test_synced_batch_norm_without_torchs_process_group_is_batch_norm",
    ),
    Feature(
        "torch.compile",
        "tool",
        "Inside or outside the wrapper, with every mode.",
        "test_compiled.py::test_compiling_inside_or_outside_the_wrapper_trains_alike",
    ),
    Feature(
        "torch.compile of a whole model",
        "tool",
        "Where exchanges begin inside the backward (preset `allreduce`, mode `fused`) it leaves "
        "nothing to hide them behind: a warning says so once, and to compile block by block. Not "
        "noticed in mode `fused` if the wrapper itself is compiled.",
        "test_whole_graph.py::test_a_model_compiled_as_a_whole_is_warned_of_once",
    ),
    Feature(
        "a killed rank",
        "feature",
        "Every other rank ends with an error that names it, inside `join` too.",
        "test_uneven_processes.py::test_each_survivor_names_the_killed_rank",
    ),
    Feature(
        "gossip_state_dict, load_gossip_state_dict",
        "feature",
        "What exact resume needs beside parameters and optimizer; torch's wrapper has none.",
        "test_resume.py::test_resumed_training_equals_one_that_never_stopped_bit_for_bit",
    ),
]

FEATURES: Final = [*ARGUMENTS, *METHODS, *ATTRIBUTES, *GENERAL, *TOOLS]
