r"""Both sides of the Rényi paper's statements, printed, corrected and sharper.

Spectra are passed as *all* eigenvalues of the Hessian, zeros included, because the dimension
matters here. Negative eigenvalues, for which the paper's statements have no meaning, enter with
their magnitude, and the bound is then not certified. Logarithms are natural, entropies in nats.
An identity is a :class:`Bound` whose sides should be equal; its ``statement`` says so.

What a function cannot check from its arguments (that the loss lies in [0, 1], that a prior did not
see the sample) is an assumption with the value None; ``known`` supplies the answer by name.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.bounds.statement import Bound
from paperkit.estimators.entropy import renyi_entropy
from paperkit.estimators.spectra import layer_spectra
from paperkit.linalg.probes import generator_of
from paperkit.linearize.batches import as_batch
from paperkit.linearize.dense import select_parameters
from paperkit.linearize.evaluation import (
    check_inputs,
    check_outputs,
    evaluation,
)
from paperkit.linearize.linearize import layers_of
from paperkit.linearize.losses import get_loss
from paperkit.linearize.network import Network, network_outputs, own_parameters

Values = Tensor | Sequence[float]

VERSIONS = ("printed", "sharper")

# Degree-one positively homogeneous in their inputs, whatever their settings.
_HOMOGENEOUS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Identity, nn.Dropout, nn.Flatten),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


# ---------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------


def _nonzero(values: Values, name: str) -> Tensor:
    vector = arguments.vector(name, values)
    if not bool(vector.any()):
        raise ValueError(f"{name} is entirely zero: the entropy of nothing is undefined.")
    return vector


def _matrix(matrix: Tensor, name: str = "hessian") -> Tensor:
    values = arguments.square_matrix(name, matrix, symmetric=True)
    if not bool(values.any()):
        raise ValueError(f"{name} is entirely zero: its spectrum has no shape.")
    return 0.5 * (values + values.T)


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Return the eigenvalues, those at round-off set to zero."""
    values = torch.linalg.eigvalsh(matrix)
    threshold = len(values) * torch.finfo(torch.float64).eps * values.abs().max()
    return torch.where(values.abs() > threshold, values, torch.zeros_like(values))


def _semidefinite(values: Tensor) -> bool:
    threshold = len(values) * torch.finfo(torch.float64).eps * values.abs().max()
    return bool(values.min() >= -threshold)


def _probability(name: str, value: float) -> float:
    return arguments.number(name, value, above=0, below=1)


def _nonnegative(name: str, value: float) -> float:
    return arguments.number(name, value, at_least=0)


def _exponential(logarithm: float) -> float:
    """Return the exponential, infinite where it leaves the range of float64."""
    return float(torch.tensor(logarithm, dtype=torch.float64, device="cpu").exp())


def _assumptions(
    unchecked: Mapping[str, bool | None],
    known: Mapping[str, bool] | None,
    **checked: bool | None,
) -> dict[str, bool | None]:
    """Join what was checked with what the caller knows."""
    return {**checked, **unchecked, **arguments.known_truths("known", known, unchecked)}


# ---------------------------------------------------------------------------------------------
# The entropy (Section 2)
# ---------------------------------------------------------------------------------------------


def power_sum(eigenvalues: Values, alpha: float) -> float:
    r"""Return :math:`R_\alpha = \sum_i p_i^\alpha`, :math:`p_i = |\lambda_i| / \sum_j |\lambda_j|`.

    Source: Rényi paper, equation 57. Minimising the sharpness :math:`-H_\alpha` minimises
    :math:`R_\alpha` for α > 1 only; for α < 1, where the paper says the same, it maximises it.

    Raises
    ------
    ValueError
        If alpha is not positive, or the spectrum is empty, not finite or zero.
    """
    alpha = arguments.order("alpha", alpha)
    magnitudes = _nonzero(eigenvalues, "eigenvalues").abs()
    return float(((magnitudes / magnitudes.sum()) ** alpha).sum())


def trace_form(hessian: Tensor, alpha: float) -> Bound:
    r"""Compare the entropy with :math:`\frac{1}{1-\alpha}\log\frac{\mathrm{Tr}H^\alpha}{(\mathrm{Tr}H)^\alpha}`.

    Source: Rényi paper, equation 6; an identity for positive semidefinite H. For an indefinite H
    the right side is what the paper's code evaluates, :math:`\mathrm{Tr}|H|^\alpha` over the
    power of the signed trace: it diverges as α → 1 and is no entropy.

    Parameters
    ----------
    hessian : Tensor
        Symmetric, (d, d), of positive trace.
    alpha : float
        Positive, not 1.

    Raises
    ------
    ValueError
        If the trace is not positive, alpha = 1, or the matrix is not symmetric and finite.
    """  # noqa: E501
    alpha = arguments.order("alpha", alpha, one_allowed=False)
    matrix = _matrix(hessian)
    trace = float(matrix.trace())
    if trace <= 0:
        raise ValueError(f"hessian has trace {trace:.3g}: the formula needs a positive one.")
    values = _eigenvalues(matrix)
    log_power = float(torch.logsumexp(alpha * values.abs().log(), 0))
    return Bound(
        statement="identity: H_α(H) = log(Tr H^α / (Tr H)^α) / (1 − α)",
        source="Rényi paper, eq. 6",
        left=renyi_entropy(values, alpha),
        right=(log_power - alpha * math.log(trace)) / (1.0 - alpha),
        assumptions={"positive_semidefinite": _semidefinite(values)},
    )


def convexity(p: Values, q: Values, alpha: float, version: str = "printed") -> Bound:
    r"""Compare the entropy of the midpoint of two distributions with the mean entropy of the ends.

    Source: Rényi paper, Section 2, "Convexity". The printed claim is false at every order: two
    different vertices exceed it by log 2. The ``"corrected"`` claim is concavity; it is a theorem
    for α ≤ 1, and for two outcomes up to α = 2, and fails in d dimensions once
    :math:`d > 4^{\alpha/(\alpha-1)}`. The uniform distribution is the maximum at every order for
    another reason, Schur-concavity.

    Parameters
    ----------
    p, q : Tensor or sequence of float
        Distributions over the same outcomes.
    alpha : float
        Positive.
    version : str
        ``"printed"`` or ``"corrected"``.

    Raises
    ------
    ValueError
        If p or q is no distribution, their lengths differ, or the version is unknown.
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, ("printed", "corrected"))
    first, second = _distribution(p, "p"), _distribution(q, "q")
    if len(first) != len(second):
        raise ValueError(f"q has {len(second)} outcomes and p has {len(first)}: make them agree.")
    midpoint = renyi_entropy(0.5 * (first + second), alpha)
    ends = 0.5 * (renyi_entropy(first, alpha) + renyi_entropy(second, alpha))
    concave = alpha <= 1 or (len(first) == 2 and alpha <= 2)
    if version == "printed":
        return Bound(
            statement="H_α((p + q)/2) ≤ (H_α(p) + H_α(q))/2",
            source="Rényi paper, Section 2",
            left=midpoint,
            right=ends,
            assumptions={"entropy_is_convex": False},
        )
    return Bound(
        statement="(H_α(p) + H_α(q))/2 ≤ H_α((p + q)/2)",
        source="Rényi paper, Section 2, corrected",
        left=ends,
        right=midpoint,
        assumptions={"entropy_is_concave_at_this_order": concave},
    )


def _distribution(values: Values, name: str) -> Tensor:
    vector = _nonzero(values, name)
    if bool((vector < 0).any()) or abs(float(vector.sum()) - 1.0) > 1e-9:
        raise ValueError(f"{name} is no distribution: divide nonnegative entries by their sum.")
    return vector


def decrease_in_order(eigenvalues: Values, low: float, high: float) -> Bound:
    """Compare the entropies of two orders: the larger order has the smaller entropy.

    Source: Rényi paper, Section 2, "Monotonic decrease".

    Raises
    ------
    ValueError
        If ``low > high`` or an order is not positive.
    """
    eigenvalues = _nonzero(eigenvalues, "eigenvalues")
    low = arguments.order("low", low)
    high = arguments.order("high", high)
    if low > high:
        raise ValueError(f"low={low} exceeds high={high}: exchange them.")
    return Bound(
        statement="H_high ≤ H_low",
        source="Rényi paper, Section 2",
        left=renyi_entropy(eigenvalues, high),
        right=renyi_entropy(eigenvalues, low),
    )


# ---------------------------------------------------------------------------------------------
# Invariance under layer-wise scaling (Proposition 2.2)
# ---------------------------------------------------------------------------------------------


def layer_scaling_invariance(
    model: nn.Module,
    data: object,
    factors: Mapping[str, float],
    alpha: float,
    loss: str = "cross_entropy",
) -> dict[str, Bound]:
    """Compare every layer's entropy before and after layers are multiplied by positive factors.

    Source: Rényi paper, Proposition 2.2, Proposition E.1 and Corollary E.2; identities. They hold
    for α = 1 too. They need positively homogeneous activations *and* no biases; factors for
    single units, or the joint Hessian of all layers, are not covered.

    Parameters
    ----------
    model : nn.Module
        Left unchanged.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    factors : mapping of str to float
        From layer name to its positive factor; layers that are not named keep their weights.
    alpha : float
        Positive.
    loss : str
        A name from :data:`paperkit.linearize.losses.LOSSES`.

    Returns
    -------
    dict of str to Bound
        By layer: the scaled network on the left, the given one on the right. ``homogeneous`` is
        True where the modules show it, False where scaling one layer by 2 does not double the
        outputs, None where neither decides.

    Raises
    ------
    ValueError
        If a factor is not positive, a layer is unknown, or the data do not fit.
    """
    alpha = arguments.order("alpha", alpha)
    scales = {
        name: arguments.number(f"factors[{name!r}]", factor, above=0)
        for name, factor in arguments.mapping("factors", factors).items()
    }
    arguments.module("model", model)
    arguments.names("factors", list(scales), layers_of(model), at_least=0)
    before = layer_spectra(model, data, loss)
    after = layer_spectra(_scaled(model, scales), data, loss)
    assumptions = {
        "factors_have_product_one": math.isclose(math.prod(scales.values()), 1, rel_tol=1e-12),
        "homogeneous": _homogeneous(model, as_batch(data)[0], list(before)),
    }
    return {
        name: Bound(
            statement=f"identity: scaling the layers keeps H_α of layer {name}",
            source="Rényi paper, Prop. 2.2",
            left=renyi_entropy(after[name].eigenvalues, alpha),
            right=renyi_entropy(before[name].eigenvalues, alpha),
            assumptions=assumptions,
        )
        for name in before
    }


def _scaled(model: nn.Module, factors: Mapping[str, float]) -> nn.Module:
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, factor in factors.items():
            scaled.get_submodule(name).get_parameter("weight").mul_(factor)
    return scaled


def _homogeneous(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> bool | None:
    """Whether the outputs are proportional to a positive factor on any one layer's weights."""
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    linear = [module for module in modules if isinstance(module, _LINEAR)]
    if (
        all(isinstance(module, (nn.Sequential, *_HOMOGENEOUS, *_LINEAR)) for module in modules)
        and all(module.bias is None for module in linear)
        and len({id(module.weight) for module in linear}) == len(linear)
    ):
        return True
    with evaluation(model), torch.no_grad():
        outputs = network_outputs(model, {}, inputs)
        for layer in layers:
            name = f"{layer}.weight"
            doubled = network_outputs(model, {name: 2 * model.get_parameter(name)}, inputs)
            if float((doubled - 2 * outputs).norm()) > 1e-4 * float(outputs.norm()):
                return False
    return None


def _loss_value(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    loss: str,
) -> Tensor:
    """Return the mean loss with some parameters replaced; call it inside ``evaluation``."""
    check_inputs(inputs)
    outputs = network_outputs(model, dict(parameters), inputs)
    check_outputs(outputs, len(inputs))
    known = get_loss(loss)
    known.check(outputs, targets)
    return known.value(outputs, targets)


# ---------------------------------------------------------------------------------------------
# From perturbed data to perturbed weights (Section 3, Appendix B)
# ---------------------------------------------------------------------------------------------


def haar_matrices(dimension: int, draws: int, seed: int = 0) -> Tensor:
    """Draw orthogonal matrices from the Haar measure on O(d): (draws, d, d), float64, CPU.

    The QR factors of Gaussian matrices, with the signs that make the factorisation unique
    (Mezzadri 2007); without them the result is not uniform.

    Raises
    ------
    ValueError
        If the dimension or the number of draws is not positive.
    """
    dimension = arguments.integer("dimension", dimension, at_least=1)
    draws = arguments.integer("draws", draws, at_least=1)
    generator = generator_of(seed)
    shape = (draws, dimension, dimension)
    gaussian = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)


def translated_losses(
    model: nn.Module,
    data: object,
    layer: str,
    perturbations: Tensor,
    rho: float,
    loss: str = "cross_entropy",
) -> Tensor:
    r"""Return the loss with a layer's inputs h moved to :math:`h + \rho A h`, for each A.

    Source: Rényi paper, Proposition 3.1: for the layer that reads the network's input it is
    :math:`L(S(A, \rho), \theta)`; for another it is its analogue in feature space.

    Parameters
    ----------
    model : nn.Module
        Measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    layer : str
        The name of a linear layer. (For a convolution a matrix on its inputs is in general no
        change of its kernel.)
    perturbations : Tensor
        Matrices A, shape (k, d, d), d the layer's number of inputs.
    rho : float
        Their size.
    loss : str
        A name from :data:`paperkit.linearize.losses.LOSSES`.

    Returns
    -------
    Tensor
        Shape (k,), float64, on the CPU.

    Raises
    ------
    ValueError
        If the layer is not linear or the matrices do not fit it.
    """
    rho = arguments.number("rho", rho)
    module = _linear_layer(model, layer)
    d = module.in_features
    arguments.tensor("perturbations", perturbations, shape=("k", d, d), finite=True)
    matrices = perturbations.to(module.weight)
    inputs, targets = as_batch(data)
    losses = []
    for matrix in matrices:

        def move(_: nn.Module, arguments: tuple[Tensor, ...], a: Tensor = matrix) -> Tensor:
            return arguments[0] + rho * arguments[0] @ a.T

        handle = module.register_forward_pre_hook(move)
        try:
            with evaluation(model), torch.no_grad():
                losses.append(float(_loss_value(model, {}, inputs, targets, loss)))
        finally:
            handle.remove()
    return torch.tensor(losses, dtype=torch.float64, device="cpu")


def _linear_layer(model: nn.Module, layer: str) -> nn.Linear:
    arguments.module("model", model)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not linear:
        raise ValueError(f"model={arguments.shown(model)} has no linear layer.")
    return linear[arguments.choice("layer", layer, linear)]


def perturbation_translation(
    model: nn.Module,
    data: object,
    layer: str,
    perturbation: Tensor,
    rho: float,
    loss: str = "cross_entropy",
) -> Bound:
    r"""Compare the loss with inputs moved by :math:`\rho A h` and with weights by :math:`\rho W A`.

    Source: Rényi paper, equation 2; an identity for a linear layer, with or without bias.

    Parameters
    ----------
    model, data, layer, rho, loss
        As in :func:`translated_losses`.
    perturbation : Tensor
        A, shape (d, d); the same for all samples. It need not be orthogonal.

    Raises
    ------
    ValueError
        As :func:`translated_losses`.
    """
    rho = arguments.number("rho", rho)
    module = _linear_layer(model, layer)
    d = module.in_features
    arguments.tensor("perturbation", perturbation, shape=(d, d), finite=True)
    matrices = perturbation.unsqueeze(0)
    left = float(translated_losses(model, data, layer, matrices, rho, loss)[0])
    inputs, targets = as_batch(data)
    moved = module.weight.detach() + rho * module.weight.detach() @ perturbation.to(module.weight)
    with evaluation(model), torch.no_grad():
        right = float(_loss_value(model, {f"{layer}.weight": moved}, inputs, targets, loss))
    owners = [m for m in model.modules() if getattr(m, "weight", None) is module.weight]
    return Bound(
        statement="identity: g(W(h + ρAh)) = g((W + ρWA)h), here inside the mean loss",
        source="Rényi paper, eq. 2",
        left=left,
        right=right,
        assumptions={"weight_belongs_to_one_module": len(owners) == 1},
        tolerance=max(1e-9, 100 * torch.finfo(moved.dtype).eps),
    )


def haar_translation(
    population_loss: float,
    perturbed_losses: Values,
    n: int,
    epsilon: float,
    *,
    loss_range: float = 1.0,
    perturbed_population_loss: float | None = None,
    known: Mapping[str, bool] | None = None,
) -> Bound:
    r"""Bound the population loss by the mean loss on perturbed data.

    :math:`L(D, \theta) \le E_A L(S(A, \rho), \theta) + C\sqrt{\log(1/\varepsilon) / 2n}` with
    probability 1 − ε. Source: Rényi paper, Proposition 3.1, Theorem B.1 and Corollary B.3. False
    as printed, for parameters trained on S: Hoeffding's inequality needs a sample that θ does not
    depend on, and a network that memorises random labels violates it. It holds on a hold-out S.

    Parameters
    ----------
    population_loss : float
        L(D, θ), or its estimate.
    perturbed_losses : Tensor or sequence of float
        L(S(A, ρ), θ) for the drawn A (:func:`translated_losses`); their mean is used.
    n : int
        Samples in S.
    epsilon : float
        Probability that the bound may fail.
    loss_range : float
        C, the loss lies in [0, C].
    perturbed_population_loss : float, optional
        E_A L(D(A, ρ), θ); decides the hypothesis that perturbing does not lower the loss.
    known : mapping of str to bool, optional
        Answers to ``parameters_independent_of_sample``, ``loss_within_range`` and
        ``expectation_over_the_haar_measure``.

    Raises
    ------
    ValueError
        If n, epsilon or the range is out of range, or ``known`` has another name.
    """
    population_loss = arguments.number("population_loss", population_loss)
    losses = arguments.vector("perturbed_losses", perturbed_losses)
    n, epsilon = arguments.integer("n", n, at_least=1), _probability("epsilon", epsilon)
    loss_range = arguments.number("loss_range", loss_range, above=0)
    raises = None
    if perturbed_population_loss is not None:
        perturbed = arguments.number("perturbed_population_loss", perturbed_population_loss)
        raises = population_loss <= perturbed
    deviation = loss_range * math.sqrt(math.log(1.0 / epsilon) / (2.0 * n))
    return Bound(
        statement="L(D, θ) ≤ E_A L(S(A, ρ), θ) + C √(log(1/ε) / 2n)",
        source="Rényi paper, Prop. 3.1 and Thm. B.1",
        left=population_loss,
        right=float(losses.mean()) + deviation,
        assumptions=_assumptions(
            dict.fromkeys(
                (
                    "parameters_independent_of_sample",
                    "loss_within_range",
                    "expectation_over_the_haar_measure",
                )
            ),
            known,
            perturbation_raises_population_loss=raises,
        ),
    )


def haar_relative_flatness(
    weight: Tensor, hessian: Tensor, perturbations: Tensor, rho: float = 1.0
) -> Bound:
    r"""Compare the mean rise of the quadratic loss under WA with relative flatness.

    :math:`E_A \tfrac{\rho^2}{2} \mathrm{vec}(WA)^\top H\, \mathrm{vec}(WA) =
    \frac{\rho^2}{2d} \sum_{s,s'} \langle w_s, w_{s'} \rangle \mathrm{Tr} H_{ss'}`, because Haar
    matrices have :math:`E A_{kj} A_{k'j'} = \delta_{kk'} \delta_{jj'} / d`. So the translation of
    the Rényi paper's Section 3 leads to the measure of Petzka et al. (2021), and to no entropy.

    Parameters
    ----------
    weight : Tensor
        W, shape (o, d), rows w_s.
    hessian : Tensor
        The layer's block, (o·d, o·d), W flattened row-major.
    perturbations : Tensor
        Equally likely matrices A, shape (k, d, d). Any set with Haar's second moment gives the
        identity exactly, for example the signed permutations; draws give it up to their error.
    rho : float
        The size of the perturbation.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    rho = arguments.number("rho", rho)
    arguments.tensor("weight", weight, shape=("o", "d"), finite=True)
    outputs, d = weight.shape
    arguments.tensor("hessian", hessian, shape=(outputs * d, outputs * d))
    arguments.tensor("perturbations", perturbations, shape=("k", d, d), finite=True)
    w = weight.detach().to(device="cpu", dtype=torch.float64)
    matrix = _matrix(hessian)
    a = perturbations.detach().to(device="cpu", dtype=torch.float64)
    moves = (w @ a).flatten(1)
    traces = matrix.reshape(outputs, d, outputs, d).diagonal(dim1=1, dim2=3).sum(2)
    flat = a.flatten(1)
    moment = flat.T @ flat / len(a)
    haar = torch.eye(d * d, dtype=torch.float64, device="cpu") / d
    return Bound(
        statement="identity: E_A ½ρ² vec(WA)ᵀ H vec(WA) = ρ²/(2d) Σ ⟨w_s, w_s'⟩ Tr H_ss'",
        source="derived from Rényi paper, Section 3; Petzka et al. 2021",
        left=0.5 * rho * rho * float(((moves @ matrix) * moves).sum(1).mean()),
        right=0.5 * rho * rho / d * float(((w @ w.T) * traces).sum()),
        assumptions={"second_moment_is_haar": torch.allclose(moment, haar, rtol=0, atol=1e-12)},
    )


# ---------------------------------------------------------------------------------------------
# The determinant and the entropy (equations 26 to 40)
# ---------------------------------------------------------------------------------------------


def _log_determinant(values: Tensor) -> float:
    return float(values.abs().log().sum())


def _log_trace(values: Tensor) -> float:
    return math.log(float(values.abs().sum()))


def determinant_chain(eigenvalues: Values, alpha: float) -> tuple[Bound, Bound, Bound]:
    r"""Return the three steps from the log-determinant to the paper's bound on it.

    :math:`\log|H| \le d \log(\mathrm{Tr}H/d) \le d\log\mathrm{Tr}H - d H_\alpha \le
    d\log\mathrm{Tr}H - H_\alpha`. Source: Rényi paper, equations 26 to 40 (the whole chain); the
    two middle terms are ours. At a fixed trace the first quantity is *largest* for a uniform
    spectrum, where the last one is smallest: only the slack falls with the entropy.

    Raises
    ------
    ValueError
        If alpha is not positive, or the spectrum is empty, not finite or zero.
    """
    alpha = arguments.order("alpha", alpha)
    values = _nonzero(eigenvalues, "eigenvalues")
    d, log_trace = len(values), _log_trace(values)
    entropy = renyi_entropy(values, alpha)
    terms = {
        "log|H|": _log_determinant(values),
        "d log(Tr H / d)": d * (log_trace - math.log(d)),
        "d log Tr H − d H_α": d * (log_trace - entropy),
        "d log Tr H − H_α": d * log_trace - entropy,
    }
    names = list(terms)
    first, second, third = (
        Bound(
            statement=f"{left} ≤ {right}",
            source="Rényi paper, eqs. 26–40, with two terms of ours between",
            left=terms[left],
            right=terms[right],
            assumptions={"positive_semidefinite": _semidefinite(values)},
        )
        for left, right in pairwise(names)
    )
    return first, second, third


def sum_of_logarithms(eigenvalues: Values, alpha: float, version: str = "printed") -> Bound:
    r"""Bound :math:`\sum_i \log p_i` by the entropy.

    Source: Rényi paper, equations 32 and 38 to 40: at most :math:`-H_\alpha`. The inequality of
    the means gives d times as much, :math:`-d \log d \le -d H_\alpha` (``"sharper"``).

    Raises
    ------
    ValueError
        If alpha is not positive, the version unknown, or the spectrum empty, not finite or zero.
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, VERSIONS)
    values = _nonzero(eigenvalues, "eigenvalues")
    multiple = 1 if version == "printed" else len(values)
    return Bound(
        statement="Σ log p_i ≤ −H_α" if version == "printed" else "Σ log p_i ≤ −d H_α",
        source="Rényi paper, eqs. 38–40" + ("" if version == "printed" else ", sharpened"),
        left=_log_determinant(values) - len(values) * _log_trace(values),
        right=-multiple * renyi_entropy(values, alpha),
        assumptions={"positive_semidefinite": _semidefinite(values)},
    )


# ---------------------------------------------------------------------------------------------
# An isolated minimum (Theorem 3.2, Appendix C)
# ---------------------------------------------------------------------------------------------

_ISOLATED_STATEMENTS = {
    "printed": "E_Q L(D) ≤ E_Q L(S) + 2 √((2L₀ + 2A + log(2N/δ)) / (N − 1))",
    "sharper": "E_Q L(D) ≤ E_Q L(S) + √((E_P[L − L₀] + log(2N/δ)) / 2(N − 1))",
}
_ISOLATED = {
    "loss_in_unit_interval": None,
    "quadratic_loss_on_an_ellipsoid": None,
    "prior_independent_of_sample": False,
}


def _rise(log_determinant: float, dimension: int, log_volume: float, exact: bool) -> float:
    """Mean of the quadratic loss over its level ellipsoid, from log V and log|H|."""
    d, log_volume = dimension, arguments.number("log_volume", log_volume)
    curvature = (2.0 * log_volume + log_determinant) / d
    if exact:
        ball = 2.0 * math.lgamma(0.5 * d + 1.0) / d - math.log(math.pi)
        return 0.5 * d / (d + 2.0) * _exponential(ball + curvature)
    return d / (4.0 * math.pi * math.e) * _exponential(math.log(math.pi) / d + curvature)


def neighbourhood_rise(eigenvalues: Values, log_volume: float) -> Bound:
    r"""Compare the mean rise of the loss over an ellipsoidal neighbourhood with the printed A.

    The mean of :math:`\tfrac12 \Delta^\top H \Delta` over its level ellipsoid of volume V is
    :math:`\frac{d}{2(d+2)} \Gamma(\tfrac d2 + 1)^{2/d} \pi^{-1} V^{2/d} |H|^{1/d}`. Source: Rényi
    paper, Theorem C.2 (after Jia and Su 2020), whose
    :math:`A = \frac{d}{4\pi e} \pi^{1/d} V^{2/d} |H|^{1/d}` is Stirling's formula for it and no
    upper bound: 2.2 times as large at d = 1, but smaller from d = 6 on, by 5.6 % at most.

    Parameters
    ----------
    eigenvalues : Tensor or sequence of float
        Of H, all d of them.
    log_volume : float
        log V; the volume itself leaves the range of float64 at a network's dimension.

    Raises
    ------
    ValueError
        If the spectrum is empty, not finite or zero.
    """
    values = _nonzero(eigenvalues, "eigenvalues")
    d, log_determinant = len(values), _log_determinant(values)
    return Bound(
        statement="E_P[½ΔᵀHΔ] ≤ A, the printed A being asymptotic",
        source="Rényi paper, Thm. C.2",
        left=_rise(log_determinant, d, log_volume, exact=True),
        right=_rise(log_determinant, d, log_volume, exact=False),
        assumptions={
            "positive_definite": bool(values.min() > 0),
            "dimension_at_most_5": d <= 5,
        },
    )


def _isolated_right(
    training_risk: float, minimum_loss: float, rise: float, n: int, delta: float, version: str
) -> float:
    training_risk = arguments.number("training_risk", training_risk)
    minimum_loss = _nonnegative("minimum_loss", minimum_loss)
    n, delta = arguments.integer("n", n, at_least=2), _probability("delta", delta)
    confidence = math.log(2.0 * n / delta)
    if version == "printed":
        return training_risk + 2.0 * math.sqrt(
            (2.0 * minimum_loss + 2.0 * rise + confidence) / (n - 1.0)
        )
    return training_risk + math.sqrt((rise + confidence) / (2.0 * (n - 1.0)))


def isolated_minimum(
    population_risk: float,
    training_risk: float,
    minimum_loss: float,
    eigenvalues: Values,
    log_volume: float,
    n: int,
    delta: float,
    version: str = "printed",
    known: Mapping[str, bool] | None = None,
) -> Bound:
    r"""Bound the posterior's population risk at an isolated minimum by the determinant.

    Source: Rényi paper, Theorem C.2 (equation 25): :math:`E_Q L(D) \le E_Q L(S) +
    2\sqrt{(2L_0 + 2A + \log(2N/\delta))/(N-1)}`, with probability 1 − δ. The proof needs a prior
    that did not see S, but P is uniform around the minimum found *on* S. ``"sharper"`` is
    McAllester's bound with :math:`KL(Q, P) \le E_P[L - L_0]`, the exact rise, in which
    :math:`L_0` does not enter. The printed bound follows from it at every dimension.

    Parameters
    ----------
    population_risk, training_risk : float
        E_Q L(D) and E_Q L(S).
    minimum_loss : float
        L_0 = L(S, θ*).
    eigenvalues : Tensor or sequence of float
        Of the layer's Hessian at θ*, all d of them. If one is zero the rise is 0, and the minimum
        is not isolated.
    log_volume : float
        Logarithm of the neighbourhood's volume.
    n : int
        N, samples.
    delta : float
        Probability that the bound may fail.
    version : str
        ``"printed"`` or ``"sharper"``.
    known : mapping of str to bool, optional
        Answers to ``loss_in_unit_interval``, ``quadratic_loss_on_an_ellipsoid`` and
        ``prior_independent_of_sample`` (False unless the minimum was found on other data).

    Raises
    ------
    ValueError
        If n < 2, delta is no probability, the version is unknown, or the spectrum is unusable.
    """
    version = arguments.choice("version", version, VERSIONS)
    values = _nonzero(eigenvalues, "eigenvalues")
    rise = _rise(_log_determinant(values), len(values), log_volume, exact=version == "sharper")
    return Bound(
        statement=_ISOLATED_STATEMENTS[version],
        source=f"Rényi paper, Thm. C.2, {version}",
        left=arguments.number("population_risk", population_risk),
        right=_isolated_right(training_risk, minimum_loss, rise, n, delta, version),
        assumptions=_assumptions(_ISOLATED, known, positive_definite=bool(values.min() > 0)),
    )


def isolated_minimum_entropy(
    population_risk: float,
    training_risk: float,
    minimum_loss: float,
    eigenvalues: Values,
    log_volume: float,
    n: int,
    delta: float,
    alpha: float,
    version: str = "printed",
    *,
    trace: float | None = None,
    known: Mapping[str, bool] | None = None,
) -> Bound:
    r"""Bound the posterior's population risk at an isolated minimum by the entropy.

    Source: Rényi paper, Proposition C.1 (equations 24 and 41), Corollary C.3 and, with its
    constants, Theorem 3.2 (equation 4). In Theorem C.2 :math:`\log|H|` is replaced by
    :math:`d \log \mathrm{Tr}H - H_\alpha`; the entropy enters A as :math:`e^{-H_\alpha/d}`, which
    varies by :math:`\log(d)/d` at most. ``"sharper"`` uses :math:`d \log\mathrm{Tr}H - dH_\alpha`
    with the exact rise, and still exceeds the entropy-free :math:`d\log(\mathrm{Tr}H/d)`.

    Parameters
    ----------
    population_risk, training_risk, minimum_loss, eigenvalues, log_volume, n, delta, version, known
        As in :func:`isolated_minimum`.
    alpha : float
        Positive.
    trace : float, optional
        The constant that Corollary C.3 and Theorem 3.2 put in place of Tr H. It cannot be frozen
        while V is a free variable: scaling a layer changes both, and keeps only their product.

    Raises
    ------
    ValueError
        As :func:`isolated_minimum`, or if alpha or the trace is not positive.
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, VERSIONS)
    values = _nonzero(eigenvalues, "eigenvalues")
    d, log_trace = len(values), _log_trace(values)
    checked: dict[str, bool | None] = {"positive_definite": bool(values.min() > 0)}
    if trace is not None:
        trace = arguments.number("trace", trace, above=0)
        checked["constant_is_at_least_the_trace"] = math.log(trace) >= log_trace
        log_trace = math.log(trace)
    log_determinant = _entropy_form(d, log_trace, renyi_entropy(values, alpha), version)
    rise = _rise(log_determinant, d, log_volume, exact=version == "sharper")
    return Bound(
        statement=_ISOLATED_STATEMENTS[version],
        source=f"Rényi paper, {'Prop. C.1' if trace is None else 'Cor. C.3'}, {version}",
        left=arguments.number("population_risk", population_risk),
        right=_isolated_right(training_risk, minimum_loss, rise, n, delta, version),
        assumptions=_assumptions(_ISOLATED, known, **checked),
    )


def _entropy_form(dimension: int, log_trace: float, entropy: float, version: str) -> float:
    """An upper bound on log|H|: with one entropy as printed, with d of them as it is true."""
    return dimension * log_trace - (1 if version == "printed" else dimension) * entropy


# ---------------------------------------------------------------------------------------------
# Uniform distributions on an ellipsoid and a ball (Theorem 3.3, Appendix D)
# ---------------------------------------------------------------------------------------------

_ELLIPSOID = {
    "loss_in_unit_interval": None,
    "prior_independent_of_sample": None,
    "remainder_bounded": None,
    "perturbation_raises_population_loss": None,
}


def ellipsoid_divergence(eigenvalues: Values, rho: float, radius: float) -> float:
    r"""Return the Kullback–Leibler divergence of uniform distributions, ellipsoid from ball.

    :math:`d \log(R/\rho) + \tfrac12 \log\det H` for the ellipsoid :math:`\Delta^\top H \Delta \le
    \rho^2` inside a ball of radius R: the logarithm of the ratio of volumes. Source: Rényi paper,
    Theorem D.1, step 2.

    Raises
    ------
    ValueError
        If rho or the radius is not positive, or the spectrum is empty, not finite or zero.
    """
    values = _nonzero(eigenvalues, "eigenvalues")
    rho, radius = _ellipsoid(rho, radius)
    return len(values) * math.log(radius / rho) + 0.5 * _log_determinant(values)


def ellipsoid_mean(dimension: int, rho: float) -> float:
    r"""Return the mean of :math:`\Delta^\top H \Delta` over its ellipsoid, :math:`d\rho^2/(d+2)`.

    Source: Rényi paper, Theorem D.1, step 1.

    Raises
    ------
    TypeError, ValueError
        If the dimension is no positive integer, or rho negative or not finite.
    """
    dimension = arguments.integer("dimension", dimension, at_least=1)
    rho = arguments.number("rho", rho, at_least=0)
    return dimension / (dimension + 2.0) * rho * rho


def _ellipsoid(rho: float, radius: float) -> tuple[float, float]:
    return arguments.number("rho", rho, above=0), arguments.number("radius", radius, above=0)


def ellipsoid_posterior(
    population_risk: float,
    training_risk: float,
    eigenvalues: Values,
    rho: float,
    radius: float,
    n: int,
    epsilon: float,
    *,
    remainder: float = 0.0,
    centre_distance: float = 0.0,
    known: Mapping[str, bool] | None = None,
) -> Bound:
    r"""Bound the population risk at a minimum by the determinant of its Hessian.

    :math:`L(D, \theta^*) \le L(S, \theta^*) + \frac{d\rho^2}{2(d+2)} + r + \sqrt{(KL +
    \log(2n/\varepsilon)) / 2(n-1)}` with probability 1 − ε. Source: Rényi paper, Theorem D.1 before
    its last step, with the hypotheses that its proof needs and does not state.

    Parameters
    ----------
    population_risk, training_risk : float
        L(D, θ*) and L(S, θ*).
    eigenvalues : Tensor or sequence of float
        Of H at θ*, all d of them, positive.
    rho : float
        The posterior is uniform on ΔᵀHΔ ≤ ρ².
    radius : float
        R, of the ball on which the prior is uniform.
    n : int
        Samples.
    epsilon : float
        Probability that the bound may fail.
    remainder : float
        r, a bound on the remainder of the loss's quadratic expansion over the ellipsoid.
    centre_distance : float
        From θ* to the centre of the ball, which must not depend on the sample.
    known : mapping of str to bool, optional
        Answers to ``loss_in_unit_interval``, ``prior_independent_of_sample``,
        ``remainder_bounded`` and ``perturbation_raises_population_loss``.

    Returns
    -------
    Bound
        Where the ball does not contain the ellipsoid it is not certified, and a negative
        radicand is set to zero.

    Raises
    ------
    ValueError
        If n < 2, another argument is out of range, or the spectrum is unusable.
    """
    values = _nonzero(eigenvalues, "eigenvalues")
    divergence = ellipsoid_divergence(values, rho, radius)
    return Bound(
        statement="L(D, θ*) ≤ L(S, θ*) + dρ²/2(d + 2) + r + √((KL + log(2n/ε)) / 2(n − 1))",
        source="Rényi paper, Thm. D.1, with the determinant",
        left=arguments.number("population_risk", population_risk),
        right=_ellipsoid_right(training_risk, divergence, len(values), rho, n, epsilon, remainder),
        assumptions=_ellipsoid_assumptions(values, rho, radius, centre_distance, known),
    )


def ellipsoid_posterior_entropy(
    population_risk: float,
    training_risk: float,
    eigenvalues: Values,
    rho: float,
    radius: float,
    n: int,
    epsilon: float,
    alpha: float,
    version: str = "printed",
    *,
    remainder: float = 0.0,
    centre_distance: float = 0.0,
    known: Mapping[str, bool] | None = None,
) -> Bound:
    r"""Bound the population risk at a minimum by the entropy of its Hessian.

    Source: Rényi paper, Theorem 3.3 (equation 5), Theorem D.1 (equation 46) and Corollary D.2
    (equation 49): the radicand is :math:`(-\tfrac12 H_\alpha + C) / 2(n-1)`, in which the paper
    does not say what C is. It is :math:`\tfrac d2 \log \mathrm{Tr}H + d\log(R/\rho) +
    \log(2n/\varepsilon)`: of order d, not a constant, and against it :math:`H_\alpha \le \log d`
    carries no information. ``"sharper"`` has :math:`-\tfrac d2 H_\alpha`, which
    :func:`determinant_chain` allows.

    Parameters
    ----------
    population_risk, training_risk, eigenvalues, rho, radius, n, epsilon
        As in :func:`ellipsoid_posterior`.
    alpha : float
        Positive.
    version : str
        ``"printed"`` or ``"sharper"``.
    remainder, centre_distance, known
        As in :func:`ellipsoid_posterior`.

    Raises
    ------
    ValueError
        As :func:`ellipsoid_posterior`, or if alpha is not positive or the version unknown.
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, VERSIONS)
    rho, radius = _ellipsoid(rho, radius)
    values = _nonzero(eigenvalues, "eigenvalues")
    d = len(values)
    log_determinant = _entropy_form(d, _log_trace(values), renyi_entropy(values, alpha), version)
    divergence = d * math.log(radius / rho) + 0.5 * log_determinant
    multiple = "½" if version == "printed" else "½d "
    return Bound(
        statement=f"L(D, θ*) ≤ L(S, θ*) + dρ²/2(d + 2) + r + √((−{multiple}H_α + C) / 2(n − 1))",
        source=f"Rényi paper, Thm. D.1, {version}",
        left=arguments.number("population_risk", population_risk),
        right=_ellipsoid_right(training_risk, divergence, d, rho, n, epsilon, remainder),
        assumptions=_ellipsoid_assumptions(values, rho, radius, centre_distance, known),
    )


def _ellipsoid_right(
    training_risk: float,
    divergence: float,
    dimension: int,
    rho: float,
    n: int,
    epsilon: float,
    remainder: float,
) -> float:
    training_risk = arguments.number("training_risk", training_risk)
    n, epsilon = arguments.integer("n", n, at_least=2), _probability("epsilon", epsilon)
    remainder = _nonnegative("remainder", remainder)
    radicand = (divergence + math.log(2.0 * n / epsilon)) / (2.0 * (n - 1.0))
    rise = 0.5 * ellipsoid_mean(dimension, rho)
    return training_risk + rise + remainder + math.sqrt(max(radicand, 0.0))


def _ellipsoid_assumptions(
    values: Tensor,
    rho: float,
    radius: float,
    centre_distance: float,
    known: Mapping[str, bool] | None,
) -> dict[str, bool | None]:
    centre_distance = _nonnegative("centre_distance", centre_distance)
    smallest = float(values.min())
    contained = smallest > 0 and centre_distance + rho / math.sqrt(smallest) <= radius
    return _assumptions(
        _ELLIPSOID, known, positive_definite=smallest > 0, prior_contains_ellipsoid=contained
    )


# ---------------------------------------------------------------------------------------------
# The regularizer that is trained with (equations 9 to 12)
# ---------------------------------------------------------------------------------------------


def gradient_power_ratio(gradient: Values, alpha: float) -> float:
    r"""Return :math:`R(g) = \sum_j |g_j|^{2\alpha} / (\sum_j g_j^2)^\alpha`.

    Source: Rényi paper, equation 10, with the absolute value that a real power needs.

    Raises
    ------
    ValueError
        If alpha is not positive, or the gradient is empty, not finite or zero.
    """
    return power_sum(_nonzero(gradient, "gradient").square(), alpha)


def gradient_power_ratio_derivative(gradient: Tensor, alpha: float) -> Tensor:
    r"""Return :math:`u = \partial R / \partial g`, float64, on the CPU.

    :math:`u = 2\alpha S^{-\alpha}(|g|^{2\alpha - 1}\mathrm{sign}(g) - (P/S) g)` with
    :math:`S = \sum g^2`, :math:`P = \sum |g|^{2\alpha}`. R does not see the length of g, so
    :math:`g^\top u = 0`. In parameters, :math:`\nabla_\theta R = H u`. For α < ½ it is infinite
    where an entry is zero.

    Raises
    ------
    ValueError
        As :func:`gradient_power_ratio`, or if alpha < ½ and an entry is zero.
    """
    alpha = arguments.order("alpha", alpha)
    g = _nonzero(gradient, "gradient")
    if alpha < 0.5 and bool((g == 0).any()):
        raise ValueError("gradient has a zero entry, where R has no derivative for alpha < 1/2.")
    unit = g / g.norm()
    ratio = gradient_power_ratio(g, alpha)
    along = unit.abs() ** (2.0 * alpha - 1.0) * unit.sign() - ratio * unit
    return 2.0 * alpha / g.norm() * along


def renyi_perturbation(
    gradient: Tensor, rho: float, alpha: float, version: str = "equation"
) -> Tensor:
    r"""Return the perturbation of the Rényi paper's optimizer, float64, on the CPU.

    Equation 11: :math:`\varepsilon = -\rho\, \mathrm{sign}(1-\alpha)\, R(g)\, g / \|g\|^2`. It lies
    along the gradient, so it is the perturbation of sharpness-aware minimisation of radius
    :math:`\rho R(g)/\|g\|`, reversed for α < 1; the radius grows without bound as g → 0. The
    ``"algorithm"`` version has the sign that Algorithm 2, step 5, prints: the opposite one, which
    for the paper's α > 1 descends.

    Raises
    ------
    ValueError
        As :func:`gradient_power_ratio`, or if alpha = 1 or the version is unknown.
    """
    alpha = arguments.order("alpha", alpha, one_allowed=False)
    version = arguments.choice("version", version, ("equation", "algorithm"))
    rho = arguments.number("rho", rho)
    g = _nonzero(gradient, "gradient")
    sign = math.copysign(1.0, 1.0 - alpha) * (-1.0 if version == "equation" else 1.0)
    return sign * rho * gradient_power_ratio(g, alpha) * g / g.square().sum()


def gradient_entropy(eigenvalues: Values, gradient: Values, alpha: float) -> Bound:
    r"""Compare the Hessian's entropy with that of the squared mean gradient.

    Source: Rényi paper, equations 9 and 10: :math:`H \approx \mathrm{Diag}(g)^2`, g the *mean*
    gradient. An approximation without a bound: at a stationary point g = 0. For one mini-batch
    the squares are single draws around the per-sample second moment, which is the defensible
    object, and their noise biases the entropy.

    Parameters
    ----------
    eigenvalues : Tensor or sequence of float
        Of the Hessian.
    gradient : Tensor or sequence of float
        The mean gradient, as many entries.
    alpha : float
        Positive.

    Raises
    ------
    ValueError
        If the lengths differ, alpha is not positive, or an argument is empty, not finite or zero.
    """
    alpha = arguments.order("alpha", alpha)
    values, g = _nonzero(eigenvalues, "eigenvalues"), _nonzero(gradient, "gradient")
    if len(values) != len(g):
        raise ValueError(
            f"gradient has {len(g)} entries for {len(values)} eigenvalues: make them agree."
        )
    p, q = values.abs() / values.abs().sum(), g.square() / g.square().sum()
    return Bound(
        statement="approximation: H_α(H) ≈ H_α(Diag(g)²)",
        source="Rényi paper, eqs. 9–10",
        left=renyi_entropy(values, alpha),
        right=renyi_entropy(g.square(), alpha),
        assumptions={
            "positive_semidefinite": _semidefinite(values),
            "spectrum_is_squared_gradient": torch.allclose(
                p.sort().values, q.sort().values, rtol=1e-9, atol=1e-12
            ),
        },
    )


def gradient_power_ratio_range(gradient: Values, alpha: float) -> tuple[Bound, Bound]:
    r"""Return the lower and the upper bound of R(g): between 1 and :math:`d^{1-\alpha}`.

    Source: Rényi paper, equation 10 with Lemma F.3.

    Raises
    ------
    ValueError
        As :func:`gradient_power_ratio`.
    """
    return _power_sum_range(
        _nonzero(gradient, "gradient").square(), alpha, "R(g)", "eq. 10 and Lemma F.3"
    )


def first_order_regularizer(gradient: Tensor, rho: float, alpha: float) -> Bound:
    r"""Compare :math:`g^\top \varepsilon` with :math:`-\rho\, \mathrm{sign}(1-\alpha) R(g)`.

    Source: Rényi paper, equations 11 and 12; an identity.

    Raises
    ------
    ValueError
        As :func:`renyi_perturbation`.
    """
    epsilon = renyi_perturbation(gradient, rho, alpha)
    sign = math.copysign(1.0, 1.0 - alpha)
    return Bound(
        statement="identity: gᵀε = −ρ sign(1 − α) R(g)",
        source="Rényi paper, eqs. 11–12",
        left=float(arguments.vector("gradient", gradient) @ epsilon),
        right=-rho * sign * gradient_power_ratio(gradient, alpha),
    )


def regularized_loss(
    model: nn.Module, data: object, rho: float, alpha: float, loss: str = "cross_entropy"
) -> Bound:
    r"""Compare the perturbed loss with the loss plus regularizer that it stands for.

    :math:`L(\theta + \varepsilon) \approx L(\theta) - \rho\,\mathrm{sign}(1-\alpha) R(g)`. Source:
    Rényi paper, equation 12; true to first order in ρ, all parameters perturbed.

    Parameters
    ----------
    model : nn.Module
        Measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    rho, alpha : float
        Of the perturbation; alpha is not 1.
    loss : str
        A name from :data:`paperkit.linearize.losses.LOSSES`.

    Raises
    ------
    ValueError
        If the gradient is zero or not finite, or alpha or the loss is unusable.
    """
    rho = arguments.number("rho", rho)
    alpha = arguments.order("alpha", alpha, one_allowed=False)
    select_parameters(own_parameters(Network.of(model)), None)
    inputs, targets = as_batch(data)
    with evaluation(model) as parameters:
        start = _loss_value(model, parameters, inputs, targets, loss)
        gradients = torch.autograd.grad(
            start, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        gradient = torch.cat([part.flatten() for part in gradients])
        epsilon = renyi_perturbation(gradient, rho, alpha).to(gradient)
        parts = epsilon.split([parameter.numel() for parameter in parameters.values()])
        with torch.no_grad():
            moved = {
                name: parameter + part.view_as(parameter)
                for (name, parameter), part in zip(parameters.items(), parts, strict=True)
            }
            left = float(_loss_value(model, moved, inputs, targets, loss))
    sign = math.copysign(1.0, 1.0 - alpha)
    return Bound(
        statement="to first order in ρ: L(θ + ε) ≈ L(θ) − ρ sign(1 − α) R(g)",
        source="Rényi paper, eq. 12",
        left=left,
        right=float(start.detach()) - rho * sign * gradient_power_ratio(gradient, alpha),
        assumptions={"loss_is_affine_along_the_gradient": None},
    )


def regularizer_descent(hessian: Tensor, gradient: Tensor, alpha: float) -> Bound:
    r"""Return the rate at which the optimizer's extra term changes the regularizer it stands for.

    A step along :math:`-\nabla L(\theta + \varepsilon) \approx -g - H\varepsilon`, ε held fixed,
    has the extra term :math:`-H\varepsilon`; the regularizer :math:`-\mathrm{sign}(1-\alpha)R` of
    equation 12 has the gradient :math:`-\mathrm{sign}(1-\alpha)Hu`. The claim of the Rényi paper,
    Section 6.1, that descent on equation 11 descends equation 12 says that the rate, per ρ, is at
    most 0.
    It is false: ε lies along g, and :math:`g^\top u = 0`, so the extra term descends
    :math:`\log\|g\|` instead.

    Parameters
    ----------
    hessian : Tensor
        Of the loss, (d, d).
    gradient : Tensor
        Of the loss, (d,).
    alpha : float
        Positive, not 1.

    Returns
    -------
    Bound
        Rate ≤ 0. The assumption asks whether ε is along u, which it is only where both vanish.

    Raises
    ------
    ValueError
        If the shapes do not fit, or as :func:`gradient_power_ratio_derivative`.
    """
    matrix, g = _matrix(hessian), _nonzero(gradient, "gradient")
    if len(matrix) != len(g):
        raise ValueError(
            f"gradient has {len(g)} entries, hessian {tuple(matrix.shape)}: make them agree."
        )
    extra = -matrix @ renyi_perturbation(g, 1.0, alpha)
    derivative = gradient_power_ratio_derivative(g, alpha)
    slope = -math.copysign(1.0, 1.0 - alpha) * matrix @ derivative
    return Bound(
        statement="⟨∇(−sign(1 − α) R), −Hε⟩ ≤ 0",
        source="Rényi paper, Section 6.1, eqs. 11–12",
        left=float(slope @ extra),
        right=0.0,
        assumptions={"perturbation_follows_the_regularizer": not bool(derivative.any())},
    )


# ---------------------------------------------------------------------------------------------
# The whole Hessian and its layers (Appendix F)
# ---------------------------------------------------------------------------------------------


def _blocks(matrix: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    if sum(sizes) != len(matrix):
        raise ValueError(f"sizes={list(sizes)} must add up to {len(matrix)}, the hessian's size.")
    edges = [0, *torch.tensor(sizes, device="cpu").cumsum(0).tolist()]
    blocks = [matrix[a:b, a:b] for a, b in pairwise(edges)]
    if not all(bool(block.any()) for block in blocks):
        raise ValueError("hessian has a block that is entirely zero: leave that layer out.")
    return blocks


class _Partition:
    """A Hessian, its diagonal blocks, and both spectra."""

    def __init__(self, hessian: Tensor, sizes: Sequence[int], name: str = "hessian"):
        self.sizes = arguments.integers("sizes", sizes, at_least=1)
        self.matrix = _matrix(hessian, name)
        self.blocks = _blocks(self.matrix, self.sizes)
        self.coupling = self.matrix - torch.block_diag(*self.blocks)
        self.layers = [_eigenvalues(block) for block in self.blocks]
        self.pinched = torch.cat(self.layers).sort().values
        self.eigenvalues = _eigenvalues(self.matrix)

    @property
    def dimension(self) -> int:
        return len(self.matrix)

    @property
    def trace(self) -> float:
        return float(self.matrix.trace())

    @property
    def weights(self) -> Tensor:
        """w_l, each layer's share of the trace."""
        traces = torch.stack([layer.abs().sum() for layer in self.layers])
        return traces / traces.sum()

    @property
    def positive_semidefinite(self) -> bool:
        return _semidefinite(self.eigenvalues)

    @property
    def block_diagonal(self) -> bool:
        return bool(self.coupling.abs().max() <= 1e-14 * self.matrix.abs().max())

    @property
    def uniform(self) -> bool:
        """Whether H is a multiple of the identity."""
        scale = float(self.matrix.abs().max())
        identity = torch.eye(self.dimension, dtype=torch.float64, device="cpu")
        mean = self.trace / self.dimension
        return mean > 0 and bool((self.matrix - mean * identity).abs().max() <= 1e-12 * scale)


def block_decomposition(hessian: Tensor, sizes: Sequence[int], alpha: float) -> Bound:
    r"""Compare :math:`R_\alpha(H)` with :math:`\sum_l w_l^\alpha \sigma_\alpha(H_{ll})`.

    Source: Rényi paper, Lemma F.2 (equation 58); an identity for block-diagonal H.

    Parameters
    ----------
    hessian : Tensor
        Symmetric, (d, d).
    sizes : sequence of int
        Of the layers' diagonal blocks, in order; they add up to d.
    alpha : float
        Positive.

    Raises
    ------
    ValueError
        If alpha is not positive, the matrix is unusable, or the sizes do not fit.
    """
    alpha = arguments.order("alpha", alpha)
    whole = _Partition(hessian, sizes)
    shares = torch.tensor(
        [power_sum(layer, alpha) for layer in whole.layers], dtype=torch.float64, device="cpu"
    )
    return Bound(
        statement="identity: R_α(H) = Σ w_l^α σ_α(H_ll)",
        source="Rényi paper, Lemma F.2",
        left=power_sum(whole.eigenvalues, alpha),
        right=float((whole.weights**alpha * shares).sum()),
        assumptions={
            "positive_semidefinite": whole.positive_semidefinite,
            "block_diagonal": whole.block_diagonal,
        },
    )


def power_sum_range(eigenvalues: Values, alpha: float) -> tuple[Bound, Bound]:
    r"""Return both bounds of :math:`R_\alpha`, which lies between 1 and :math:`d^{1-\alpha}`.

    Source: Rényi paper, Lemma F.3, which states the side that the uniform spectrum attains:
    :math:`d^{1-\alpha} \le R_\alpha` for α > 1, :math:`R_\alpha \le d^{1-\alpha}` for α < 1.

    Raises
    ------
    ValueError
        If alpha is not positive, or the spectrum is empty, not finite or zero.
    """
    return _power_sum_range(_nonzero(eigenvalues, "eigenvalues"), alpha, "R_α", "Lemma F.3")


def _power_sum_range(values: Tensor, alpha: float, name: str, place: str) -> tuple[Bound, Bound]:
    ratio = power_sum(values, alpha)
    uniform = len(values) ** (1.0 - alpha)
    low, high = ("d^(1−α)", "1") if alpha > 1 else ("1", "d^(1−α)")
    assumptions = {"positive_semidefinite": _semidefinite(values)}
    source = f"Rényi paper, {place}"
    return (
        Bound(
            statement=f"{low} ≤ {name}",
            source=source,
            left=min(uniform, 1.0),
            right=ratio,
            assumptions=assumptions,
        ),
        Bound(
            statement=f"{name} ≤ {high}",
            source=source,
            left=ratio,
            right=max(uniform, 1.0),
            assumptions=assumptions,
        ),
    )


def layerwise_lower_bounds(
    hessian: Tensor, sizes: Sequence[int], alpha: float
) -> tuple[Bound, Bound]:
    r"""Return :math:`\sum_l w_l^\alpha d_l^{1-\alpha} \le R_\alpha(H)` and its own lower bound.

    The second is :math:`d^{1-\alpha} \le \sum_l w_l^\alpha d_l^{1-\alpha}`. Source: Rényi paper,
    Theorem F.4 (equation 59), for α > 1. The paper asks for block-diagonal H; by pinching both
    hold for every positive semidefinite one. Both are equalities exactly for multiples of the
    identity, where the division into layers plays no part, and which no singular H is.

    Parameters
    ----------
    hessian, sizes
        As in :func:`block_decomposition`.
    alpha : float
        Positive; the bounds are certified for α > 1 only.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`.
    """
    alpha = arguments.order("alpha", alpha)
    whole = _Partition(hessian, sizes)
    dimensions = torch.tensor(whole.sizes, dtype=torch.float64, device="cpu")
    middle = float((whole.weights**alpha * dimensions ** (1.0 - alpha)).sum())
    assumptions = {
        "positive_semidefinite": whole.positive_semidefinite,
        "order_above_one": alpha > 1,
    }
    return (
        Bound(
            statement="Σ w_l^α d_l^(1−α) ≤ R_α(H)",
            source="Rényi paper, Thm. F.4",
            left=middle,
            right=power_sum(whole.eigenvalues, alpha),
            assumptions=assumptions,
        ),
        Bound(
            statement="d^(1−α) ≤ Σ w_l^α d_l^(1−α)",
            source="Rényi paper, Thm. F.4",
            left=whole.dimension ** (1.0 - alpha),
            right=middle,
            assumptions=assumptions,
        ),
    )


def layers_are_uniform(hessian: Tensor, sizes: Sequence[int], beta: float) -> tuple[Bound, ...]:
    """Compare each layer's entropy of any order with its maximum, the logarithm of its size.

    Source: Rényi paper, Corollary F.5: where the whole Hessian's sharpness is at its minimum
    (H a multiple of the identity, the assumption), every layer's is, at every order.

    Parameters
    ----------
    hessian, sizes
        As in :func:`block_decomposition`.
    beta : float
        The order, positive.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`.
    """
    beta = arguments.order("beta", beta)
    whole = _Partition(hessian, sizes)
    return tuple(
        Bound(
            statement=f"log d_l ≤ H_β(H_ll), layer {index}",
            source="Rényi paper, Cor. F.5",
            left=math.log(len(layer)),
            right=renyi_entropy(layer, beta),
            assumptions={"global_minimum_is_attained": whole.uniform},
        )
        for index, layer in enumerate(whole.layers)
    )


def layerwise_consequence(
    before: Tensor, after: Tensor, sizes: Sequence[int], alpha: float
) -> tuple[Bound, ...]:
    r"""Compare each layer's sharpness after the whole Hessian's has fallen with the one before.

    Source: Rényi paper, Proposition F.1: lowering the global sharpness lowers that of the layers.
    False: blocks {1, 1}, {10, 10} that become {1.2, 0.8}, {3, 3} lower the global sharpness, by
    balancing the traces, and raise the first layer's. True only where the minimum itself is
    attained, when it is :func:`layers_are_uniform`.

    Parameters
    ----------
    before, after : Tensor
        Two Hessians, (d, d), over the same layers.
    sizes, alpha
        As in :func:`block_decomposition`.

    Returns
    -------
    tuple of Bound
        One a layer. The first four assumptions are the paper's, the last is what it lacks.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`.
    """
    alpha = arguments.order("alpha", alpha)
    old, new = _Partition(before, sizes, "before"), _Partition(after, sizes, "after")
    assumptions = {
        "positive_semidefinite": old.positive_semidefinite and new.positive_semidefinite,
        "block_diagonal": old.block_diagonal and new.block_diagonal,
        "order_above_one": alpha > 1,
        "global_sharpness_falls": renyi_entropy(new.eigenvalues, alpha)
        > renyi_entropy(old.eigenvalues, alpha),
        "global_minimum_is_attained": new.uniform,
    }
    return tuple(
        Bound(
            statement=f"−H_α(H_ll) after ≤ before, layer {index}",
            source="Rényi paper, Prop. F.1",
            left=-renyi_entropy(late, alpha),
            right=-renyi_entropy(early, alpha),
            assumptions=assumptions,
        )
        for index, (early, late) in enumerate(zip(old.layers, new.layers, strict=True))
    )


def pinching(hessian: Tensor, sizes: Sequence[int], alpha: float) -> Bound:
    r"""Compare the entropy of H with that of its diagonal blocks, which is never smaller.

    :math:`H_\alpha(H) \le H_\alpha(B)` at every order, because the spectrum of H majorizes that of
    B (Schur, Horn); so a block-diagonal or diagonal proxy over-estimates the entropy. It gives
    Proposition F.6 of the Rényi paper a sign. Blocks of size 1 give the diagonal.

    Parameters
    ----------
    hessian, sizes, alpha
        As in :func:`block_decomposition`.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`.
    """
    alpha = arguments.order("alpha", alpha)
    whole = _Partition(hessian, sizes)
    return Bound(
        statement="H_α(H) ≤ H_α(blocks of H)",
        source="derived; sign of Rényi paper, Prop. F.6",
        left=renyi_entropy(whole.eigenvalues, alpha),
        right=renyi_entropy(whole.pinched, alpha),
        assumptions={"positive_semidefinite": whole.positive_semidefinite},
    )


def coupling_perturbation(
    hessian: Tensor, sizes: Sequence[int], alpha: float, version: str = "printed"
) -> Bound:
    r"""Bound :math:`|R_\alpha(H) - R_\alpha(B)|`, B the block diagonal of H and :math:`E = H - B`.

    Source: Rényi paper, Proposition F.6 (equation 60), for α > 1:
    :math:`\alpha (\Lambda_*/T)^{\alpha-1} \sqrt d \|E\|_F / T`. By pinching
    :math:`\Lambda_* = \lambda_{\max}(H)`. The paper calls this :math:`O(\|E\|_F/T)`, which hides
    :math:`\sqrt d`; ``"sharper"`` has the nuclear norm of E instead of :math:`\sqrt d\|E\|_F`.

    Parameters
    ----------
    hessian, sizes
        As in :func:`block_decomposition`.
    alpha : float
        Positive; the bound is certified for α > 1 only.
    version : str
        ``"printed"`` or ``"sharper"``.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`, or if the trace is not positive.
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, VERSIONS)
    whole = _with_positive_trace(hessian, sizes)
    largest = float(torch.maximum(whole.eigenvalues.max(), whole.pinched.max()))
    norm = (
        math.sqrt(whole.dimension) * float(whole.coupling.norm())
        if version == "printed"
        else float(torch.linalg.eigvalsh(whole.coupling).abs().sum())
    )
    log_power = (alpha - 1.0) * math.log(largest / whole.trace)
    name = "√d ‖E‖_F" if version == "printed" else "‖E‖_*"
    return Bound(
        statement=f"|R_α(H) − R_α(B)| ≤ α (Λ/T)^(α−1) {name} / T",
        source=f"Rényi paper, Prop. F.6, {version}",
        left=_power_sum_change(whole, alpha),
        right=alpha * _exponential(log_power) * norm / whole.trace,
        assumptions={
            "positive_semidefinite": whole.positive_semidefinite,
            "order_above_one": alpha > 1,
        },
    )


def coupling_perturbation_below_one(
    hessian: Tensor,
    sizes: Sequence[int],
    alpha: float,
    version: str = "printed",
    *,
    constant: float = 1.0,
) -> Bound:
    r"""Bound :math:`|R_\alpha(H) - R_\alpha(B)|` for α < 1.

    Source: Rényi paper, Appendix F, remark on 0 < α < 1: :math:`O(\|E\|_F/T)`, by continuity.
    False for every constant and every α < 1: two eigenvalues s of B that the coupling turns into
    2s and 0 change :math:`R_\alpha` by :math:`(2 - 2^\alpha) s^\alpha` at a norm
    :math:`\|E\|_F = \sqrt2 s`, and the ratio grows without bound as s → 0 beside an eigenvalue 1.
    ``"corrected"`` is what a concave power allows, :math:`d^{1-\alpha} (\|E\|_*/T)^\alpha`.

    Parameters
    ----------
    hessian, sizes
        As in :func:`block_decomposition`.
    alpha : float
        Positive; certified for α < 1 only, and never as printed.
    version : str
        ``"printed"`` or ``"corrected"``.
    constant : float
        That of the printed O; the paper gives none.

    Raises
    ------
    ValueError
        As :func:`coupling_perturbation`.
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, ("printed", "corrected"))
    constant = _nonnegative("constant", constant)
    whole = _with_positive_trace(hessian, sizes)
    nuclear = float(torch.linalg.eigvalsh(whole.coupling).abs().sum()) / whole.trace
    assumptions: dict[str, bool | None] = {
        "positive_semidefinite": whole.positive_semidefinite,
        "order_below_one": alpha < 1,
    }
    if version == "printed":
        right = constant * float(whole.coupling.norm()) / whole.trace
        assumptions["power_is_lipschitz_at_zero"] = alpha >= 1
    else:
        right = whole.dimension ** (1.0 - alpha) * nuclear**alpha
    return Bound(
        statement="|R_α(H) − R_α(B)| ≤ "
        + ("constant · ‖E‖_F / T" if version == "printed" else "d^(1−α) (‖E‖_* / T)^α"),
        source=f"Rényi paper, Appendix F, remark on α < 1, {version}",
        left=_power_sum_change(whole, alpha),
        right=right,
        assumptions=assumptions,
    )


def _with_positive_trace(hessian: Tensor, sizes: Sequence[int]) -> _Partition:
    whole = _Partition(hessian, sizes)
    if whole.trace <= 0:
        raise ValueError(f"hessian has trace {whole.trace:.3g}: the bound needs a positive one.")
    return whole


def _power_sum_change(whole: _Partition, alpha: float) -> float:
    return abs(power_sum(whole.eigenvalues, alpha) - power_sum(whole.pinched, alpha))
