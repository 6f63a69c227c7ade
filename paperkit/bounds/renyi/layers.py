"""Appendix F: the entropy of a Hessian and those of its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.bounds.arguments import (
    Values,
    check_nonnegative,
    eigenvalues_of,
    exponential,
    is_semidefinite,
    nonzero_vector,
    symmetric_matrix,
)
from paperkit.bounds.renyi.entropy import power_sum
from paperkit.bounds.renyi.versions import VERSIONS
from paperkit.bounds.statement import Identity, Inequality
from paperkit.estimators.entropy import renyi_entropy


def _diagonal_blocks(matrix: Tensor, sizes: Sequence[int]) -> list[Tensor]:
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
        self.matrix = symmetric_matrix(hessian, name)
        self.blocks = _diagonal_blocks(self.matrix, self.sizes)
        self.coupling = self.matrix - torch.block_diag(*self.blocks)
        self.layers = [eigenvalues_of(block) for block in self.blocks]
        self.pinched = torch.cat(self.layers).sort().values
        self.eigenvalues = eigenvalues_of(self.matrix)

    @property
    def dimension(self) -> int:
        return len(self.matrix)

    @property
    def trace(self) -> float:
        return float(self.matrix.trace())

    @property
    def weights(self) -> Tensor:
        """Shares w_l of the layers in the trace."""
        traces = torch.stack([layer.abs().sum() for layer in self.layers])
        return traces / traces.sum()

    @property
    def positive_semidefinite(self) -> bool:
        return is_semidefinite(self.eigenvalues)

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


def block_decomposition(hessian: Tensor, sizes: Sequence[int], alpha: float) -> Identity:
    r"""Compare :math:`R_\alpha(H)` with :math:`\sum_l w_l^\alpha \sigma_\alpha(H_{ll})`.

    Source: Rényi paper, Lemma F.2 (equation 58); an identity for block-diagonal H.

    Parameters
    ----------
    hessian : Tensor
        Symmetric matrix H, (d, d).
    sizes : sequence of int
        Sizes of the layers' diagonal blocks, in order; they add up to d.
    alpha : float
        Order α > 0.

    Raises
    ------
    ValueError
        If alpha is not positive, the matrix is unusable, or the sizes do not fit.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import block_decomposition
    >>> block_decomposition(torch.diag(torch.tensor([2.0, 1.0, 1.0])), sizes=[1, 2], alpha=2.0)
    Identity(Rényi paper, Lemma F.2: R_α(H) = Σ w_l^α σ_α(H_ll): 0.375 = 0.375, certified)
    >>> coupled = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> block_decomposition(coupled, sizes=[1, 1], alpha=2.0)
    Identity(Rényi paper, Lemma F.2: R_α(H) = Σ w_l^α σ_α(H_ll): 0.625 ≠ 0.5, not certified:
        block_diagonal=violated)
    """
    alpha = arguments.order("alpha", alpha)
    partition = _Partition(hessian, sizes)
    shares = torch.tensor(
        [power_sum(layer, alpha) for layer in partition.layers], dtype=torch.float64, device="cpu"
    )
    return Identity(
        statement="R_α(H) = Σ w_l^α σ_α(H_ll)",
        source="Rényi paper, Lemma F.2",
        left=power_sum(partition.eigenvalues, alpha),
        right=float((partition.weights**alpha * shares).sum()),
        assumptions={
            "positive_semidefinite": partition.positive_semidefinite,
            "block_diagonal": partition.block_diagonal,
        },
    )


def power_sum_range(eigenvalues: Values, alpha: float) -> tuple[Inequality, Inequality]:
    r"""Return both bounds of :math:`R_\alpha`, which lies between 1 and :math:`d^{1-\alpha}`.

    Source: Rényi paper, Lemma F.3, which states the side that the uniform spectrum attains:
    :math:`d^{1-\alpha} \le R_\alpha` for α > 1, :math:`R_\alpha \le d^{1-\alpha}` for α < 1.

    Raises
    ------
    ValueError
        If alpha is not positive, or the spectrum is empty, not finite or zero.

    Examples
    --------
    >>> from paperkit.bounds.renyi import power_sum_range
    >>> low, high = power_sum_range([3.0, 1.0], alpha=2.0)
    >>> low.left, low.right, high.right
    (0.5, 0.625, 1.0)
    >>> power_sum_range([1.0, 1.0], alpha=2.0)[0].slack  # the uniform spectrum attains d^(1−α)
    0.0
    """
    return power_sum_bounds(nonzero_vector(eigenvalues, "eigenvalues"), alpha, "R_α", "Lemma F.3")


def power_sum_bounds(
    values: Tensor, alpha: float, name: str, place: str
) -> tuple[Inequality, Inequality]:
    """Return both bounds of a power sum that the statement calls ``name``, of ``place``."""
    ratio = power_sum(values, alpha)
    uniform = len(values) ** (1.0 - alpha)
    low, high = ("d^(1−α)", "1") if alpha > 1 else ("1", "d^(1−α)")
    assumptions = {"positive_semidefinite": is_semidefinite(values)}
    source = f"Rényi paper, {place}"
    return (
        Inequality(
            statement=f"{low} ≤ {name}",
            source=source,
            left=min(uniform, 1.0),
            right=ratio,
            assumptions=assumptions,
        ),
        Inequality(
            statement=f"{name} ≤ {high}",
            source=source,
            left=ratio,
            right=max(uniform, 1.0),
            assumptions=assumptions,
        ),
    )


def layerwise_lower_bounds(
    hessian: Tensor, sizes: Sequence[int], alpha: float
) -> tuple[Inequality, Inequality]:
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
        Order α > 0; the bounds are certified for α > 1 only.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import layerwise_lower_bounds
    >>> hessian = torch.diag(torch.tensor([3.0, 1.0, 1.0, 1.0]))
    >>> upper, lower = layerwise_lower_bounds(hessian, sizes=[2, 2], alpha=2.0)
    >>> lower.left, round(lower.right, 4), round(upper.right, 4)
    (0.25, 0.2778, 0.3333)
    >>> upper.holds and lower.holds
    True
    """
    alpha = arguments.order("alpha", alpha)
    partition = _Partition(hessian, sizes)
    dimensions = torch.tensor(partition.sizes, dtype=torch.float64, device="cpu")
    middle = float((partition.weights**alpha * dimensions ** (1.0 - alpha)).sum())
    assumptions = {
        "positive_semidefinite": partition.positive_semidefinite,
        "order_above_one": alpha > 1,
    }
    return (
        Inequality(
            statement="Σ w_l^α d_l^(1−α) ≤ R_α(H)",
            source="Rényi paper, Thm. F.4",
            left=middle,
            right=power_sum(partition.eigenvalues, alpha),
            assumptions=assumptions,
        ),
        Inequality(
            statement="d^(1−α) ≤ Σ w_l^α d_l^(1−α)",
            source="Rényi paper, Thm. F.4",
            left=partition.dimension ** (1.0 - alpha),
            right=middle,
            assumptions=assumptions,
        ),
    )


def layers_are_uniform(
    hessian: Tensor, sizes: Sequence[int], beta: float
) -> tuple[Inequality, ...]:
    """Compare each layer's entropy of any order with its maximum, the logarithm of its size.

    Source: Rényi paper, Corollary F.5: where the whole Hessian's sharpness is at its minimum
    (H a multiple of the identity, the assumption), every layer's is, at every order.

    Parameters
    ----------
    hessian, sizes
        As in :func:`block_decomposition`.
    beta : float
        Order β > 0.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import layers_are_uniform
    >>> for layer in layers_are_uniform(2.0 * torch.eye(5), sizes=[2, 3], beta=0.5):
    ...     print(layer)
    Inequality(Rényi paper, Cor. F.5: log d_l ≤ ℋ_β(H_ll), layer 0: 0.693147 ≤ 0.693147, certified)
    Inequality(Rényi paper, Cor. F.5: log d_l ≤ ℋ_β(H_ll), layer 1: 1.09861 ≤ 1.09861, certified)
    """
    beta = arguments.order("beta", beta)
    partition = _Partition(hessian, sizes)
    return tuple(
        Inequality(
            statement=f"log d_l ≤ ℋ_β(H_ll), layer {index}",
            source="Rényi paper, Cor. F.5",
            left=math.log(len(layer)),
            right=renyi_entropy(layer, beta),
            assumptions={"global_minimum_is_attained": partition.uniform},
        )
        for index, layer in enumerate(partition.layers)
    )


def layerwise_consequence(
    before: Tensor, after: Tensor, sizes: Sequence[int], alpha: float
) -> tuple[Inequality, ...]:
    r"""Compare each layer's sharpness after the whole Hessian's has fallen with the one before.

    Source: Rényi paper, Proposition F.1: lowering the global sharpness lowers that of the layers.
    The claim is false: blocks {1, 1}, {10, 10} that become {1.2, 0.8}, {3, 3} lower the global
    sharpness, by balancing the traces, and raise the first layer's. The claim is true only where
    the minimum itself is attained, when it is :func:`layers_are_uniform`.

    Parameters
    ----------
    before, after : Tensor
        Hessians, (d, d), over the same layers.
    sizes, alpha
        As in :func:`block_decomposition`.

    Returns
    -------
    tuple of Inequality
        Statement for each layer. The first four assumptions are the paper's; the last is missing
        there.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import layerwise_consequence
    >>> before = torch.diag(torch.tensor([1.0, 1.0, 10.0, 10.0]))
    >>> after = torch.diag(torch.tensor([1.2, 0.8, 3.0, 3.0]))
    >>> first, second = layerwise_consequence(before, after, sizes=[2, 2], alpha=2.0)
    >>> first.assumptions["global_sharpness_falls"], first.holds, second.holds
    (True, False, True)
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
        Inequality(
            statement=f"−ℋ_α(H_ll) after ≤ before, layer {index}",
            source="Rényi paper, Prop. F.1",
            left=-renyi_entropy(late, alpha),
            right=-renyi_entropy(early, alpha),
            assumptions=assumptions,
        )
        for index, (early, late) in enumerate(zip(old.layers, new.layers, strict=True))
    )


def pinching(hessian: Tensor, sizes: Sequence[int], alpha: float) -> Inequality:
    r"""Compare the entropy of H with that of its diagonal blocks, which is never smaller.

    :math:`\mathcal{H}_\alpha(H) \le \mathcal{H}_\alpha(B)` at every order, because the spectrum of
    H majorizes that of B (Schur, Horn); so a block-diagonal or diagonal proxy over-estimates the
    entropy. This gives Proposition F.6 of the Rényi paper a sign. Blocks of size 1 give the
    diagonal.

    Parameters
    ----------
    hessian, sizes, alpha
        As in :func:`block_decomposition`.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import pinching
    >>> hessian = torch.ones(2, 2)  # one eigenvalue that is not zero, but a uniform diagonal
    >>> pinching(hessian, sizes=[1, 1], alpha=0.5)
    Inequality(derived; sign of Rényi paper, Prop. F.6: ℋ_α(H) ≤ ℋ_α(blocks of H): 0 ≤ 0.693147,
        certified)
    """
    alpha = arguments.order("alpha", alpha)
    partition = _Partition(hessian, sizes)
    return Inequality(
        statement="ℋ_α(H) ≤ ℋ_α(blocks of H)",
        source="derived; sign of Rényi paper, Prop. F.6",
        left=renyi_entropy(partition.eigenvalues, alpha),
        right=renyi_entropy(partition.pinched, alpha),
        assumptions={"positive_semidefinite": partition.positive_semidefinite},
    )


def coupling_perturbation(
    hessian: Tensor, sizes: Sequence[int], alpha: float, version: str = "printed"
) -> Inequality:
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
        Order α > 0; the bound is certified for α > 1 only.
    version : str
        ``"printed"`` or ``"sharper"``.

    Raises
    ------
    ValueError
        As :func:`block_decomposition`, or if the trace is not positive.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import coupling_perturbation
    >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])  # eigenvalues 3 and 1, diagonal 2 and 2
    >>> coupling_perturbation(hessian, sizes=[1, 1], alpha=2.0)
    Inequality(Rényi paper, Prop. F.6, printed: |R_α(H) − R_α(B)| ≤ α (Λ/T)^(α−1) √d ‖E‖_F / T:
        0.125 ≤ 0.75, certified)
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, VERSIONS)
    partition = _check_trace(hessian, sizes)
    largest = float(torch.maximum(partition.eigenvalues.max(), partition.pinched.max()))
    norm = (
        math.sqrt(partition.dimension) * float(partition.coupling.norm())
        if version == "printed"
        else float(torch.linalg.eigvalsh(partition.coupling).abs().sum())
    )
    log_power = (alpha - 1.0) * math.log(largest / partition.trace)
    name = "√d ‖E‖_F" if version == "printed" else "‖E‖_*"
    return Inequality(
        statement=f"|R_α(H) − R_α(B)| ≤ α (Λ/T)^(α−1) {name} / T",
        source=f"Rényi paper, Prop. F.6, {version}",
        left=_power_sum_change(partition, alpha),
        right=alpha * exponential(log_power) * norm / partition.trace,
        assumptions={
            "positive_semidefinite": partition.positive_semidefinite,
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
) -> Inequality:
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
        Order α > 0; the bound is certified for α < 1 only, and never as printed.
    version : str
        ``"printed"`` or ``"corrected"``.
    constant : float
        Constant of the printed O; the paper gives none.

    Raises
    ------
    ValueError
        As :func:`coupling_perturbation`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import coupling_perturbation_below_one
    >>> def ratio(s):
    ...     hessian = torch.block_diag(torch.eye(1), torch.full((2, 2), s))
    ...     claim = coupling_perturbation_below_one(hessian, sizes=[1, 1, 1], alpha=0.5)
    ...     return round(claim.left / claim.right, 1)
    >>> ratio(1e-2), ratio(1e-4), ratio(1e-6)  # no constant in the printed O is enough
    (4.2, 41.4, 414.2)
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, ("printed", "corrected"))
    constant = check_nonnegative("constant", constant)
    partition = _check_trace(hessian, sizes)
    nuclear = float(torch.linalg.eigvalsh(partition.coupling).abs().sum()) / partition.trace
    assumptions: dict[str, bool | None] = {
        "positive_semidefinite": partition.positive_semidefinite,
        "order_below_one": alpha < 1,
    }
    if version == "printed":
        right = constant * float(partition.coupling.norm()) / partition.trace
        assumptions["power_is_lipschitz_at_zero"] = alpha >= 1
    else:
        right = partition.dimension ** (1.0 - alpha) * nuclear**alpha
    return Inequality(
        statement="|R_α(H) − R_α(B)| ≤ "
        + ("constant · ‖E‖_F / T" if version == "printed" else "d^(1−α) (‖E‖_* / T)^α"),
        source=f"Rényi paper, Appendix F, remark on α < 1, {version}",
        left=_power_sum_change(partition, alpha),
        right=right,
        assumptions=assumptions,
    )


def _check_trace(hessian: Tensor, sizes: Sequence[int]) -> _Partition:
    partition = _Partition(hessian, sizes)
    if partition.trace <= 0:
        raise ValueError(
            f"hessian has trace {partition.trace:.3g}: the bound needs a positive one."
        )
    return partition


def _power_sum_change(partition: _Partition, alpha: float) -> float:
    return abs(power_sum(partition.eigenvalues, alpha) - power_sum(partition.pinched, alpha))
