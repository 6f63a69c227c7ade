r"""Rényi entropy of a spectrum, and the Rényi sharpness of a network's layers.

The Rényi sharpness of a layer (Rényi paper, Definition 2.1) is :math:`-H_\alpha(p)` with
:math:`p_i = \lambda_i / \sum_j \lambda_j`, :math:`\lambda` the eigenvalues of the layer's loss
Hessian. It does not see the Hessian's size, only the shape of its spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit.linalg.gram import Spectrum
from paperkit.linearize import LayerLinearization, dense_hessian, linearize
from paperkit.linearize.batches import as_batch
from paperkit.linearize.evaluation import check_targets
from paperkit.linearize.linearize import GIBIBYTE, layer_groups

POLICIES = ("abs", "clamp")
METHODS = ("auto", "exact")

# Within this distance of 1 the general formula divides round-off by 1 − α: use its limit.
_SHANNON_BAND = 1e-6


def renyi_entropy(
    eigenvalues: Tensor | Sequence[float], alpha: float, policy: str = "abs"
) -> float:
    r"""Return :math:`H_\alpha(p) = \frac{1}{1-\alpha}\log\sum_i p_i^\alpha` of a spectrum.

    The limits are taken exactly: the logarithm of the number of nonzero eigenvalues at α = 0, the
    Shannon entropy at α = 1, :math:`-\log\max_i p_i` at α = ∞. Source: Rényi paper, Section 2 and
    equation 6; natural logarithm.

    Parameters
    ----------
    eigenvalues : Tensor or sequence of float
        Any number of them, zeros allowed; treated in float64.
    alpha : float
        The order, in [0, ∞].
    policy : str
        What to do with negative eigenvalues, for which the paper's definition has no meaning:
        ``"abs"`` takes :math:`p_i \propto |\lambda_i|`, ``"clamp"`` sets them to zero.

    Returns
    -------
    float
        Between 0 and the logarithm of the number of nonzero eigenvalues.

    Raises
    ------
    ValueError
        If alpha is negative or NaN, the policy unknown, or the spectrum is empty, not finite or
        entirely zero.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha={alpha} must be in [0, inf]: the entropy is not defined below 0.")
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is unknown: choose one of {', '.join(POLICIES)}.")
    values = torch.as_tensor(eigenvalues, dtype=torch.float64, device="cpu").detach().flatten()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("eigenvalues has NaN or infinite entries.")
    values = values.abs() if policy == "abs" else values.clamp(min=0.0)
    values = values[values > 0]
    if values.numel() == 0:
        raise ValueError("eigenvalues has no nonzero entry: the entropy of nothing is undefined.")
    # Dividing by the largest first keeps tiny and huge spectra away from under- and overflow.
    log_p = torch.log(values / values.max())
    log_p = log_p - torch.logsumexp(log_p, 0)
    if alpha == 0:
        return math.log(values.numel())
    if math.isinf(alpha):
        return -float(log_p.max())
    if abs(alpha - 1.0) < _SHANNON_BAND:
        return -float((log_p.exp() * log_p).sum())
    return float(torch.logsumexp(alpha * log_p, 0)) / (1.0 - alpha)


@dataclass(frozen=True)
class LayerSpectrum:
    """All Hessian eigenvalues of one layer's weight.

    Attributes
    ----------
    layer : str
        The module's name.
    eigenvalues : Tensor
        The nonzero ones, float64, descending, on the CPU.
    dimension : int
        d_l, the number of entries of the weight.
    n, num_outputs : int
        Samples and outputs; at most min(n(C−1), d_l) eigenvalues of a softmax block are nonzero.
    method : str
        ``"gram"`` (Gauss–Newton block equal to the Hessian block) or ``"dense"`` (all columns of
        the Hessian block).
    exact_block : bool
        Whether the proposition makes the Hessian block its Gauss–Newton block.
    obstacle : str or None
        Where it does not, why.
    tolerance : float
        Absolute; eigenvalues of smaller magnitude are counted as zero.
    loss : str
        With its reduction: see :data:`paperkit.linearize.LOSSES`.
    """

    layer: str
    eigenvalues: Tensor
    dimension: int
    n: int
    num_outputs: int
    method: str
    exact_block: bool
    obstacle: str | None
    tolerance: float
    loss: str

    @property
    def rank(self) -> int:
        """The number of eigenvalues above the tolerance."""
        return self.eigenvalues.numel()

    @property
    def trace(self) -> float:
        """The sum of the eigenvalues."""
        return float(self.eigenvalues.sum())

    @property
    def rank_bound(self) -> int:
        """min(n(C−1), d_l), which caps the entropy of an exact softmax block at its logarithm."""
        return min(self.n * (self.num_outputs - 1), self.dimension)


@dataclass(frozen=True)
class RenyiSharpness:
    """One layer's Rényi sharpness of one order; ``float(result)`` is its value.

    Attributes
    ----------
    value : float
        −H_α, in nats.
    standard_error : float or None
        None: the value is exact.
    alpha : float
        The order.
    spectrum : LayerSpectrum
        What it was computed from, with sample counts and method.
    policy : str
        What was done with negative eigenvalues.
    """

    value: float
    standard_error: float | None
    alpha: float
    spectrum: LayerSpectrum
    policy: str

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        how = self.spectrum
        return (
            f"RenyiSharpness({self.value:.6g}, alpha={self.alpha:g}, layer={how.layer!r}, "
            f"n={how.n}, method={how.method!r}, exact_block={how.exact_block})"
        )


def layer_spectra(
    model: nn.Module,
    data: object,
    loss: str = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    max_dense: int = 2048,
    chunk_size: int | None = None,
    memory_budget: int = GIBIBYTE,
) -> dict[str, LayerSpectrum]:
    """Return every layer's exact Hessian spectrum.

    Where the recorded operations show that the layer's Hessian block is its Gauss–Newton block,
    the spectrum comes from the Gram dual of one linearization. Elsewhere the block is written out
    column by column, if it has at most ``max_dense`` of them.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    loss : str
        A name from :data:`paperkit.linearize.LOSSES`.
    layers : sequence of str, optional
        Module names; default every linear and convolution layer. Biases and the parameters of
        normalisation layers do not belong to any layer.
    max_dense : int
        The largest block to write out.
    chunk_size : int, optional
        Samples of one forward pass; default what the budget allows.
    memory_budget : int
        Bytes above the model and its data. Where the pairs of all layers take more than half of
        it, the layers are linearized in groups.

    Returns
    -------
    dict of str to LayerSpectrum
        By layer, in the order of the forward pass.

    Raises
    ------
    ValueError
        If the data do not fit the model, or a block outside the proposition is too large.
    """
    inputs, targets = as_batch(data)
    spectra = {}
    for group in layer_groups(model, inputs, layers, memory_budget):
        linearization = linearize(
            model, inputs, loss, group, chunk_size=chunk_size, memory_budget=memory_budget
        )
        check_targets(targets, linearization.outputs, loss)
        _refuse_large(linearization.layers.values(), max_dense)
        for name, layer in linearization.layers.items():
            if layer.exact_block:
                spectrum = layer.spectrum()
            else:
                hessian = dense_hessian(model, inputs, targets, loss, [layer.weight_name])
                spectrum = _dense_spectrum(hessian)
            spectra[name] = LayerSpectrum(
                layer=name,
                eigenvalues=spectrum.eigenvalues,
                dimension=spectrum.dimension,
                n=inputs.shape[0],
                num_outputs=linearization.num_outputs,
                method="gram" if layer.exact_block else "dense",
                exact_block=layer.exact_block,
                obstacle=layer.obstacle,
                tolerance=spectrum.tolerance,
                loss=loss,
            )
    return spectra


def _refuse_large(layers: Iterable[LayerLinearization], max_dense: int) -> None:
    too_large = [
        f"{layer.name} ({layer.num_parameters} weights: {layer.obstacle})"
        for layer in layers
        if not layer.exact_block and layer.num_parameters > max_dense
    ]
    if too_large:
        raise ValueError(
            "layers: the Hessian block is not the Gauss–Newton block and is too large to write "
            f"out for {'; '.join(too_large)}. Leave these out, or raise max_dense={max_dense}."
        )


def _dense_spectrum(matrix: Tensor) -> Spectrum:
    eigenvalues = torch.linalg.eigvalsh(matrix.to(torch.float64)).flip(0).cpu()
    largest = float(eigenvalues.abs().max())
    tolerance = len(matrix) * torch.finfo(matrix.dtype).eps * largest
    return Spectrum(eigenvalues[eigenvalues.abs() > tolerance], len(matrix), tolerance)


def renyi_sharpness(
    model: nn.Module,
    data: object,
    alpha: float | Sequence[float] = (0.5, 1.5),
    loss: str = "cross_entropy",
    layers: Sequence[str] | None = None,
    method: str = "auto",
    *,
    policy: str = "abs",
    memory_budget: int = GIBIBYTE,
) -> dict[str, RenyiSharpness] | dict[str, dict[float, RenyiSharpness]]:
    """Return the Rényi sharpness −H_α of every layer (Rényi paper, Definition 2.1).

    Parameters
    ----------
    model, data, loss, layers, memory_budget
        As in :func:`layer_spectra`.
    alpha : float or sequence of float
        One order or several; they share one set of spectra. Positive; α = 1 is the Shannon limit.
    method : str
        ``"exact"``, or ``"auto"``, which is exact wherever the spectrum can be had.
    policy : str
        As in :func:`renyi_entropy`; matters only outside the proposition, where a block can have
        negative eigenvalues.

    Returns
    -------
    dict
        From layer to result for one order, from layer to order to result for several. Values at
        different n are not comparable: the entropy is capped at log min(n(C−1), d_l).

    Raises
    ------
    ValueError
        If an order is not positive, the method is unknown, or as :func:`layer_spectra`.
    """
    orders = (alpha,) if isinstance(alpha, int | float) else tuple(alpha)
    if not orders or any(not order > 0 for order in orders):
        raise ValueError(f"alpha={alpha} must be positive: at 0 the entropy only counts the rank.")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}.")
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is unknown: choose one of {', '.join(POLICIES)}.")
    spectra = layer_spectra(model, data, loss, layers, memory_budget=memory_budget)
    several = {
        name: {
            order: RenyiSharpness(
                -renyi_entropy(spectrum.eigenvalues, order, policy), None, order, spectrum, policy
            )
            for order in orders
        }
        for name, spectrum in spectra.items()
    }
    if isinstance(alpha, int | float):
        return {name: by_order[alpha] for name, by_order in several.items()}
    return several
