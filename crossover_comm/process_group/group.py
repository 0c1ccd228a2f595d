"""The process group: torch.distributed's collectives as programs of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch._C._distributed_c10d import (
    AllreduceOptions,
    BroadcastOptions,
    GatherOptions,
    ReduceOptions,
    ReduceScatterOptions,
    ScatterOptions,
)

from crossover_comm import _C
from crossover_comm.errors import InvalidArgument
from crossover_comm.process_group.engine_group import EngineGroup, Tensors
from crossover_comm.process_group.memory import Loan, common_dtype
from crossover_comm.process_group.work import CollectiveWork

__all__ = ["CrossoverProcessGroup"]

_MAX_TAG = 2**32


class CrossoverProcessGroup(EngineGroup):
    """torch.distributed's process group of backend "crossover", made by init_process_group.

    Every method returns a work object at once. Until it is complete the engine reads and writes the
    tensors' memory. All members call the same collectives in the same order, from one thread at a
    time. Shapes, lists and options are those of torch.distributed's functions.

    Raises (each method, or the work's ``wait``):
        InvalidArgument: Tensors or options that the call cannot have, here or not as on the others.
        DeviceError: A tensor that is not on the CPU.
        TransportError: A member has died, left or failed; the message names it and the first cause.
        ProgressTimeout: A member did not take part within the timeout.

    The first failure of a group ends it: every later call raises it again.
    """

    # --- reductions

    def allreduce(self, tensors: Tensors, opts: Any = None) -> CollectiveWork:
        """Every tensor becomes its reduction over all ranks, the same bits on each."""
        call, opts = "all_reduce", opts or AllreduceOptions()
        programs, loans = [], []
        for tensor in tensors:
            loan = Loan(call, tensor, is_written=True)
            place = self.place(call, tensor.dtype, op=opts.reduceOp)
            programs.append(_C.all_reduce_program(place, loan.range))
            loans.append(loan)
        return self.start(programs, loans, opts, tensors)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> CollectiveWork:
        """As :meth:`allreduce`."""
        return self.allreduce(tensors, opts)

    def reduce(self, tensors: Tensors, opts: Any = None) -> CollectiveWork:
        """The root's tensor becomes the reduction over all ranks; the others' stay."""
        call, opts = "reduce", opts or ReduceOptions()
        tensor = _only(call, tensors)
        place = self.place(call, tensor.dtype, op=opts.reduceOp, root=opts.rootRank)
        loan = Loan(call, tensor, is_written=self.member.rank == opts.rootRank)
        return self.start([_C.reduce_program(place, loan.range)], [loan], opts, [tensor])

    def reduce_scatter(
        self,
        outputs: Tensors,
        input_lists: Sequence[Tensors],
        opts: Any = None,
    ) -> CollectiveWork:
        """The output becomes the reduction of all ranks' inputs for this one."""
        output, inputs = _only("reduce_scatter", outputs), input_lists[0]
        return self._reduce_scatter([(output, inputs)], opts)

    def reduce_scatter_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> CollectiveWork:
        """As :meth:`reduce_scatter`, of equal parts of one input tensor."""
        return self.reduce_scatter_single_coalesced([output], [input], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> CollectiveWork:
        """Several at once."""
        pairs = zip(outputs, inputs, strict=True)
        split = [(output, self.parts("reduce_scatter", input)) for output, input in pairs]
        return self._reduce_scatter(split, opts)

    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _reduce_scatter(
        self, pairs: Sequence[tuple[torch.Tensor, Tensors]], opts: Any
    ) -> CollectiveWork:
        call, opts = "reduce_scatter", opts or ReduceScatterOptions()
        programs, loans = [], []
        for output, inputs in pairs:
            self.require_sizes(call, inputs, [output.numel()] * self.member.size)
            place = self.place(call, common_dtype(call, [output, *inputs]), op=opts.reduceOp)
            sources = [Loan(call, tensor) for tensor in inputs]
            target = Loan(call, output, is_read=False, is_written=True)
            _copy(sources[self.member.rank].tensor, target.tensor)
            ranges = [source.range for source in sources]
            programs.append(_C.reduce_scatter_program(place, ranges, target.range))
            loans += [target, *sources]
        return self.start(programs, loans, opts, [output for output, _ in pairs])

    # --- copies

    def broadcast(self, tensors: Tensors, opts: Any = None) -> CollectiveWork:
        """Every rank's tensor becomes the root's."""
        call, opts = "broadcast", opts or BroadcastOptions()
        tensor = _only(call, tensors)
        loan = Loan(call, tensor, is_written=self.member.rank != opts.rootRank)
        place = self.place(call, tensor.dtype, root=opts.rootRank)
        return self.start([_C.broadcast_program(place, loan.range)], [loan], opts, [tensor])

    def allgather(
        self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> CollectiveWork:
        """outputs[r] becomes the input of rank r."""
        return self._all_gather(list(zip(output_lists, inputs, strict=True)), opts)

    def all_gather_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> CollectiveWork:
        """As :meth:`allgather`, into equal parts of one output tensor."""
        return self.all_gather_single_coalesced([output], [input], opts)

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> CollectiveWork:
        """Several at once."""
        parts = [self.parts("all_gather", output) for output in outputs]
        return self._all_gather(list(zip(parts, inputs, strict=True)), opts)

    def allgather_coalesced(
        self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> CollectiveWork:
        """output_lists[r][i] becomes the i-th input of rank r."""
        by_input = [[of_rank[i] for of_rank in output_lists] for i in range(len(inputs))]
        return self._all_gather(list(zip(by_input, inputs, strict=True)), opts)

    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def _all_gather(
        self, pairs: Sequence[tuple[Tensors, torch.Tensor]], opts: Any
    ) -> CollectiveWork:
        call = "all_gather"
        programs, loans = [], []
        rank = self.member.rank
        for outputs, input in pairs:
            self.require_sizes(call, outputs, [None] * self.member.size)
            if outputs[rank].numel() != input.numel():
                raise InvalidArgument(
                    f"{call}: output {rank} has {outputs[rank].numel()} elements, this rank's "
                    f"input {input.numel()}"
                )
            place = self.place(call, common_dtype(call, [input, *outputs]))
            source = Loan(call, input)
            targets = self.targets(call, outputs)
            _copy(source.tensor, targets[rank].tensor)
            sends = [(peer, *source.range) for peer in self.others()]
            receives = [(peer, *targets[peer].range) for peer in self.others()]
            programs.append(_C.exchange_program(call, place, 0, sends, receives))
            loans += [source, *targets]
        return self.start(programs, loans, opts, [out for outputs, _ in pairs for out in outputs])

    def gather(
        self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> CollectiveWork:
        """At the root outputs[r] becomes the input of rank r."""
        call, opts, input = "gather", opts or GatherOptions(), _only("gather", inputs)
        source, targets, sends, receives = Loan(call, input), [], [], []
        outputs: Tensors = []
        if self.member.rank == opts.rootRank:
            outputs = output_lists[0]
            self.require_sizes(call, outputs, [input.numel()] * self.member.size)
            targets = self.targets(call, outputs)
            _copy(source.tensor, targets[opts.rootRank].tensor)
            receives = [(peer, *targets[peer].range) for peer in self.others()]
        else:
            sends = [(opts.rootRank, *source.range)]
        place = self.place(call, common_dtype(call, [input, *outputs]), root=opts.rootRank)
        program = _C.exchange_program(call, place, input.numel(), sends, receives)
        return self.start([program], [source, *targets], opts, list(outputs))

    def scatter(
        self, outputs: Tensors, input_lists: Sequence[Tensors], opts: Any = None
    ) -> CollectiveWork:
        """Every rank's output becomes the root's inputs[rank]."""
        call, opts, output = "scatter", opts or ScatterOptions(), _only("scatter", outputs)
        target = Loan(call, output, is_read=False, is_written=True)
        sources, sends, receives = [], [], []
        inputs: Tensors = []
        if self.member.rank == opts.rootRank:
            inputs = input_lists[0]
            self.require_sizes(call, inputs, [output.numel()] * self.member.size)
            sources = [Loan(call, tensor) for tensor in inputs]
            _copy(sources[opts.rootRank].tensor, target.tensor)
            sends = [(peer, *sources[peer].range) for peer in self.others()]
        else:
            receives = [(opts.rootRank, *target.range)]
        place = self.place(call, common_dtype(call, [output, *inputs]), root=opts.rootRank)
        program = _C.exchange_program(call, place, output.numel(), sends, receives)
        return self.start([program], [target, *sources], opts, [output])

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> CollectiveWork:
        """outputs[r] becomes what rank r holds in inputs[rank]; sizes may differ."""
        call, rank = "all_to_all", self.member.rank
        for tensors in (outputs, inputs):
            self.require_sizes(call, tensors, [None] * self.member.size)
        if outputs[rank].numel() != inputs[rank].numel():
            raise InvalidArgument(
                f"{call}: for this rank itself, {rank}, the output has {outputs[rank].numel()} "
                f"elements, the input {inputs[rank].numel()}"
            )
        place = self.place(call, common_dtype(call, [*outputs, *inputs]))
        sources, targets = [Loan(call, tensor) for tensor in inputs], self.targets(call, outputs)
        _copy(sources[rank].tensor, targets[rank].tensor)
        sends = [(peer, *sources[peer].range) for peer in self.others()]
        receives = [(peer, *targets[peer].range) for peer in self.others()]
        program = _C.exchange_program(call, place, 0, sends, receives)
        return self.start([program], [*sources, *targets], opts, list(outputs))

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_splits: Sequence[int] | None,
        input_splits: Sequence[int] | None,
        opts: Any = None,
    ) -> CollectiveWork:
        """As :meth:`alltoall`, of parts along the first dimension; no splits: equal ones."""
        outputs = self.parts("all_to_all", output, output_splits)
        return self.alltoall(outputs, self.parts("all_to_all", input, input_splits), opts)

    alltoall_base = all_to_all_single

    # --- messages and barriers

    def send(self, tensors: Tensors, destination: int, tag: int) -> CollectiveWork:
        """Complete when the tensor may be written again."""
        return self._point_to_point("send", tensors, destination, tag)

    def recv(self, tensors: Tensors, source: int, tag: int) -> CollectiveWork:
        """The tensor becomes that of the source's send with this tag."""
        return self._point_to_point("recv", tensors, source, tag)

    def recv_anysource(self, tensors: Tensors, tag: int) -> NoReturn:
        """Not supported: a message moves when both ends have named each other."""
        raise NotImplementedError(
            "recv: backend 'crossover' receives from a named rank only, pass src="
        )

    def _point_to_point(self, call: str, tensors: Tensors, peer: int, tag: int) -> CollectiveWork:
        tensor = _only(call, tensors)
        if not 0 <= peer < self.member.size or peer == self.member.rank:
            raise InvalidArgument(
                f"{call}: expected another rank of this group of {self.member.size}, got {peer}"
            )
        if not 0 <= tag < _MAX_TAG:
            raise InvalidArgument(f"{call}: expected a tag of 0 .. 2^32 - 1, got {tag}")
        sends = call == "send"
        loan = Loan(call, tensor, is_read=sends, is_written=not sends)
        messages = [(peer, *loan.range)]
        program = _C.point_to_point_program(
            self.place(call, tensor.dtype),
            tag,
            messages if sends else [],
            [] if sends else messages,
        )
        return self.start([program], [loan], None, [tensor])

    def barrier(self, opts: Any = None) -> CollectiveWork:
        """Complete when all ranks have called it."""
        place = _C.CallPlace(self.member.rank, self.member.size, 0, "other", "none")
        messages = [(peer, 0, 0) for peer in self.others()]
        program = _C.exchange_program("barrier", place, 0, messages, messages)
        return self.start([program], [], opts, [])

    def monitored_barrier(self, *args: object, **kwargs: object) -> NoReturn:
        """Not supported: a barrier's own timeout names who is missing."""
        raise NotImplementedError(
            "monitored_barrier: backend 'crossover' has barrier(), whose error names the ranks "
            "that are missing"
        )


def _only(call: str, tensors: Tensors) -> torch.Tensor:
    if len(tensors) != 1:
        raise InvalidArgument(f"{call}: expected one tensor, got {len(tensors)}")
    return tensors[0]


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Unless they are the same memory."""
    if source.data_ptr() != target.data_ptr():
        target.view(-1).copy_(source.view(-1))
