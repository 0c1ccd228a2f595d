"""Data-parallel training by gossip: workers average parameters with a few peers.

    import crossover_comm as cc

    cc.init()
    model = cc.DistributedDataParallel(model)

``docs/design.md`` tells how it works.
"""

from crossover_comm._version import __version__
from crossover_comm.collectives import (
    allreduce,
    allreduce_,
    barrier,
    broadcast_optimizer_state,
    broadcast_parameters,
)
from crossover_comm.config import PRESETS, GossipConfig
from crossover_comm.consensus import averaged, consensus_distance
from crossover_comm.context import (
    counters,
    init,
    is_initialized,
    local_rank,
    local_size,
    rank,
    shutdown,
    size,
)
from crossover_comm.ddp import DistributedDataParallel
from crossover_comm.errors import (
    CrossoverError,
    DeviceError,
    InvalidArgument,
    NonFiniteError,
    ProgressTimeout,
    TransportError,
)
from crossover_comm.graphs import from_networkx
from crossover_comm.hooks import synchronize
from crossover_comm.optimizer import DistributedOptimizer
from crossover_comm.planning import Option, plan
from crossover_comm.process_group import ProcessGroupOptions
from crossover_comm.process_group import register as _register_backend
from crossover_comm.settings import NcclOptions
from crossover_comm.topology import (
    AllReduce,
    Base2,
    Complete,
    Crossover,
    CrossoverSequential,
    Exponential,
    ExponentialXor,
    GroupCrossover,
    MixedRadix,
    Ring,
    Shift,
    Table,
)

__all__ = [
    "PRESETS",
    "AllReduce",
    "Base2",
    "Complete",
    "Crossover",
    "CrossoverError",
    "CrossoverSequential",
    "DeviceError",
    "DistributedDataParallel",
    "DistributedOptimizer",
    "Exponential",
    "ExponentialXor",
    "GossipConfig",
    "GroupCrossover",
    "InvalidArgument",
    "MixedRadix",
    "NcclOptions",
    "NonFiniteError",
    "Option",
    "ProcessGroupOptions",
    "ProgressTimeout",
    "Ring",
    "Shift",
    "Table",
    "TransportError",
    "__version__",
    "allreduce",
    "allreduce_",
    "averaged",
    "barrier",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "consensus_distance",
    "counters",
    "from_networkx",
    "init",
    "is_initialized",
    "local_rank",
    "local_size",
    "plan",
    "rank",
    "shutdown",
    "size",
    "synchronize",
]

_register_backend()
