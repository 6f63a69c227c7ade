"""Short trainings on noise, of equal length: what engines are timed with."""

import torch

from paperkit import models
from paperkit.data import Split
from paperkit.experiments import RunContext, Study
from paperkit.training import train

RUNS = {"smoke": 4, "laptop": 30}
EPOCHS = {"smoke": 1, "laptop": 4}
IMAGES = {"smoke": 64, "laptop": 512}
BATCH = 64


def grid(profile):
    if profile not in RUNS:
        return []
    shared = {"images": IMAGES[profile], "epochs": EPOCHS[profile]}
    return [{**shared, "seed": seed} for seed in range(RUNS[profile])]


def run(configuration, context: RunContext):
    generator = torch.Generator(device="cpu").manual_seed(configuration["seed"])
    images = configuration["images"]
    inputs = torch.randn(images, 1, 28, 28, generator=generator, device="cpu")
    targets = torch.randint(10, (images,), generator=generator, device="cpu")
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
