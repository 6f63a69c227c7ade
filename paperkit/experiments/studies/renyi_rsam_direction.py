r"""What a step of RSAM does to its own regularizer, while small networks train on real images.

A network is trained by one method. Every few steps the training stands still, a batch is drawn, and
each rule takes the step that it would take there, from the same weights with the same momentum. The
difference from the step of plain stochastic gradient descent is what the rule *adds*. The
regularizer is :math:`P(\theta) = -\mathrm{sign}(1 - \alpha) R(g)`, with the gradient g of the
batch's loss at θ. A rule's *fall* is P after the plain step less P after the rule's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from paperkit import data, models
from paperkit.bounds.renyi import gradient_power_ratio, gradient_power_ratio_derivative
from paperkit.data import Split
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.experiments.studies._renyi_facts import Configuration, Metrics
from paperkit.experiments.studies.renyi_regularizer import sign_of
from paperkit.optim import RSAM
from paperkit.optim.vector import Vector
from paperkit.training import evaluate, train

MOMENTUM, DECAY = 0.9, 5e-4
PLAIN_EPOCHS = 1
EVERY = 8
"""Number of steps from one probe to the next."""
TAU = 1e-2
"""Distance over which gradients are subtracted, the library's own."""
RULES = ("paper", "exact")
"""Rules whose steps are tried at every probe: equation 11's and the gradient of equation 12."""


class PrintedSign(RSAM):
    """RSAM with the sign that step 5 of Algorithm 2 has in our copy."""

    def perturbation(self, gradient: Vector, weights: Vector, strengths: Any) -> Vector:
        """Return minus the perturbation of equation 11."""
        return super().perturbation(gradient, weights, strengths) * -1.0


METHODS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "RSAM": partial(RSAM, plain_epochs=PLAIN_EPOCHS),
    "RSAM, exact": partial(RSAM, plain_epochs=PLAIN_EPOCHS, mode="exact", tau=TAU),
    "RSAM, printed sign": partial(PrintedSign, plain_epochs=PLAIN_EPOCHS),
}


def optimizer_of(configuration: Configuration, parameters: Any) -> torch.optim.Optimizer:
    """Return the optimizer that trains a configuration's network."""
    method = configuration["trained_by"]
    own = {} if method == "SGD" else {name: configuration[name] for name in ("rho", "alpha")}
    base = {"lr": configuration["lr"], "momentum": MOMENTUM, "weight_decay": DECAY}
    return METHODS[method](parameters, **base, **own)


def build_network(name: str, seed: int) -> nn.Module:
    """Return a small network for images of 28 × 28 pixels, with weights drawn from a seed."""
    if name == "perceptron":
        options: Any = {"in_channels": 1, "num_classes": 10, "input_shape": (1, 28, 28)}
        return models.build("mlp", hidden=(32, 32), seed=seed, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = [nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.ReLU()]
        second = [nn.Conv2d(8, 16, 4, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(784, 10))


class Landscape:
    """The loss of a batch and its gradient, as functions of one vector of parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.shapes = [p.shape for p in model.parameters()]

    def loss(self, theta: Tensor, batch: Split) -> Tensor:
        """Return the mean cross-entropy of a batch at flat parameters."""
        parts = theta.split([shape.numel() for shape in self.shapes])
        named = zip(self.names, parts, self.shapes, strict=True)
        parameters = {name: part.view(shape) for name, part, shape in named}
        return cross_entropy(
            functional_call(self.model, parameters, (batch.inputs,)), batch.targets
        )

    def gradient(self, theta: Tensor, batch: Split) -> Tensor:
        """Return the gradient of that loss."""
        leaf = theta.detach().requires_grad_()
        return torch.autograd.grad(self.loss(leaf, batch), leaf)[0]

    def regularizer(self, theta: Tensor, batch: Split, alpha: float) -> float:
        """Return P, from the batch's gradient."""
        return -sign_of(alpha) * gradient_power_ratio(self.gradient(theta, batch).double(), alpha)


@dataclass(frozen=True)
class State:
    """Where a training run stands: weights, momentum and learning rate."""

    theta: Tensor
    velocity: Tensor
    lr: float

    def plain(self, gradient: Tensor) -> Tensor:
        """Return the weights after a step of stochastic gradient descent."""
        followed = gradient + DECAY * self.theta
        return self.theta - self.lr * (MOMENTUM * self.velocity + followed)


def state_of(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> State:
    """Read a training run's state, between two steps."""
    found = list(parameters)
    buffers = [optimizer.state[p]["momentum_buffer"] for p in found]
    theta, velocity = (
        torch.cat([tensor.detach().flatten() for tensor in tensors]) for tensors in (found, buffers)
    )
    return State(theta, velocity, optimizer.param_groups[0]["lr"])


def radius_of(gradient: Tensor, alpha: float, rho: float) -> float:
    """Return ρ R(g) / ‖g‖, the radius of SAM that RSAM's step has."""
    return rho * gradient_power_ratio(gradient.double(), alpha) / float(gradient.double().norm())


def added_gradient(
    landscape: Landscape, theta: Tensor, batch: Split, rule: str, alpha: float, rho: float
) -> Tensor:
    """Return what a rule adds to the gradient that a step follows."""
    gradient = landscape.gradient(theta, batch)
    if rule == "paper":
        length = -sign_of(alpha) * radius_of(gradient, alpha, rho)
        return landscape.gradient(theta + length * gradient / gradient.norm(), batch) - gradient
    derivative = gradient_power_ratio_derivative(gradient.double(), alpha)
    along = (-sign_of(alpha) * rho * derivative).to(theta)
    length = float(along.norm())
    there = landscape.gradient(theta + TAU / length * along, batch)
    return length / TAU * (there - gradient)


def cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine of the angle between two vectors, 0 if one of them is zero."""
    product = float(one.double().norm() * other.double().norm())
    return float(one.double() @ other.double()) / product if product > 0 else 0.0


def probe(
    landscape: Landscape, state: State, batch: Split, elsewhere: Split, alpha: float, rho: float
) -> dict[str, float]:
    """Let each rule take its step on a batch, and return what it does to the regularizer.

    ``fall_<rule>`` is on the batch of the step, ``elsewhere_<rule>`` on another batch. ``rise`` is
    how far the loss is higher at θ + ε than at θ, with the sign of equation 11, and
    ``rise_printed`` with the other one. ``cosine`` is that of what the two rules add.
    """
    gradient = landscape.gradient(state.theta, batch)
    radius = radius_of(gradient, alpha, rho)
    plain = state.plain(gradient)
    found = {
        "gradient": float(gradient.norm()),
        "ratio": gradient_power_ratio(gradient.double(), alpha),
        "radius": radius,
    }
    added = {}
    for rule in RULES:
        added[rule] = added_gradient(landscape, state.theta, batch, rule, alpha, rho)
        own = plain - state.lr * added[rule]
        for name, judge in (("fall", batch), ("elsewhere", elsewhere)):
            before, after = (landscape.regularizer(w, judge, alpha) for w in (plain, own))
            found[f"{name}_{rule}"] = before - after
    found["cosine"] = cosine(added["paper"], added["exact"])
    with torch.no_grad():
        here = float(landscape.loss(state.theta, batch))
        ascent = -sign_of(alpha) * radius * gradient / gradient.norm()
        for name, epsilon in (("rise", ascent), ("rise_printed", -ascent)):
            found[name] = float(landscape.loss(state.theta + epsilon, batch)) - here
    return found


class Prober:
    """Takes a probe every few steps of a training run, once the plain epochs are over."""

    def __init__(self, model: nn.Module, images: Split, configuration: Configuration) -> None:
        self.model, self.images, self.configuration = model, images, configuration
        self.landscape = Landscape(model)
        self.optimizer: torch.optim.Optimizer | None = None
        self.generator = torch.Generator(device="cpu").manual_seed(1000 + configuration["seed"])
        self.per_epoch = math.ceil(len(images) / configuration["batch_size"])
        self.probes: list[dict[str, float]] = []

    def make(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Make the optimizer, and keep it in sight."""
        self.optimizer = optimizer_of(self.configuration, parameters)
        return self.optimizer

    def batch(self) -> Split:
        """Draw a batch of the training images."""
        size = self.configuration["batch_size"]
        chosen = torch.randperm(len(self.images), generator=self.generator)[:size]
        chosen = chosen.to(self.images.targets.device)
        return Split(self.images.inputs[chosen], self.images.targets[chosen])

    def __call__(self, steps: int) -> None:
        """Take a probe after so many steps, if it is due."""
        last = self.configuration["epochs"] * self.per_epoch
        if steps % EVERY or steps < PLAIN_EPOCHS * self.per_epoch or steps >= last:
            return
        assert self.optimizer is not None  # the training made it before its first step
        state = state_of(self.optimizer, self.model.parameters())
        alpha, rho = self.configuration["alpha"], self.configuration["rho"]
        found = probe(self.landscape, state, self.batch(), self.batch(), alpha, rho)
        self.probes.append({"epoch": steps // self.per_epoch, **found})


def summary(probes: list[dict[str, float]]) -> Metrics:
    """Return means and shares over the probes of a run, and medians of each epoch."""
    epochs = sorted({probe["epoch"] for probe in probes})
    curves = {
        name: [median(p[name] for p in probes if p["epoch"] == epoch) for epoch in epochs]
        for name in ("gradient", "ratio", "radius")
    }
    of = {name: [p[name] for p in probes] for name in probes[0]}
    falls = [f"{where}_{rule}" for where in ("fall", "elsewhere") for rule in RULES]
    return {
        "probes": len(probes),
        "epochs": [int(epoch) for epoch in epochs],
        "curves": curves,
        "mean_fall": {name: fmean(of[name]) for name in falls},
        "mean_fall_of_regularizer": fmean(of["fall_paper"]),
        "mean_fall_exact": fmean(of["fall_exact"]),
        "mean_regularizer": fmean(of["ratio"]),
        "share_lower": {name: fmean(value > 0 for value in of[name]) for name in falls},
        "share_lower_paper": fmean(value > 0 for value in of["fall_paper"]),
        "share_lower_exact": fmean(value > 0 for value in of["fall_exact"]),
        "share_ascends": fmean(value > 0 for value in of["rise"]),
        "share_printed_ascends": fmean(value > 0 for value in of["rise_printed"]),
        "mean_cosine": fmean(of["cosine"]),
        "radius_start": curves["radius"][0],
        "radius_end": curves["radius"][-1],
        "largest_radius": max(of["radius"]),
        "smallest_radius": min(of["radius"]),
    }


def run(configuration: Configuration, context: RunContext) -> Metrics:
    """Train one network by one method, and take the probes on the way."""
    images = data.load(
        configuration["dataset"], train_size=configuration["images"], device=context.device
    )
    model = build_network(configuration["network"], configuration["seed"])
    prober = Prober(model, images.train, configuration)
    train(
        model,
        images.train,
        epochs=configuration["epochs"],
        batch_size=configuration["batch_size"],
        optimizer=cast(Any, prober.make),
        seed=configuration["seed"],
        on_step=prober,
        progress=context.progress,
    )
    on_training, on_test = evaluate(model, images.train), evaluate(model, images.test)
    return {
        **summary(prober.probes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_loss": on_training.loss,
        "train_accuracy": on_training.accuracy,
        "test_loss": on_test.loss,
        "test_accuracy": on_test.accuracy,
    }


STUDY = Study(
    name="renyi_rsam_direction",
    question="Does a step of RSAM lower the regularizer that it stands for, while a network "
    "trains, and how long is it?",
    grid=grid_of("renyi_rsam_direction"),
    run=run,
    trained=True,
    round_off=1e-6,
)
