"""A study of many short runs that keep a checkpoint at every step, to be killed at any moment."""

import os
import time
from pathlib import Path

import torch

from paperkit import checkpoint
from paperkit.experiments import RunContext, Study

STEPS = 4


def grid(profile):
    count = {"smoke": 2, "laptop": 12, "paper": 60}[profile]
    return [{"seed": seed} for seed in range(count)]


def run(configuration, context: RunContext):
    state = {"step": 0, "total": 0.0}
    if context.checkpoint.is_file():
        state = checkpoint.load(context.checkpoint)
    # A run that Ray sends to another machine has a store of its own, and nobody reads its log.
    with Path(os.environ.get("SELFTEST_LOG", context.store / "log")).open("a") as log:
        log.write(f"{configuration['seed']}\n")
    generator = torch.Generator(device="cpu").manual_seed(configuration["seed"])
    noise = torch.randn(STEPS, generator=generator, device="cpu").tolist()
    for step in range(state["step"], STEPS):
        time.sleep(0.02)
        state = {"step": step + 1, "total": state["total"] + noise[step]}
        checkpoint.save(state, context.checkpoint)
    return {"total": state["total"]}


STUDY = Study("selftest_many", "Is each run there, once?", grid, run)
