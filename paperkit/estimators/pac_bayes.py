r"""PAC-Bayes flatness: how much Gaussian noise in the parameters costs a given share of accuracy.

σ is the standard deviation of the noise at which the accuracy on the data has dropped by a tenth
(Jiang et al. 2020, Dziugaite et al. 2020). Two measures follow, with n samples and w the weights
(no biases, no normalisation):

.. math:: \text{flat: } \frac{1}{\sigma^2}, \qquad
          \text{original: } \frac{\lVert w \rVert^2}{4\sigma^2} + \log\frac{n}{\sigma} + 10 ,

both reported as :math:`\sqrt{\cdot / n}`. A widely used code draws noise of standard deviation σ²
where its σ is meant; here it is σ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators.parameter_norm import parameter_norm
from paperkit.estimators.perturbed_loss import gaussian_like, select_parameters
from paperkit.estimators.result import Measurement
from paperkit.linalg.probes import generator_of
from paperkit.memory import GIBIBYTE
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import FORWARD, Chunks
from paperkit.network.losses import LOSSES
from paperkit.network.network import network_outputs
from paperkit.network.problem import measure_of

FORMS = ("flat", "original")

# Tensors of the parameters' size that a draw of noise holds, the last draw included: 4.99 measured.
_NOISE_COPIES = 5


@dataclass(frozen=True, kw_only=True, repr=False)
class PacBayesFlatness(Measurement):
    r"""A :math:`\sqrt{\text{complexity}/n}` with what it was computed from.

    Attributes
    ----------
    complexity : float
        The complexity, 1/σ² or ‖w‖²/(4σ²) + log(n/σ) + 10.
    sigma : float
        Standard deviation of the noise, in units of the parameters.
    sigma_error : float
        Its standard error over the draws, as if the drop grew in proportion to σ; where it sets
        in late, as it usually does, this is too large rather than too small. The tolerance of the
        search comes on top.
    accuracy : float
        Without noise, a fraction.
    drop : float
        Mean loss of accuracy at ``sigma``.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import pac_bayes_flatness
    >>> model = nn.Linear(1, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0], [-1.0]])
    >>> data = torch.linspace(0.1, 2.0, 100).unsqueeze(1), torch.zeros(100, dtype=torch.int64)
    >>> flatness = pac_bayes_flatness(model, data)
    >>> flatness.accuracy, abs(flatness.drop - 0.1) < 0.011  # the noise that costs a tenth of it
    (1.0, True)
    >>> round(float(flatness) ** 2 * 100 / flatness.complexity, 4)  # the root of complexity/n
    1.0
    """

    complexity: float
    sigma: float
    sigma_error: float
    accuracy: float
    drop: float


@measure_of
def pac_bayes_flatness(
    model: nn.Module,
    data: object,
    form: str = "flat",
    parameters: Sequence[str] | None = None,
    *,
    accuracy_drop: float = 0.1,
    tolerance: float = 0.01,
    max_sigma: float = 2.0,
    max_bisections: int = 15,
    draws: int = 10,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> PacBayesFlatness:
    r"""Return PAC-Bayes flatness, :math:`\sqrt{\text{complexity}/n}`.

    Every σ meets the same draws of noise, so that the mean accuracy changes little between nearby
    σ and the bisection does not chase chance.

    Batch normalisation uses its frozen statistics, and its parameters get noise like any other.
    The value then depends on the scale of the weights before it, which the function does not see:
    fold it into the layer before (``torch.nn.utils.fusion.fuse_conv_bn_eval``) to compare
    networks; ``assumptions["unfolded_batch_norm"]`` counts what is left.

    Parameters
    ----------
    model : nn.Module
        A classifier, called as ``model(inputs)``, returning (n, C); measured in evaluation mode,
        left as found.
    data : pair or iterable of pairs
        ``(inputs, labels)``, or batches of them; all n samples count equally.
    form : str
        ``"flat"`` or ``"original"``.
    parameters : sequence of str, optional
        Which get noise, names from ``model.named_parameters()``; default all.
    accuracy_drop : float
        The fraction of all samples to lose.
    tolerance : float
        The search stops within this distance of ``accuracy_drop``.
    max_sigma : float
        The search starts with the interval from 0 to here.
    max_bisections : int
        At most this many values of σ.
    draws : int
        Draws of the noise, at least 2; 10 in Dziugaite et al., 3 in Petzka et al.
    seed : int
        Seed of the noise.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    PacBayesFlatness
        ``converged`` is False where no σ within reach met the tolerance: σ is then the last one
        tried, close to ``max_sigma`` for a network whose accuracy never drops so far.

    Raises
    ------
    ValueError
        If an option is out of range, or the data do not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import pac_bayes_flatness
    >>> model = nn.Linear(1, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0], [-1.0]])
    >>> data = torch.linspace(0.1, 2.0, 100).unsqueeze(1), torch.zeros(100, dtype=torch.int64)
    >>> once = pac_bayes_flatness(model, data)
    >>> model.weight.data *= 2.0
    >>> twice = pac_bayes_flatness(model, data)
    >>> 1.5 < twice.sigma / once.sigma < 2.5  # weights twice as large bear twice the noise
    True
    """
    form = arguments.choice("form", form, FORMS)
    accuracy_drop = arguments.number("accuracy_drop", accuracy_drop, above=0, below=1)
    finer = "it must be finer than accuracy_drop"
    tolerance = arguments.number(
        "tolerance", tolerance, above=0, below=accuracy_drop, because=finer
    )
    max_sigma = arguments.number("max_sigma", max_sigma, above=0)
    max_bisections = arguments.integer("max_bisections", max_bisections, at_least=1)
    reason = "one has no standard error"
    draws = arguments.integer("draws", draws, at_least=2, because=reason)
    names = list(select_parameters(model, parameters))
    with evaluation(model) as leaves, torch.no_grad():
        chunks = Chunks(
            model,
            leaves,
            lambda sample: sample.bytes_of(FORWARD),
            memory_budget,
            reserved=_NOISE_COPIES * sum(leaves[name].nbytes for name in names),
        )
        accuracy, n = _accuracy(model, leaves, data, chunks)
        low, high = 0.0, max_sigma
        for _ in range(max_bisections):
            sigma = 0.5 * (low + high)
            noisy = (_noisy(leaves, names, sigma, (seed, draw)) for draw in range(draws))
            accuracies = [_accuracy(model, leaves | w, data, chunks, noisy=True)[0] for w in noisy]
            drops = accuracy - torch.tensor(accuracies, dtype=torch.float64, device="cpu")
            drop = float(drops.mean())
            if abs(drop - accuracy_drop) < tolerance:
                break
            low, high = (low, sigma) if drop > accuracy_drop else (sigma, high)
    complexity, slope = _complexity(form, sigma, n, model)
    value = math.sqrt(complexity / n)
    sigma_error = sigma * float(drops.std()) / math.sqrt(draws) / drop if drop > 0 else math.inf
    return PacBayesFlatness(
        value=value,
        measure="pac_bayes_flatness",
        method="bisection",
        n=n,
        standard_error=abs(slope) * sigma_error / (2.0 * n * value),
        probes=draws,
        converged=abs(drop - accuracy_drop) < tolerance,
        assumptions={
            "form": form,
            "parameters": "all" if parameters is None else tuple(names),
            "accuracy_drop": accuracy_drop,
            "tolerance": tolerance,
            "max_sigma": max_sigma,
            "unfolded_batch_norm": sum(
                isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()
            ),
        },
        complexity=complexity,
        sigma=sigma,
        sigma_error=sigma_error,
        accuracy=accuracy,
        drop=drop,
    )


def _complexity(form: str, sigma: float, n: int, model: nn.Module) -> tuple[float, float]:
    """Return the complexity and its derivative in σ."""
    if sigma**3 == 0:
        raise ValueError(f"max_sigma leaves sigma={sigma}, whose powers no float holds: raise it.")
    if form == "flat":
        return sigma**-2, -2.0 * sigma**-3
    square = parameter_norm(model, squared=True).value
    complexity = square / (4.0 * sigma**2) + math.log(n / sigma) + 10.0
    return complexity, -square / (2.0 * sigma**3) - 1.0 / sigma


def _noisy(
    leaves: dict[str, Tensor], names: list[str], sigma: float, key: tuple[int, int]
) -> dict[str, Tensor]:
    """Return w + σε, where ε depends on nothing but the key (seed, draw)."""
    seed, draw = key
    generator = generator_of(1_000_003 * seed + draw)
    return {name: leaves[name] + sigma * gaussian_like(leaves[name], generator) for name in names}


def _accuracy(
    model: nn.Module,
    parameters: dict[str, Tensor],
    data: object,
    chunks: Chunks,
    *,
    noisy: bool = False,
) -> tuple[float, int]:
    """Return the accuracy and the number of samples; noise may make outputs infinite: wrong."""
    correct = n = 0
    for inputs, labels in chunks(data):
        outputs = network_outputs(model, parameters, inputs)
        if not noisy:
            check_outputs(outputs, len(inputs))
            LOSSES["cross_entropy"].check(outputs, labels)
        finite = torch.isfinite(outputs).all(dim=1)
        correct += int((finite & (outputs.argmax(dim=1) == labels)).sum())
        n += len(inputs)
    return correct / n, n
