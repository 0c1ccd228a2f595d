"""torch.distributed's backend "crossover": its collectives over this library's engine.

    import crossover_comm

    torch.distributed.init_process_group(backend="crossover")

``docs/process_group.md`` tells what it does and what it refuses.
"""

from crossover_comm.process_group.group import CrossoverProcessGroup
from crossover_comm.process_group.meeting import ProcessGroupOptions, register

__all__ = ["CrossoverProcessGroup", "ProcessGroupOptions", "register"]
