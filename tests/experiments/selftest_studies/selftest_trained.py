"""A study that trains by the library's loop, with a checkpoint after each epoch."""

import torch
from torch import nn

from paperkit.data import Split
from paperkit.experiments import RunContext, Study
from paperkit.training import train

EPOCHS = 3


def grid(profile):
    return [{"lr": lr, "schedule": None, "seed": 0} for lr in (0.1, 0.2)]


def run(configuration, context: RunContext):
    inputs = torch.eye(4, device=context.device)
    model = nn.Linear(4, 2)
    result = train(
        model,
        Split(inputs, torch.arange(4, device=context.device) % 2),
        epochs=EPOCHS,
        batch_size=2,
        lr=configuration["lr"],
        checkpoint=context.checkpoint,
        progress=False,
    )
    return {"loss": result.history[-1]["loss"], "of_layers": {"only": 1.0}, "curve": [1.0, 2.0]}


STUDY = Study("selftest_trained", "Does it learn?", grid, run, trained=True)
