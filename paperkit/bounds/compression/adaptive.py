"""Equations 36, 37, 39 and 44: normalized, average and adaptive sharpness."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.bounds.compression.shares import check_terms, inequality
from paperkit.bounds.compression.terms import PAPER, ROUND_OFF, CompressionTerms
from paperkit.bounds.statement import Inequality


def normalized_sharpness_objective(
    curvature: Tensor, weight: Tensor, sigma: Tensor, sigma_input: Tensor, lam: float
) -> float:
    r"""Return the objective whose infimum over positive scales is the normalized sharpness.

    .. math:: \sum_{ij} H_{ij,ij}(\sigma_i\sigma'_j)^2
        + \frac{W_{ij}^2}{4\lambda^2(\sigma_i\sigma'_j)^2}

    Source: compression paper, equation 36, after Tsuzuku et al. (2019).

    Parameters
    ----------
    curvature, weight : Tensor
        Diagonal of H, and W, shape (h, k).
    sigma, sigma_input : Tensor
        Positive scales σ and σ', shapes (h,) and (k,).
    lam : float
        Constant λ > 0 of the normalized sharpness.

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, or a scale is not positive.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.compression import normalized_sharpness_objective
    >>> curvature, weight = torch.ones(1, 2), torch.tensor([[1.0, 4.0]])
    >>> def objective(*scales):
    ...     return normalized_sharpness_objective(
    ...         curvature, weight, torch.ones(1), torch.tensor(scales), lam=0.5
    ...     )
    >>> objective(1.0, 1.0), objective(1.0, 2.0)  # least where each scale squared is |w|
    (19.0, 10.0)
    """
    arguments.tensor("curvature", curvature, shape=("h", "k"), finite=True)
    arguments.tensor("weight", weight, shape=tuple(curvature.shape), finite=True)
    lam = _check_scales(sigma, sigma_input, lam, weight)
    square = torch.outer(sigma, sigma_input).square()
    return float((curvature * square + weight.square() / (4 * lam**2 * square)).sum())


def _check_scales(sigma: Tensor, sigma_input: Tensor, lam: float, weight: Tensor) -> float:
    for name, scale, size in zip(
        ("sigma", "sigma_input"), (sigma, sigma_input), weight.shape, strict=True
    ):
        arguments.tensor(name, scale, shape=(size,), finite=True)
        if not bool((scale > 0).all()):
            raise ValueError(f"{name}={arguments.shown(scale)} has entries that are not positive.")
    return arguments.number("lam", lam, above=0)


def normalized_sharpness_bounds(
    cotangent: Tensor,
    weight: Tensor,
    inputs: Tensor,
    sigma: Tensor,
    sigma_input: Tensor,
    lam: float,
) -> tuple[Inequality, ...]:
    r"""Return the chain from normalized sharpness down to an input-invariant sensitivity.

    For a single sample, with f a function of Wx, :math:`B = \partial f/\partial(Wx)`, X = BW,
    Σ = diag(σ) and Σ' = diag(σ'):

    .. math:: \text{(36)}
        \ge \frac1\lambda\|B\Sigma\|_F\,\|\Sigma'x\|\,\|\Sigma^{-1}W\Sigma'^{-1}\|_F
        \ge \frac1\lambda\|X\Sigma'^{-1}\|_F\,\|\Sigma'x\| \ge \frac1\lambda\|X x\| .

    Source: compression paper, equation 37, where the second relation is an equality, printed as an
    inequality. The paper calls (36) the minimization of an upper bound of a scale-invariant
    quantity, the third expression. At a fixed σ' that expression is not invariant, only its minimum
    over σ' is, and the minimizer of a bound need not minimize what it bounds. The last expression,
    ours, does not change when the input is rescaled and the layer scaled back, for any σ.

    Parameters
    ----------
    cotangent : Tensor
        Jacobian B, shape (C, h).
    weight : Tensor
        Weight W, shape (h, k).
    inputs : Tensor
        Input x, shape (k,).
    sigma, sigma_input, lam
        As in :func:`normalized_sharpness_objective`.

    Returns
    -------
    tuple of Inequality
        The three inequalities, from the last to the first: the leftmost value is the smallest.

    Raises
    ------
    ValueError
        If a scale is not positive.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.compression import normalized_sharpness_bounds
    >>> cotangent, weight = torch.ones(1, 2), torch.diag(torch.tensor([2.0, 1.0]))
    >>> scales = {"sigma": torch.ones(2), "sigma_input": torch.ones(2), "lam": 1.0}
    >>> chain = normalized_sharpness_bounds(cotangent, weight, torch.tensor([1.0, 1.0]), **scales)
    >>> [round(link.left, 4) for link in chain] + [round(chain[-1].right, 4)]
    [3.0, 3.1623, 4.4721, 5.25]
    """
    weight = arguments.tensor("weight", weight, shape=("h", "k"), finite=True).double()
    h, k = weight.shape
    cotangent = arguments.tensor("cotangent", cotangent, shape=("C", h), finite=True).double()
    inputs = arguments.tensor("inputs", inputs, shape=(k,), finite=True).double()
    lam = _check_scales(sigma, sigma_input, lam, weight)
    jacobian = cotangent @ weight
    curvature = torch.outer(cotangent.square().sum(dim=0), inputs.square())
    scaled_input = float((sigma_input * inputs).norm()) / lam
    scaled_weight = weight / torch.outer(sigma, sigma_input)
    values = [
        float((jacobian @ inputs).norm()) / lam,
        float((jacobian / sigma_input).norm()) * scaled_input,
        float((cotangent * sigma).norm()) * scaled_input * float(scaled_weight.norm()),
        normalized_sharpness_objective(curvature, weight, sigma, sigma_input, lam),
    ]
    texts = [
        "‖X x‖/λ ≤ ‖XΣ'⁻¹‖_F ‖Σ'x‖/λ",
        "‖XΣ'⁻¹‖_F ‖Σ'x‖/λ ≤ ‖BΣ‖_F ‖Σ'x‖ ‖Σ⁻¹WΣ'⁻¹‖_F/λ",
        "‖BΣ‖_F ‖Σ'x‖ ‖Σ⁻¹WΣ'⁻¹‖_F/λ ≤ sum of H (σσ')² + W²/(4λ²(σσ')²)",
    ]
    return tuple(
        Inequality(statement=text, source=f"{PAPER}, equation 37", left=left, right=right)
        for text, (left, right) in zip(texts, itertools.pairwise(values), strict=True)
    )


def input_invariant_bounds(terms: CompressionTerms) -> tuple[Inequality, Inequality]:
    r"""Compare the input-invariant sensitivity with the adaptive sharpness.

    .. math:: \frac1h\,\frac1n\sum_i\|X_i\operatorname{diag}(x_i)\|_F^2 \le
        \frac1n\sum_i\sum_{j\in W}\theta_j^2\|\partial_j f_i\|^2 \le
        \frac1n\sum_i\sum_j\theta_j^2\|\partial_j f_i\|^2

    h is the number of outputs of the first layer, the d that the paper does not define; the factor
    is sharp. No interpolation is needed, but W must be unshared. Source: compression paper,
    Proposition E.4 (equations 44 and 45).

    Parameters
    ----------
    terms : CompressionTerms
        Terms of the network.

    Returns
    -------
    tuple of Inequality
        Inequalities between neighbours in the chain.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, input_invariant_bounds
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 4.0]])
    >>> terms = compression_terms(model, (torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)))
    >>> first, second = input_invariant_bounds(terms)
    >>> first.left, first.right, second.right  # (3 · 1)² + (4 · 2)², with one output
    (73.0, 73.0, 73.0)
    """
    check_terms(terms)
    source = "Proposition E.4 (equation 44)"
    layer = float(terms.scaled_first_gradient.mean())
    return (
        inequality(
            terms,
            "mean ‖X diag(x)‖_F²/h ≤ mean Σ_W θ² ‖∂f/∂θ‖²",
            source,
            float(terms.input_invariant.mean()) / terms.network.num_cotangents,
            layer,
            {
                "single_reader": terms.network.single_reader,
                "unshared_weights": terms.network.unshared,
            },
        ),
        inequality(
            terms,
            "mean Σ_W θ² ‖∂f/∂θ‖² ≤ mean Σ θ² ‖∂f/∂θ‖²",
            source,
            layer,
            float(terms.scaled_gradient.mean()),
            {},
        ),
    )


def average_sharpness_bound(
    average: float, limit: float, parameters: Tensor, rho: float, fourth_derivative: float
) -> Inequality:
    r"""Compare average-case adaptive sharpness with its limit at small perturbations.

    Gaussian perturbations have no odd moments, so with a fourth derivative of norm at most K

    .. math:: \bigl|S^\rho_{avg} - S_{adaptive}\bigr| \le
        \frac{\rho^2 K}{12}\,\mathbb E\|\xi\|^4 =
        \frac{\rho^2 K}{12}\Bigl(\bigl(\textstyle\sum_j\theta_j^2\bigr)^2 +
        2\sum_j\theta_j^4\Bigr),

    with ξ ~ N(0, diag θ²): O(ρ²), where the compression paper's equation 39 says O(ρ).

    Parameters
    ----------
    average, limit : float
        Average-case sharpness :math:`S^\rho_{avg}` (equation 38) and its limit
        :math:`S_{adaptive}` (equation 40).
    parameters : Tensor
        Parameters θ, any shape.
    rho : float
        Relative size ρ > 0 of the perturbation.
    fourth_derivative : float
        Bound K of the loss's fourth derivative as a form on unit vectors, wherever the perturbed
        parameters can be.

    Returns
    -------
    Inequality
        Statement that is not certified, because the caller's K cannot be checked.

    Raises
    ------
    ValueError
        If ρ is not positive.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.compression import average_sharpness_bound
    >>> theta, rho = torch.tensor([2.0]), 0.1  # the loss w⁴/2, with fourth derivative 12
    >>> limit = 96.0  # θ² times the second derivative, 24
    >>> average = limit + 48.0 * rho**2  # the Gaussian mean of a quartic
    >>> average_sharpness_bound(average, limit, theta, rho, fourth_derivative=12.0)
    Inequality(compression paper, equation 39, sharper: |S_avg − S_adaptive| ≤ ρ² K E‖ξ‖⁴ / 12: 0.48
        ≤ 0.48, not certified: fourth_derivative_bounded=unchecked)
    """
    average, limit = arguments.number("average", average), arguments.number("limit", limit)
    arguments.tensor("parameters", parameters, finite=True)
    rho = arguments.number("rho", rho, above=0)
    fourth_derivative = arguments.number("fourth_derivative", fourth_derivative, at_least=0)
    squares = parameters.double().square()
    moment = float(squares.sum() ** 2 + 2 * squares.square().sum())
    return Inequality(
        statement="|S_avg − S_adaptive| ≤ ρ² K E‖ξ‖⁴ / 12",
        source=f"{PAPER}, equation 39, sharper",
        left=abs(average - limit),
        right=rho * rho * fourth_derivative / 12 * moment,
        assumptions={"fourth_derivative_bounded": None},
        absolute_tolerance=ROUND_OFF * abs(limit),
    )
