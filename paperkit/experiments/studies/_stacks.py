r"""Small networks as plain functions, and the compression paper's quantities by brute force.

Nothing here uses the library's linearization: every Jacobian is that of a function of one sample,
written out by automatic differentiation, so that it can stand beside the library's own value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev, vmap

from paperkit.models.activations import activation_module

Parameters = dict[str, Tensor]
Stage = Callable[[Tensor, Parameters], Tensor]

SMALLEST_INPUT = 1e-3
ACTIVATIONS = ("tanh", "gelu", "relu")


@dataclass(frozen=True)
class Stack:
    """A network as a sequence of functions of one sample, with its inputs.

    Attributes
    ----------
    stages : tuple of callable
        Functions of a sample and of the parameters, each of which has one weight.
    weights : tuple of str
        Names of the stages' weights.
    parameters : dict of str to Tensor
        All parameters.
    inputs : Tensor
        Shape (n, …).
    """

    stages: tuple[Stage, ...]
    weights: tuple[str, ...]
    parameters: Parameters
    inputs: Tensor

    def output(self, x: Tensor, parameters: Parameters, first: int = 0) -> Tensor:
        """Apply the stages from the given one on to one sample."""
        for stage in self.stages[first:]:
            x = stage(x, parameters)
        return x.flatten()

    def outputs(self) -> Tensor:
        """Return f, shape (n, C)."""
        return vmap(lambda x: self.output(x, self.parameters))(self.inputs)

    def stage_inputs(self) -> list[Tensor]:
        """Return the input of each stage, shape (n, …)."""
        hidden = [self.inputs]
        for stage in self.stages[:-1]:
            hidden.append(vmap(lambda x, s=stage: s(x, self.parameters))(hidden[-1]))
        return hidden

    def input_jacobians(self) -> list[Tensor]:
        """Return the Jacobian in the input of each stage, shape (n, C, d)."""
        return [
            vmap(jacrev(lambda x, k=k: self.output(x, self.parameters, k)))(x).flatten(2)
            for k, x in enumerate(self.stage_inputs())
        ]

    def gradients(self) -> Parameters:
        """Return ∂f/∂θ of each parameter, shape (n, C, entries)."""
        rows = vmap(jacrev(lambda p, x: self.output(x, p)), in_dims=(None, 0))
        return {k: v.flatten(2) for k, v in rows(self.parameters, self.inputs).items()}

    def weight_norms(self) -> Tensor:
        """Return ‖∂f/∂W_l‖_F, shape (layers, n)."""
        gradients = self.gradients()
        return torch.stack([frobenius(gradients[name]) for name in self.weights])

    def sharpness(self) -> float:
        """Return the mean squared gradient over all parameters, S at interpolation."""
        return float(self.gradient_squares().mean())

    def gradient_squares(self) -> Tensor:
        """Return the squared gradient over all parameters, shape (n,)."""
        squares = [frobenius(gradient).square() for gradient in self.gradients().values()]
        return torch.stack(squares).sum(dim=0)

    def input_norms(self) -> Tensor:
        """Return ‖x_l‖, shape (layers, n)."""
        return torch.stack([x.flatten(1).norm(dim=1) for x in self.stage_inputs()])

    def spectral_norms(self) -> Tensor:
        """Return ‖W_l‖₂ of the weights as matrices, shape (layers,)."""
        return torch.stack([spectral(self.parameters[w].flatten(1)) for w in self.weights])

    def loss_hessian(self, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the Hessian of the samples' mean loss in all parameters, written out."""
        names = list(self.parameters)
        shapes = [self.parameters[name].shape for name in names]
        sizes = [shape.numel() for shape in shapes]

        def value(flat: Tensor) -> Tensor:
            parts = zip(names, shapes, flat.split(sizes), strict=True)
            parameters = {name: part.reshape(shape) for name, shape, part in parts}
            outputs = vmap(lambda x: self.output(x, parameters))(self.inputs)
            return vmap(loss)(outputs, targets).mean()

        return hessian(value)(self.flat_parameters())

    def flat_parameters(self) -> Tensor:
        """Return all parameters in a row."""
        return torch.cat([value.flatten() for value in self.parameters.values()])


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ½‖f − y‖² of one sample."""
    return 0.5 * (outputs - targets).square().sum()


def frobenius(matrices: Tensor) -> Tensor:
    """Return the Frobenius norms of (n, …)."""
    return matrices.flatten(1).norm(dim=1)


def spectral(matrices: Tensor) -> Tensor:
    """Return the largest singular values of (…, C, d), through the smaller Gram matrix."""
    gram = matrices @ matrices.mT if matrices.shape[-2] <= matrices.shape[-1] else None
    gram = matrices.mT @ matrices if gram is None else gram
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0.0).sqrt()


def volumes(jacobians: Tensor) -> Tensor:
    """Return the root of the summed squares of all C × C minors, after Cauchy and Binet, (n,)."""
    n, c, d = jacobians.shape
    if d < c:
        return jacobians.new_zeros(n)
    minors = [
        torch.linalg.det(jacobians[:, :, list(columns)])
        for columns in itertools.combinations(range(d), c)
    ]
    return torch.stack(minors).square().sum(dim=0).sqrt()


def relative_slack(left: Tensor | float, right: Tensor | float) -> float:
    """Return the least (right − left)/right; 0 where both sides are zero."""
    left, right = _double(left), _double(right)
    slack = (right - left) / right
    return float(torch.where((left == 0) & (right == 0), 0.0, slack).min())


def relative_error(left: Tensor | float, right: Tensor | float) -> float:
    """Return the largest |left − right| relative to the largest magnitude of either."""
    left, right = _double(left), _double(right)
    scale = float(torch.maximum(left.abs().max(), right.abs().max()))
    return float((left - right).abs().max()) / scale if scale > 0 else 0.0


def _double(value: Tensor | float) -> Tensor:
    # A plain number would become a tensor in single precision.
    return torch.as_tensor(value, dtype=torch.float64)


def share(value: float, scale: float) -> float:
    """Return |value| over a scale; 0 where both are zero, as in a network without active units."""
    return abs(value) / scale if scale > 0 else abs(value)


def whole_number(low: int, high: int, generator: torch.Generator) -> int:
    """Draw a whole number between two, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator, device="cpu"))


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def generator_of(seed: int) -> torch.Generator:
    """Return a generator of its own for a seed."""
    return torch.Generator(device="cpu").manual_seed(seed)


def dense_stage(index: int, activation: str | None) -> Stage:
    """Return x ↦ φ(W x + b) with the parameters of that index; the bias may be missing."""
    module: nn.Module = nn.Identity() if activation is None else activation_module(activation)

    def stage(x: Tensor, parameters: Parameters) -> Tensor:
        z = parameters[f"w{index}"] @ x
        bias = parameters.get(f"b{index}")
        return module(z if bias is None else z + bias)

    return stage


def dense_stack(
    widths: Sequence[int],
    activation: str,
    inputs: Tensor,
    generator: torch.Generator,
    *,
    bias: bool | None = None,
    gain: float = 1.0,
) -> Stack:
    """Draw a fully connected network with these widths; each bias is there by chance."""
    parameters: Parameters = {}
    pairs = list(itertools.pairwise(widths))
    for k, (one, two) in enumerate(pairs):
        parameters[f"w{k}"] = gain * normal(two, one, generator=generator) / math.sqrt(one)
        if bias or (bias is None and whole_number(0, 1, generator)):
            parameters[f"b{k}"] = 0.3 * normal(two, generator=generator)
    last = len(pairs) - 1
    stages = tuple(dense_stage(k, None if k == last else activation) for k in range(len(pairs)))
    return Stack(stages, tuple(f"w{k}" for k in range(len(pairs))), parameters, inputs)


def random_stack(
    activation: str, outputs: int, generator: torch.Generator, *, bias: bool | None = None
) -> Stack:
    """Draw a network: depth, widths, weights and input lengths vary over two orders of magnitude.

    It has fewer outputs than inputs, as the paper says. Its hidden layers may be narrower. Draws
    with a layer that reads zeros are put back, because the bounds divide by its input's norm.
    """
    while True:
        stack = _any_stack(activation, outputs, generator, bias)
        if float(stack.input_norms().min()) > SMALLEST_INPUT:
            return stack


def _any_stack(
    activation: str, outputs: int, generator: torch.Generator, bias: bool | None
) -> Stack:
    hidden = [whole_number(1, 6, generator) for _ in range(whole_number(1, 3, generator))]
    widths = [outputs + whole_number(1, 3, generator), *hidden, outputs]
    n = whole_number(1, 5, generator)
    lengths = 10.0 ** (2.0 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 1.0)
    inputs = lengths * normal(n, widths[0], generator=generator)
    gain = 2.0 ** whole_number(-1, 1, generator)
    return dense_stack(widths, activation, inputs, generator, bias=bias, gain=gain)


def module_of(stack: Stack, activation: str) -> nn.Sequential:
    """Return a fully connected stack as a module, for the library."""
    modules: list[nn.Module] = []
    for k, name in enumerate(stack.weights):
        weight, bias = stack.parameters[name], stack.parameters.get(f"b{k}")
        layer = nn.Linear(
            weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype
        )
        layer.weight.data = weight.clone()
        if bias is not None:
            layer.bias.data = bias.clone()
        modules += [layer, activation_module(activation)]
    return nn.Sequential(*modules[:-1])


def grid_of(
    facts: Sequence[str],
    profile: str,
    seeds: dict[str, int],
    draws: dict[str, int],
    **entries: Sequence[Any],
) -> list[dict[str, Any]]:
    """List the configurations: each fact with all combinations of entries, and seeds.

    The smoke profile has the first value of each entry.
    """
    chosen = {k: v[:1] if profile == "smoke" else v for k, v in entries.items()}
    return [
        {
            "fact": fact,
            **dict(zip(chosen, values, strict=True)),
            "draws": draws[profile],
            "seed": seed,
        }
        for fact in facts
        for values in itertools.product(*chosen.values())
        for seed in range(seeds[profile])
    ]


def worst(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Join the metrics of several draws: least slacks, largest errors and violations.

    Raises
    ------
    ValueError
        If a metric is not finite, because neither order would show it.
    """
    for metrics in found:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"the metric {name} is {value}, which decides nothing.")
    return {
        name: (min if name.endswith("slack") else max)(metrics[name] for metrics in found)
        for name in found[0]
    }
