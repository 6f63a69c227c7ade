"""The change of a network's outputs along vectors of parameters, J v.

Forward mode gives it in one pass, but not every operation has a rule for it, and a custom Function
or PyTorch itself can have a wrong one. Backward passes are the general way: it needs no check, and
the fast way is used only where it agrees with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.func import jvp, vmap

from paperkit.network.replacements import UsedFunctions
from paperkit.network.samples import Inputs

Parameters = dict[str, Tensor]

# Number of random directions u in which changes of the outputs are compared with a backward pass.
_DIRECTIONS = 2


def reverse_pass(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor], **options
) -> tuple[Tensor, ...]:
    """Pull cotangents back from those outputs that depend on a leaf; zeros where nothing does."""
    pairs = [(f, u) for f, u in zip(outputs, cotangents, strict=True) if f.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs:
        gradients = torch.autograd.grad(
            [f for f, _ in pairs], leaves, [u for _, u in pairs], allow_unused=True, **options
        )
    # Missing gradients are replaced here, because the zeros that autograd itself can put in their
    # place have no axis for a batch of cotangents.
    batch = cotangents[0].shape[:1] if options.get("is_grads_batched") else ()
    return tuple(
        leaf.new_zeros(*batch, *leaf.shape) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    )


def forward_products(
    network: Callable[[Parameters], Tensor], point: Parameters, vectors: Parameters
) -> Tensor:
    """Return J v for k vectors, (k, m, C), in one vectorized pass of forward mode."""
    with torch.no_grad():
        return vmap(lambda vector: jvp(network, (point,), (vector,))[1])(vectors)


def reverse_products(outputs: Tensor, parameters: Parameters, vectors: Parameters) -> Tensor:
    """Return J v for k vectors, (k, m, C), by backward passes.

    Jᵀu is linear in u, and the derivative of v·Jᵀu in u is J v. This takes two passes, the first of
    which must itself be differentiable. Where its derivative is missing, or ⟨u, J v⟩ and ⟨Jᵀu, v⟩
    differ for a random u, each output is differentiated by itself.

    Parameters
    ----------
    outputs : Tensor
        Outputs, shape (m, C), with their graph.
    parameters : dict of str to Tensor
        Leaves that record gradients, by name.
    vectors : dict of str to Tensor
        Vectors by the same names, (k, …) each.
    """
    leaves = list(parameters.values())
    rows = [vectors[name] for name in parameters]
    count = len(rows[0])
    try:
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = reverse_pass([outputs], leaves, [u], create_graph=True)
        changes = torch.stack(
            [
                reverse_pass(pulled, [u], [row[j] for row in rows], retain_graph=True)[0]
                for j in range(count)
            ]
        )
    except (RuntimeError, NotImplementedError):
        return _row_by_row(outputs, leaves, rows)
    if _are_adjoint(outputs, leaves, rows, changes):
        return changes
    return _row_by_row(outputs, leaves, rows)


def pull_back_is_linear(outputs: Tensor, sources: Sequence[Tensor]) -> bool:
    """Whether autograd can differentiate Jᵀu in u and gets J v, for a random v.

    A custom Function may compute its backward pass out of autograd's sight, or mark it
    once_differentiable. Its derivative is then wrong, often zero, without an error.
    """
    generator = torch.Generator(device="cpu").manual_seed(1)
    rows = [
        torch.randn(1, *source.shape, generator=generator, device="cpu").to(source)
        for source in sources
    ]
    try:
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = reverse_pass([outputs], sources, [u], create_graph=True)
        change = reverse_pass(pulled, [u], [row[0] for row in rows])[0]
    except (RuntimeError, NotImplementedError):
        return False
    return _are_adjoint(outputs, sources, rows, change.unsqueeze(0))


def _are_adjoint(
    outputs: Tensor, leaves: Sequence[Tensor], rows: Sequence[Tensor], changes: Tensor
) -> bool:
    """Whether ⟨u, J v⟩ = ⟨Jᵀu, v⟩ for random u and each v, up to round-off."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    eps = torch.finfo(outputs.dtype).eps
    for _ in range(_DIRECTIONS):
        u = torch.randn(outputs.shape, generator=generator, device="cpu").to(outputs)
        pulled = reverse_pass([outputs], leaves, [u], retain_graph=True)
        products = _inner(u, changes)
        expected = sum(_inner(part, row) for part, row in zip(pulled, rows, strict=True))
        # The inner products are sums over parameters, and every summand has round-off.
        round_off = eps * sum(
            part.double().norm() * _norms(row) for part, row in zip(pulled, rows, strict=True)
        )
        allowed = eps**0.5 * u.double().norm() * _norms(changes) + 8 * round_off
        if bool(((products - expected).abs() > allowed).any()):
            return False
    return True


def _inner(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return the inner products of a tensor with k others of its shape, in float64."""
    return _flat(rows) @ tensor.flatten().double()


def _norms(rows: Tensor) -> Tensor:
    return _flat(rows).norm(dim=1)


def _flat(rows: Tensor) -> Tensor:
    """Return tensors of one shape, which may have no dimension, as vectors in float64."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:])).double()


def _row_by_row(outputs: Tensor, leaves: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    changes = []
    for output in outputs.flatten():
        gradients = reverse_pass([output], leaves, [torch.ones_like(output)], retain_graph=True)
        changes.append(sum(_inner(g, row) for g, row in zip(gradients, rows, strict=True)))
    return torch.stack(changes, dim=1).to(outputs.dtype).unflatten(1, outputs.shape)  # type: ignore[arg-type]


class JacobianProduct:
    """Outputs and their change along a vector of parameters, for one batch after the other.

    To be made and called within :func:`paperkit.network.evaluation.evaluation`.

    Parameters
    ----------
    network : callable
        Function from (parameters by name, inputs) to outputs (m, C).
    parameters : dict of str to Tensor
        Point at which the derivative is taken: leaves that record gradients, by name.
    vector : dict of str to Tensor
        Vector by the same names.
    """

    def __init__(
        self,
        network: Callable[[Parameters, Inputs], Tensor],
        parameters: Parameters,
        vector: Parameters,
    ) -> None:
        self._network = network
        self._parameters = parameters
        self._vector = {name: part.detach() for name, part in vector.items()}
        # Functions that the network called when both ways agreed; empty if they did not, or were
        # not compared yet.
        self._compared: set[Callable] = set()

    def compare(self, samples: Inputs) -> bool:
        """Compare the two ways on some samples; return whether forward mode may be used.

        Before the comparison, and where it fails, products are computed by backward passes, which
        take more memory.
        """
        with UsedFunctions() as used:
            outputs, expected = self._by_backward_passes(samples)
            # An operation may lack a rule of forward mode, or the model may take only plain
            # tensors.
            try:
                change = self._by_forward_mode(samples)[1]
            except Exception:
                return False
        tolerance = torch.finfo(outputs.dtype).eps ** 0.5 * float(expected.norm())
        agree = float((change - expected).norm()) <= tolerance
        self._compared = used.functions if agree else set()
        return agree

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return outputs and their change, (m, C) each, without a graph."""
        if self._compared:
            # Forward mode counts only if the pass called no function that the comparison has not
            # seen, since its rule may be wrong. An error of the model itself comes again below.
            with suppress(Exception), UsedFunctions() as used:
                result = self._by_forward_mode(inputs)
                if used.functions <= self._compared:
                    return result
        return self._by_backward_passes(inputs)

    def _by_forward_mode(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        point = {name: leaf.detach() for name, leaf in self._parameters.items()}
        with torch.no_grad():
            result = jvp(lambda values: self._network(values, inputs), (point,), (self._vector,))
        return result[0], result[1]

    def _by_backward_passes(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        vectors = {name: part.unsqueeze(0) for name, part in self._vector.items()}
        with torch.enable_grad():
            outputs = self._network(self._parameters, inputs)
            change = reverse_products(outputs, self._parameters, vectors)[0]
        return outputs.detach(), change
