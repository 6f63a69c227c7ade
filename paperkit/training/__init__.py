"""Training: seeded, deterministic on the CPU, resumable to the bit, for any optimizer.

Every random number of a run comes from a generator seeded by (seed, purpose, epoch or step), never
from a generator that runs on from step to step. The state of a run at the end of an epoch is
therefore its weights, its optimizer, its gradient scaler and a count, and a run continued from a
checkpoint cannot differ from a run that was never stopped.
"""

from paperkit.training.evaluation import Evaluation, evaluate
from paperkit.training.loop import TrainingResult, train
from paperkit.training.progress import BestWeights
from paperkit.training.schedule import learning_rate_factor

__all__ = [
    "BestWeights",
    "Evaluation",
    "TrainingResult",
    "evaluate",
    "learning_rate_factor",
    "train",
]
