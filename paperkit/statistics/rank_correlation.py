r"""Rank correlation between a measure and the generalization gap, with honest nulls.

Kendall's coefficient in the form of the Rényi paper's equation 8,

.. math:: \tau_a = \frac{2}{N(N-1)} \sum_{i<j} \operatorname{sign}(x_i - x_j)
          \operatorname{sign}(y_i - y_j) ,

counts tied pairs as zero and divides by all pairs. The code is ours, because ``scipy.stats`` has
τ-b, which divides by the pairs that are not tied and is larger in magnitude where there are ties,
and τ-c, but neither τ-a nor pairs within groups; its ``permutation_test`` has neither permutations
within groups nor the maximum over dependent measures.

The paper shows for every layer the order α whose τ is highest, chosen after the gap was seen. Two
guards belong to such a number: the distribution of the *maximum* over all that was tried when the
gaps are permuted (:func:`permutation_test`), and the coefficient within groups of models that share
a setting, such as the optimizer (``groups``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.probes import generator_of

# Bytes that the signs of one block of permutations may take.
_BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class KendallTau:
    """Kendall's τ-a and the counts that it is made of; ``float(result)`` is the coefficient.

    Attributes
    ----------
    concordant, discordant : int
        Pairs that x and y order alike, and oppositely.
    ties_x, ties_y, ties_both : int
        Pairs tied in x, in y, and in both; the first two include the third.
    pairs : int
        All pairs compared.
    """

    concordant: int
    discordant: int
    ties_x: int
    ties_y: int
    ties_both: int
    pairs: int

    @property
    def value(self) -> float:
        """(concordant − discordant) / pairs."""
        return (self.concordant - self.discordant) / self.pairs

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        counts = f"pairs={self.pairs}, ties_x={self.ties_x}, ties_y={self.ties_y}"
        return f"KendallTau({self.value:.6g}, {counts}, ties_both={self.ties_both})"


@dataclass(frozen=True)
class PermutationTest:
    """What permuting the gaps says of several measures at once.

    Attributes
    ----------
    tau : dict
        Observed τ-a by measure.
    p_value : dict
        By measure: how often a permutation gives this measure at least the τ observed (one-sided)
        or its magnitude (two-sided), the observed order counted as one of the permutations.
    p_value_of_maximum : dict
        By measure: how often the largest τ (or magnitude) *over all measures* is at least what was
        observed for this one. The value stays valid for the measure that was picked for its τ.
    critical : float
        The largest τ (or magnitude) over all measures exceeds this in at most ``level`` of the
        permutations.
    level : float
        Level of ``critical``.
    permutations : int
        Number of permutations drawn.
    """

    tau: dict[Hashable, float]
    p_value: dict[Hashable, float]
    p_value_of_maximum: dict[Hashable, float]
    critical: float
    level: float
    permutations: int


def kendall_tau(
    x: Sequence[float] | Tensor,
    y: Sequence[float] | Tensor,
    groups: Sequence[Hashable] | None = None,
) -> KendallTau:
    """Return Kendall's τ-a of two columns (Rényi paper, equation 8).

    Parameters
    ----------
    x, y : sequence of float or Tensor
        N values each, in the same order of models. A sharpness that predicts the gap has a
        positive coefficient.
    groups : sequence of hashable, optional
        A label for each model: only pairs of models of the same group are compared, so that
        differences between the groups neither make nor hide a correlation.

    Returns
    -------
    KendallTau
        With all counts; exact integers.

    Raises
    ------
    ValueError
        If the columns differ in length, have NaN, or give no pair to compare.

    Examples
    --------
    >>> from paperkit.statistics import kendall_tau
    >>> kendall_tau([1, 2, 3, 4], [1, 2, 4, 3])  # five pairs agree, one does not
    KendallTau(0.666667, pairs=6, ties_x=0, ties_y=0, ties_both=0)
    >>> float(kendall_tau([1, 2, 2], [1, 2, 3]).value) < 1  # a tied pair counts as zero
    True
    """
    columns, labels = _checked({"x": x}, {"y": y}, groups)
    i, j = _pairs(len(labels), groups)
    signs_x, signs_y = (_signs(column, i, j) for column in (columns[0], labels))
    products = signs_x * signs_y
    return KendallTau(
        concordant=int((products > 0).sum()),
        discordant=int((products < 0).sum()),
        ties_x=int((signs_x == 0).sum()),
        ties_y=int((signs_y == 0).sum()),
        ties_both=int(((signs_x == 0) & (signs_y == 0)).sum()),
        pairs=len(i),
    )


def kendall_tau_by_group(
    x: Sequence[float] | Tensor, y: Sequence[float] | Tensor, groups: Sequence[Hashable]
) -> dict[Hashable, KendallTau]:
    """Return Kendall's τ-a of the models of each group that has two or more, by its label.

    Parameters
    ----------
    x, y, groups
        As in :func:`kendall_tau`.

    Raises
    ------
    ValueError
        As :func:`kendall_tau`.

    Examples
    --------
    >>> from paperkit.statistics import kendall_tau, kendall_tau_by_group
    >>> sharpness, gap = [1, 2, 3, 7, 8, 9], [7, 8, 9, 1, 2, 3]
    >>> optimizers = ["SGD"] * 3 + ["SAM"] * 3
    >>> round(float(kendall_tau(sharpness, gap)), 3)
    -0.2
    >>> by_group = kendall_tau_by_group(sharpness, gap, optimizers)
    >>> {name: float(tau) for name, tau in by_group.items()}  # within each, the order is the same
    {'SGD': 1.0, 'SAM': 1.0}
    """
    columns, labels = _checked({"x": x}, {"y": y}, groups)
    result = {}
    for group in dict.fromkeys(groups):
        members = [index for index, label in enumerate(groups) if label == group]
        if len(members) > 1:
            result[group] = kendall_tau(columns[0][members], labels[members])
    return result


def null_standard_deviation(n: int) -> float:
    r"""Return the standard deviation of τ of n independent pairs without ties.

    :math:`\sqrt{2(2n+5)/(9n(n-1))}` (Kendall 1938); 0.129 for 30 models.

    Raises
    ------
    ValueError
        If n is below 2.
    """
    n = arguments.integer("n", n, at_least=2)
    return math.sqrt(2.0 * (2 * n + 5) / (9.0 * n * (n - 1)))


def permutation_test(
    measures: Mapping[Hashable, Sequence[float] | Tensor],
    gap: Sequence[float] | Tensor,
    groups: Sequence[Hashable] | None = None,
    *,
    permutations: int = 10_000,
    two_sided: bool = False,
    level: float = 0.05,
    seed: int = 0,
) -> PermutationTest:
    """Compare the τ-a of several measures with what permuted gaps give, singly and at the maximum.

    Permuting the gaps keeps the dependence between the measures (neighbouring orders α are almost
    one measure), so the maximum is penalized as much as the search was wide, not more.

    Parameters
    ----------
    measures : mapping
        By name, N values each: everything that was tried, every layer and every order.
    gap : sequence of float or Tensor
        N values, in the same order of models.
    groups : sequence of hashable, optional
        As in :func:`kendall_tau`; gaps are then permuted within groups only.
    permutations : int
        Number drawn at random; the smallest p-value is 1/(permutations + 1).
    two_sided : bool
        Use magnitudes of τ.
    level : float
        Level of the critical value.
    seed : int
        Seed of the permutations.

    Returns
    -------
    PermutationTest
        By measure.

    Raises
    ------
    ValueError
        If a column does not fit, there is none, or an option is out of range.

    Examples
    --------
    >>> from paperkit.statistics import permutation_test
    >>> measures = {"right": [1, 2, 3, 4, 5], "wrong": [5, 4, 3, 2, 1], "other": [2, 1, 4, 3, 5]}
    >>> test = permutation_test(measures, gap=[1, 2, 3, 4, 5], permutations=2000)
    >>> test.tau["right"], round(test.p_value["right"], 2)  # 1/5! by itself
    (1.0, 0.01)
    >>> round(test.p_value_of_maximum["right"], 2)  # of three that were tried
    0.03
    """
    level = arguments.number("level", level, above=0, below=1)
    permutations = arguments.integer("permutations", permutations, at_least=1)
    two_sided, seed = arguments.flag("two_sided", two_sided), arguments.seed("seed", seed)
    if not isinstance(measures, Mapping) or not measures:
        raise TypeError(
            f"measures={arguments.shown(measures)} must be a mapping from names to columns, one "
            "at least."
        )
    columns, labels = _checked(
        {f"measures[{k!r}]": m for k, m in measures.items()}, {"gap": gap}, groups
    )
    i, j = _pairs(len(labels), groups)
    signs = _signs(columns, i, j)
    # Sums of signs are integers below 2^53, so that equal coefficients compare equal.
    observed = signs @ _signs(labels, i, j)
    null = torch.cat(
        [
            signs @ _signs(shuffled, i, j).T
            for shuffled in _shuffled(labels, groups, permutations, len(i), seed)
        ],
        dim=1,
    )
    if two_sided:
        null = null.abs()
    statistic = observed.abs() if two_sided else observed
    largest = null.max(dim=0).values
    reached = (null >= statistic.unsqueeze(1)).sum(1)
    exceeded = (largest >= statistic.unsqueeze(1)).sum(1)
    names = list(measures)
    allowed = math.floor(level * permutations)
    return PermutationTest(
        tau=dict(zip(names, (observed / len(i)).tolist(), strict=True)),
        p_value=dict(zip(names, ((1 + reached) / (1 + permutations)).tolist(), strict=True)),
        p_value_of_maximum=dict(
            zip(names, ((1 + exceeded) / (1 + permutations)).tolist(), strict=True)
        ),
        critical=float(largest.sort(descending=True).values[allowed]) / len(i),
        level=level,
        permutations=permutations,
    )


def _checked(
    measures: Mapping[str, Sequence[float] | Tensor],
    gap: Mapping[str, Sequence[float] | Tensor],
    groups: Sequence[Hashable] | None,
) -> tuple[Tensor, Tensor]:
    """Return the measures (k, N) and the gaps (N,) in float64 on the CPU; both by name."""
    ((of_gap, column),) = gap.items()
    labels = _column(of_gap, column)
    columns = [_column(name, column) for name, column in measures.items()]
    for name, column in zip(measures, columns, strict=True):
        if column.shape != labels.shape:
            raise ValueError(
                f"{name} has {len(column)} values and {of_gap} {len(labels)}: pass one for each "
                "model."
            )
    if groups is not None:
        arguments.iterable("groups", groups, "labels, one for each model")
        if len(groups) != len(labels):
            raise ValueError(f"groups has {len(groups)} labels for {len(labels)} models.")
        if not all(isinstance(label, Hashable) for label in groups):
            raise TypeError(f"groups={arguments.shown(groups)} must hold labels such as strings.")
    return torch.stack(columns), labels


def _column(name: str, column: Sequence[float] | Tensor) -> Tensor:
    if isinstance(column, Tensor):
        arguments.tensor(name, column, ndim=1)
    return arguments.vector(name, column, finite=False)


def _pairs(n: int, groups: Sequence[Hashable] | None) -> tuple[Tensor, Tensor]:
    """Return both indices of all pairs of models, of the same group where there are groups."""
    pairs = [
        pair
        for pair in itertools.combinations(range(n), 2)
        if groups is None or groups[pair[0]] == groups[pair[1]]
    ]
    if not pairs:
        raise ValueError(
            "groups leave no pair to compare: pass at least two models (of one group)."
            if groups is not None
            else "x has no pair to compare: pass at least two models."
        )
    i, j = torch.tensor(pairs, dtype=torch.int64, device="cpu").unbind(1)
    return i, j


def _signs(values: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return sign(v_i − v_j) for all pairs, (…, pairs); infinite values compare like others."""
    first, second = values[..., i], values[..., j]
    return (first > second).to(values.dtype) - (first < second).to(values.dtype)


def _shuffled(
    labels: Tensor, groups: Sequence[Hashable] | None, permutations: int, pairs: int, seed: int
) -> Iterator[Tensor]:
    """Yield permuted copies of the labels, (block, N) at a time."""
    generator = generator_of(seed)
    n = len(labels)
    names = list(dict.fromkeys(groups)) if groups is not None else []
    codes = [names.index(group) for group in groups] if groups is not None else [0] * n
    code = torch.tensor(codes, dtype=torch.float64, device="cpu")
    members = code.argsort(stable=True)
    step = max(1, _BLOCK_BYTES // (8 * pairs))
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        # Sorting group number + uniform noise in [0, 1) shuffles every group within itself.
        noise = torch.rand(count, n, generator=generator, dtype=torch.float64, device="cpu")
        block = labels.repeat(count, 1)
        block[:, members] = labels[(code + noise).argsort(dim=1)]
        yield block
