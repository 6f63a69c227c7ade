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
# (chapter-one-step)=
# # One step, nine ways
#
# **Question.** From the same weights and the same batch, what does one step of each of nine methods do, and how different are they?
#
# **Answer.** Six of the nine take their gradient at some $\theta + \varepsilon$, and gradient regularisation does so to first order.
# For four of the seven $\varepsilon$ is along the gradient, and only its length differs.
# RSAM's published weight gives a radius 27 times SAM's here, and elsewhere another ratio.
#
# **Time.** Reading: about 50 minutes; running: under half a minute on two cores.
#
# **You need:** the gradient and the Hessian of a loss, and Taylor's theorem.
#
# What this chapter finds is proved or computed where it stands, so there are no verdicts: a cell whose assertion fails stops the notebook.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke or laptop
seed = 0  # draws the weights and the images
samples = None  # images; None: the profile's own number
device = "cpu"  # cpu or cuda; auto: a GPU where there is one
store = None  # folder for new records; this chapter makes none

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import batch_closure, distance, follow_quadratic, setup, table, take_steps

p = setup(
    globals(),
    {
        "smoke": {"samples": 32, "networks": 1},
        "laptop": {"samples": 64, "networks": 5},
    },
    allowed=["seed", "samples"],
    threads=1,
)

import math
from collections import OrderedDict
from copy import deepcopy

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from paperkit import estimators, plotting
from paperkit.bounds.renyi import regularizer_descent
from paperkit.curvature import dense_gauss_newton
from paperkit.experiments.studies import curvature_blocks as study
from paperkit.linearize import linearize
from paperkit.optim import ASAM, IGSAM, RSAM, SAM, SASAM, SASGD, EigenSAM, GradientRegularization

real = {"dtype": torch.float64, "device": p.device}

# %% [markdown]
# A sharpness-aware method looks at the loss somewhere else before it moves.
# It goes to $\theta + \varepsilon$, takes the gradient there, comes back, and follows it; or it follows what this gradient is to first order, and stays at $\theta$, as gradient regularisation does here.
# The methods differ in $\varepsilon$, and each paper describes it in a notation of its own.
#
# We take one step of nine methods on one small network.
# Each is derived, written in about ten lines, and compared with what `paperkit.optim` does.
#
# **Symbols.** They are those of the {doc}`notation page <../book/notation>`.
# The step size is $\eta$, a radius $\rho$, the weight of a penalty $\mu$; $\alpha$ is the order of an entropy and nothing else.
# Where a paper uses one of these letters for another thing, we rename it and say so.
# Some letters are those of {doc}`chapter 6 <06_steps_on_a_quadratic>`: $c$ damps SA-SAM's step size, $\gamma$ the growth of it, and $\vartheta_t$ is the ratio of two successive step sizes; $\kappa$ is Eigen-SAM's weight.
# These letters have a meaning of their own here:
#
# * $p$ and $q$, the exponents of a norm and of its dual;
# * $T$ and $t$ for ASAM's scaling, and $\chi$ for a cosine in Eigen-SAM;
# * $\tau$, the distance over which gradients are subtracted;
# * $R(g)$ for RSAM's ratio, and $\nu$ for IGSAM's damping;
# * $R_i$ and $s_{irt}$ in IGSAM, which are those of {doc}`chapter 5 <05_one_linearization>`.
#
# **Computed here.** All arithmetic is in float64.
#
# | method | perturbation | in the paper | here |
# |---|---|---|---|
# | gradient descent | none | – | {eq}`eq-step-sgd` |
# | SAM {cite:p}`foret2021` | along $g$ | SA-SAM, eqs. 1 and 2 | {eq}`eq-step-sam` |
# | ASAM {cite:p}`kwon2021` | tilted to large weights | – | {eq}`eq-step-asam` |
# | Eigen-SAM {cite:p}`luo2024` | tilted to the top eigenvector | – | {eq}`eq-step-eigen` |
# | gradient regularisation | along $g$, to first order | – | {eq}`eq-step-gr` |
# | RSAM {cite:p}`renyi2025` | along $g$ | Rényi, eqs. 10 to 12, Algorithm 2 | {eq}`eq-step-rsam` |
# | IGSAM {cite:p}`igs2022` | along the natural gradient | IGS, eqs. 12 and 13 | {eq}`eq-step-igsam` |
# | SA-SAM {cite:p}`sasam2024` | along $g$ | SA-SAM, eqs. 2 and 5, Algorithm 1 | {eq}`eq-step-sasam` |
# | SA-SGD {cite:p}`malitsky2020` | none | SA-SAM, Section 3 | {eq}`eq-step-sasam` |
#
# The papers of the third column are the four that this book audits.
# For the others we derive the equation and give no number.
#
# (step-network)=
# ## The weights, the batch
#
# The network has two convolutions with batch normalisation and tanh, and a linear head, and it reads real 8 × 8 digits.
# The normalisation is frozen at the statistics of the batch, so the loss $L$ is one smooth function of $d = 286$ parameters.
# We write them as one vector $\theta$, so that an equation reads in code as it does in print.


# %%
def network_and_batch(samples: int, seed: int):
    inputs, targets = study.digits_batch(samples, seed, p.device)
    torch.manual_seed(seed)
    layers = {"stem": nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)}
    layers |= {"norm1": nn.BatchNorm2d(4), "tanh1": nn.Tanh()}
    layers |= {"conv": nn.Conv2d(4, 4, 2, stride=2, bias=False)}
    layers |= {"norm2": nn.BatchNorm2d(4), "tanh2": nn.Tanh()}
    layers |= {"flat": nn.Flatten(), "head": nn.Linear(16, 10)}
    model = nn.Sequential(OrderedDict(layers)).double().to(p.device)
    model(inputs)  # in training mode: the normalisations meet their statistics
    return model.eval(), inputs, targets


model, inputs, targets = network_and_batch(p.samples, p.seed)


def split(vector: Tensor) -> dict[str, Tensor]:
    parts = vector.split([q.numel() for q in model.parameters()])
    named = zip(model.named_parameters(), parts, strict=True)
    return {name: part.view(q.shape) for (name, q), part in named}


# %% [markdown]
# At random weights the loss says little about what training meets.
# So we first take 100 steps of gradient descent, which is the first of the nine ways: each step follows the gradient $g$ of the loss.
#
# $$
# \theta \leftarrow \theta - \eta\, g, \qquad g = \nabla L(\theta), \qquad \eta = 0.2 .
# $$ (eq-step-sgd)
#
# We keep the last point but one, $\theta_-$, because the smoothness-adaptive methods ask for it.


# %%
def loss_of(network: nn.Module, inputs: Tensor, targets: Tensor):
    def loss(theta: Tensor) -> Tensor:
        outputs = functional_call(network, split(theta), (inputs,))
        return functional.cross_entropy(outputs, targets)

    return loss


loss = loss_of(model, inputs, targets)
gradient = grad(loss)


eta, theta = 0.2, parameters_to_vector(model.parameters()).detach()
for _ in range(100):
    theta_before, theta = theta, theta - eta * gradient(theta)
vector_to_parameters(theta.clone(), model.parameters())

# %% [markdown]
# From here on every step starts at this $\theta$.
# To hold a step of ours against the library, `agree` lets the library's optimizer step from the same weights on the same batch.
# It asserts that the result is ours, up to 1e-12 of the step's *length* unless another tolerance is named.
# The length of $\theta$ is up to two hundred times as large, and would make a weaker test.
#
# The cell also computes the Hessian $H$, with its eigenvalues, by differentiating twice; `v_top` is its top eigenvector.


# %% tags=["hide-input"]
def agree(name: str, ours: Tensor, make, tolerance: float = 1e-12):
    """Assert that the library takes our step, up to a part of the step's length."""
    taken = take_steps(make, model, inputs, targets)
    difference = float((ours - taken.weights).norm() / (ours - theta).norm())
    assert difference < tolerance, f"{name}: {difference}"
    return taken


def using(kind, **options):
    """Say how to build an optimizer of the library around a network."""

    def make(network: nn.Module):
        own = {"model": network} if kind is IGSAM else {}
        return kind(network.parameters(), lr=eta, log=True, **own, **options)

    return make


# %% tags=["nbval-rtol=1e-6"]
def hessian(loss, theta: Tensor) -> Tensor:
    product = lambda v: jvp(grad(loss), (theta,), (v,))[1]  # noqa: E731
    return vmap(product)(torch.eye(len(theta), **real))


g, H = gradient(theta), hessian(loss, theta)
(eigenvalues, eigenvectors), unit_g = torch.linalg.eigh(H), g / g.norm()
v_top, epsilon = eigenvectors[:, -1], {"SGD": 0 * g}
steps = {"SGD": agree("SGD", theta - eta * g, lambda m: torch.optim.SGD(m.parameters(), lr=eta))}
start = {"L": loss(theta), "‖θ‖": theta.norm(), "‖g‖": g.norm()}
start |= {"largest eigenvalue": eigenvalues[-1], "smallest": eigenvalues[0]}
start["|cos(g, top eigenvector)|"] = abs(unit_g @ v_top)
table(["at θ", "value"], start, spec=".5f")

# %% [markdown]
# (step-sam)=
# ## SAM: the worst point of a ball
#
# A sharp place is one where a small change of the weights can raise the loss much.
# So SAM {cite:p}`foret2021` lowers the worst loss in a ball, $\max_{\lVert\varepsilon\rVert_p \le \rho} L(\theta + \varepsilon)$.
# To first order in $\varepsilon$ the inner problem is linear: maximise $g^\top\varepsilon$ over the ball.
# Hölder's inequality solves it.
# With the conjugate exponent $q$, $\frac1p + \frac1q = 1$, it says $g^\top\varepsilon \le \lVert g\rVert_q \lVert\varepsilon\rVert_p$.
# For $1 < p < \infty$ the two sides are equal if and only if the signs agree and $|\varepsilon_j|^p \propto |g_j|^q$.
# Since $q / p = q - 1$, the worst $\varepsilon$ has entries in proportion to $|g_j|^{q-1}$, and the step follows the gradient there:
#
# $$
# \varepsilon = \rho\, \frac{\operatorname{sign}(g)\, |g|^{q-1}}{\lVert g \rVert_q^{\,q-1}},
# \quad
# \theta \leftarrow \theta - \eta\, \nabla L(\theta + \varepsilon)
# \quad (\text{SA-SAM paper: eqs. 1 and 2}).
# $$ (eq-step-sam)
#
# The denominator gives $\varepsilon$ the length $\rho$, because $\lVert\, |g|^{q-1} \rVert_p = \lVert g\rVert_q^{q/p}$.
# For $p = 2$ this is $\rho\, g / \lVert g\rVert$, and in the limit $p = \infty$ it is $\rho \operatorname{sign}(g)$.
# The SA-SAM paper states the ball for every $p$ and prints one direction, that of $p = 2$.
#
# One term is left out on purpose.
# The derivative of $L(\theta + \varepsilon(\theta))$ has another part, through $\varepsilon(\theta)$.
# SAM holds $\varepsilon$ fixed, and so do ASAM, Eigen-SAM, RSAM as printed and SA-SAM.
# The IGS paper leaves this to an appendix that we have not seen; we hold $\varepsilon$ fixed in IGSAM, too.
#
# The last lines of the cell are about $\rho = 0$.
# There the library calls the closure once and takes the base optimizer's step, to the last bit, so plain descent can keep a log like the others.

# %%
rho = 0.05


def worst(g: Tensor, q: float) -> Tensor:
    return g.sign() * g.abs() ** (q - 1) / g.norm(q) ** (q - 1)


epsilon["SAM"] = rho * g / g.norm()
for name, norm, q in (("SAM", 2, 2), ("SAM, p = 3", 3, 3 / 2), ("SAM, p = ∞", math.inf, 1)):
    epsilon[name] = rho * worst(g, q)
    assert abs(epsilon[name].norm(norm) - rho) < 1e-14
    assert abs(g @ epsilon[name] - rho * g.norm(q)) < 1e-14  # equality in Hölder
    ours = theta - eta * gradient(theta + epsilon[name])
    steps[name] = agree(name, ours, using(SAM, rho=rho, p=norm))
descent = steps["SGD"]
steps["SGD"] = take_steps(using(SAM, rho=0.0), model, inputs, targets)
assert torch.equal(descent.weights, steps["SGD"].weights) and steps["SGD"].closures == 1

# %% [markdown]
# (step-asam)=
# ## ASAM: a ball in units of the weights
#
# Scale a ReLU layer up and the next one down, and the network is the same function.
# SAM's ball around it is another set of functions, because the radius stays the same while the weights do not.
# ASAM {cite:p}`kwon2021` therefore measures $\varepsilon$ relative to the weights: $\lVert T^{-1}\varepsilon\rVert \le \rho$, with $T = |\theta| + t$ entry by entry.
# (The paper writes $\eta$ for the small number $t$, which keeps zeros movable.)
# To find the worst point of this ball, substitute $\varepsilon = T\tilde\varepsilon$.
# Then $g^\top\varepsilon = (Tg)^\top\tilde\varepsilon$ over the ordinary ball, which is the problem that SAM has solved already:
#
# $$
# \tilde\varepsilon = \rho\, \frac{T g}{\lVert T g\rVert},
# \qquad
# \varepsilon = \rho\, \frac{T^2 g}{\lVert T g\rVert} .
# $$ (eq-step-asam)
#
# The paper's text and its authors' code part here.
# The code gives this $T$ only to tensors with "weight" in their name, and $T = 1$ to biases.
# A widely used implementation scales all tensors, with $t = 0$.
# In the library these are `scaled="weights"` and `scaled="all"`; the cell takes both steps, with $\rho = 0.5$.
#
# With $T = 1$ everywhere **ASAM is SAM**, to the last bit, since multiplying by one is exact.


# %%
def authors_scale(theta: Tensor) -> Tensor:
    parts = split(theta).items()
    scales = (q.abs() + 0.01 if "weight" in k else q**0 for k, q in parts)
    return torch.cat([T.flatten() for T in scales])


# %%
for name, T, options in (
    ("ASAM", authors_scale(theta), {}),
    ("ASAM, all", theta.abs(), {"scaled": "all", "eta": 0.0}),
):
    epsilon[name] = 0.5 * T**2 * g / (T * g).norm()
    ours = theta - eta * gradient(theta + epsilon[name])
    steps[name] = agree(name, ours, using(ASAM, rho=0.5, **options))


def without_names(network: nn.Module) -> ASAM:  # no name has "weight" in it, so T = 1
    return ASAM([(f"{i}", q) for i, q in enumerate(network.parameters())], rho=rho, lr=eta)


unit = take_steps(without_names, model, inputs, targets)
assert torch.equal(unit.weights, steps["SAM"].weights)

# %% [markdown]
# (step-eigen)=
# ## Eigen-SAM: towards the top eigenvector
#
# The curvature that one fears most is the largest eigenvalue of the Hessian.
# SAM feels it only as far as the gradient has a part along its eigenvector $v$.
# Eigen-SAM {cite:p}`luo2024` adds the part of $v$ that the direction $\hat g = g / \lVert g\rVert$ lacks, with a weight $\kappa$ (the paper's $\alpha$), and gives the sum the length $\rho$:
#
# $$
# \tilde g = \hat g + \kappa\, \operatorname{sign}(g^\top v)\, \big( v - (v^\top \hat g)\, \hat g \big),
# \qquad
# \varepsilon = \rho\, \frac{\tilde g}{\lVert \tilde g\rVert} .
# $$ (eq-step-eigen)
#
# An eigenvector has no sign of its own, and needs none: replace $v$ by $-v$, and $\tilde g$ stays the same.
#
# What does the addition do to the angles?
# Put $\chi = v^\top\hat g$, the cosine between $v$ and the gradient.
# The two parts of $\tilde g$ are orthogonal, so $\lVert\tilde g\rVert^2 = 1 + \kappa^2(1 - \chi^2)$.
# Multiply $\tilde g$ by $\hat g$ and by $v$, and divide by this length:
#
# $$
# \cos(\varepsilon, g) = \frac{1}{\lVert\tilde g\rVert},
# \qquad
# |\cos(\varepsilon, v)| = \frac{|\chi| + \kappa\,(1 - \chi^2)}{\lVert\tilde g\rVert} .
# $$ (eq-step-eigen-angles)
#
# The second is meant to be larger than $|\chi|$, the cosine without the addition.
# Squared, that is $(|\chi| + \kappa(1-\chi^2))^2 > \chi^2 (1 + \kappa^2(1-\chi^2))$, and for $0 < |\chi| < 1$ it simplifies to $2|\chi| + \kappa(1 - 2\chi^2) > 0$.
# For $\kappa \le 2$ this always holds; a larger $\kappa$ can overshoot.
# (At $\chi = 0$ the sign is zero, and at $|\chi| = 1$ there is nothing to add.)
#
# The eigenvector comes from power iterations, which multiply a vector by $H$ again and again.
# They find the eigenvalue that is largest in size, which away from a minimum may be a negative one; in all networks of this chapter the smallest is less in size than the second largest.
# Each product is a central difference of gradients, a distance $\tau$ to either side; its factor $1/2\tau$ drops out when $v$ is normalised.

# %%
kappa, tau = 0.2, 1e-2
round_off = torch.finfo(torch.float64).eps  # 2.2e-16


def power_iterations(gradient, theta: Tensor) -> Tensor:
    """Return v after five iterations from the library's random start."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    shapes = [q.shape for q in model.parameters()]
    draws = [torch.randn(shape, generator=generator).to(p.device) for shape in shapes]
    v = parameters_to_vector(draws).double()
    for _ in range(5):
        v = v / v.norm()
        v = gradient(theta + tau * v) - gradient(theta - tau * v)
    return v / v.norm()


def tilted(v: Tensor, unit_g: Tensor) -> Tensor:
    chi = v @ unit_g
    return unit_g + kappa * torch.sign(chi) * (v - chi * unit_g)


# %%
v = power_iterations(gradient, theta)
epsilon["Eigen-SAM"] = rho * tilted(v, unit_g) / tilted(v, unit_g).norm()
ours = theta - eta * gradient(theta + epsilon["Eigen-SAM"])
make = using(EigenSAM, rho=rho, alpha=kappa, tau=tau)
steps["Eigen-SAM"] = agree("Eigen-SAM", ours, make, 100 * round_off / tau)

# %% [markdown]
# The tolerance comes from the differences.
# A gradient is wrong by a few units of round-off, $2.2\cdot 10^{-16}$ of its terms, and a difference over $\tau$ divides that by $\tau$.
# We allow a hundred units over $\tau$, which is $2.2\cdot 10^{-12}$, here and for all differences below.
#
# Five iterations from a random vector are the library's default.
# Are they enough?
# To see it, the table goes on from the fifth with exact products $Hv$.
# Its last column is the cosine of $v$ with the gradient, whose sign decides to which side the gradient is tilted.
# Before that, the cell asserts {eq}`eq-step-eigen-angles`.


# %% tags=["nbval-rtol=1e-6"]
def cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


chi, norm = abs(cosine(v, g)), tilted(v, unit_g).norm()
angle = abs(cosine(epsilon["Eigen-SAM"], v))
assert abs(cosine(epsilon["Eigen-SAM"], g) - 1 / norm) < 1e-14
assert abs(angle - (chi + kappa * (1 - chi**2)) / norm) < 1e-14 and angle > chi
rows, power = {}, v
for iteration in range(5, 21):
    power = power / power.norm()
    product = H @ power
    if iteration in (5, 8, 12, 20):
        quotient = power @ product / eigenvalues[-1]
        rows[iteration] = abs(cosine(power, v_top)), quotient, 1e4 * cosine(power, g)
    power = product
columns = ["|cos(v, eigenvector)|", "vᵀHv over the eigenvalue", "10⁴ cos(v, g)"]
table(["iterations", *columns], rows, spec=".5f")

# %% [markdown]
# Here five are enough.
# It is a matter of the gap between the first two eigenvalues, and {ref}`ten networks <step-networks>` below differ in that.
#
# (step-gr)=
# ## Gradient regularisation
#
# Gradient descent itself avoids steep slopes.
# To see it, look for a changed loss whose gradient flow, followed for the time $\eta$, ends where the step ends.
# Try the flow $\dot\theta = -(g + \eta f_1)$, where $f_1(\theta)$ is an unknown correction.
# Its solution at time $\eta$ is $\theta - \eta g - \eta^2 f_1 + \frac{\eta^2}2 H g + O(\eta^3)$.
# For this to be the step $\theta - \eta g$ we need $f_1 = \frac12 H g = \nabla\,\frac14\lVert g\rVert^2$.
# So descent has a penalty $\frac\eta4 \lVert\nabla L\rVert^2$ built in {cite:p}`barrett2021`.
# It tells no flat minimum from a sharp one, since $g$ is zero in both; it acts on the way.
#
# Gradient regularisation adds a penalty of the same form with a weight $\mu$ of one's own.
# Since $\nabla \lVert\nabla L\rVert^2 = 2 H g$, its step is
#
# $$
# \theta \leftarrow \theta - \eta\, \nabla\big( L + \mu \lVert\nabla L\rVert^2 \big) = \theta - \eta\,( g + 2\mu\, H g ) .
# $$ (eq-step-gr)
#
# We take $\mu = \eta/4$, which doubles the penalty that is there already.
#
# The product $Hg$ can come from differentiating the gradient.
# A cheaper way needs one more gradient, a distance $\tau$ away:
#
# $$
# H g \approx \frac{\lVert g\rVert}{\tau} \big( \nabla L(\theta + \tau\, \hat g) - g \big) .
# $$ (eq-step-difference)
#
# To first order gradient regularisation is SAM without the normalisation, because $\nabla L(\theta + 2\mu g) = g + 2\mu Hg + O(\mu^2)$.
# So we enter $\varepsilon = 2\mu g$ in the comparison.

# %%
mu = eta / 4


def difference(u: Tensor, tau: float) -> Tensor:
    return (gradient(theta + tau * u) - g) / tau


exact = theta - eta * (g + 2 * mu * H @ g)
penalised = grad(lambda t: loss(t) + mu * gradient(t).square().sum())
assert (theta - eta * penalised(theta) - exact).norm() < 1e-14 * theta.norm()
steps["GR"] = agree("GR, double backward", exact, using(GradientRegularization, mu=mu))
near = theta - eta * (g + 2 * mu * g.norm() * difference(unit_g, tau))
make = using(GradientRegularization, mu=mu, method="finite_difference", tau=tau)
steps["GR, difference"] = agree("GR, difference", near, make, 100 * round_off / tau)
epsilon["GR"] = 2 * mu * g

# %% [markdown]
# How small should $\tau$ be?
# Let $u$ be a unit vector, and write $\nabla_u^k g$ for the $k$-th derivative of the gradient along it.
# Taylor's theorem for $\nabla L(\theta \pm \tau u)$ gives the leading error of the one-sided difference and of the central one:
#
# $$
# \begin{aligned}
# \frac{\nabla L(\theta + \tau u) - g}{\tau} &= Hu + \frac\tau2\, \nabla_u^2 g + O(\tau^2),
# \\
# \frac{\nabla L(\theta + \tau u) - \nabla L(\theta - \tau u)}{2\tau} &= Hu + \frac{\tau^2}6\, \nabla_u^3 g + O(\tau^4) .
# \end{aligned}
# $$ (eq-step-order)
#
# Rounding adds a few times $2.2 \cdot 10^{-16}\, \lVert g\rVert / \tau$ to both.
# The first is the difference of gradient regularisation, and of RSAM's exact mode below; the second is Eigen-SAM's.
# The cell computes the derivatives by nested differentiation, so nothing in the figure is fitted, and asserts both coefficients.

# %%
derivatives = [gradient]
for _ in range(3):
    last = derivatives[-1]
    derivatives.append(lambda t, last=last: jvp(last, (t,), (unit_g,))[1])
_, D1, D2, D3 = (derivative(theta) for derivative in derivatives)


def central(u: Tensor, tau: float) -> Tensor:
    return (gradient(theta + tau * u) - gradient(theta - tau * u)) / (2 * tau)


assert ((difference(unit_g, 1e-4) - D1) / 1e-4 - D2 / 2).norm() < 1e-2 * D2.norm()
assert ((central(unit_g, 1e-2) - D1) / 1e-4 - D3 / 6).norm() < 1e-2 * D3.norm()

# %% tags=["hide-input"] mystnb={"image": {"alt": "Relative error of a Hessian product against the distance of the difference, both axes logarithmic. The one-sided difference falls with slope one as the distance shrinks, the central one with slope two, each on a thin predicted line, until both turn up along a dotted line of slope minus one."}, "figure": {"caption": "The error of a Hessian product from differences of gradients, relative to its length, against the distance τ. Thin lines are the predicted leading terms; dotted, one unit of round-off in g over τ; both differences lie some units above it, because a gradient is a sum of many terms. A vertical line marks the library's default.", "name": "fig-step-order"}}
distances = torch.logspace(-9, -0.5, 35, dtype=torch.float64, device="cpu")
size = float(D1.norm())
figure, axes = plt.subplots(figsize=(5.5, 3.8))
cases = (("one-sided", difference, D2 / 2, 1, "o"), ("central", central, D3 / 6, 2, "s"))
for (label, rule, leading, order, marker), color in zip(cases, plotting.COLORS[:3:2], strict=True):
    errors = [distance(D1, rule(unit_g, float(t))) for t in distances]
    axes.loglog(distances, errors, marker, ms=4, color=color, label=label)
    predicted = distances**order * float(leading.norm()) / size
    axes.loglog(distances, predicted, "-", lw=1, color=color)
floor = round_off * float(g.norm()) / size / distances
axes.loglog(distances, floor, ":", color=plotting.QUIET, label="round-off / τ")
axes.axvline(tau, color=plotting.QUIET, lw=1)
axes.set(xlabel="distance τ", ylabel="relative error of Hg", ylim=(1e-13, 10))
axes.legend()
plt.show()

# %% [markdown]
# At the default $\tau = 10^{-2}$ the one-sided difference is good to one percent or so of $2\mu Hg$, which is itself a small part of the step.
#
# (step-rsam)=
# ## RSAM: a penalty that the step does not see
#
# The Rényi paper {cite:p}`renyi2025` wants to descend a loss with a negative entropy as penalty, and no eigenvalues are at hand in training.
# It replaces the Hessian's eigenvalues by the squares of the gradient's entries.
# Of the entropy it keeps the ratio inside the logarithm:
#
# $$
# R(g) = \frac{\sum_j |g_j|^{2\alpha}}{\big(\sum_j g_j^2\big)^\alpha}
# \qquad (\text{Rényi paper: eq. 10}).
# $$ (eq-step-ratio)
#
# The bars are ours; our copy has none (see the {doc}`errata <../book/errata>`).
#
# The logarithm of $R$, divided by $1 - \alpha$, is the entropy of the squares.
# So the entropy grows with $\operatorname{sign}(1-\alpha)\, R$, and the paper descends $L - \mu \operatorname{sign}(1-\alpha)\, R$ (its $\rho$ is our $\mu$).
#
# It does not differentiate $R$.
# Instead it looks for an $\varepsilon$ with $g^\top\varepsilon = -\mu \operatorname{sign}(1-\alpha)\, R$, since then $L(\theta + \varepsilon) \approx L - \mu \operatorname{sign}(1-\alpha)\, R$ (eq. 12).
# There are many; the paper takes the one along $g$:
#
# $$
# \varepsilon = -\mu\, \operatorname{sign}(1-\alpha)\, R(g)\, \frac{g}{\lVert g\rVert^2}
# \qquad (\text{Rényi paper: eq. 11}).
# $$ (eq-step-rsam)
#
# In our copy Algorithm 2, step 5, has the opposite sign, which for the paper's $\alpha > 1$ would go down instead of up; a minus may have been lost in the scan, so this is {ref}`to be confirmed <errata-algorithm-2>`.
# The released code has the sign of equation 11.
#
# **For $\alpha > 1$ this is SAM with radius $\mu R(g)/\lVert g\rVert$**, and nothing else of the entropy survives.
# With $\varepsilon$ held fixed the step follows $g + H\varepsilon$, and $H\varepsilon \propto Hg$ is what gradient regularisation adds, too.
#
# The gradient of the penalty is another vector.
# Let $\nabla R$ be the gradient of $R$ in its argument (for $\alpha > \frac12$; otherwise where no entry of $g$ is zero).
# By the chain rule the penalty's gradient in $\theta$ is $H \nabla R$ times its weight, and $\nabla R$ is orthogonal to $g$, because $R$ does not change when $g$ is scaled:
#
# $$
# \nabla\big(L - \mu \operatorname{sign}(1-\alpha)\, R(g)\big) = g - \mu \operatorname{sign}(1-\alpha)\, H\, \nabla R(g) ,
# \qquad
# g^\top \nabla R(g) = 0 .
# $$ (eq-step-rsam-exact)
#
# With $\varepsilon$ held fixed, $\varepsilon = -\mu \operatorname{sign}(1-\alpha)\, \nabla R(g)$ follows this gradient to first order, and where $H$ is invertible no other does.
# So the printed $\varepsilon$ is *orthogonal* to the one whose step would descend the right side of equation 12 (see the {ref}`errata <errata-held-fixed>`).
# The library's `mode="exact"` follows {eq}`eq-step-rsam-exact`, with a difference as in {eq}`eq-step-difference` for the product.

# %%
mu_R, alpha = 0.65, 1.2  # the paper's, for ResNet-20 on CIFAR-10
sign = math.copysign(1.0, 1 - alpha)


def ratio(g: Tensor) -> Tensor:
    return g.abs().pow(2 * alpha).sum() / g.square().sum().pow(alpha)


epsilon["RSAM"] = -mu_R * sign * ratio(g) * g / g.square().sum()
ours, rsam = theta - eta * gradient(theta + epsilon["RSAM"]), {"rho": mu_R, "alpha": alpha}
steps["RSAM"] = agree("RSAM", ours, using(RSAM, **rsam))
radius = float(mu_R * ratio(g) / g.norm())
agree("SAM of RSAM's radius", ours, using(SAM, rho=radius))
same = take_steps(using(RSAM, mode="sam_radius", **rsam), model, inputs, targets)
assert torch.equal(same.weights, steps["RSAM"].weights)

# %% [markdown]
# Does the printed step lower the penalty nevertheless?
# Its extra term $-H\varepsilon$ is a velocity in $\theta$, and to first order the penalty changes along it at the rate $(-H\varepsilon)^\top\, \nabla\big({-\operatorname{sign}(1-\alpha)}\, R(g)\big)$.
# The table has this rate for $\mu = 1$.

# %% tags=["nbval-rtol=1e-6"]
slope = grad(ratio)(g)
assert abs(g @ slope) < 1e-14 * len(g) * g.norm() * slope.norm()
epsilon["RSAM, exact"] = d = -mu_R * sign * slope
product = d.norm() * difference(d / d.norm(), tau)
ours = theta - eta * (g + product)
make = using(RSAM, mode="exact", tau=tau, **rsam)
steps["RSAM, exact"] = agree("RSAM, exact", ours, make, 100 * round_off / tau)
objective = grad(lambda t: loss(t) - mu_R * sign * ratio(gradient(t)))(theta)
assert distance(objective, g + H @ d) < 1e-12
rate = regularizer_descent(H, g, alpha).left
values = {"‖ε‖ printed": radius, "‖ε‖ exact": d.norm(), "rate": rate}
values["cos(Hε printed, Hε exact)"] = cosine(H @ g, H @ d)
table(["of RSAM", "value"], values, spec=".5f")

# %% [markdown]
# The rate is positive here: the extra term *raises* what it is meant to lower.
# The equations do not force a sign; {ref}`a table below <step-networks>` has the rate of ten networks.
#
# (step-igsam)=
# ## IGSAM: along the natural gradient
#
# The information-geometric paper {cite:p}`igs2022` wants to lower $L + \mu\, \mathrm{IGS}$, its equation 12.
# It uses the mini-batch form of its sharpness (equation 7): for one batch, whose gradient is $g$, that is $L + \mu\, g^\top F^{+} g$, with the pseudo-inverse of the Fisher matrix $F$.
# As before, an $\varepsilon$ is wanted whose first-order rise $g^\top\varepsilon$ is the penalty, and the natural gradient is one:
#
# $$
# \varepsilon = \mu\, F^{+} g,
# \quad
# L(\theta + \varepsilon) \approx L + \mu\, g^\top F^{+} g
# \quad (\text{IGS paper: eq. 13; its } \rho \text{ is our } \mu).
# $$ (eq-step-igsam)
#
# $F$ is too large to invert, so the paper takes EKFAC {cite:p}`george2018` (Section 4.2; the details are in its Appendix G.4.1, in the supplement of the proceedings, which we did not have).
# We take it a layer at a time, with a damping: $(F + \nu I)^{-1}$ in place of $F^{+}$.
#
# The construction is that of {ref}`chapter 5 <one-kfac>`.
# A layer has inputs $a_{it}$ and output Jacobians $B_{it}$, for sample $i$ and position $t$, and the loss has the factor $R_i$ of its Hessian in the outputs.
# From these come the columns $s_{irt} = (R_i B_{it})_r^\top$ and the matrices $G_{ir} = \sum_t s_{irt}\, a_{it}^\top$, which are shaped like the weights.
# The layer's Fisher block is $\frac1n\sum_{i,r} \operatorname{vec} G_{ir} \operatorname{vec}(G_{ir})^\top$.
#
# Let $U_\Omega$ and $U_\Psi$ hold the eigenvectors of the second moments of $s$ and of $a$.
# In their basis EKFAC keeps the diagonal of the block alone, folded into a matrix $V_l$.
# So the damped inverse, applied to the layer's gradient $g_l$, is a division of entries:
#
# $$
# V_l = \frac1n \sum_{i,r} \big( U_\Omega^\top G_{ir} U_\Psi \big)^{\odot 2},
# \qquad
# \varepsilon_l = \mu\; U_\Omega\, \frac{U_\Omega^\top g_l\, U_\Psi}{V_l + \nu}\, U_\Psi^\top .
# $$ (eq-step-ekfac)
#
# Square and quotient are taken entry by entry, and a bias is one more column, with $a = 1$.
# Normalisation is not perturbed.
# The paper's $\mu$, and its damping if it has one, are not in its main text; ours are round numbers.


# %%
def ekfac_factors(linear, name: str, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    use = linear.layers[name].uses[0]
    a = use.columns(slice(None))[:, 0]  # (n, k, P)
    a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1) if bias else a
    cotangents = use.cotangents(slice(None))[:, :, 0]  # (n, C, h, P)
    s = torch.einsum("nrc,ncht->nrht", linear.hessian_factor, cotangents)
    U_Omega = torch.linalg.eigh(torch.einsum("nrht,nrgt->hg", s, s)).eigenvectors
    U_Psi = torch.linalg.eigh(torch.einsum("nkt,nmt->km", a, a)).eigenvectors
    G = torch.einsum("nrht,nkt->nrhk", s, a)
    return U_Omega, U_Psi, (U_Omega.T @ G @ U_Psi).square().sum(dim=(0, 1)) / len(a)


# %%
def natural_gradient(linear, g: Tensor, nu: float) -> Tensor:
    """Return (F + νI)⁻¹ g by EKFAC, and zero for the normalisations."""
    parts, found = split(g), split(0 * g)
    for name in linear.layers:
        own = [k for k in (f"{name}.weight", f"{name}.bias") if k in parts]
        columns = [parts[k].reshape(len(parts[k]), -1) for k in own]
        U_Omega, U_Psi, V = ekfac_factors(linear, name, bias=len(own) == 2)
        inner = U_Omega.T @ torch.cat(columns, dim=1) @ U_Psi / (V + nu)
        widths = [c.shape[1] for c in columns]
        split_again = (U_Omega @ inner @ U_Psi.T).split(widths, dim=1)
        for key, part in zip(own, split_again, strict=True):
            found[key] = part.reshape(found[key].shape)
    return torch.cat([q.flatten() for q in found.values()])


# %%
mu_F, nu, linear = 0.01, 0.01, linearize(model, inputs)
epsilon["IGSAM"] = mu_F * natural_gradient(linear, g, nu)
ours = theta - eta * gradient(theta + epsilon["IGSAM"])
igsam = {"rho": mu_F, "damping": nu}
steps["IGSAM"] = agree("IGSAM", ours, using(IGSAM, **igsam), 1e-10)

# %% [markdown]
# The tolerance is 1e-10, because an eigenvector is known up to round-off over the gap to the next eigenvalue, and we allow gaps down to $10^{-5}$ of the largest.
#
# **What is in this step?**
#
# Hold $\varepsilon$ fixed: to first order in $\mu$ the step follows $g + \mu H F^{+} g$ (see the {ref}`errata <errata-held-fixed>`).
# Where $H = F$ and $g$ lies in its range this is $(1 + \mu)\, g$, a larger step size and nothing else.
# What remains is due to $H - F$, the damping, EKFAC's errors, and the normalisations, which $\varepsilon$ leaves alone.
#
# With large damping the step loses its geometry in another way.
# Since $\nu (F + \nu I)^{-1} = I - F (F + \nu I)^{-1}$, the distance of $\varepsilon$ from a multiple of the gradient is bounded by
#
# $$
# \Big\lVert \frac\nu\mu\, \varepsilon - g \Big\rVert \le \frac{\lambda_{\max}(F)}{\lambda_{\max}(F) + \nu}\, \lVert g\rVert ,
# $$ (eq-step-damping)
#
# with EKFAC's $V_l$ in the place of $F$ in the layers that it covers.
# So as $\nu$ grows, $\varepsilon$ tends in the layers covered to $(\mu/\nu)\, g$, an ascent that is not divided by $\lVert g \rVert$; to first order that is gradient regularisation of weight $\mu/(2\nu)$.
#
# The library has both ends, $(1 + \mu)\, g$ and $(\mu/\nu)\, g$, as controls, and the cell takes their steps.
# The second differs from gradient regularisation in second order, so halving $\mu$ must divide the distance of the two by four.
# The last lines assert {eq}`eq-step-damping`.

# %%
make = using(IGSAM, mode="scaled_gradient", **igsam)
steps["(1 + μ) g"] = agree("IGSAM, control (1 + μ) g", theta - eta * (1 + mu_F) * g, make)
ours = theta - eta * gradient(theta + mu_F / nu * g)
agree("IGSAM, control (μ/ν) g", ours, using(IGSAM, mode="gradient", **igsam))
gaps = []
for strength in (2e-3, 1e-3):
    regularised = g + strength * H @ g
    gaps.append(float((gradient(theta + strength * g) - regularised).norm()))
assert abs(gaps[0] / gaps[1] - 4) < 0.05

perturbed = epsilon["IGSAM"] != 0
blocks = [ekfac_factors(linear, k, k == "head") for k in linear.layers]
bound = max(V.max() / (V.max() + nu) for _, _, V in blocks)
assert (epsilon["IGSAM"] * nu / mu_F - g)[perturbed].norm() <= bound * g.norm()

# %% [markdown]
# (step-sasam)=
# ## SA-SAM and SA-SGD: the step size from the last two points
#
# All methods so far share one step size, and it is chosen by hand.
# The smoothness-adaptive ones read it off the last step {cite:p}`sasam2024,malitsky2020`.
# Along that step the gradient changed by $\lVert g_t - g_{t-1}\rVert$ over a distance $\lVert\theta_t - \theta_{t-1}\rVert$, both gradients on the present batch.
# The quotient is a local smoothness $\beta_t$.
# The step size is a part of its inverse, $1/(c\beta_t)$, but may not grow too fast from one step to the next:
#
# $$
# \begin{aligned}
# \eta_t &= \min\Big\{ \frac{\lVert\theta_t - \theta_{t-1}\rVert}{c\, \lVert g_t - g_{t-1}\rVert},\; \sqrt{1 + \gamma\, \vartheta_{t-1}}\; \eta_{t-1} \Big\} \quad (\text{SA-SAM paper: eq. 5}), \\
# \vartheta_t &= \frac{\eta_t}{\eta_{t-1}}, \qquad \vartheta_0 = \infty, \\
# \theta_{t+1} &= \theta_t - \eta_t\, \nabla L\Big(\theta_t + \rho_t \frac{g_t}{\lVert g_t\rVert}\Big), \quad \rho_t = \sqrt{\eta_t} \quad (\text{eq. 2, Algorithm 1}).
# \end{aligned}
# $$ (eq-step-sasam)
#
# Equation 5 has $c = 2$ and $\gamma = 1$, and the experiments have $\gamma = 0.02$ (Section 3, which calls it $\delta$).
# SA-SGD is the same with $\rho_t = 0$.
#
# The paper prints the growth in three ways, of which the {ref}`errata <errata-sasam-index>` keep the first.
# Equation 5 has $\vartheta_{t-1}$ under the root, as here.
# Algorithm 1 has $\vartheta_t$, which is not known at that moment.
# In our copy Section 3 has $\eta_t$ under the root as well.
#
# How far does the theory reach?
# For SA-SGD with $c = 2$, $\gamma = 1$ and full batches, on a convex loss that has a minimum and a locally Lipschitz gradient, Malitsky and Mishchenko prove convergence.
# For SA-SAM no theorem is claimed.
# It moves along a gradient at $\theta + \varepsilon$, while the rule compares gradients at $\theta$.
# Besides, $\rho = \sqrt\eta$ has not the units of a length in $\theta$.
#
# The rule needs a step before the present one.
# So our step is a second one, after a first from $\theta_-$ to $\theta$ by SA-SGD with $\eta_0 = 0.2$.
# The two methods keep the same state, so that one can go on where the other was.


# %% tags=["hide-input"]
def first_step_taken(kind, **options):
    """Say how to go on, from θ, where SA-SGD has taken its first step from θ₋."""

    def make(network: nn.Module):
        vector_to_parameters(theta_before.clone(), network.parameters())
        first = SASGD(network.parameters(), eta0=eta)
        first.step(batch_closure(network, first, inputs, targets))
        optimizer = kind(network.parameters(), eta0=eta, log=True, **options)
        optimizer.load_state_dict(first.state_dict())
        return optimizer

    return make


# %%
change = (g - gradient(theta_before)).norm()
eta_1 = (theta - theta_before).norm() / (2 * change)  # the other branch is infinite
epsilon["SA-SAM"] = eta_1.sqrt() * unit_g
ours = theta - eta_1 * gradient(theta + epsilon["SA-SAM"])
steps["SA-SAM"] = agree("SA-SAM", ours, first_step_taken(SASAM))
steps["SA-SGD"] = agree("SA-SGD", theta - eta_1 * g, first_step_taken(SASGD))
epsilon["SA-SGD"] = 0 * g

# %% [markdown]
# **Where SA-SAM ends.**
#
# A parabola $L = \frac12\lambda\theta^2$ shows what the rule leads to.
# There $\beta = \lambda$ along any step, so $\eta = 1/(c\lambda)$ and $\rho = 1/\sqrt{c\lambda}$ from the second step on.
# A step from $\theta > 0$ then has the following end, and one $\theta$ is sent to its mirror image:
#
# $$
# \theta - \eta\lambda\,(\theta + \rho) = \Big(1 - \frac1c\Big)\theta - \frac\rho c ,
# \qquad
# \text{which is } {-\theta} \text{ for } \theta = \frac{\rho}{2c - 1} .
# $$ (eq-step-cycle)
#
# From there it goes back and forth for ever, at the loss $\frac12 \lambda\rho^2/(2c-1)^2 = 1/(2c(2c-1)^2)$.
# **With the paper's $c = 2$ that is 1/36, whatever the curvature.**
# With the released code's $c = 1$ it is 1/2.
# From any other start the distance $|\theta|$ becomes $|(1 - \frac1c)\, |\theta| - \frac\rho c|$, a map that shrinks the difference of any two distances at least by the factor $|1 - \frac1c|$, which is below one for $c > \frac12$.
# So every start ends on this cycle, unless a step hits 0, where there is no gradient to follow.
# The cell lets the library start at this $\theta$ and at another, for three curvatures:


# %%
def parabola(curvature: float, c: float, floor: float) -> None:
    point = torch.tensor([1 / math.sqrt(c * curvature) / (2 * c - 1)], **real)
    hessian = torch.tensor([[curvature]], **real)
    adaptive = lambda w: SASAM(w, eta0=1 / (c * curvature), damping=c)  # noqa: E731
    points, _ = follow_quadratic(adaptive, hessian, point, 5)
    signs = torch.tensor([1, -1, 1, -1, 1, -1], device=p.device)[:, None]
    assert (points - signs * point).abs().max() < 1e-13 * point
    assert (curvature / 2 * points**2 - floor).abs().max() < 1e-13
    points, _ = follow_quadratic(adaptive, hessian, 7.3 * point, 50)  # from somewhere else
    assert (points[-2:].abs() - point).abs().max() < 1e-12 * point
    assert points[-1] * points[-2] < 0


for curvature in (0.5, 3.0, 50.0):
    parabola(curvature, c=2.0, floor=1 / 36)
    parabola(curvature, c=1.0, floor=1 / 2)

# %% [markdown]
# What else these methods do on quadratics is the subject of {doc}`the chapter before <06_steps_on_a_quadratic>`.
#
# (step-compare)=
# ## Nine steps side by side
#
# Every optimizer was asked to keep a log.
# With `log=True` it notes for each step $\lVert g\rVert$, $\lVert\varepsilon\rVert$, the cosine of $\varepsilon$ and $g$, and the value of its regularizer.
# This value is $g^\top\varepsilon$, the rise of the loss to first order, unless the method has a penalty of its own, as gradient regularisation has $\mu\lVert g\rVert^2$.
#
# The table begins with the log, and the cell asserts that it is what our equations say.
# *Step* is the length of the whole step.
# The last columns count: how often the closure was called, how many gradients the optimizer says it took, and how many times the network saw the whole batch.

# %% tags=["nbval-rtol=1e-6"]
nine = ("SGD", "SAM", "ASAM", "Eigen-SAM", "GR", "RSAM", "IGSAM", "SA-SAM", "SA-SGD")
rows = {}
for name in nine:
    taken, e = steps[name], epsilon[name]
    entry = taken.optimizer.log[-1]
    logged = [entry.perturbation_norm, entry.cosine, entry.regularizer]
    rise = float(g @ e) / (2 if name == "GR" else 1)  # μ‖g‖² = ½ gᵀ(2μg)
    ours = [float(e.norm()), cosine(e, g), rise]
    torch.testing.assert_close(logged, ours, rtol=1e-10, atol=0, equal_nan=True)
    logged = [value or 0 for value in logged]  # a zero that is exact, and no round-off
    length = (taken.weights - theta).norm()
    rows[name] = *logged, length, taken.closures, taken.evaluations, taken.forwards
columns = ["‖ε‖", "cos(ε, g)", "regularizer", "step", "closures", "gradients", "forward passes"]
table(["method", *columns], rows, spec=".5f")

# %% [markdown]
# * *Directions.* Four methods go along $g$.
#   IGSAM, which is to follow the natural gradient, still has the cosine 0.80 with $g$; ASAM, which only rescales entries, has 0.59.
# * *Lengths.* From GR to SA-SAM $\lVert\varepsilon\rVert$ grows more than a hundredfold.
#   Only SAM's and Eigen-SAM's are constants of the method.
#   GR's goes with $\lVert g\rVert$ and RSAM's with $R(g)/\lVert g\rVert$: near a minimum the one vanishes and the other grows.
#   SA-SAM's exceeds a third of $\lVert\theta\rVert$, because nothing in $\rho = \sqrt\eta$ knows the scale of $\theta$.
# * *Steps.* The last two rows have a step size of their own, more than thirty times the others' $\eta$ and beyond descent's edge $2/\lambda_1$: the last step ran along flat directions, where the measured smoothness is small ({doc}`chapter 6 <06_steps_on_a_quadratic>`).
#   It is one step, and no verdict on training.
# * *Costs.* Eigen-SAM's ten further gradients renew the eigenvector, every hundredth step by default.
#   IGSAM's further forward pass is the linearization, every tenth.
#   Gradient regularisation by double backward calls the closure once, but pays for the second differentiation.
#   SA-SAM pays three gradients for each mini-batch step, and two with `full_batch=True`.
#
# The next figure draws the directions in the plane of $g$ and the top eigenvector $v$, which are nearly at right angles here.
# An arrow is $\varepsilon / \lVert\varepsilon\rVert$ projected on that plane; where it is shorter than 1, the rest of $\varepsilon$ sticks out of the plane.

# %%
uphill = v_top * torch.sign(g @ v_top)
across = uphill - (uphill @ unit_g) * unit_g
plane = torch.stack([unit_g, across / across.norm()])
lengths = {k: float(epsilon[k].norm()) for k in nine}
arrows = {k: plane @ epsilon[k] / lengths[k] for k in nine if lengths[k]}
along_g = ("SAM", "GR", "RSAM", "SA-SAM")
assert all(abs(arrows[k][0] - 1) < 1e-12 for k in along_g)
assert all(arrow.norm() < 1 + 1e-12 for arrow in arrows.values())
assert [k for k in nine if lengths[k] == 0] == ["SGD", "SA-SGD"]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels. Above: arrows from the origin in the plane of the gradient and the top eigenvector. SAM, GR, RSAM and SA-SAM reach one on the horizontal axis. Eigen-SAM points about eleven degrees upwards and reaches the dotted circle of radius one. IGSAM and ASAM lie on the horizontal axis within two percent and end at 0.8 and 0.6. Below: dots on a logarithmic axis give the lengths, from 0.018 for GR over about 0.05 for IGSAM, SAM and Eigen-SAM and 0.52 for ASAM to 1.3 for RSAM and 2.6 for SA-SAM; SGD and SA-SGD stay where they are."}, "figure": {"caption": "The nine perturbations. Above: their directions, projected on the plane of the gradient (horizontal) and the top eigenvector (vertical); an arrow that lies in the plane ends on the dotted circle. Below: their lengths, on a logarithmic axis.", "name": "fig-step-plane"}}
figure, (upper, lower) = plt.subplots(2, figsize=(5.5, 6.8))
angle = torch.linspace(-0.2, 0.5, 100, device="cpu")
upper.plot(angle.cos(), angle.sin(), color=plotting.QUIET, ls=":", lw=1)
shifts = {"SAM": 6, "Eigen-SAM": 9, "IGSAM": -15, "ASAM": -15}
for (name, shift), color in zip(shifts.items(), plotting.COLORS, strict=False):
    tip, text = arrows[name].tolist(), ", ".join(along_g) if name == "SAM" else name
    upper.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "->", "color": color, "lw": 2})
    upper.annotate(text, tip, (-4, shift), textcoords="offset points", ha="right")
upper.set(xlim=(-0.05, 1.1), ylim=(-0.25, 0.45), aspect="equal")
upper.set(xlabel="along $g$", ylabel="along the top eigenvector")
order = sorted(nine, key=lengths.get)
lower.plot([lengths[k] or math.nan for k in order], range(9), "o", color=plotting.COLORS[0])
for row, name in enumerate(order):
    value = f"{lengths[name]:.2g}" if lengths[name] else "0, stays at θ"
    place = {"textcoords": "offset points", "va": "center"}
    lower.annotate(value, (lengths[name] or 0.01, row), (7, 0), **place)
lower.set(xscale="log", xlim=(0.01, 10), ylim=(-0.6, 8.6), xlabel="‖ε‖")
lower.set_yticks(range(9), order)
plt.show()

# %% [markdown]
# Eigen-SAM alone leaves the gradient towards the eigenvector.
# ASAM and IGSAM leave it, too, but out of this plane, and the figure cannot show where to.
# So we compare all pairs of directions by their cosines.
# In the next figure "$g$" stands for the four methods that go along it.

# %%
shown = ("SAM, p = 3", "SAM, p = ∞", "ASAM", "ASAM, all", "Eigen-SAM", "IGSAM", "RSAM, exact")
directions = {"g: SAM, GR, RSAM, SA-SAM": g} | {name: epsilon[name] for name in shown}
directions["top eigenvector"] = uphill
units = torch.stack([d / d.norm() for d in directions.values()])
cosines = units @ units.T
assert all(abs(cosine(epsilon[k], g) - 1) < 1e-14 for k in ("SAM", "GR", "RSAM", "SA-SAM"))
assert abs(cosine(epsilon["RSAM, exact"], g)) < 1e-13

# %% tags=["hide-input"] mystnb={"image": {"alt": "A matrix of cosines between nine directions. The gradient, SAM with p = 3 and Eigen-SAM are close to each other; the two forms of ASAM are close to each other and at about 0.6 to the gradient; the exact direction of RSAM and the top eigenvector are at right angles to the gradient."}, "figure": {"caption": "The cosines between the perturbations; the stronger the colour, the larger the absolute value. The first row stands for SAM, GR, RSAM and SA-SAM alike. The last row is no method, but the top eigenvector of the Hessian, in the direction in which the loss rises.", "name": "fig-step-cosines"}}
names = [name.split(":")[0] for name in directions]
figure, axes = plt.subplots(figsize=(5.5, 4.8))
axes.imshow(cosines.abs().cpu(), cmap=plotting.HEAT, vmin=0, vmax=1, aspect="auto")
for i, row in enumerate(cosines.tolist()):
    for j, value in enumerate(row):
        text, color = f"{round(value, 2) + 0.0:.2f}", "white" if abs(value) > 0.5 else "black"
        axes.text(j, i, text, ha="center", va="center", color=color)
turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
axes.set_xticks(range(len(names)), names, **turned)
axes.set_yticks(range(len(names)), names)
axes.tick_params(length=0)
axes.grid(False)
axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# (step-raise)=
# ## What does each direction raise?
#
# Each method has something in mind that is to be large at $\theta + \varepsilon$, or small after the step.
# For SAM and ASAM it is the rise of the loss in a ball, for gradient regularisation the length of the gradient, for IGSAM that length in the Fisher metric, for Eigen-SAM and RSAM a curvature.
# Does the curvature rise along $\varepsilon$?
# In short: at the length 0.05 and in all networks of this section the loss rises along every direction that we try, and the largest eigenvalue may go either way.
#
# Let all directions go to the same length, 0.05.
# There we look at the loss, at the largest eigenvalue of the Hessian, at the Rényi sharpness $-\mathcal H_{1.2}$ of the Hessian's whole spectrum and its proxy $R(g)$, and at information-geometric sharpness.
# The rows of the table are changes from $\theta$; the last one has the values at $\theta$.


# %% tags=["nbval-rtol=1e-6"]
def sharpnesses(theta: Tensor) -> Tensor:
    network = deepcopy(model)
    values = torch.linalg.eigvalsh(hessian(loss, theta))
    vector_to_parameters(theta, network.parameters())
    igs = estimators.information_geometric_sharpness(network, (inputs, targets))
    renyi = -estimators.renyi_entropy(values, alpha)
    found = [loss(theta), values[-1], renyi, ratio(gradient(theta)), igs]
    return torch.tensor([float(x) for x in found], **real)


here, rows = sharpnesses(theta), {}
for name, direction in directions.items():
    if name not in ("SAM, p = 3", "ASAM, all"):  # which are near others
        rows[name] = (sharpnesses(theta + rho * direction / direction.norm()) - here).tolist()
rows["value at θ"] = here.tolist()
table(["change along", "loss", "λ max", "Rényi", "R(g)", "IGS"], rows)

# %% [markdown]
# * *The loss* rises along all directions.
#   For SAM's that is what $\varepsilon$ was chosen for, to first order.
# * *The largest eigenvalue* need not rise with it.
#   Where it is simple, it changes along a unit vector $u$ to first order by the third derivative $\nabla^3 L[v, v, u]$, and no method looks at its sign.
# * *Eigen-SAM* chooses the side of $v$ by $g^\top v$, which does not ask on which side the curvature grows.
#   Besides, $g$ has hardly any part along $v$ after a hundred steps: the cosine is of order $10^{-4}$, and its sign decides.
#   That is owed to our start: a step of full-batch descent multiplies this part by about $1 - \eta\lambda_1$, which is at most one half in size here and in the ten networks below.
#   After a hundred steps only what the change of the Hessian and of its eigenvector puts back is left.
#   With mini-batches, or at the edge of stability, $g$ may have a large part along $v$, and then the sign is no accident.
# * *RSAM's exact direction* raises $R$ more than any method's direction does, and by a seventeenth of what the eigenvector does.
#   It is not meant as an ascent, but is the direction of a difference of gradients; the steepest ascent of $R$ in $\theta$ is $H \nabla R$.
# * *IGSAM's* direction raises information-geometric sharpness less than the gradient does.
#   Nor is it meant to: its $\varepsilon$ is chosen for the rise of the loss, and its penalty is $g^\top F^{+} g$ of the batch, not the sharpness per sample of this column.
#   Along all directions but RSAM's exact one the change of this sharpness is nearly in proportion to that of the loss.
#   On a batch so small that $M$, the stacked rows of {ref}`chapter 5 <one-igs>`, has full row rank, the sharpness would be a function of the samples' losses.
#   Here $M$ has more rows than columns, so nothing forces the proportion.
#
# (step-networks)=
# **Ten networks.** The numbers above are those of one network on one batch.
# So we train the same network from five seeds, on 64 and on 32 images, and go the distance 0.05 along six directions.
# The first table, which is folded, has the change of the largest eigenvalue in percent, and the second sums it up.
# Eigen-SAM has the exact eigenvector here, so its iterations play no part.


# %%
def trained(samples: int, seed: int):
    network, *batch = network_and_batch(samples, seed)
    theta = parameters_to_vector(network.parameters()).detach()
    loss = loss_of(network, *batch)
    for _ in range(100):
        theta = theta - eta * grad(loss)(theta)
    vector_to_parameters(theta.clone(), network.parameters())
    return loss, theta, linearize(network, batch[0])


def ascents(theta: Tensor, g: Tensor, v: Tensor, linear) -> dict[str, Tensor]:
    T, slope = authors_scale(theta), grad(ratio)(g)
    return {
        "g": g,
        "SAM, p = ∞": g.sign(),
        "ASAM": T**2 * g,
        "Eigen-SAM": tilted(v, g / g.norm()),
        "IGSAM": natural_gradient(linear, g, nu),
        "RSAM, exact": -sign * slope,
    }


# %% tags=["hide-output", "nbval-rtol=1e-5"] mystnb={"code_prompt_show": "The ten networks, one by one", "code_prompt_hide": "The ten networks, one by one"}
changes, others = {}, {}
for images in (64, 32):
    for network_seed in range(p.networks):
        f, here, linear_here = trained(images, network_seed)
        slope, curvature = grad(f)(here), hessian(f, here)
        values, vectors = torch.linalg.eigh(curvature)
        top, key = vectors[:, -1], (images, network_seed)
        found = ascents(here, slope, top, linear_here)
        assert (
            abs(values[0]) < values[-2]
            and abs(1 - eta * values[-1]) < 0.5
            and abs(cosine(slope, top)) < 1e-3
        )
        there = [here + rho * d / d.norm() for d in found.values()]
        assert all(f(point) > f(here) for point in there)
        spectra = (torch.linalg.eigvalsh(hessian(f, x)) for x in there)
        changes[key] = [100 * float(s[-1] / values[-1] - 1) for s in spectra]
        rate = regularizer_descent(curvature, slope, alpha).left
        others[key] = values[-2] / values[-1], abs(power_iterations(grad(f), here) @ top), rate
table(["images", "seed", *found], changes, spec=".2f")

# %% tags=["nbval-rtol=1e-5"]
rows = {}
for images in (64, 32):
    own = [row for key, row in changes.items() if key[0] == images]
    own = torch.tensor(own, device=p.device)
    for name, column in zip(found, own.T, strict=True):
        spread = column.std(correction=min(1, len(column) - 1))
        falls = f"{int((column < 0).sum())} of {len(column)}"
        row = column.mean(), spread, column.min(), column.max(), falls
        rows[images, name] = row
columns = ["mean", "standard deviation", "lowest", "highest", "falls in"]
table(["images", "change in percent along", *columns], rows, spec=".2f")

# %%
if p.networks == 5:  # the numbers of the text below
    every = torch.tensor(list(changes.values()), device=p.device)
    assert [round(float(x), 1) for x in (every.min(), every.max())] == [-3.4, 5.7]
    falling = (every < 0).sum(dim=0)
    assert falling.min() > 0 and falling.max() < len(every)
    along = dict(zip(found, every.view(2, 5, -1).permute(2, 0, 1), strict=True))
    means, deviations = along["g"].mean(dim=1), along["g"].std(dim=1)
    assert (means - torch.tensor([0.1, 1.1], device=p.device)).abs().max() < 0.06
    assert (deviations - torch.tensor([0.8, 0.7], device=p.device)).abs().max() < 0.06
    assert bool((along["g"][1] > 0).all())
    assert (along["ASAM"][0] < 0).sum() == (along["ASAM"][1] > 0).sum() == 4

# %% [markdown]
# The loss rises in all ten networks along every direction, as the cell above asserts.
# The largest eigenvalue changes by −3.4 to +5.7 percent, and along every direction it falls in some network and rises in another.
# Both ends of this range are Eigen-SAM's.
# In all ten networks the cosine of $g$ and $v$ is below $10^{-3}$, so the side that Eigen-SAM takes is near to an accident.
#
# * *Along the gradient* the mean and standard deviation over the seeds are 0.1 ± 0.8 percent on 64 images.
#   On 32 they are 1.1 ± 0.7 percent, and it rises in all five networks.
# * *Along ASAM's direction* it falls in four of the five on 64 images, and rises in four of the five on 32.
#
# So the loss is higher at the end of every such ascent, and the curvature need not be: the sign of its change differs between methods, and between networks with their batches.
# On 64 images and on 32 a seed has the same initial weights, and the 32 images are among the 64.
# Five such pairs of one small network, not planned as a test, are a hint and no more that the number of images matters.
#
# The same ten networks bear on two questions that were left open.
# Do five power iterations find the eigenvector $v$?
# And is the rate of {ref}`RSAM's step <step-rsam>` always positive?

# %% tags=["nbval-rtol=1e-5"]
assert all(cos > 0.99 or second >= 0.6 for second, cos, _ in others.values())
assert all(rate > 0 for *_, rate in others.values())
if p.networks == 5:
    missed = [images for (images, _), (_, cos, _) in others.items() if cos < 0.9]
    assert sorted(missed) == [32, 32, 32, 64]
columns = ["second eigenvalue over first", "|cos(v, eigenvector)| after five"]
columns.append("RSAM's rate")
table(["images", "seed", *columns], others, spec=".4g")

# %% [markdown]
# The cosine is above 0.99 wherever the second eigenvalue is below 0.6 of the first.
# Where the two are closer it may be below 0.9: in three of the five networks on 32 images, and in one of those on 64.
# The rate is positive in all ten, though the equations do not say that it must be; {doc}`chapter 15 <15_rsam>` asks the same of real training.
#
# The last figure goes back to the first network, and lets the lengths vary.


# %%
def rise(epsilon: Tensor) -> float:
    return float(loss(theta + epsilon) - loss(theta))


lengths = torch.logspace(-2.3, 0.6, 40, **real)
curves = {"g": g} | {k: epsilon[k] for k in ("ASAM", "Eigen-SAM", "IGSAM", "RSAM, exact")}
curves["top eigenvector"] = uphill
rises = {name: [rise(x * d / d.norm()) for x in lengths] for name, d in curves.items()}
marked = {name: (name,) for name in curves} | {"top eigenvector": ()}
marked["g"] = ("SAM", "GR", "RSAM", "SA-SAM")
marks = {k: (float(epsilon[k].norm()), rise(epsilon[k])) for own in marked.values() for k in own}

# %% tags=["hide-input"] mystnb={"image": {"alt": "Rise of the loss against the length of the perturbation, both axes logarithmic, for six directions. Along the gradient, ASAM's, Eigen-SAM's and IGSAM's directions it rises with slope one, along RSAM's exact direction and the top eigenvector with slope two. Marks show the length that each method takes by itself: GR near 0.02; SAM, Eigen-SAM and IGSAM near 0.05; ASAM near 0.5; RSAM and SA-SAM beyond one."}, "figure": {"caption": "How much the loss rises along each direction, against the distance. A mark is where the method goes by itself, with the published radius where there is one; four methods lie on the curve of the gradient. Slope two means that the direction is at a right angle to the gradient, or nearly so.", "name": "fig-step-rise"}}
figure, axes = plt.subplots(figsize=(5.5, 4.6))
offsets = {"Eigen-SAM": (-4, 16)} | dict.fromkeys(("IGSAM", "ASAM", "RSAM, exact"), (6, -12))
styles = [*zip(plotting.COLORS, plotting.LINE_STYLES, strict=True)]
styles.append((plotting.QUIET, (0, (8, 3))))  # of the eigenvector, which is no method
for (name, curve), (color, line) in zip(rises.items(), styles, strict=True):
    axes.loglog(lengths.cpu(), curve, color=color, ls=line, label=name)
    for method in marked[name]:
        axes.plot(*marks[method], "o", ms=5, color=color)
        shift = offsets.get(method, (-4, 5))
        place = {"textcoords": "offset points", "ha": "left" if shift[0] > 0 else "right"}
        axes.annotate(method, marks[method], shift, **place)
axes.set(xlabel="‖ε‖", ylabel="rise of the loss", ylim=(1e-5, None))
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# (step-variants)=
# ## Where text and code part
#
# Every method here exists in several versions, of which the table above has one each.
# How far apart are their steps?
# The table gives the distance of two steps, first over the length of step *one*.
# The last column has it over the distance of step *one* from plain descent, so that a 1 says that the choice matters as much as the method.
#
# Most versions can be compared at $\theta$.
# The smoothness-adaptive methods take two steps, from $\theta_-$, and their plain descent is SA-SGD.


# %%
def at(epsilon: Tensor) -> Tensor:
    return theta - eta * gradient(theta + epsilon)


names = [name for name, q in model.named_parameters() for _ in range(q.numel())]
covered = [name.rpartition(".")[0] in linear.layers for name in names]
covered = torch.tensor(covered, device=p.device)
F, top = dense_gauss_newton(model, inputs)[covered][:, covered], tilted(v_top, unit_g)
F_eigenvalues, F_basis = torch.linalg.eigh(F)


def exact_natural_gradient(damping: float) -> Tensor:
    """Return (F + νI)⁻¹ g in the layers that EKFAC covers, and zero for the normalisations."""
    found, inverse = 0 * g, 1 / (F_eigenvalues.clamp_min(0) + damping)
    found[covered] = F_basis @ (F_basis.T @ g[covered] * inverse)
    return found


# %%
dense = mu_F * exact_natural_gradient(nu)
others = {
    ("SAM", "p = 2", "p = ∞"): steps["SAM, p = ∞"].weights,
    ("ASAM", "authors' code", "popular code"): steps["ASAM, all"].weights,
    ("Eigen-SAM", "5 iterations", "exact eigenvector"): at(rho * top / top.norm()),
    ("GR", "double backward", "difference"): steps["GR, difference"].weights,
    ("RSAM", "eq. 11", "sign of Algorithm 2"): at(-epsilon["RSAM"]),
    ("RSAM", "eq. 11", "gradient of eq. 12"): steps["RSAM, exact"].weights,
    ("IGSAM", "EKFAC", "exact F + νI, same layers"): at(dense),
    ("IGSAM", "EKFAC", "(1 + μ) g"): steps["(1 + μ) g"].weights,
}


# %%
def two_steps(kind, **options) -> Tensor:
    """Return where two steps of a smoothness-adaptive method lead from θ₋."""

    def make(network: nn.Module):
        vector_to_parameters(theta_before.clone(), network.parameters())
        return kind(network.parameters(), eta0=eta, **options)

    return take_steps(make, model, inputs, targets, steps=2).weights


consistent = {"ascent": "gradient", "rho_rule": "sqrt_eta_over_beta"}
adaptive, descent = two_steps(SASAM), two_steps(SASGD)
of_sasam = {
    ("SA-SAM", "paper", "release"): two_steps(SASAM, variant="release"),
    ("SA-SAM", "ρ g/‖g‖, ρ² = η", "ρ g, ρ² = η/β"): two_steps(SASAM, **consistent),
}
of_sasgd = {("SA-SGD", "paper", "release"): two_steps(SASGD, variant="release")}


# %% tags=["hide-input", "nbval-rtol=1e-6"]
def over(one: Tensor, other: Tensor, start: Tensor) -> Tensor:
    return (one - other).norm() / (one - start).norm()


rows = {}
for key, other in others.items():
    one = steps[key[0]].weights
    rows[key] = over(one, other, theta), over(one, other, steps["SGD"].weights)
for key, other in of_sasam.items():
    rows[key] = over(adaptive, other, theta_before), over(adaptive, other, descent)
for key, other in of_sasgd.items():
    rows[key] = over(descent, other, theta_before), None
table(["method", "one", "other", "over the step", "over its departure"], rows)

# %% [markdown]
# * *SAM.* The same 0.05 in the maximum norm is another ball, of Euclidean radius up to $0.05\sqrt{286} \approx 0.85$.
#   A radius without its norm says nothing.
# * *RSAM.* With the sign that Algorithm 2 has in our copy the departure from descent is about reversed, a 2 in the last column.
#   The step by the gradient of equation 12 is further from the step of equation 11 than plain descent is.
# * *IGSAM.* At our damping $\nu = 0.01$ EKFAC's step is nearly as far from the step with the exact damped matrix as it is from descent.
#   It is about as far from $(1 + \mu)\,g$, which moves the normalisations as well.
#   Our $\nu$ is a round number, so the table below varies it.
# * *SA-SAM and SA-SGD.* The paper's $\vartheta_0 = \infty$ lets the second step size jump to $1/(2\beta_1)$, with $\beta_1$ the local smoothness of the first step, wherever $\eta_0$ was.
#   The release has $\vartheta_0 = 1$, and can grow by one percent a step.
#   These are two algorithms.
#   The row between has $\rho g$ in place of $\rho g/\lVert g\rVert$, and for $\rho$ the root of $\eta/\beta$, which then has the right units.
#
# How much of the IGSAM row is due to the damping?
# For $\nu$ over six decades the next table has the cosines between three directions: EKFAC's, that of the exact damped matrix, and the gradient.
# EKFAC does not cover the normalisations, so all three are taken in the layers that it covers, and the exact matrix is the block of $F$ that belongs to these.
# Then both go to the length 0.05: the column *steps apart* has, as above, the distance of the two steps over the departure of EKFAC's from descent, and the last two compare the departures themselves, by length and by cosine.

# %% tags=["nbval-rtol=1e-6"]
rows, covered_g = {}, g * covered
for exponent in range(-5, 2):
    damping = 10.0**exponent
    approximate = natural_gradient(linear, g, damping)
    exact = exact_natural_gradient(damping)
    one, other = (at(rho * d / d.norm()) for d in (approximate, exact))
    one, other = (step - steps["SGD"].weights for step in (one, other))  # departures
    apart = (one - other).norm() / one.norm()
    pairs = (approximate, exact), (approximate, covered_g), (exact, covered_g)
    compared = one.norm() / other.norm(), cosine(one, other)
    rows[f"1e{exponent}"] = *(cosine(*pair) for pair in pairs), apart, *compared
columns = ["cos(EKFAC, exact)", "cos(EKFAC, g)", "cos(exact, g)"]
table(["ν", *columns, "steps apart", "lengths", "cosine"], rows, spec=".3f")

# %%
if p.samples == 64 and p.seed == 0:  # a remark of the text below
    values, vectors = torch.linalg.eigh(hessian(loss, theta))
    steepest = values.abs().argsort(descending=True)[:10]
    parts = vectors.T @ natural_gradient(linear, g, 0.1)  # of ε, along each eigenvector
    shares = [q[steepest].square().sum() / q.square().sum() for q in (parts, values * parts)]
    assert shares[0] < 0.005 and shares[1] > 2 / 3

# %% [markdown]
# For a small $\nu$ the exact direction is far from the gradient: there the geometry is at work.
# From there up to $\nu = 0.1$ EKFAC's step differs from the exact one by 0.9 to 1.0 of its own departure from descent.
# So over these four decades what our EKFAC adds to descent is not what the idea asks for: its departure is at least as long as the exact one, and points elsewhere, as the last two columns say.
# A part of that is no fault of EKFAC's diagonal: the exact matrix couples the layers, and EKFAC goes a layer at a time; the two causes are not separated here.
# That may look like a mistake at $\nu = 0.1$, where the cosine of the two directions is 0.97.
# But a departure from descent is $-\eta H\varepsilon$ to first order, and $H$ enlarges what lies along steep directions.
# Take the ten eigenvectors of $H$ with the largest eigenvalues in size.
# Less than half a percent of $\lVert \varepsilon \rVert^2$ lies along them for EKFAC, but more than two thirds of $\lVert H\varepsilon \rVert^2$, as the cell above asserts.
# So two directions may have the cosine 0.97 and lead to departures that differ much.
# For a larger $\nu$ both directions turn to the gradient, as {eq}`eq-step-damping` says, and to each other.
# That is one network and one batch; and the normalisations, which EKFAC leaves out, are in neither $\varepsilon$.
#
# (step-scaler)=
# ## The same step under mixed precision
#
# In half precision small gradients would vanish.
# A `GradScaler` therefore multiplies the loss, divides the gradient again, and skips a step whose gradient overflowed.
# PyTorch's own refuses closures, which a method of several passes needs.
#
# So here the closure scales its loss, and the scaler is handed to `step`, which unscales every pass.
# The closure may also accumulate the gradient over parts of the batch, as in the cell; it is replayed as a whole.
# In float64 the result must be the step that we know.

# %%
network = deepcopy(model)
optimizer = SAM(network.parameters(), rho=rho, lr=eta)
scaler = torch.amp.GradScaler(p.device.type, init_scale=1024.0)


def scaled() -> None:
    optimizer.zero_grad()
    for x, y in zip(inputs.split(16), targets.split(16), strict=True):
        part = functional.cross_entropy(network(x), y) * len(x) / len(inputs)
        scaler.scale(part).backward()


optimizer.step(scaled, scaler=scaler)
scaler.update()
weights = parameters_to_vector(network.parameters()).detach()
assert (weights - steps["SAM"].weights).norm() < 1e-12 * (weights - theta).norm()

# %% [markdown]
# ## Deviations, and what failed
#
# * *Published radii do not travel.* They were chosen for other networks.
#   We left them as they are, and compared directions at one length.
# * *Warm starts.* Eigen-SAM goes on from its last eigenvector, IGSAM keeps its factors for ten steps.
#   A single step cannot show what that costs.
# * *One batch, one point, one step*, except in the tables of ten networks, which have ten batches and ten points.
#   Which method generalises better cannot be asked here.
# * *The equations of SAM, ASAM and Eigen-SAM carry no numbers of their papers*, since the book audits four others.
# * *IGSAM's $\mu$ and $\nu$ are ours.* The paper's, if it gives them, are in its supplement, which we did not have.
# * *The Rényi sharpness of the table* is that of the whole Hessian, negative eigenvalues by their absolute value, and not a layer's.
#
# ## Exercises
#
# **1.** Show that SAM's step does not change under $L \to \xi L$, $\eta \to \eta / \xi$, and that RSAM's with $\mu \to \xi\mu$ does not, either.
# What does SA-SAM's do?
#
# ````{dropdown} Solution
# $g / \lVert g\rVert$ is unchanged, so SAM's $\varepsilon$ is, and $\eta\nabla L(\theta + \varepsilon)$ with it.
# $R(g)$ is unchanged, and $\mu g/\lVert g\rVert^2$ as well.
# SA-SAM divides $\eta_t$ by $\xi$ by itself (once its first branch rules), but with it $\rho_t = \sqrt{\eta_t}$ by $\sqrt\xi$: another $\varepsilon$, and another step.
# The two-cycle says the same: its loss is 1/36 in every unit.
# ````
#
# **2.** For which $\alpha$ does the first-order rise $g^\top\varepsilon$ of RSAM not depend on the gradient at all, and what is $\varepsilon$ then?
#
# ````{dropdown} Solution
# $g^\top\varepsilon = -\mu \operatorname{sign}(1-\alpha)\, R(g)$.
# A gradient with one entry has $R = 1$ for $\alpha > 0$, so the constant would be 1, and with two equal entries $R = 2^{1 - \alpha}$, so only $\alpha = 1$ has it; it is excluded, for there the sign is 0.
# (At $\alpha = 0$ $R$ counts the entries that are not zero, a constant as long as none vanishes.)
# As $\alpha \to 1$ from above, $\varepsilon \to \mu\, g / \lVert g\rVert^2$: SAM with a radius that makes the first-order rise of the loss the constant $\mu$.
# ````
#
# **3.** A weight and its copy: replace a weight $\theta_1$ of a linear layer by the sum of two parameters $a + b$, each starting at $\theta_1 / 2$.
# How does $\theta_1 = a + b$ move under the $\varepsilon$ of SAM and of ASAM (with $t = 0$), if all else is fixed and $g$ has this one entry?
#
# ````{dropdown} Solution
# With one entry SAM moves $\theta_1$ by $\rho$, and ASAM by $\rho\,\theta_1^2 |g| / |\theta_1 g| = \rho |\theta_1|$ (up to the sign of $g$).
# With the copy the gradient is $(g, g)$.
# SAM moves each by $\rho / \sqrt 2$, the sum by $\sqrt 2\,\rho$.
# ASAM moves each by $\rho\, (\theta_1/2)^2 |g| / (\sqrt 2\, |\theta_1 g| / 2) = \rho |\theta_1| / (2\sqrt2)$, the sum by $\rho|\theta_1| / \sqrt 2$.
# ASAM (with $t = 0$, and all tensors scaled) does not see scalings and changes of sign of single weights, nor their permutation; other linear changes of the parameters, such as this one, it does see in general.
# ````
#
# **4.** Where the loss is $\frac12\theta^\top H\theta$, show that SAM of the right radius, gradient regularisation of the right weight and IGSAM's control $(\mu/\nu) g$ take the same step.
#
# ````{dropdown} Solution
# The gradient is linear, so $\nabla L(\theta + \varepsilon) = g + H\varepsilon$ without remainder.
# With $\varepsilon = r g$ all three follow $g + r H g$: SAM for $\rho = r\lVert g\rVert$, gradient regularisation for $2\mu = r$, the control for $\mu/\nu = r$.
# From the next step on SAM differs, as its $\rho$ does not follow $\lVert g\rVert$.
# ````
#
# ## How to cite
#
# Cite the book as `CITATION.cff` says, and the chapter as "One step, nine ways".
# The methods belong to the papers that the table at the top names.
