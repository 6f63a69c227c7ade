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
# (chapter-entropy)=
# # Entropy of a spectrum
#
# **Question.** What does the Rényi entropy of a Hessian see, what does it ignore, and what becomes of it where eigenvalues are negative?
#
# **Answer.** It sees how even curvature is, not how large; it is quasi-concave, not convex.
# The paper blames negative eigenvalues for trouble at order 1; single ReLU layers in evaluation mode have none if the loss is convex in the outputs.
# There, different random vectors for two traces make it.
#
# **Time.** Reading: about 60 minutes; running: under half a minute on one core.
#
# **You need:** eigenvalues of a symmetric matrix, convex sets; from {doc}`chapter 2 <02_curvature_objects>` when a layer's Hessian is its Gauss–Newton matrix, from {ref}`chapter 3 <entropy-facts>` what concave and Schur-concave mean for an entropy, from {ref}`chapter 4 <est-hutchinson>` how probes estimate a trace.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke, laptop or paper
seed = 0  # draws the networks, the spectra and the probes
steps = None  # steps of training; None: the profile's own number
device = "cpu"  # cpu or cuda; auto: a GPU where there is one
store = None  # folder for new records; None: the repository's own

# %% tags=["remove-input"]
from paperkit.ledger import show_verdicts

show_verdicts(
    "10_entropy_of_a_spectrum",
    profile,
    store,
    first=[
        "renyi-spread-lowers-entropy",
        "renyi-sharpness-definition",
        "renyi-order-one-unstable",
        "renyi-remark-f-7",
        "renyi-eq-57-equivalence",
    ],
)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import Comparisons, distance, setup, table

p = setup(
    globals(),
    {"smoke": {"steps": 30}, "laptop": {"steps": 300}, "paper": {"steps": 1000}},
    allowed=["seed", "steps"],
    threads=1,
)

import copy
import math
from itertools import combinations, permutations, product

import matplotlib.pyplot as plt
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from paperkit.bounds import renyi as library
from paperkit.curvature import dense_gauss_newton, dense_hessian
from paperkit.data import load
from paperkit.estimators import (
    global_renyi_sharpness,
    layer_spectra,
    renyi_entropy,
    renyi_sharpness,
)
from paperkit.experiments import records_of
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.plotting import COLORS, INK, QUIET, landing_record

real = {"dtype": torch.float64, "device": p.device}
generator, checked = generator_of(p.seed), Comparisons()

# %% [markdown]
# The Rényi paper {cite:p}`renyi2025` replaces the size of the curvature by its shape.
# It divides the eigenvalues of a layer's Hessian by their sum, reads them as a probability distribution, and takes the negative Rényi entropy of this distribution as the sharpness of the layer.
# Everything that the paper says later, its bounds, its estimates and its regularizer, is about this one number.
# So this chapter asks what kind of number it is.
#
# {doc}`Chapter 1 <01_five_minutes>` measured it, {doc}`chapter 3 <03_reparametrization>` asked which changes of parameters leave it alone, and {doc}`chapter 4 <04_stochastic_estimators>` estimated it.
# What is proved there is used here and not repeated.
#
# **Symbols.** They are those of the {doc}`notation page <../book/notation>`, with a few of this chapter's own.
# $Z = \sum_j q_j^\alpha$ and $z_j = q_j^\alpha / Z$ are as in chapter 3.
# The effective number of directions is $N_\alpha = e^{\mathcal H_\alpha}$.
# The share of the negative eigenvalues by weight is $s$.
# $A$ is a diagonal matrix of exponents, $t$ a real number that multiplies it, $v$ a direction or a probe, $w_l$ the share of layer $l$ in a trace, $d_l$ the number of its weights, $B$ the block diagonal of $H$, $E$ the rest, $\delta$ an excess, and $u$ the uniform distribution.
# $\gamma$ is a shift, and $c_k$ the coefficient of a second probe.
#
# **Computed here.** Six networks of 272 weights are trained on real digits, averaged to 4 × 4 pixels, while the notebook runs; all arithmetic is in float64.
# The numbers of larger trained networks are read from the records of `mnist5k_spectra`.
# The verdicts above rest on the records of `renyi_definitions` and `renyi_joint_layers`.
#
# | statement | in the paper | here |
# |---|---|---|
# | the entropy and its order | Section 2 | {prf:ref}`entropy-prop-limits` |
# | a convex function | Section 2, property 1 | {prf:ref}`entropy-prop-quasi` |
# | more spread, less entropy | abstract; Section 1 | {prf:ref}`entropy-prop-quasi` |
# | what small and large orders see | Section 4.1 | {prf:ref}`entropy-prop-pull` |
# | the matrix form | eq. 6 | {eq}`eq-entropy-matrix` |
# | all layers jointly | Lemmas F.2 and F.3; eqs 57 and 58 | {prf:ref}`entropy-prop-blocks` |
# | what the whole says of its layers | Propositions F.1 and F.6, Theorem F.4, Corollary F.5 | {prf:ref}`entropy-prop-together` |
# | indefinite Hessians | Definition 2.1; Remark F.7 | {ref}`entropy-policies` |
# | trouble at order 1 | Section 4.1; Appendix G.4 | {eq}`eq-entropy-explosion` |

# %% [markdown]
# (entropy-orders)=
# ## One spectrum, all orders
#
# Let $\lambda_j \ge 0$ be eigenvalues, not all zero, and $q_j = \lambda_j / \sum_k \lambda_k$ their shares.
# For every order but three the entropy is given by one formula, and at $0$, $1$ and $\infty$ by its limits.
#
# ````{prf:proposition} Limits, and an enclosure
# :label: entropy-prop-limits
#
# Let $r$ be the number of eigenvalues that are not zero, and $q_1$ the largest share.
# Then
#
# $$
# \begin{gathered}
# \mathcal H_0 = \log r, \qquad
# \mathcal H_1 = -\sum_j q_j \log q_j, \qquad
# \mathcal H_\infty = -\log q_1, \\
# \mathcal H_\infty \;\le\; \mathcal H_\alpha \;\le\; \frac{\alpha}{\alpha - 1}\, \mathcal H_\infty
# \qquad \text{for } \alpha > 1 .
# \end{gathered}
# $$ (eq-entropy-limits)
# ````
#
# ````{prf:proof}
# For $\alpha \to 0$ each of the $r$ powers tends to 1.
# For $\alpha$ near 1, write $Z$ as the mean of $q_j^{\alpha - 1} = e^{(\alpha - 1) \log q_j}$ under the weights $q_j$.
# So $\log Z$ is the cumulant generating function of the random number $\log q$ at $\alpha - 1$, that is
#
# $$
# \log Z = (\alpha - 1)\, \mathrm E_q \log q + \tfrac12 (\alpha - 1)^2\, \mathrm{Var}_q \log q + \dots
# $$ (eq-entropy-cumulants)
#
# Divide by $1 - \alpha$: the first term is Shannon's entropy, and the others vanish at 1.
# For $\alpha > 1$, $q_1^\alpha \le Z \le q_1^{\alpha - 1} \sum_j q_j = q_1^{\alpha - 1}$.
# Take logarithms and divide by $1 - \alpha < 0$.
# Both ends tend to $-\log q_1$. ∎
# ````
#
# Order 0 counts, and does not weigh: a rank.
# Order $\infty$ sees one eigenvalue, by its share of the trace.
# Every order above 1 is tied to that end: at order 2 the entropy is at most twice $\mathcal H_\infty$, at the paper's order 3/2 at most three times.
# And {eq}`eq-entropy-cumulants` says that nothing happens at order 1, where the formula reads $0/0$: the entropy passes through it with the slope $-\frac12 \mathrm{Var}_q \log q$.
#
# We try this on a spectrum from life: the last layer, `fc`, of the trained residual network of {doc}`chapter 1 <01_five_minutes>`, on 100 images.


# %%
def entropy(eigenvalues: Tensor, alpha: float) -> float:
    q = eigenvalues[eigenvalues != 0].abs() / eigenvalues.abs().sum()
    if alpha == 0:
        return math.log(len(q))
    if alpha == 1:
        return float(-(q * q.log()).sum())
    if alpha == math.inf:
        return float(-q.max().log())
    return float((q**alpha).sum().log() / (1 - alpha))


recorded = landing_record(p.store).metrics
spectra = {
    name: torch.tensor([x for x in values if x], **real)
    for name, values in recorded["eigenvalues"].items()
}
fc = spectra["fc"]

# %%
total, rows = math.fsum(fc.tolist()), {}
for alpha in (0, 0.25, 0.5, 1, 1.5, 2, math.inf):
    near = {0: 1e-9, 1: 1 + 1e-7, math.inf: 1e9}.get(alpha, alpha)
    powers = [near * math.log(x / total) for x in fc.tolist()]
    top = max(powers)  # taken out, because the others would underflow
    brute = (top + math.log(math.fsum(math.exp(x - top) for x in powers))) / (1 - near)
    ours, found = entropy(fc, alpha), renyi_entropy(fc, alpha)
    ways = {"brute_force": brute, "library": found}
    ways["tolerance"] = 1e-12 if near == alpha else 1e-6
    checked.agree(f"entropy of order {alpha}", ours, **ways)
    rows["∞" if alpha == math.inf else str(alpha)] = ours, math.exp(ours)
for values in spectra.values():
    low = entropy(values, math.inf)
    assert all(low < entropy(values, a) < a / (a - 1) * low for a in (1.1, 1.5, 2, 4))
table(["order", "entropy", "effective number of directions"], rows, spec=".3f")

# %% [markdown]
# One layer, and anything between 4 and 576 directions: whoever quotes an entropy has to quote its order.
# Near 1 the curve is smooth, as {eq}`eq-entropy-cumulants` says.

# %%
q, h = fc / fc.sum(), 1e-4
variance = (q * q.log() ** 2).sum() - (q * q.log()).sum() ** 2
slope = (renyi_entropy(fc, 1 + h) - renyi_entropy(fc, 1 - h)) / (2 * h)
assert distance(-variance / 2, slope) < 1e-5  # the difference quotient errs by about h²
columns = ["layer", "slope at order 1", "minus half the variance of log q"]
table(columns, {"fc": (slope, -variance / 2)}, spec=".4f")

# %% [markdown]
# (entropy-listens)=
# ## What an order listens to
#
# The paper chooses between orders by what they hear: below 1 the middle eigenvalues beside the large ones, above 1 the few large ones (Section 4.1).
# That can be made exact.
# Let one eigenvalue grow by a small percentage, and ask how the entropy moves.
#
# ````{prf:proposition} Pull of an eigenvalue (ours)
# :label: entropy-prop-pull
#
# For $0 < \alpha < \infty$ with $\alpha \ne 1$, and in the limit at 1,
#
# $$
# \frac{\partial \mathcal H_\alpha}{\partial \log \lambda_j} = \frac{\alpha}{1 - \alpha} \,(z_j - q_j),
# \qquad
# -q_j \,(\log q_j + \mathcal H_1) \ \text{ at } \alpha = 1 .
# $$ (eq-entropy-pull)
#
# The pulls of all eigenvalues add up to zero.
# At every such order, a growing eigenvalue raises the entropy if its share is below $1 / N_\alpha$, and lowers it if its share is above.
# ````
#
# ````{prf:proof}
# $\mathcal H_\alpha = \frac{1}{1 - \alpha} \big( \log \sum_k \lambda_k^\alpha - \alpha \log \sum_k \lambda_k \big)$.
# The first logarithm has the derivative $\alpha z_j$ in $\log \lambda_j$, and the second $q_j$.
# Both $z$ and $q$ add up to one.
# $z_j > q_j$ means $q_j^{\alpha - 1} > Z$.
# For $\alpha < 1$ this is $q_j < Z^{1/(\alpha - 1)} = e^{-\mathcal H_\alpha}$, and the factor $\alpha / (1 - \alpha)$ is positive.
# For $\alpha > 1$ both signs are turned.
# At 1, read the sign off the formula. ∎
# ````
#
# So *large* and *small* have a meaning that depends on the order: a share is large if it exceeds $1/N_\alpha$, the share of each direction if $N_\alpha$ directions had equal ones.


# %%
def pull(eigenvalues: Tensor, alpha: float) -> Tensor:
    q = eigenvalues / eigenvalues.sum()
    if alpha == 1:
        return -q * (q.log() + entropy(eigenvalues, 1))
    z = q**alpha / (q**alpha).sum()
    return alpha / (1 - alpha) * (z - q)


pulls, rows = {}, {}
for alpha in (0.25, 0.5, 1, 1.5, 2):
    pulls[alpha] = ours = pull(fc, alpha)
    above = q > math.exp(-entropy(fc, alpha))
    assert torch.equal(above, ours < 0) and abs(ours.sum()) < 1e-12
    weight = ours.abs() / ours.abs().sum()
    effective = math.exp(entropy(fc, alpha))
    rows[alpha] = effective, int(above.sum()), weight[0], weight[50:].sum()
columns = ["order", "effective number", "large shares", "weight of the largest"]
table([*columns, "after the 50th"], rows, spec=".3f")

# %%
for alpha in (0.5, 1.5):
    logs = fc.log().requires_grad_()
    power, sum_ = (alpha * logs).logsumexp(0), logs.logsumexp(0)
    (gradient,) = torch.autograd.grad((power - alpha * sum_) / (1 - alpha), logs)
    moved = torch.empty_like(fc)
    for j in range(len(fc)):
        change = 1e-4 * (torch.arange(len(fc), device=p.device) == j).double()
        up, down = (renyi_entropy(fc * (sign * change).exp(), alpha) for sign in (1, -1))
        moved[j] = (up - down) / 2e-4
    pulls_here = {"brute_force": gradient, "library": moved, "tolerance": 1e-6}
    checked.agree(f"pulls at order {alpha}", pulls[alpha], **pulls_here)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels. Above: the entropy of one layer falls from 6.4 at order zero to 1.3 at order infinity, steeply below order one; dotted horizontal lines mark the logarithm of the rank, Shannon's entropy and minus the logarithm of the largest share. Below: the accumulated weight of the pulls against the index of the eigenvalue on a logarithmic axis; the curve of order two rises first, those of order one and one half later, and that of order one quarter last."}, "figure": {"caption": "The spectrum of one trained layer, 576 eigenvalues that are not zero. Above: its entropy at all orders, with the three limits; the axis is α/(1 + α). Below: which eigenvalues an order listens to, as the sum of the sizes of their pulls from the largest on. Pulls add up to zero, so each curve is level at one half, where they change their sign: large shares are on the left, small ones on the right.", "name": "fig-entropy-orders"}}
figure, (upper, lower) = plt.subplots(2, figsize=(5.5, 7.0))
places = [k / 200 for k in range(200)]
values = [*(entropy(fc, x / (1 - x)) for x in places), entropy(fc, math.inf)]
upper.plot([*places, 1], values)
limits = {0: "log of the rank", 0.5: "Shannon", 1: "−log of the largest share"}
for at, name in limits.items():
    level = entropy(fc, at / (1 - at) if at < 1 else math.inf)
    upper.axhline(level, color=INK, lw=1, ls=":")
    upper.plot(at, level, "o", color=INK)
    upper.text(0.02 if at else 0.98, level + 0.08, name, ha="left" if at else "right")
upper.set_xticks([0, 1 / 3, 0.5, 0.6, 2 / 3, 0.8, 1], ["0", "½", "1", "3/2", "2", "4", "∞"])
upper.set(xlabel="order $\\alpha$", ylabel="entropy (nats)")
for alpha, name in ((0.25, "¼"), (0.5, "½"), (1, "1"), (2, "2")):
    sizes = pulls[alpha].abs().cpu()
    lower.semilogx(range(1, len(fc) + 1), (sizes / sizes.sum()).cumsum(0), label=f"order {name}")
lower.set(xlabel="index of the eigenvalue", ylabel="weight of the pulls up to it")
lower.legend()
plt.show()

# %% [markdown]
# At order ¼ more than a third of the weight lies behind the fiftieth eigenvalue; at order 2 less than a hundredth does, and the largest alone has two fifths.
# In this sense the paper reads its orders rightly.
# But orders below 1 and above 1 are not two kinds: what is heard slides along the spectrum as the order grows, and at order ½ one sixth of the weight is behind the fiftieth.
#
# (entropy-quasi)=
# ## What "convex" should have said
#
# The paper names convexity as a property of the entropy, and infers that the maximum is at the uniform distribution.
# {prf:ref}`reparam-entropy-facts` shows that no Rényi entropy is convex, that those up to order 1 are concave, that larger orders are not in high dimension, and that all are Schur-concave.
# Is there one word that is true at every order, and from which the conclusion follows?
# There is: the entropy is **quasi-concave**, which means that the distributions with at least a given entropy form a convex set.
# So it is not the function that is convex, it is its upper level sets.
#
# ```{prf:proposition} Quasi-concave at every order (ours)
# :label: entropy-prop-quasi
#
# 1. For $0 < \alpha \le \infty$ and every $h$ the set $\{q : \mathcal H_\alpha(q) \ge h\}$ is convex: a mixture of $q$ and $q'$, in any proportion, has at least the smaller of their two entropies.
# 2. A symmetric quasi-concave function does not fall when $q$ is averaged by a matrix $M$ with nonnegative entries whose rows and columns add up to one.
#    So it is largest at the uniform distribution.
# 3. At order 2, and at $d$ shares that are all positive, the entropy has no positive second derivative in any direction whose entries add up to zero if and only if $\mathcal H_2(q) \ge \log d - \log 2$.
# ```
#
# ````{prf:proof}
# *1.* For $\alpha > 1$ the set is $\sum_j q_j^\alpha \le e^{(1 - \alpha) h}$, and the power $x^\alpha$ is convex in $x$.
# For $\alpha < 1$ it is $\sum_j q_j^\alpha \ge e^{(1 - \alpha) h}$, and the power is concave.
# Shannon's entropy is concave, and $\max_j q_j \le e^{-h}$ is convex.
#
# *2.* By Birkhoff's theorem $M q$ is a mixture of permutations of $q$.
# All of them lie in the level set of $q$ itself, by symmetry, and hence so does $M q$.
# The matrix with all entries $1/d$ leads to the uniform distribution.
#
# *3.* Write $Q = \sum_j q_j^2$, so that $\mathcal H_2 = -\log Q$.
# Along a direction $v$ whose entries add up to zero, the second derivative is
#
# $$
# \frac{4\, \langle q, v \rangle^2 - 2\, Q\, |v|^2}{Q^2} .
# $$ (eq-entropy-second)
#
# Among these $v$ the largest $\langle q, v \rangle^2 / |v|^2$ is $|q - u|^2 = Q - \frac1d$, where $u$ is the uniform distribution.
# So it is positive for some $v$ if and only if $Q > 2/d$. ∎
# ````
#
# Part 3 says how far concavity is from the spectra that networks have.
# At order 2 an entropy would have to be within $\log 2 = 0.69$ nats of the largest that there is.
# In every layer of the residual network of chapter 1 it is more than 3 nats below the logarithm of the rank.
# This matters wherever concavity was used: that the entropy on all samples is at least the mean of the entropies on two halves, each weighted by its trace ({prf:ref}`five-halves`), is a theorem up to order 1, and at order 2 its proof fails on just such spectra.
#
# The next cell has the second derivative at any order, for {eq}`eq-entropy-second` and the figure.


# %%
def largest_bend(q: Tensor, alpha: float) -> tuple[float, Tensor]:
    """Return the largest second derivative in a direction that keeps the sum, and where."""
    Z, slope = (q**alpha).sum(), q ** (alpha - 1)
    second = -alpha * torch.diag(q ** (alpha - 2)) / Z
    second += alpha**2 / (alpha - 1) * slope.outer(slope) / Z**2
    ones = q.new_ones(len(q), 1)
    basis = torch.linalg.qr(ones, mode="complete").Q[:, 1:]  # orthogonal to the ones
    bends, vectors = torch.linalg.eigh(basis.T @ second @ basis)
    return float(bends[-1]), basis @ vectors[:, -1]


def random_shares(d: int) -> Tensor:
    draws = torch.rand(d, generator=generator, dtype=torch.float64).to(p.device) ** 3 + 1e-3
    return draws / draws.sum()


# %%
for d in (3, 10, 40):
    for _ in range(20):
        q, other, part = random_shares(d), random_shares(d), random_shares(2)[0]
        mixture = part * q + (1 - part) * other
        for alpha in (0.5, 1, 2, 8, math.inf):  # part 1
            ends = entropy(q, alpha), entropy(other, alpha)
            assert entropy(mixture, alpha) > min(ends) - 1e-12
        bend, v = largest_bend(q, 2)
        margin = (q**2).sum() - 2 / d
        assert abs(margin) < 1e-9 or (bend > 0) == (margin > 0)  # part 3
        up, middle, down = (renyi_entropy(q + s * v, 2) for s in (1e-5, 0, -1e-5))
        assert abs((up - 2 * middle + down) / 1e-10 - bend) < 1e-3 * (1 + abs(bend))
assert all(entropy(values, 0) - entropy(values, 2) > 3 for values in spectra.values())

# %%
corners = torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.75**0.5]], **real)
side = 150
lattice = [(i, j, side - i - j) for i in range(side + 1) for j in range(side + 1 - i)]
triples = torch.tensor(lattice, **real) / side
plane = (triples @ corners).T  # where each spectrum is drawn
fields = {
    0.5: 2 * triples.sqrt().sum(1).log(),
    1: torch.special.entr(triples).sum(1),
    2: -triples.square().sum(1).log(),
    math.inf: -triples.amax(1).log(),
}
point = torch.tensor([0.62, 0.30, 0.08], **real)
hexagon = torch.stack([point[list(order)] for order in permutations(range(3))]) @ corners
around = hexagon - corners.mean(0)
hexagon = hexagon[torch.atan2(around[:, 1], around[:, 0]).argsort()]
corners, hexagon, plane = corners.cpu(), hexagon.cpu(), plane.cpu()
fields = {alpha: field.cpu() for alpha, field in fields.items()}

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two triangles whose corners are spectra with one eigenvalue. Above, five curves through the six permutations of one point: a hexagon, and around it closed convex curves of orders one half, one, two and infinity, which touch it at its corners. Below, level lines of order two: circles around the centre, with three shaded regions at the corners outside of one of them."}, "figure": {"caption": "Spectra of three eigenvalues: the corners have one that is not zero, the centre has three equal ones. Above: spectra with the same entropy as (0.62, 0.30, 0.08), marked with its permutations, at four orders. Each curve bounds a convex set, and all contain the hexagon of its averages; between the curves the orders disagree. Below: level lines of order 2, which is not concave in the shaded corners.", "name": "fig-entropy-simplex"}}
figure, (upper, lower) = plt.subplots(2, figsize=(5.5, 8.6))
for axes in (upper, lower):
    axes.fill(*corners.T, fill=False, ec=INK, lw=1, zorder=3)
    axes.set(aspect="equal", xlim=(-0.62, 0.62), ylim=(-0.1, 0.98))
    axes.set_axis_off()
    for (x, y), name in zip(corners, ("(1, 0, 0)", "(0, 1, 0)", "(0, 0, 1)"), strict=True):
        axes.text(x, y + (0.02 if y > 0 else -0.06), name, ha="center")
upper.fill(*hexagon.T, color="0.88")
upper.plot(*hexagon.T, "o", color=INK, ms=5)
names, styles = ("½", "1", "2", "∞"), ("-", "--", "-.", ":")
for alpha, name, color, style in zip(fields, names, COLORS, styles, strict=False):
    level = [entropy(point, alpha)]
    upper.tricontour(*plane, fields[alpha], levels=level, colors=color, linestyles=[style])
    upper.plot([], [], color=color, ls=style, label=f"order {name}")
upper.legend(loc="upper right")
lower.tricontourf(*plane, -fields[2], levels=[-math.log(1.5), 0], colors=["0.85"])
levels = [k / 10 for k in range(1, 11)]
lower.tricontour(*plane, fields[2], levels=levels, colors=COLORS[0], linewidths=1)
plt.show()

# %% [markdown]
# The upper picture also shows what is left open.
# Averaging is a *partial* order: of two spectra, as a rule, neither is an average of the other.
# Inside the hexagon every order agrees that the entropy is larger.
# Between two of the curves one order calls a spectrum more even than ours, and the other less.
# So "the larger the spread, the smaller the entropy", in the paper's abstract, is true of averages; of two other spectra all orders may agree which is the more even one, or one order may call even what another calls uneven.
#
# How often is that so between networks?
# The records have five trained networks, so ten pairs in each of eight layers.

# %%
networks = [
    record.metrics["entropy"]
    for record in records_of("mnist5k_spectra", "laptop", p.store)
    if record.configuration["n"] == 100
]
pairs, turned = 0, 0
for layer in recorded["layers"]:
    for one, other in combinations(networks, 2):
        half, three_halves = (one[a][layer] - other[a][layer] for a in ("0.5", "1.5"))
        pairs, turned = pairs + 1, turned + (half * three_halves < 0)
assert len(networks) == 5
print(f"{turned} of {pairs} pairs are ranked differently by the orders ½ and 3/2")

# %% [markdown]
# (entropy-matrix)=
# ## The entropy of a matrix
#
# The paper estimates the entropy without a spectrum, and optimizes it for all layers at once; both start from a matrix form, in which no eigenvalue needs to be known.
# If $H$ is positive semidefinite, the sum of the powers of its eigenvalues is the trace of its power, so
#
# $$
# \mathcal H_\alpha(H) = \frac{1}{1-\alpha} \log \frac{\operatorname{Tr} H^\alpha}{(\operatorname{Tr} H)^\alpha}
# \qquad (\text{paper: eq. 6}) .
# $$ (eq-entropy-matrix)
#
# At a whole order the power is a product of matrices, at order ½ a root; the next cell computes both without asking for an eigenvalue.
# A rotation of the coordinates changes neither trace, and a positive factor cancels.

# %%
factor = torch.randn(8, 8, generator=generator, dtype=torch.float64).to(p.device)
H = factor @ factor.T + 0.1 * torch.eye(8, **real)
root = torch.tensor(scipy.linalg.sqrtm(H.cpu().numpy()), **real)
assert distance(H, root @ root) < 1e-12
powers = {0.5: root, 1.5: H @ root, 2.0: H @ H}
for alpha, power in powers.items():
    matrix_form = (power.trace() / H.trace() ** alpha).log() / (1 - alpha)
    brute = entropy(torch.linalg.eigvalsh(H), alpha)
    found = library.trace_form(H, alpha).left
    checked.agree(f"eq. 6 at order {alpha}", matrix_form, brute_force=brute, library=found)

# %% [markdown]
# **The power sum is no sharpness.**
# Appendix F works with $R_\alpha = \sum_j q_j^\alpha$, which is our $Z$, and says that lowering $-\mathcal H_\alpha$ is lowering $R_\alpha$ for every order but 1 (eq. 57).
# (It defines $R_\alpha$ for $\alpha > 1$, where that is so, and a later remark of the paper turns the direction for $\alpha < 1$; only "any fixed $\alpha \ne 1$" is the slip.)
# Read $\mathcal H_\alpha = \frac{1}{1 - \alpha} \log R_\alpha$: for $\alpha > 1$ that is so, and for $\alpha < 1$ the sign of $1 - \alpha$ turns it round.
# As $0 \le \mathcal H_\alpha \le \log d$, the power sum lies between $d^{1 - \alpha}$ and 1, which is Lemma F.3 and its other end.
#
# **All layers jointly.**
# A network's Hessian has the blocks $H_l$ of the layers on its diagonal, and the coupling of layers beside them.
# What does an entropy of the whole have to do with those of its parts?
#
# ````{prf:proposition} Blocks
# :label: entropy-prop-blocks
#
# Let $H$ be positive semidefinite, $B$ its block diagonal, and $w_l = \operatorname{Tr} H_l / \operatorname{Tr} H$.
#
# 1. *Paper: Lemma F.2, eq. 58.* $R_\alpha(B) = \sum_l w_l^\alpha R_\alpha(H_l)$.
#    At order 1 this becomes
#
#    $$
#    \mathcal H_1(B) = -\sum_l w_l \log w_l + \sum_l w_l\, \mathcal H_1(H_l) .
#    $$ (eq-entropy-chain)
#
# 2. *Ours.* $\mathcal H_\alpha(H) \le \mathcal H_\alpha(B) \le \mathcal H_\alpha(\operatorname{diag} H)$ at every order.
# ````
#
# ````{prf:proof}
# *1.* The eigenvalues of $B$ are those of the blocks, and a share in $B$ is $w_l$ times a share in its block.
# For order 1 take $-q \log q$ of such a product.
#
# *2.* Choose a basis in which every block is diagonal.
# The diagonal of $H$ in this basis holds the eigenvalues of $B$.
# With orthonormal eigenvectors of $H$ as the columns of a matrix $U$, $H_{jj} = \sum_k U_{jk}^2 \lambda_k$, and the rows and columns of $U_{jk}^2$ add up to one.
# So the eigenvalues of $B$ are averages of those of $H$, and {prf:ref}`entropy-prop-quasi` applies.
# In the given basis the same argument compares $B$ with its diagonal. ∎
# ````
#
# The first part says, as far as couplings are small, what the paper's panel "all layers" mixes: how the trace is shared among the layers, and how even each layer is, weighted by its share.
# At order 1 and above a layer with little of the trace hardly counts; below order 1 it may count for much, if it has many eigenvalues (exercise 2).
# The second says on which side a shortcut errs: leaving out couplings can only raise the entropy, and leaving out all but the diagonal of $H$ raises it most.
# Both need a positive semidefinite matrix, such as the Gauss–Newton matrix; the Hessian of all layers, which the paper's panel takes, is indefinite ({ref}`below <entropy-where>`).
# With magnitudes of eigenvalues the second part may fail: $\left(\begin{smallmatrix} 1 & 1 \\ 1 & 0 \end{smallmatrix}\right)$ has a positive entropy, and its diagonal, $1$ and $0$, has none.
# (The proxy of the paper's eq. 9 has the squares of the mean gradient's entries on its diagonal, and these are not the diagonal of $H$, so the proposition says nothing of them.)
# The next cell looks at the Gauss–Newton matrix of a small ReLU network on digits.


# %%
digits = load("digits", dtype=torch.float64, seed=p.seed)
images, labels = (x[:60].to(p.device) for x in (digits.train.inputs, digits.train.targets))


class Standardize(nn.Module):
    """Normalise each unit by the statistics of the batch, or by those that were kept."""

    kept = None

    def forward(self, z: Tensor) -> Tensor:
        now = z.mean(0), z.std(0, correction=0)
        self.seen = tuple(part.detach() for part in now)
        mean, deviation = self.kept or now
        return (z - mean) / deviation


# %%
def network(activation=nn.ReLU, norm=nn.Identity, another: int = 0) -> nn.Module:
    torch.manual_seed(p.seed + another)
    ends = ((16, 8), (8, 8), (8, 10))
    first, second, third = (nn.Linear(*pair, bias=False) for pair in ends)
    body = [first, norm(), activation(), second, norm(), activation(), third]
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), *body).double().to(p.device)


# %%
plain = network()
weights = [name for name, _ in plain.named_parameters()]
sizes = [parameter.numel() for parameter in plain.parameters()]
G = dense_gauss_newton(plain, images, parameters=weights)
blocks = [dense_gauss_newton(plain, images, parameters=[name]) for name in weights]
B = torch.block_diag(*blocks)
w = torch.stack([block.trace() for block in blocks]) / G.trace()
rows = {}
for alpha in (0.5, 1, 2):
    whole, pinched = (entropy(torch.linalg.eigvalsh(M).clamp(min=0), alpha) for M in (G, B))
    diagonal = entropy(G.diagonal(), alpha)
    assert whole < pinched < diagonal
    assert math.isclose(library.pinching(G, sizes, alpha).right, pinched, rel_tol=1e-6)
    rows[alpha] = whole, pinched, diagonal
alone = [entropy(torch.linalg.eigvalsh(block).clamp(min=0), 1) for block in blocks]
layers = torch.tensor(alone, **real)
chained = float(-(w * w.log()).sum() + (w * layers).sum())
assert math.isclose(chained, rows[1][1], rel_tol=1e-6)
table(["order", "all weights", "blocks of layers", "diagonal"], rows, spec=".3f")

# %% [markdown]
# (entropy-together)=
# ## All layers at once
#
# Appendix F asks more: if the whole is as even as it can be, is every layer?
# Let $d_l$ be the number of weights of layer $l$, $T = \operatorname{Tr} H$, and $E = H - B$ the coupling of layers.
#
# ````{prf:proposition} The whole and its layers
# :label: entropy-prop-together
#
# Let $H$ be positive semidefinite with $d$ rows.
# In the first three parts $H = B$, $\alpha > 1$, and no block is zero.
#
# 1. *Paper: Theorem F.4, eq. 59.* $R_\alpha(H) \ge \sum_l w_l^\alpha d_l^{1 - \alpha} \ge d^{1 - \alpha}$.
#    The first is an equality where every block is a multiple of the identity, the second where $w_l = d_l / d$ in every layer, and nowhere else.
# 2. *Paper: Corollary F.5.* Where the minimum $d^{1 - \alpha}$ is attained, $H$ is a multiple of the identity, and every layer has the entropy $\log d_l$, at every order.
# 3. *Ours.* Near it, with the excess $\delta = d^{\alpha - 1} R_\alpha(H) - 1$,
#
#    $$
#    \log d_l - \mathcal H_\alpha(H_l)
#    \;\le\; \frac{1}{\alpha - 1} \log\Bigl(1 + \frac{(d_l / d)^{\alpha - 1}}{w_l^\alpha}\, \delta\Bigr) .
#    $$ (eq-entropy-near)
#
# 4. *Paper: Proposition F.6, eq. 60; the sign is ours.* For $\alpha > 1$ and the largest eigenvalue $\lambda_1$ of $H$,
#
#    $$
#    0 \;\le\; R_\alpha(H) - R_\alpha(B)
#    \;\le\; \alpha\, \Bigl(\frac{\lambda_1}{T}\Bigr)^{\alpha - 1} \frac{\|E\|_*}{T}
#    \;\le\; \alpha\, \Bigl(\frac{\lambda_1}{T}\Bigr)^{\alpha - 1} \frac{\sqrt d\, \|E\|_F}{T} ,
#    $$ (eq-entropy-coupling)
#
#    where $\|E\|_*$ is the sum of the magnitudes of the eigenvalues of $E$.
# 5. *Ours.* For $0 < \alpha < 1$, $|R_\alpha(H) - R_\alpha(B)| \le d^{1 - \alpha} (\|E\|_* / T)^\alpha$.
# ````
#
# ````{prf:proof}
# *1.* A mean of powers is at least the power of the mean.
# The mean of the $d_l$ shares in a block is $1 / d_l$, so $R_\alpha(H_l) \ge d_l^{1 - \alpha}$ (Lemma F.3), and {prf:ref}`entropy-prop-blocks` gives the first inequality.
# For the second write $\sum_l w_l^\alpha d_l^{1 - \alpha} = d^{1 - \alpha} \sum_l \frac{d_l}{d} \bigl(\frac{w_l}{d_l / d}\bigr)^\alpha$.
# This is again a mean of powers, with the weights $d_l / d$, and the mean that belongs to it is 1.
# The power is strictly convex, so equality asks for equal entries in both.
#
# *2.* Both equalities hold: the blocks are multiples of the identity, and of one multiple.
#
# *3.* Write $r_l = d_l^{\alpha - 1} R_\alpha(H_l)$, which is at least 1, and $m_l = \frac{d_l}{d} \bigl(\frac{w_l}{d_l / d}\bigr)^\alpha$.
# By {prf:ref}`entropy-prop-blocks`, $1 + \delta = \sum_l m_l r_l$, and by the first part $\sum_l m_l \ge 1$.
# So $\delta \ge \sum_l m_l (r_l - 1)$, where no term is negative, and each $r_l$ is at most $1 + \delta / m_l$.
# Take logarithms: $\log r_l = (\alpha - 1) (\log d_l - \mathcal H_\alpha(H_l))$.
#
# *4.* The sign is {prf:ref}`entropy-prop-blocks`, second part.
# Let $\lambda_j$ and $\mu_j$ be the eigenvalues of $H$ and $B$ in falling order; none exceeds $\lambda_1$.
# By the mean value theorem $|\lambda_j^\alpha - \mu_j^\alpha| \le \alpha \lambda_1^{\alpha - 1} |\lambda_j - \mu_j|$.
# By Lidskii's theorem $\sum_j |\lambda_j - \mu_j| \le \|E\|_*$.
# Add up, and divide by $T^\alpha$, which is the same for both.
# The last step is Cauchy and Schwarz's, since $E$ has $d$ eigenvalues.
#
# *5.* For $\alpha < 1$ and $x, y \ge 0$, $|x^\alpha - y^\alpha| \le |x - y|^\alpha$.
# The mean of such powers is at most the power of the mean, so their sum is at most $d^{1 - \alpha} \bigl(\sum_j |\lambda_j - \mu_j| / T\bigr)^\alpha$. ∎
# ````
#
# The paper draws more from this than is there ({ref}`what should stand there <renyi-verdicts>`).
#
# * *Three statements are called equivalent*: the minimum, uniform layers, and traces in the proportion of the weights.
#   The minimum is the two others together, as the proof of Theorem F.4 itself says; two uniform layers of different traces miss it.
#   Both together make $H$ a multiple of the identity, which a Hessian with a zero eigenvalue never is.
# * *Proposition F.1* says that lowering the whole's sharpness lowers each layer's.
#   The minimum does so, and {eq}`eq-entropy-near` says how nearly it must be reached.
#   Before that, evening out the traces may lower the whole's sharpness while a layer's own rises.
#   The next cell has the smallest example.
# * *Evening out the traces costs nothing*, and that is right: scaling layer $l$ by $c_l$ divides its trace by $c_l^2$ ({prf:ref}`reparam-prop-2-2`).
#   With $c_l^2$ as $\operatorname{Tr} H_l / d_l$ over the geometric mean of these numbers, all become equal, and the product of the $c_l$ is one.
# * *"Of the order of $\|E\|_F / T$"* hides a power of $d$ at orders below $\frac32$.
#   Let $H$ have $\left(\begin{smallmatrix} 1 & 1 \\ 1 & 1 \end{smallmatrix}\right)$ down its diagonal, and every weight be a layer.
#   Then $T = d$, $\|E\|_F = \sqrt d$, and the change is $(2^{\alpha - 1} - 1)\, d^{1 - \alpha}$.
#   Over $\alpha \|E\|_F / T$ that grows as $d^{3/2 - \alpha}$, for $\alpha < \frac32$.
#   From $\alpha = \frac32$ on, which is the paper's order, its "of the order of" is right in every dimension.
#   For write $\mu_j$ again for the eigenvalues of $B$, and $x_j$ for the larger of $\lambda_j / T$ and $\mu_j / T$.
#   By the mean value theorem and Cauchy and Schwarz the change is at most $\alpha\, (\sum_j x_j^{2\alpha - 2})^{1/2}\, (\sum_j (\lambda_j - \mu_j)^2)^{1/2} / T$.
#   The last root is at most $\|E\|_F$, by Hoffman and Wielandt's theorem, and as $x_j \le 1$ the first sum is at most $\sum_j x_j \le 2$.
# * *Below order 1* the remark after Proposition F.6 has the same order.
#   Two eigenvalues $x$ beside a 1, which a coupling turns into $2x$ and 0, change the numerator by $(2 - 2^\alpha)\, x^\alpha$, and $\|E\|_F$ is $\sqrt2\, x$.
#   So the exponent $\alpha$ in the last part cannot be 1.

# %%
before = torch.tensor([1.0, 1.0, 10.0, 10.0], **real)
after = torch.tensor([1.2, 0.8, 3.0, 3.0], **real)
rows = {}
for name, q in {"before": before, "after": after}.items():
    rows[name] = tuple(-entropy(part, 2) for part in (q, q[:2], q[2:]))
first, second = library.layerwise_consequence(before.diag(), after.diag(), [2, 2], 2.0)
assert first.assumptions["global_sharpness_falls"] and not first.holds and second.holds
table(["sharpness at order 2", "whole", "first layer", "second layer"], rows, spec=".3f")

# %% [markdown]
# (entropy-policies)=
# ## Negative eigenvalues: four policies
#
# Definition 2.1 asks for a positive definite matrix.
# A negative eigenvalue makes a negative "probability", whose power is no real number at most orders.
# The paper knows of them (Appendix G.4), and its Remark F.7 names substitutes without choosing: the absolute value $|H|$, a Gauss–Newton or Fisher matrix, and a shift $H + \gamma I$.
# One may also clamp, that is, set negative eigenvalues to zero.
# The released code does something else: magnitudes in the numerator of {eq}`eq-entropy-matrix`, and the signed trace in its denominator.
# We call this last policy *mixed*.
#
# Let $s$ be the share of the negative eigenvalues by weight, their magnitudes over all magnitudes.
# Then $\operatorname{Tr} H = (1 - 2s) \operatorname{Tr} |H|$, and more generally we may ask what happens if *anything* else, $T'$, stands for $\operatorname{Tr} |H|$ in the denominator.
# By the laws of the logarithm
#
# $$
# \frac{1}{1-\alpha} \log \frac{\operatorname{Tr} |H|^\alpha}{(T')^\alpha}
# = \mathcal H_\alpha(|H|) + \frac{\alpha}{1 - \alpha}\, \log \frac{\operatorname{Tr} |H|}{T'} .
# $$ (eq-entropy-explosion)
#
# With the mixed policy the last logarithm is $-\log(1 - 2s)$, a positive number for $0 < s < \frac12$.
# So it adds something at *every* order: at order ½ just $-\log(1 - 2s)$, nine times that at 0.9, and minus six times that at 1.2.
# At order 1 it has a pole, with $+\infty$ on the left and $-\infty$ on the right, and at $s = \frac12$ the policy's value is infinite at every order.
# For $\frac12 < s < 1$ it is no real number, except at even orders: at order 2 it is finite, and wrong (for the eigenvalues 1 and −4 it is $-\log \frac{17}{9}$, less than any entropy).
# We try all of them on the eigenvalues $4, 2, 1, -1$, for which $s = \frac18$, with the smallest shift that is allowed, $\gamma = 1$.


# %%
def negative_share(eigenvalues: Tensor) -> float:
    return float(eigenvalues.clamp(max=0).abs().sum() / eigenvalues.abs().sum())


def mixed(eigenvalues: Tensor, alpha: float) -> float:
    power = (eigenvalues.abs() ** alpha).sum()
    return float((power / eigenvalues.sum() ** alpha).log() / (1 - alpha))


# %%
example, rows = torch.tensor([4.0, 2.0, 1.0, -1.0], **real), {}
for alpha in (0.5, 0.8, 0.99, 1.01, 1.3, 2.0):
    absolute = entropy(example, alpha)
    added = -alpha / (1 - alpha) * math.log(1 - 2 * negative_share(example))
    wanted = {
        "brute_force": absolute + added,
        "library": library.trace_form(example.diag(), alpha).right,
    }
    checked.agree(f"mixed policy at order {alpha}", mixed(example, alpha), **wanted)
    clamped, shifted = entropy(example.clamp(min=0), alpha), entropy(example + 1, alpha)
    assert distance(clamped, renyi_entropy(example, alpha, policy="clamp")) < 1e-12
    rows[alpha] = absolute, clamped, shifted, mixed(example, alpha)
beyond = torch.tensor([1.0, -4.0], **real)  # s is 4/5
assert math.isclose(mixed(beyond, 2.0), -math.log(17 / 9)) and math.isnan(mixed(beyond, 1.5))
table(["order", "|H|", "clamped", "shifted", "mixed"], rows, spec=".3f")

# %% [markdown]
# Four eigenvalues have an entropy of at most $\log 4 = 1.386$.
# The mixed column leaves the range from 0 to that number at orders ½, 0.8 and 1.3, well inside of what the paper calls stable.
# At the largest share found after training, $s = 0.076$, the policy adds two thirds of a nat at order 0.8 and one and a half at 0.9, and takes away one at 1.2: a bias, which need not leave the range.
# What is added depends on the order and on $s$ alone, by {eq}`eq-entropy-explosion`: what is stable is a question of how much the negative eigenvalues weigh.
#
# **Which policy?**
# Three things speak for the absolute value, which the library takes unless told otherwise.
#
# * It forgets no direction: a descent of curvature $-1$ is as much a departure from flatness as a rise of curvature $1$.
#   Clamping forgets it.
# * It scales with $H$, as do clamping and the Gauss–Newton matrix, so the paper's Proposition 2.2 survives (layer-wise scaling keeps a layer's entropy).
#   A shift does not: $H$ becomes $c^{-2} H$ under layer-wise scaling, and $\gamma$ stays.
#   As $\gamma$ grows every spectrum becomes uniform.
# * It is the entropy of *this* matrix.
#   The Gauss–Newton matrix needs no policy, as it has no negative eigenvalues for a convex loss; but where $H$ has some, it is another matrix.

# %%
scaled = example / 9  # a layer's Hessian after its weights were multiplied by three
for same in (torch.abs, torch.relu):  # the absolute value, and clamping
    assert distance(entropy(same(example), 0.5), entropy(same(scaled), 0.5)) < 1e-12
both = example, scaled
shifts = {gamma: [entropy(x + gamma, 0.5) for x in both] for gamma in (1, 4, 100)}
assert all(before < after for before, after in shifts.values())
columns = ["shift γ", "entropy of order ½", "after scaling, same function"]
table(columns, shifts, spec=".4f")

# %% [markdown]
# (entropy-where)=
# ## Where negative eigenvalues come from
#
# "Training cannot guarantee convergence exactly to a strict local minimum", says Appendix G.4, and so negative eigenvalues are "inevitable".
# For a single layer of a ReLU network in evaluation mode this is not so.
# {prf:ref}`cor-hessian-block` has no hypothesis about a minimum: where everything after the layer is piecewise linear and the loss convex in the outputs, the block is positive semidefinite wherever training stops, and at random weights too.
# The residual networks of the paper are of this kind, as long as batch normalisation uses stored statistics; Appendix G.4 does not say whether it did.
#
# What leads out of the corollary is of three kinds.
#
# * *An operation behind the layer that is not piecewise linear.* The paper's vision transformer has GELU, layer normalisation and attention.
# * *All layers jointly,* as in its panels "all layers".
# * *The statistics of the batch,* as in training mode, if it measured in that mode.
#
# The first kind is tried here on GELU alone.
# For the other two a short argument *proves* negative eigenvalues, under a condition on the gradient.
#
# | what leads out | negative eigenvalues are proved | and found below |
# |---|---|---|
# | an operation that is not piecewise linear | – | with GELU, in the two layers before it |
# | statistics of the batch | in a layer before them, if ε = 0, wherever its gradient is not zero | in the two layers before them |
# | all layers jointly | where one hidden unit meets the condition below | in every network |
#
# ```{prf:proposition} A symmetry bends downwards (ours)
# :label: entropy-prop-symmetry
#
# Let $A$ be a diagonal matrix with $L(e^{tA} \theta) = L(\theta)$ for all $\theta$ and $t$, and let $v = A\theta$.
# Where $L$ is twice differentiable,
#
# $$
# H v = -A g, \qquad v^\top H v = -\langle g, A^2 \theta \rangle .
# $$ (eq-entropy-symmetry)
#
# If $\langle g, A^2 \theta \rangle \ge 0$ and $A g \ne 0$, then $H$ has a negative eigenvalue.
# ```
#
# ```{prf:proof}
# The derivative in $t$ at 0 vanishes: $\langle g(\theta), A\theta \rangle = 0$ for all $\theta$.
# Differentiate this in $\theta$: $H A \theta + A g = 0$, which is the first equation; multiply by $v = A\theta$ for the second.
# If $v^\top H v < 0$, there is a negative eigenvalue.
# If it is 0 and $H$ were semidefinite, of either sign, $H v$ would vanish, but it is $-Ag$; so $H$ has eigenvalues of both signs. ∎
# ```
#
# *Statistics of the batch.*
# Multiply the weights of one unit before a batch normalisation by $e^t$, and nothing changes (with $\epsilon = 0$ in the root).
# So $A$ has ones for the unit's weights and zeros elsewhere, $A^2 = A$, and $\langle g, A^2 \theta \rangle = \langle g, v \rangle = 0$.
# **A layer before batch normalisation in training mode has an indefinite Hessian block wherever its gradient is not zero.**
#
# *All layers.*
# In a bias-free ReLU network without normalisation, multiply the weights $w$ into one hidden unit by $e^t$, and those out of it by $e^{-t}$.
# Now $A^2$ is one on both, and as $\langle g, A\theta \rangle = 0$ both have the same part in $\langle g, A^2 \theta \rangle$, which is $2 \langle g_w, w \rangle$.
# **A single hidden unit with $\langle g_w, w \rangle \ge 0$, and a gradient in its weights $w$ that is not zero, shows that the joint Hessian has a negative eigenvalue.**
# It has a positive one as well, because its trace is that of the Gauss–Newton matrix $G$ and hence not negative (exercise 3): it is indefinite.
# No Hessian need be computed to know it.
#
# In both cases the proof uses the gradient, and at a critical point it is silent.
# So for the directions of this proof the paper's reason, that training stops short of a minimum, is a good one: the length of $Hv$ is that of $Ag$, a part of the gradient, and shrinks to zero towards a critical point.
# It does not cover all negative eigenvalues: a critical point may be a saddle, and network 1 below is indefinite where the argument is silent.
#
# The same network is now measured in two ways, after 0, 10, 30, 100 and 300 steps of gradient descent on 60 digits with the statistics of the batch.
# *Frozen*: the statistics are kept as they are at these very weights, which is evaluation mode at its best; the outputs and the loss are then the same numbers as with those of the batch, and only their derivatives differ.
# *Live*: the statistics follow the weights.
# Then both with GELU in the place of ReLU.


# %%
def descend(model: nn.Module, steps: int, loss=cross_entropy, goals=labels) -> None:
    parameters = list(model.parameters())
    for _ in range(steps):
        slopes = torch.autograd.grad(loss(model(images), goals), parameters)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.data.sub_(slope, alpha=0.2)


def freeze(model: nn.Module) -> nn.Module:
    frozen = copy.deepcopy(model)
    frozen(images)  # the layers see their statistics, and keep them
    for module in frozen.modules():
        if isinstance(module, Standardize):
            module.kept = module.seen
    return frozen


# %%
kept, times = {}, [t for t in (0, 10, 30, 100, 300, 1000) if t <= p.steps]
for name, activation in (("ReLU", nn.ReLU), ("GELU", nn.GELU)):
    live, done = network(activation, Standardize), 0
    for time in times:
        descend(live, time - done)
        kept[name, "live", time] = copy.deepcopy(live)
        kept[name, "frozen", time], done = freeze(live), time
        assert distance(live(images), kept[name, "frozen", time](images)) < 1e-12

blocks = dict(zip(("layer 1", "layer 2", "layer 3"), [[x] for x in weights], strict=True))
blocks["all layers"] = weights
spectra_of = {
    (*key, where): torch.linalg.eigh(dense_hessian(model, images, labels, parameters=names))
    for key, model in kept.items()
    for where, names in blocks.items()
}

# %% tags=["nbval-rtol=1e-3"]
shares, rows = {key: negative_share(e.eigenvalues) for key, e in spectra_of.items()}, {}
for name in ("ReLU", "GELU"):
    for mode in ("frozen", "live"):
        for time in (0, times[-1]):
            rows[name, mode, time] = [shares[name, mode, time, where] for where in blocks]
layers = ("layer 1", "layer 2", "layer 3")
frozen = [shares["ReLU", "frozen", time, layer] for time in times for layer in layers]
assert max(frozen) < 1e-12  # at all times, and not only at those of the table
columns = ["activation", "statistics", "steps", *blocks]
table(columns, rows, spec=".4f")

# %% [markdown]
# A table entry is the share $s$.
# Three observations stand out.
#
# * Frozen ReLU layers have no negative eigenvalue at any time, trained or not.
#   The last layer has none in any network, because the loss is all that comes after it.
# * With the statistics of the batch the first layer of the *same* network, with the same outputs, has a quarter of its weight below zero at first, and GELU even more.
# * Training takes most of this away, and in the joint Hessian least.
#
# Is that one network?
# The records of `renyi_definitions` have five seeds of two others, without normalisation, after 300 steps on random labels; where a layer is meant, it is the worst one.

# %%
found: dict[tuple, list[float]] = {}
for record in records_of("renyi_definitions", "laptop", p.store):
    if (key := record.configuration)["fact"] == "definition":
        cases = found.setdefault((key["network"], key["of"]), [])
        cases.append(record.metrics["negative_share"])
assert all(len(cases) == 5 for cases in found.values())
rows = {}
for case, cases in sorted(found.items()):
    rows[case] = min(cases), max(cases), -math.log(1 - 2 * max(cases))
columns = ["activation", "Hessian of", "smallest s", "largest s", "−log(1 − 2s), largest"]
table(columns, rows, spec=".3f")

# %% [markdown]
# The next cell holds the library's spectra against these, and {eq}`eq-entropy-symmetry` against the dense matrices.

# %%
model, batch = kept["ReLU", "frozen", times[-1]], (images, labels)
ours = {
    where: entropy(spectra_of["ReLU", "frozen", times[-1], where].eigenvalues, 1)
    for where in blocks
}
fast = layer_spectra(model, batch)
for (where, (weight,)), values in zip([*blocks.items()][:3], fast.values(), strict=True):
    written = dense_hessian(model, *batch, parameters=[weight])
    brute = entropy(torch.linalg.svdvals(written), 1)  # magnitudes of eigenvalues
    found = {"brute_force": brute, "library": renyi_entropy(values.eigenvalues, 1)}
    checked.agree(f"Shannon's entropy, {where}", ours[where], **found, tolerance=1e-9)
magnitudes = torch.linalg.svdvals(dense_hessian(model, *batch, parameters=weights))
found = -float(global_renyi_sharpness(model, batch, 1.0, method="exact"))
joint = {"brute_force": entropy(magnitudes, 1), "library": found, "tolerance": 1e-9}
checked.agree("Shannon's entropy, all layers", ours["all layers"], **joint)


# %%
def gradients(model: nn.Module) -> list[Tensor]:
    loss = cross_entropy(model(images), labels)
    return list(torch.autograd.grad(loss, [*model.parameters()]))


live = kept["ReLU", "live", times[-1]]
W, g = live[2].weight.detach(), gradients(live)[0]
H = dense_hessian(live, images, labels, parameters=weights[:1])
for unit in range(8):  # multiply one unit's weights
    A = (torch.arange(8, device=p.device) == unit).double().repeat_interleave(16)
    v = A * W.flatten()
    assert distance(-A * g.flatten(), H @ v) < 1e-9 and abs(v @ H @ v) < 1e-9 * H.norm()
assert float(torch.linalg.eigvalsh(H)[0]) < 0


# %%
def downward_units(model: nn.Module) -> tuple[int, str]:
    """Count the hidden units, of both layers, that show a direction of negative curvature."""
    W, g = [q.detach() for q in model.parameters()], gradients(model)
    H, count = dense_hessian(model, images, labels, parameters=weights), 0
    for layer, unit in product((0, 1), range(8)):
        v = [torch.zeros_like(matrix) for matrix in W]
        v[layer][unit] = W[layer][unit]  # weights into the unit times a factor, those out divided
        v[layer + 1][:, unit] = -W[layer + 1][:, unit]
        flat, slope = torch.cat([part.flatten() for part in v]), g[layer][unit] @ W[layer][unit]
        assert abs(flat @ H @ flat + 2 * slope) < 1e-9 * H.norm()
        count += int(slope > 0)
    smallest = torch.linalg.eigvalsh(H)[0]
    assert count == 0 or smallest < 0
    return count, "yes" if smallest < 0 else "no"


# %% tags=["nbval-rtol=1e-3"]
rows = {}
for another in range(3):
    plain = network(another=another)
    for time in (0, p.steps):
        descend(plain, time)
        rows[another + 1, time] = downward_units(plain)
columns = ["network", "steps", "units that show it, of 16", "joint Hessian indefinite"]
table(columns, rows)

# %% [markdown]
# The argument is sufficient, and not necessary.
# In the first network no unit shows it after training, and the joint Hessian is indefinite all the same.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of the negative eigenvalues on a logarithmic axis against the steps of training. All layers jointly fall from about a third to about one per cent; the first layer with the statistics of the batch, and with GELU, fall from a quarter and more than a half to two per mille and less than half of one per mille. A note says that the frozen ReLU layer is at zero throughout."}, "figure": {"caption": "How much of the spectrum’s weight is negative, in one network while it is trained. The frozen ReLU layers cannot be drawn on this axis: all of their eigenvalues are at least zero to within round-off, at every step.", "name": "fig-entropy-negative"}}
curves = {
    "all layers, ReLU, frozen": ("ReLU", "frozen", "all layers", "o-"),
    "layer 1, ReLU, live statistics": ("ReLU", "live", "layer 1", "s--"),
    "layer 1, GELU, frozen": ("GELU", "frozen", "layer 1", "D-."),
    "layer 2, GELU, frozen": ("GELU", "frozen", "layer 2", "^:"),
}
figure, axes = plt.subplots(figsize=(5.5, 4.2))
for name, (activation, mode, where, look) in curves.items():
    values = [shares[activation, mode, time, where] for time in times]
    axes.semilogy(range(len(times)), values, look, label=name)
axes.set_xticks(range(len(times)), times)
axes.set(xlabel="steps of gradient descent", ylabel="negative share $s$", ylim=(1e-5, 2))
axes.text(0, 2e-5, "every layer, ReLU, frozen: zero at all times")
axes.legend(loc="lower left", bbox_to_anchor=(0, 0.08))
plt.show()

# %% [markdown]
# (entropy-order-one)=
# ## What explodes at order 1
#
# The paper restricts its orders to $(0, 0.9)$ and $(1.2, 3]$, since negative eigenvalues "can cause numerical pathologies" as $\alpha \to 1$.
# By {eq}`eq-entropy-explosion` a pathology at 1 has to come from two traces that do not fit, as from a $T'$ in the denominator that is not the $\operatorname{Tr} |H|$ of the numerator.
#
# An estimate never sees the spectrum.
# It draws $k$ random vectors $v$ of length $\sqrt d$, the *probes*, and takes the mean of $v^\top |H|^\alpha v$ for the trace in the numerator, and that of $v^\top |H|\, v$ for the one in the denominator ({ref}`chapter 4 <est-hutchinson>`).
# So there are two suspects.
#
# * **The policy.** The signed trace for $T'$ puts $-\log(1 - 2s)$ beside $\frac{\alpha}{1 - \alpha}$.
#   It is there without any noise, and more probes do not remove it.
# * **The second probe.** Algorithm 1 draws another random vector for the denominator.
#   So $T'$ is an estimate that knows nothing of the numerator's, and the logarithm of their ratio has a standard deviation, which we call $c_k$ for $k$ probes.
#   It needs no negative eigenvalue.
#   (The released code takes both traces from the same probes, so there the policy alone is left.)
#
# Both are multiplied by the same $\frac{\alpha}{1 - \alpha}$, so at any order near 1 the larger of the two numbers explains the explosion.
# For probes of random signs, {eq}`eq-est-variance` gives the second: with independent probes in numerator and denominator, and to first order in $1/\sqrt k$ and near order 1, the variance of the ratio's logarithm is twice that of the logarithm of one mean.
# So
#
# $$
# c_k \approx \frac{2}{\sqrt k}\; \frac{\big( \lVert H \rVert_F^2 - \sum_j |H|_{jj}^2 \big)^{1/2}}{\operatorname{Tr} |H|} ,
# $$ (eq-entropy-probe)
#
# where $\lVert H \rVert_F^2 = \sum_j \lambda_j^2$, and $|H|_{jj}$ is the diagonal of $|H|$.
# (Algorithm 1's probes are uniform on a sphere; eq. 7 has random signs.
# There the difference in brackets is $\frac{d}{d + 2} \big( \lVert H \rVert_F^2 - \frac1d (\operatorname{Tr} |H|)^2 \big)$ for $d$ weights, which changes $c_k$ by a few per cent here.)
# It is at most $2\, e^{-\mathcal H_2 / 2} / \sqrt k$, and near that where the squares of the diagonal add up to little.
# So the *less* even a spectrum is, the more its estimate may suffer.


# %%
def probe_coefficient(matrix, k: int = 100) -> float:
    values, vectors = matrix.eigenvalues.abs(), matrix.eigenvectors
    diagonal = vectors.square() @ values
    squares = values @ values - diagonal @ diagonal
    return 2 * math.sqrt(float(squares) / k) / float(values.sum())


def on_a_sphere(matrix, k: int = 100) -> float:
    values, d = matrix.eigenvalues.abs(), len(matrix.eigenvalues)
    squares = d / (d + 2) * (values @ values - values.sum() ** 2 / d)
    return 2 * math.sqrt(float(squares) / k) / float(values.sum())


# %% tags=["nbval-rtol=1e-3"]
rows = {}
for time in times:
    key = "ReLU", "frozen", time
    whole, first = spectra_of[*key, "all layers"], spectra_of[*key, "layer 1"]
    policy = -math.log(1 - 2 * shares[*key, "all layers"])
    alone = -math.log(1 - 2 * shares[*key, "layer 1"])
    rows[time] = policy, probe_coefficient(whole), alone, probe_coefficient(first)
    for matrix in (whole, first):
        assert 1 < on_a_sphere(matrix) / probe_coefficient(matrix) < 1.1
        most = 2 * math.exp(-entropy(matrix.eigenvalues, 2) / 2) / math.sqrt(100)
        assert probe_coefficient(matrix) < most
if p.steps == 300 and p.seed == 0:
    assert rows[0][0] > 10 * rows[0][1] and rows[300][1] > 2 * rows[300][0]
    assert probe_coefficient(whole, 600) > policy > probe_coefficient(whole, 680)
names = ["policy, all layers", "probe, all layers", "policy, layer 1", "probe, layer 1"]
table(["steps", *names], rows, spec=".3f")

# %% [markdown]
# **Which cause is it?**
# For a single layer of such a ReLU network in evaluation mode the policy has nothing to do, and the second probe alone is enough to make the estimate explode.
# For all layers jointly the answer changes during training.
# At random weights the policy is by far the larger of the two.
# Training takes most of the negative eigenvalues away and makes the spectrum less even.
# So at the end, with the paper's 100 probes, the second probe is the larger, in this network, by more than a factor of two.
# But it shrinks with $1/\sqrt k$, and the policy does not: from about 640 probes on, the policy would be the larger of the two at the end as well.
# So for all layers jointly either may be the main cause, and which one it is depends on the training and on the number of probes.
#
# A simulation confirms {eq}`eq-entropy-probe`: a hundred estimates at order 0.9, each from 100 probes and exact quadratic forms, so without any error of a quadrature; *predicted* is $9\, c_k$.

# %% tags=["nbval-rtol=1e-3"]
alpha, k, repeats = 0.9, 100, 100
values, vectors = whole.eigenvalues.abs(), whole.eigenvectors
signs = draw_probes(2 * k * repeats, len(values), generator_of(p.seed + 1), device=p.device)
squares = (signs @ vectors).square()
N, D = ((squares @ f).reshape(2, repeats, k).mean(-1) for f in (values**alpha, values))
common = (N[0].log() - alpha * D[0].log()) / (1 - alpha)
second = (N[0].log() - alpha * D[1].log()) / (1 - alpha)  # denominator from other probes
spread = float((second - common).std())
predicted = alpha / (1 - alpha) * probe_coefficient(whole)
assert 0.7 < spread / predicted < 1.3  # a hundred estimates give a spread to 7 %
table(
    ["probes", "standard deviation", "predicted"],
    {"common": [common.std(), None], "second": [second.std(), predicted]},
    spec=".3f",
)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three panels. Above, two coefficients against the steps of training: that of the policy falls from above one to below a thirtieth, that of the second probe rises from a fortieth to a fourteenth, and they cross between a hundred and three hundred steps. In the middle, the entropy of one layer against the order from 0.8 to 1.25: an exact level curve inside a grey band that opens wide at order one. Below, the same for all layers, with a second curve that shoots up left of order one and comes from below on its right."}, "figure": {"caption": "Above: the two numbers that are multiplied by α/(1 − α), for all layers of the network, frozen. Middle: layer 1 at the end of training, where no eigenvalue is negative. Below: all layers at the end. Solid: the exact entropy of |H|. Dashed: the mixed policy. Grey: plus and minus one standard deviation of an estimate whose 100 probes of the denominator are others than those of the numerator. Dotted: the ends of the orders that the paper leaves out.", "name": "fig-entropy-explosion"}}
figure, (upper, middle, lower) = plt.subplots(3, figsize=(5.5, 9.6))
for column, name in enumerate(("mixed policy", "second probe")):
    values = [row[column] for row in rows.values()]
    upper.semilogy([*map(str, times)], values, ("o-", "s--")[column], label=name)
upper.set(xlabel="steps of gradient descent", ylabel="coefficient")
orders = torch.tensor([0.8 + 0.0025 * j for j in range(181) if j != 80], **real).cpu()
for axes, matrix in ((middle, first), (lower, whole)):
    exact = orders.new_tensor([entropy(matrix.eigenvalues, a) for a in orders.tolist()])
    width = probe_coefficient(matrix) * orders / (1 - orders).abs()
    grey = axes.fill_between(orders, exact - width, exact + width, color="0.85", lw=0)
    axes.plot(orders, exact, color=INK)
    axes.set(ylim=(0, 5.8), xlabel="order $\\alpha$", ylabel="entropy (nats)")
    axes.vlines((0.9, 1.2), 0, 5.8, color=QUIET, lw=1, ls=":")
for side in (orders < 1, orders > 1):
    values = [mixed(whole.eigenvalues, a) for a in orders[side].tolist()]
    (dashed,) = lower.plot(orders[side], values, "--", color=COLORS[2])
upper.legend()
lower.legend((dashed, grey), ("mixed policy", "second probe"), loc="lower right")
plt.show()

# %% [markdown]
# **How the two could be told apart.**
# Take each alone.
# The policy does the same to every network: it adds a positive number below order 1 and a negative one above.
# With exact traces, and $0 < s < \frac12$ in every network, the policy's term outgrows the entropies near 1, and ranks networks by their negative share $s$, in one order on the left of 1 and in the opposite order on the right.
# So a rank correlation with the generalization gap would tend to that of $s$ with the gap, from one side with its sign and from the other with the opposite one: it would change its sign there, if $s$ and the gap are correlated at all.
# The second probe ranks networks at random; where the same probes serve all orders, it ranks them in the opposite order on the other side, so that one such panel changes its sign, too, by a correlation of the size of chance.
# What tells the two apart is how much of the values near 1 comes back with other probes.
# Where both act, both grow by the same factor: the mean over probes shows the policy, and the spread the second probe.
# The paper's panels leave out just the orders that would show it.
#
# With one policy and common probes there is nothing to explain: the entropy is smooth at 1, and the paper's two intervals can be joined.
# Nor are the ends 0.9 and 1.2 a safe distance: there the mixed policy still adds nine, and takes away six, times $-\log(1 - 2s)$.
#
# (entropy-scale)=
# ## What the measure ignores
#
# $\mathcal H_\alpha(cH) = \mathcal H_\alpha(H)$ for every $c > 0$: the entropy is a statistic of *shape*.
# That is its purpose, since the scale of a layer's curvature can be moved by {ref}`layer-wise scaling <prop-2-2>`, and it is a loss, since everything that an optimizer feels is scale: the step size that is stable, the rise of the loss under a perturbation of given length.
#
# Here are three networks.
# The first is trained on the digits by half the squared error, without normalisation.
# The second is the first with its layers multiplied by $\frac1{10}$, 1 and 10, so it computes the same.
# The third is the first with its last layer multiplied by 3, so its outputs are *three times* those of the first, and it is useless as a fit.
# For the squared error the third has the same entropies as well: the derivatives of the outputs in the first two layers are three times as large, the Hessian in the outputs is the identity wherever they are, and the last layer's inputs are the same.


# %%
def half_squared_error(outputs: Tensor, goals: Tensor) -> Tensor:
    return 0.5 * (outputs - goals).square().sum(1).mean()


def scaled(model: nn.Module, factors: tuple) -> nn.Module:
    other = copy.deepcopy(model)
    for parameter, factor in zip(other.parameters(), factors, strict=True):
        parameter.data.mul_(factor)
    return other


goals = one_hot(labels, 10).double()
trained = network()
descend(trained, p.steps, half_squared_error, goals)
factors = {"trained": (1, 1, 1), "same function": (0.1, 1, 10), "three times": (1, 1, 3)}
three = {name: scaled(trained, c) for name, c in factors.items()}
assert distance(three["trained"](images), three["same function"](images)) < 1e-12


# %% tags=["nbval-rtol=1e-3"]
@torch.no_grad()
def gap(model: nn.Module) -> tuple[float, float]:
    """Return the training loss, and by how much the loss on the test images exceeds it."""
    loss = half_squared_error(model(images), goals)
    unseen, classes = digits.test.inputs.to(p.device), digits.test.targets.to(p.device)
    on_test = half_squared_error(model(unseen), one_hot(classes, 10).double())
    return float(loss), float(on_test - loss)


data, rows, first_layers = ((images, goals), "half_squared_error"), {}, {}
for name, model in three.items():
    sharpness = [float(x) for x in renyi_sharpness(model, data[0], 0.5, data[1]).values()]
    first_layers[name] = spectrum = layer_spectra(model, *data)["2"].eigenvalues
    top = torch.linalg.eigvalsh(dense_hessian(model, images, goals, data[1]))[-1]
    rows[name] = *sharpness, spectrum[0], 2 / top, *gap(model)
    same = zip(rows["trained"], sharpness, strict=False)
    assert all(distance(*pair) < 1e-9 for pair in same)
names = ["sharpness 1", "2", "3", "largest λ, layer 1", "stable step", "loss", "gap"]
table(["network", *names], rows, spec=".3g")

# %% [markdown]
# The columns *sharpness* hold $-\mathcal H_{1/2}$ of the three layers, and *stable step* is $2 / \lambda_1$ of the whole Hessian, above which gradient descent leaves a valley.
# By sharpness the three are one network.
# The second's curvature in the first layer is a hundred times the first's, and a step that is safe for the first is far too long for it; its loss and its gap are the first's, which is the point of the paper's normalisation.
# The third has another loss and another generalization gap, and no order of the entropy of any layer can know.
# So equal sharpness does not mean an equal gap, not even for one and the same architecture on the same data.
#
# Is this far-fetched?
# Under cross-entropy the third network would not be an exact twin, because there the Hessian in the outputs depends on the outputs (exercise 4).
# But it shows what kind of claim "sharpness foretells the gap" is: one about the networks that training finds, and none about all networks.


# %%
@torch.no_grad()
def rise(model: nn.Module, lengths: Tensor) -> list[float]:
    """Return the mean rise of the loss for steps up and down the steepest direction."""
    with torch.enable_grad():
        H = dense_hessian(model, images, goals, "half_squared_error", weights[:1])
    step = torch.linalg.eigh(H).eigenvectors[:, -1].reshape(8, 16)
    base, moved, rises = half_squared_error(model(images), goals), copy.deepcopy(model), []
    for length in lengths:
        ends = []
        for sign in (1, -1):
            moved[2].weight.copy_(model[2].weight + sign * length * step)
            ends.append(half_squared_error(moved(images), goals))
        rises.append(float(sum(ends) / 2 - base))
    return rises


lengths = torch.linspace(0, 0.05, 41, **real)
rises = {name: rise(model, lengths) for name, model in three.items()}

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels for three networks. Above, the sorted eigenvalues of the first layer on logarithmic axes: three curves of the same shape, one above the other. Below, the rise of the loss along the steepest direction of the first layer: almost flat for the trained network, a little steeper for three times the outputs, and very steep for the same function in other units."}, "figure": {"caption": "Three networks with equal entropies of every layer at every order. Above: the spectrum of the first layer. Below: the rise of the loss when the first layer’s weights move along its steepest direction, averaged over the two ways to go.", "name": "fig-entropy-scale"}}
figure, (upper, lower) = plt.subplots(2, figsize=(5.5, 7.0))
for (name, spectrum), style in zip(first_layers.items(), ("-", "--", "-."), strict=True):
    upper.loglog(range(1, 1 + len(spectrum)), spectrum, style, label=name)
    lower.plot(lengths.cpu(), rises[name], style, label=name)
upper.set(xlabel="index $j$", ylabel="eigenvalue")
lower.set(xlabel="length of the step", ylabel="rise of the loss")
upper.legend()
lower.legend()
plt.show()

# %% [markdown]
# All of the chapter's own lines agree with brute force and with the library.

# %%
checked.table()

# %% [markdown]
# (entropy-verdicts)=
# ## Paper against ours
#
# The verdicts stand at the head of the chapter: those of the paper's statements, and, marked as ours, those of what we put in their place.
# In a table of six lines:
#
# | the paper | what is true |
# |---|---|
# | the entropy is convex, hence largest for equal shares | it is quasi-concave, hence largest for equal shares |
# | a larger spread has a smaller entropy | if one spectrum is an average of the other; else orders may disagree about which is spread |
# | negative eigenvalues are inevitable | possible in a layer before GELU, layer normalisation or attention, and found before GELU; possible, and found, in all layers jointly; forced, if ε = 0, in a layer before statistics of the batch, wherever its gradient is not zero; impossible in a layer of a ReLU network in evaluation mode, if the loss is convex in the outputs (the Brier loss is not, and its layers stand behind the verdict on Remark F.7) |
# | they cause the trouble at order 1 | two traces that do not fit do: by a mixed policy, or by a second probe |
# | orders in $(0, 0.9)$ and $(1.2, 3]$ avoid the trouble (G.4: "stable and free of anomalies"; our reading: whatever the negative eigenvalues weigh) | the mixed policy adds $\frac{\alpha}{\alpha - 1} \log(1 - 2s)$ at every order |
# | lowering the sharpness of all layers jointly lowers that of each | at the exact minimum, and near it by {eq}`eq-entropy-near`; on the way a layer's own may rise |
#
# ## What would change our mind
#
# * *The paper's own Hessians.*
#   If their negative shares were known, for each layer and mode of measurement, {eq}`eq-entropy-explosion` would tell what the mixed policy did to them, and {eq}`eq-entropy-probe` what the second probe did.
# * *Correlations near order 1.*
#   A change of sign there that comes back with other probes, or in the mean over many, would convict the policy, and one that does not, the second probe.
# * *A reason for scale not to matter.*
#   The three networks show that equal entropies do not force equal gaps.
#   A theorem about those networks that training finds could still say so of them.
#
# ## Deviations, and what failed
#
# * The paper measures residual networks and a vision transformer on CIFAR and Tiny ImageNet.
#   Ours here have 272 weights, so that every Hessian can be written out.
#   What is proved does not depend on size; the shares and the two coefficients do, and are those of one seed.
# * Our normalisation has no $\epsilon$ and no scale or shift.
#   With $\epsilon > 0$ the symmetry of {prf:ref}`entropy-prop-symmetry` holds approximately, as {ref}`chapter 3 <batch-normalisation>` has it.
# * "Evaluation mode" is here the mode with statistics that fit the weights exactly.
#   Running averages lag behind; for the sign of a block's eigenvalues that makes no difference.
# * We expected the single-unit argument to show every trained network's joint Hessian indefinite.
#   It did so for two of three; the remaining one, network 1, is indefinite, and the argument silent.
# * We expected the policy to be the main cause for all layers jointly.
#   It is so early in training; at the end, with 100 probes, it is not.
#
# ## Exercises
#
# **1. How tight is the enclosure?** Find spectra for which $\mathcal H_2$ equals $\mathcal H_\infty$, and spectra for which it comes as near to $2\, \mathcal H_\infty$ as you like.
#
# ````{dropdown} Solution
# With $r$ equal eigenvalues all orders are $\log r$.
# For the other end take one share $q_1$, and spread the rest over $m$ equal ones.
# Then $Z = q_1^2 + (1 - q_1)^2 / m$, which tends to $q_1^2$ as $m$ grows, so $\mathcal H_2 \to -2 \log q_1$.
# ````
#
# **2. Dust.** Spread a share of weight $\varepsilon$ evenly over $m$ new directions, and let $\varepsilon$ be small.
# How large must $m$ be before the entropy of order $\alpha < 1$ notices, and why, for a fixed spectrum and $\varepsilon \to 0$, does no order above 1 ever do?
#
# ````{dropdown} Solution
# $Z$ becomes $(1 - \varepsilon)^\alpha Z + m^{1 - \alpha} \varepsilon^\alpha$.
# The second term is about one for $m = \varepsilon^{-\alpha / (1 - \alpha)}$; at order ½ that is $1/\varepsilon$.
# So a thousandth of the trace, spread over a thousand directions, is noticed at order ½.
# For $\alpha > 1$ the second term is at most $\varepsilon^\alpha$ for every $m$, and the first is $Z$ up to the factor $(1 - \varepsilon)^\alpha$.
# ````
#
# **3. Two traces.** Show that $1 - 2s = \operatorname{Tr} H / \operatorname{Tr} |H|$.
# What does it say about a ReLU network's joint Hessian and its Gauss–Newton matrix?
#
# ````{dropdown} Solution
# Positive and negative parts add up to $\operatorname{Tr} |H|$, and their difference is $\operatorname{Tr} H$.
# In such a network $\operatorname{Tr} H = \operatorname{Tr} G$, because the diagonal blocks are those of $G$ ({prf:ref}`prop-hessian-block`).
# So the mixed policy divides by a power of $\operatorname{Tr} G$, and $-\log (1 - 2s)$ is the logarithm of the ratio of the two matrices' sums of magnitudes.
# ````
#
# **4. No twin under cross-entropy.** Multiply the last layer of a bias-free ReLU network by $c$.
# What becomes of the first layer's block under cross-entropy, and what is its entropy for $c \to 0$?
#
# ````{dropdown} Solution
# $J_{1,i}$ is multiplied by $c$, and $\Lambda_i$ becomes that of the softmax of $c f_i$.
# The first is a scale, and the second changes the shape: confident samples lose weight as $c$ grows.
# For $c \to 0$ every $p_{iy}$ tends to $1/C$, so the entropy tends to that of $\frac1n \sum_i J_{1,i}^\top (I - \frac1C \mathbf 1 \mathbf 1^\top) J_{1,i}$, a number that knows neither labels nor confidence.
# ````
#
# ## How to cite
#
# Cite the book as `CITATION.cff` says, and statements by their paper: Definition 2.1, eq. 6, Section 4.1, Lemmas F.2 and F.3, Propositions F.1 and F.6, Theorem F.4, Corollary F.5 and Remark F.7 from {cite:t}`renyi2025`.
# {prf:ref}`entropy-prop-pull`, {prf:ref}`entropy-prop-quasi`, {prf:ref}`entropy-prop-symmetry` and what is marked as ours in {prf:ref}`entropy-prop-blocks` and {prf:ref}`entropy-prop-together` are worked out here; we make no claim that nobody did so before.
