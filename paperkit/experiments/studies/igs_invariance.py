r"""The information-geometric sharpness itself: its definition and what leaves it unchanged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import combinations, pairwise
from itertools import product as cartesian
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.estimators import (
    fisher_rao_norm,
    information_geometric_sharpness,
    rangamani_sharpness,
    relative_flatness,
)
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._fisher import (
    Problem,
    Written,
    exact_losses,
    linear_layers,
    product,
    pseudo_inverse,
    random_problem,
    relative,
    relative_norm,
    written_out,
)
from paperkit.models.small import build_dense_network
from paperkit.models.symmetries import (
    Reparametrized,
    changed_model,
    flat_parameters,
    radial_map_at,
)

SAME = 1e-10
"""Relative difference of outputs below which two networks count as the same function."""


def _library(problem: Problem, **options: Any) -> float:
    return float(information_geometric_sharpness(problem.model, problem.data, **options))


# ---------------------------------------------------------------------------------------------
# Equations 6 and 7
# ---------------------------------------------------------------------------------------------


def _definition(network: str, samples: int, classes: int, seed: int) -> dict[str, float]:
    """Difference between the library's dual form and the pseudo-inverse of the written-out F.

    Also the slack of the bound by the losses, relative, and the difference from it.
    """
    problem = random_problem(network, samples, classes, seed)
    sharpness = _library(problem)
    bound = math.fsum(math.expm1(loss) for loss in exact_losses(problem))
    return {
        "difference": relative(sharpness, written_out(problem).sharpness()),
        "slack": 1.0 - sharpness / bound,
        "difference_from_losses": relative(sharpness, bound),
    }


def _outside(vectors: Tensor, fisher: Tensor) -> Tensor:
    """Part of each vector's length outside the range of the Fisher matrix."""
    inside = vectors @ pseudo_inverse(fisher) @ fisher
    return (vectors - inside).norm(dim=1) / vectors.norm(dim=1)


def _span(network: str, samples: int, classes: int, seed: int) -> dict[str, float]:
    """Largest part of a gradient outside the range of F, with weight decay, and of other data."""
    problem = random_problem(network, samples, classes, seed)
    written = written_out(problem)
    theta = flat_parameters(problem.model)
    other = random_problem(network, samples, classes, seed + 50)
    elsewhere = written_out(Problem(problem.model, other.inputs, other.targets))
    return {
        "residual": float(_outside(written.gradients, written.fisher).max()),
        "residual_with_decay": float(
            _outside(written.gradients + 0.1 * theta, written.fisher).max()
        ),
        "residual_of_other_data": float(_outside(elsewhere.gradients, written.fisher).max()),
    }


def _minibatches(size: int, replacement: bool, samples: int, seed: int) -> dict[str, float]:
    """Difference between the library's mini-batch form and an average over all batches.

    Also that of the closed form: c IGS + (1 − c) of the mean gradient, c = (n − b)/(b(n − 1)), or
    1/b where a sample may be drawn twice.
    """
    problem = random_problem("tanh_bias", samples, 3, seed)
    written = written_out(problem)
    inverse = written.inverse
    drawn = (
        cartesian(range(samples), repeat=size)
        if replacement
        else combinations(range(samples), size)
    )
    terms = []
    for batch in drawn:
        mean = written.gradients[list(batch)].mean(dim=0)
        terms.append(float(mean @ inverse @ mean))
    enumerated = math.fsum(terms) / len(terms)
    c = 1.0 / size if replacement else (samples - size) / (size * (samples - 1))
    closed = c * written.sharpness() + (1.0 - c) * written.mean_term()
    library = _library(problem, batch_size=size, replacement=replacement)
    return {
        "difference": max(relative(library, enumerated), relative(closed, enumerated)),
        "ratio_to_per_sample": enumerated / written.sharpness(),
    }


# ---------------------------------------------------------------------------------------------
# Coordinates
# ---------------------------------------------------------------------------------------------


def coordinates(name: str, theta: Tensor, seed: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the point in other coordinates, and the map from there to the parameters."""
    if name == "sinh":
        return torch.sinh(theta), torch.asinh
    if name == "linear":
        generator = torch.Generator(device="cpu").manual_seed(4000 + seed)
        noise = torch.randn(
            len(theta), len(theta), generator=generator, dtype=theta.dtype, device="cpu"
        )
        matrix = torch.eye(len(theta), dtype=theta.dtype) + 0.5 * noise / math.sqrt(len(theta))
        return torch.linalg.solve(matrix, theta), lambda eta: matrix @ eta
    radial = radial_map_at(theta, 1.0, 0.5, 0.5, seed)
    return radial.forward(theta), radial.inverse_near(theta)


def _coordinates(name: str, samples: int, seed: int) -> dict[str, float]:
    """Change of the sharpness in other coordinates, of a damped one, and of the inverse's rule.

    The rule is that of a tensor: with Ψ the Jacobian of the parameters in the new coordinates,
    the pseudo-inverse would become Ψ⁻¹F⁺Ψ⁻ᵀ.
    """
    problem = random_problem("tanh_bias", samples, 3, seed)
    theta = flat_parameters(problem.model)
    eta, inverse = coordinates(name, theta, seed)
    changed = Problem(Reparametrized(problem.model, eta, inverse), *problem.data)
    old, new = written_out(problem), written_out(changed)
    psi = torch.autograd.functional.jacobian(inverse, eta)
    tensor = torch.linalg.solve(psi, torch.linalg.solve(psi, old.inverse).T)
    damping = 0.01 * float(torch.linalg.eigvalsh(old.fisher)[-1])
    return {
        "difference": relative(_library(problem), new.sharpness()),
        "damped_difference": relative(_damped(old, damping), _damped(new, damping)),
        "inverse_difference": relative_norm(tensor, new.inverse),
    }


def _damped(written: Written, damping: float) -> float:
    identity = torch.eye(len(written.fisher), dtype=written.fisher.dtype)
    solved = torch.linalg.solve(written.fisher + damping * identity, written.gradients.T)
    return float((written.gradients * solved.T).sum(dim=1).mean())


# ---------------------------------------------------------------------------------------------
# Proposition 3.1
# ---------------------------------------------------------------------------------------------


def _output_change(old: Problem, new: nn.Module) -> float:
    with torch.no_grad():
        before = old.model(old.inputs)
        return float((new(old.inputs) - before).abs().max() / before.abs().max())


def _compare(problem: Problem, model: nn.Module) -> dict[str, float]:
    """Change of the sharpness and its mini-batch form from one network to another."""
    old, new = written_out(problem), written_out(Problem(model, *problem.data))
    return {
        "difference": max(
            relative(old.sharpness(), new.sharpness()), relative(old.mean_term(), new.mean_term())
        ),
        "function_change": _output_change(problem, model),
        "moved": relative_norm(flat_parameters(model), flat_parameters(problem.model)),
    }


def scaled_by_nodes(model: nn.Module, factors: Tensor) -> nn.Module:
    """Multiply what enters each hidden unit, bias included, and divide what leaves it."""
    copied = copy.deepcopy(model)
    first, last = linear_layers(copied)
    with torch.no_grad():
        first.weight.mul_(factors.unsqueeze(1))
        first.bias.mul_(factors)
        last.weight.div_(factors)
    return copied


def _scaling(network: str, scaling: str, samples: int, seed: int) -> dict[str, float]:
    """Change under a scaling of weights and biases, layer by layer or node by node."""
    problem = random_problem(network, samples, 3, seed)
    if scaling == "node by node":
        factors = torch.tensor([3.0, 1.0 / 3.0, 10.0, 0.5], dtype=torch.float64, device="cpu")
        return _compare(problem, scaled_by_nodes(problem.model, factors))
    changed = changed_model(problem.model, "layerwise_with_biases", (4.0, 0.25), seed)
    return _compare(problem, changed)


def symmetric_copy(symmetry: str, model: nn.Module, seed: int) -> nn.Module:
    """Return a copy with other weights and the same function, by a change that is no scaling."""
    copied = copy.deepcopy(model)
    first, last = linear_layers(copied)
    with torch.no_grad():
        if symmetry == "permutation":
            order = torch.tensor([2, 0, 3, 1])
            first.weight.copy_(first.weight[order])
            first.bias.copy_(first.bias[order])
            last.weight.copy_(last.weight[:, order])
        elif symmetry == "signs":
            signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=first.weight.dtype)
            first.weight.mul_(signs.unsqueeze(1))
            first.bias.mul_(signs)
            last.weight.mul_(signs)
        else:  # a linear network: any invertible matrix may stand between its layers
            eye = torch.eye(4, dtype=first.weight.dtype)
            generator = torch.Generator(device="cpu").manual_seed(seed)
            noise = torch.randn(4, 4, generator=generator, dtype=eye.dtype, device="cpu")
            matrix = eye + 0.3 * noise
            first.weight.copy_(matrix @ first.weight)
            first.bias.copy_(matrix @ first.bias)
            last.weight.copy_(torch.linalg.solve(matrix.T, last.weight.T).T)
    return copied


def _symmetry(symmetry: str, samples: int, seed: int) -> dict[str, float]:
    """Change under a symmetry of the network that is no scaling."""
    network = "relu_bias" if symmetry == "permutation" else "tanh_bias"
    problem = random_problem(network, samples, 3, seed)
    if symmetry == "matrix":
        problem = Problem(nn.Sequential(*linear_layers(problem.model)), *problem.data)
    return _compare(problem, symmetric_copy(symmetry, problem.model, seed))


def _moving_scaling(samples: int, seed: int) -> dict[str, float]:
    r"""Change under a nonlinear diffeomorphism: node-wise factors that depend on the parameters.

    The factor of hidden unit k is :math:`\exp(\tfrac12 \tanh(k \|b\|^2))` with b the output bias,
    which the transformation leaves alone.
    """
    problem = random_problem("relu_bias", samples, 3, seed)
    bias = linear_layers(problem.model)[-1].bias.detach()
    factors = torch.exp(0.5 * torch.tanh(bias.square().sum() * torch.arange(1.0, 5.0).to(bias)))
    return _compare(problem, scaled_by_nodes(problem.model, factors))


class Curve(nn.Module):
    r"""A model of one parameter, :math:`f = (x\,\theta^3(1 - \theta) + c,\; 0)`.

    The slope in θ is zero at 0, and is not at 1, where the function is the same.
    """

    def __init__(self, theta: float, offset: float):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([theta], dtype=torch.float64, device="cpu"))
        self.offset = offset

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, 3) to (n, 2); the first input counts."""
        value = inputs[:, 0] * self.theta**3 * (1.0 - self.theta) + self.offset
        return torch.stack([value, torch.zeros_like(value)], dim=1)


def partner(theta: float) -> float:
    """Return the η near 1 at which the curve has the value that it has at a θ near 0."""
    value = theta**3 * (1.0 - theta)
    eta = 1.0
    for _ in range(50):
        eta -= (eta**3 * (1.0 - eta) - value) / (3.0 * eta**2 - 4.0 * eta**3)
    return eta


def _singular(offset: float, samples: int, seed: int) -> dict[str, float]:
    """Change under a transformation whose Jacobian is zero at the point.

    Near 0 the transformation takes θ to its partner near 1. The map is invertible, because it falls
    strictly, differentiable, and keeps the function. The metric is 0 were one of these not so.
    """
    source = random_problem("linear", samples, 2, seed)
    old, new = (Problem(Curve(theta, offset), *source.data) for theta in (0.0, 1.0))
    thetas = [-0.2 + 0.01 * k for k in range(41)]
    images = [partner(theta) for theta in thetas]
    falls = all(after < before for before, after in pairwise(images))
    kept = max(
        abs(t**3 * (1.0 - t) - e**3 * (1.0 - e)) for t, e in zip(thetas, images, strict=True)
    )
    before = 0.0 if float(written_out(old).fisher) == 0.0 else written_out(old).sharpness()
    after = written_out(new).sharpness()
    return {"difference": abs(after - before) if falls and kept < SAME else 0.0}


def _near_singular(offset: float, samples: int, seed: int) -> dict[str, float]:
    """Change under the same transformation where its Jacobian is not zero."""
    source = random_problem("linear", samples, 2, seed)
    theta = 0.1 + 0.02 * seed
    old, new = (Problem(Curve(at, offset), *source.data) for at in (theta, partner(theta)))
    return {"difference": relative(written_out(old).sharpness(), written_out(new).sharpness())}


# ---------------------------------------------------------------------------------------------
# Earlier measures
# ---------------------------------------------------------------------------------------------


def _earlier(scaling: str, samples: int, seed: int) -> dict[str, float]:
    """Relative change of three earlier measures in a bias-free ReLU network of three layers."""
    source = random_problem("linear", samples, 3, seed)
    model = build_dense_network("relu", seed, (3, 5, 4, 3))
    factors = (3.0,) if scaling == "nodewise" else (3.0, 0.5, 2.0 / 3.0)
    changed = changed_model(model, scaling, factors, seed)
    last = list(dict(model.named_modules()))[-1]

    def measures(network: nn.Module) -> dict[str, float]:
        flatness = relative_flatness(network, source.data, layers=[last])
        return {
            "fisher_rao": float(fisher_rao_norm(network, source.data)),
            "rangamani": float(rangamani_sharpness(network, source.data, tolerance=1e-9)),
            "petzka": float(flatness[last]),
        }

    before, after = measures(model), measures(changed)
    changes = {f"{name}_change": relative(before[name], after[name]) for name in before}
    return {**changes, "largest_change": max(changes.values())}


FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "definition": _definition,
    "span": _span,
    "mini-batches": _minibatches,
    "coordinates": _coordinates,
    "scaling": _scaling,
    "other symmetry": _symmetry,
    "moving scaling": _moving_scaling,
    "singular transformation": _singular,
    "the same, regular": _near_singular,
    "earlier measures": _earlier,
}
"""Each statement's computation: from the rest of a configuration to its metrics."""


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by network, samples and change, with its seeds."""
    smoke = profile == "smoke"
    seeds = {"smoke": 1, "laptop": 4, "paper": 10}[profile]
    # Few samples give the full number of rows, many more rows than parameters.
    samples = (5,) if smoke else (5, 40)
    networks = ("tanh_bias",) if smoke else ("linear", "tanh_bias", "relu_bias")
    offsets = (0.5,) if smoke else (0.5, -1.0, 2.0)
    return [
        *product("definition", seeds, network=networks, samples=samples, classes=(2, 3)),
        *product("span", seeds, network=networks[-1:], samples=(5,), classes=(2, 3)),
        *product(
            "mini-batches", seeds, size=(1, 2, 3), replacement=(False, True), samples=samples[:1]
        ),
        *product("coordinates", seeds, name=("sinh", "radial", "linear"), samples=samples),
        *product(
            "scaling",
            seeds,
            network=("relu_bias", "leaky_relu_bias"),
            scaling=("layer by layer", "node by node"),
            samples=samples,
        ),
        *product(
            "other symmetry", seeds, symmetry=("permutation", "signs", "matrix"), samples=samples
        ),
        *product("moving scaling", seeds, samples=samples),
        *product("singular transformation", seeds, offset=offsets, samples=samples),
        *product("the same, regular", seeds, offset=offsets, samples=samples),
        *product("earlier measures", seeds, scaling=("layerwise", "nodewise"), samples=samples),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure by how much one statement holds, or fails, in one network."""
    settings = {name: value for name, value in configuration.items() if name != "fact"}
    return FACTS[configuration["fact"]](**settings)


STUDY = Study(
    name="igs_invariance",
    question="Is the information-geometric sharpness well posed, and what leaves it unchanged?",
    grid=grid,
    run=run,
)
