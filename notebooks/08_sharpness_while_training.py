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
# (chapter-monitor)=
# # Sharpness while a network trains
#
# **Question.** How sharp does training make a network, compared with the edge of stability?
#
# **Answer.** In three runs of a small tanh network gradient descent drives the Hessian's top eigenvalue past its edge and back.
# SAM's own edge sinks to a fifth of that, and the eigenvalue stays a tenth above it.
# SAM's bouncing alone could bring the ratio near one; the tenth is not explained.
#
# **Time.** Reading: about 20 minutes; running: about two minutes on one core.
#
# **You need:** {doc}`chapter 6 <06_steps_on_a_quadratic>`, its theorem of the edge in particular.
#
# None of the four papers claims this as its own; the SA-SAM paper cites a part of it (Section 2: under SAM the largest eigenvalues settle lower).
# The ledger's claim on that, `sasam-modified-edge`, is about quadratics, so there are no verdicts on this page: what we look for was fixed before the runs, and a table says whether it was found.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke, laptop or paper
seed = 0  # the first seed of the weights and the batches
runs = None  # seeds of each method; None: the profile's own number
steps = None  # steps of a run; None: the profile's own number
step_size = 0.1  # of every method
radius = 0.1  # of SAM
device = "cpu"  # cpu or cuda; auto: a GPU where there is one
store = None  # folder for new records; this chapter makes none

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import setup, table

p = setup(
    globals(),
    {
        "smoke": {"runs": 1, "steps": 100},
        "laptop": {"runs": 3, "steps": 1200},
        "paper": {"runs": 10, "steps": 5000},
    },
    allowed=["seed", "runs", "steps", "step_size", "radius"],
    threads=1,
)

import copy
import math
import statistics
import time
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils import parameters_to_vector

from paperkit.data import load
from paperkit.estimators import hessian_top_eigenvalues
from paperkit.linalg.probes import generator_of
from paperkit.monitor import SharpnessMonitor
from paperkit.optim import SAM
from paperkit.plotting import COLORS, MARKERS, QUIET

# %% [markdown]
# {doc}`Chapter 6 <06_steps_on_a_quadratic>` found how sharp a valley may be before a method leaves it.
# There the curvature was given.
# A network's curvature changes as it learns, and the question is where it goes.
#
# We watch this on real digits with a monitor that any training loop can call.
# It leaves training bit for bit as it was, and with its default budget takes about a tenth of the time at most.
#
# **Symbols.** They are those of the {doc}`notation page <../book/notation>`.
# The step size is $\eta$, SAM's radius $\rho$, and $\lambda_1$ is the largest eigenvalue of the Hessian of the training loss, whose gradient is $g$.
# As in chapter 6, $r$ is the strength of an un-normalised ascent and $\lambda^*$ an edge.
#
# **Computed here.** A network of 6,310 parameters is trained eleven times; all arithmetic is in float64.
#
# | statement | in the literature | here |
# |---|---|---|
# | progressive sharpening, and the edge of stability | {cite:t}`cohen2021`, Section 3 | {ref}`the figure <fig-monitor>` |
# | SAM's edge | {cite:t}`agarwala2023`; {cite:t}`long2024` | {eq}`eq-monitor-sam-edge` |
#
# (monitor-edges)=
# ## Two edges
#
# Gradient descent on a quadratic whose eigenvalues are positive reaches the minimum from every start if and only if $\lambda_1 < 2/\eta$: that is {prf:ref}`quad-edge` with $r = 0$.
# For $r > 0$ the theorem is about un-normalised ascent, which takes its gradient at $\theta + r g$ and has an edge $\lambda^*(\eta, r)$ of its own.
#
# SAM takes its gradient at $\theta + \rho\, g / \lVert g \rVert$, so at each step it is un-normalised ascent with $r = \rho / \lVert g \rVert$.
# Put this $r$ into the theorem, and SAM's edge at a point with gradient $g$ is
#
# $$
# \lambda^*\Big(\eta, \frac{\rho}{\lVert g \rVert}\Big)
# = \frac{\lVert g \rVert}{2\rho} \left( \sqrt{1 + \frac{8 \rho}{\eta \lVert g \rVert}} - 1 \right) .
# $$ (eq-monitor-sam-edge)
#
# It is below $2/\eta$ for every $\rho > 0$, and falls as the gradient shrinks: near a minimum it is about $\sqrt{2 \lVert g \rVert / (\eta\rho)}$.


# %%
def edge(eta: float, rho: float, gradient: Tensor) -> float:
    if rho == 0:
        return 2 / eta
    r = rho / float(gradient.norm())
    return (math.sqrt(1 + 8 * r / eta) - 1) / (2 * r)


# %% [markdown]
# The theorem is about a quadratic, and a network's loss is none: the runs below say how far it carries.
#
# What does it say if $\lambda_1 / \lambda^*$ is near one?
# For gradient descent the edge is a fixed number, so it is the curvature that has come to the edge.
#
# For SAM the edge moves, and the ratio says less.
# On a quadratic with distinct positive eigenvalues and $\lambda_1 < 2/\eta$ SAM ends, from almost every start, in a two-cycle along the steepest direction ({prf:ref}`quad-cycle`).
# The gradient there has just the length at which the edge equals $\lambda_1$ ({eq}`eq-quad-on-edge`).
# So it is the edge that has come to the curvature, and the ratio is one whatever $\lambda_1$ is.
# A ratio of one is necessary for that cycle, and not sufficient, and it cannot show that an edge holds the curvature down.
# Whether SAM bounces is seen elsewhere, in the angle between the gradients of neighbouring steps; on the cycle they are opposite.
#
# (monitor-run)=
# ## A monitored run
#
# The network has two hidden layers of 50 tanh units and reads 500 real 8 × 8 digits.
# Its loss is half the squared error against the one-hot labels.
# Cross-entropy would flatten by itself where the outputs grow large, and so hide an edge; this loss does not.
# With `rho=0` the optimizer SAM is plain gradient descent.

# %%
digits = load("digits", device=p.device, dtype=torch.float64).train
inputs, targets = digits.inputs[:500].flatten(1), one_hot(digits.targets[:500], 10).double()
eta, every = p.step_size, 20


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    hidden = [nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(50, 10)).double().to(p.device)


# %%
def loss_of(model: nn.Module, chosen: Tensor | slice = slice(None)) -> Tensor:
    return 0.5 * (model(inputs[chosen]) - targets[chosen]).square().sum(dim=1).mean()


def take_step(model: nn.Module, optimizer: SAM, chosen: Tensor | slice = slice(None)) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, chosen)
        loss.backward()
        return loss

    optimizer.step(closure)


def gradient_of(model: nn.Module) -> Tensor:
    return parameters_to_vector(torch.autograd.grad(loss_of(model), [*model.parameters()]))


# %% [markdown]
# A monitor takes two lines: one builds it, and `monitor.step()` is called after each step.
# Every 20 steps it reads the loss and $\lambda_1$ on all 500 digits, at the weights after the step.
# (Twenty is even, so that where a run bounces the readings are of one side; {ref}`the other side <monitor-bounce>` is read below.)
# The search for $\lambda_1$ goes on from where the last one ended, which saves Hessian products.
# At the same weights we note the edge.

# %%
MEASURES = ["mean_loss", "hessian_top_eigenvalues"]


def drawn(batch: int | None, draws: torch.Generator) -> Tensor | slice:
    if batch is None:
        return slice(None)
    # Drawn on the CPU, because a seed then means the same batches on every device.
    return torch.randint(500, (batch,), generator=draws).to(p.device)


def train(seed: int, rho: float = 0.0, batch: int | None = None, **options: Any) -> tuple:
    model, draws = network(seed), generator_of(seed)
    optimizer = SAM(model, rho=rho, lr=eta)
    monitor = SharpnessMonitor(model, (inputs, targets), MEASURES, "half_squared_error", **options)
    edges = []
    for _ in range(p.steps):
        take_step(model, optimizer, drawn(batch, draws))
        if monitor.step() is not None:
            edges.append(edge(eta, rho, gradient_of(model)))
    return model, monitor, edges


# %% [markdown]
# Three methods run from the same weights, three seeds each: gradient descent on all 500 digits, SGD on batches of 50 drawn anew for each step, and SAM on all digits.
# The monitor has no budget of time here, so that every reading is taken, however fast the machine.

# %%
METHODS = {
    "gradient descent": {},
    "SGD, batches of 50": {"batch": 50},
    "SAM": {"rho": p.radius},
}
followed = {
    name: [train(p.seed + k, every=every, budget=None, **options) for k in range(p.runs)]
    for name, options in METHODS.items()
}

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels against the step. Above: the largest eigenvalue. Gradient descent's curve rises from about ten to the dotted horizontal line at twenty, passes it, drops back, and swings about it. SGD's rises more slowly and stays a little below. SAM's starts at seven, falls, and stays just above a dashed curve that sinks from six to below four. Below: the losses, on a logarithmic axis; all fall to a few hundredths, gradient descent's with oscillations once it is on its edge."}, "figure": {"caption": "Above: the largest eigenvalue of the Hessian, with the edge of gradient descent (dotted) and that of SAM, which moves with the gradient (dashed). Below: the training loss. The thick curves are one seed, the thin ones the others.", "name": "fig-monitor"}}
figure, (upper, lower) = plt.subplots(2, figsize=(5.5, 6.8), sharex=True)
for color, marker, (name, all_runs) in zip(COLORS, MARKERS, followed.items(), strict=False):
    for k, (_, monitor, edges) in enumerate(all_runs):
        look = {"color": color, "ls": "-", "lw": 0.7}
        if k == 0:
            look |= {"lw": 2, "label": name, "marker": marker, "ms": 5, "markevery": 0.12}
        series = monitor.series()
        upper.plot(*series["hessian_top_eigenvalues"], **look)
        lower.semilogy(*series["mean_loss"], **look)
        if k == 0 and name == "SAM":
            where = series["mean_loss"][0]
            upper.plot(where, edges, color=color, ls="--", lw=1.2, label="SAM's edge")
upper.axhline(2 / eta, color=QUIET, ls=":", lw=1.4, label=r"$2/\eta$")
upper.set(ylabel=r"$\lambda_1$", ylim=(0, None))
lower.set(xlabel="step", ylabel="training loss")
upper.legend(loc=(0.3, 0.26))
plt.show()

# %% [markdown]
# **Progressive sharpening.** Under gradient descent $\lambda_1$ falls a little in the first steps, 60 at most, and then rises, to $2/\eta = 20$ and beyond.
#
# **The edge of stability.** Then the rise ends.
# On a quadratic with a curvature beyond the edge the steps would grow without bound.
# Here they do not: $\lambda_1$ drops back to the edge or below it and climbs again, in smaller swings, while the loss rises for moments, in one run to three times what it was.
# Over hundreds of steps the loss goes on falling.
# What turns $\lambda_1$ back, this page does not ask.
#
# **SGD** sharpens the loss more slowly, and in these 1,200 steps stays below gradient descent's edge.
#
# **SAM** stays far below gradient descent's edge.
# SAM's edge sinks as the gradient shrinks, to a fifth of $2/\eta$ at the end, and $\lambda_1$ sinks with it, about a tenth above it.
# Which of the two follows the other, the ratio cannot say.
#
# One criterion for each method makes this precise.
# The criteria were fixed before the runs of this page, after a look at runs with other settings; unlike the ledger's, they are recorded nowhere, so there is only our word for it.
# Take the median, over the second half of a run, of $\lambda_1$ divided by the method's edge; for SGD that is gradient descent's.
# In every run it must lie within 10 % of one for gradient descent and within 15 % of one for SAM; for SGD it must lie below one, and not below one half.
# For SAM this is a weak test, since a run on a two-cycle meets it whatever $\lambda_1$ is.
#
# The table has the least and the largest of these medians over the runs, and the method's edge at the end, a median of the last five readings, that is of the last 100 steps, of all runs.
# The smoke profile ends long before gradient descent's edge and judges nothing.

# %% tags=["nbval-rtol=0.05"]
RANGES = {"gradient descent": (0.9, 1.1), "SGD, batches of 50": (0.5, 1.0), "SAM": (0.85, 1.15)}


def ratios(monitor: SharpnessMonitor, edges: list[float]) -> list[float]:
    _, eigenvalues = monitor.series()["hessian_top_eigenvalues"]
    return [value / bound for value, bound in zip(eigenvalues, edges, strict=True)]


rows = []
for name, all_runs in followed.items():
    of_runs = [ratios(monitor, edges) for _, monitor, edges in all_runs]
    medians = [statistics.median(own[len(own) // 2 :]) for own in of_runs]
    last = statistics.median(edge for *_, edges in all_runs for edge in edges[-5:])
    inside = all(RANGES[name][0] <= median <= RANGES[name][1] for median in medians)
    found = "not judged" if p.profile == "smoke" else "yes" if inside else "no"
    rows.append([name, last, min(medians), max(medians), found])
columns = ["the method's edge at the end", "least median", "largest median", "as expected"]
table(["method", *columns], rows, spec=".2f")

# %% [markdown]
# On its way the largest reading of each run of gradient descent lies beyond gradient descent's edge, by between a twentieth and three tenths of it, and no reading of an SGD run reaches it.
# Over the first 400 steps SGD's $\lambda_1$ is the smaller on average, from each seed.
# The cell also holds the short fall of gradient descent's $\lambda_1$ against the weights before the first step, and its rise up to the edge.


# %%
def first_mean(monitor: SharpnessMonitor, until: int = 400) -> float:
    read, values = monitor.series()["hessian_top_eigenvalues"]
    return statistics.mean(v for step, v in zip(read, values, strict=True) if step <= until)


# %%
if p.profile != "smoke" and p.step_size == 0.1:  # another step size may not reach its edge
    peaks = [max(ratios(*one[1:])) for one in followed["gradient descent"]]
    assert all(1.05 <= peak <= 1.3 for peak in peaks)
    assert all(max(ratios(*one[1:])) < 1 for one in followed["SGD, batches of 50"])
    if p.profile == "laptop" and p.radius == 0.1:  # a longer run has more readings that scatter
        assert all(min(ratios(*one[1:])) > 1 for one in followed["SAM"])
    early = {name: [first_mean(monitor) for _, monitor, _ in followed[name]] for name in METHODS}
    pairs = zip(early["SGD, batches of 50"], early["gradient descent"], strict=True)
    assert all(sgd < descent for sgd, descent in pairs)
    for k, (_, monitor, _) in enumerate(followed["gradient descent"]):
        start = hessian_top_eigenvalues(
            network(p.seed + k), (inputs, targets), loss="half_squared_error"
        )
        read, values = monitor.series()["hessian_top_eigenvalues"]
        lowest = values.index(min(values))
        rise = [value for value in values[lowest : values.index(max(values))] if value < 2 / eta]
        assert values[lowest] < float(start) and read[lowest] <= 60 and rise == sorted(rise)

# %% [markdown]
# (monitor-bounce)=
# ## Does SAM bounce?
#
# Each run goes on for a hundred steps, which give a hundred cosines between the gradients of neighbouring steps.
# What does not turn is in the half-sum of two neighbours: the table has its length as a part of a gradient's, and the cosine between neighbouring half-sums.
# For gradients of equal length the first follows from their cosine: it is the root of half of one plus the cosine.
# The second is evidence of its own.
# Two neighbouring half-sums share a gradient: for independent gradients of many coordinates it is about ½.
# For noise over many directions of nearly the curvature $\lambda_1$, where each step multiplies what is there by $1 - \eta\lambda_1$ and adds new noise, it is about $1 - \eta\lambda_1 / 2$, a tenth for $\lambda_1 = 18$.
# (Along a single direction each cosine is 1 or −1.)
# The last column has the ratio of $\lambda_1$ to the edge at ten of the odd steps.
# Medians over the steps, least and largest of the runs:


# %%
def turns(model: nn.Module, rho: float = 0.0, batch: int | None = None) -> list[float]:
    """Return medians: neighbours' cosine, their half-sum's length, its cosine, λ₁ / edge."""
    model, draws, gradients, odd = copy.deepcopy(model), generator_of(p.seed), [], []
    optimizer, top = SAM(model, rho=rho, lr=eta), None
    for t in range(101):
        gradients.append(gradient_of(model))
        if (p.steps + t) % 10 == 5:
            top = hessian_top_eigenvalues(
                model, (inputs, targets), loss="half_squared_error", start=top
            )
            odd.append(float(top) / edge(eta, rho, gradients[-1]))
        take_step(model, optimizer, drawn(batch, draws))
    sums = [(g + h) / 2 for g, h in pairwise(gradients)]
    cosines = [float(torch.cosine_similarity(g, h, dim=0)) for g, h in pairwise(gradients)]
    lengths = [float(s.norm() / g.norm()) for s, g in zip(sums, gradients, strict=False)]
    steady = [float(torch.cosine_similarity(g, h, dim=0)) for g, h in pairwise(sums)]
    return [statistics.median(values) for values in (cosines, lengths, steady, odd)]


# %% tags=["nbval-rtol=0.25"]
rows = {}
for name, options in METHODS.items():
    found = zip(*(turns(model, **options) for model, *_ in followed[name]), strict=True)
    cosine, length, steady, odd = ((min(own), max(own)) for own in found)
    if p.profile == "laptop" and (p.step_size, p.radius) == (0.1, 0.1):
        if name == "SAM":
            assert -0.95 < cosine[0] <= cosine[1] < -0.3 and length[0] > 0.2 and steady[0] > 0.8
        assert name != "gradient descent" or cosine[1] < -0.95
    rows[name] = [f"{low:.1f} to {high:.1f}" for low, high in (cosine, length, steady)]
    rows[name].append(f"{odd[0]:.2f} to {odd[1]:.2f}")
columns = ["cosine", "half-sum", "cosine of half-sums", "λ₁ / edge, odd steps"]
table(["method", *columns], rows)

# %% [markdown]
# In all three, neighbouring gradients point against each other.
# Gradient descent's neighbouring gradients are opposite, as they would be along one direction.
# SAM's point against each other, too, but are not opposite: their half-sum has three to four tenths of a gradient's length, and hardly turns from step to step.
# So it is not on the two-cycle of a quadratic; a gradient that has not yet died out and a third derivative along the bounce would both look like this.
# The row of SGD warns: below the edge a step multiplies by $1 - \eta\lambda_1$, which is negative for $\lambda_1 > 1/\eta$, so that noise alone makes neighbours point against each other; a negative cosine is no sign of an edge.
# Its half-sums have the cosine 0.4 to 0.5.
# Noise along the steepest direction alone would have 1 or −1, and noise over many directions as steep a tenth, so it is neither.
# Flatter directions, where noise turns more slowly, would raise the tenth; so might a few directions of unequal weight.
# Over how many directions the rest bounces, this cosine cannot say.
# At odd steps, too, SAM's $\lambda_1$ lies about a tenth above the edge, so the tenth does not come from reading one side.
#
# In these runs every reading of SAM's ratio lies above one, in the median by a tenth; on a quadratic it would tend to one.
# Along the steepest direction SAM's step multiplies by $1 - \eta (\lambda_1 + \rho \lambda_1^2 / \lVert g \rVert)$, which is below $-1$ if and only if $\lambda_1$ is above the edge.
# So above the edge the gradient's part along that direction would grow from step to step, until the edge has risen to $\lambda_1$.
# The excess therefore comes either from what is not quadratic in this loss, or from runs that have not settled, as $\lambda_1$ and the edge sink to the end; we have not derived it.
#
# (monitor-cost)=
# ## What it costs
#
# A budget is the share of the whole time that the monitor may take, a tenth by default.
# Before it reads a measure, the monitor compares the cost with what the time so far allows; if that is too little, it skips this reading.
#
# The next cell runs SAM a second time under the default budget, and a third time without any monitor.
# How many readings fit depends on the machine, so the cell prints only what holds on all of them.
# The share is within the budget, up to the time of one reading.
# And the weights are the same to the last bit in all three runs.


# %%
def unmonitored(seed: int, rho: float) -> Tensor:
    model = network(seed)
    optimizer = SAM(model, rho=rho, lr=eta)
    for _ in range(p.steps):
        take_step(model, optimizer)
    return parameters_to_vector(model.parameters())


start = time.perf_counter()
model, monitor, _ = train(p.seed, rho=p.radius, every=every)
whole = time.perf_counter() - start
weights = [parameters_to_vector(m.parameters()) for m in (model, followed["SAM"][0][0])]
longest = max((reading.seconds for reading in monitor.readings), default=0.0)
print("within the budget:", monitor.share <= monitor.budget + longest / whole)
print("the same weights:", all(map(torch.equal, weights, 2 * [unmonitored(p.seed, p.radius)])))

# %% [markdown]
# In Lightning the same monitor is `Trainer(callbacks=[monitor.lightning_callback()])`, in transformers `Trainer(callbacks=[monitor.trainer_callback()])`, and in the library's own loop `train(..., on_step=monitor.step)`.
# {class}`~paperkit.monitor.SharpnessMonitor` follows every measure of this book, draws itself with `monitor.draw()`, and writes to anything that has a method `log`.
#
# ## Deviations, and what failed
#
# * *A small setting.* {cite:t}`cohen2021` train larger networks on 5,000 images of CIFAR-10, by gradient descent on all of them at once.
# * *Room in the criteria.* On the edge a run may multiply its rounding errors, so on another machine single steps may differ; the criteria leave room for that.
# * *SAM's excess over its edge* is measured here, and not explained.
#
# ## Exercises
#
# **1.** Show that SAM's edge {eq}`eq-monitor-sam-edge` tends to $2/\eta$ for a large gradient, and is about $\sqrt{2 \lVert g \rVert / (\eta\rho)}$ for a small one.
#
# ````{dropdown} Solution
# Let $x = 8\rho / (\eta \lVert g \rVert)$; the edge is $\frac{4}{\eta x} (\sqrt{1 + x} - 1)$.
# For small $x$ the bracket is about $x/2$, and the edge $2/\eta$.
# For large $x$ it is about $\sqrt x$, and the edge $\frac{4}{\eta \sqrt x} = \frac 4\eta \sqrt{\frac{\eta \lVert g \rVert}{8\rho}} = \sqrt{\frac{2 \lVert g \rVert}{\eta\rho}}$.
# ````
#
# **2.** Run the chapter with `steps=3000` and `step_size=0.05`.
# Where does gradient descent's sharpness end?
#
# ````{dropdown} Solution
# Near 30, below its edge of 40 and still rising, at a loss smaller than those at the end of this page's runs: sharpening slows down as the loss falls.
# So the table's first row says "no".
# ````
#
# ## How to cite
#
# Cite the book as `CITATION.cff` says.
# Progressive sharpening and the edge of stability belong to {cite:t}`cohen2021`; SAM's edge to {cite:t}`agarwala2023`, and in the form used here to {cite:t}`long2024`.
