r"""Traces of functions of a symmetric matrix by stochastic Lanczos quadrature.

For a probe :math:`v` with eigencomponents :math:`\mu_i = (u_i^\top v)^2` at :math:`\lambda_i`,
:math:`v^\top f(A)\,v = \sum_i \mu_i f(\lambda_i) = \int f\,d\mu`. The m-step Lanczos matrix of
:math:`v` holds the m-point Gauss rule of this measure, and one more coefficient gives the Radau
rule with a node fixed at 0. Averaged over probes they estimate :math:`\operatorname{Tr} f(A)`.

**Which rule is on which side.** Let :math:`f` be continuous on :math:`[0, b]` and smooth on
:math:`(0, b)`, let :math:`\mu` be a positive measure on :math:`[0, b]` that is not exhausted, and
:math:`\theta_j` the nodes of a rule inside. Then for some :math:`\xi` in :math:`(0, b)`

.. math::
   \int f\,d\mu - Q_{\text{Gauss}} =
       \frac{f^{(2m)}(\xi)}{(2m)!} \int \prod_j (t - \theta_j)^2\, d\mu, \qquad
   \int f\,d\mu - Q_{\text{Radau}} =
       \frac{f^{(2m+1)}(\xi)}{(2m+1)!} \int t \prod_j (t - \theta_j)^2\, d\mu .

*Proof.* Both rules integrate the polynomial that meets :math:`f` twice at every :math:`\theta_j`
(and, for Radau, once at 0), and the integrals on the right are positive. Its error at :math:`t` is
the integrand times a derivative at some :math:`\xi(t)`, by Rolle's theorem applied again and again
between the nodes and :math:`t`. Rolle's theorem needs a derivative only *between* its zeros, so all
:math:`\xi(t)` are in the open interval: no derivative at 0 is ever used. ∎

So the sign of one derivative on :math:`(0, b)` decides, also for :math:`t^\alpha` with
:math:`0 < \alpha < 1` and for :math:`t \log t`, which are not differentiable at 0. The k-th
derivative of :math:`t^\alpha` has the sign of
:math:`\alpha (\alpha - 1) \cdots (\alpha - k + 1)`. Gauss is above and Radau below for
:math:`0 < \alpha < 1`; the reverse holds for :math:`1 < \alpha < 2` and :math:`t \log t`; and so
on in turn, while :math:`\alpha < 2m`. An integer :math:`\alpha \le 2m - 1` is exact.

**Functions of the magnitude.** An indefinite matrix leaves no sign to :math:`|t|^\alpha`, which has
a kink inside. But :math:`|t|^\alpha = s^{\alpha/2}` of the square :math:`s = t^2`, and :math:`A^2`
is positive semidefinite. The m-step rule of :math:`\mu` has its moments up to degree 2m − 1, hence
those of the spectral measure of :math:`A^2` up to m − 1: Lanczos on the squared nodes gives that
measure's Gauss rule of k = ⌊(m − 1)/2⌋ points and its Radau rule, as k steps with :math:`A^2`
itself would, and no product more. So the same signs bracket the magnitude's powers; and those of
:math:`\lvert t\rvert \log \lvert t\rvert = \tfrac12 \sqrt s \log s`, whose k-th derivative has the
sign of :math:`(-1)^k` as long as :math:`\log s < \sum_{j=2}^{k-1} 1/(j - \tfrac12)`, k ≥ 3.

Sources: Golub and Meurant (2010), chapter 6, for the rules; Ubaru, Chen and Saad (2017) for the
average over probes; the Rényi paper's Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.lanczos import BREAKDOWN, Lanczos, Tridiagonal, lanczos, tridiagonal_matrices
from paperkit.linalg.operator import SymmetricOperator, as_operator
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.memory import GIBIBYTE, chunk_sizes

_EPSILON = torch.finfo(torch.float64).eps
# Nodes below this many units of round-off of the largest are zero.
_ROUND_OFF = 10.0
# With an adaptive number of steps: the first look, and how much further each time.
_FIRST_STEPS = 8
_GROWTH = 1.25


@dataclass(frozen=True)
class SpectralFunction:
    """A function of eigenvalues, with what its derivatives say about quadrature.

    Attributes
    ----------
    name : str
        For messages.
    evaluate : callable
        From a tensor of points to the tensor of values.
    derivative_sign : callable
        From an order k ≥ 2 to the sign (−1, 0 or 1) of the k-th derivative on t > 0, where it must
        not change.
    square_derivative_sign : callable or None
        The same for g, where the function is t ↦ g(t²) on both sides of zero: it brackets the trace
        of an indefinite operator. None where there is no such g, or no sign.
    """

    name: str
    evaluate: Callable[[Tensor], Tensor]
    derivative_sign: Callable[[int], int]
    square_derivative_sign: Callable[[int], int | None] | None = None


def power(alpha: float) -> SpectralFunction:
    """Return t ↦ t^α, for bracketing.

    Parameters
    ----------
    alpha : float
        Positive.

    Returns
    -------
    SpectralFunction
        Negative points have a value for integer α only.

    Raises
    ------
    TypeError, ValueError
        If alpha is no positive number, or beyond 2⁵³.
    """
    alpha = arguments.order("alpha", alpha)

    def derivative_sign(order: int) -> int:
        factors = [alpha - i for i in range(order)]
        if 0.0 in factors:
            return 0
        return -1 if sum(factor < 0 for factor in factors) % 2 else 1

    return SpectralFunction(f"t^{alpha:g}", lambda t: t**alpha, derivative_sign)


def t_log_t() -> SpectralFunction:
    """Return t ↦ t log t, zero at 0, for bracketing: its trace gives Shannon's entropy."""
    return SpectralFunction(
        "t log t", lambda t: torch.special.xlogy(t, t), lambda order: -1 if order % 2 else 1
    )


def power_of_magnitude(alpha: float) -> SpectralFunction:
    """Return t ↦ |t|^α, for bracketing also where eigenvalues are negative.

    Parameters
    ----------
    alpha : float
        Positive.

    Raises
    ------
    TypeError, ValueError
        As :func:`power`.
    """
    plain = power(alpha)
    return SpectralFunction(
        f"|t|^{alpha:g}",
        lambda t: t.abs() ** alpha,
        plain.derivative_sign,
        power(alpha / 2).derivative_sign,
    )


def magnitude_log_magnitude() -> SpectralFunction:
    """Return t ↦ |t| log |t|, zero at 0: Shannon's entropy of the magnitudes.

    The bracket of an indefinite operator needs its eigenvalues to be scaled so that the largest
    magnitude is about 1.
    """
    return SpectralFunction(
        "|t| log |t|",
        lambda t: torch.special.xlogy(t.abs(), t.abs()),
        t_log_t().derivative_sign,
        # Of √s log(s) / 2; nothing is claimed below the third derivative.
        lambda order: (-1) ** order if order > 2 else None,
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over probes; ``float(estimate)`` is its value.

    Attributes
    ----------
    value : float
        The mean of the Gauss rules.
    standard_error : float
        Of the mean over probes; it says nothing about the quadrature.
    bracket : tuple of float or None
        Lower and upper end of where infinitely many Lanczos steps from these same probes would
        end; it says nothing about the probes. None where no sign is known.
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
class Rule:
    """One quadrature rule a probe.

    Attributes
    ----------
    nodes, weights : Tensor
        Shape (k, m), float64, on the CPU. A probe's weights sum to its squared norm; a rule of
        fewer points is padded with weights of zero.
    """

    nodes: Tensor
    weights: Tensor

    def integrate(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return each probe's sum of weights times values, (k,).

        Parameters
        ----------
        function : callable
            From a tensor of points to the tensor of values; not called for its value where a weight
            is zero.

        Raises
        ------
        TypeError, ValueError
            If it is no function of tensors, or not finite at a node.
        """
        arguments.function("function", function, "a function of a tensor of points")
        found = function(self.nodes)
        if not isinstance(found, Tensor) or found.shape != self.nodes.shape:
            raise ValueError(
                f"function maps shape {tuple(self.nodes.shape)} to {arguments.shown(found)}: it "
                "must return one value a point."
            )
        values = torch.where(self.weights > 0, found, 0.0)
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                "function is not finite at some Ritz values: the operator's spectrum reaches "
                "beyond its domain."
            )
        return (self.weights * values).sum(dim=1)


def _rule(matrices: Tensor, squared_norm: Tensor) -> Rule:
    nodes, vectors = torch.linalg.eigh(matrices)
    weights = vectors[:, 0, :].square()
    # A squared component below round-off squared belongs to a row of padding.
    weights = torch.where(weights > _EPSILON**2, weights, 0.0)
    return Rule(nodes, weights * squared_norm.unsqueeze(1))


def gauss_rule(tridiagonal: Tridiagonal) -> Rule:
    """Return the Gauss rules of the starting vectors' spectral measures.

    Parameters
    ----------
    tridiagonal : Tridiagonal
        From m Lanczos steps.

    Returns
    -------
    Rule
        m points, exact for polynomials of degree 2m − 1, or for everything once the Krylov space
        is exhausted.
    """
    arguments.instance("tridiagonal", tridiagonal, Tridiagonal)
    return _rule(tridiagonal.matrices().cpu(), tridiagonal.norm.cpu().square())


def radau_rule(tridiagonal: Tridiagonal) -> Rule:
    r"""Return the Gauss–Radau rules with one node at 0, for a positive semidefinite operator.

    The matrix of one more row whose smallest eigenvalue is 0 has the last diagonal entry
    :math:`\beta_m^2\, e_m^\top T^{-1} e_m = \beta_m^2 / \delta_m`, with :math:`\delta_m` the last
    pivot of :math:`T` (Golub, "Some modified matrix eigenvalue problems", 1973).

    Parameters
    ----------
    tridiagonal : Tridiagonal
        From m Lanczos steps.

    Returns
    -------
    Rule
        m + 1 points, exact for polynomials of degree 2m.
    """
    arguments.instance("tridiagonal", tridiagonal, Tridiagonal)
    diagonal, off_diagonal = tridiagonal.diagonal.cpu(), tridiagonal.off_diagonal.cpu()
    k, m = diagonal.shape
    tiny = BREAKDOWN * _EPSILON * diagonal.abs().amax(dim=1)
    quotient = torch.zeros(k, dtype=torch.float64, device="cpu")
    coupling = quotient
    for j in range(m):
        pivot = diagonal[:, j] - quotient
        # A pivot of zero means that 0 is a node already: then there is nothing to couple to.
        coupling = torch.where(pivot > tiny, off_diagonal[:, j], 0.0)
        quotient = coupling.square() / torch.where(pivot > tiny, pivot, 1.0)
    matrices = torch.zeros(k, m + 1, m + 1, dtype=torch.float64, device="cpu")
    matrices[:, :m, :m] = tridiagonal.matrices().cpu()
    matrices[:, m, m] = quotient
    matrices[:, m, m - 1] = matrices[:, m - 1, m] = coupling
    return _rule(matrices, tridiagonal.norm.cpu().square())


def averaged_rule(tridiagonal: Tridiagonal) -> Rule:
    r"""Return the generalized averaged Gauss rules, with almost twice the points.

    The Jacobi matrix of m steps is continued by the residual coefficient :math:`\beta_m` and its
    own first m − 1 rows in reverse. The weights are positive. What the rule gains over Gauss is
    resolution, without a product more; a node may lie outside of the spectrum, so that it suits
    smooth functions and distributions, not brackets (Spalević, "On generalized averaged Gaussian
    formulas", 2007).

    Parameters
    ----------
    tridiagonal : Tridiagonal
        From m Lanczos steps.

    Returns
    -------
    Rule
        2m − 1 points, exact for polynomials of degree 2m where m is at least 2; the Gauss rule for
        m = 1.
    """
    arguments.instance("tridiagonal", tridiagonal, Tridiagonal)
    diagonal, off_diagonal = tridiagonal.diagonal.cpu(), tridiagonal.off_diagonal.cpu()
    m = diagonal.shape[1]
    if m == 1:
        return gauss_rule(tridiagonal)
    along = torch.cat([diagonal, diagonal[:, :-1].flip(1)], dim=1)
    beside = torch.cat([off_diagonal, off_diagonal[:, : m - 2].flip(1)], dim=1)
    return _rule(tridiagonal_matrices(along, beside), tridiagonal.norm.cpu().square())


@dataclass(frozen=True)
class _SquaredRules:
    """Rules of the spectral measures of A², from those of A.

    Attributes
    ----------
    gauss, radau : Rule
        Their nodes are the roots of those of A²: magnitudes of eigenvalues.
    steps : Tensor
        Shape (k,), int64: the points of each Gauss rule.
    """

    gauss: Rule
    radau: Rule
    steps: Tensor


def _squared_rules(rule: Rule, steps: Tensor, exhausted: Tensor) -> _SquaredRules | None:
    """Return the rules of A² that Gauss rules of A hold; None if a probe took too few steps."""
    # A rule that is exact for everything is so for the squares too, with all its points.
    points = torch.where(exhausted, steps, (steps - 1) // 2)
    scale = float(rule.nodes.abs().max())
    if int(points.min()) < 1 or scale == 0:
        return None
    squares = (rule.nodes / scale).square()
    pieces: list[tuple[Tensor, Rule, Rule]] = []
    for count in points[~exhausted].unique().tolist():
        rows = ~exhausted & (points == count)
        found = lanczos(partial(torch.mul, squares[rows]), rule.weights[rows].sqrt(), count)
        pieces.append((rows, gauss_rule(found), radau_rule(found)))
    if bool(exhausted.any()):
        whole = Rule(squares[exhausted], rule.weights[exhausted])
        pieces.append((exhausted, whole, whole))
    gauss = _magnitudes([(rows, found) for rows, found, _ in pieces], len(steps), scale)
    radau = _magnitudes([(rows, found) for rows, _, found in pieces], len(steps), scale)
    return _SquaredRules(gauss, radau, points)


def _magnitudes(pieces: Sequence[tuple[Tensor, Rule]], probes: int, scale: float) -> Rule:
    """Put rules of A² over its scale in the probes' order, roots for nodes, round-off zero."""
    longest = max(rule.nodes.shape[1] for _, rule in pieces)
    nodes = torch.zeros(probes, longest, dtype=torch.float64, device="cpu")
    weights = torch.zeros_like(nodes)
    for rows, rule in pieces:
        count = rule.nodes.shape[1]
        squares = torch.where(rule.nodes > _ROUND_OFF * _EPSILON, rule.nodes, 0.0)
        nodes[rows, :count] = scale * squares.sqrt()
        weights[rows, :count] = rule.weights
    return Rule(nodes, weights)


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
        What the rules were made from, in the probes' order.
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
    def _squared(self) -> _SquaredRules | None:
        return _squared_rules(self.gauss, self.steps, self.exhausted)

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
    # Two exact rules can differ by round-off in the wrong order.
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
        A symmetric matrix; see :func:`paperkit.linalg.as_operator`. It is applied to as many probes
        at once as the memory budget allows. Where it says that it is positive semidefinite, there
        are Radau rules too, and so brackets of more functions.
    probes : int
        At least 2, for a standard error.
    steps : int, optional
        m, for all probes. None lets it grow by continuing the recurrences, until the bracket of
        every target is narrower than its standard error.
    max_steps : int
        Where ``steps=None`` gives up; ignored otherwise.
    targets : sequence of callable
        What the steps shall resolve, for ``steps=None`` and for ``converged``. Each maps a
        quadrature to an :class:`Estimate`, as ``lambda q: q.trace(power(0.5))`` does.
    distribution : str
        One of ``"rademacher"``, ``"sphere"``, ``"normal"``.
    probes_at_once : int, optional
        That the operator is called with; default as many as fit. One suits an operator that
        multiplies single vectors faster.
    seed : int
        Seed of the probes.
    memory_budget : int
        Bytes for the Lanczos bases of the probes that run at once (at least two of them, unless
        ``probes_at_once`` says otherwise). With
        ``steps=None``, later chunks may take another number of steps.

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
        return _join([*done, _quadrature(last.tridiagonal(), starts, positive_semidefinite)])

    def resolved(quadrature: SpectralQuadrature) -> bool:
        # Of the final standard error, foreseen from the probes that have run.
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
        process.advance(min(_FIRST_STEPS, longest) if steps is None else longest)
        while (
            steps is None
            and process.steps < longest
            and not process.exhausted
            and not resolved(so_far(process))
        ):
            grown = min(math.ceil(_GROWTH * process.steps), longest)
            process.advance(grown - process.steps)
        done.append(_quadrature(process.tridiagonal(), starts, positive_semidefinite))
    quadrature = _join(done)
    return replace(quadrature, converged=resolved(quadrature))


def _quadrature(
    tridiagonal: Tridiagonal, starts: Tensor, positive_semidefinite: bool
) -> SpectralQuadrature:
    """Turn coefficients into rules, with nodes at the round-off of the operator set to zero."""
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
        nodes = torch.where(rule.nodes.abs() > _ROUND_OFF * epsilon * scale, rule.nodes, 0.0)
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


def _join(pieces: Sequence[SpectralQuadrature]) -> SpectralQuadrature:
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
