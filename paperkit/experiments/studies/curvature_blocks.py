"""Is a layer's Hessian block its Gauss–Newton block? Dense float64 autograd answers.

Small networks on real 8 × 8 digits, those the proposition covers and those it does not. Every
matrix is written out by automatic differentiation; the library's decision, read off the recorded
operations, is compared with what the matrices say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperkit.curvature import dense_gauss_newton, dense_hessian
from paperkit.data import load
from paperkit.experiments.grids import grid_of
from paperkit.experiments.study import RunContext, Study
from paperkit.linearize import linearize
from paperkit.models.small import CLASSES, DIGIT_NETWORKS, build_digit_network
from paperkit.network import SamplesInteractError

SAMPLES = 20

# A relative difference below this is round-off: it separates 1e-15 from 1e-2.
ROUND_OFF = 1e-10

# The library refuses a network whose samples interact as a whole, also its last layer.
INTERACTION = "the samples interact"


# Every layer of these is covered by the proposition; at least one layer of the others is not.
COVERED = (
    "ReLU MLP",
    "leaky ReLU LeNet",
    "residual, frozen batch norm",
    "one weight in parallel",
)
NOT_COVERED = tuple(name for name in DIGIT_NETWORKS if name not in COVERED)


def digits_batch(n: int, seed: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return n normalised digit images in float64, and their labels."""
    train = load("digits", train_size=n, seed=seed, device=device, dtype=torch.float64).train
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


def compare_blocks(
    name: str, seed: int, n: int = SAMPLES, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return what the dense matrices of one network say, and what the library decided.

    Parameters
    ----------
    name : str
        The network's name, in :data:`paperkit.models.small.DIGIT_NETWORKS`.
    seed : int
        Draws the weights and the digits.
    n : int
        The number of images.
    device : torch.device or str
        The device of the network and the images.

    Returns
    -------
    dict
        Metrics of the study's record; see the claims that use them.
    """
    model = build_digit_network(name, seed).to(device)
    inputs, targets = digits_batch(n, seed, device)
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
            if (bound := n * (CLASSES - 1)) < len(hessian):  # no smaller block can exceed it
                sizes = eigenvalues.abs()
                slack.append(bound - int((sizes > ROUND_OFF * sizes.max()).sum()))
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
            "negative_part": max(negative),
        }
    if slack:
        metrics["rank_slack"] = min(slack)
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


def _run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    network, seed, n = (configuration[name] for name in ("network", "seed", "n"))
    return compare_blocks(network, seed, n, context.device)


STUDY = Study(
    name="curvature_blocks",
    question="In which networks is a layer's Hessian block its Gauss–Newton block?",
    grid=grid_of("curvature_blocks"),
    run=_run,
)
