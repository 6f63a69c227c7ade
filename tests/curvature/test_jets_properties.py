"""Random compositions of operations: jets give the products of double backward, or refuse.

The sizes coincide as often as they can: with two samples and two vectors a stack has six rows, and
the other axes have two, three or six entries too.
"""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import torch
from hypothesis import assume, given, settings
from torch import Tensor
from torch.nn import functional

from paperkit.curvature.jets import Jet, NoRuleError, ParameterJet

SAMPLES, VECTORS, WIDTH = 2, 2, 6

Parameters = dict[str, Tensor]
Step = Callable[[Tensor, Parameters], Tensor]

SHAPES: dict[str, tuple[int, ...]] = {
    "first": (WIDTH, 3),
    "square": (WIDTH, WIDTH),
    "row": (WIDTH,),
    "two rows": (2, WIDTH),
    "column": (2, 1),
    "number": (),
    "kernel": (2, 2, 1),
    "image kernel": (2, 2, 1, 1),
    "scale of two": (2,),
    "scale of three": (3,),
}


def _constant(*shape: int) -> Tensor:
    return torch.linspace(0.3, 1.7, max(1, torch.Size(shape).numel())).double().reshape(shape)


def _normalised(x: Tensor, scale: Tensor) -> Tensor:
    channels = x.shape[1]
    return functional.batch_norm(x, _constant(channels), _constant(channels) + 1, scale, None)


def _in_place(x: Tensor, change: Callable[[Tensor], object]) -> Tensor:
    """Change a view, or what a view was taken of, and use both."""
    y = x * 1.1
    view = y[:, :1]
    change(view)
    return y * 1.5


def _relu_after_view(x: Tensor) -> Tensor:
    y = x * 1.2
    view = y.flatten(1)
    y.relu_()
    return view + 0.5


def _two_names(x: Tensor) -> Tensor:
    y = z = torch.sin(x)
    y *= 2
    y -= 0.3
    y /= 1.5
    return z + y


def _without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x * 2
    return x * scale


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is not its own."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return -g


STEPS: dict[str, Step] = {
    # Layers and products.
    "linear": lambda x, p: functional.linear(x, p["square"], p["row"]),
    "linear, narrow": lambda x, p: functional.linear(x, p["two rows"]),
    "linear of a constant": lambda x, p: x * functional.linear(_constant(2, WIDTH), p["square"]),
    "convolution": lambda x, p: functional.conv1d(x, p["kernel"], stride=2),
    "convolution, padded": lambda x, p: functional.conv1d(x, p["kernel"], padding=1),
    "image convolution": lambda x, p: functional.conv2d(x, p["image kernel"], stride=2),
    "normalisation": lambda x, p: _normalised(x, p["scale of two"]),
    "normalisation, three": lambda x, p: _normalised(x, p["scale of three"]),
    "normalisation, row": lambda x, p: _normalised(x, p["row"]),
    "linear and normalisation": lambda x, p: _normalised(
        functional.linear(x, p["square"]), p["row"]
    ),
    "times a row": lambda x, p: x * p["row"],
    "plus rows": lambda x, p: x + p["two rows"],
    "plus a column": lambda x, p: torch.add(x, p["column"], alpha=0.7),
    "times a number": lambda x, p: p["number"] * x,
    "plus a constant": lambda x, p: x + _constant(2, WIDTH),
    "minus a constant row": lambda x, p: _constant(WIDTH) - x,
    "over integers": lambda x, p: x / torch.arange(1, x.shape[-1] + 1),
    "over a rounded number": lambda x, p: torch.div(x, 0.3, rounding_mode="floor") + x,
    "minus twice": lambda x, p: torch.sub(x, 0.2, alpha=2),
    "one minus": lambda x, p: 1 - x,
    "with another axis": lambda x, p: x + _constant(3, 2, WIDTH),
    "product with itself": lambda x, p: x * torch.sin(x),
    "product with means": lambda x, p: x * x.mean(-1),
    "product with kept means": lambda x, p: x * x.mean(-1, keepdim=True),
    "division by itself": lambda x, p: x / (x * x + 1),
    # Functions of each entry, with their arguments.
    "gelu": lambda x, p: functional.gelu(x),
    "approximate gelu": lambda x, p: functional.gelu(x, approximate="tanh"),
    "steep softplus": lambda x, p: functional.softplus(x, beta=3, threshold=2),
    "elu": lambda x, p: functional.elu(x, 0.4),
    "leaky": lambda x, p: functional.leaky_relu(x, 0.3, True),
    "clipped": lambda x, p: functional.hardtanh(x, -0.2, 0.3),
    "relu": lambda x, p: torch.relu(x - 0.1),
    "square of a relu": lambda x, p: torch.square(torch.relu(x)),
    # Operations along axes.
    "sum": lambda x, p: x.sum(1),
    "sum of samples": lambda x, p: x.sum(0),
    "kept sum of samples": lambda x, p: x + x.sum(0, keepdim=True),
    "mean of all axes": lambda x, p: x * x.mean(),
    "mean of no axes": lambda x, p: x * x.mean(()),
    "mean of several": lambda x, p: x.mean((0, 1)),
    "mean of the last": lambda x, p: torch.mean(x, -1, keepdim=True),
    "halves": lambda x, p: torch.cat(x.chunk(2, dim=1)[::-1], dim=1),
    "halves of the samples": lambda x, p: torch.cat(x.chunk(2)[::-1]),
    "parts": lambda x, p: torch.cat(x.split([1, x.shape[1] - 1], dim=1)[::-1], 1),
    "parts of the samples": lambda x, p: torch.cat(torch.split(x, 1)[::-1]),
    "doubled": lambda x, p: torch.cat([x, x * x], dim=-1),
    "padded": lambda x, p: functional.pad(x, (1, -1)),
    "padded samples": lambda x, p: functional.pad(x, (0, 0, 1, -1)),
    "padded by reflection": lambda x, p: functional.pad(x, (1, 1), mode="reflect"),
    "pooled by means": lambda x, p: functional.avg_pool1d(x, 2, ceil_mode=True),
    "pooled by maxima": lambda x, p: functional.max_pool1d(x, 2, 1, ceil_mode=True),
    "pooled images": lambda x, p: functional.max_pool2d(x, 2, 1, 1),
    "pooled to one": lambda x, p: functional.adaptive_avg_pool1d(x, 1),
    "resized": lambda x, p: functional.interpolate(x, scale_factor=2, mode="nearest"),
    # Changes of shape.
    "flattened": lambda x, p: x.flatten(1),
    "all flattened": lambda x, p: x.flatten(),
    "first two flattened": lambda x, p: x.flatten(0, 1),
    "viewed": lambda x, p: x.view(x.size(0), -1),
    "viewed by the last": lambda x, p: x.reshape(-1, x.shape[-1]),
    "viewed in threes": lambda x, p: x.reshape(len(x), 3, -1),
    "viewed in twos": lambda x, p: x.reshape(-1, 2, 3),
    "viewed as six": lambda x, p: x.reshape(6, -1),
    "viewed as two": lambda x, p: x.reshape(2, -1),
    "in twos": lambda x, p: x.unflatten(1, (2, -1)),
    "in threes": lambda x, p: x.unflatten(-1, (3, -1)),
    "samples apart": lambda x, p: x.unflatten(0, (2, 1)),
    "transposed": lambda x, p: x.transpose(0, 1),
    "transposed at the end": lambda x, p: x.transpose(-1, -2),
    "permuted": lambda x, p: x.permute(0, 2, 1),
    "all permuted": lambda x, p: x.permute(2, 1, 0),
    "new axis": lambda x, p: x.unsqueeze(1),
    "new last axis": lambda x, p: x.unsqueeze(-1),
    "new first axis": lambda x, p: x.unsqueeze(0),
    "new first axis from the end": lambda x, p: x.unsqueeze(-x.dim() - 1),
    "squeezed": lambda x, p: x.squeeze(),
    "squeezed at the end": lambda x, p: x.squeeze(-1),
    "contiguous": lambda x, p: x.transpose(1, -1).contiguous(),
    # Indices.
    "every other": lambda x, p: x[:, ::2],
    "last": lambda x, p: x[..., -1],
    "first sample": lambda x, p: x[0],
    "first sample by dots": lambda x, p: x[..., 0, :],
    "all samples": lambda x, p: x[: len(x), 1:],
    "some samples": lambda x, p: x[:1] + x,
    "samples reversed by a list": lambda x, p: x[list(range(len(x)))[::-1]],
    "columns of a list": lambda x, p: x[:, [1, 0]],
    "a new axis by index": lambda x, p: x[:, None],
    "a new first axis by index": lambda x, p: x[None],
    # Steps that jets must refuse.
    "a comparison": lambda x, p: x * (x == 0.5),
    "another comparison": lambda x, p: x * (x != 0.5),
    "a decision": lambda x, p: x * 2 if bool((x.sum() > 0).item()) else x,
    "no gradients": lambda x, p: _without_gradients(x),
    "detached": lambda x, p: x * x.detach(),
    "gradient reversed": lambda x, p: _Reversed.apply(x),
    "changed through a view": lambda x, p: _in_place(x, lambda v: v.relu_()),
    "changed through a view, by a sum": lambda x, p: _in_place(x, lambda v: v.add_(1)),
    "changed through an index": lambda x, p: _in_place(x, lambda v: v.__imul__(2)),
    "changed after a view": lambda x, p: _relu_after_view(x),
    "changed under two names": lambda x, p: _two_names(x),
    "sorted samples": lambda x, p: x.sort(0)[0],
    "shifted samples": lambda x, p: x.roll(1, 0),
}

# A path must reach operations on many axes often enough.
STARTS: dict[str, Step] = {
    "vectors": lambda x, p: x,
    "sequences": lambda x, p: x.reshape(len(x), 2, 3),
    "sequences of threes": lambda x, p: x.reshape(len(x), 3, 2),
    "images": lambda x, p: x.reshape(len(x), 2, 1, 3),
    "wide sequences": lambda x, p: torch.cat([x.unsqueeze(1), torch.sin(x).unsqueeze(1)], dim=1),
}


def drawn_parameters(seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).double() for name, shape in SHAPES.items()
    }


def network(steps: list[Step], inputs: Tensor, parameters: Parameters) -> Tensor:
    x = torch.tanh(functional.linear(inputs, parameters["first"]))
    for step in steps:
        x = step(x, parameters)
    return x


def by_double_backward(
    steps: list[Step], inputs: Tensor, parameters: Parameters, vectors: list[Parameters]
) -> list[Tensor]:
    """Return the Hessian products of half the squared outputs, one flat row a vector."""
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    loss = 0.5 * network(steps, inputs, leaves).square().sum()
    gradient = torch.autograd.grad(
        loss, list(leaves.values()), create_graph=True, materialize_grads=True
    )
    return [
        _flat(
            torch.autograd.grad(
                sum((g * vector[name]).sum() for g, name in zip(gradient, leaves, strict=True)),
                list(leaves.values()),
                retain_graph=True,
                materialize_grads=True,
            )
        )
        for vector in vectors
    ]


def by_jets(
    steps: list[Step], inputs: Tensor, parameters: Parameters, vectors: list[Parameters]
) -> list[Tensor]:
    jets = {
        name: ParameterJet.of(value, torch.stack([vector[name] for vector in vectors]))
        for name, value in parameters.items()
    }
    outputs = network(steps, inputs, jets)
    assert type(outputs) is Jet
    leaves = [jet.parts for jet in jets.values()]
    # The cotangents of half a square are the values themselves, with the same changes.
    pulled = torch.autograd.grad(
        outputs.parts, leaves, outputs.parts.detach(), materialize_grads=True
    )
    return [_flat([part[1 + j] for part in pulled]) for j in range(len(vectors))]


def _flat(parts: object) -> Tensor:
    return torch.cat([part.flatten() for part in parts])  # type: ignore[attr-defined]


def compare(names: list[str], seed: int) -> str:
    """Compare the two ways; say whether jets computed it, or refused, or the shapes do not fit."""
    steps = [{**STARTS, **STEPS}[name] for name in names]
    inputs = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(seed)).double()
    parameters = drawn_parameters(seed + 1)
    vectors = [drawn_parameters(seed + 2 + j) for j in range(VECTORS)]
    try:
        expected = by_double_backward(steps, inputs, parameters, vectors)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return "does not fit"  # shapes, a number without a length, or in place on what is needed
    try:
        found = by_jets(steps, inputs, parameters, vectors)
    except NoRuleError:
        return "refused"
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9 * float(1 + other.abs().max()))
    return "computed"


@settings(max_examples=400, deadline=None)
@given(
    start=st.sampled_from(sorted(STARTS)),
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5),
    seed=st.integers(0, 5),
)
def test_jets_give_the_products_of_double_backward_or_refuse(
    start: str, steps: list[str], seed: int
) -> None:
    assume(compare([start, *steps], seed) != "does not fit")


def test_each_operation_alone_is_right_or_refused() -> None:
    outcomes: dict[str, set[str]] = {step: set() for step in STEPS}
    for start in STARTS:
        for step in STEPS:
            try:
                outcomes[step].add(compare([start, step, "product with itself"], 0))
            except Exception as error:
                raise AssertionError(f"{start}, {step}") from error
    computed = {step for step, found in outcomes.items() if "computed" in found}
    never = {"no gradients", "detached", "gradient reversed", "a comparison", "a decision"}
    assert not computed & never
    assert len(computed) >= len(STEPS) // 2
    # Each fits one of the shapes, or it would be no test.
    assert [step for step, found in outcomes.items() if found == {"does not fit"}] == []
