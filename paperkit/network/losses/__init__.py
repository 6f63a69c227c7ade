r"""Losses as functions of the network's outputs, means over samples.

Every curvature quantity of a loss :math:`L(\theta) = \frac1n \sum_i \ell(f_i, y_i)` needs its
value, the gradient of :math:`\ell` in the outputs :math:`f_i`, and the :math:`C \times C` Hessian
:math:`\Lambda_i` there: as a product with changes of the outputs, and as a factor :math:`R_i` with
:math:`R_i^\top R_i = \Lambda_i` and as few rows as its rank. All of them are computed in float64,
whatever the model's own precision, because 1 − p of a fitted label has no digits in float32.

A weighted mean, as of a cross-entropy with class weights or ignored labels, is a mean too, with
:math:`\ell_i` multiplied by the sample's weight over the mean weight of *all* data; and the outputs
of a sample may be those of many positions. Both are settled by :meth:`Loss.bound`, once the data
are known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from paperkit import arguments
from paperkit.network.losses.base import Loss
from paperkit.network.losses.cross_entropy import (
    CrossEntropy,
    NegativeLogLikelihood,
    log_odds_against,
    softmax_hessian_factor,
)
from paperkit.network.losses.elementwise import (
    BINARY_CROSS_ENTROPY,
    HALF_SQUARED_ERROR,
    MEAN_SQUARED_ERROR,
    POISSON,
    BinaryCrossEntropy,
    Elementwise,
    Poisson,
    SquaredError,
)
from paperkit.network.losses.general import GeneralLoss
from paperkit.network.losses.positional import Positional

__all__ = [
    "LOSSES",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Elementwise",
    "GeneralLoss",
    "Loss",
    "LossLike",
    "NegativeLogLikelihood",
    "Poisson",
    "Positional",
    "SquaredError",
    "fitted",
    "get_loss",
    "log_odds_against",
    "softmax_hessian_factor",
]

LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        CrossEntropy(),
        HALF_SQUARED_ERROR,
        MEAN_SQUARED_ERROR,
        BINARY_CROSS_ENTROPY,
        POISSON,
    )
}

LossLike = Any
"""What :func:`get_loss` makes a loss of: a name, a loss module of torch, or any callable."""


def get_loss(loss: LossLike) -> Loss:
    """Return a loss by its name, from torch's own loss, or from any function.

    Parameters
    ----------
    loss : str, nn.Module or callable
        A name from :data:`LOSSES`; a loss module of torch or its function, which may be bound to
        options by ``functools.partial`` (``CrossEntropyLoss`` with class weights, label
        smoothing and ignored labels, ``NLLLoss``, ``BCEWithLogitsLoss``, ``MSELoss`` and
        ``PoissonNLLLoss`` of logarithms have rules of their own); or any callable ``(outputs,
        targets) -> scalar`` that is a mean over samples. Its derivatives come from autograd, and
        its convexity is checked where a measure needs it.

    Raises
    ------
    ValueError
        If a name is unknown, or a module does not average.
    TypeError
        If it is something else.

    Examples
    --------
    >>> import torch
    >>> from paperkit.network import get_loss
    >>> outputs, targets = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    >>> float(get_loss("half_squared_error").value(outputs, targets))  # ½ ‖f‖²
    12.5
    >>> float(get_loss(torch.nn.MSELoss()).value(outputs, targets))  # ‖f‖² / C
    12.5
    >>> huber = get_loss(torch.nn.functional.huber_loss)
    >>> float(huber.value(outputs, targets))  # any mean over samples: (2.5 + 3.5) / 2
    3.0
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        return LOSSES[arguments.choice("loss", loss, LOSSES)]
    if isinstance(loss, nn.Module):
        return _loss_of_module(loss)
    if not callable(loss) or isinstance(loss, type):
        advice = f", an instance: {loss.__name__}()" if isinstance(loss, type) else ""
        raise TypeError(
            f"loss={arguments.shown(loss)} must be one of {', '.join(LOSSES)}, a loss module such "
            f"as torch.nn.MSELoss(), or a callable of outputs and targets{advice}."
        )
    return _loss_of_function(loss)


def fitted(loss: LossLike, outputs: Tensor, targets: Tensor) -> Loss:
    """Return the loss on outputs (n, C) and targets that are all there are.

    Raises
    ------
    ValueError
        If they do not fit each other.
    """
    resolved = get_loss(loss)
    if resolved.needs_data(outputs, targets):
        resolved = resolved.bound(outputs, lambda: [targets])
    resolved.check(outputs, targets)
    return resolved


_MODULES_OF: dict[Callable, type[nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.nll_loss: nn.NLLLoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    functional.mse_loss: nn.MSELoss,
    functional.poisson_nll_loss: nn.PoissonNLLLoss,
}


def _loss_of_function(function: Callable) -> Loss:
    if isinstance(function, functools.partial) and not function.args:
        name = getattr(function.func, "__name__", "partial")
        base, options = function.func, function.keywords
    else:
        name = getattr(function, "__name__", type(function).__name__)
        base, options = function, {}
    # Compare by identity, because a callable object need not be hashable.
    for known, module in _MODULES_OF.items():
        if base is known:
            return _loss_of_module(module(**options))
    _refuse_reduction(name, options)
    return GeneralLoss(name, function)


def _refuse_reduction(name: str, options: Mapping[str, object]) -> None:
    reduction = options.get("reduction", "mean")
    if reduction not in ("mean", "batchmean"):
        raise ValueError(
            f"loss={name} has reduction={reduction!r}: pass one with reduction='mean'."
        )


def _loss_of_module(module: nn.Module) -> Loss:
    kind = type(module)
    # Only torch's modules are known to mean by "reduction" how samples are averaged.
    if kind.__module__.startswith("torch.nn."):
        _refuse_reduction(kind.__name__, vars(module))
    if kind is nn.GaussianNLLLoss:
        raise ValueError(
            "loss=GaussianNLLLoss takes a variance beside the targets: pass a callable of outputs "
            "and targets, such as lambda f, y: torch.nn.functional.gaussian_nll_loss(f[:, :1], y, "
            "f[:, 1:].exp()), or 'half_squared_error' for a fixed one."
        )
    if kind in _RULES:
        return _RULES[kind](module)
    return GeneralLoss(kind.__name__, module)


def _weight(module: nn.Module, name: str = "weight") -> Tensor | None:
    weight = getattr(module, name)
    return None if weight is None else weight.detach()


def _named(module: nn.Module, **options: object) -> str:
    """Return the module's name with the options that it does not have by default."""
    shown = ", ".join(f"{name}={value}" for name, value in options.items() if value)
    return f"{type(module).__name__}({shown})"


def _reduction(module: nn.Module) -> str:
    return f"as torch.nn.{type(module).__name__} with the same options"


def _cross_entropy_of(module: Any) -> Loss:
    weight, smoothing = _weight(module), float(module.label_smoothing)
    name = _named(module, weight="…" if weight is not None else "", label_smoothing=smoothing)
    ignored = int(module.ignore_index)
    return CrossEntropy(name, _reduction(module), weight, ignored, smoothing)


def _nll_of(module: Any) -> Loss:
    weight = _weight(module)
    name = _named(module, weight="…" if weight is not None else "")
    return NegativeLogLikelihood(name, _reduction(module), weight, int(module.ignore_index))


def _binary_of(module: Any) -> Loss:
    weight, pos_weight = _weight(module), _weight(module, "pos_weight")
    if weight is None and pos_weight is None:
        return BINARY_CROSS_ENTROPY
    options = {"weight": weight, "pos_weight": pos_weight}
    name = _named(
        module, **{key: "…" if value is not None else "" for key, value in options.items()}
    )
    return BinaryCrossEntropy(name, _reduction(module), weight=weight, pos_weight=pos_weight)


def _poisson_of(module: Any) -> Loss:
    if not module.log_input:
        return GeneralLoss("PoissonNLLLoss(log_input=False)", module)
    if not module.full:
        return POISSON
    return Poisson("PoissonNLLLoss(full=True)", _reduction(module), full=True)


_RULES: dict[type[nn.Module], Callable[[Any], Loss]] = {
    nn.CrossEntropyLoss: _cross_entropy_of,
    nn.NLLLoss: _nll_of,
    nn.MSELoss: lambda module: MEAN_SQUARED_ERROR,
    nn.BCEWithLogitsLoss: _binary_of,
    nn.PoissonNLLLoss: _poisson_of,
}
