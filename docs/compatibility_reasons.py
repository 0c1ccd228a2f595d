"""Why some of torch's tests of its wrapper say nothing about ours."""

from __future__ import annotations

from typing import Final

__all__ = ["EQUAL_REPLICAS", "INTERNALS", "INTERNAL_SUITES", "NO_CONTROL"]

NO_CONTROL: Final = {
    "failed": "CUDA or torch alone: does not pass with torch's wrapper on a CPU",
    "skipped": "torch skips it",
}

_BUCKETS = "the reducer's buckets"
_LOGGER = "the reducer's logger (`_get_ddp_logging_data` and its kin)"
_UNUSED = "the reducer's errors about unused parameters, changed graphs or a second use"
_BUFFER_HOOK = "hooks on the reducer's buffers (`_register_buffer_comm_hook`)"
_PRIVATE = "private methods of the wrapper"
_PROFILER = "the profiler's record of the reducer's all-reduce"

INTERNALS: Final = {
    "test_compute_bucket_assignment_by_size_sparse_error_without_logger": _BUCKETS,
    "test_ddp_control_flow_different_across_ranks": _UNUSED,
    "test_ddp_control_flow_same_across_ranks": _UNUSED,
    "test_ddp_build_debug_param_to_name_mapping": _PRIVATE,
    "test_ddp_build_debug_param_to_name_mapping_requires_grad": _PRIVATE,
    "test_ddp_remove_autograd_hooks": _PRIVATE,
    "test_ddp_sink_noclone": _PRIVATE,
    "test_ddp_sync_module_states": _PRIVATE,
    "test_ddp_broadcast_buffer_via_hook": _BUFFER_HOOK,
    "test_ddp_buffer_hook_allreduce": _BUFFER_HOOK,
    "test_ddp_buffer_hook_allreduce_return_future": _BUFFER_HOOK,
    "test_ddp_comm_hook_logging": _LOGGER,
    "test_ddp_invalid_comm_hook_return_type": _LOGGER,
    "test_ddp_logging_data_cpu": _LOGGER,
    "test_ddp_python_error_logged": _LOGGER,
    "test_static_graph_api_cpu": _LOGGER,
    "test_verify_model_across_rank_with_logger": _LOGGER,
    "test_detect_ddp_is_actually_static": _LOGGER,
    "test_ddp_multiple_nested_unused_params_err_ignore_params": _UNUSED,
    "test_ddp_multiple_nested_unused_params_error": _UNUSED,
    "test_ddp_unused_params_rebuild_buckets_exception": _UNUSED,
    "test_different_graph_across_ranks": _LOGGER,
    "test_invalid_static_graph": _UNUSED,
    "test_ddp_checkpointing_twice_use_reentrant_True": _UNUSED,
    "test_ddp_checkpointing_unused_params_use_reentrant_True": _UNUSED,
    "test_ddp_profiling_torch_profiler": _PROFILER,
}
"""Tests that read or expect an internal of torch's wrapper, and which."""

INTERNAL_SUITES: Final = {
    "test_c10d_pypg": "collectives that the reducer calls on a ProcessGroup written in Python",
}
"""Modules of such tests."""

EQUAL_REPLICAS: Final = frozenset(
    {
        "test_DistributedDataParallelCPU",
        "test_DistributedDataParallelCPU_grad_is_view",
        "test_DistributedDataParallel_with_amp_and_grad_is_view",
        "test_accumulate_gradients_no_sync",
        "test_accumulate_gradients_no_sync_allreduce_hook",
        "test_accumulate_gradients_no_sync_allreduce_with_then_hook",
        "test_accumulate_gradients_no_sync_grad_is_view",
        "test_ddp_broadcast_buffer",
        "test_ddp_comm_hook_future_passing_cpu",
        "test_ddp_comm_hook_future_passing_gpu_gloo",
        "test_ddp_comm_hook_sparse_gradients",
        "test_ddp_grad_div_uneven_inputs",
        "test_ddp_hook_parity_allreduce",
        "test_ddp_hook_parity_allreduce_process_group",
        "test_ddp_hook_parity_post_localSGD",
        "test_ddp_hook_parity_powerSGD",
        "test_ddp_ignore_params_arg",
        "test_ddp_join_model_equivalence",
        "test_ddp_uneven_input_join_disable",
        "test_grads_same_across_ranks_with_no_sync",
        "test_dataclass_output",
        "test_dataclass_output_unused_param",
        "test_ddp_checkpointing_dynamic_module",
        "test_ddp_checkpointing_dynamic_weight_sharing",
        "test_ddp_checkpointing_once_use_reentrant_False",
        "test_ddp_checkpointing_once_use_reentrant_True",
        "test_ddp_checkpointing_twice_static_graph_use_reentrant_False",
        "test_ddp_checkpointing_twice_static_graph_use_reentrant_True",
        "test_ddp_checkpointing_twice_use_reentrant_False",
        "test_ddp_checkpointing_twice_weight_sharing",
        "test_ddp_checkpointing_unused_params_use_reentrant_False",
        "test_ddp_checkpointing_weight_sharing_use_reentrant_False",
        "test_ddp_checkpointing_weight_sharing_use_reentrant_True",
        "test_find_unused_parameters_when_unused_parameters_empty",
        "test_global_local_unused_params_grad",
        "test_global_local_unused_params_grad_with_grad_is_view",
        "test_global_local_unused_params_grad_with_static_graph",
        "test_gloo_backend_1gpu_module_device_ids_integer_list",
        "test_gloo_backend_1gpu_module_device_ids_torch_device_list",
        "test_gloo_backend_cpu_module",
        "test_gloo_backend_cpu_module_grad_is_view",
        "test_sparse_gradients",
        "test_sparse_gradients_grad_is_view",
    }
)
"""Tests that compare replicas or gradients of several ranks, or with a model of all data."""
