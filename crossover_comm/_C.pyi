"""The C++ extension: schedules, plans, pipes and the engine. No logic lives in the binding."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

Row: TypeAlias = list[tuple[int, float]]
"""(peer, weight) for each peer that a rank receives from, in mixing order."""

class Schedule:
    """Pure function of (round, segment): who exchanges with whom."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def stochasticity(self) -> str:
        """Which sums of W are 1: "doubly", "row" or "column"."""
    def program(
        self, round: int, segment: int, numel: int, rank: int
    ) -> list[tuple[list[tuple[int, int, int]], list[tuple[int, int, int, float]]]]:
        """What `rank` does for a segment of `numel` elements: phases of sends (peer, begin, end)
        and receives (peer, begin, end, weight). A receive from `rank` itself has no message: it
        adds weight * (x - Q(x))."""

class PeerSchedule(Schedule):
    """Programs of one phase over whole segments: W is the rows."""

    def rows(self, round: int, segment: int) -> list[Row]:
        """All rows of the mixing matrix without its diagonal, one per rank."""

def crossover_schedule(size: int, seed: int, segmentwise: bool, fair: bool) -> PeerSchedule: ...
def crossover_sequential_schedule(size: int, seed: int, num_segments: int) -> PeerSchedule: ...
def shift_schedule(size: int, seed: int) -> PeerSchedule: ...
def exponential_schedule(size: int) -> PeerSchedule: ...
def exponential_xor_schedule(size: int) -> PeerSchedule: ...
def base2_schedule(size: int) -> PeerSchedule: ...
def mixed_radix_schedule(size: int, radices: Sequence[int]) -> Schedule: ...
def group_crossover_schedule(size: int, group_size: int, seed: int) -> Schedule: ...
def ring_schedule(size: int) -> PeerSchedule: ...
def complete_schedule(size: int) -> PeerSchedule: ...
def all_reduce_schedule(size: int) -> Schedule: ...
def table_schedule(
    tables: Sequence[Sequence[Row]], stochasticity: str, rotate_by_segment: bool
) -> PeerSchedule: ...
def repeated_schedule(inner: Schedule, rounds_per_step: int) -> Schedule: ...
def exact_average_schedule(inner: Schedule, every: int, first: int) -> Schedule: ...
def among_members_schedule(inner: Schedule, members: Sequence[int], size: int) -> Schedule:
    """`inner` among some ranks of a job: rank members[i] takes the part of rank i, the others are
    idle."""

def group_average_schedule(groups: Sequence[Sequence[int]], through_root: bool) -> Schedule:
    """Every group's exact average, equal bit for bit on its members. `through_root`: the first
    member of a group carries all of it, else each an equal slice."""

def group_broadcast_schedule(groups: Sequence[Sequence[int]]) -> Schedule:
    """The members' tensors become those of their group's first."""

def hierarchical_schedule(
    inner: Schedule,
    groups: Sequence[Sequence[int]],
    shards: Sequence[Sequence[tuple[int, int]]],
) -> Schedule:
    """`inner` among groups with equal members, who stay equal. `shards`: per segment, per member
    index, the elements (begin, end) that this member of each group exchanges."""

class LevelledSchedule(Schedule):
    """Rounds run one of several levels, level 0 until another is chosen."""

    def choose(self, level: int, first_round: int) -> None:
        """Rounds from `first_round` on, none of them drawn yet, run `level`."""

def levelled_schedule(levels: Sequence[tuple[Schedule, str]]) -> LevelledSchedule:
    """Of a schedule and the widest type on the wire each, as SegmentPlan names it."""

class SegmentPlan:
    """The cut of one model. `segments`: (name, dtype, numels, tensor names) each."""

    def __init__(
        self,
        segments: Sequence[tuple[str, str, Sequence[int], Sequence[str]]],
        wire: str,
        issue_order: Sequence[int],
    ) -> None: ...
    @property
    def num_segments(self) -> int: ...
    @property
    def num_tensors(self) -> int: ...
    @property
    def wire_bytes(self) -> int:
        """Bytes of one model on the wire."""

class Pipe:
    """A stream of bytes to one peer; handed to an Engine, which then owns it."""

    def describe(self) -> str: ...

def tcp_pipe(fd: int, label: str) -> Pipe:
    """Takes over the connected socket `fd`."""

def create_shared_memory_channel() -> tuple[int, int, int]:
    """New descriptors (memory, wake_0, wake_1); the caller owns them."""

def shared_memory_pipe(
    memory_fd: int, wake_0_fd: int, wake_1_fd: int, side: int, process_fd: int, label: str
) -> Pipe:
    """Takes over the descriptors. `process_fd` is a pidfd of the peer."""

class LocalNetwork:
    """Ranks as threads of one process, with faults: for tests and demonstrations."""

    def __init__(
        self,
        size: int,
        ring_bytes: int = ...,
        seed: int = ...,
        delay_probability: float = ...,
        max_fill_bytes: int = ...,
    ) -> None: ...
    def take_pipes(self, rank: int) -> list[Pipe | None]: ...
    def kill(self, rank: int) -> None: ...
    def freeze(self, rank: int, frozen: bool) -> None: ...
    def inject(self, source: int, destination: int, data: bytes) -> None: ...

class Device:
    """Where the tensors of a plan live; made by crossover_comm._cuda."""

class TransportLayer:
    """Handed to an Engine, which then owns it; made by crossover_comm._cuda."""

FIRST_CHOSEN_PLAN: int
"""Ids of plans that not every rank adds start here."""

class Call:
    """A collective on its way, as Engine.start_call returns it."""

    @property
    def id(self) -> int: ...

class CallPlace:
    """This rank's place in a collective, its elements and how they are reduced ("none": not)."""

    def __init__(self, rank: int, size: int, root: int, element: str, op: str) -> None: ...

class CallProgram:
    """What this rank does in one collective; handed to an Engine, which then owns it. Memory is
    (address, number of bytes), a message (peer, address, number of bytes)."""

    def describe(self) -> str: ...

def all_reduce_program(place: CallPlace, data: tuple[int, int]) -> CallProgram: ...
def reduce_program(place: CallPlace, data: tuple[int, int]) -> CallProgram: ...
def reduce_scatter_program(
    place: CallPlace, inputs: Sequence[tuple[int, int]], output: tuple[int, int]
) -> CallProgram:
    """`output` holds this rank's own input already."""

def broadcast_program(place: CallPlace, data: tuple[int, int]) -> CallProgram: ...
def exchange_program(
    kind: str,
    place: CallPlace,
    numel: int,
    sends: Sequence[tuple[int, int, int]],
    receives: Sequence[tuple[int, int, int]],
) -> CallProgram:
    """At most one message to and one from each peer. `numel` is compared between ranks."""

def point_to_point_program(
    place: CallPlace,
    tag: int,
    sends: Sequence[tuple[int, int, int]],
    receives: Sequence[tuple[int, int, int]],
) -> CallProgram:
    """One message in one direction, matched by `tag` and the order of calls."""

class Engine:
    """The progress thread and all plans of this process.

    Blocking calls release the GIL, notice signals, and pass warnings of long waits to `warn`.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        pipes: Sequence[Pipe | None],
        timeout_s: float,
        stall_timeout_s: float,
        stall_warning_s: float,
        raise_on_non_finite: bool,
        event_capacity: int,
        incarnation: int,
        warn: Callable[[str], None],
    ) -> None:
        """Takes the pipes and starts the progress thread."""
    def add_transport_layer(self, layer: TransportLayer) -> None:
        """Moves messages by the layer from now on; before the first plan."""
    def add_plan(
        self,
        plan: SegmentPlan,
        schedule: Schedule,
        first_round: int,
        device: Device | None = None,
        raise_on_non_finite: bool | None = None,
        id: int | None = None,
    ) -> int:
        """`device`: where the tensors live; None: in host memory. `raise_on_non_finite`: for this
        plan alone; None: as the engine was told. `id`: FIRST_CHOSEN_PLAN or more and unused, the
        same on all ranks that exchange; None: the next, for plans that every rank adds."""
    def remove_plan(self, plan: int) -> None:
        """Drops a plan, open or not. When it returns nothing reads its tensors any more."""
    def open_round(self, plan: int, addresses: Sequence[int], stream: int = 0) -> None:
        """Posts every segment; addresses of all tensors in plan order. `stream`: the CUDA stream
        that wrote them last; no meaning on the CPU."""
    def open_segment(
        self, plan: int, segment: int, addresses: Sequence[int], stream: int = 0
    ) -> None:
        """Posts one segment; addresses of its tensors alone."""
    def close_round(self, plan: int, addresses: Sequence[int], stream: int = 0) -> None:
        """Waits for every open segment in issue order and mixes it, on `stream` on a GPU."""
    def wait_segment(
        self, plan: int, segment: int, addresses: Sequence[int], stream: int = 0
    ) -> None:
        """Waits for one segment, if open, and mixes it; addresses of its tensors alone."""
    def round(self, plan: int, segment: int) -> int:
        """The open round of the segment, or the next one."""
    def is_open(self, plan: int) -> bool: ...
    def set_issue_order(self, plan: int, order: Sequence[int]) -> None:
        """The order in which segments are posted and awaited from the next round on."""
    def weights(self, plan: int) -> list[float]:
        """Push-sum's w per segment in model order, as of its last mix; 1.0 without push-sum."""
    def set_weights(self, plan: int, weights: Sequence[float]) -> None:
        """Takes up what weights() gave; no round is open."""
    def differences(self, plan: int) -> list[tuple[float, float]]:
        """Per segment in model order, over what the last round of a levelled schedule has sampled:
        sum of (m_j - m)^2 over what came from each peer, sum of m^2. No round is open."""
    def check_failure(self) -> None:
        """Raises the first failure, if there is one."""
    def start_call(self, program: CallProgram, timeout_s: float) -> Call:
        """The program's memory is the engine's until the call is over."""
    def wait_call(self, call: Call, slice_s: float) -> bool:
        """Waits up to `slice_s`; whether it is complete."""
    def is_over(self, call: Call) -> bool:
        """Complete, or it never will be: its memory is the caller's again."""
    def watch_call(self, call: Call) -> None:
        """wait_watched() tells of it."""
    def wait_watched(self, slice_s: float) -> list[int]:
        """Ids of watched calls that have become complete; waits up to `slice_s` for the first."""
    def fail(self, cause: str) -> None:
        """Records a failure of this rank's own, so that the others learn it."""
    def shutdown(self, timeout_s: float) -> None:
        """Farewell, then the end of the progress thread; bounded, idempotent."""
    def counters(self) -> dict[str, float]:
        """payload_sent_bytes, payload_received_bytes, wire_sent_bytes, wire_received_bytes,
        messages_sent, messages_received, first_contact_s."""
    def events(
        self, first: int
    ) -> tuple[list[tuple[float, str, int, int, int, int, int, int]], int]:
        """Records (time_s, kind, plan, round, segment, phase, peer, bytes) from index `first` on,
        and the index to ask for next."""

def pack(addresses: Sequence[int], numels: Sequence[int], dtype: str, wire: str) -> bytes:
    """Q(x) of host tensors, as a peer would receive it."""

class Nccl:
    """A loaded libnccl; stays in the process."""

    @property
    def path(self) -> str: ...
    @property
    def source(self) -> str:
        """How it was found: "CROSSOVER_NCCL_SO", "in the process already", ..."""
    @property
    def version(self) -> str:
        """For example "2.28.9"."""
    def unique_id(self) -> bytes:
        """A fresh id of 128 bytes; one rank makes it, all ranks of a communicator use it."""

def load_nccl(override_path: str, wheel_path: str) -> Nccl:
    """The NCCL that is to be used; "" for a path that is not there. TransportError says where was
    looked, or why the one found cannot be used."""
