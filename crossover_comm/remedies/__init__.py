"""What may be done beside the exchange of parameters: push-sum, and remedies for accuracy."""

from crossover_comm.remedies.choice import remedies_for
from crossover_comm.remedies.remedy import Remedy

__all__ = ["Remedy", "remedies_for"]
