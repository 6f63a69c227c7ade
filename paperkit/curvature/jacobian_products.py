"""The change of a network's outputs along vectors of parameters, J v.

Forward mode gives it in one pass, but not every operation has a rule for it, and a custom Function
or PyTorch itself can have a wrong one. Backward passes are the general way: it needs no check, and
the fast way is used only where it agrees with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.func import jvp, vmap

from paperkit.network.replacements import UsedFunctions
from paperkit.network.samples import Inputs

Parameters = dict[str, Tensor]

# Random directions in which the outputs' change is held against a backward pass.
_DIRECTIONS = 2


def reverse_pass(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor], **options
) -> tuple[Tensor, ...]:
    """Pull cotangents back from those outputs that depend on a leaf; zeros where nothing does."""
    pairs = [(f, u) for f, u in zip(outputs, cotangents, strict=True) if f.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs:
        found = torch.autograd.grad(
            [f for f, _ in pairs], leaves, [u for _, u in pairs], allow_unused=True, **options
        )
    # What autograd itself puts in place of a missing gradient has no axis for several cotangents.
    several = cotangents[0].shape[:1] if options.get("is_grads_batched") else ()
    return tuple(
        leaf.new_zeros(*several, *leaf.shape) if gradient is None else gradient
        for leaf, gradient in zip(leaves, found, strict=True)
    )


def forward_products(
    network: Callable[[Parameters], Tensor], point: Parameters, vectors: Parameters
) -> Tensor:
    """Return J v for k vectors, (k, m, C), in one vectorized pass of forward mode."""
    with torch.no_grad():
        return vmap(lambda vector: jvp(network, (point,), (vector,))[1])(vectors)


def reverse_products(outputs: Tensor, parameters: Parameters, vectors: Parameters) -> Tensor:
    """Return J v for k vectors, (k, m, C), by backward passes.

    Jᵀu is linear in u, and the derivative of v·Jᵀu in u is J v: two passes. They need a backward
    pass that can itself be differentiated. Where ⟨u, J v⟩ and ⟨Jᵀu, v⟩ differ for a random u, or
    there is no such derivative, each output is differentiated by itself.

    Parameters
    ----------
    outputs : Tensor
        Shape (m, C), with the graph of the parameters.
    parameters : dict of str to Tensor
        Leaves that record gradients.
    vectors : dict of str to Tensor
        By the same names, (k, …) each.
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
    """Whether autograd can differentiate Jᵀu in u, and finds J v, for a random v.

    A backward pass of a custom Function that computes outside of autograd's sight, or is marked
    once_differentiable, gives another derivative, often zero, without an error.
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
        found = _inner(u, changes)
        expected = sum(_inner(part, row) for part, row in zip(pulled, rows, strict=True))
        # What adds up to the inner products, of which each has round-off.
        terms = eps * sum(
            part.double().norm() * _norms(row) for part, row in zip(pulled, rows, strict=True)
        )
        allowed = eps**0.5 * u.double().norm() * _norms(changes) + 8 * terms
        if bool(((found - expected).abs() > allowed).any()):
            return False
    return True


def _inner(one: Tensor, rows: Tensor) -> Tensor:
    """Return the inner products of a tensor with k others of its shape, in float64."""
    return rows.flatten(1).double() @ one.flatten().double()


def _norms(rows: Tensor) -> Tensor:
    return rows.flatten(1).double().norm(dim=1)


def _row_by_row(outputs: Tensor, leaves: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    changes = []
    for output in outputs.flatten():
        gradients = reverse_pass([output], leaves, [torch.ones_like(output)], retain_graph=True)
        changes.append(sum(_inner(g, row) for g, row in zip(gradients, rows, strict=True)))
    return torch.stack(changes, dim=1).to(outputs.dtype).unflatten(1, outputs.shape)  # type: ignore[arg-type]


class JacobianProduct:
    """Outputs and their change along one vector of parameters, for one batch after the other.

    To be made and called within :func:`paperkit.network.evaluation.evaluation`.

    Parameters
    ----------
    network : callable
        (parameters by name, inputs) → outputs (m, C).
    parameters : dict of str to Tensor
        The point, leaves that record gradients.
    vector : dict of str to Tensor
        By the same names.
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
        # What the network called in the comparison, which was in favour of forward mode.
        self._compared: set[Callable] = set()

    def compare(self, few: Inputs) -> bool:
        """Compare the two ways on some samples; return whether forward mode may be used.

        Backward passes, used before that and otherwise, take more memory.
        """
        with UsedFunctions() as used:
            outputs, expected = self._by_backward_passes(few)
            # An operation without a rule, or code that takes nothing but plain tensors.
            try:
                found = self._by_forward_mode(few)[1]
            except Exception:
                return False
        tolerance = torch.finfo(outputs.dtype).eps ** 0.5 * float(expected.norm())
        agree = float((found - expected).norm()) <= tolerance
        self._compared = used.functions if agree else set()
        return agree

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return outputs and their change, (m, C) each, without a graph."""
        if self._compared:
            # On a path that the comparison has not seen, an operation may have a wrong rule. What
            # the model cannot do at all, it will say again below.
            with suppress(Exception), UsedFunctions() as used:
                found = self._by_forward_mode(inputs)
                if used.functions <= self._compared:
                    return found
        return self._by_backward_passes(inputs)

    def _by_forward_mode(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        point = {name: leaf.detach() for name, leaf in self._parameters.items()}
        with torch.no_grad():
            found = jvp(lambda values: self._network(values, inputs), (point,), (self._vector,))
        return found[0], found[1]

    def _by_backward_passes(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        vectors = {name: part.unsqueeze(0) for name, part in self._vector.items()}
        with torch.enable_grad():
            outputs = self._network(self._parameters, inputs)
            change = reverse_products(outputs, self._parameters, vectors)[0]
        return outputs.detach(), change
