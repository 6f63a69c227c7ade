"""Short trainings on noise, of equal length: what engines are timed with."""

import torch

from paperkit import models
from paperkit.data import Split
from paperkit.experiments import RunContext, Study
from paperkit.training import train

RUNS = {"smoke": 4, "laptop": 30}
EPOCHS = {"smoke": 1, "laptop": 4}
IMAGES, BATCH = 512, 64


def grid(profile):
    return [{"epochs": EPOCHS[profile], "seed": seed} for seed in range(RUNS.get(profile, 0))]


def run(configuration, context: RunContext):
    generator = torch.Generator(device="cpu").manual_seed(configuration["seed"])
    inputs = torch.randn(IMAGES, 1, 28, 28, generator=generator, device="cpu")
    targets = torch.randint(10, (IMAGES,), generator=generator, device="cpu")
    result = train(
        models.build("resnet8", in_channels=1, num_classes=10, seed=configuration["seed"]),
        Split(inputs, targets),
        epochs=configuration["epochs"],
        batch_size=BATCH,
        checkpoint=context.checkpoint,
        progress=False,
    )
    return {"loss": result.history[-1]["loss"], "steps": result.steps}


STUDY = Study("throughput_training", "How long do many trainings take?", grid, run, trained=True)
