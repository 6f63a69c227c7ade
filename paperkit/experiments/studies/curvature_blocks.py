"""Is a layer's Hessian block its Gauss–Newton block? Dense float64 autograd answers.

Small networks on real 8 × 8 digits, those the proposition covers and those it does not. Every
matrix is written out by automatic differentiation; the library's decision, read off the recorded
operations, is compared with what the matrices say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit.curvature import dense_gauss_newton, dense_hessian
from paperkit.data import load
from paperkit.experiments.study import RunContext, Study
from paperkit.linearize import linearize
from paperkit.network import SamplesInteractError

SAMPLES = 20
CLASSES = 10

# A relative difference below this is round-off: it separates 1e-15 from 1e-2.
ROUND_OFF = 1e-10

# The library refuses a network whose samples interact as a whole, also its last layer.
INTERACTION = "the samples interact"


class SmallResidual(nn.Module):
    """A stem, one residual block with batch normalisation, pooling and a linear head."""

    def __init__(self, batch_statistics: bool = False) -> None:
        super().__init__()
        tracked = not batch_statistics
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4, track_running_stats=tracked)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4, track_running_stats=tracked)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, 1, 8, 8) to (n, 10)."""
        hidden = functional.relu(self.norm1(self.stem(inputs)))
        hidden = functional.relu(self.norm2(self.conv(hidden)) + hidden)
        return self.head(functional.adaptive_avg_pool2d(hidden, 2).flatten(1))


class TwoHalves(nn.Module):
    """One weight applied to both halves of the image, in parallel."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(32, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, 1, 8, 8) to (n, 10)."""
        left, right = inputs.flatten(1).chunk(2, dim=1)
        return self.head(functional.relu(self.shared(left)) + functional.relu(self.shared(right)))


class WeightTwice(nn.Module):
    """One weight used twice along the depth."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.cell = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, 1, 8, 8) to (n, 10)."""
        hidden = functional.relu(self.first(inputs.flatten(1)))
        hidden = functional.relu(self.cell(hidden))
        return self.head(functional.relu(self.cell(hidden)))


def _mlp(first: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), first, nn.Linear(8, 8), second, nn.Linear(8, CLASSES)
    )


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


# Every layer of these is covered by the proposition.
COVERED: dict[str, Callable[[], nn.Module]] = {
    "ReLU MLP": lambda: _mlp(nn.ReLU(), nn.ReLU()),
    "leaky ReLU LeNet": _lenet,
    "residual, frozen batch norm": SmallResidual,
    "one weight in parallel": TwoHalves,
}

# At least one layer of these is not.
NOT_COVERED: dict[str, Callable[[], nn.Module]] = {
    "tanh, then ReLU": lambda: _mlp(nn.Tanh(), nn.ReLU()),
    "GELU": lambda: _mlp(nn.GELU(), nn.GELU()),
    "layer normalisation": lambda: _mlp(nn.LayerNorm(8), nn.ReLU()),
    "batch statistics": lambda: SmallResidual(batch_statistics=True),
    "one weight twice in depth": WeightTwice,
}

NETWORKS = COVERED | NOT_COVERED


def build_network(name: str, seed: int) -> nn.Module:
    """Build one of :data:`NETWORKS` in float64, with statistics and scales away from 0 and 1."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    noise = torch.rand(
                        tensor.shape, generator=generator, dtype=tensor.dtype, device="cpu"
                    )
                    tensor.data.copy_(0.5 + noise)
    return model.eval()


def digits_batch(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n normalised digit images in float64, and their labels."""
    train = load("digits", train_size=n, seed=seed, dtype=torch.float64).train
    return train.inputs, train.targets


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Return ‖a − b‖_F / ‖a‖_F."""
    return float((a - b).norm() / a.norm())


def decisions(model: nn.Module, inputs: Tensor) -> dict[str, str | None]:
    """Return the library's obstacle for each layer (None: exact), or that it refuses them all."""
    try:
        layers = linearize(model, inputs).layers
    except SamplesInteractError:
        named = model.named_modules()
        return {
            name: INTERACTION for name, module in named if isinstance(module, nn.Linear | nn.Conv2d)
        }
    return {name: layer.obstacle for name, layer in layers.items()}


def compare_blocks(name: str, seed: int, n: int = SAMPLES) -> dict[str, Any]:
    """Return what the dense matrices of one network say, and what the library decided.

    Parameters
    ----------
    name : str
        One of :data:`NETWORKS`.
    seed : int
        Draws the weights and the digits.
    n : int
        The number of images.

    Returns
    -------
    dict
        Metrics of the study's record; see the claims that use them.
    """
    model = build_network(name, seed)
    inputs, targets = digits_batch(n, seed)
    obstacles = decisions(model, inputs)
    other_targets = (targets + 1) % CLASSES
    differences, labels, slack, negative = {}, [], [], []
    for layer, obstacle in obstacles.items():
        weight = [f"{layer}.weight"]
        hessian = dense_hessian(model, inputs, targets, parameters=weight)
        gauss_newton = dense_gauss_newton(model, inputs, parameters=weight)
        differences[layer] = relative_difference(hessian, gauss_newton)
        if obstacle is None:
            relabelled = dense_hessian(model, inputs, other_targets, parameters=weight)
            labels.append(relative_difference(hessian, relabelled))
            eigenvalues = torch.linalg.eigvalsh(hessian)
            negative.append(float(-eigenvalues[0] / eigenvalues[-1]))
            rank = int((eigenvalues > ROUND_OFF * eigenvalues[-1]).sum())
            slack.append(min(n * (CLASSES - 1), len(hessian)) - rank)
    exact = {layer for layer, obstacle in obstacles.items() if obstacle is None}
    metrics: dict[str, Any] = {
        "difference": differences,
        "obstacle": {layer: obstacle or "" for layer, obstacle in obstacles.items()},
        "largest_difference": max(differences.values()),
        # Positive where every block that the library calls exact is so up to round-off.
        "decision_margin": ROUND_OFF - max((differences[layer] for layer in exact), default=0.0),
        "decision_complete": all(
            differences[layer] > ROUND_OFF
            for layer, obstacle in obstacles.items()
            if obstacle is not None and obstacle != INTERACTION
        ),
        "full_difference": relative_difference(
            dense_hessian(model, inputs, targets), dense_gauss_newton(model, inputs)
        ),
    }
    if exact:
        metrics |= {
            "exact_difference": max(differences[layer] for layer in exact),
            "label_dependence": max(labels),
            "rank_slack": min(slack),
            "negative_part": max(negative),
        }
    if name in COVERED:
        metrics["affine_difference"] = _affine_difference(model, inputs, targets)
    return metrics


def _affine_difference(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Return the largest relative difference over biases and the scales of frozen normalisation."""
    blocks = [name for name, parameter in model.named_parameters() if parameter.ndim == 1]
    return max(
        relative_difference(
            dense_hessian(model, inputs, targets, parameters=[block]),
            dense_gauss_newton(model, inputs, parameters=[block]),
        )
        for block in blocks
    )


def _grid(profile: str) -> list[dict[str, Any]]:
    seeds = range(1) if profile == "smoke" else range(3)
    return [{"network": name, "n": SAMPLES, "seed": seed} for name in NETWORKS for seed in seeds]


def _run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    return compare_blocks(configuration["network"], configuration["seed"], configuration["n"])


STUDY = Study(
    name="curvature_blocks",
    question="In which networks is a layer's Hessian block its Gauss–Newton block?",
    grid=_grid,
    run=_run,
)
