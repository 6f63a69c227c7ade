r"""Information-geometric regularisation: a perturbation along the natural gradient."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.linearize import linearize
from paperkit.linearize.kronecker import KroneckerFactors, ekfac
from paperkit.memory import GIBIBYTE
from paperkit.network import Network, get_loss
from paperkit.optim.closures import Closure
from paperkit.optim.groups import Given
from paperkit.optim.kept import Kept
from paperkit.optim.opened import Passes
from paperkit.optim.vector import Vector
from paperkit.optim.wrapped import BaseOptimizer, WrappedOptimizer

MODES = ("paper", "gradient", "scaled_gradient")


class IGSAM(WrappedOptimizer):
    r"""The regulariser of information-geometric sharpness (IGS paper, equation 13).

    .. math::

       \theta \leftarrow \mathrm{base}\bigl(\theta, \nabla L(\theta + \varepsilon)\bigr), \qquad
       \varepsilon = \mu\, (F + \nu I)^{-1} g

    with EKFAC's approximation of the Fisher matrix F under the model's own labels, from the network
    in evaluation mode. The linear and convolution layers are perturbed; nothing else is. Equation
    13 has the pseudo-inverse :math:`F^{+}` in place of the damped inverse. The paper's choices of μ
    (its ρ), of damping and of renewals stand in its Appendix G.4, in the supplement of the
    proceedings, which was not at hand; so all three are to be tuned and reported.

    Equation 13 is meant to descend :math:`L + \mu\, g^\top F^{+} g` with the mini-batch's g, a
    stochastic version of equation 12, :math:`L + \mu\,\mathrm{IGS}`. With ε held fixed it follows
    :math:`g + \mu H F^{+} g`, which is :math:`(1 + \mu) g` where H = F and ε is exact. Only H − F,
    the damping and the errors of the approximation set it apart from a larger learning rate. The
    control modes tell these effects apart.

    A step takes two gradient evaluations (``"scaled_gradient"`` takes one), and every ``period``
    steps the passes of :func:`~paperkit.linearize.linearize`.

    Parameters
    ----------
    params : nn.Module or iterable
        Model; or parameters, named parameters or parameter groups, where a group may set its own
        options.
    model : nn.Module, optional
        Network that the closure calls, returning (n, C), where ``params`` is none. Pass the very
        object: the compiled model or the DistributedDataParallel model if the closure calls that.
    base : callable
        Class or function that makes the base optimizer from the parameters.
    rho : float
        Weight μ ≥ 0 of the penalty, without a unit; the paper's ρ.
    damping : float
        Damping ν > 0, in the units of the Fisher matrix's eigenvalues.
    period : int
        Number of steps between renewals of F.
    samples : int, optional
        Number of the batch's inputs from which F is computed; default all.
    loss : str
        Name from :data:`paperkit.network.LOSSES`. Terms that the closure adds to it, such as label
        smoothing, do not enter F.
    mode : str
        ``"paper"``, or the name of a control. ``"gradient"`` has
        :math:`\varepsilon = (\mu / \nu) g` in all parameters, the limit of large damping.
        ``"scaled_gradient"`` follows :math:`(1 + \mu) g`.
    memory_budget : int
        Bytes for :func:`~paperkit.linearize.linearize`, which refuses a batch that needs more: then
        raise it or set ``samples``.
    **options
        Options ``max_norm``, ``log`` and ``no_sync``, and those of the base optimizer.

    Raises
    ------
    ValueError
        If an option is unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.optim import IGSAM
    >>> model, inputs = nn.Linear(1, 2, bias=False), torch.ones(1, 1)
    >>> _ = nn.init.zeros_(model.weight)
    >>> optimizer = IGSAM(model.parameters(), model, rho=0.1, damping=0.5, lr=0.1)
    >>> optimizer.renew_factors(inputs)  # the gradient's eigenvalue in F is ½
    >>> nn.functional.cross_entropy(model(inputs), torch.tensor([0])).backward()
    >>> optimizer.first_step()
    >>> model.weight.detach()  # 0.1 g / (½ + ½)
    tensor([[-0.0500],
            [ 0.0500]])
    """

    options = (*WrappedOptimizer.options, "damping", "period", "samples", "loss", "mode")

    _kept_factors = Kept[dict[str, dict[str, Any]]]("factors")

    def __init__(
        self,
        params: Given,
        model: nn.Module | None = None,
        base: BaseOptimizer = torch.optim.SGD,
        *,
        rho: float,
        damping: float,
        period: int = 10,
        samples: int | None = None,
        loss: str = "cross_entropy",
        mode: str = "paper",
        memory_budget: int = GIBIBYTE,
        **options: Any,
    ) -> None:
        if model is None and not isinstance(params, nn.Module):
            raise TypeError(
                f"params={arguments.shown(params)} does not say which network it is: pass the "
                "model, as IGSAM(model, ...), or model=."
            )
        self.model = cast(nn.Module, params if model is None else model)
        Network.of(self.model)  # raises if the argument is no model, or one without values
        self.damping = arguments.number("damping", damping, above=0)
        self.period = arguments.integer("period", period, at_least=1)
        if samples is not None:
            samples = arguments.integer("samples", samples, at_least=1)
        self.samples = samples
        self.loss = get_loss(loss).name
        self.mode = arguments.choice("mode", mode, MODES)
        self.memory_budget = arguments.memory_budget("memory_budget", memory_budget)
        super().__init__(params, base, rho, **options)
        if model is not None:
            self._modules.roots.append(model)

    @property
    def factors(self) -> dict[str, KroneckerFactors]:
        """EKFAC's factors by layer, empty before they are known."""
        device = self._parameters()[0].device
        return {
            name: KroneckerFactors(
                name,
                {key: torch.Size(shape) for key, shape in kept["parameter_shapes"].items()},
                kept["output_basis"].to(device),
                kept["input_basis"].to(device),
                kept["eigenvalues"].to(device),
                kept["transposed"],
            )
            for name, kept in self._kept_factors.items()
        }

    def perturbation(self, gradient: Vector, weights: Vector, strengths: Sequence[float]) -> Vector:
        """Return ε, see the class."""
        if self.mode == "gradient":
            return gradient.scaled(strengths) / self.damping
        if not self._kept_factors:
            raise RuntimeError("a loop by hand calls renew_factors(inputs) first.")
        parts = dict(zip(map(id, self._active_parameters()), gradient.tensors, strict=True))
        directions = self._natural_gradient(parts)
        return Vector(
            [
                directions.get(id(parameter), torch.zeros_like(parameter))
                for parameter in self._active_parameters()
            ]
        ).scaled(strengths)

    def renew_factors(self, inputs: Tensor) -> None:
        """Compute EKFAC's factors; ``step`` does it when they are due.

        Parameters
        ----------
        inputs : Tensor
            Inputs of the model, (n, …).

        Raises
        ------
        ValueError
            If the inputs do not fit the model, or need more memory than the budget.
        RuntimeError
            If the factors of the first time have no eigenvalues to round-off. Later the factors of
            the time before stay, with a warning.
        """
        linearization = linearize(
            _unwrap(self.model),
            inputs[: self.samples],
            self.loss,
            memory_budget=self.memory_budget,
        )
        try:
            renewed = ekfac(linearization)
        except torch.linalg.LinAlgError as error:
            # LAPACK gives up on some matrices that are nearly empty, as those of dead units are.
            what = (
                "the eigenvalues of IGSAM's factors did not converge, as happens where nearly all "
                "units of a layer are dead or a value is not finite"
            )
            if not self._kept_factors:
                raise RuntimeError(f"{what}: lower lr=, or check the inputs.") from error
            warnings.warn(
                f"{what}; the factors of the time before stay.", RuntimeWarning, stacklevel=2
            )
            return
        self._kept_factors = {
            name: {
                "parameter_shapes": {key: list(s) for key, s in f.parameter_shapes.items()},
                "output_basis": f.output_basis,
                "input_basis": f.input_basis,
                "eigenvalues": f.eigenvalues,
                "transposed": f.transposed,
            }
            for name, f in renewed.items()
        }

    def _natural_gradient(self, gradient: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return (F + νI)⁻¹g of the layers' parameters; keys are the parameters' ``id``."""
        parameters = dict(_unwrap(self.model).named_parameters())
        directions = {}
        for factors in self.factors.values():
            layer = {name: parameters[name] for name in factors.parameter_shapes}
            if not any(id(parameter) in gradient for parameter in layer.values()):
                continue
            matrix = factors.join(
                {name: gradient.get(id(p), torch.zeros_like(p)) for name, p in layer.items()}
            )
            for name, part in factors.split(factors.inverse_product(matrix, self.damping)).items():
                directions[id(layer[name])] = part
        return directions

    def _perturbs(self) -> bool:
        return self.mode != "scaled_gradient" and super()._perturbs()

    def _single_pass(self) -> Passes:
        if self.mode == "scaled_gradient" and self._active_parameters():
            factors = [1.0 + mu for mu in self._strengths()]
            self._set_gradient(self._gradient().scaled(factors))
        return super()._single_pass()

    def _first_pass(self, closure: Closure) -> Any:
        if (
            self.mode != "paper"
            or not self._perturbs()
            or (self.steps % self.period and self._kept_factors)
        ):
            return super()._first_pass(closure)
        with _record_inputs(self.model) as inputs:
            loss = super()._first_pass(closure)
        if not self._perturbs_now():
            return loss
        if not inputs:
            raise ValueError("model was not called by the closure: pass the module that it calls.")
        self.renew_factors(torch.cat(inputs))
        return loss

    def _first_numbers(self) -> dict[str, Any]:
        return {**super()._first_numbers(), "factors": {}}


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside a compiled or distributed model."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inner = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


@contextmanager
def _record_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of all calls of the model."""
    inputs: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()
