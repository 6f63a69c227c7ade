"""Networks of other people's making, after some steps of training, in evaluation mode."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.problems import Problem
from paperkit.data import load


class Recurrent(nn.Module):
    """An embedding, two layers of LSTM and a linear layer on the last state.

    Parameters
    ----------
    vocabulary, width, classes : int
        Number of tokens, dimension of the embedding and of each state, number of outputs.
    """

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrence = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.output = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (n, length) to outputs (n, classes)."""
        return self.output(self.recurrence(self.embedding(tokens))[0][:, -1])


LEVELS = 17
"""Levels of grey in the digits."""


def _images(digits: Tensor) -> Tensor:
    return functional.interpolate(digits, size=(32, 32), mode="bilinear").repeat(1, 3, 1, 1)


def _tokens(digits: Tensor) -> Tensor:
    """Return the levels of grey of sixteen squares of 2 × 2 pixels, row by row."""
    low, high = digits.min(), digits.max()
    grey = (functional.avg_pool2d(digits, 2) - low) / (high - low)
    return (grey * (LEVELS - 1)).round().long().flatten(1)


def _residual_network() -> nn.Module:
    # The device check imports this module too, and may run without torchvision.
    from torchvision.models import resnet18

    return resnet18(num_classes=10)


def _transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=4,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=10,
    )


@dataclass(frozen=True)
class Network:
    """A network with its inputs and the way to its references.

    Attributes
    ----------
    name : str
        Name in tables.
    build : callable
        Function that returns the network with initial weights.
    inputs : callable
        Function from digits (n, 1, 8, 8) to the network's inputs.
    samples : int
        Number n of samples in the measured batch.
    steps, rate : int, float
        Number and size of the steps of stochastic gradient descent, on batches of 64, before
        anything is measured.
    estimates : int
        Number of seeds for each error. The trace takes all of them, the others at most four.
    reference : str
        Way to trace and density: ``"dense"`` writes the Hessian out; ``"exact trace"`` takes the
        Gauss–Newton part for the trace, because the network is piecewise linear in each weight;
        ``"probes"`` adds an estimate of the remainder.
    density : tuple of int
        Settings of the reference density unless it is dense: the number of largest eigenvalues that
        are taken by themselves, at least those that are asked for, and the numbers of probes and of
        steps for the others.
    helped : callable
        Context in which PyTorch has second derivatives of the network. The other tools are called
        in it; this library and the unit are not.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Tensor], Tensor]
    samples: int
    steps: int
    rate: float
    estimates: int
    reference: str
    density: tuple[int, int, int] = (0, 0, 0)
    helped: Callable[[], AbstractContextManager] = contextlib.nullcontext


NETWORKS = (
    Network(
        name="ResNet-18 (torchvision)",
        build=_residual_network,
        inputs=_images,
        samples=8,
        steps=60,
        rate=0.01,
        estimates=3,
        reference="exact trace",
        density=(5, 3, 24),
    ),
    Network(
        name="vision transformer (torchvision)",
        build=_transformer,
        inputs=_images,
        samples=8,
        steps=300,
        rate=0.03,
        estimates=10,
        reference="probes",
        density=(20, 8, 150),
        helped=lambda: sdpa_kernel(SDPBackend.MATH),
    ),
    Network(
        name="LSTM",
        build=lambda: Recurrent(LEVELS, width=16, classes=10),
        inputs=_tokens,
        samples=32,
        steps=1000,
        rate=0.1,
        estimates=10,
        reference="dense",
        helped=lambda: torch.backends.mkldnn.flags(enabled=False),
    ),
)
BY_NAME = {network.name: network for network in NETWORKS}
FEWER_ESTIMATES = 4
"""Largest number of seeds for quantities other than the trace."""


def estimates(network: Network, quantity: str) -> int:
    """Return the number of seeds for an error."""
    return network.estimates if quantity == "trace" else min(network.estimates, FEWER_ESTIMATES)


def trained(network: Network, device: str) -> Problem:
    """Return the network after its steps, in evaluation mode, with the batch that is measured."""
    digits = load("digits", device=device).train
    inputs, targets = network.inputs(digits.inputs), digits.targets
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network.build().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=network.rate, momentum=0.9)
    order = torch.Generator(device="cpu").manual_seed(0)
    for _ in range(network.steps):
        batch = torch.randint(0, len(inputs), (64,), generator=order, device="cpu").to(device)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    model.zero_grad()
    n = network.samples
    return Problem(model.eval(), inputs[:n].clone(), targets[:n].clone())


def saved(network: Network, folder: Path, device: str) -> Problem:
    """Return the problem that :func:`trained` returned in the process that saved it."""
    model = network.build().to(device)
    state = torch.load(folder / "problem.pt", map_location=device)
    model.load_state_dict(state["state"])
    return Problem(model.eval(), state["inputs"], state["targets"])


def in_double_precision(problem: Problem) -> Problem:
    """Return a copy in float64; tokens stay integers."""
    inputs = problem.inputs.double() if problem.inputs.is_floating_point() else problem.inputs
    return Problem(copy.deepcopy(problem.model).double(), inputs, problem.targets)
