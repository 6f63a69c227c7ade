# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext.formats,jupytext.text_representation.extension,jupytext.text_representation.format_name,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (chapter-estimators)=
# # Stochastic estimators, on spectra we know
#
# **Question.** How wrong is an entropy that is estimated from products with random vectors?
#
# **Answer.** A standard error sees the scatter of the probes, not the error of the quadrature, which no number of probes removes.
# In one recorded network the second is the larger: 15 steps at order ½ err by up to 2.4 nats.
# Two rules enclose what infinitely many steps give with the same probes.
#
# **Time.** Reading: about 40 minutes; running: under half a minute on two cores.
#
# **You need:** eigenvalues of a symmetric matrix, and the variance of a mean.
#
# What this chapter finds is proved or computed where it stands, so there are no verdicts: a cell whose assertion fails stops the notebook.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke, laptop or paper
seed = 0  # draws the eigenvectors; the probes have the seeds 0, 1, 2, …
repeats = None  # repetitions of an experiment; None: the profile's own number
device = "cpu"  # cpu or cuda; auto: a GPU where there is one
store = None  # folder for new records; None: the repository's own

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import setup, table

p = setup(
    globals(),
    {"smoke": {"repeats": 10}, "laptop": {"repeats": 30}, "paper": {"repeats": 200}},
    allowed=["seed", "repeats"],
    threads=1,
)

import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from paperkit.estimators import renyi_entropy
from paperkit.estimators.entropy import renyi_entropy_estimate
from paperkit.linalg.density import spectral_density
from paperkit.linalg.eigenpairs import top_eigenpairs
from paperkit.linalg.lanczos import lanczos
from paperkit.linalg.operator import FunctionOperator, as_operator
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linalg.quadrature import stochastic_lanczos_quadrature
from paperkit.linalg.rules import gauss_rule
from paperkit.linalg.spectral_functions import power, t_log_t
from paperkit.linalg.traces import hutch_plus_plus, hutchinson, krylov_deflation, xtrace
from paperkit.plotting import COLORS, INK, landing_record

real = {"dtype": torch.float64, "device": p.device}

# %% [markdown]
# A Hessian of a million parameters cannot be written down, but it can be multiplied with a vector for the price of two or three gradients.
# What the Rényi paper {cite:p}`renyi2025` measures comes from such products: 15 of them for each of 100 random vectors.
# The number that comes out has two errors, of different kinds.
# The *probes* are random, and their error can be estimated from the sample.
# For a trace it has mean zero, and falls like one over the square root of the number $k$ of probes.
# An entropy is the logarithm of a ratio of traces, so it has a bias besides; but that is of order $1/k$, and soon small beside the scatter.
# The *quadrature* stops after $m$ steps.
# Each probe has a quadrature error of its own.
# For a matrix without negative eigenvalues, and the powers that an entropy needs, the errors of all probes {prf:ref}`have one sign <est-sides>`, so that no averaging removes them.
#
# How much that matters depends on the spectrum.
# {ref}`Below <est-recorded>` we take the layers of one small trained network: at order ½, 15 steps overrate every layer, by up to more than two nats, and change the order of the layers; at the paper's other order, 3/2, they are enough.
#
# Every matrix here has a spectrum that we know, chosen or recorded, so every estimate can be held against the truth.
#
# **Symbols.** From the {doc}`notation page <../book/notation>`: $\lambda_j$ are eigenvalues, $d$ is the dimension, $k$ the number of probes and $m$ the number of Lanczos steps.
# Some letters belong to this chapter alone.
# Lanczos's are $\alpha_j$ and $\beta_j$, the entries of the matrix $T$, $q_j$, its basis vectors, and $\theta_j$ and $s_j$, the eigenvalues and eigenvectors of $T$.
# A measure on the line is $\mu$, and $w_j$ are the weights of a rule.
# The two sums of probe $i$ are $N_i = d \sum_j w_{ij}\, \theta_{ij}^\alpha$ and $D_i = d \sum_j w_{ij}\, \theta_{ij}$, $P$ is a polynomial in one proof and a projector {ref}`at the end <est-traces>`, and $A$ is any symmetric matrix.
# An $\alpha$ without an index is the order of an entropy, as everywhere.
#
# **Computed here.** Nothing is trained; one record of chapter 1 is read, and all arithmetic is in float64.
#
# | statement | in the paper | here |
# |---|---|---|
# | the entropy as a ratio of traces | eq. 6 | {eq}`eq-est-entropy` |
# | a trace from random vectors | eq. 7 | {eq}`eq-est-hutchinson` |
# | Lanczos, and the estimate | Algorithm 1 | {eq}`eq-est-lanczos`, {eq}`eq-est-slq` |
#
# ## A matrix whose entropy is known
#
# Eigenvalues of a trained network fall steeply with their index.
# We begin with a kind imitation: $\lambda_j = j^{-3/2}$ for $j = 1, \dots, 1000$, and random orthonormal eigenvectors.
# It is kind because it has no zeros, and because {ref}`recorded spectra <est-recorded>` are steeper.
# From {cite:t}`renyi2025`, equation 6,
#
# $$
# \mathcal H_\alpha(H) \;=\; \frac{1}{1-\alpha} \log \frac{\operatorname{Tr} H^\alpha}{(\operatorname{Tr} H)^\alpha} ,
# \qquad H \succeq 0 .
# $$ (eq-est-entropy)

# %% tags=["nbval-rtol=1e-6"]
d = 1000
eigenvalues = torch.arange(1, d + 1, **real) ** -1.5


def matrix_with(eigenvalues: Tensor) -> Tensor:
    """Return a matrix with these eigenvalues and random eigenvectors."""
    size = len(eigenvalues)
    normal = torch.randn(size, size, generator=generator_of(p.seed), dtype=torch.float64)
    vectors = torch.linalg.qr(normal.to(p.device)).Q
    return (vectors * eigenvalues) @ vectors.T


H = matrix_with(eigenvalues)
orders = (0.5, 0.99, 1.5, 2.5)
exact = {alpha: renyi_entropy(eigenvalues, alpha) for alpha in orders}
table(["order", "exact entropy"], exact)

# %% [markdown]
# (est-hutchinson)=
# ## A trace from random signs
#
# Let $v$ be random with $\mathbb E\, v v^\top = I$.
# Then for any symmetric matrix $A$ {cite:p}`hutchinson1989`
#
# $$
# \mathbb E\, v^\top A\, v \;=\; \mathbb E \operatorname{Tr}(A\, v v^\top) \;=\; \operatorname{Tr} A
# \qquad (\text{paper: eq. 7}) .
# $$ (eq-est-hutchinson)
#
# How much does one sample scatter?
# With independent random signs, $v_i^2 = 1$, so the diagonal adds no noise, and $v^\top A v - \operatorname{Tr} A = 2 \sum_{i<j} A_{ij} v_i v_j$ is a sum of uncorrelated terms:
#
# $$
# \operatorname{Var} v^\top A\, v \;=\; 4 \sum_{i < j} A_{ij}^2 \;=\; 2 \Big( \lVert A \rVert_F^2 - \sum_i A_{ii}^2 \Big) .
# $$ (eq-est-variance)
#
# For ten dimensions there are 1,024 sign vectors.
# Take them all, and both equations are finite sums.

# %%
A = matrix_with(torch.linspace(-1, 2, 10, **real))
numbers, places = (torch.arange(count, device=p.device) for count in (2**10, 10))
bits = numbers.unsqueeze(1) >> places & 1
signs = 2.0 * bits.double() - 1
samples = ((signs @ A) * signs).sum(dim=1)
variance = 2 * (A.square().sum() - A.diagonal().square().sum())

assert torch.isclose(samples.mean(), A.trace(), rtol=1e-12)
assert torch.isclose(samples.var(unbiased=False), variance, rtol=1e-12)

probes = draw_probes(50, 10, generator_of(7), device=p.device)
assert math.isclose(hutchinson(A, 50, seed=7).value, float(((probes @ A) * probes).sum(1).mean()))

# %% [markdown]
# Our probes and vectors are *rows*, many at a time: an operator takes and returns a matrix of shape $(k, d)$.
# On a network this is what makes probes cheap, because $k$ of them share one pass through the graph.
#
# ## Lanczos
#
# {eq}`eq-est-hutchinson` with $A = f(H)$ asks for $v^\top f(H)\, v$, and we can only multiply by $H$.
# Build an orthonormal basis $q_1, q_2, \dots$ of the spaces spanned by $v, Hv, H^2v, \dots$, starting from $q_1 = v / \lVert v \rVert$:
#
# $$
# \beta_{j+1}\, q_{j+1} \;=\; H q_j - \alpha_j q_j - \beta_j q_{j-1},
# \qquad \alpha_j = q_j^\top H q_j ,
# $$ (eq-est-lanczos)
#
# with $\beta_{j+1}$ the norm of the right-hand side.
# Three terms are enough: $q_i^\top H q_j = (H q_i)^\top q_j$, and $H q_i$ lies in the span of $q_1, \dots, q_{i+1}$, which is orthogonal to $q_j$ if $i < j - 1$.
# So $T = Q^\top H Q$ is tridiagonal, with $\alpha_1, \dots, \alpha_m$ on its diagonal and $\beta_2, \dots, \beta_m$ beside it.
# (The paper's Algorithm 1 puts $\beta_i$ at place $(i, i+1)$; it should be $\beta_{i+1}$.
# Its $\beta_1$ is not defined.)
#
# In floating point the three terms lose their orthogonality, so the two equal lines below orthogonalize against *all* earlier vectors, twice.


# %%
def lanczos_matrix(H: Tensor, v: Tensor, m: int) -> Tensor:
    """Return the m × m tridiagonal matrix of one starting vector."""
    basis = [v / v.norm()]
    T = v.new_zeros(m, m)
    for j in range(m):
        image = H @ basis[-1]
        T[j, j] = basis[-1] @ image
        Q = torch.stack(basis)
        image = image - Q.T @ (Q @ image)
        image = image - Q.T @ (Q @ image)
        if j + 1 < m:
            T[j, j + 1] = T[j + 1, j] = image.norm()
            basis.append(image / image.norm())
    return T


v = draw_probes(1, d, generator_of(0), device=p.device)
T = lanczos_matrix(H, v[0], 15)
found = lanczos(H, v, 15)
assert torch.allclose(found.matrices()[0], T, rtol=0, atol=1e-10)

# %% [markdown]
# ## A quadrature rule in disguise
#
# Write $v$ in the eigenvectors $u_j$ of $H$, and put the weight $(u_j^\top v)^2$ at $\lambda_j$.
# That defines a measure $\mu$ on the line, and
#
# $$
# v^\top f(H)\, v \;=\; \sum_{j=1}^d (u_j^\top v)^2 f(\lambda_j) \;=\; \int f \,\mathrm d\mu
# \;\approx\; \lVert v \rVert^2 \sum_{j=1}^m w_j f(\theta_j)
# $$ (eq-est-gauss)
#
# with $\theta_j$ and $s_j$ the eigenvalues and eigenvectors of $T$, and weights $w_j = (e_1^\top s_j)^2$.
# This is the $m$-point **Gauss rule** of $\mu$, the one rule of $m$ points that integrates every polynomial up to degree $2m - 1$.
#
# *Why.* $H^i q_1 = Q T^i e_1$ for $i < m$, since both sides need only the first $i + 1$ basis vectors.
# Hence $v^\top H^{i+j} v = (H^i v)^\top H^j v = \lVert v \rVert^2\, e_1^\top T^{i+j} e_1$ for $i, j < m$, and one more factor of $H$ between them is $Q^\top H Q = T$ again: all powers up to $2m - 1$.

# %%
m = 4
small = lanczos_matrix(H, v[0], m)
theta, s = torch.linalg.eigh(small)
w = s[0].square()
vector = v[0]
for degree in range(2 * m + 1):
    rule = d * (w * theta**degree).sum()
    agrees = torch.isclose(rule, v[0] @ vector, rtol=1e-11)
    assert agrees if degree < 2 * m else not agrees
    vector = H @ vector

library = gauss_rule(lanczos(H, v, m))
assert torch.allclose(library.nodes[0], theta.cpu(), atol=1e-12)
assert torch.allclose(library.weights[0], d * w.cpu(), rtol=1e-8)

# %% [markdown]
# To see what a rule does, add the weights up from left to right.
# The sum of $\mu$ is a staircase of $d$ small steps, and that of the rule one of $m$ steps between the same two levels, of which at small $m$ one takes nearly all of the height.
# A theorem of Chebyshev, Markov and Stieltjes says how closely they are bound: every step of the rule crosses the staircase of $\mu$.
# So a rule of four points must summarise hundreds of eigenvalues near zero by one node, and the place of that node decides what a small power of it is.


# %%
def staircase(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return points in ascending order and the sums of their weights."""
    order = points.argsort()
    return points[order], weights[order].cumsum(0)


u = torch.linalg.eigh(H)
masses = (u.eigenvectors.T @ v[0]).square() / d
of_measure = staircase(u.eigenvalues.cpu(), masses.cpu())

# %%
of_rules = {}
for points in (4, 15):
    rule = gauss_rule(lanczos(H, v, points))
    nodes, after = staircase(rule.nodes[0], rule.weights[0] / d)
    before = torch.cat([after.new_zeros(1), after[:-1]])
    levels = torch.cat([after.new_zeros(1), of_measure[1]])
    below, up_to = (  # the measure's levels left and right of each node
        levels[torch.searchsorted(of_measure[0], nodes * near)]
        for near in (1 - 1e-9, 1 + 1e-9)  # round-off of a node
    )
    assert bool((before <= up_to + 1e-9).all())
    assert bool((below <= after + 1e-9).all())
    of_rules[points] = nodes, after

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three staircases that rise from zero to one over a logarithmic axis of eigenvalues: the measure in many small steps, a Gauss rule of four points in four steps, one of which takes nearly all of the height, and one of fifteen points closer to the measure. Each large step crosses the measure's staircase."}, "figure": {"caption": "The spectral measure of one probe, divided by d, as a staircase, and the Gauss rules of 4 and of 15 points as two others: a node is where a step stands, and its weight is the step's height. Most of the measure lies at small eigenvalues, where the rules have their fewest nodes.", "name": "fig-est-staircase"}}
figure, axes = plt.subplots(figsize=(5.5, 3.6))
left_end = 1e-5
for name, (x, y), style in (
    ("measure", of_measure, {"color": INK, "lw": 1}),
    ("Gauss, m = 4", of_rules[4], {"color": COLORS[2], "ls": "-."}),
    ("Gauss, m = 15", of_rules[15], {"color": COLORS[1], "ls": "-"}),
):
    axes.step([left_end, *x.tolist(), 2], [0, *y.tolist(), 1], where="post", label=name, **style)
axes.set(xscale="log", xlim=(left_end, 2), xlabel="eigenvalue", ylabel="weight up to it")
axes.legend()
plt.show()

# %% [markdown]
# (est-slq)=
# ## The estimator
#
# Average {eq}`eq-est-gauss` over $k$ random probes: that is **stochastic Lanczos quadrature** {cite:p}`ubaru2017`,
#
# $$
# \operatorname{Tr} f(H) \;\approx\; \frac dk \sum_{i=1}^k \sum_{j=1}^m w_{ij}\, f(\theta_{ij}),
# $$ (eq-est-slq)
#
# for random signs, where $\lVert v \rVert^2 = d$.
# For the entropy, take $f(t) = t^\alpha$ and $f(t) = t$ and divide.
# The coefficients do not depend on $f$: one set serves all orders.
# The paper's setting is $k = 100$ probes (its $l$) and $m = 15$ steps.


# %% tags=["nbval-rtol=1e-6"]
def estimate(H: Tensor, alpha: float, k: int = 100, m: int = 15) -> float:
    """Return the Rényi entropy of a positive semidefinite matrix, estimated."""
    numerator = denominator = 0.0
    for v in draw_probes(k, len(H), generator_of(0), device=p.device):
        theta, s = torch.linalg.eigh(lanczos_matrix(H, v, m))
        w = len(H) * s[0].square()
        numerator += float((w * theta**alpha).sum()) / k
        denominator += float((w * theta).sum()) / k
    return math.log(numerator / denominator**alpha) / (1 - alpha)


operator = as_operator(H, positive_semidefinite=True)
quadrature = stochastic_lanczos_quadrature(operator)
library = {alpha: renyi_entropy_estimate(quadrature, alpha) for alpha in orders}
assert abs(estimate(H, 0.5) - library[0.5].value) < 1e-8

# %% tags=["hide-input", "nbval-rtol=1e-6"]
rows = [
    (alpha, exact[alpha], e.value, e.standard_error, *e.bracket) for alpha, e in library.items()
]
table(["order", "exact", "estimate", "standard error", "lower end", "upper end"], rows)

# %% [markdown]
# The standard error is that of the *ratio*.
# With $N_i$ and $D_i$ the two sums of probe $i$, and $\bar N$, $\bar D$ their means, linearizing {eq}`eq-est-entropy` gives each probe the influence $\frac{1}{1-\alpha}\big( N_i / \bar N - \alpha\, D_i / \bar D \big)$, and the standard error is the standard deviation of these over $\sqrt k$.
# The last two columns are the bracket, and our next subject.
# They enclose what infinitely many steps would give for these same probes, not the exact value: at orders 0.99 and 1.5 the exact one lies outside, by the scatter of the probes, which all orders share.
#
# One warning about sizes.
# The paper's Algorithm 1 normalises its probes to length one and *sums* over them, where {eq}`eq-est-slq` averages and has the factor $d$.
# Then
#
# $$
# \frac1{1-\alpha} \log \frac{\sum_i N_i / d}{\big(\sum_i D_i / d\big)^\alpha}
# \;=\; \widehat{\mathcal H}_\alpha + \frac{1}{1-\alpha} \log \frac{k/d}{(k/d)^\alpha}
# \;=\; \widehat{\mathcal H}_\alpha + \log \frac kd .
# $$ (eq-est-offset)
#
# The shift is the same for every model of one layer, so no rank correlation of the paper feels it.
# Values, and comparisons between layers, do.
# This is about the algorithm as printed.
# The released code multiplies by the squared length of its probes, so it does not have this shift ({doc}`chapter 12 <12_estimating_it>`).

# %%
N = quadrature.gauss.integrate(lambda t: t**0.5)
D = quadrature.gauss.integrate(lambda t: t)
as_printed = 2 * torch.log((N / d).sum() / (D / d).sum().sqrt())
assert abs(float(as_printed) - library[0.5].value - math.log(100 / d)) < 1e-10

# %% [markdown]
# (est-bias)=
# ## The error that more probes do not remove
#
# ````{prf:proposition} Which side a rule is on
# :label: est-sides
#
# Let $\mu$ be a positive measure on $[0, b]$ with more than $m$ points in $(0, b]$, $f$ continuous on $[0, b]$ and smooth on $(0, b)$.
# Let $Q_{\mathrm{Gauss}}$ be the value of the Gauss rule with the $m$ nodes $\theta_j$, and $Q_{\mathrm{Radau}}$ that of the rule with one node fixed at 0 and $m$ free ones, again called $\theta_j$.
# There are $\xi, \zeta \in (0, b)$ with
#
# $$
# \begin{aligned}
# \int f \,\mathrm d\mu - Q_{\mathrm{Gauss}} &= \frac{f^{(2m)}(\xi)}{(2m)!} \int \prod_{j} (t - \theta_j)^2 \,\mathrm d\mu, \\
# \int f \,\mathrm d\mu - Q_{\mathrm{Radau}} &= \frac{f^{(2m+1)}(\zeta)}{(2m+1)!} \int t \prod_{j} (t - \theta_j)^2 \,\mathrm d\mu .
# \end{aligned}
# $$
#
# The Radau rule needs no further product with $H$.
# The nodes $\theta_j$ of either rule are distinct and lie inside $(0, b)$.
# ````
#
# ````{prf:proof}
# First the nodes.
# The product $\prod_j (t - \theta_j)$ is orthogonal under $\mu$ to all polynomials of lower degree.
# Let $r$ be the product of $(t - x)$ over the places $x \in (0, b)$ where it changes its sign.
# If these are fewer than $m$, then $\int r \prod_j (t - \theta_j)\, \mathrm d\mu = 0$, although the integrand has one sign and vanishes at $m$ places at most, where $\mu$ has more than $m$ points: a contradiction.
# The free nodes of the Radau rule are the Gauss nodes of the measure $t\, \mathrm d\mu$, which keeps the points in $(0, b]$ and loses a point at 0.
#
# Now the error.
# Let $P$ be the polynomial that meets $f$ twice at every $\theta_j$ and, for Radau, once at 0.
# Its degree is $2m - 1$, or $2m$, so the rule integrates it exactly, and $Q = \int P \,\mathrm d\mu$.
# Fix $t$, and choose $c$ such that $g(s) = f(s) - P(s) - c \prod_j (s - \theta_j)^2$, for Radau with one more factor $s$, vanishes at $s = t$ too.
# Between neighbouring zeros of $g$ there is a zero of $g'$, and each $\theta_j$ is a zero of $g'$ besides: $2m$ zeros (for Radau $2m + 1$), all in the *open* interval, because the nodes are.
# Differentiating on, one zero $\xi(t)$ of $g^{(2m)}$ is left (for Radau, of $g^{(2m+1)}$), and there $f^{(2m)} = c\,(2m)!$.
# Integrate over $\mu$, and use the mean value theorem for a nonnegative weight. ∎
# ````
#
# No derivative at 0 was used.
# That matters, because $t^\alpha$ has none there for $\alpha < 1$, and the Hessian of a network has zeros among its eigenvalues.
#
# The $i$-th derivative of $t^\alpha$ is $\alpha(\alpha - 1) \cdots (\alpha - i + 1)\, t^{\alpha - i}$.
# Count the negative factors, with $2m > \alpha$:
#
# | order | Gauss, for $\operatorname{Tr} H^\alpha$ | Radau | Gauss, for $\mathcal H_\alpha$ |
# |---|---|---|---|
# | $0 < \alpha < 1$ | too large | too small | **too large** |
# | $\alpha \to 1$, by $t \log t$ | too small | too large | **too large** |
# | $1 < \alpha < 2$ | too small | too large | **too large** |
# | $\alpha = 2$ | exact for $m \ge 2$ | exact | exact |
# | $2 < \alpha < 3$ | too large | too small | **too small** |
#
# The trace in the denominator is exact for the given probes, since $f(t) = t$ is a polynomial of degree one.
# In the last column the sign has turned once more for $\alpha > 1$, because of the factor $1/(1 - \alpha)$.
#
# So the two rules enclose what infinitely many steps would give, *for the same probes*.
# To see the quadrature alone, use a trick: for a **diagonal** matrix, every sign vector has the same measure, weight one on each eigenvalue, so the probes make no noise at all.
#
# What does it say about random probes?
# Let $\mu_v$ be the measure of the probe $v$.
# The mean of $\mu_v$ over all probes has weight one on each eigenvalue: it is the measure of the trick.
# Let $P$ be the polynomial of the proof of {prf:ref}`est-sides` for this mean measure.
# For $\alpha < 1$ the derivative of order $2m$ of $f$ is negative, so $P \ge f$.
# The rule of a probe has positive weights and integrates $P$ exactly, so its value is at most $\int P\, d\mu_v$.
# Average over the probes: the right side becomes the integral of $P$ under the mean measure, which is the trick's value.
# So the trick never shows less bias of the trace than random probes leave in the mean; for $1 < \alpha < 3$ it is the same, with the signs of the table.


# %% tags=["nbval-rtol=1e-6"]
def on_diagonal(values: Tensor, m: int, **options):
    """Return the rules of m steps on the diagonal matrix of these values."""
    size = len(values)
    D = FunctionOperator(values.mul, size, device=values.device, positive_semidefinite=True)
    return stochastic_lanczos_quadrature(D, steps=m, **options)


def without_noise(values: Tensor, m: int, alpha: float = 0.5):
    """Return the entropy after m steps, free of the noise of probes."""
    return renyi_entropy_estimate(on_diagonal(values, m, probes=2), alpha)


rows = []
for m in (5, 15, 40):
    e = without_noise(eigenvalues, m)
    assert e.standard_error < 1e-10
    assert e.bracket[0] < exact[0.5] < e.bracket[1] == e.value
    rows.append((m, e.bracket[0], exact[0.5], e.value, e.value - exact[0.5]))
table(["steps m", "Radau", "exact", "Gauss", "bias of Gauss"], rows)

# %% [markdown]
# For this matrix, the bias of 15 steps is about the standard error of 100 probes in the table before, and that of five is more than ten times as large.
# A layer of a network is less kind, as {ref}`recorded spectra <est-recorded>` will show.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels. Above: for order one half, the Gauss value falls and the Radau value rises towards the exact entropy as the number of steps grows from 2 to 40. Below: the distance from the exact entropy after 15 steps, on a logarithmic scale, falls by many decades as the order grows from 0.1 to 3; Gauss is closer than Radau."}, "figure": {"caption": "Quadrature alone, without the noise of probes, for the power-law spectrum. Above: Gauss and Radau enclose the exact entropy of order ½. Below: how far each is from it after 15 steps, against the order. The bias is a matter of small orders.", "name": "fig-est-bias"}}
counts = range(2, 41, 2)
ends = [without_noise(eigenvalues, m).bracket for m in counts]
grid = [alpha / 20 for alpha in range(2, 60) if alpha != 40]
exact_grid = [renyi_entropy(eigenvalues, alpha) for alpha in grid]
brackets = [without_noise(eigenvalues, 15, alpha).bracket for alpha in grid]
figure, (upper, lower) = plt.subplots(2, figsize=(5.5, 6.2))
gauss_is_upper = [alpha < 2 for alpha in grid]
for name, end in (("Gauss", True), ("Radau", False)):
    upper.plot(counts, [bracket[end] for bracket in ends], label=name)
    side = [b[u == end] for b, u in zip(brackets, gauss_is_upper, strict=True)]
    lower.semilogy(grid, [abs(a - b) for a, b in zip(side, exact_grid, strict=True)], label=name)
upper.axhline(exact[0.5], color="0.4", lw=1, ls=":", label="exact")
upper.set(xlabel="Lanczos steps m", ylabel="entropy of order ½")
lower.set(xlabel="order α", ylabel="distance from the exact one", ylim=(1e-12, 10))
upper.legend()
lower.legend()
plt.show()

# %% [markdown]
# (est-cover)=
# ### With probes
#
# Both errors together must make an interval that covers the truth.
# Over many seeds, the exact entropy should lie between the bracket's ends, widened by three standard errors, in all but a few runs in a thousand.
# The bracket is what does it: without it, five steps at order ½ miss more often than not.

# %% tags=["nbval-rtol=1e-6"]
small = torch.arange(1, 201, **real) ** -1.5
M, truth = matrix_with(small), renyi_entropy(small, 0.5)
inside = {"with the bracket": 0, "without": 0}
for run in range(p.repeats):
    q = stochastic_lanczos_quadrature(as_operator(M, positive_semidefinite=True), steps=5, seed=run)
    e = renyi_entropy_estimate(q, 0.5)
    low, high = e.bracket
    inside["with the bracket"] += low - 3 * e.standard_error < truth < high + 3 * e.standard_error
    inside["without"] += abs(e.value - truth) < 3 * e.standard_error
assert inside["with the bracket"] >= 0.97 * p.repeats
assert inside["without"] < p.repeats / 2
table(["interval", f"runs of {p.repeats} that cover"], inside)

# %% [markdown]
# (est-recorded)=
# ## What fifteen steps make of a layer
#
# {doc}`Chapter 1 <01_five_minutes>` has recorded the eigenvalues of every layer of a trained network, measured on $n = 100$ images with $C = 10$ classes.
# A layer has as many eigenvalues as weights, and at most $n(C - 1) = 900$ of them are not zero.
# So we read the record, and append the zeros.
# How steep are these spectra?
# Fit a straight line to $\log \lambda_j$ against $\log j$, in two ranges of $j$.


# %% tags=["nbval-rtol=1e-5"]
def slope(values: Tensor, first: int, last: int) -> float | None:
    """Return the slope of log λ against log j; None if there are too few."""
    if int((values > 0).sum()) < last:
        return None
    x = torch.arange(first, last + 1, **real).log()
    x = x - x.mean()
    return float((x @ values[first - 1 : last].log()) / (x @ x))


recorded, layers, rows = landing_record(p.store).metrics, {}, {}
for name in recorded["layers"]:
    nonzero = torch.tensor(recorded["eigenvalues"][name], **real)
    zeros = nonzero.new_zeros(recorded["dimension"][name] - len(nonzero))
    layers[name] = torch.cat([nonzero, zeros])
    steep, steeper = slope(layers[name], 1, 50), slope(layers[name], 100, 400)
    assert steep < -1.5 and (steeper is None or steeper < steep)
    count = int((layers[name] == 0).sum())
    rows[name] = len(layers[name]), count, steep, steeper
columns = ["layer", "weights $d$", "zeros", "slope, j ≤ 50", "100 ≤ j ≤ 400"]
table(columns, rows, spec=".2f")

# %% [markdown]
# Everywhere the spectra are steeper than our model, whose slope is −1.5, and they bend: the second slope is steeper than the first.
#
# Now the trick of the diagonal matrix, which needs nothing but the eigenvalues.
# The standard error beside the bias is that of 100 probes that are uniform on a sphere.
# These do not see the eigenvectors either, because a rotation of the matrix rotates the probes.


# %% tags=["nbval-rtol=1e-3"]
def fifteen_steps(values: Tensor) -> tuple:
    """Return the exact entropy of order ½, its estimate, and their errors."""
    truth, short = renyi_entropy(values, 0.5), without_noise(values, 15)
    longer = [without_noise(values, m).value - truth for m in (40, 100)]
    random = on_diagonal(values, 15, probes=100, distribution="sphere")
    e = renyi_entropy_estimate(random, 0.5)
    assert not e.reliable  # the bracket is wider than the standard error
    third = without_noise(values, 15, 1.5).value - renyi_entropy(values, 1.5)
    bias = short.value - truth
    return truth, short.value, bias, *longer, e.standard_error, third


rows = {name: fifteen_steps(values) for name, values in layers.items()}
for _, _, bias, longer, longest, error, third in rows.values():
    assert bias > longer > longest > 0 and bias > error and abs(third) < 1e-3
assert rows["stage3.0.conv2"][4] > 2 * rows["stage3.0.conv2"][5]
columns = ["exact, order ½", "m = 15", "bias", "bias, m = 40", "m = 100"]
columns += ["standard error", "bias, order 3/2"]
spec = {**dict.fromkeys(columns, ".3f"), "bias, order 3/2": ".0e"}
table(["layer", *columns], rows, spec=spec, round_off=1e-6)

# %% [markdown]
# **Where there are many more zeros the bias is larger**, up to more than two nats in the largest layer; that the zeros themselves do it, the experiment below shows on one spectrum.
# An entropy does not see zeros.
# But the weights of a rule sum to 1 whatever the matrix is, and most of that sum belongs to the node that stands for the zeros, which is not at zero.
# So $d$ enters a comparison between layers.
# The exact entropies of these layers span less than one nat, and the estimates more than three.
# The last layer, fc, has the second largest entropy of all, and three convolutions whose exact entropy is smaller overtake it; they have more weights.
# The seven convolutions keep their order, in which size and entropy happen to agree.
# (Of five networks that were trained alike this one has the smallest entropies at order ½, by the records of chapter 1.)
# The trick bounds the bias that random probes leave in the trace, in the mean, and so, up to terms of order $1/k$, that of the entropy.
# The bound is close: in every layer the estimate from 100 random probes is off by the bias of the table, within three of its standard errors.
# The paper compares one layer of many models, which all have the same number of weights in it; what the error does to such a comparison {doc}`chapter 12 <12_estimating_it>` tries on five networks.
#
# More steps help, but slowly: in the largest layer even 100 leave a bias of more than twice the standard error.
# At order 3/2, the paper's other one, nothing is wrong: $t^{3/2}$ is flat at zero, so it does not matter much where a node near zero stands.
#
# Zeros are not all of it.
# To fifteen nodes an eigenvalue many decades below the largest is as good as a zero, and these spectra have many such.
# To see what zeros add, take one spectrum without its own and append more and more.


# %%
nonzero = layers["stage3.0.conv2"][layers["stage3.0.conv2"] > 0]
appended = [0, *(10**k * j for k in range(2, 5) for j in (1, 2, 5)), 10**5]
longer = [torch.cat([nonzero, nonzero.new_zeros(zeros)]) for zeros in appended]
entropies = [renyi_entropy(values, 0.5) for values in longer]
curves = {}
for m in (15, 40):
    curves[m] = [without_noise(values, m).value for values in longer]
assert max(entropies) - min(entropies) < 1e-12
assert all(curve == sorted(curve) for curve in curves.values())

# %%
free = {}  # the bias that each layer's nonzero eigenvalues have by themselves
for name, values in layers.items():
    alone = values[values > 0]
    free[name] = without_noise(alone, 15).value - renyi_entropy(alone, 0.5)
assert all((0.25 < bias < 0.32) == (name != "conv1") for name, bias in free.items())
assert free["conv1"] < 0.05 and free["fc"] > 0.85 * rows["fc"][2]

for name, values in layers.items():  # the trick beside random probes
    e = renyi_entropy_estimate(on_diagonal(values, 15, probes=100, distribution="sphere"), 0.5)
    off = float(e) - renyi_entropy(values, 0.5)
    assert abs(off - rows[name][2]) < 3 * e.standard_error

truths = {name: row[0] for name, row in rows.items()}
estimates = {name: row[1] for name, row in rows.items()}
assert sorted(truths, key=truths.get)[-2] == "fc"
behind = [name for name in rows if truths[name] < truths["fc"]]
assert sum(estimates[name] > estimates["fc"] for name in behind) == 3
assert max(truths.values()) - min(truths.values()) < 1
assert max(estimates.values()) - min(estimates.values()) > 3

# %% tags=["hide-input"] mystnb={"image": {"alt": "Entropy of order one half against the number of eigenvalues on a logarithmic axis. For one spectrum with zeros appended, the exact entropy is a horizontal line, the Gauss rule of 40 steps rises from it slowly and that of 15 steps fast. Eight vertical lines, one for each layer, lead from the exact entropy to the estimate and become longer to the right."}, "figure": {"caption": "Zeros that an entropy does not see, and a rule does. Curves: the nonzero eigenvalues of the layer stage3.0.conv2, with zeros appended; dotted the exact entropy of order ½. Vertical lines: the layers of the table, from the exact entropy (ring) to the estimate after 15 steps (dot).", "name": "fig-est-zeros"}}
figure, axes = plt.subplots(figsize=(5.5, 4))
sizes = [len(values) for values in longer]
for m, color, line in ((15, COLORS[2], "-"), (40, COLORS[1], "--")):
    axes.plot(sizes, curves[m], line, color=color, label=f"Gauss, m = {m}")
axes.plot(sizes, entropies, ":", color=INK, label="exact")
for name, (truth, estimated, *_) in rows.items():
    size = len(layers[name])
    axes.plot([size, size], [truth, estimated], "-", color=COLORS[2], lw=0.8)
    axes.plot(size, truth, "o", color=INK, mfc="white", ms=5)
    axes.plot(size, estimated, "o", color=COLORS[2], ms=5)
axes.set(xscale="log", xlabel="eigenvalues $d$, zeros included", ylabel="entropy of order ½")
axes.legend(loc="upper left")
plt.show()

# %% [markdown]
# The curve of 15 steps begins a quarter of a nat and more above the truth, with no zeros at all.
# So do the other layers without their zeros, but for the first, whose 144 eigenvalues are few: between a quarter and a third of a nat each, nearly all of the last layer's bias, and half of some others'.
# The zeros add the rest.
#
# This is one small network, measured on a hundred images.
# The paper's wide layers have more than two million weights, and its images, 2,000 of 10 or 100 classes or 1,000 of 200, allow at most 199,000 nonzero eigenvalues where the statistics of batch normalisation are fixed, so there are more zeros still.
# Its rank correlations are taken layer by layer, over models whose layers have the same $d$, and most of the bias may be common to them.
# Whether the rest changes a rank is a question for {doc}`chapter 12 <12_estimating_it>`; comparisons *between* layers, and values, are what the table warns against.
#
# (est-adaptive)=
# ## As many steps as it takes
#
# How many steps are enough, the bracket says: there is no point in a quadrature that is finer than the noise.
# With `steps=None` the recurrences go on, from where they are, until the bracket of every target is narrower than its standard error.

# %% tags=["nbval-rtol=1e-6"]
rows = []
for alpha in (0.3, 0.5, 1.0, 1.5):
    q = stochastic_lanczos_quadrature(
        operator,
        steps=None,
        targets=[lambda q, alpha=alpha: renyi_entropy_estimate(q, alpha)],
    )
    e = renyi_entropy_estimate(q, alpha)
    assert q.converged and e.bracket[1] - e.bracket[0] <= e.standard_error
    rows.append((alpha, int(q.steps.max()), e.value, e.standard_error, e.bracket_ratio))
table(["order", "steps", "estimate", "standard error", "bracket / standard error"], rows)

# %% [markdown]
# Where the cap `max_steps` comes first, the result says `converged=False`.
# For a number of steps that was fixed beforehand, the flag `reliable` of an entropy answers the same question: it is true where the bracket is no wider than the standard error, at every order.
# It is false for every layer of {ref}`the table above <est-recorded>` at order ½.
#
# (est-probes)=
# ## One set of probes or two
#
# The paper's Algorithm 1 draws a second probe $g$ for the denominator.
# It is not needed, since $\operatorname{Tr} H$ comes from the same coefficients, and it does harm.
# Near $\alpha = 1$ numerator and denominator are almost the same random variable; divided, they cancel, and what is left is multiplied by $1 / (1 - \alpha)$.
# If they are independent, nothing cancels, and
#
# $$
# \operatorname{Var} \widehat{\mathcal H}_\alpha \;\approx\; \frac{1}{(1-\alpha)^2\, k} \Big( \operatorname{Var} \frac{N_i}{\bar N} + \alpha^2 \operatorname{Var} \frac{D_i}{\bar D} \Big)
# \;\longrightarrow\; \infty \qquad (\alpha \to 1).
# $$ (eq-est-independent)

# %% tags=["nbval-rtol=1e-6"]
runs = [stochastic_lanczos_quadrature(M, probes=100, seed=run) for run in range(2 * p.repeats)]
rows = []
for alpha in (0.5, 0.9, 0.99, 1.1, 1.5):
    common, independent = [], []
    for q, other in zip(runs[::2], runs[1::2], strict=True):
        common.append(renyi_entropy_estimate(q, alpha).value)
        trace, own = (float(x.trace(power(1))) for x in (other, q))
        independent.append(common[-1] - alpha / (1 - alpha) * math.log(trace / own))
    sets = (torch.tensor(values, device=p.device) for values in (common, independent))
    spread = [float(values.std()) for values in sets]
    rows.append((alpha, *spread, spread[1] / spread[0]))
assert all(row[3] > 1 for row in rows) and rows[2][2] > renyi_entropy(small, 0.99)
table(["order", "spread, common probes", "spread, second probe", "ratio"], rows, spec=".3f")

# %% [markdown]
# The paper leaves out the orders from 0.9 to 1.2, where it reports numerical trouble.
# It gives a reason, negative eigenvalues (Appendix G.4).
# If the numerator takes their magnitudes and the denominator their signs, they are {ref}`enough <errata-definition>` ({doc}`chapter 10 <10_entropy_of_a_spectrum>`).
# Here there are none, and a second probe would be enough, too: in the third row, with 100 probes as in the paper and 200 dimensions, it makes the noise larger than the entropy.
# More dimensions are no help by themselves.
# For normal probes, whose samples have the variance $2 \lVert A \rVert_F^2$ (exercise 1), {eq}`eq-est-independent` near $\alpha = 1$ is a spread of $2\, e^{-\mathcal H_2 / 2} / (\lvert 1 - \alpha \rvert \sqrt k)$, in which $d$ does not occur.
# For the recorded layers at $\alpha = 0.99$ it lies between 7 and 13 nats, where the entropies are below 3.
# With common probes, nothing happens at order 1 at all.
# Its limit, Shannon's entropy, is $\log \operatorname{Tr} H - \operatorname{Tr}(H \log H) / \operatorname{Tr} H$.

# %%
for values in layers.values():
    spread = 2 * math.exp(-renyi_entropy(values, 2) / 2) / (0.01 * 10)
    assert renyi_entropy(values, 0.99) < 3 and 7 < spread < 13

shannon = renyi_entropy_estimate(quadrature, 1.0)
T, T_log_T = quadrature.trace(power(1)).value, quadrature.trace(t_log_t()).value
assert abs(shannon.value - (math.log(T) - T_log_T / T)) < 1e-10
assert abs(shannon.value - renyi_entropy_estimate(quadrature, 1.0001).value) < 1e-3

# %% [markdown]
# (est-small-orders)=
# ## Small orders see nothing but the dimension
#
# As $\alpha \to 0$ the entropy tends to the logarithm of the *rank*.
# But a Gauss rule's weights sum to 1, and with the factor $\lVert v \rVert^2$ to $d$, whatever the matrix, so its estimate tends to $\log d$ as long as none of its nodes is exactly zero.
# What {ref}`the recorded layers <est-recorded>` suffer in part at order ½, every matrix with zeros suffers in full here.
# Take a matrix of rank 50 in 1000 dimensions.
# The Radau rule has a node at 0, so its end of the bracket is not fooled in the same way, and the width of the bracket gives the failure away.

# %% tags=["nbval-rtol=1e-5"]
singular = torch.cat([torch.linspace(0.001, 1, 50, **real), torch.zeros(d - 50, **real)])
random = on_diagonal(singular, 15, probes=100, distribution="sphere")
rows = []
for alpha in (0.0001, 0.1, 0.3, 0.5, 1.5):
    truth = renyi_entropy(singular, alpha)
    low, high = without_noise(singular, 15, alpha).bracket
    assert low - 1e-6 <= truth <= high + 1e-6
    e = renyi_entropy_estimate(random, alpha)
    rows.append((alpha, truth, low, high, e.standard_error, e.reliable))
assert [row[-1] for row in rows] == [False, False, False, False, True]
columns = ["order", "exact", "lower end", "upper end", "standard error"]
table([*columns, "reliable"], rows)

# %% [markdown]
# The ends in the table are free of noise.
# The standard error and the flag are those of 100 probes on the sphere: the flag compares the bracket of these probes, which is about as wide, with their standard error.
# The flag goes by the bracket and not by the order, so it would call a small order reliable for a matrix of full rank and enough steps.
# So at the smallest orders of the paper's grid, from $10^{-4}$ on, the *value* is close to $\log d$ for a layer with many zeros.
# To first order in $\alpha$ the estimate is $\log d + \alpha \sum_j w_j \log (\theta_j / \bar\lambda)$, where $\bar\lambda = \operatorname{Tr} H / d$ is the mean eigenvalue.
# Nearly all of the weight is at the lowest node, so what differs between models of one layer is mostly $\alpha$ times the logarithm of this node over the mean.
#
# (est-traces)=
# ## Traces, at equal numbers of products
#
# A trace itself needs no quadrature, only {eq}`eq-est-hutchinson`, and its noise {eq}`eq-est-variance` is dominated by the large eigenvalues.
# Take them out.
# For an orthonormal $Q$ and $P = I - QQ^\top$,
#
# $$
# \operatorname{Tr} A \;=\; \operatorname{Tr} Q^\top A\, Q \;+\; \operatorname{Tr} P A P ,
# $$ (eq-est-deflation)
#
# exactly, for any $Q$.
# The first part is computed, and only the second is sampled.
# What differs is where $Q$ comes from.
#
# * *Hutchinson*: no $Q$ at all.
# * *Hutch++* {cite:p}`meyer2021`: a third of the products for the images of random vectors, a third for $\operatorname{Tr} Q^\top A Q$, a third for probes.
# * *XTrace* {cite:p}`epperly2024`: half for the images of $k$ probes, half for their part of the trace.
#   Each probe is tested against the images of the $k - 1$ *others*, on which it does not depend; so every product serves both purposes.
# * *Krylov deflation*, after {cite:t}`chen2023`: half for one Lanczos run, whose $T$ already holds $Q^\top A Q$, half for probes.
#
# XTrace by its definition, and against the library:

# %%
k, A = 6, matrix_with(torch.linspace(-0.5, 3, 40, **real) ** 3)
probes = draw_probes(k, 40, generator_of(1), distribution="sphere", device=p.device)
samples = []
for i in range(k):
    others = torch.cat([probes[:i], probes[i + 1 :]])
    Q = torch.linalg.qr((others @ A).T).Q
    rest = probes[i] - Q @ (Q.T @ probes[i])
    rest = rest * math.sqrt(40 - k + 1) / rest.norm()  # on the sphere of what is left
    samples.append((Q.T @ A @ Q).trace() + rest @ A @ rest)
library = xtrace(A, 2 * k, seed=1)
assert abs(library.value - float(sum(samples) / k)) < 1e-9 * float(A.norm())


# %% tags=["nbval-rtol=1e-5"]
def krylov(A, products: int, seed: int):
    """Half of the products for a Krylov space, half for probes."""
    Q = krylov_deflation(A, products // 2, seed=10**6 + seed)
    return hutchinson(A, products, deflation=Q, distribution="sphere", seed=seed)


METHODS = {"Hutchinson": hutchinson, "Hutch++": hutch_plus_plus, "XTrace": xtrace, "Krylov": krylov}
errors = {name: [] for name in METHODS}
for name, method in METHODS.items():
    for products in (12, 24, 60):
        runs = [float(method(M, products, seed=run)) for run in range(p.repeats)]
        relative = torch.tensor(runs, **real) / small.sum() - 1
        errors[name].append(100 * relative.square().mean().sqrt())
assert all(x < h for x, h in zip(errors["XTrace"], errors["Hutchinson"], strict=True))
table(["error in percent", "12 products", "24 products", "60 products"], errors, spec=".3f")

# %% [markdown]
# Relative root-mean-square errors in percent.
# Sixty products buy Hutchinson less than a dozen buy the others, and with more they pull away, since their error falls with the tail of the spectrum.
#
# Evenly spread eigenvalues leave no tail to cut.
# There the products that went into $Q$ save little, and plain Hutchinson is not beaten.
# An error from $r$ repetitions has itself a noise of about one part in $\sqrt{2r}$, which stands in the last column:

# %% tags=["nbval-rtol=1e-5"]
flat = matrix_with(torch.linspace(-1, 1, 200, **real))
spread = {}
for name, method in METHODS.items():
    runs = [float(method(flat, 60, seed=run)) for run in range(p.repeats)]
    spread[name] = float(torch.tensor(runs, device=p.device).square().mean().sqrt())
noise = 1 / math.sqrt(2 * p.repeats)
least = min(spread.values())
assert spread["Hutchinson"] * (1 - 2 * noise) < least * (1 + 2 * noise)
rows = {name: (one, one * noise) for name, one in spread.items()}
table(["60 products", "error of a trace that is 0", "± "], rows, spec=".2f")

# %% [markdown]
# (est-density)=
# ## The whole spectrum at a glance
#
# The same recurrences give a picture of the spectrum: put a narrow Gaussian on every node of a rule, with its weight.
# For a picture the averaged rule of Spalević is better than the Gauss rule it is made from: it has almost twice the nodes and takes no product more.
# Outliers are what the picture is least good at, and they can be computed by themselves: restarted Lanczos from one vector returns as many of the largest eigenvalues as one asks for, with a residual $\lVert H u - \lambda u \rVert$ each, for $u$ of length one.
# A residual says that *some* eigenvalue of $H$ lies within that distance of $\lambda$.
# It does not say that none of the largest was missed, and one vector meets a multiple eigenvalue only once.
# So a second search, in the complement of what was found, looks for further copies and for others.

# %%
pairs = top_eigenpairs(H, 3)
assert bool(pairs.converged.all())
assert float((pairs.eigenvalues - eigenvalues[:3].cpu()).abs().max()) < 1e-6

# %% tags=["hide-input"] mystnb={"image": {"alt": "Density of eigenvalues of two clusters, one wide around zero and one narrow around two, on a logarithmic scale, with a band of three standard errors; the exact broadened density lies within the band but for the left flank, where it leaves it at a few points."}, "figure": {"caption": "Spectral density from 20 probes and 40 steps, with a band of three standard errors, and the exact one, both broadened by a Gaussian of width 0.1. A bulk of 950 eigenvalues around 0, negative ones among them, and 50 around 2.", "name": "fig-est-density"}}
generator = generator_of(1)
bulk = 0.5 * torch.randn(950, generator=generator, dtype=torch.float64)
cluster = 2 + 0.1 * torch.randn(50, generator=generator, dtype=torch.float64)
both = torch.cat([bulk, cluster]).to(p.device)
grid = torch.linspace(-2.5, 3, 221, **real)
B = matrix_with(both)
rules = stochastic_lanczos_quadrature(B, probes=20, steps=40)
density = spectral_density(rules, grid, 0.1)
exact_density = (-0.5 * ((grid[:, None] - both) / 0.1) ** 2).exp().mean(1) / (
    0.1 * math.sqrt(2 * math.pi)
)
figure, axes = plt.subplots(figsize=(5.5, 3.4))
low, high = (density.value + sign * 3 * density.standard_error for sign in (-1, 1))
grid, exact_density = grid.cpu(), exact_density.cpu()
axes.fill_between(grid, low.clamp(min=1e-4), high, alpha=0.35, label="three standard errors")
axes.plot(grid, density.value, label="estimate")
axes.plot(grid, exact_density, "k:", lw=1.2, label="exact")
axes.set(yscale="log", ylim=(1e-3, 2), xlabel="eigenvalue", ylabel="density")
axes.legend(loc="upper right")
plt.show()

# %% [markdown]
# ## Deviations, and what failed
#
# * *From the paper's Algorithm 1.* Probes are random signs, as in its text, not normalised normal vectors.
#   Traces are means with the factor $d$, not sums {eq}`eq-est-offset`.
#   Numerator and denominator share their probes.
#   The Lanczos vectors are orthogonalized fully, which the algorithm does not mention.
# * *Fifteen steps are too few at order ½* for layers with many zeros, by {ref}`the table of recorded layers <est-recorded>`.
#   The library takes as many as the bracket asks for, if it is told `steps=None`.
# * *Indefinite matrices.* For a matrix with negative eigenvalues, $t^\alpha$ is replaced by $|t|^\alpha$ in numerator and denominator.
#   This function has a kink inside the spectrum, but it is $s^{\alpha/2}$ of the squares $s = t^2$, and the rules of $H^2$ follow from the same steps, with half as many points.
#   So there is a bracket again, and it is wider.
#   {doc}`Chapter 2 <02_curvature_objects>` says when a layer's Hessian has no negative eigenvalue.
# * *The bracket is for the probes at hand.* It does not contain the statistical error, and it is computed in floating point: nodes are known to round-off of the *largest* eigenvalue, so a power $t^\alpha$ of a zero eigenvalue is known to about $10^{-16\alpha}$.
#   Nodes below ten units of round-off are set to zero.
# * *The band of the density* is three standard errors of 20 probes, at each point by itself.
#   Somewhere on the axis the exact curve may leave it, and here it does, at a few points of the left flank, where the estimate is too low: a sample that has missed the few eigenvalues of a tail underrates its own scatter.
# * *XTrace's error estimate* comes from samples that are not independent.
#   It has the right order of magnitude, no more.
# * *In a multiple of the identity* random signs are exact, and Hutch++ is not: its sketch destroys the constant length of the probes.
#
# ## Exercises
#
# **1.** Show that normal probes have variance $2 \lVert A \rVert_F^2$, and find a matrix for which random signs are no better.
#
# ````{dropdown} Solution
# In the eigenbasis a normal vector is again normal, so $v^\top A v = \sum_j \lambda_j z_j^2$ with independent $z_j$, and $\operatorname{Var} z_j^2 = 2$.
# Random signs save $2 \sum_i A_{ii}^2$, which is nothing if the diagonal is zero.
# ````
#
# **2.** After how many steps is the rule exact for a matrix with $r$ distinct eigenvalues?
# What does Lanczos do then?
#
# ````{dropdown} Solution
# The measure $\mu$ has at most $r$ points, so after $r$ steps the nodes are the eigenvalues and every function is integrated exactly.
# The next residual is zero: the space spanned by $v, Hv, \dots$ is invariant.
# The recurrence must stop there, or it would divide round-off by round-off.
# ````
#
# **3.** Derive the matrix of the Radau rule: which last diagonal entry gives an $(m + 1) \times (m + 1)$ tridiagonal matrix an eigenvalue 0?
#
# ````{dropdown} Solution
# Border $T$ with $\beta_{m+1} e_m$ and the entry $a$.
# The determinant is $\det T \cdot (a - \beta_{m+1}^2\, e_m^\top T^{-1} e_m)$, so $a = \beta_{m+1}^2\, e_m^\top T^{-1} e_m$.
# The last factor is one over the last pivot of $T$, which a recurrence of one line gives: $\delta_j = \alpha_j - \beta_j^2 / \delta_{j-1}$.
# ````
#
# **4.** Why is the Gauss rule too large for $\operatorname{Tr} H^{1/2}$ whatever $m$, although more steps must come closer?
#
# ````{dropdown} Solution
# All even derivatives of $t^{1/2}$, from the second on, are negative on $t > 0$, so {prf:ref}`est-sides` gives the same sign for every $m$.
# The values fall with $m$: the rule of $m + 1$ points integrates the polynomial $P \ge f$ of the proof for $m$ points exactly, so its value is at most the integral of $P$, which is the value of the rule of $m$.
# For each probe the estimates approach $v^\top H^{1/2} v$ from above.
# ````
#
# ## How to cite
#
# Cite the book as `CITATION.cff` says, and {prf:ref}`est-sides` as "the side of a rule, chapter on stochastic estimators".
# The bracket is classical {cite:p}`golub2010`.
