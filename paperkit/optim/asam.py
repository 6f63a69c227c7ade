r"""Adaptive sharpness-aware minimisation: a ball that is measured in units of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from paperkit import arguments
from paperkit.optim.groups import Given
from paperkit.optim.modules import names_of
from paperkit.optim.vector import Vector, nonzero
from paperkit.optim.wrapped import BaseOptimizer, WrappedOptimizer

SCALED_TENSORS = ("weights", "all")


class ASAM(WrappedOptimizer):
    r"""Adaptive sharpness-aware minimisation (Kwon et al. 2021), two gradient evaluations a step.

    .. math::

       \theta \leftarrow \mathrm{base}\bigl(\theta, \nabla L(\theta + \varepsilon)\bigr), \qquad
       \varepsilon = \rho\, \frac{T^2 g}{\|T g\|}, \qquad T = |\theta| + t

    entry by entry, the maximiser of :math:`g^\top\varepsilon` over
    :math:`\|T^{-1}\varepsilon\| \le \rho`.

    Parameters
    ----------
    params : nn.Module or iterable
        Model; or parameters, named parameters or parameter groups, where a group may set its own
        options.
    base : callable
        Class or function that makes the base optimizer from the parameters.
    rho : float
        Radius of the ball, without a unit: a relative change of the weights.
    eta : float
        Offset t ≥ 0, the paper's η, which keeps entries that are zero movable.
    scaled : str
        Rule for the tensors that have a T; the others have T = 1. ``"weights"``, the authors' rule,
        chooses those with "weight" in their name, the scale of a normalisation among them.
        ``"all"``, together with ``eta=0``, is the rule of the most used implementation. Names are
        the paths that ``named_parameters()`` of the model has, or of the first module that ``step``
        calls and that holds all parameters.
    **options
        Options ``max_norm``, ``log`` and ``no_sync``, and those of the base optimizer.

    Raises
    ------
    ValueError
        If ``rho`` or ``eta`` is negative or the rule unknown; in a step, if a tensor that has a
        gradient has no name.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import ASAM
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 10.0]))
    >>> optimizer = ASAM([w], rho=0.1, eta=0.0, scaled="all", lr=0.1)
    >>> w.sum().backward()  # the same gradient in both entries
    >>> optimizer.first_step()
    >>> w.detach()  # the larger weight moves the most, 0.1 · w² / ‖w‖
    tensor([ 1.0100, 10.9950])
    """

    options = (*WrappedOptimizer.options, "eta", "scaled")

    def __init__(
        self,
        params: Given,
        base: BaseOptimizer = torch.optim.SGD,
        rho: float = 0.5,
        *,
        eta: float = 0.01,
        scaled: str = "weights",
        **options: Any,
    ) -> None:
        self.eta = arguments.number("eta", eta, at_least=0)
        self.scaled = arguments.choice("scaled", scaled, SCALED_TENSORS)
        super().__init__(params, base, rho, **options)
        self._names: dict[int, str] = {}

    def perturbation(self, gradient: Vector, weights: Vector, strengths: Sequence[float]) -> Vector:
        """Return ε, see the class."""
        scale = Vector(
            [
                weight.abs() + self.eta if has_scale else torch.ones_like(weight)
                for weight, has_scale in zip(weights.tensors, self._have_scale(), strict=True)
            ]
        )
        scaled = scale * gradient
        return (scale * scaled).scaled(strengths, by=1.0 / nonzero(scaled.norm()))

    def _have_scale(self) -> list[bool]:
        """Return for each parameter with a gradient whether it has a T."""
        parameters = self._active_parameters()
        if self.scaled == "all":
            return [True] * len(parameters)
        if any(id(parameter) not in self._names for parameter in parameters):
            self._names.update(self._find_names())
        return ["weight" in self._names[id(parameter)] for parameter in parameters]

    def _find_names(self) -> dict[int, str]:
        parameters, watch = self._active_parameters(), self._open.watch
        called = [] if watch is None else watch.called
        names = names_of(parameters, [*self._modules.roots, *called])
        if not names:  # a group has a module of its own
            names = {
                id(p): name for root in self._modules.roots for name, p in root.named_parameters()
            }
        for group in self.param_groups:
            given = group.get("param_names", ())
            names |= {id(p): name for p, name in zip(group["params"], given, strict=False)}
        if any(id(parameter) not in names for parameter in parameters):
            raise ValueError(
                'scaled="weights" goes by names: pass the model, or model.named_parameters(), or '
                'scaled="all".'
            )
        return names
