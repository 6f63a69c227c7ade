r"""The ways to a product of a curvature matrix with vectors, and which of them can be trusted.

Every matrix here is a mean over samples of :math:`J_i^\top \Lambda_i J_i`, and the Hessian has
second derivatives of the outputs besides, weighted with residuals :math:`r_i`. So one pair says
which matrix it is, :class:`OutputCurvature`: how :math:`\Lambda_i` weighs a change of outputs, and
:math:`r_i`, or None. The four ways are the field's:

* ``jets``, forward over reverse with rules for several vectors at a time (Pearlmutter 1994);
* ``forward_over_reverse``, the same by forward mode through a gradient;
* ``reverse_over_forward``, which pulls back what the outputs' change along a vector is weighed to;
* ``double_backward``, which needs nothing but backward passes and is what the others must agree
  with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from paperkit.curvature.jacobian_products import (
    Parameters,
    forward_products,
    reverse_pass,
    reverse_products,
)
from paperkit.curvature.jets import Jet, ParameterJet
from paperkit.curvature.second_derivatives import missing_refused
from paperkit.network.replacements import differentiated_twice


@dataclass(frozen=True)
class Chunk:
    """Some samples: the network on them as a function of the chosen parameters.

    Attributes
    ----------
    network : callable
        Chosen parameters, by name → outputs (m, C).
    parameters : dict of str to Tensor
        The chosen parameters, leaves that record gradients.
    targets : Tensor
        Targets of the m samples.
    """

    network: Callable[[Parameters], Tensor]
    parameters: Parameters
    targets: Tensor

    def leaves(self) -> list[Tensor]:
        """Return the chosen parameters in order."""
        return list(self.parameters.values())

    def detached(self) -> Parameters:
        """Return the chosen parameters without a record of their own."""
        return {name: leaf.detach() for name, leaf in self.parameters.items()}

    def split(self, vectors: Tensor) -> Parameters:
        """Cut vectors (…, d) into parts of the parameters' shapes, with the same leading axes."""
        parts = vectors.split([leaf.numel() for leaf in self.parameters.values()], dim=-1)
        return {
            name: part.reshape((*vectors.shape[:-1], *leaf.shape))
            for (name, leaf), part in zip(self.parameters.items(), parts, strict=True)
        }


@dataclass(frozen=True)
class OutputCurvature:
    """Which matrix it is, in terms of the outputs.

    Attributes
    ----------
    weigh : callable
        (outputs (m, C), changes (…, m, C), targets) → Λ_i applied to the changes.
    residual : callable or None
        (outputs, targets) → r_i, (m, C), which weigh the outputs' second derivatives; None for a
        matrix without them.
    """

    weigh: Callable[[Tensor, Tensor, Tensor], Tensor]
    residual: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Route:
    """A way to products.

    Attributes
    ----------
    name : str
        Name of the way, as users and tests see it.
    products : callable
        (chunk, vectors (k, d), curvature) → products summed over the chunk's samples, (k, d).
    for_several : bool
        Whether another way is as good for a single vector.
    """

    name: str
    products: Callable[[Chunk, Tensor, OutputCurvature], Tensor]
    for_several: bool = False


def joined(parts: Sequence[Tensor], count: int) -> Tensor:
    """Flatten the parts of ``count`` parameter vectors and join them: (count, d)."""
    sizes = [part.numel() // count for part in parts]
    vectors = parts[0].new_empty(count, sum(sizes))
    # Parts can lie in memory in any order: written to their place, they are copied once.
    for place, part in zip(vectors.split(sizes, dim=1), parts, strict=True):
        if count == 1:
            place.view(part.shape).copy_(part)
        else:
            part = part.unsqueeze(1) if part.ndim == 1 else part
            place.unflatten(1, part.shape[1:]).copy_(part)
    return vectors


def sum_in_place(tensors: Iterable[Tensor]) -> Tensor:
    """Add tensors to the first of them."""
    return functools.reduce(Tensor.add_, tensors)


# --- With second derivatives of the outputs ------------------------------------------------------


def parameter_jets(chunk: Chunk, vectors: Tensor) -> tuple[list[ParameterJet], Jet | Tensor]:
    """Return the chosen parameters' jets and the outputs', a tensor if the outputs are constant."""
    jets = [
        ParameterJet.of(chunk.parameters[name], part) for name, part in chunk.split(vectors).items()
    ]
    return jets, chunk.network(dict(zip(chunk.parameters, jets, strict=True)))


def jets(chunk: Chunk, vectors: Tensor, curvature: OutputCurvature) -> Tensor:
    """Take one pass forward and one back with values and derivatives along all vectors."""
    assert curvature.residual is not None
    parameters, outputs = parameter_jets(chunk, vectors)
    if not isinstance(outputs, Jet):
        return torch.zeros_like(vectors)
    values, changes = outputs.parts.detach().split([1, len(vectors)])
    cotangents = torch.cat(
        [
            curvature.residual(values[0], chunk.targets).unsqueeze(0),
            curvature.weigh(values[0], changes, chunk.targets),
        ]
    )
    pulled = reverse_pass([outputs.parts], [jet.parts for jet in parameters], [cotangents])
    return joined([part[1:] for part in pulled], len(vectors))


def forward_over_reverse(chunk: Chunk, vectors: Tensor, curvature: OutputCurvature) -> Tensor:
    """Differentiate the gradient in forward mode, along all vectors in one vectorized pass."""
    residual = curvature.residual
    assert residual is not None

    def gradient(chosen: Parameters) -> Parameters:
        outputs, pull_back = vjp(chunk.network, chosen)[:2]
        residuals = residual(outputs, chunk.targets)
        # The forward mode around it needs no graph of the gradient, and this one only once.
        return pull_back(residuals, retain_graph=False, create_graph=False)[0]

    point = chunk.detached()
    products = vmap(lambda vector: jvp(gradient, (point,), (vector,))[1])(chunk.split(vectors))
    return joined([products[name] for name in chunk.parameters], len(vectors))


def reverse_over_forward(chunk: Chunk, vectors: Tensor, curvature: OutputCurvature) -> Tensor:
    """Pull back from the outputs and from their change along a vector, a vector at a time."""
    residual = curvature.residual
    if residual is None:
        point = chunk.detached()
        with torch.no_grad():
            changes = [jvp(chunk.network, (point,), (chunk.split(v),))[1] for v in vectors]
        return _pulled_back(chunk, chunk.network(chunk.parameters), torch.stack(changes), curvature)
    products = []
    for vector in vectors:
        outputs, change = jvp(chunk.network, (chunk.parameters,), (chunk.split(vector),))[:2]
        cotangents = (
            curvature.weigh(outputs.detach(), change.detach(), chunk.targets),
            residual(outputs.detach(), chunk.targets),
        )
        products.append(joined(reverse_pass((outputs, change), chunk.leaves(), cotangents), 1))
    return torch.cat(products)


def double_backward(chunk: Chunk, vectors: Tensor, curvature: OutputCurvature) -> Tensor:
    """Take backward passes alone, the general way, a vector at a time."""
    if curvature.residual is None:
        outputs = chunk.network(chunk.parameters)
        changes = reverse_products(outputs, chunk.parameters, chunk.split(vectors))
        return _pulled_back(chunk, outputs, changes, curvature)
    gradient = gradient_graph(chunk, curvature)
    return torch.cat([along(chunk, gradient, vector) for vector in vectors])


# --- Several vectors in one vectorized pass ------------------------------------------------------


def vectorized_reverse_over_forward(
    chunk: Chunk, vectors: Tensor, curvature: OutputCurvature
) -> Tensor:
    """Take one vectorized pass forward and one back, for a matrix without second derivatives."""
    changes = forward_products(chunk.network, chunk.detached(), chunk.split(vectors))
    outputs = chunk.network(chunk.parameters)
    weighed = curvature.weigh(outputs.detach(), changes, chunk.targets)
    pulled = reverse_pass([outputs], chunk.leaves(), [weighed], is_grads_batched=True)
    return joined(pulled, len(vectors))


def vectorized_double_backward(chunk: Chunk, vectors: Tensor, curvature: OutputCurvature) -> Tensor:
    """Take one vectorized backward pass through the gradient's graph."""
    return along_all(chunk, gradient_graph(chunk, curvature), vectors)


JETS = Route("jets", jets)
FORWARD_OVER_REVERSE = Route("forward_over_reverse", forward_over_reverse, for_several=True)
REVERSE_OVER_FORWARD = Route("reverse_over_forward", reverse_over_forward)
VECTORIZED_REVERSE_OVER_FORWARD = Route(
    "vectorized reverse_over_forward", vectorized_reverse_over_forward, for_several=True
)
VECTORIZED_DOUBLE_BACKWARD = Route(
    "vectorized double_backward", vectorized_double_backward, for_several=True
)
DOUBLE_BACKWARD = Route("double_backward", double_backward)


def trusted(
    routes: Iterable[Route], chunk: Chunk, vectors: Tensor, curvature: OutputCurvature
) -> list[Route]:
    """Return those ways that agree with backward passes on some samples, the fastest first.

    Parameters
    ----------
    routes : iterable of Route
        The ways to try, the fastest first. After one that serves several vectors, only
        ``reverse_over_forward`` is of use, for single ones.
    chunk : Chunk
        Some samples.
    vectors : Tensor
        Random vectors (k, d).
    curvature : OutputCurvature
        The matrix.

    Returns
    -------
    list of Route
        At most one for several vectors and one for single ones, and ``double_backward`` last.
    """
    expected = double_backward(chunk, vectors, curvature)
    # Squares of the entries themselves may be too small for the format.
    scale = float(expected.abs().max()) or 1.0
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * float((expected / scale).norm())
    agreeing: list[Route] = []
    for route in routes:
        if agreeing and route != REVERSE_OVER_FORWARD:
            continue
        try:
            products = route.products(chunk, vectors, curvature)
        # An operation without a rule, or a model's own code that takes nothing but a tensor.
        except Exception:
            continue
        if float(((products - expected) / scale).norm()) <= tolerance:
            agreeing.append(route)
            if not route.for_several:
                break
    return [*agreeing, DOUBLE_BACKWARD]


# --- The gradient's graph ------------------------------------------------------------------------


def gradient_graph(chunk: Chunk, curvature: OutputCurvature) -> tuple[Tensor, ...]:
    """Return the gradient, summed over samples, with its graph."""
    assert curvature.residual is not None
    with differentiated_twice():
        outputs = chunk.network(chunk.parameters)
    residuals = curvature.residual(outputs, chunk.targets)
    with missing_refused():
        return reverse_pass([outputs], chunk.leaves(), [residuals], create_graph=True)


def along(chunk: Chunk, gradient: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return the gradient's derivative along one vector, (1, d); the Hessian is symmetric."""
    cotangents = list(chunk.split(vector.flatten()).values())
    with missing_refused():
        return joined(reverse_pass(gradient, chunk.leaves(), cotangents, retain_graph=True), 1)


def along_all(chunk: Chunk, gradient: Sequence[Tensor], vectors: Tensor) -> Tensor:
    """Return the gradient's derivatives along k vectors, (k, d)."""
    cotangents = list(chunk.split(vectors).values())
    pulled = reverse_pass(
        gradient, chunk.leaves(), cotangents, retain_graph=True, is_grads_batched=True
    )
    return joined(pulled, len(vectors))


def _pulled_back(
    chunk: Chunk, outputs: Tensor, changes: Tensor, curvature: OutputCurvature
) -> Tensor:
    """Weigh the outputs' changes (k, m, C) and pull each back."""
    weighed = curvature.weigh(outputs.detach(), changes, chunk.targets)
    pulled = [
        joined(reverse_pass([outputs], chunk.leaves(), [row], retain_graph=True), 1)
        for row in weighed
    ]
    return torch.cat(pulled)
