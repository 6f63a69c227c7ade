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
# (chapter-quadratic)=
# # What sharpness-aware steps do on a quadratic
#
# **Question.** Where does each sharpness-aware method end on a quadratic, and how far from the minimum?
#
# **Answer.** Gradient descent and its regularised form converge below a curve, the edge of stability.
# SAM, for $\eta < 2/\beta$, ends almost always in a two-cycle *on* it.
# SA-SAM, with the paper's constants, ends on it too, at a loss of 1/36 in any valley (proved on a line for most starts, else seen).
#
# **Time.** Reading: about 45 minutes; running: under twenty seconds on two cores.
#
# **You need:** eigenvalues of a symmetric matrix, and when a linear iteration converges (one step of one proof takes the stable manifold theorem, and can be skipped).
#
# What this chapter finds is proved or computed where it stands, so there are no verdicts: a cell whose assertion fails stops the notebook.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke, laptop or paper
seed = 0  # draws the starting points and one basis
starts = None  # starting points of the runs in five dimensions; None: the profile's own number
device = "cpu"  # cpu or cuda; auto: a GPU where there is one
store = None  # folder for new records; this chapter makes none

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import distance, follow_quadratic, setup, table

p = setup(
    globals(),
    {"smoke": {"starts": 5}, "laptop": {"starts": 20}, "paper": {"starts": 200}},
    allowed=["seed", "starts"],
    threads=1,
)

import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.func import jacrev

from paperkit.linalg.probes import generator_of
from paperkit.optim import ASAM, SAM, SASAM, SASGD, EigenSAM, GradientRegularization
from paperkit.plotting import COLORS, INK, QUIET

real = {"dtype": torch.float64, "device": p.device}


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, **real)


# %% [markdown]
# On a quadratic every point is as sharp as every other.
# A method that looks for flat regions has nothing to find there, and what is left is the mechanism: two coupled numbers, a step size and a radius, that act on a linear map.
# The edge of stability, up to which a fixed step converges, is known for ascent that is not normalised.
# SAM normalises it, and SA-SAM chooses step size and radius by itself.
# Each theorem is proved, and what is only observed is said to be so; all is computed in float64, and compared with the library's optimizers.
#
# **Symbols.** They are those of the {doc}`notation page <../book/notation>`.
# Throughout,
#
# $$
# L(\theta) = \tfrac12\, \theta^\top H \theta , \quad g = \nabla L(\theta) = H\theta , \quad H v_j = \lambda_j v_j, \quad
# \beta = \lambda_1 \ge \dots \ge \lambda_d > 0 .
# $$
#
# Some letters belong to this chapter and the next: $c$ damps SA-SAM's step size (`damping`), $\gamma$ the growth of it (`delta`, the paper's $\delta$), and $\vartheta_t$ is the ratio of two successive step sizes.
# This chapter alone writes $\Phi$ for SAM's penalised loss and $\Psi$ for the function that its bouncing descends, $r$ for the strength of an un-normalised ascent, $u = \eta\lambda$ for a step in units of the inverse curvature, $w$ for a step of $z$, $s$ for a ratio of two eigenvalues, and $\pm a$ for the points of a two-cycle.
#
# **Computed here.** Nothing is trained and no record is read; all arithmetic is in float64.
# Two computations of the same numbers must agree to 1e-12.
# It is 1e-9 for runs that pass beyond the edge and there multiply their rounding errors, and more where a comment says what is neglected.
#
# | statement | in the paper | here |
# |---|---|---|
# | the sharpness-aware step | SA-SAM, eq. 2 | {eq}`eq-quad-step` |
# | what it descends on a quadratic | – | {eq}`eq-quad-penalties` |
# | the modified edge of stability | SA-SAM, Section 2, citing {cite:t}`agarwala2023` | {prf:ref}`quad-edge` |
# | the two-cycle on a line | – | {prf:ref}`quad-line` |
# | the two-cycle in any dimension | – ({cite:t}`bartlett2023`) | {prf:ref}`quad-cycle` |
# | the step size from local smoothness | SA-SAM, eqs 5 and 6 | {eq}`eq-quad-rule` |
# | its lower bound, "$1/\beta$" | SA-SAM, Section 2 | {prf:ref}`quad-bound`: $1/(c\beta)$ |
# | $\rho_t = \sqrt{\eta_t}$ | SA-SAM, Algorithm 1, line 6 | {eq}`eq-quad-radius` |
# | where SA-SAM ends | – | {prf:ref}`quad-floor` |
#
# (quad-step)=
# ## One step, three ascents
#
# All methods of this chapter climb by some $\varepsilon$ and descend with the gradient found there:
#
# $$
# \theta_{t+1} = \theta_t - \eta\, \nabla L(\theta_t + \varepsilon_t)
# = \theta_t - \eta H (\theta_t + \varepsilon_t)
# \qquad (\text{paper: eq. 2}) .
# $$ (eq-quad-step)
#
# They differ in the ascent.
#
# | | $\varepsilon$ | its strength has the unit of |
# |---|---|---|
# | gradient descent | $0$ | |
# | un-normalised | $r\, g$ | a step size, $1/\lambda$ |
# | normalised: SAM {cite:p}`foret2021` | $\rho\, g / \lVert g \rVert$ | the parameters |
#
# The units decide most of what follows.
# On a quadratic both ascents follow the gradient of something, and not only in first order.
# With $\nabla \lVert g \rVert^2 = 2 H g$ and $\nabla \lVert g \rVert = H g / \lVert g \rVert$, we have $H\theta + r H g = \nabla (L + \frac r2 \lVert g \rVert^2)$, and likewise for the other:
#
# $$
# \nabla L(\theta + r g) = \nabla \Big( L + \frac r2\, \lVert \nabla L \rVert^2 \Big),
# \qquad
# \nabla L\Big(\theta + \rho\, \frac{g}{\lVert g \rVert}\Big) = \nabla \Big( L + \rho\, \lVert \nabla L \rVert \Big) .
# $$ (eq-quad-penalties)
#
# So the un-normalised step *is* gradient regularisation {cite:p}`barrett2021,smith2021` with weight $\mu = r/2$, and SAM *is* gradient descent on $\Phi = L + \rho\, \lVert \nabla L \rVert$.
# The first penalty is smooth.
# The second has the tip of a cone at the minimum: its gradient there has length at least $\rho \lambda_d$, however close one comes.
# Descent with a fixed step does not settle on a tip, unless a step hits it exactly.


# %%
def normalised(rho):
    return lambda g: rho * g / g.norm(dim=-1, keepdim=True).clamp_min(1e-300)  # 0 where g = 0


def proportional(r):
    return lambda g: r * g


def run(H: Tensor, theta: Tensor, steps: int, eta, ascent) -> Tensor:
    points = [theta]
    for _ in range(steps):
        g = theta @ H
        theta = theta - eta * (theta + ascent(g)) @ H
        points.append(theta)
    return torch.stack(points)


# %% [markdown]
# These lines are {eq}`eq-quad-step`; `theta` may be one point or many.
# The library must take the same steps, and automatic differentiation must find the gradients {eq}`eq-quad-penalties`.

# %%
H, theta, eta, rho, r = torch.diag(vector(4, 1)), vector(1.2, 1.5), 0.3, 0.2, 0.1
ours = {"SAM": normalised(rho), "double": proportional(r), "difference": proportional(r)}
theirs = {
    "SAM": lambda w: SAM(w, rho=rho, lr=eta),
    "double": lambda w: GradientRegularization(w, mu=r / 2, lr=eta),
    "difference": lambda w: GradientRegularization(w, mu=r / 2, method="finite_difference", lr=eta),
}
for name, make in theirs.items():
    points, _ = follow_quadratic(make, H, theta, 30)
    assert distance(run(H, theta, 30, eta, ours[name]), points) < 1e-12, name

# %%
penalties = {
    proportional(r): lambda theta: 0.5 * r * (H @ theta).square().sum(),
    normalised(rho): lambda theta: rho * (H @ theta).norm(),
}
for ascent, penalty in penalties.items():
    gradient = jacrev(lambda theta, penalty=penalty: 0.5 * theta @ H @ theta + penalty(theta))
    step = theta - eta * gradient(theta)
    assert distance(step, run(H, theta, 1, eta, ascent)[1]) < 1e-14

# %% [markdown]
# The difference of gradients is exact too, up to rounding: a quadratic has no third derivative for it to miss.
#
# (quad-edge-section)=
# ## The edge
#
# ```{prf:theorem} The edge of un-normalised ascent
# :label: quad-edge
#
# Let $\eta > 0$.
# The iteration {eq}`eq-quad-step` with $\varepsilon = r g$, $r \ge 0$, converges to the minimum from every start if and only if
#
# $$
# \begin{gathered}
# \eta\, (\beta + r \beta^2) < 2 , \quad\text{that is,}
# \\
# \beta \;<\; \lambda^*(\eta, r) = \frac{\sqrt{1 + 8 r/\eta} - 1}{2 r} \;<\; \frac 2\eta \quad (r > 0),
# \end{gathered}
# $$ (eq-quad-edge)
#
# and for gradient descent, $r = 0$, if and only if $\beta < 2/\eta$.
# ```
#
# ```{prf:proof}
# The step is $\theta_{t+1} = (I - \eta H - \eta r H^2)\, \theta_t$.
# Along $v_k$ it multiplies by $1 - \eta (\lambda_k + r \lambda_k^2)$, which is less than 1, and more than $-1$ if and only if $\eta(\lambda_k + r\lambda_k^2) < 2$.
# The left side grows with $\lambda_k$, so $\lambda_1 = \beta$ decides.
# For $r > 0$ the quadratic $\eta r \lambda^2 + \eta \lambda - 2$ has one positive root, $\lambda^*$, and at $\lambda = 2/\eta$ it is positive already.
# ```
#
# This is the *modified edge* that {cite:t}`agarwala2023` found, and that the SA-SAM paper builds on.
# Below, $\eta = 0.1$ and $r = 0.2$: three eigenvalues at 0.99, 1 and 1.01 times $\lambda^*$ shrink, stay, and grow by the factors of the proof.

# %%
eta, r, steps = 0.1, 0.2, 50
edge = (math.sqrt(1 + 8 * r / eta) - 1) / (2 * r)
eigenvalues = edge * vector(1.01, 1, 0.99)
multipliers = 1 - eta * (eigenvalues + r * eigenvalues**2)
make = lambda w: GradientRegularization(w, mu=r / 2, lr=eta)  # noqa: E731
points, _ = follow_quadratic(make, torch.diag(eigenvalues), vector(1, 1, 1), steps)
assert distance(multipliers**steps, points[-1]) < 1e-12
print(f"edge {edge:.4f}; of gradient descent {2 / eta:.0f}")
print("after 50 steps:", [round(value, 4) for value in points[-1].tolist()])

# %% [markdown]
# (quad-line-section)=
# ## Normalised ascent, on a line
#
# Write $u = \eta\lambda$ for the step in units of the inverse curvature.
# On a line SAM reads $\theta_{t+1} = (1 - u)\,\theta_t - u \rho\, \operatorname{sign}(\theta_t)$, with $\operatorname{sign}(0) = 0$.
#
# ```{prf:theorem} SAM on a line
# :label: quad-line
#
# Let $\eta, \rho, \lambda > 0$.
#
# 1. For $u < 2$, every start but countably many ends in the two-cycle $\theta = \pm a$,
#
#    $$
#    a = \frac{u \rho}{2 - u}, \qquad L = \tfrac12 \lambda a^2 .
#    $$ (eq-quad-cycle)
#
#    The exceptions are $0$ and, for $u < 1$ alone, $\lvert\theta_0\rvert = \rho\, \big( (1-u)^{-k} - 1 \big)$, $k = 1, 2, \dots$: they arrive at the minimum in $k$ steps, and stay.
# 2. Once each step changes the sign, $\lvert\theta_{t+1}\rvert - a = -(1 - u)\, (\lvert\theta_t\rvert - a)$.
# 3. For $u = 2$, $\lvert\theta_t\rvert$ grows by $2\rho$ a step; for $u > 2$ it grows geometrically (from $\theta_0 \ne 0$).
# ```
#
# ````{prf:proof}
# Let $\theta_t > 0$; the other sign is the mirror image.
# The sign changes if and only if $(1-u)\,\theta_t < u\rho$.
# Then $\lvert\theta_{t+1}\rvert = u\rho - (1-u)\lvert\theta_t\rvert$; its fixed point is $a$, and subtracting $a = u\rho - (1-u)a$ gives claim 2.
#
# *$u \ge 1$:* the sign changes at every step.
# For $u < 2$ the factor $\lvert 1 - u \rvert$ is less than 1, so $\lvert\theta_t\rvert \to a$.
# For $u = 2$, $\lvert\theta_{t+1}\rvert = \lvert\theta_t\rvert + 2\rho$.
# For $u > 2$, $\lvert\theta_{t+1}\rvert > (u-1)\lvert\theta_t\rvert$.
#
# *$u < 1$:* while the sign stays, $\lvert\theta_{t+1}\rvert + \rho = (1-u)(\lvert\theta_t\rvert + \rho)$.
# That cannot go on for ever, as the left side is at least $\rho$.
# So after finitely many steps $\lvert\theta_t\rvert \le u\rho/(1-u)$.
# If this is an equality, $\theta_{t+1} = 0$, which by the last formula happens from $\lvert\theta_0\rvert + \rho = \rho\,(1-u)^{-k}$.
# Otherwise the sign changes, and $\lvert\theta_{t+1}\rvert \le u\rho < u\rho/(1-u)$, so it changes at every later step.
# Then $\lvert\theta_t\rvert \to a$ as before, and $\lvert\theta_t\rvert = 0$ is not met again, since it would need $\lvert\theta_{t-1}\rvert = u\rho/(1-u)$.
# ````
#
# So "no convergence", the usual summary, has exceptions, and they can be met: with $u = \frac12$ and $\rho = 1$ SAM walks $7 \to 3 \to 1 \to 0$, without a rounding error, and stops.

# %%
eta, rho, steps = 0.5, 0.3, 400
u = vector(0.05, 0.5, 1, 1.5, 1.95)[:, None]
line = torch.eye(1, **real)
points = run(line, torch.full_like(u, 1.1), steps, u, normalised(rho)).squeeze(2)  # λ = 1, η = u
cycle = (u * rho / (2 - u)).squeeze(1)
# What is left of the start: 0.95⁴⁰⁰ = 1e-9.
assert distance(cycle, points[-1].abs()) < 1e-7 and torch.allclose(points[-2], -points[-1])
changes = points[51].abs() - cycle, points[50].abs() - cycle  # after 50 steps all change sign
assert torch.allclose(changes[0], (u.squeeze(1) - 1) * changes[1], rtol=0, atol=1e-13)

on_edge, _ = follow_quadratic(lambda w: SAM(w, rho=0.5, lr=2.0), line, vector(1), 5)
assert on_edge.squeeze().tolist() == [1, -2, 3, -4, 5, -6]  # u = 2
exception, _ = follow_quadratic(lambda w: SAM(w, rho=1.0, lr=0.5), line, vector(7), 6)
print("an exceptional start:", exception.squeeze().tolist())

# %% [markdown]
# **The cycle is on the edge.** SAM is un-normalised ascent with $r_t = \rho / \lVert g_t \rVert$, which grows as the gradient shrinks.
# At the two-cycle $\lVert g \rVert = \lambda a$, so $r\lambda = \rho/a = (2-u)/u$, and
#
# $$
# \eta\,(\lambda + r \lambda^2) = u\, \Big(1 + \frac{2-u}{u}\Big) = 2 .
# $$ (eq-quad-on-edge)
#
# Farther out $r_t$ is smaller, so the step is below the edge and contracts; nearer it is above and expands.
# For $\eta\lambda < 2$ no choice of $\eta$ and $\rho$ avoids this; only the exceptional starts do.
#
# A cobweb shows it: each distance is plotted against the next one, with the path as a staircase.
# The distance follows the map $\lvert\theta_{t+1}\rvert = \big\lvert (1-u)\,\lvert\theta_t\rvert - u\rho \big\rvert$.
# A ray from the origin to a point of its graph has the slope $\lvert\theta_{t+1}\rvert / \lvert\theta_t\rvert = \lvert 1 - u(1 + r_t\lambda) \rvert$, which is the factor of un-normalised ascent with the present $r_t$.
# The two-cycle is where the graph crosses the diagonal: there the slope is 1, and the factor before the bars are taken is $-1$, which is the edge.
# The graph of un-normalised ascent is itself a ray; unless it is the diagonal, it meets the diagonal at the minimum alone.

# %%
curves, orbits, grid = {}, {}, torch.linspace(0, 7.4, 400, **real)
for u, begins in ((0.5, (5.0, 7.0)), (1.4, (5.0,))):  # λ = 1 and ρ = 1
    curves[u] = ((1 - u) * grid - u).abs()
    for start in begins:
        path = run(line, vector(start), 12, u, normalised(1.0))
        path = path.abs().squeeze(1)
        assert distance(((1 - u) * path[:3] - u).abs(), path[1:4]) < 1e-14
        orbits[u, start] = path
assert orbits[0.5, 7.0][:4].tolist() == [7, 3, 1, 0]
assert all(abs(orbits[u, 5.0][-1] - u / (2 - u)) < 1e-2 for u in curves)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two cobwebs with the present distance on the horizontal axis and the next one on the vertical axis. Above, a step of one half: the graph falls from one half to zero at the distance one, then rises with slope one half. A staircase from five lands on the falling branch and closes in on its crossing with the diagonal at one third; a dotted one from seven goes over three and one to zero. Below, a step of 1.4: the graph rises with slope 0.4 from 1.4, and a staircase from five closes in on its crossing with the diagonal at 2.33."}, "figure": {"caption": "SAM on a line, for $\\lambda = \\rho = 1$: each distance to the minimum (horizontal) and the next one (vertical). Solid staircases start at 5 and end where the graph crosses the diagonal, in the two-cycle. The dotted one is the exceptional start 7, which meets the zero of the graph. Dashed: the diagonal.", "name": "fig-quad-cobweb"}}
figure, panels = plt.subplots(2, figsize=(5.5, 6.6), sharex=True)
for axes, (u, graph) in zip(panels, curves.items(), strict=True):
    axes.plot(grid.cpu(), grid.cpu(), color=QUIET, ls="--", lw=1)
    axes.plot(grid.cpu(), graph.cpu(), color=INK, ls="-", lw=1.6)
    for (own, start), path in orbits.items():
        if own == u:
            corners = path.cpu().repeat_interleave(2)
            heights = [0, *corners[2:]]
            exceptional = start == 7.0
            color, style = (COLORS[2], ":") if exceptional else (COLORS[1], "-")
            axes.plot(corners[:-1], heights, color=color, ls=style, lw=1.3 + exceptional)
    axes.plot(u / (2 - u), u / (2 - u), "o", ms=8, mfc="none", mew=2, color=COLORS[1])
    axes.set(title=f"$u = {u}$", ylabel="next distance $|\\theta_{t+1}|$")
    axes.set(xlim=(0, 7.4), ylim=(0, 4))
panels[1].set_xlabel("distance $|\\theta_t|$")
plt.show()

# %% [markdown]
# The next figure shows the edge twice, in the units of the inverse curvature: above for un-normalised ascent, which converges below it, and below for SAM, which moves on to it.
# For its upper panel gradient regularisation runs at many pairs of step and ascent, and each coordinate must shrink exactly where the theorem says so.
# For its lower panel SAM runs on a line, and its ascent $r_t \lambda$ is noted at each step.

# %%
dots = []
for k in (0.0, 0.4, 1.0, 2.5, 8.0):  # rλ = k ηλ
    u = torch.linspace(0.15, 2.25, 15, **real)
    u = u[k * u < 4.2]
    shrank = run(torch.diag(u), torch.ones_like(u), 200, 1.0, proportional(k))[-1].abs() < 1
    assert torch.equal(shrank, u + k * u**2 < 2)  # the theorem, with λ = u and η = 1
    dots.append((u.cpu(), k * u.cpu(), shrank.cpu()))
ascents = {
    u: 1 / run(line, vector(5), 16, u, normalised(1.0)).abs().squeeze(1) for u in (0.5, 0.8, 1.4)
}

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels. Above: the plane of step times curvature and ascent times curvature. A falling curve from the top left to the point two, zero separates a shaded stable region from the rest. Filled dots of converged runs lie below it and hollow ones of diverged runs above. A square lies inside, at one half and 0.71, a triangle on the curve at one, one. Below: three curves of SAM's effective ascent against the step, which start from one point near zero and settle on three dashed horizontal lines, the two higher ones after damped oscillations."}, "figure": {"caption": "The edge of stability. Above: un-normalised ascent converges in the shaded region, in units of the inverse curvature; each dot is one eigenvalue of a run of gradient regularisation (filled: the coordinate shrank). The square and the triangle are a variant of SA-SAM that comes at the end of this chapter. Below: the ascent that SAM takes, in the same units, moves on to the edge for each step size and stays there.", "name": "fig-quad-edge"}}
figure, (upper, lower) = plt.subplots(2, figsize=(5.5, 6.8))
grid = torch.linspace(0.01, 2, 400, device="cpu")
upper.fill_between(grid, 2 / grid - 1, color="#cfd4dc", alpha=0.6, linewidth=0)
upper.plot(grid, 2 / grid - 1, color=INK, label="edge")
for u, ascent, shrank in dots:
    for chosen, fill in ((shrank, COLORS[1]), (~shrank, "white")):
        upper.plot(u[chosen], ascent[chosen], "o", ms=5, mfc=fill, color=COLORS[1], ls="none")
for c, marker in ((2, "s"), (1, "^")):
    upper.plot(1 / c, c**-0.5, marker, ms=8, color=COLORS[2], label=f"$c = {c}$")
upper.set(xlim=(0, 2.4), ylim=(-0.15, 4.4))
upper.set(xlabel="step $\\eta\\lambda$", ylabel="ascent $r\\lambda$")
for u, ascent in ascents.items():
    lower.plot(ascent.cpu(), marker="o", ms=3, label=f"{u}")
    lower.axhline((2 - u) / u, color=QUIET, ls="--", lw=1)
lower.set(xlabel="step $t$", ylabel="ascent of SAM, $r_t \\lambda$", ylim=(0, 5.4))
upper.legend(loc="upper right", bbox_to_anchor=(1.02, 0.9))
lower.legend(title="$\\eta\\lambda$", loc="upper right")
plt.show()

# %% [markdown]
# (quad-cycle-section)=
# ## Normalised ascent, in any dimension
#
# Every eigenvector carries a two-cycle: {prf:ref}`quad-line` on that line.
# Which one does SAM choose?
# Bouncing hides the answer, so take it out: follow $z_t = (-1)^t\, \theta_t$.
# Since $\Phi$ is even, the step $\theta_{t+1} = \theta_t - \eta \nabla \Phi(\theta_t)$ becomes $z_{t+1} = -z_t + \eta \nabla \Phi(z_t)$, or
#
# $$
# z_{t+1} = z_t - \nabla \Psi(z_t),
# \quad
# \Psi(z) = \lVert z \rVert^2 - \eta\, \Phi(z) = \tfrac12\, z^\top (2I - \eta H)\, z - \eta\rho\, \lVert H z \rVert .
# $$ (eq-quad-psi)
#
# Gradient descent with step 1, on a function that has no tip at its minima: its tip is a *maximum*, at 0.
# Two-cycles of SAM are its critical points.
#
# ```{prf:theorem} SAM on a quadratic
# :label: quad-cycle
#
# Let $0 < \eta\beta < 2$ and $\rho > 0$, and let the eigenvalues be distinct.
#
# 1. $\Psi(z_{t+1}) \le \Psi(z_t) - \frac\eta2\, \nabla\Psi(z_t)^\top H\, \nabla\Psi(z_t)$ wherever $z_t \ne 0$.
# 2. Every trajectory that does not hit 0 exactly converges to a two-cycle $\theta = \pm a_j v_j$ with $a_j = \dfrac{\eta\lambda_j\rho}{2 - \eta\lambda_j}$.
# 3. Linearised at that cycle, with $u = \eta\lambda_j$ and $s = \lambda_k/\lambda_j$, a step multiplies the deviation along $v_j$ by $u - 1$ (of $\lvert\theta\rvert$, as before), and the component of $\theta$ along another $v_k$ by
#
#    $$
#    m_{jk} = 1 - u s - (2 - u)\, s^2 .
#    $$ (eq-quad-multiplier)
#
#    It has $\lvert m_{jk} \rvert < 1$ if and only if $s < 1$.
#    So the cycle along the *top* eigenvector is stable, and every other one is a saddle.
# 4. Almost every start, in the sense of volume, ends in the top cycle.
# ```
#
# ````{prf:proof}
# *1.* Put $w = -\nabla\Psi(z_t)$.
# The first part of $\Psi$ is quadratic, and $-\lVert Hz \rVert$ is concave, so it lies below its tangent at $z_t$:
#
# $$
# \Psi(z_t + w) \le \Psi(z_t) + \nabla\Psi(z_t)^\top w + \tfrac12\, w^\top (2I - \eta H)\, w
# = \Psi(z_t) - \tfrac\eta2\, w^\top H w .
# $$
#
# *2.* $\Psi$ is bounded below, and large far out, because $2I - \eta H$ is positive definite.
# So the $z_t$ are bounded, $\Psi(z_t)$ converges, and the sum of all $w_t^\top H w_t$ is finite.
# Hence $\nabla\Psi(z_t) \to 0$ and $z_{t+1} - z_t \to 0$.
# The origin is no limit point: near it $\lVert\nabla\Psi(z)\rVert \ge \eta\rho\lambda_d - 2 \lVert z \rVert$, since $\lVert H^2 z \rVert \ge \lambda_d \lVert Hz \rVert$.
# So every limit point is critical:
#
# $$
# (2 - \eta\lambda_k)\, z_k = \frac{\eta\rho\,\lambda_k^2}{\lVert Hz \rVert}\, z_k
# \qquad\text{in every eigendirection } k .
# $$
#
# Where $z_k \ne 0$, $\lVert Hz \rVert = \eta\rho\lambda_k^2 / (2 - \eta\lambda_k)$.
# The right side grows strictly with $\lambda_k$, so this can hold for one $k$ only: $z = \pm a_k v_k$, with $\lambda_k a_k = \lVert Hz \rVert$.
# These are $2d$ points.
# Steps that tend to zero give a connected set of limit points, so there is one.
#
# *3.* $\lVert Hz \rVert$ has no first-order change when $z$ moves from $a_j v_j$ across $v_j$.
# So across, $z_k \mapsto -(1 - \eta\lambda_k)\, z_k + \eta\rho\lambda_k^2\, z_k / (\lambda_j a_j)$, and $\eta\rho/(\lambda_j a_j) = (2 - u)/\lambda_j^2$.
# In $\theta$ the sign is turned, which is {eq}`eq-quad-multiplier`.
# It is below 1, decreases in $s > 0$, and is $-1$ at $s = 1$.
#
# *4.* For $d = 1$ this is {prf:ref}`quad-line`.
# Let $d \ge 2$.
# A trajectory that ends elsewhere either hits 0 or converges to a saddle.
# In the second case it stays near the saddle from some step on, and from there lies in the local stable manifold.
# By the stable manifold theorem the latter has a lower dimension, because one multiplier is larger than 1 in size and none has the size 1.
# (Multipliers may be zero, so this is the theorem for maps that need not be invertible.)
# Both are sets of volume zero, and so is the set of starts that reach them in $k$ steps, if the step is a local diffeomorphism outside a set of volume zero.
# Off 0 the step is analytic; with $\hat g = Hz / \lVert Hz \rVert$ its Jacobian is, but for the sign,
#
# $$
# (I - \eta H) - \frac{\eta\rho}{\lVert Hz \rVert}\, H\, (I - \hat g \hat g^\top)\, H .
# $$
#
# Near 0 the second part is large, and it has the kernel of multiples of $z$.
# So the determinant is, to leading order, $(-\eta\rho)^{d-1} \det(H)^2\, \lVert Hz \rVert^{-(d+1)}\, z^\top (I - \eta H)\, z$ where this is not zero; as the eigenvalues are distinct, $I - \eta H$ is not zero, and so the determinant is not zero everywhere.
# Space without the origin is connected, because $d \ge 2$, and an analytic function that is not zero everywhere on it is zero on a set of volume zero. ∎
# ````
#
# That most random starts end in the top cycle is {cite:t}`bartlett2023`'s result, with bounds on the rate; the proof here covers every $\eta < 2/\beta$ and gives no rate.
# The function $\Psi$ needs no condition but $\eta\beta < 2$, and its values at the critical points, $-\frac12 \eta\rho\, \lambda_j a_j$, order the cycles: the top one is the lowest.

# %%
spectrum = vector(10, 7, 4, 2, 1)
generator, shape = generator_of(p.seed), (5 + p.starts, 5)
draw = torch.randn(shape, generator=generator, dtype=torch.float64).to(p.device)
basis, starting_points = torch.linalg.qr(draw[:5]).Q, draw[5:]
H = basis * spectrum @ basis.T
eta, rho, steps = 0.15, 0.2, 300
points = run(H, starting_points, steps, eta, normalised(rho))  # (steps + 1, starts, 5)
library, _ = follow_quadratic(lambda w: SAM(w, rho=rho, lr=eta), H, starting_points[0], 60)
assert distance(points[:61, 0], library) < 1e-9

z = points * (-1.0) ** torch.arange(steps + 1, device=p.device)[:, None, None]
Psi = (z**2).sum(2) - 0.5 * eta * ((z @ H) * z).sum(2) - eta * rho * (z @ H).norm(dim=2)
d = z.diff(dim=0)
assert (Psi[1:] <= Psi[:-1] - 0.5 * eta * ((d @ H) * d).sum(2) + 1e-13).all()

# %%
a = eta * spectrum * rho / (2 - eta * spectrum)
ends = (points[-1] @ basis).abs()  # in the basis of eigenvectors
assert distance(a[:1].expand(p.starts), ends[:, 0]) < 1e-12 and ends[:, 1:].max() < 1e-12
assert distance((-0.5 * eta * rho * spectrum * a)[:1].expand(p.starts), Psi[-1]) < 1e-12
print(f"{p.starts} starts of {p.starts} end in the cycle on the top eigenvector")

# %% [markdown]
# For the multipliers we differentiate the step itself at each cycle, in the basis of eigenvectors; the diagonal is $1 - u$, of $\theta$, where $\lvert\theta\rvert$ has $u - 1$.

# %% tags=["nbval-rtol=1e-6"]
formula, measured = torch.zeros(2, 5, 5, **real)
H = torch.diag(spectrum)
for j in range(5):
    at = a[j] * torch.eye(5, **real)[j]
    measured[j] = jacrev(lambda theta: run(H, theta, 1, eta, normalised(rho))[1])(at).diagonal()
    u, s = eta * spectrum[j], spectrum / spectrum[j]
    formula[j] = 1 - u * s - (2 - u) * s**2
    formula[j, j] = 1 - u  # along the cycle, of θ itself
assert distance(formula, measured) < 1e-12
across = measured - torch.diag(measured.diagonal())
assert (across.abs().amax(1) < 1).tolist() == [True, False, False, False, False]
names = [f"{value:.0f}" for value in spectrum]
rows = dict(zip(names, measured.tolist(), strict=True))
table(["cycle on the eigenvalue", *(f"along {name}" for name in names)], rows)

# %% [markdown]
# Read the rows: in the first all entries are below 1 in size; each other row has an entry below −1 in each column to the left of its diagonal.
# A saddle is left along a *larger* curvature, alternating in sign.
#
# One trajectory in two dimensions shows both: it starts near the flat direction, passes the saddle there, and must end in the well.

# %%
H, eta, rho = torch.diag(vector(2, 4)), 0.35, 0.4
points = run(H, vector(1.5, 0.01), 60, eta, normalised(rho))
z = points * (-1.0) ** torch.arange(61, device=p.device)[:, None]
a = [eta * value * rho / (2 - eta * value) for value in (2, 4)]
assert (z[-1] - vector(0, a[1])).norm() < 1e-12

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two contour plots of the same trajectory in two dimensions. Above, contours of the loss are ellipses; the points zigzag from the right towards the minimum and end on two circles, above and below it on the vertical axis, the sharp direction. Below, contours of another function with two wells on the vertical axis, circled, and two saddles on the horizontal one, crossed; with every second point reflected, the path first runs along the horizontal axis to a saddle and then turns up into the upper well."}, "figure": {"caption": "Sixty steps of SAM with $\\lambda = 4$ (vertical) and 2 (horizontal). Above: the trajectory on the contours of the loss; circles mark the two-cycle in which it ends. Below: the same points with every second one reflected, on the contours of $\\Psi$. Now it is plain descent: first to a saddle (cross), which is the two-cycle on the flat direction, then up into a well (circle), the one on the sharp direction.", "name": "fig-quad-cycle"}}
axis = torch.linspace(-1.15, 1.15, 161, **real)
x, y = torch.meshgrid(1.5 * axis, axis, indexing="xy")
mesh = torch.stack([x, y], dim=2)
loss = 0.5 * ((mesh @ H) * mesh).sum(2)
Psi = (mesh**2).sum(2) - eta * (loss + rho * (mesh @ H).norm(dim=2))
figure, panels = plt.subplots(2, figsize=(5.5, 7.6), sharex=True)
shown = (points, loss, "$\\theta_t$ on the loss"), (z, Psi, "$z_t$ on $\\Psi$")
x, y = x.cpu(), y.cpu()
for axes, (path, height, title) in zip(panels, shown, strict=True):
    axes.contour(x, y, height.cpu(), levels=18, colors="#b4bac4", linewidths=0.8, linestyles="-")
    axes.plot(*path.T.cpu(), color=COLORS[0], lw=0.9, ls="-", marker="o", ms=3)
    axes.set(title=title, ylabel="sharp direction", aspect="equal")
    axes.grid(visible=False)
    axes.plot([0, 0], [a[1], -a[1]], "o", ms=11, mfc="none", mew=2, color=COLORS[2], ls="none")
panels[1].plot([a[0], -a[0]], [0, 0], "x", ms=9, mew=2.5, color=COLORS[2], ls="none")
panels[1].set_xlabel("flat direction")
plt.show()

# %% [markdown]
# **How far, and at what loss?** For a small step, $a \approx \frac12\, \eta \cdot \lambda\rho$: half a step along $\lambda\rho$, the gradient at the distance $\rho$.
# The loss of the cycle,
#
# $$
# \tfrac12\, \beta\, a^2 \approx \tfrac18\, \eta^2 \rho^2 \beta^3 ,
# $$ (eq-quad-height)
#
# grows with the cube of the curvature.
# SAM with constant $(\eta, \rho)$ hovers high over a sharp valley and low over a flat one.
# Hold on to that; SA-SAM will do away with it.

# %% [markdown]
# (quad-rule-section)=
# ## A step size from local smoothness
#
# SA-SAM measures the smoothness along its last step, and takes its inverse {cite:p}`sasam2024`, after {cite:t}`malitsky2020`:
#
# $$
# \begin{gathered}
# \eta_t = \min\Big\{ \frac{1}{c\,\beta_t},\ \sqrt{1 + \gamma\, \vartheta_{t-1}}\; \eta_{t-1} \Big\},
# \\
# \beta_t = \frac{\lVert g_t - g_{t-1} \rVert}{\lVert \theta_t - \theta_{t-1} \rVert},
# \qquad
# \vartheta_t = \frac{\eta_t}{\eta_{t-1}}
# \qquad (\text{paper: eqs. 5 and 6}),
# \end{gathered}
# $$ (eq-quad-rule)
#
# with $\vartheta_0 = \infty$ and $c = 2$; $\gamma = 1$ in the equation and 0.02 in the experiments.
# (Algorithm 1, line 5, prints $\vartheta_t$ under the root, which is not known until line 8: {ref}`errata <errata-sasam-index>`.)
#
# ```{prf:proposition} What the rule guarantees
# :label: quad-bound
#
# Let the gradient be $\beta$-Lipschitz (no quadratic is needed), whatever direction the steps follow.
#
# 1. $\eta_t \ge \dfrac{1}{c\beta}$ for all $t \ge 1$, as long as the weights move.
#    With a finite $\vartheta_0$, $\eta_t \ge \min\{\eta_0, 1/(c\beta)\}$.
# 2. No larger constant is true: on a line $\eta_t = 1/(c\beta)$ for all $t \ge 1$.
# 3. If $L$ is a quadratic, $\eta_t \le 1/(c\lambda_d)$ for all $t \ge 1$, as long as the iterates move.
# 4. Once the ratio of successive steps is at most $\vartheta_* = \frac12 (\gamma + \sqrt{\gamma^2 + 4})$, it stays so: 1.01005 for $\gamma = 0.02$, 1.618 for $\gamma = 1$.
# ```
#
# ```{prf:proof}
# *1.* $\lVert g_t - g_{t-1}\rVert \le \beta \lVert \theta_t - \theta_{t-1}\rVert$, so the first branch is at least $1/(c\beta)$.
# The second is infinite at $t = 1$ and at least $\eta_{t-1}$ later.
# Induction.
# (With $\vartheta_0$ finite, it starts at $\eta_0$.
# Where the weights did not move, the second branch is taken, or $\eta_{t-1}$ kept.)
#
# *2.* On a line $\beta_t = \beta$, and the minimum cannot exceed its first branch.
# *3.* For a quadratic, $g_t - g_{t-1} = H(\theta_t - \theta_{t-1})$, which is at least $\lambda_d$ times as long.
#
# *4.* $\vartheta_t \le \sqrt{1 + \gamma\vartheta_{t-1}}$, an increasing function of $\vartheta_{t-1}$ with the fixed point $\vartheta_*^2 = 1 + \gamma\vartheta_*$.
# ```
#
# **The paper says $1/\beta$** (Section 2: "lower bounded by $1/\beta$").
# For its equation 5 that is false, on a line already, by the factor of two that stands in the equation.
# It would hold with $c = 1$ and $\vartheta_0 = \infty$.
# The paper has $c = 2$ and $\vartheta_0 = \infty$.
# The release has $c = 1$ and $\vartheta_0 = 1$, so a small $\eta_0$ may grow by one percent a step and no faster.
# The third cell below shows both failures: the paper's rule on $H = \operatorname{diag}(10, 0.1)$, and the release's on a line with $\beta = 10$.
# The {ref}`errata <errata-sasam-bound>` have the correction.


# %%
def norm(rows: Tensor) -> Tensor:
    return rows.norm(dim=-1, keepdim=True)


def smoothness_adaptive(H, theta, steps, ascent, eta0=1e-2, c=2.0, gamma=1.0):
    points, sizes, growth = [theta], [torch.full_like(theta[..., :1], eta0)], math.inf
    for t in range(steps):
        if t > 0:
            moved = points[-1] - points[-2]
            smooth = norm(moved) / (c * norm(moved @ H))
            sizes.append(smooth.clamp(max=growth))
            growth = (1 + gamma * sizes[-1] / sizes[-2]).sqrt() * sizes[-1]
        g = points[-1] @ H
        points.append(points[-1] - sizes[-1] * (points[-1] + ascent(g, sizes[-1])) @ H)
    return torch.stack(points), torch.stack(sizes).squeeze(-1)


# %% [markdown]
# SA-SGD has no ascent.
# SA-SAM has the normalised one, with
#
# $$
# \rho_t = \sqrt{\eta_t}
# \qquad (\text{paper: Algorithm 1, line 6}) .
# $$ (eq-quad-radius)


# %%
def none(g, eta):
    return 0 * g


def square_root(g, eta):
    return eta.sqrt() * g / norm(g)


def adaptive(kind, **options):
    return lambda w: kind(w, **options)


H, theta, sizes = torch.diag(vector(10, 0.1)), vector(1, 1), {}
for kind, ascent in ((SASGD, none), (SASAM, square_root)):
    points, sizes[kind] = smoothness_adaptive(H, theta, 150, ascent, eta0=1e-4)
    for full in (True, False):  # the same gradients, one evaluation more
        make = adaptive(kind, eta0=1e-4, delta=1.0, full_batch=full)
        assert distance(points[:31], follow_quadratic(make, H, theta, 30)[0]) < 1e-9

# %%
beta = 10
for kind in sizes:
    assert sizes[kind][1:].min() >= 1 / (2 * beta) * (1 - 1e-12)
    assert sizes[kind][1:].max() <= 1 / (2 * 0.1) * (1 + 1e-12)
assert sizes[SASAM][1:].min() < 0.51 / beta  # the paper: at least 1 / beta
print(f"1/β is {1 / beta}; the smallest step size of SA-SAM is {sizes[SASAM][1:].min():.4f}")

grown = {}
for steps in (30, 300, 600):
    released = adaptive(SASAM, eta0=1e-4, variant="release", full_batch=True)
    _, optimizer = follow_quadratic(released, beta * line, vector(1), steps)
    grown[steps] = f"{optimizer.eta:.2e}"
    assert optimizer.eta < 0.5 / beta
print("of the release after 30, 300, 600 steps:", *grown.values())
ideal = adaptive(SASAM, eta0=1e-4, damping=1.0, full_batch=True)  # ϑ₀ = ∞
_, optimizer = follow_quadratic(ideal, beta * line, vector(1), 2)
assert abs(optimizer.eta * beta - 1) < 1e-9

# %% [markdown]
# With $\eta\beta = 1/c$ along the top eigenvector the rule stays away from gradient descent's edge by a factor of $2c$: four in the paper, two in the release.
# But not at every step.
# Where the last step went along a flat direction, $\beta_t$ is small, and $\eta_t$ may exceed $2/\beta$; the sharp direction then grows, dominates the next difference, and is noticed.

# %%
beyond = (sizes[SASGD][1:] > 2 / 10).double().mean()
assert 0.3 < beyond < 0.7 and sizes[SASGD].max() > 5 * 2 / 10

growth = [1.0]
for _ in range(2000):
    growth.append(math.sqrt(1 + 0.02 * growth[-1]))
assert abs(growth[-1] - (0.02 + math.sqrt(0.02**2 + 4)) / 2) < 1e-12
print(f"largest growth a step {growth[-1]:.5f}")

# %% [markdown]
# So about half of SA-SGD's steps on this quadratic are beyond the edge, some by more than five times; it converges all the same, and for $c = 2$ and $\gamma = 1$ it must, by Malitsky and Mishchenko's theorem.
# That theorem is about steps along the gradient.
# Nothing of it passes to SA-SAM, whose steps follow another one.
#
# (quad-floor-section)=
# ## Where SA-SAM ends
#
# On the two-cycle along $v$ with eigenvalue $\lambda$ the measured smoothness is $\lambda$, so $\eta = 1/(c\lambda)$ and $u = 1/c$ for every curvature.
# The radius is $1/\sqrt{c\lambda}$.
# Put both into {eq}`eq-quad-cycle`.
#
# ```{prf:theorem} SA-SAM on a quadratic
# :label: quad-floor
#
# Let $c > \frac12$, $\gamma > 0$, $\vartheta_0 = \infty$, and for claim 3 let $\lambda_1$ be simple.
#
# 1. For each eigenvector $v$ of $H$, with eigenvalue $\lambda$, SA-SAM has the two-cycle $\theta = \pm a v$,
#
#    $$
#    \eta = \frac{1}{c\lambda}, \qquad \rho = \frac{1}{\sqrt{c\lambda}}, \qquad a = \frac{\rho}{2c - 1}, \qquad
#    L = \frac{1}{2c\,(2c-1)^2} .
#    $$ (eq-quad-floor)
#
#    The loss does not depend on $\lambda$: it is **1/36** for $c = 2$ and 1/2 for $c = 1$.
# 2. On a line, with $\eta_0 \lambda \ne 1$, every start but countably many ends in it.
# 3. Along another eigenvector, of relative curvature $s = \lambda_k / \lambda$, a step multiplies by
#
#    $$
#    m = 1 - \frac{s + (2c - 1)\, s^2}{c} ,
#    $$ (eq-quad-floor-multiplier)
#
#    so the cycle on the top eigenvector is stable, and every other one is a saddle.
# 4. At the cycle, the gradient that SA-SAM follows is taken at a loss of $2c/(2c-1)^2$: the ascent raises the loss by $\dfrac{2c + 1}{2c\,(2c - 1)}$.
# ```
#
# ````{prf:proof}
# *1.* $\theta_t - \theta_{t-1}$ is a multiple of $v$, so $\beta_t = \lambda$.
# As $\vartheta = 1$ and $\gamma > 0$, the second branch is the larger one.
# With $u = 1/c$, $a = u\rho/(2-u) = \rho/(2c-1)$, and $\frac12 \lambda a^2 = \frac12 \lambda \cdot \frac{1}{c\lambda} \cdot \frac{1}{(2c-1)^2}$.
#
# *2.* On a line $\beta_t = \lambda$ always.
# Since $\vartheta_0 = \infty$ gives $\eta_1 = 1/(c\lambda)$ at once, and the second branch never falls below, $\eta_t$ and $\rho_t$ are constant from $t = 1$ on.
# {prf:ref}`quad-line` applies from there.
# The first step is linear with a slope $1 - \eta_0\lambda \ne 0$ on either side of 0, so countably many $\theta_1$ come from countably many $\theta_0$.
#
# *3.* With $\Delta = \theta_t - \theta_{t-1}$, $\beta_t^2 = \sum_k \lambda_k^2 \Delta_k^2 \,/ \sum_k \Delta_k^2$, which has no first-order change at $\Delta = \pm 2 a v$.
# Near the cycle the first branch is strictly the smaller one, so $\eta_t$ depends on $\beta_t$ alone.
# Hence $\eta_t$ and $\rho_t$ are constant to first order, and {eq}`eq-quad-multiplier` holds with $u = 1/c$.
#
# *4.* The perturbed point is $(a + \rho)\, v = \frac{2c}{2c-1}\, \rho\, v$.
# Its loss is $\frac12 \lambda\, \frac{4c^2}{(2c-1)^2} \cdot \frac1{c\lambda} = \frac{2c}{(2c-1)^2}$; subtract {eq}`eq-quad-floor`.
# ````
#
# For $c \le \frac12$ there is no cycle: $u \ge 2$, and the line diverges.
# That all starts in several dimensions end in the top cycle is not proved; $\Psi$ changes with $\eta_t$.
# We try it.


# %% tags=["nbval-rtol=1e-6"]
def floor(c: float) -> float:
    return 1 / (2 * c * (2 * c - 1) ** 2)


for c in (1.0, 2.0):
    for gamma in (0.02, 1.0):
        points, sizes = smoothness_adaptive(
            basis * spectrum @ basis.T, starting_points, 400, square_root, c=c, gamma=gamma
        )
        # Across the cycle the slowest multiplier is 0.935, to the power of 400 2e-12.
        losses = 0.5 * ((points[-10:] @ basis) ** 2 * spectrum).sum(2)
        assert (losses / floor(c) - 1).abs().max() < 1e-9
        assert (points[-1] @ basis)[:, 1:].abs().max() < 1e-9
        assert (sizes[-1] * c * spectrum[0] - 1).abs().max() < 1e-9
    print(f"c = {c:.0f}: {2 * p.starts} runs end at the loss {losses.max():.6f}")

# %% [markdown]
# The library, on a line.
# The release has $c = 1$, starts its growth at once, takes $\rho_t = \sqrt{\eta_{t-1}}$, and adds $10^{-8}$ to the step; of these only $c$ matters for where it ends.

# %%
variants = {
    "paper": (2.0, {}),
    "paper, c = 1.5": (1.5, {"damping": 1.5}),
    "paper, c = 1": (1.0, {"damping": 1.0}),
    "release": (1.0, {"variant": "release"}),
}
rows, curvature = {}, 3
for name, (_, options) in variants.items():
    make = adaptive(SASAM, eta0=0.3, full_batch=True, **options)
    points, optimizer = follow_quadratic(make, curvature * line, vector(1.1), 60)
    assert points[-1] * points[-2] < 0
    a, rho = points[-1].abs().item(), optimizer.rho
    low, high = 0.5 * curvature * a**2, 0.5 * curvature * (a + rho) ** 2
    rows[name] = optimizer.eta * curvature, a / rho, low, high, high - low

# %% tags=["nbval-rtol=1e-6"]
for name, (c, _) in variants.items():
    raised = (2 * c + 1) / (2 * c * (2 * c - 1))
    theory = 1 / c, 1 / (2 * c - 1), floor(c), 2 * c / (2 * c - 1) ** 2, raised
    assert distance(vector(*theory), vector(*rows[name])) < 1e-6  # the release's 1e-8 is neglected
columns = ["η λ", "|θ| / ρ", "loss", "loss at the gradient", "raised by"]
table(["on a line, λ = 3", *columns], rows, spec=".5f")

# %% [markdown]
# **An easy mistake.** The raise is not $\frac12 \rho^2 \lambda = 1/(2c)$.
# That is what the ascent adds at the minimum, where SA-SAM never is.
# On the cycle the slope comes on top, $\rho\, \lVert g \rVert$: for $c = 2$ the two make $5/12$, not $1/4$.
#
# Two more statements have exceptions, whatever may be true of almost all starts (on a line that is {prf:ref}`quad-floor`; in more dimensions it is not proved).
# "SA-SAM does not converge on a quadratic": it does, if its first step ends on one of the exceptional points of {prf:ref}`quad-line`.
# "It locks on the *top* eigenvector": a start without a component there stays on another one, at the same loss.
# Both exceptions run:

# %%
H = torch.diag(vector(4, 1))
points, _ = follow_quadratic(adaptive(SASAM, eta0=1e-2, full_batch=True), H, vector(0, 1), 60)
assert points[-1, 0] == 0 and abs(0.5 * points[-1, 1] ** 2 - floor(2)) < 1e-12

# λ = 1/2: η = 1 and ρ = 1 from the second step on, u = 1/2. The first has η = 1, so ρ₀ = 1 too.
make = adaptive(SASAM, eta0=1.0, full_batch=True)
points, _ = follow_quadratic(make, 0.5 * line, vector(7), 6)
assert points.squeeze().tolist() == [7, 3, 1, 0, 0, 0, 0]

# %% [markdown]
# The last figure sets the methods side by side, by their distance to the minimum on one quadratic and by the loss of their two-cycle on many.

# %%
H, theta = torch.diag(vector(4, 1)), vector(1, 1)
paths = {
    "gradient descent": run(H, theta, 60, 0.2, proportional(0.0)),
    "gradient regularisation": run(H, theta, 60, 0.2, proportional(0.2)),
    "SAM": run(H, theta, 60, 0.2, normalised(0.3)),
    "SA-SAM, c = 2": smoothness_adaptive(H, theta, 60, square_root)[0],
}
losses = []
for make in (adaptive(SAM, rho=0.3, lr=0.1), adaptive(SASAM, full_batch=True)):
    for curvature in (2.0, 4.5, 12.0):
        last = follow_quadratic(make, curvature * line, vector(0.5), 40)[0][-1]
        losses.append((curvature, 0.5 * curvature * last.item() ** 2))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels. Above: distance to the minimum against the step, on a logarithmic axis. Gradient descent and gradient regularisation fall without end; SAM and SA-SAM fall a little and stay on a level near one fifth and one eighth. Below: loss of the two-cycle against the curvature on two logarithmic axes. SAM's rises with the cube of the curvature and then faster, to a dotted vertical line. The two curves of SA-SAM are horizontal, at one half and at one thirty-sixth. Dots of measured runs lie on the curves."}, "figure": {"caption": "Above: distance to the minimum on $H = \\mathrm{diag}(4, 1)$, for step size 0.2 (SA-SAM chooses its own), $\\rho = 0.3$, $r = 0.2$. Below: the loss of the final two-cycle against the curvature; curves are the theorems, dots are runs of the library after 40 steps. For SAM $\\eta = 0.1$ and $\\rho = 0.3$, and the dotted line is gradient descent's edge.", "name": "fig-quad-distance"}}
figure, (upper, lower) = plt.subplots(2, figsize=(5.5, 6.8))
for (name, path), style in zip(paths.items(), (":", "--", "-", "-."), strict=True):
    upper.semilogy(path.norm(dim=1).cpu(), label=name, ls=style)
upper.set(xlabel="step $t$", ylabel="distance to the minimum", ylim=(1e-9, 3))
upper.legend(loc="lower left")
grid = torch.logspace(-0.5, math.log10(19.7), 200, dtype=torch.float64, device="cpu")
a = 0.1 * grid * 0.3 / (2 - 0.1 * grid)
lower.loglog(grid, 0.5 * grid * a**2, color=COLORS[2], ls="-")
lower.text(2.6, 8e-4, "SAM", color=INK)
for c, style, value in ((1.0, "--", "1/2"), (2.0, "-.", "1/36")):
    lower.loglog(grid, torch.full_like(grid, floor(c)), color=COLORS[3], ls=style)
    lower.text(0.33, 1.5 * floor(c), f"SA-SAM, $c = {c:.0f}$: loss {value}", color=INK)
lower.plot(*zip(*losses, strict=True), "o", ms=5, color=INK)
lower.axvline(20, color=QUIET, ls=":", lw=1.2)
lower.set(xlabel="curvature $\\lambda$", ylabel="loss of the two-cycle", ylim=(1e-6, 10))
plt.show()

# %% [markdown]
# The lower panel is the chapter in one picture.
# SAM's height tells sharp from flat.
# SA-SAM's does not: whatever the curvature, it hovers at 1/36, and looks from 4/9.
# On a quadratic no preference for flat valleys comes from that height.
# Nor, once it has settled, does it come from an edge.
# (On the way $\eta_t$ may pass $2/\beta$; what that does in a valley of limited depth is not settled here.)
# A constant step size has one: from almost every start gradient descent and SAM leave every valley with $\beta > 2/\eta$ (along $v_1$ a step of SAM multiplies by $1 - \eta\beta - \eta\rho\beta^2 / \lVert H\theta \rVert < -1$).
# Under SA-SAM's rule the step size follows the curvature, $\eta\beta = 1/c$ on the cycle of every valley, and the cycle is stable whatever $\beta$ is.
# **Under this rule every quadratic valley with a simple largest eigenvalue, however sharp, has a stable cycle, which holds iterates near it.**
# That is what {prf:ref}`quad-floor` proves, and on a line every start but countably many ends there.
# On another loss the fixed height has to be compared with the depth of the valley: one that is shallower may hold nothing, sharp or flat.
# The paper conjectures (Section 2) that its rule regularises sharpness.
# Within one quadratic no method could show that, because it is as sharp at every point as at every other.
# Between quadratics a method could, by leaving the sharp ones; SA-SAM, once it has settled, does not, so this mechanism is not there.
# Others need a curvature that changes, and about them the conjecture is untouched.
# One thing that may do good in a network is the radius, which is large there ({doc}`chapter 7 <07_one_step_nine_ways>`).
# {prf:ref}`quad-floor` suggests a control: SAM with the constants $\eta = 1/(c\beta)$ and $\rho = 1/\sqrt{c\beta}$ has the same two-cycle, so a run of it beside SA-SAM tells the radius from the rule.
# Others are the bouncing where the curvature changes along a valley, and a step size that varies.
#
# (quad-units)=
# ## The unit of the radius
#
# Where does the constant loss come from?
# $\eta$ has the unit $\theta^2/L$, so $\sqrt\eta$ has $\theta/\sqrt L$, and a radius should have $\theta$.
# Multiply the loss by $\xi$, as a change from a mean to a sum over the batch does:
#
# | | $\eta$ | radius | $\theta_t$ |
# |---|---|---|---|
# | SAM, $\eta$ divided by $\xi$ | $\eta/\xi$ | $\rho$ | the same |
# | SA-SGD, $\eta_0$ divided by $\xi$ | $\eta_t/\xi$ | – | the same |
# | SA-SAM, $\eta_0$ divided by $\xi$ | $\eta_t/\xi$ at the cycle | $\rho_t/\sqrt\xi$ | at the cycle, divided by $\sqrt\xi$ |
#
# So the floor is 1/36 of whatever the scaled loss is measured in: in the unit of the original one, $1/(36\xi)$.
#
# A radius with the right unit is easily had, and is a variant of ours.
# Take *un-normalised* ascent, whose strength has the unit of a step size, and the geometric mean $\sqrt{\eta_t/\beta}$ of two quantities that have it.
# (The paper refers for its radius to a theorem of {cite:t}`andriushchenko2022`, whose text we did not have; the variant is no reading of it.)
# With $\beta_t$ for $\beta$, and $\beta_t = 1/(c\eta_t)$ where the first branch decides,
#
# $$
# \varepsilon_t = \rho_t\, g_t, \qquad \rho_t = \sqrt{\eta_t / \beta_t} = \sqrt c\; \eta_t .
# $$ (eq-quad-repair)
#
# On a line $\eta(\lambda + r\lambda^2) = \frac1c + \frac{\sqrt c}{c^2} = c^{-1} + c^{-3/2}$, to be compared with 2.
# For $c = 2$ it is 0.854: well inside the edge, and on a line the variant converges.
# For $c = 1$, the release's constant, it is exactly 2: the marginal case.
# They are the square and the triangle in the {ref}`figure of the edge <fig-quad-edge>`.
# In several dimensions $\eta_t$ may pass the edge now and then, as it does for SA-SGD above, and we have no theorem.

# %%
H, theta, factors = torch.diag(vector(3, 0.5)), vector(1, -0.5), (0.01, 1.0, 100.0)
sam = [run(k * H, theta, 40, 0.2 / k, normalised(0.3)) for k in factors]
assert max(distance(sam[1], other) for other in sam) < 1e-12
for xi in factors:
    last = smoothness_adaptive(xi * H, theta, 300, square_root, eta0=1e-2 / xi)[0][-1]
    assert abs(0.5 * last @ H @ last * xi * 36 - 1) < 1e-9

options = {"rho_rule": "sqrt_eta_over_beta", "ascent": "gradient", "full_batch": True}
for c in (1.0, 2.0):
    make = adaptive(SASAM, eta0=1e-2, damping=c, **options)
    points, _ = follow_quadratic(make, 3 * line, vector(1), 12)
    factor = 1 - 1 / c - c**-1.5
    assert torch.allclose(points[5:] / points[4:-1], vector(factor), rtol=0, atol=1e-9)
    print(f"un-normalised ascent, c = {c:.0f}: each step multiplies by {factor:.4f}")

# %% [markdown]
# (quad-balls)=
# ## Other balls
#
# Two relatives of SAM change the shape of the ball.
# Do they change the end?
#
# **ASAM** {cite:p}`kwon2021` measures the ball in units of the weights, $\varepsilon = \rho\, T^2 g / \lVert T g \rVert$.
# Take $T = |\theta|$, the popular form.
# On a line $\varepsilon = \rho\, |\theta| \operatorname{sign}(g)$.
# If the minimum is at $\theta = 0$, this is *un-normalised*: $\theta_{t+1} = \big(1 - u (1 + \rho)\big)\, \theta_t$, which converges for $u(1 + \rho) < 2$.
# But that is an accident of the origin.
# With the minimum at $\theta^\star > 0$, the same condition and $\rho < 1$, there is a two-cycle between $\theta^\star + b_+$ and $\theta^\star - b_-$.
# It is stable: the step has the slope $1 - u(1 + \rho)$ on the far side and $1 - u(1 - \rho)$ on the near one, so two steps multiply a deviation by $(1 - u)^2 - u^2 \rho^2$, which is below one in size when $u(1 + \rho) < 2$ and $\rho < 1$.
# (For $\rho \ge 1$ the formula's $b_+$ is not positive, and there is none of this kind.)
# From $b_- = u\rho\,(\theta^\star + b_+) - (1-u)\, b_+$ and $b_+ = u\rho\,(\theta^\star - b_-) - (1-u)\, b_-$,
#
# $$
# b_\pm = \frac{u\, \rho\, \theta^\star\, (1 \mp \rho)}{2 - u + u\rho^2} .
# $$ (eq-quad-asam)
#
# To first order in $\rho$ it is SAM's cycle with the radius $\rho\,\theta^\star$.
# The next term shifts it towards the origin, because the ball is larger on the far side.
#
# **Eigen-SAM** {cite:p}`luo2024` turns the ascent towards the top eigenvector $v_1$, with a weight $\kappa$ (its `alpha`): $\varepsilon \propto \hat g + \kappa\, \operatorname{sign}(g^\top v_1)\, \big(v_1 - (v_1^\top \hat g)\, \hat g\big)$, $\hat g = g / \lVert g \rVert$.
# On SAM's final cycle $\hat g = \pm v_1$, and the addition vanishes: the same cycle, the same height.
# What changes is the way there, and for a large $\kappa$ whether the cycle is stable.
# Close to it, the part of $\hat g$ across $v_1$ is multiplied by $1 - \kappa$, and so is the ascent's part of {eq}`eq-quad-multiplier`:
#
# $$
# m_{1k} = 1 - u s - (1 - \kappa)(2 - u)\, s^2 .
# $$ (eq-quad-eigen)
#
# For $\kappa$ below $1 + u / ((2 - u)\, s)$, with $s = \lambda_2 / \lambda_1$, all multipliers stay between −1 and 1 and the cycle is stable; above it the one along $v_2$ exceeds one, and Eigen-SAM leaves the cycle.
# And the other cycles are not even saddles: the step jumps there.
# At $v_j$ the smallest component of $g$ along $v_1$ is answered by an ascent of size $\rho\kappa / \sqrt{1 + \kappa^2}$: one step does what takes SAM many.

# %%
shifted, u, rho = 1.7, 0.6, 0.2
asam = adaptive(ASAM, rho=rho, eta=0.0, scaled="all", lr=u)
points, _ = follow_quadratic(asam, line, vector(1.0), 60, minimum=shifted)
above, below = (u * rho * shifted * (1 - sign * rho) / (2 - u + u * rho**2) for sign in (1, -1))
last = sorted(points[-2:].squeeze().tolist())
assert distance(vector(shifted - below, shifted + above), vector(*last)) < 1e-12
centred, _ = follow_quadratic(asam, line, vector(1.0), 9)
assert torch.allclose(centred[1:] / centred[:-1], vector(1 - u * (1 + rho)), rtol=0, atol=1e-14)

# %%
H, eta, rho, kappa, small = torch.diag(vector(4, 2)), 0.2, 0.3, 0.5, 1e-6
a = eta * vector(4, 2) * rho / (2 - eta * vector(4, 2))
eigen = adaptive(EigenSAM, rho=rho, alpha=kappa, iterations=60, lr=eta)
near = vector(a[0], small), vector(small, a[1])  # the top cycle, and the saddle
(_, top), (_, saddle) = (follow_quadratic(eigen, H, at, 1)[0] for at in near)
u, s = eta * 4, 0.5
# The deviation from the cycle is 1e-6, and its square is neglected.
assert abs(top[1] / small - (1 - u * s - (1 - kappa) * (2 - u) * s**2)) < 1e-5
assert abs(saddle[0] + eta * 4 * rho * kappa / math.sqrt(1 + kappa**2)) < 1e-5
sam = run(H, near[1], 1, eta, normalised(rho))[1]
print(f"along the sharp direction after one step from the saddle: Eigen-SAM {saddle[0]:.4f},")
print(f"SAM {sam[0] / small:.2f} times what it was")

# %% [markdown]
# ## Deviations, and what failed
#
# * *No global theorem for SA-SAM in several dimensions.* Existence of the cycles, their stability and the line are proved; that every run ends in the top one is what we saw, from every start tried and two values each of $c$ and $\gamma$.
#   The descent of $\Psi$ needs a constant $\eta$ and $\rho$.
# * *Full batches, no momentum, no weight decay.* With mini-batches the noise is one more reason not to settle, and the two-cycle is a cloud.
# * *Equal eigenvalues.* A step multiplies the component in each eigenspace by a number, so that its direction never changes but for the sign.
#   With the directions of the start's components for the $v_j$, {prf:ref}`quad-cycle` holds on their span; against rotations within an eigenspace a cycle is only neutral; of {prf:ref}`quad-floor`, claim 3 needs a simple largest one.
# * *Flat directions.* Where $\lambda_k = 0$ nothing moves: the multiplier is 1.
#   The theorems hold on the range of $H$.
# * *Nothing here is about finding flat minima.* The curvature is constant.
#   On other losses the bouncing couples to the change of curvature along the valley, which is where {cite:t}`bartlett2023` find SAM's drift towards flat ones.
#
# ## Exercises
#
# **1.** What does SAM do on a line at $\eta\lambda = 1$, and what does that say about the release of SA-SAM?
#
# ````{dropdown} Solution
# $u = 1$: $\theta_{t+1} = -\rho\operatorname{sign}(\theta_t)$.
# The cycle $a = \rho$ is reached in one step, from any start but 0.
# The release has $c = 1$, hence $u = 1$: on a line it jumps between $\pm\rho = \pm 1/\sqrt\lambda$ as soon as $\eta$ has grown to $1/\lambda$, and its loss is $\frac12\lambda\rho^2 = \frac12$.
# ````
#
# **2.** Let $\eta_t \to 0$ with $\sum \eta_t = \infty$, and $\rho$ constant.
# Does SAM converge on a line?
#
# ````{dropdown} Solution
# Yes.
# Once $u_t \le \frac12$: where the sign stays, $\lvert\theta\rvert + \rho$ is multiplied by $1 - u_t$, so $\lvert\theta\rvert$ falls by at least $u_t \rho$; since the $u_t$ have an infinite sum, the sign must change (or 0 be hit).
# When it does, $\lvert\theta_{t+1}\rvert \le u_t\rho$.
# Until the next change $\lvert\theta\rvert$ only falls, so it is at most $\rho$ times a $u_t$ that tends to zero.
# A learning-rate schedule thus does what a constant step cannot.
# SA-SAM has none, and by {prf:ref}`quad-bound` its step size is bounded below.
# ````
#
# **3.** SAM with the maximum norm, $p = \infty$, has $\varepsilon = \rho \operatorname{sign}(g)$.
# Where does it end on a diagonal $H$?
#
# ````{dropdown} Solution
# The coordinates decouple, and each is SAM on a line.
# So every coordinate ends in a two-cycle of its own, $a_k = \eta\lambda_k\rho / (2 - \eta\lambda_k)$, and not the top one alone.
# The choice of the top eigenvector is the work of the common denominator $\lVert g \rVert$.
# ````
#
# **4.** RSAM {cite:p}`renyi2025` for $\alpha > 1$ is SAM with the radius $\mu R / \lVert g \rVert$, for a weight $\mu$, and $R = 1$ on a line.
# Find its two-cycle and when it is stable.
#
# ````{dropdown} Solution
# $\theta_{t+1} = (1 - u)\,\theta_t - \eta\mu / \theta_t$.
# A two-cycle has $(2 - u)\, a = \eta\mu/a$, so $a^2 = \eta\mu/(2 - u)$, for $u < 2$.
# The derivative of the step there is $1 - u + \eta\mu/a^2 = 3 - 2u$.
# So the cycle is stable for $1 < u < 2$ only.
# For the small steps that one uses, $u < 1$, it is unstable: a radius that grows without bound as $g \to 0$ throws the weights out again.
# The library's `max_radius` caps it.
# ````
#
# ## How to cite
#
# Cite the book as `CITATION.cff` says, and {prf:ref}`quad-floor` as "SA-SAM's floor, chapter on steps on a quadratic".
# The two-cycle of SAM in several dimensions, and that most starts end in it, belong to {cite:t}`bartlett2023`; the modified edge to {cite:t}`agarwala2023`; the step-size rule to {cite:t}`malitsky2020`, and its use in SAM to {cite:t}`sasam2024`.
# The descent of $\Psi$ for all $\eta\beta < 2$ is proved here; we make no claim that nobody did it before.
