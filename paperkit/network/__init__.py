"""A model as a function of its parameters: evaluation, data, losses, what a pass takes."""

from paperkit.network.batches import Batches, DataChangedError, batches
from paperkit.network.interaction import RandomModelError, SamplesInteractError
from paperkit.network.losses import LOSSES, Loss, get_loss
from paperkit.network.network import Network
from paperkit.network.samples import Samples

__all__ = [
    "LOSSES",
    "Batches",
    "DataChangedError",
    "Loss",
    "Network",
    "RandomModelError",
    "Samples",
    "SamplesInteractError",
    "batches",
    "get_loss",
]
