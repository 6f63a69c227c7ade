r"""The Rényi sharpness of a network's layers, and of all of them jointly.

The Rényi sharpness of a layer (Rényi paper, Definition 2.1) is :math:`-H_\alpha(p)` with
:math:`p_i = \lambda_i / \sum_j \lambda_j`, :math:`\lambda` the eigenvalues of the layer's loss
Hessian. It does not see the Hessian's size, only the shape of its spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from paperkit.estimators.entropy import POLICIES, renyi_entropy, renyi_entropy_estimate
from paperkit.estimators.parameter_norm import weight_names
from paperkit.estimators.result import Measurement
from paperkit.estimators.spectra import MAX_DENSE, LayerSpectrum, dense_spectrum, layer_spectrum
from paperkit.linalg.gram import Spectrum
from paperkit.linalg.lanczos import Operator
from paperkit.linalg.quadrature import SpectralQuadrature, stochastic_lanczos_quadrature
from paperkit.linearize import LayerLinearization, dense_hessian, linearize
from paperkit.linearize.batches import as_batch
from paperkit.linearize.linearize import GIBIBYTE, MemoryBudgetError, layer_groups
from paperkit.linearize.losses import Loss, LossLike
from paperkit.linearize.operators import CurvatureOperator, GaussNewtonOperator, HessianOperator
from paperkit.linearize.problem import measure_of

METHODS = ("auto", "exact", "lanczos")

# Where no bracket tells how many steps are enough.
_STEPS_WITHOUT_BRACKET = 60
_BYTES = torch.float64.itemsize


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RenyiSharpness(Measurement):
    """A Rényi sharpness −H_α, in nats; ``float(result)`` is its value.

    Attributes
    ----------
    alpha : float
        The order.
    policy : str
        What was done with negative eigenvalues.
    spectrum : Spectrum or None
        The exact spectrum; None where it was estimated.
    quadrature : SpectralQuadrature or None
        What it was estimated from; None where it is exact.
    """

    alpha: float
    policy: str
    spectrum: Spectrum | None = None
    quadrature: SpectralQuadrature | None = None


@dataclass(frozen=True)
class _Settings:
    """How to get from a matrix to its entropies."""

    orders: tuple[float, ...]
    policy: str
    method: str
    probes: int
    steps: int | None
    max_steps: int
    seed: int
    max_dense: int
    memory_budget: int

    def fits(self, size: int) -> bool:
        """Whether a symmetric matrix of that size may be written out in float64."""
        return 2 * size * size * _BYTES <= self.memory_budget


@measure_of
def renyi_sharpness(
    model: nn.Module,
    data: object,
    alpha: float | Sequence[float] = (0.5, 1.5),
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    method: str = "auto",
    *,
    policy: str = "abs",
    probes: int = 100,
    steps: int | None = None,
    max_steps: int = 100,
    seed: int = 0,
    max_dense: int = MAX_DENSE,
    memory_budget: int = GIBIBYTE,
) -> dict[str, RenyiSharpness] | dict[str, dict[float, RenyiSharpness]]:
    """Return the Rényi sharpness −H_α of every layer (Rényi paper, Definition 2.1).

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    alpha : float or sequence of float
        One order or several; they share one set of spectra. Positive; α = 1 is the Shannon limit.
    loss : str, nn.Module or callable
        See :func:`paperkit.linearize.get_loss`.
    layers : sequence of str, optional
        Module names; default every linear and convolution layer, without biases and normalisation.
    method : str
        ``"exact"``: the whole spectrum, from the Gram dual or written out. ``"lanczos"``:
        stochastic Lanczos quadrature (Algorithm 1, corrected), with a standard error and a
        bracket. ``"auto"``: exact where it fits the memory budget.
    policy : str
        As in :func:`renyi_entropy`; matters only outside the proposition, where a block can have
        negative eigenvalues.
    probes : int
        Random vectors of the quadrature; the paper takes 100.
    steps : int, optional
        Lanczos steps; the paper takes 15, whose bias at order 0.5 can exceed the standard error.
        None: until every bracket is narrower than its standard error, at most ``max_steps``; for
        a block that may have negative eigenvalues under ``policy="clamp"``, which has no bracket,
        60 (or d if that is less).
    max_steps : int
        Cap for ``steps=None``.
    seed : int
        Of the probes.
    max_dense : int
        The largest block outside the proposition that is written out.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    dict
        From layer to result for one order, from layer to order to result for several. Values at
        different n are not comparable: the entropy is capped at log min(n(C−1), d_l). An estimate
        has ``converged=False`` where its bracket is wider than its standard error, or where there
        is no bracket to tell.

    Raises
    ------
    ValueError
        If an order is not positive, the method unknown, the data do not fit the model, or the
        exact method is asked for where it does not fit.
    """
    settings = _settings(
        alpha, policy, method, probes, steps, max_steps, seed, max_dense, memory_budget
    )
    inputs, targets = as_batch(data)
    results: dict[str, dict[float, RenyiSharpness]] = {}
    for group in layer_groups(model, inputs, layers, memory_budget):
        try:
            linearization = linearize(
                model, inputs, loss, group, targets=targets, memory_budget=memory_budget
            )
        except MemoryBudgetError:
            if method == "exact":
                raise
            results |= _streamed(model, (inputs, targets), loss, group, settings)
            continue
        for name, layer in linearization.layers.items():
            results[name] = _of_layer(layer, model, (inputs, targets), loss, settings)
    return _unpacked(results, alpha)


def renyi_sharpness_from(
    linearization_layers: dict[str, LayerLinearization],
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    alpha: Sequence[float] = (0.5, 1.5),
    *,
    policy: str = "abs",
    method: str = "auto",
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> dict[str, dict[float, RenyiSharpness]]:
    """Return what :func:`renyi_sharpness` does, from the layers of a linearization.

    The model and the data are needed only where a block is not its Gauss–Newton block.
    """
    settings = _settings(alpha, policy, method, 100, None, 100, seed, MAX_DENSE, memory_budget)
    return {
        name: _of_layer(layer, model, (inputs, targets), loss, settings)
        for name, layer in linearization_layers.items()
    }


@measure_of
def global_renyi_sharpness(
    model: nn.Module,
    data: object,
    alpha: float | Sequence[float] = (0.5, 1.5),
    loss: LossLike = "cross_entropy",
    method: str = "auto",
    *,
    policy: str = "abs",
    probes: int = 100,
    steps: int | None = None,
    seed: int = 0,
    max_dense: int = MAX_DENSE,
    memory_budget: int = GIBIBYTE,
) -> RenyiSharpness | dict[float, RenyiSharpness]:
    """Return the Rényi sharpness of all weights jointly.

    Definition 2.1 of the Rényi paper is for one layer. This is its form for all layers together,
    the "global" sharpness of Section 5.1 and Appendix F (equation 57). The matrix is the Hessian
    over every parameter tensor with more than one axis: no biases, no normalisation. It is not the
    Gauss–Newton matrix, also in a ReLU network, and it can have negative eigenvalues. It is not
    invariant under a rescaling of layers; the layers' own values are.

    Parameters
    ----------
    model, data, alpha, loss, method, policy, probes, steps, seed, max_dense, memory_budget
        As in :func:`renyi_sharpness`; the matrix is written out if it has at most ``max_dense``
        columns.

    Returns
    -------
    RenyiSharpness or dict
        By order if several are asked for.

    Raises
    ------
    ValueError
        As :func:`renyi_sharpness`.
    """
    settings = _settings(alpha, policy, method, probes, steps, 100, seed, max_dense, memory_budget)
    names = weight_names(model)
    parameters = dict(model.named_parameters())
    size = sum(parameters[name].numel() for name in names)
    if method == "exact" and size > max_dense:
        raise ValueError(
            f"method='exact' needs a matrix of {size} columns: raise max_dense={max_dense}, or "
            "use method='lanczos'."
        )
    if method != "lanczos" and size <= max_dense:
        inputs, targets = as_batch(data)
        spectrum = dense_spectrum(dense_hessian(model, inputs, targets, loss, names))
        common = {"n": len(inputs), "loss": loss, "layer": None}
        by_order = _exact(spectrum, settings, common, {"parameters": "all weights"})
    else:
        operator = HessianOperator(model, data, loss, names, memory_budget=memory_budget // 2)
        common = {"n": operator.num_samples, "loss": loss, "layer": None}
        by_order = _estimated(
            operator,
            operator.dimension,
            operator.dtype,
            operator.device,
            False,
            settings,
            common,
            {"parameters": "all weights"},
        )
    return _unpacked({"": by_order}, alpha)[""]


def _settings(
    alpha: float | Sequence[float],
    policy: str,
    method: str,
    probes: int,
    steps: int | None,
    max_steps: int,
    seed: int,
    max_dense: int,
    memory_budget: int,
) -> _Settings:
    orders = (alpha,) if isinstance(alpha, int | float) else tuple(alpha)
    if not orders or any(not order > 0 for order in orders):
        raise ValueError(f"alpha={alpha} must be positive: at 0 the entropy only counts the rank.")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}.")
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is unknown: choose one of {', '.join(POLICIES)}.")
    return _Settings(
        orders, policy, method, probes, steps, max_steps, seed, max_dense, memory_budget
    )


def _unpacked(results: dict, alpha: float | Sequence[float]) -> dict:
    if isinstance(alpha, int | float):
        return {name: by_order[alpha] for name, by_order in results.items()}
    return results


def _of_layer(
    layer: LayerLinearization,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    loss: Loss,
    settings: _Settings,
) -> dict[float, RenyiSharpness]:
    """Return one layer's results by order, exactly if the method and the budget allow it."""
    common = {"n": layer.num_samples, "loss": loss, "layer": layer.name}
    assumptions = {"exact_block": layer.exact_block, "obstacle": layer.obstacle}
    rows = layer.num_samples * layer.hessian_factor.shape[1]
    size = min(rows, layer.num_parameters) if layer.exact_block else layer.num_parameters
    fits = settings.fits(size) and (layer.exact_block or size <= settings.max_dense)
    if settings.method == "exact" and not fits:
        raise ValueError(
            f"method='exact' needs a {size} × {size} matrix for layer {layer.name}: raise "
            "memory_budget or max_dense, or use method='lanczos'."
        )
    if fits and settings.method != "lanczos":
        spectrum = layer_spectrum(layer, model, *data, loss)
        return _exact(spectrum, settings, common, assumptions)
    if not layer.exact_block:
        return _by_operator(
            HessianOperator(
                model,
                data,
                loss,
                [layer.weight_name],
                memory_budget=settings.memory_budget // 2,
            ),
            settings,
            common,
            assumptions,
        )

    factor = layer.hessian_factor
    # Formed once, the rows serve all steps.
    fits = 4 * rows * layer.num_parameters * factor.element_size() <= settings.memory_budget
    formed = layer.rows() if fits else None

    def product(vectors: Tensor) -> Tensor:
        if formed is not None:
            return (vectors @ formed.T) @ formed / layer.num_samples
        return layer.gauss_newton_product(vectors.reshape(-1, *layer.weight_shape)).flatten(1)

    return _estimated(
        product,
        layer.num_parameters,
        factor.dtype,
        factor.device,
        True,
        settings,
        common,
        assumptions,
    )


def _streamed(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    loss: Loss,
    layers: Sequence[str],
    settings: _Settings,
) -> dict[str, dict[float, RenyiSharpness]]:
    """Estimate from products that stream over the data, for layers whose pairs do not fit."""
    few = linearize(
        model,
        data[0][:2],
        loss,
        layers,
        targets=data[1][:2],
        memory_budget=settings.memory_budget,
    )
    results = {}
    for name, layer in few.layers.items():
        kind = GaussNewtonOperator if layer.exact_block else HessianOperator
        operator = kind(
            model, data, loss, [layer.weight_name], memory_budget=settings.memory_budget // 2
        )
        common = {"n": operator.num_samples, "loss": loss, "layer": name}
        assumptions = {"exact_block": layer.exact_block, "obstacle": layer.obstacle}
        results[name] = _by_operator(operator, settings, common, assumptions)
    return results


def _by_operator(
    operator: CurvatureOperator, settings: _Settings, common: dict, assumptions: dict
) -> dict[float, RenyiSharpness]:
    return _estimated(
        operator,
        operator.dimension,
        operator.dtype,
        operator.device,
        operator.positive_semidefinite,
        settings,
        common,
        assumptions,
    )


def _exact(
    spectrum: Spectrum, settings: _Settings, common: dict, assumptions: dict
) -> dict[float, RenyiSharpness]:
    method = spectrum.method if isinstance(spectrum, LayerSpectrum) else "dense"
    return {
        order: RenyiSharpness(
            value=-renyi_entropy(spectrum.eigenvalues, order, settings.policy),
            measure="renyi_sharpness",
            method=method,
            assumptions={"alpha": order, "policy": settings.policy, **assumptions},
            alpha=order,
            policy=settings.policy,
            spectrum=spectrum,
            **common,
        )
        for order in settings.orders
    }


def _estimated(
    operator: Operator,
    dimension: int,
    dtype: torch.dtype,
    device: torch.device,
    positive_semidefinite: bool,
    settings: _Settings,
    common: dict,
    assumptions: dict,
) -> dict[float, RenyiSharpness]:
    steps = settings.steps
    if steps is None and not positive_semidefinite and settings.policy != "abs":
        steps = _STEPS_WITHOUT_BRACKET
    quadrature = stochastic_lanczos_quadrature(
        operator,
        dimension,
        probes=settings.probes,
        steps=steps,
        max_steps=settings.max_steps,
        targets=[
            partial(renyi_entropy_estimate, alpha=order, policy=settings.policy)
            for order in settings.orders
        ],
        positive_semidefinite=positive_semidefinite,
        seed=settings.seed,
        dtype=dtype,
        device=device,
        memory_budget=settings.memory_budget // 2,
    )
    results = {}
    for order in settings.orders:
        entropy = renyi_entropy_estimate(quadrature, order, settings.policy)
        bracket = entropy.bracket
        results[order] = RenyiSharpness(
            value=-entropy.value,
            measure="renyi_sharpness",
            method="lanczos",
            standard_error=entropy.standard_error,
            bracket=None if bracket is None else (-bracket[1], -bracket[0]),
            probes=quadrature.probes,
            converged=entropy.bracket_ratio <= 1,
            assumptions={
                "alpha": order,
                "policy": settings.policy,
                "steps": int(quadrature.steps.max()),
                "reliable": entropy.reliable,
                **assumptions,
            },
            alpha=order,
            policy=settings.policy,
            quadrature=quadrature,
            **common,
        )
    return results
