"""A study that writes a checkpoint at every step; a file in the store makes it fail or hang."""

import json
import os
import time

import torch

from paperkit.experiments import RunContext, Study

STEPS = 4


def grid(profile):
    count = {"smoke": 1, "laptop": 3, "paper": 4}[profile]
    return [{"steps": STEPS, "seed": seed} for seed in range(count)]


def run(configuration, context: RunContext):
    seed = configuration["seed"]
    state = {"step": 0, "total": 0.0}
    if context.checkpoint.is_file():
        state = json.loads(context.checkpoint.read_text())
    with (context.store / "log").open("a") as log:
        log.write(f"training {seed} from step {state['step']}\n")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    noise = torch.randn(configuration["steps"], generator=generator, device="cpu").tolist()
    for step in range(state["step"], configuration["steps"]):
        _disturb(context, seed, step)
        state = {"step": step + 1, "total": state["total"] + noise[step]}
        context.checkpoint.write_text(json.dumps(state))
    return {"total": state["total"], "steps": configuration["steps"], "ordered": True}


def _disturb(context, seed, step):
    order = context.store / "disturb"
    if order.is_file() and (seed, step) == (1, 2):
        if order.read_text() == "raise":
            raise RuntimeError("disturbed")
        (context.store / "hanging").write_text(str(os.getpid()))
        time.sleep(3600)


STUDY = Study("selftest_training", "Is a run resumed?", grid, run, trained=True)
