"""A plain loop with the orders, seeds and rates of the training loop, and steps written by hand."""

from __future__ import annotations

import torch
from torch.nn import functional

from paperkit.training import learning_rate_factor
from paperkit.training.randomness import Randomness

BATCH, EPOCHS, SEED = 8, 3, 5


def by_hand(model, optimizer, step_of, split, *, seed=SEED, epochs=EPOCHS) -> None:
    """Train a model with given steps."""
    randomness = Randomness(seed, torch.device("cpu"))
    rates = [group["lr"] for group in optimizer.param_groups]
    steps = -(-len(split) // BATCH)
    model.train()
    with randomness.restored():
        for epoch in range(epochs):
            generator = randomness.generator("order", epoch)
            order = torch.randperm(len(split), generator=generator, device="cpu")
            for k, rows in enumerate(order.split(BATCH)):
                step = epoch * steps + k
                factor = learning_rate_factor(
                    step, warmup_steps=round(0.5 * steps), total_steps=epochs * steps
                )
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                randomness.seed_global("layers", step)
                step_of(optimizer, model, split.inputs[rows], split.targets[rows])
    optimizer.zero_grad()


def plain_step(optimizer, model, inputs, targets) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()


def closure_step(optimizer, model, inputs, targets) -> None:
    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
