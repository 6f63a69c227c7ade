r"""Traces of functions of a symmetric matrix by stochastic Lanczos quadrature.

For a probe :math:`v` with eigencomponents :math:`\mu_i = (u_i^\top v)^2` at :math:`\lambda_i`,
:math:`v^\top f(A)\,v = \sum_i \mu_i f(\lambda_i) = \int f\,d\mu`. The m-step Lanczos matrix of
:math:`v` holds the m-point Gauss rule of this measure, and one more coefficient gives the Radau
rule with a node fixed at 0. Averaged over probes they estimate :math:`\operatorname{Tr} f(A)`.

:mod:`paperkit.linalg.rules` makes the rules and proves on which side of the integral they are;
:mod:`paperkit.linalg.spectral_functions` knows the functions for which that is so.

Sources: Ubaru, Chen and Saad (2017) for the average over probes; the Rényi paper's Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.lanczos import Lanczos, Tridiagonal
from paperkit.linalg.operator import SymmetricOperator, as_operator
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linalg.rules import (
    ROUND_OFF,
    Rule,
    SquaredRules,
    averaged_rule,
    gauss_rule,
    radau_rule,
    squared_rules,
)
from paperkit.linalg.spectral_functions import SpectralFunction
from paperkit.memory import GIBIBYTE, chunk_sizes

_EPSILON = torch.finfo(torch.float64).eps
# An adaptive number of steps is first looked at after so many, and then grows by this factor.
_FIRST_STEPS = 8
_GROWTH = 1.25


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over probes; ``float(estimate)`` is its value.

    Attributes
    ----------
    value : float
        The mean of the Gauss rules.
    standard_error : float
        Standard error of the mean over probes, without the error of the quadrature.
    bracket : tuple of float or None
        Lower and upper end of where infinitely many Lanczos steps from these same probes would
        end; it says nothing about the probes. None where no sign is known.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import as_operator, power, stochastic_lanczos_quadrature
    >>> A = as_operator(torch.diag(torch.arange(1.0, 31.0).double()), positive_semidefinite=True)
    >>> estimate = stochastic_lanczos_quadrature(A, probes=10, steps=4).trace(power(0.5))
    >>> round(float(estimate), 3)  # Σ √i = 112.083
    112.161
    >>> low, high = estimate.bracket  # Radau below, Gauss above
    >>> low < 112.083 < high
    True
    """

    value: float
    standard_error: float
    bracket: tuple[float, float] | None

    def __float__(self) -> float:
        return self.value

    @property
    def bracket_ratio(self) -> float:
        """The bracket's width in standard errors; infinite without a bracket."""
        if self.bracket is None:
            return math.inf
        width = self.bracket[1] - self.bracket[0]
        # Nothing can be resolved below the square root of the eigenvalues' round-off.
        if width <= _EPSILON**0.5 * abs(self.value):
            return 0.0
        return width / self.standard_error if self.standard_error > 0 else math.inf


@dataclass(frozen=True)
class SpectralQuadrature:
    """Rules from one set of Lanczos runs, from which the trace of any function follows.

    Attributes
    ----------
    gauss : Rule
        The Gauss rules of all probes.
    radau : Rule or None
        The Radau rules with a node at 0; None unless the operator is positive semidefinite.
    dimension : int
        d, the operator's size.
    steps : Tensor
        Shape (k,), int64: the Lanczos steps of each probe.
    exhausted : Tensor
        Shape (k,), bool: whether a probe's rules are exact because there was no further step.
    converged : bool
        Whether the bracket of every target was narrower than its standard error; true if there
        was no target.
    recurrences : tuple of Tridiagonal
        Lanczos coefficients from which the rules were made, in the probes' order.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import as_operator, power, stochastic_lanczos_quadrature, t_log_t
    >>> A = as_operator(torch.diag(torch.arange(1.0, 31.0).double()), positive_semidefinite=True)
    >>> quadrature = stochastic_lanczos_quadrature(A, probes=10, steps=10)
    >>> quadrature.products
    100
    >>> [round(float(quadrature.trace(power(alpha)))) for alpha in (1, 2)]  # Σ i and Σ i²
    [465, 9455]
    >>> round(float(quadrature.trace(t_log_t())), 1)  # each function for no product more
    1357.1
    """

    gauss: Rule
    radau: Rule | None
    dimension: int
    steps: Tensor
    exhausted: Tensor
    converged: bool
    recurrences: tuple[Tridiagonal, ...] = field(default=(), repr=False)

    @property
    def probes(self) -> int:
        """The number of random vectors."""
        return self.steps.numel()

    @property
    def products(self) -> int:
        """The number of operator-vector products."""
        return int(self.steps.sum())

    def __repr__(self) -> str:
        return (
            f"SpectralQuadrature(dimension={self.dimension}, probes={self.probes}, "
            f"steps={int(self.steps.max())}, converged={self.converged})"
        )

    def trace(self, function: SpectralFunction | Callable[[Tensor], Tensor]) -> Estimate:
        """Estimate the trace of a function of the operator.

        Parameters
        ----------
        function : SpectralFunction or callable
            From a tensor of eigenvalues to the tensor of values. Only a
            :class:`SpectralFunction` gets a bracket: of a positive semidefinite operator, or
            one with a ``square_derivative_sign``.

        Returns
        -------
        Estimate
            Mean over probes of the Gauss rules, its standard error, and the bracket.

        Raises
        ------
        ValueError
            If the function is not finite at a Ritz value.
        """
        if isinstance(function, SpectralFunction):
            samples = self.gauss.integrate(function.evaluate)
            bracket = self._bracket(function, float(samples.mean()))
        else:
            samples, bracket = self.gauss.integrate(function), None
        return Estimate(
            value=float(samples.mean()),
            standard_error=float(samples.std()) / len(samples) ** 0.5,
            bracket=bracket,
        )

    @cached_property
    def averaged(self) -> Rule:
        """The averaged rules of all probes, for distributions; see :func:`averaged_rule`."""
        rules = [averaged_rule(recurrence) for recurrence in self.recurrences]
        if self.radau is None:
            return _stack(rules)
        return _stack([Rule(rule.nodes.clamp(min=0.0), rule.weights) for rule in rules])

    @cached_property
    def _squared(self) -> SquaredRules | None:
        return squared_rules(self.gauss, self.steps, self.exhausted)

    def _bracket(self, function: SpectralFunction, gauss: float) -> tuple[float, float] | None:
        if self.radau is not None:
            radau = float(self.radau.integrate(function.evaluate).mean())
            return _between(gauss, radau, function.derivative_sign, self.steps[~self.exhausted])
        sign, squared = function.square_derivative_sign, self._squared
        if sign is None or squared is None:
            return None
        gauss, radau = (
            float(rule.integrate(function.evaluate).mean())
            for rule in (squared.gauss, squared.radau)
        )
        return _between(gauss, radau, sign, squared.steps[~self.exhausted])


def _between(
    gauss: float, radau: float, derivative_sign: Callable[[int], int | None], steps: Tensor
) -> tuple[float, float] | None:
    """Return a lower and an upper end, as the signs of derivatives tell them apart."""
    counts = {int(m) for m in steps}
    below, above = [], []
    for value, extra in ((gauss, 0), (radau, 1)):
        signs = {derivative_sign(2 * m + extra) for m in counts}
        below += [value] if signs <= {0, 1} else []
        above += [value] if signs <= {0, -1} else []
    if not below or not above:
        return None
    # Round-off can put two exact rules in the wrong order.
    return min(max(below), min(above)), max(max(below), min(above))


def stochastic_lanczos_quadrature(
    operator: SymmetricOperator | Tensor,
    *,
    probes: int = 100,
    steps: int | None = 15,
    max_steps: int = 100,
    targets: Sequence[Callable[[SpectralQuadrature], Estimate]] = (),
    distribution: str = "rademacher",
    probes_at_once: int | None = None,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> SpectralQuadrature:
    """Run Lanczos from random probes and return the quadrature rules.

    The defaults are the Rényi paper's setting, l = 100 probes and m = 15 steps.

    Parameters
    ----------
    operator : SymmetricOperator or Tensor
        A symmetric matrix, applied to as many probes at once as the memory budget allows; see
        :func:`paperkit.linalg.as_operator`. A matrix that is known to be positive semidefinite has
        Radau rules too, and so brackets of more functions.
    probes : int
        At least 2, for a standard error.
    steps : int, optional
        m, for all probes. None lets it grow by continuing the recurrences, until the bracket of
        every target is narrower than its standard error.
    max_steps : int
        Where ``steps=None`` gives up; ignored otherwise.
    targets : sequence of callable
        Quantities that the steps shall resolve, for ``steps=None`` and for ``converged``. Each
        maps a quadrature to an :class:`Estimate`, as ``lambda q: q.trace(power(0.5))`` does.
    distribution : str
        Distribution of the probes: ``"rademacher"``, ``"sphere"`` or ``"normal"``.
    probes_at_once : int, optional
        Number of probes that the operator is called with; default as many as fit. A single one
        suits an operator that multiplies single vectors faster.
    seed : int
        Seed of the probes.
    memory_budget : int
        Bytes for the Lanczos bases of the probes that run at once (at least two of them, unless
        ``probes_at_once`` says otherwise). With ``steps=None``, later chunks may take another
        number of steps.

    Returns
    -------
    SpectralQuadrature
        Ritz values below 10 units of round-off of the largest count as zeros.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, ``steps=None`` has no targets to
        watch, the operator is not what it is said to be, or as
        :func:`paperkit.linalg.lanczos`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import as_operator, power, stochastic_lanczos_quadrature
    >>> A = as_operator(torch.diag(torch.arange(1.0, 101.0).double()), positive_semidefinite=True)
    >>> quadrature = stochastic_lanczos_quadrature(A, probes=10, steps=20)
    >>> quadrature
    SpectralQuadrature(dimension=100, probes=10, steps=20, converged=True)
    >>> round(float(quadrature.trace(power(0.5))), 2)  # Tr A^½ = Σ √i = 671.46
    671.46
    """
    operator = as_operator(operator)
    dimension, dtype, device = operator.dimension, operator.dtype, operator.device
    positive_semidefinite = operator.positive_semidefinite
    spread = "one has no standard error"
    probes = arguments.integer("probes", probes, at_least=2, because=spread)
    max_steps = arguments.integer("max_steps", max_steps, at_least=1)
    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    targets = arguments.functions("targets", targets, "of a quadrature")
    if steps is None and not targets:
        raise ValueError("steps=None watches the brackets of targets: pass some, or a number.")
    longest = max_steps if steps is None else arguments.integer("steps", steps, at_least=1)
    generator = generator_of(seed)
    done: list[SpectralQuadrature] = []
    elements = min(longest, dimension) * dimension

    def so_far(last: Lanczos) -> SpectralQuadrature:
        return joined([*done, quadrature_of(last.tridiagonal(), starts, positive_semidefinite)])

    def resolved(quadrature: SpectralQuadrature) -> bool:
        # The final standard error will be smaller than the present one by this factor, because
        # more probes are to come.
        allowed = (quadrature.probes / probes) ** 0.5
        return all(target(quadrature).bracket_ratio <= allowed for target in targets)

    counts = chunk_sizes(probes, elements, dtype, memory_budget)
    if probes_at_once is not None:
        most = min(arguments.integer("probes_at_once", probes_at_once, at_least=1), max(counts))
        counts = [most] * (probes // most) + [probes % most] * (probes % most > 0)
    for count in counts:
        starts = draw_probes(
            count, dimension, generator, distribution=distribution, dtype=dtype, device=device
        )
        process = Lanczos(operator, starts)
        if steps is None:
            grow(process, longest, lambda last: resolved(so_far(last)))
        else:
            process.advance(longest)
        done.append(quadrature_of(process.tridiagonal(), starts, positive_semidefinite))
    quadrature = joined(done)
    return replace(quadrature, converged=resolved(quadrature))


def grow(process: Lanczos, longest: int, resolved: Callable[[Lanczos], bool]) -> None:
    """Take more and more steps, until they resolve what is asked or there are no more.

    Parameters
    ----------
    process : Lanczos
        Recurrences, to be continued.
    longest : int
        The most steps.
    resolved : callable
        Whether the steps so far are enough.
    """
    process.advance(min(_FIRST_STEPS, longest))
    while process.steps < longest and not process.exhausted and not resolved(process):
        grown = min(math.ceil(_GROWTH * process.steps), longest)
        process.advance(grown - process.steps)


def quadrature_of(
    tridiagonal: Tridiagonal, starts: Tensor, positive_semidefinite: bool
) -> SpectralQuadrature:
    """Turn coefficients into rules, with nodes at the round-off of the operator set to zero.

    Parameters
    ----------
    tridiagonal : Tridiagonal
        Of Lanczos from the starts.
    starts : Tensor
        Probes, (k, d).
    positive_semidefinite : bool
        Whether the operator is.

    Raises
    ------
    ValueError
        If it is said to be and has a negative Ritz value.
    """
    gauss = gauss_rule(tridiagonal)
    radau = radau_rule(tridiagonal) if positive_semidefinite else None
    epsilon = torch.finfo(starts.dtype).eps
    scale = float(gauss.nodes.abs().max())
    if positive_semidefinite and float(gauss.nodes.min()) < -(epsilon**0.5) * scale:
        raise ValueError(
            f"operator says positive_semidefinite=True, but it has an eigenvalue below "
            f"{float(gauss.nodes.min()):.3g}: say False."
        )

    def without_round_off(rule: Rule) -> Rule:
        nodes = torch.where(rule.nodes.abs() > ROUND_OFF * epsilon * scale, rule.nodes, 0.0)
        return Rule(nodes.clamp(min=0.0) if positive_semidefinite else nodes, rule.weights)

    return SpectralQuadrature(
        gauss=without_round_off(gauss),
        radau=None if radau is None else without_round_off(radau),
        dimension=starts.shape[1],
        steps=tridiagonal.steps.cpu(),
        exhausted=tridiagonal.exhausted.cpu(),
        converged=False,
        recurrences=(tridiagonal,),
    )


def joined(pieces: Sequence[SpectralQuadrature]) -> SpectralQuadrature:
    """Put the rules of several sets of probes together."""
    radau = [piece.radau for piece in pieces if piece.radau is not None]
    return replace(
        pieces[0],
        gauss=_stack([piece.gauss for piece in pieces]),
        radau=_stack(radau) if radau else None,
        steps=torch.cat([piece.steps for piece in pieces]),
        exhausted=torch.cat([piece.exhausted for piece in pieces]),
        recurrences=tuple(one for piece in pieces for one in piece.recurrences),
    )


def _stack(rules: Sequence[Rule]) -> Rule:
    longest = max(rule.nodes.shape[1] for rule in rules)

    def padded(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, longest - values.shape[1]))

    return Rule(
        torch.cat([padded(rule.nodes) for rule in rules]),
        torch.cat([padded(rule.weights) for rule in rules]),
    )
