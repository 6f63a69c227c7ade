r"""Worst-case sharpness: the largest rise of the loss within a ball around the parameters.

.. math:: \max_{\lVert T^{-1}\delta \rVert_p \le \rho} L(w + \delta) - L(w)

with T = I (SAM; Foret et al. 2021) or T = |w| + η (ASAM; Kwon et al. 2021), p = 2 or ∞. The
maximum is approached by projected gradient ascent in :math:`u = T^{-1}\delta` with momentum and a
step that is halved when progress stalls (Auto-PGD, Croce and Hein 2020, as in Andriushchenko et
al. 2023). What is returned is the best value met, so it is a lower bound of the maximum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators.perturbed_loss import loss_value, select_parameters
from paperkit.estimators.result import Measurement
from paperkit.linalg.probes import generator_of
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import batches
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import BACKWARD, Chunks
from paperkit.network.losses import Loss, LossLike
from paperkit.network.network import displaced, network_outputs
from paperkit.network.problem import measure_of, refuse_cut

SCALED = ("all", "weight")

# Auto-PGD's constants: weight of the new step against momentum, first interval between checks of
# the progress and how it shrinks, and the share of steps that must have raised the loss.
_NEW_STEP = 0.75
_FIRST_INTERVAL, _SHRINKAGE, _SHORTEST_INTERVAL = 0.22, 0.03, 0.06
_SHARE_OF_RISES = 0.75

# Vectors of the parameters' size in points, gradients and temporaries of a step: 16.5 measured.
_COPIES = 17

# A gain of less than this share over the last quarter of the steps counts as convergence, which
# fewer steps than these cannot show.
_LATE_GAIN = 0.01
_FEWEST_STEPS = 8


@measure_of
def sam_sharpness(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
    *,
    rho: float = 0.05,
    p: float = 2,
    steps: int = 20,
    per_batch: bool = False,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return :math:`\max_{\lVert\delta\rVert_p \le \rho} L(w + \delta) - L(w)`, from below.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode (normalisation
        uses its frozen statistics), left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    parameters : sequence of str, optional
        Which to perturb, names from ``model.named_parameters()``; default all.
    rho : float
        Radius of the ball.
    p : float
        The ball's norm, 2 or ``math.inf``.
    steps : int
        Gradients after the first; one step gives the loss at SAM's own perturbation, 20 to 200
        approach the maximum.
    per_batch : bool
        Maximize over each batch of ``data`` separately and average, weighted by the batches'
        sizes (Foret's m-sharpness): the value then depends on the batches, and is at least the
        maximum that they have in common.
    seed : int
        Seed of the direction that stands in where the gradient vanishes.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        In units of the loss, never negative. ``assumptions["first_step"]`` is the rise after one
        step; ``converged`` says whether the last quarter of the steps gained less than 1 %.

    Raises
    ------
    ValueError
        If an option is out of range, the data do not fit, or the loss is not finite in the ball.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import sam_sharpness
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 4.0]])
    >>> data = torch.eye(2), torch.zeros(2, 1)  # the loss is ‖w‖² / 4
    >>> round(float(sam_sharpness(model, data, "half_squared_error", rho=1.0)), 4)  # (6² − 5²) / 4
    2.75
    """
    chosen = select_parameters(model, parameters)
    settings = {"rho": rho, "p": p, "steps": steps, "per_batch": per_batch}
    return _sharpness(
        "sam_sharpness", model, data, loss, chosen, None, settings, seed, memory_budget
    )


@measure_of
def asam_sharpness(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
    *,
    rho: float = 0.5,
    p: float = 2,
    eta: float = 0.0,
    scaled: str = "all",
    steps: int = 20,
    per_batch: bool = False,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return :math:`\max_{\lVert T^{-1}\delta\rVert_p \le \rho} L(w + \delta) - L(w)`, from below.

    With the default T = :math:`|w|` it does not see the scale of single parameters, as long as the
    function of the network stays the same; every ``eta`` > 0 and every tensor left unscaled
    breaks that.

    Parameters
    ----------
    model, data, loss, parameters, rho, p, steps, per_batch, seed, memory_budget
        As in :func:`sam_sharpness`.
    eta : float
        Added to :math:`|w|` in the scaled tensors; Kwon et al. use 0.01.
    scaled : str
        Which tensors have T = :math:`|w|` + η: ``"all"``, or those whose name contains ``"weight"``
        (Kwon's code; the scales of normalisation layers are among them). T = 1 in the others.

    Returns
    -------
    Measurement
        As in :func:`sam_sharpness`.

    Raises
    ------
    ValueError
        As :func:`sam_sharpness`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import asam_sharpness
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    >>> data = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    >>> for scale in (1.0, 4.0):  # the same function
    ...     _ = model[0].weight.data.fill_(scale), model[1].weight.data.fill_(1 / scale)
    ...     print(round(float(asam_sharpness(model, data, "half_squared_error")), 3))
    1.178
    1.178
    """
    eta = arguments.number("eta", eta, at_least=0)
    scaled = arguments.choice("scaled", scaled, SCALED)
    chosen = select_parameters(model, parameters)
    scales = [
        (parameter.detach().double().abs() + eta).flatten()
        if scaled == "all" or "weight" in name
        else torch.ones_like(parameter, dtype=torch.float64).flatten()
        for name, parameter in chosen.items()
    ]
    settings: dict[str, Any] = {"rho": rho, "p": p, "steps": steps, "per_batch": per_batch}
    settings |= {"eta": eta, "scaled": scaled}
    scale = torch.cat(scales)
    return _sharpness(
        "asam_sharpness", model, data, loss, chosen, scale, settings, seed, memory_budget
    )


def _sharpness(
    measure: str,
    model: nn.Module,
    data: object,
    loss: Loss,
    chosen: dict[str, nn.Parameter],
    scale: Tensor | None,
    settings: dict[str, Any],
    seed: int,
    memory_budget: int,
) -> Measurement:
    rho, steps = settings["rho"], settings["steps"]
    p = arguments.number("p", settings["p"], finite=False)
    if p not in (2, math.inf):
        raise ValueError(f"p={p} must be 2 or math.inf.")
    best = first = late_gain = 0.0
    n = 0
    refuse_cut(model, next(iter(batches(data)))[0], chosen)
    with evaluation(model) as leaves:
        # No vector is of less than single precision.
        vector = sum(max(4, part.itemsize) * part.numel() for part in chosen.values())
        chunks = Chunks(
            model,
            leaves,
            lambda sample: sample.bytes_of(BACKWARD),
            memory_budget,
            reserved=_COPIES * vector,
        )
        for part in batches(data) if settings["per_batch"] else (data,):
            objective = _Objective(model, leaves, part, loss, list(chosen), scale, chunks)
            rises = _ascend(objective, torch.zeros_like(objective.centre), rho, p, steps, seed)
            n += objective.n
            best += objective.n * max(rises)
            first += objective.n * rises[1]
            late_gain += objective.n * (max(rises) - max(rises[: steps + 1 - steps // 4]))
    return Measurement(
        value=best / n,
        measure=measure,
        method="projected gradient ascent",
        n=n,
        loss=loss,
        converged=steps >= _FEWEST_STEPS and late_gain <= _LATE_GAIN * best,
        assumptions={"lower_bound": True, **settings, "first_step": first / n},
    )


class _Objective:
    """The loss and its gradient at w + T u, as functions of the flat vector u."""

    def __init__(
        self,
        model: nn.Module,
        leaves: dict[str, Tensor],
        data: object,
        loss: Loss,
        names: list[str],
        scale: Tensor | None,
        chunks: Chunks,
    ) -> None:
        self.model, self.leaves, self.data, self.loss = model, leaves, data, loss
        self.names, self.chunks = names, chunks
        self.centre = torch.cat([leaves[name].detach().flatten() for name in names])
        self.scale = None if scale is None else scale.to(self.centre.dtype)
        # Factor on the loss, because its gradients may be too small for the weights' format.
        self.magnification = 1.0
        self.n = 0

    def __call__(self, u: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss over all samples and its gradient in u, up to a constant factor."""
        value, gradient = self._evaluated(u)
        size, limits = float(gradient.abs().max()), torch.finfo(self.centre.dtype)
        too_large = self.magnification != 1.0 and not math.isfinite(size)
        if value > torch.finfo(torch.float64).tiny and (
            size < limits.tiny / limits.eps or too_large
        ):
            self.magnification = 1.0 / value
            value, gradient = self._evaluated(u)
        return value, gradient

    def _evaluated(self, u: Tensor) -> tuple[float, Tensor]:
        shift = u if self.scale is None else self.scale * u
        parts = (self.centre + shift).split([self.leaves[name].numel() for name in self.names])
        moved = {
            name: part.view_as(self.leaves[name])
            for name, part in zip(self.names, parts, strict=True)
        }
        chosen = [self.leaves[name] for name in self.names]
        total, gradient, self.n = 0.0, torch.zeros_like(u), 0
        # In place, so that also a pass back that runs the model again finds the moved weights.
        with displaced(self.leaves, moved):
            for inputs, targets in self.chunks(self.data):
                outputs = network_outputs(self.model, self.leaves, inputs)
                check_outputs(outputs, len(inputs))
                self.loss.check(outputs, targets)
                value = loss_value(self.loss, outputs, targets)
                gradients = torch.autograd.grad(
                    self.magnification * value, chosen, allow_unused=True, materialize_grads=True
                )
                total += len(inputs) * float(value.detach())
                parts = torch.cat([part.flatten() for part in gradients])
                gradient += len(inputs) * parts.to(u.dtype)
                self.n += len(inputs)
        gradient /= self.n
        return total / self.n, gradient if self.scale is None else self.scale * gradient


def _ascend(
    objective: Callable[[Tensor], tuple[float, Tensor]],
    centre: Tensor,
    rho: float,
    p: float,
    steps: int,
    seed: int,
) -> list[float]:
    """Return the rise of the objective at the origin and after each step of Auto-PGD.

    Parameters
    ----------
    objective : callable
        Maps a vector to its value and gradient.
    centre : Tensor
        The origin.
    rho, p, steps, seed
        As in :func:`sam_sharpness`.
    """
    generator = generator_of(seed)
    point = previous = best_point = centre
    base, gradient = objective(point)
    best_gradient = gradient
    rises = [0.0]
    step = 2.0 * rho
    if 2.0 * step > torch.finfo(centre.dtype).max:
        raise ValueError(f"rho={rho:g} is too large: outputs or gradients are not finite.")
    checkpoint, interval = 0, _FIRST_INTERVAL
    halved = False
    best_at_checkpoint = 0.0
    for k in range(1, steps + 1):
        moved = _project(point + step * _steepest(gradient, p, generator), rho, p)
        if k > 1:
            momentum = (1.0 - _NEW_STEP) * (point - previous)
            moved = _project(point + _NEW_STEP * (moved - point) + momentum, rho, p)
        point, previous = moved, point
        try:
            value, gradient = objective(point)
            finite = math.isfinite(value) and bool(torch.isfinite(gradient).all())
        except ValueError:  # the data have passed at the origin, so it is the outputs
            finite = False
        if not finite:
            raise ValueError(f"rho={rho:g} is too large: outputs or gradients are not finite.")
        if value - base > max(rises):
            best_point, best_gradient = point, gradient
        rises.append(value - base)
        if k < checkpoint + max(1, round(interval * steps)):
            continue
        recent = rises[checkpoint:]
        share = sum(b > a for a, b in itertools.pairwise(recent)) / (len(recent) - 1)
        stalled = not halved and max(rises) <= best_at_checkpoint
        halved = share < _SHARE_OF_RISES or stalled
        if halved:
            step /= 2.0
            point = previous = best_point
            gradient = best_gradient
        checkpoint, best_at_checkpoint = k, max(rises)
        interval = max(interval - _SHRINKAGE, _SHORTEST_INTERVAL)
    return rises


def _steepest(gradient: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Return the direction of unit p-norm along which the objective rises most."""
    if not bool(gradient.any()):
        # At an exact minimum nothing says where to go: any direction leaves it.
        noise = torch.randn(gradient.shape, generator=generator, dtype=torch.float32, device="cpu")
        gradient = noise.to(gradient)
    if p == math.inf:
        return gradient.sign()
    gradient = gradient / gradient.abs().max()  # its square may underflow
    return gradient / gradient.norm()


def _project(point: Tensor, rho: float, p: float) -> Tensor:
    """Return the nearest point of the ball of p-norm rho."""
    if p == math.inf:
        return point.clamp(-rho, rho)
    # The squares of a large point overflow in single precision.
    return point * (rho / max(float(point.norm(dtype=torch.float64)), rho))
