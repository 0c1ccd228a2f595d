"""Drop-in for ``torch.nn.parallel.DistributedDataParallel``."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.join import Join, Joinable
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from crossover_comm.collectives import broadcast_within
from crossover_comm.comm_bucket import CommHook
from crossover_comm.comm_hook import register_comm_hook, require_hook
from crossover_comm.config import GossipConfig, resolve
from crossover_comm.context import Context, joined_context, own_context
from crossover_comm.ddp_arguments import (
    ABSENT,
    buffers_of,
    gossip_for,
    ignore,
    ignored_names,
    require_delay,
    require_supported,
    warn_of_broadcast_buffers,
    warn_of_check_reduction,
    without,
)
from crossover_comm.ddp_surface import PrivateSurface
from crossover_comm.errors import InvalidArgument
from crossover_comm.hooks import RoundHooks, attach
from crossover_comm.inputs import input_device, moved
from crossover_comm.members import among, context_among
from crossover_comm.resume import lone_state, require_lone_state
from crossover_comm.segments import trainable_parameters
from crossover_comm.shards import refuse_shards
from crossover_comm.uneven import ShadowHook, UnevenInputs, join_group
from crossover_comm.whole_graph import WholeGraph

__all__ = ["DistributedDataParallel"]


class DistributedDataParallel(PrivateSurface, nn.Module, Joinable):
    """Trains a replica on each rank and gossips parameters; otherwise used as torch's DDP.

    Gradients stay local. Parameters move between ranks in rounds as ``GossipConfig.overlap`` says,
    by default ``"backward"``. With one rank nothing is registered: the wrapper only passes on.
    docs/ddp-compatibility.md has every argument, method and feature of torch's DDP and its meaning.

    Wrapping is a collective call: every rank wraps the same models in the same order. ``init()`` is
    called first if it was not. A module that is wrapped again is gossiped by the newer wrapper.

    A copy (``copy.deepcopy``, pickle) is at rest: it holds the same values, evaluates, and does not
    gossip. In training mode its first recorded forward wraps it again, a collective call.

    Args:
        module: The replica, on the CPU or on one GPU.
        device_ids: None, or the module's GPU in a list of one: inputs are then moved there.
        output_device: None, or the module's GPU.
        dim: Any value works: a replica has one device, so that inputs are not split.
        broadcast_buffers: Whether buffers too are broadcast from rank 0 here, and in preset
            ``"allreduce"`` before the first forward after each average; True by default. Under
            gossip they are local afterwards unless ``GossipConfig.buffers`` says otherwise.
        init_sync: Whether parameters and buffers are broadcast from rank 0 here.
        process_group: A group of torch.distributed that this rank is in: everything is then among
            its ranks, who alone make this call. None: all ranks.
        bucket_cap_mb: MiB that a segment has at most; None: as `gossip` says.
        find_unused_parameters: Any value works: a parameter is exchanged whether used or not.
        check_reduction: Without a meaning, as in torch.
        gradient_as_bucket_view: Any value works: gradients are not copied into buckets.
        static_graph: Any value works.
        delay_all_reduce_named_params: With `param_to_hook_all_reduce`; parameter gossip knows no
            all-reduce to delay. With groups, only with ``overlap="none"``.
        device_mesh: In place of `process_group` a mesh of one dimension, ``mesh["replicate"]`` say.
        batched_grad_copy: Any value works: gradients are not copied into buckets.
        forward_sync_buffers: As `broadcast_buffers`, but buffers are always broadcast here.
        gossip: A preset's name or a :class:`GossipConfig`; ``"crossover"`` by default.
        context: The rank's context if it is not the process's own; `init_sync` is False then.

    The remaining arguments of torch's DDP are refused unless they have torch's default; the message
    says what to use.

    Raises:
        InvalidArgument: For an argument that is not supported, a parameter that cannot be
            exchanged, or if the ranks differ.
    """

    def __init__(
        self,
        module: nn.Module,
        device_ids: Any = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool | None = None,
        init_sync: bool = True,
        process_group: object = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
        delay_all_reduce_named_params: object = None,
        param_to_hook_all_reduce: object = None,
        mixed_precision: object = None,
        device_mesh: DeviceMesh | None = None,
        skip_all_reduce_unused_params: bool = False,
        bucket_cap_mb_list: object = None,
        batched_grad_copy: bool = False,
        forward_sync_buffers: bool | None = None,
        *,
        gossip: str | GossipConfig | None = None,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        Joinable.__init__(self)
        require_supported(
            bucket_cap_mb_list=bucket_cap_mb_list,
            skip_all_reduce_unused_params=skip_all_reduce_unused_params,
            mixed_precision=mixed_precision,
        )
        warn_of_check_reduction(check_reduction)
        warn_of_broadcast_buffers(broadcast_buffers)
        config = buffers_of(resolve(gossip), broadcast_buffers, forward_sync_buffers)
        self._config = gossip_for(config, bucket_cap_mb)
        require_delay(self._config, delay_all_reduce_named_params, param_to_hook_all_reduce)
        if init_sync and context not in (None, joined_context()):
            raise InvalidArgument("init_sync: expected False with a context of the caller's own")
        self.module = module
        self.parameters_to_ignore = ignored_names(module)
        parameters = self._gossiped_parameters()
        refuse_shards(parameters)
        self._input_device = input_device(device_ids, output_device, parameters)
        self.device = next(iter(parameters.values())).device
        self.device_type = self.device.type
        self.is_multi_device_module = False
        self.device_ids = None if self._input_device is None else [self._input_device.index]
        self.output_device = None if self._input_device is None else self._input_device.index
        self.dim = dim
        self.find_unused_parameters = find_unused_parameters
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.batched_grad_copy = batched_grad_copy
        self.static_graph = static_graph
        self.mixed_precision = None
        self.logger = None
        self.require_forward_param_sync = True
        broadcasts = broadcast_buffers is not False if forward_sync_buffers is None else True
        self.forward_sync_buffers = (
            broadcasts if forward_sync_buffers is None else forward_sync_buffers
        )
        self._synced = True
        self._uneven: UnevenInputs | None = None
        self._num_joins = 0
        self._hooks: RoundHooks | None = None
        self._whole_graph: WholeGraph | None = None
        whole = context or own_context()
        self._context: Context | None = among(whole, process_group, device_mesh)
        self._members = None if self._context is whole else self._context.members
        self._process_group = device_mesh.get_group() if device_mesh is not None else process_group
        self.device_mesh = device_mesh
        self._wrap()
        if init_sync:
            self._broadcast(with_buffers=broadcasts)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        if self._is_at_rest and self.training and torch.is_grad_enabled():
            self._wrap()
        if self._synced and torch.is_grad_enabled():
            if self._uneven is not None:
                self._uneven.forward_begins()
            if self._join_config.enable:
                Join.notify_join_context(self)
        hooks = self._hooks
        if hooks is not None:
            hooks.require_not_ended()
        if hooks is not None and hooks.is_told_of_forwards:
            hooks.forward_begins()
        if self._input_device is not None:
            inputs = moved(inputs, self._input_device)
            kwargs = moved(kwargs, self._input_device)
        outputs = self.module(*inputs, **kwargs)
        if hooks is not None and hooks.gradients is not None:
            hooks.gradients.watch(outputs)
        if self._whole_graph is not None and not torch.compiler.is_compiling():
            self._whole_graph.look_at(outputs)
        return outputs

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Forwards inside, and their backwards, accumulate gradients without a round of their own.

        As with torch's DDP the forward must be inside. In mode ``"backward"`` a step still ends
        the round that the first forward has opened.
        """
        before = self.require_backward_grad_sync
        self.require_backward_grad_sync = False
        try:
            yield
        finally:
            self.require_backward_grad_sync = before

    @contextlib.contextmanager
    def join(
        self,
        divide_by_initial_world_size: bool = True,
        enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Iterator[None]:
        """Trains on uneven inputs: a rank whose loop has ended serves its peers until all have.

        Every rank puts its loop inside. A rank without data takes no more steps; its parameters are
        still exchanged and mixed, so that every peer finds its partner. In preset ``"allreduce"``
        it contributes gradients of zero, and its parameters are at last those of a rank that has
        taken all steps. There is no collective call per step; the store is asked once per round by
        ranks without data alone. For several models at once: torch's
        ``torch.distributed.algorithms.Join``.

        Args:
            divide_by_initial_world_size: False: averages of gradients are over the ranks that have
                data. No meaning where parameters are gossiped.
            enable: False: nothing happens; the inputs are known to be even.
            throw_on_early_termination: All ranks raise RuntimeError when one has run out of data,
                after as many rounds, so that training can go on.

        Raises:
            InvalidArgument: Groups gossip, or another model is inside its `join`.
        """
        if self._hooks is None or not enable:
            yield
            return
        self._num_joins += 1
        self._uneven = UnevenInputs(
            self._hooks,
            self._num_joins,
            throws=throw_on_early_termination,
            divides_by_size=divide_by_initial_world_size,
        )
        try:
            with self._uneven:
                yield
        finally:
            self._uneven = None

    def join_hook(self, **kwargs: Any) -> ShadowHook:
        """For ``torch.distributed.algorithms.Join``, which all-reduces a word per forward."""
        return ShadowHook(self._hooks, kwargs.get("divide_by_initial_world_size", True))

    @property
    def join_device(self) -> torch.device:
        """Where torch's ``Join`` keeps its word."""
        return self.device

    @property
    def join_process_group(self) -> Any:
        """The process group given, else torch.distributed's default one."""
        return self._process_group if self._process_group is not None else join_group()

    def gossip_state_dict(self) -> dict[str, Any]:
        """Where gossip stands: with parameters, buffers and the optimizer's state all that a
        training needs to go on bit for bit as if it had never stopped.

        Closes the open round; taken after a step it changes nothing that follows. Each rank saves
        its own, beside its own model: replicas differ.

        Returns:
            Numbers, strings, tensors, and dicts and lists of these; tensors are shared with
            training. Keys and shapes depend on model and configuration alone, so that
            torch.distributed.checkpoint can load into it.
        """
        return lone_state() if self._hooks is None else self._hooks.state_dict()

    def load_gossip_state_dict(
        self, state: Mapping[str, Any], optimizer: Optimizer | None = None
    ) -> None:
        """Takes up what :meth:`gossip_state_dict` gave on this rank. A collective call.

        Load parameters, buffers and the optimizer's state before it. A round that is open is
        dropped.

        Args:
            state: As it was returned; it is copied.
            optimizer: Needed with ``momentum="exchanged"`` alone: the one that steps the model.

        Raises:
            InvalidArgument: The state is of another rank, number of ranks, model or configuration,
                which it names, or the ranks load states of unlike rounds.
        """
        if self._hooks is None:
            require_lone_state(state)
        else:
            self._hooks.load_state_dict(state, optimizer)

    @property
    def require_backward_grad_sync(self) -> bool:
        """Whether the next forward and its backward count for a round; ``no_sync`` clears it."""
        return self._synced

    @require_backward_grad_sync.setter
    def require_backward_grad_sync(self, synced: bool) -> None:
        self._synced = synced
        if self._hooks is not None:
            self._hooks.synced = synced

    @property
    def broadcast_buffers(self) -> bool:
        """The same as `forward_sync_buffers`, under torch's older name."""
        return self.forward_sync_buffers

    @broadcast_buffers.setter
    def broadcast_buffers(self, value: bool) -> None:
        self.forward_sync_buffers = value

    def will_sync_module_buffers(self) -> bool:
        """Whether buffers are exchanged after the start."""
        return self._hooks is not None and self._hooks.buffers is not None

    def register_comm_hook(self, state: Any, hook: CommHook) -> None:
        """Lets a hook exchange gradients, or choose what gossip sends. A collective call; once.

        In preset ``"allreduce"`` as in torch: ``hook(state, bucket)`` is called for each segment
        when its gradients are there, communicates itself, and returns a future of the tensor that
        is to replace ``bucket.buffer()``; nothing is divided by the number of ranks. Unlike torch,
        a parameter that has a gradient on no rank keeps None.

        Under gossip ``bucket.buffer()`` holds a copy of parameters, and what the hook returns, a
        tensor or a future of one, is sent in their place: a round makes
        ``x_i + sum_j w_ij (s_j - s_i)`` with ``s = hook(x)``, so that the mean is kept.

        With one rank the hook is not called. A copy of the wrapper has none.

        Args:
            state: The hook's first argument.
            hook: Gets it and a bucket with torch's ``buffer``, ``set_buffer``, ``index``,
                ``is_last``, ``parameters``, ``gradients`` (the parts of the buffer), and
                ``peers``, the ranks that this one exchanges the segment with.

        Raises:
            TypeError: It cannot be called.
            InvalidArgument: There is a hook already, the ranks register unlike ones, or the
                configuration has groups, shards or a push-sum topology.
        """
        require_hook(hook)
        if self._hooks is not None:
            register_comm_hook(self._hooks, state, hook)

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT:
            raise AttributeError(f"DistributedDataParallel has no '{name}': {ABSENT[name]}")
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_hooks": None,
            "_whole_graph": None,
            "_context": None,
            "_process_group": None,
            "device_mesh": None,
            "_is_at_rest": True,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> DistributedDataParallel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        twin._context = self._context
        return twin

    def _wrap(self) -> None:
        """Gossips the module from now on. A collective call."""
        ignore(self.module, self.parameters_to_ignore)
        if self._context is None:
            whole = own_context()
            part = self._members
            self._context = whole if part is None else context_among(whole, part)
        parameters = self._gossiped_parameters()
        self._hooks = attach(
            self._context, self.module, parameters, self._config, "backward", is_wrapper=True
        )
        if self._hooks is not None and self._config.overlap == "fused":
            self._whole_graph = WholeGraph(self._hooks.gossip.segments)
        self._is_at_rest = False
        self.require_backward_grad_sync = self._synced

    def _gossiped_parameters(self) -> dict[str, nn.Parameter]:
        names = without(self.parameters_to_ignore, self.module.named_parameters())
        return trainable_parameters(
            self.module, only=names.values() if self.parameters_to_ignore else None
        )

    def _broadcast(self, *, with_buffers: bool) -> None:
        tensors: list[tuple[str, torch.Tensor]] = [*self.module.named_parameters()]
        if with_buffers:
            tensors += self.module.named_buffers()
        assert self._context is not None
        broadcast_within(self._context, without(self.parameters_to_ignore, tensors))
