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
# (chapter-five-minutes)=
# # Five minutes on a laptop
#
# Train a small residual network on real handwritten digits.
# Write down the exact curvature of the loss in every one of its layers.
# Then ask of each layer one question: is its curvature *spread* over many directions, or *gathered* in a few?
#
# The Rényi paper {cite:p}`renyi2025` says that this spread, and not the size of the curvature, tells how well a network generalizes.
# Whether it does is a matter for later chapters.
# Here we only look, but we look at everything: not at a few leading eigenvalues, not at a stochastic estimate, but at every eigenvalue of every layer.

# %% tags=["parameters"]
profile = "laptop"  # smoke, laptop or paper
dataset = None  # mnist5k, digits, fashion-mnist, …; None: the profile's own, here and below
model = None  # resnet8, lenet5, mlp, …
images = None  # training images, at most
epochs = None  # passes over them
samples = None  # images n on which the Hessian is measured; a multiple of 4
seed = 0  # of the network that is trained live
device = "auto"  # auto, cpu or cuda
store = None  # folder for new records; None: the repository's own

# %% tags=["hide-input"]
from paperkit.chapter import setup, table
from paperkit.experiments.studies import mnist5k_spectra, mnist5k_training

p = setup(
    globals(),
    {
        "smoke": {**mnist5k_training.SETTINGS["smoke"], "samples": 8, "dense": 200},
        "laptop": {**mnist5k_training.SETTINGS["laptop"], "samples": 100, "dense": 1000},
        "paper": {**mnist5k_training.SETTINGS["laptop"], "samples": 100, "dense": 1000},
    },
    allowed="dataset model images epochs samples seed device".split(),
)

# %% tags=["hide-input"]
import copy
import math
import statistics

import matplotlib.pyplot as plt
import torch

from paperkit import plotting
from paperkit.curvature import dense_hessian
from paperkit.estimators import layer_spectra, renyi_entropy, renyi_sharpness
from paperkit.experiments import run_study
from paperkit.ledger import show_verdicts
from paperkit.statistics.intervals import prediction_interval
from paperkit.training import evaluate

# %% [markdown]
# ## The question, and the verdicts
#
# What does the Hessian of a layer look like at a trained network, and how much of that does one number, its Rényi entropy, retain?

# %% tags=["hide-input"]
show_verdicts("01_five_minutes", p.profile, p.store)

# %% [markdown]
# **What to know first.** The gradient of a loss, and what an eigenvalue is.
# Symbols are those of the {doc}`notation page <../book/notation>`; {ref}`how to read a verdict <verdicts>` defines the words in the boxes.
#
# **Time and hardware.** Two cores and no GPU: about two minutes on the machine that the foot of the page names, most of them training.
# A network is trained and measured while you watch.
# The digits on the page are those of a network that was trained once, in the same way, and kept, so that they are the same on every processor.
# The verdicts rest on five networks, trained once with other seeds: their records are committed, and nothing of them is repeated here, except the measurements of the one that was kept.

# %% [markdown]
# ## Train
#
# The images are 28 × 28 pixels, the network is the residual network of eight layers in the family of He et al. {cite:p}`he2016`, the loss is the mean cross-entropy.
# Plain stochastic gradient descent with momentum will do.
# This cell runs on *your* machine, so its outcome is yours: another processor, or another number of threads, rounds differently, and training amplifies the difference.
# Whether it is like ours is asked {ref}`below <five-live>`.

# %% tags=["hide-input"]
setting = {name: getattr(p, name) for name in mnist5k_training.SETTINGS["laptop"]}
data = mnist5k_training.load_images(setting, p.device)
if p.samples % 4 or not 0 < 2 * p.samples <= len(data.train):
    most = len(data.train) // 8 * 4
    raise ValueError(f"samples is {p.samples}; give a multiple of 4, from 4 to {most}.")
print(data)
print(", ".join(f"{name} = {value}" for name, value in setting.items()))

# %%
network = mnist5k_training.build_model(setting, data, p.seed)
mnist5k_training.train_model(network, data, setting, p.seed)

live_test = evaluate(network, data.test)
assert math.isfinite(live_test.loss)

# %% [markdown]
# The same setting, with another seed, gave the network whose weights were kept, and which the page goes on with.
# If you have changed the setting, there is none, and it goes on with yours.

# %%
precise = mnist5k_training.load_images(setting, p.device, torch.float64)
if setting == mnist5k_training.SETTINGS["laptop"]:
    measured = mnist5k_training.load_trained(
        *mnist5k_spectra.kept_checkpoint("laptop", p.store), precise
    )
else:
    measured = copy.deepcopy(network).double()

# %% tags=["hide-input"] mystnb={"image": {"alt": "A row of handwritten digits from the test set, each with the class that the network gave it."}, "figure": {"caption": "Test images and what the network calls them. A wrong answer is crossed out, with the right one beside it.", "name": "fig-five-digits"}}
figure, grid = plt.subplots(1, 10, figsize=(9.2, 1.3), layout="constrained")
answers = measured.eval()(precise.test.inputs[:10]).argmax(dim=1)
for axes, image, answer, target in zip(
    grid.flat, data.test.inputs, answers, data.test.targets, strict=False
):
    axes.imshow(image[0].cpu(), cmap="gray_r")
    right, given = data.classes[target], data.classes[answer]
    axes.set_title(right if answer == target else f"✗ {given}, {right}", fontsize=9)
    axes.set_axis_off()
plt.show()

# %% [markdown]
# ## Measure
#
# Let $W_l$ be the weights of layer $l$, $d_l$ numbers in all.
# The layer's **Hessian block** $H_l$ is the $d_l \times d_l$ matrix of second derivatives of the training loss in these weights, everything else held fixed.
# Its eigenvalues $\lambda_1 \ge \lambda_2 \ge \dots$ say how fast the loss rises when the weights move: along the $j$-th eigenvector, by $\frac12 \lambda_j s^2$ for a step of length $s$ (where the gradient is small).
#
# The loss is the mean over the first $n$ training images.
# The last convolution has tens of thousands of weights, and its Hessian block more than a billion entries.
# None of them is ever written down.
# In a ReLU network the block is a Gauss–Newton matrix, exactly, and shares its nonzero eigenvalues with a small Gram matrix of $n(C-1)$ rows, where $C$ is the number of classes; {ref}`chapter 2 <chapter-curvature>` proves it.
# One forward pass and $C$ backward passes give the spectra of all layers.
#
# Small eigenvalues drown in the noise of single precision, so we measure in double.
# How many of the smallest are lost in the round-off of double precision depends on the processor, so the table says how many there can be.

# %%
inputs, targets = precise.train.inputs[: p.samples], precise.train.targets[: p.samples]

spectra = layer_spectra(measured, (inputs, targets))
assert all(s.rank <= s.rank_bound for s in spectra.values())

rank_bound = p.samples * (precise.num_classes - 1)
columns = ["layer", "weights", "nonzero eigenvalues, at most", "trace", "largest", "spectrum of"]
rows = {
    name: (s.dimension, s.rank_bound, s.trace, s.eigenvalues[0], s.obstacle or "Hessian")
    for name, s in spectra.items()
}
table(columns, rows, spec=".4g")

# %% [markdown]
# Before we believe it: write the Hessian block out entry by entry, by automatic differentiation, for the layers that are small enough, on two images.
# Its eigenvalues and ours must agree to the last digits of double precision.

# %%
few = (inputs[:2], targets[:2])
fast = layer_spectra(measured, few)
for name, s in fast.items():
    if s.dimension <= p.dense:
        dense = dense_hessian(measured, *few, parameters=[f"{name}.weight"])
        slow = torch.linalg.eigvalsh(dense).flip(0).cpu()
        padded = torch.nn.functional.pad(s.eigenvalues, (0, s.dimension - s.rank))
        assert (padded - slow).abs().max() < 1e-12 * slow[0]
        print(f"{name}: the spectra agree to below 1e-12")

# %% [markdown]
# ## Look

# %% tags=["hide-input"] mystnb={"image": {"alt": "One panel for each layer: its eigenvalues in descending order on two logarithmic axes. Each falls by ten or more orders of magnitude, slowly at first and then as a cliff at the rank bound; most of the axis beyond it is shaded as zero in the large layers."}, "figure": {"caption": "Every eigenvalue of every layer of the kept network. Dashed: the rank bound n(C − 1), where it is smaller than the number of weights. Grey: eigenvalues that are zero. Dotted: one hundredth of the largest.", "name": "fig-five-spectra"}}
plotting.plot_layer_spectra(
    {name: s.eigenvalues for name, s in spectra.items()},
    {name: s.dimension for name, s in spectra.items()},
    rank_bound,
)
plt.show()

# %% [markdown]
# The same numbers once more, in the way a physicist would look at them: every eigenvalue is a line of an emission spectrum.
# Flat directions are on the left, steep ones on the right.

# %% tags=["hide-input"] mystnb={"image": {"alt": "One black strip for each layer. Each eigenvalue is a bright vertical line at its place on a logarithmic axis: a dense continuum of small eigenvalues on the left, a few separate lines of large ones on the right."}, "figure": {"caption": "The spectra as emission spectra: one line for every nonzero eigenvalue of every layer.", "name": "fig-five-lines"}}
plotting.landing_figure(
    {name: s.eigenvalues.tolist() for name, s in spectra.items()},
    {name: s.dimension for name, s in spectra.items()},
)
plt.show()

# %% [markdown]
# Read one panel of the first figure from left to right.
# A handful of directions carry almost all of the curvature.
# Then comes a long slope, close to a straight line on these axes: a heavy tail.
# Then a cliff, and after it, exactly, nothing.
#
# Two kinds of flatness meet here, and they should not be mixed up.
# The zeros in the grey region are **forced**: $n$ images with $C$ classes cannot bend the loss in more than $n(C-1)$ directions, whatever was learned.
# The small eigenvalues to the left of the dashed line are **found**: nothing forces them to be small.
# (The last layer has a few forced zeros more: adding one vector to all its rows shifts all outputs alike, and the softmax does not see it.)

# %% [markdown]
# (five-entropy)=
# ## One number for a shape
#
# ````{prf:definition} Rényi sharpness of a layer
# :label: five-sharpness
#
# *Rényi paper, Definition 2.1 and equation (6).*
# Let $\lambda_j \ge 0$ be the eigenvalues of $H_l$, not all zero, and $q_j = \lambda_j / \sum_k \lambda_k$.
# For an order $\alpha > 0$, $\alpha \ne 1$, the Rényi entropy {cite:p}`renyi1961` of the spectrum is
#
# $$
# \mathcal H_\alpha(H_l) \;=\; \frac{1}{1-\alpha} \log \sum_j q_j^\alpha
# \;=\; \frac{1}{1-\alpha} \log \frac{\operatorname{Tr} H_l^\alpha}{(\operatorname{Tr} H_l)^\alpha},
# $$ (eq-five-entropy)
#
# with the limits $\log \#\{j : q_j > 0\}$ at $\alpha = 0$, $-\sum_j q_j \log q_j$ at $\alpha = 1$ and $-\log \max_j q_j$ at $\alpha = \infty$.
# The layer's **Rényi sharpness** of order $\alpha$ is $-\mathcal H_\alpha(H_l)$.
# ````
#
# The exponential of the entropy is an effective number of directions: if $k$ eigenvalues are equal and the rest zero, $\mathcal H_\alpha = \log k$ at every order.
# *Sharp* means: gathered in few directions.
# It does not mean: steep.
# Multiply $H_l$ by any $\kappa > 0$, and no $q_j$ moves.
#
# The definition, in code:


# %%
def entropy(eigenvalues: torch.Tensor, alpha: float) -> float:
    """Return the Rényi entropy of a spectrum without negative eigenvalues, in nats."""
    q = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    if alpha == 1:
        return float(-(q * q.log()).sum())
    if math.isinf(alpha):
        return float(-q.max().log())
    return float((q**alpha).sum().log()) / (1 - alpha)


for s in spectra.values():
    for alpha in (0, 0.25, 0.5, 1, 1.5, 2, math.inf):
        assert math.isclose(
            entropy(s.eigenvalues, alpha), renyi_entropy(s.eigenvalues, alpha), rel_tol=1e-10
        )

# %% [markdown]
# For a network of your own, the library goes from the model to the number in one call.

# %%
last_layer = list(spectra)[-1:]
sharpness = renyi_sharpness(measured, (inputs, targets), alpha=(0.5, 1.5), layers=last_layer)
for name, by_order in sharpness.items():
    assert math.isclose(by_order[0.5], -entropy(spectra[name].eigenvalues, 0.5), rel_tol=1e-9)
    print(*by_order.values(), sep="\n")

# %% [markdown]
# ## Two facts, with their proofs
#
# (five-order)=
# ````{prf:proposition} The entropy falls as the order grows
# :label: five-decreasing
#
# *Rényi paper, Section 2, property 2; the proof is ours.*
# $\mathcal H_\alpha$ does not increase in $\alpha$, and is constant only if all nonzero $q_j$ are equal.
# ````
#
# ````{prf:proof}
# Let $S = \sum_j q_j^\alpha$ and $z_j = q_j^\alpha / S$, a distribution again.
# Differentiate {eq}`eq-five-entropy`:
#
# $$
# \frac{d \mathcal H_\alpha}{d\alpha}
# = \frac{\log S}{(1-\alpha)^2} + \frac{\sum_j z_j \log q_j}{1-\alpha}
# = -\frac{1}{(1-\alpha)^2} \sum_j z_j \log \frac{z_j}{q_j} \;\le\; 0,
# $$
#
# because $\log z_j = \alpha \log q_j - \log S$, so that $\sum_j z_j \log (z_j / q_j) = (\alpha - 1) \sum_j z_j \log q_j - \log S$.
# This sum is the Kullback–Leibler divergence of $z$ from $q$: never negative, and zero only for $z = q$.
# At $\alpha = 1$ use continuity. ∎
# ````
#
# (five-cap)=
# ````{prf:corollary} The cap
# :label: five-cap-statement
#
# *Ours.* For softmax cross-entropy, at every order,
#
# $$
# \mathcal H_\alpha(H_l) \;\le\; \mathcal H_0(H_l) \;=\; \log \operatorname{rank} H_l
# \;\le\; \log \min\{\,n(C-1),\ d_l\,\}.
# $$ (eq-five-cap)
# ````
#
# ````{prf:proof}
# The first step is {prf:ref}`five-decreasing`, the last the rank bound of {prf:ref}`cor-hessian-block`. ∎
# ````
#
# So an order below 1 listens to the many small eigenvalues, an order above 1 to the few large ones.
# The paper uses ½ and 3/2, one of each kind.

# %% tags=["hide-input"] mystnb={"image": {"alt": "The Rényi entropy of each layer against the order, from one quarter to four. All curves fall steeply below order one and flatten above it; they cross."}, "figure": {"caption": "Rényi entropy of every layer against the order. The Rényi sharpness is its negative. The layers' curves cross: which of two layers is the sharper one depends on the order.", "name": "fig-five-orders"}}
orders = [0.25 + 0.125 * k for k in range(31)]
curves = {
    name: [renyi_entropy(s.eigenvalues, alpha) for alpha in orders] for name, s in spectra.items()
}
figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
plotting.plot_curves(axes, orders, curves)
axes.set(xlabel="order $\\alpha$", ylabel="Rényi entropy (nats)")
plt.show()

# %% [markdown]
# The paper reports that the computation becomes unstable as $\alpha$ approaches 1, for which its Appendix G.4 names negative eigenvalues as the reason, and leaves out the orders around it.
# Here nothing happens at 1.
# The formula has a removable singularity there; an exact spectrum without negative entries passes through it as through any other order.

# %% [markdown]
# (five-samples)=
# ## Values at different $n$ are never compared
#
# The cap {eq}`eq-five-cap` contains $n$.
# That alone would not make the entropy depend on it; a value far below its cap need not care.
# But it does care, and for the orders up to 1 there is a reason.
#
# ````{prf:proposition} Whole and halves
# :label: five-halves
#
# *Ours.* Let $n$ samples be split into two halves, $H_l'$ and $H_l''$ the blocks measured on each, and $w' = \operatorname{Tr} H_l' / (\operatorname{Tr} H_l' + \operatorname{Tr} H_l'')$, $w'' = 1 - w'$.
# If both blocks are positive semidefinite, then for $0 < \alpha \le 1$
#
# $$
# \mathcal H_\alpha(H_l) \;\ge\; w'\, \mathcal H_\alpha(H_l') + w''\, \mathcal H_\alpha(H_l'').
# $$ (eq-five-halves)
# ````
#
# ````{prf:proof}
# The loss is a mean over samples, so $H_l = \frac12 (H_l' + H_l'')$.
# Divided by its trace it is $\rho = w' \rho' + w'' \rho''$, where $\rho'$ and $\rho''$ are the halves divided by theirs.
# For $\alpha < 1$ the function $x^\alpha$ is concave, hence so is $\rho \mapsto \operatorname{Tr} \rho^\alpha$ (Peierls and Klein: in the eigenbasis $v_j$ of $\rho$, Jensen gives $\langle v_j, \rho' v_j \rangle^\alpha \ge \langle v_j, \rho'^\alpha v_j \rangle$, and likewise for $\rho''$).
# The logarithm is concave and increasing, and $1/(1-\alpha)$ positive, so $\mathcal H_\alpha$ is concave in $\rho$.
# For $\alpha = 1$ take the limit. ∎
# ````
#
# On average, then, doubling the data can only raise the entropy.
# It does so until new images stop bringing new directions, and at order ½ that is far away.

# %%
ladder = [p.samples // 4, p.samples // 2, p.samples, 2 * p.samples]
by_n = {n: mnist5k_spectra.spectra_on(measured, precise, slice(n)) for n in ladder}

middle = slice(p.samples // 2, p.samples)
halves = [by_n[p.samples // 2], mnist5k_spectra.spectra_on(measured, precise, middle)]
slack = mnist5k_spectra.halves_slack(by_n[p.samples], halves)
assert slack > -1e-10
print("the whole has more entropy than its halves: in every layer, at every order up to 1")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Entropy of each layer against the number of samples on a logarithmic axis, at order one half on the left and three halves on the right. On the left every curve rises, below the dashed line of the cap. On the right the curves are lower and rise less."}, "figure": {"caption": "The same network, measured on more and more images. Dashed: the logarithm of n(C − 1), which caps the layers with more weights than that. At order ½ (left) the entropy rises; at order 3/2 (right), which listens to the few largest eigenvalues, less so.", "name": "fig-five-samples"}}
figure, panels = plt.subplots(1, 2, figsize=(9.2, 3.6), sharey=True, layout="constrained")
for axes, alpha, title in zip(panels, (0.5, 1.5), ("order ½", "order 3/2"), strict=True):
    curves = {
        name: [renyi_entropy(by_n[n][name].eigenvalues, alpha) for n in ladder] for name in spectra
    }
    plotting.plot_curves(axes, ladder, curves)
    caps = [math.log(n * (precise.num_classes - 1)) for n in ladder]
    axes.plot(ladder, caps, color=plotting.INK, linestyle="--", linewidth=1)
    axes.set(title=title, xscale="log", xlabel="images $n$")
    axes.set_xticks(ladder, ladder)
    axes.minorticks_off()
panels[0].get_legend().remove()
panels[0].set_ylabel("Rényi entropy (nats)")
plt.show()

# %% [markdown]
# Hence the rule of this book: every entropy is quoted with its $n$, and two entropies are compared only at the same $n$ and on the same images.

# %% [markdown]
# (five-live)=
# ## Layer by layer, and five other networks
#
# Is the network that you trained like ours?
# The study `mnist5k_training` trained five, with seeds that this chapter does not use live, and `mnist5k_spectra` measured them.
# From their records comes, before your run, the interval in which one more network should lie.
# It is the mean ± $t\, s \sqrt{1 + 1/k}$ over $k$ networks with standard deviation $s$, with Student's $t$ for a coverage of 99.9 %.
# Five values can agree by luck, so no interval is made narrower than a floor: ± 2 percentage points for the accuracy, ± 0.2 nats for an entropy, which is a fifth in the effective number of directions.
# An interval from five networks is wide.
# It catches a broken run, not a small difference.

# %%
study_profile = "smoke" if p.profile == "smoke" else "laptop"
trained = run_study("mnist5k_training", study_profile, p.store)
records = run_study("mnist5k_spectra", study_profile, p.store)
per_n = {}
for record in records:
    per_n.setdefault(record.configuration["n"], []).append(record)
n_table = sorted(per_n)[len(per_n) // 2]


def band(values: list[float], floor: float) -> tuple[float, float]:
    """Return where one more value should lie: a 99.9 % prediction interval, or the floor."""
    low, high = prediction_interval(values, coverage=0.999)
    middle = statistics.fmean(values)
    return min(low, middle - floor), max(high, middle + floor)


# %% [markdown]
# The comparison is made where there is something to compare with: the same data, network, epochs and $n$.
# If you changed a parameter other than the seed, the next cell says that there is no record, and nothing fails.

# %% tags=["hide-input"]
alike = setting == mnist5k_training.SETTINGS[study_profile] and p.samples in per_n
compared = alike and len(trained) >= 3
if compared:
    live_spectra = layer_spectra(copy.deepcopy(network).double(), (inputs, targets)).values()
    low, high = band([r.metrics["test_accuracy"] for r in trained], floor=0.02)
    assert low <= live_test.accuracy <= high, "the accuracy lies outside the records' interval"
    print(f"test accuracy: between {low:.1%} and {min(high, 1):.1%}, as it should")
    for key in ("0.5", "1.5"):
        means = [statistics.fmean(r.metrics["entropy"][key].values()) for r in per_n[p.samples]]
        low, high = band(means, floor=0.2)
        live = statistics.fmean(renyi_entropy(s.eigenvalues, float(key)) for s in live_spectra)
        assert low <= live <= high, f"the mean entropy of order {key} lies outside its interval"
        print(f"mean entropy of order {key}: between {low:.3f} and {high:.3f}, as it should")
else:
    print("There is no record of this setting to compare with.")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Rényi entropy of order one half and of order three halves for each layer from the input to the output. Grey dots show the recorded networks; the kept network lies among them."}, "figure": {"caption": "The layer profile of the kept network. Grey: the recorded networks, of which it is one.", "name": "fig-five-profile"}}
figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
for series, (key, title) in enumerate({"0.5": "order ½", "1.5": "order 3/2"}.items()):
    values = {name: renyi_entropy(s.eigenvalues, float(key)) for name, s in spectra.items()}
    others = [r.metrics["entropy"][key] for r in per_n[p.samples]] if compared else []
    plotting.plot_layer_profile(axes, values, others, label=title, series=series)
axes.set(ylabel="Rényi entropy (nats)")
axes.legend()
plt.show()

# %% [markdown]
# (five-record)=
# ## What the record says
#
# The first table is the mean and standard deviation over the recorded networks, layer by layer.


# %% tags=["hide-input"]
def spread(values: list[float]) -> str:
    """Return mean ± standard deviation; a single value as it is."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


at_n = [record.metrics for record in per_n[n_table]]
accuracies = [100 * record.metrics["test_accuracy"] for record in trained]
print(f"{len(trained)} networks, test accuracy {spread(accuracies)} %; spectra at n = {n_table}")
columns = {f"entropy, order {key}": [m["entropy"][key] for m in at_n] for key in ("0.5", "1.5")}
columns["small, of all"] = [m["small_fraction"] for m in at_n]
columns["small, of the unforced"] = [m["small_fraction_of_cap"] for m in at_n]
layers = at_n[0]["layers"]
rows = {name: [spread([m[name] for m in own]) for own in columns.values()] for name in layers}
table(["layer", *columns], rows)

# %% [markdown]
# And here one of these measurements is made again, from the weights that were kept.
# Same weights, same images, double precision: the numbers must agree with the record to one part in a million.
# The order ¼ is left out; the section after next says why.

# %%
kept, path = mnist5k_spectra.kept_checkpoint(study_profile, p.store)
kept_data = mnist5k_training.load_images(kept, dtype=torch.float64)
kept_network = mnist5k_training.load_trained(kept, path, kept_data)
again = mnist5k_spectra.spectra_on(kept_network, kept_data, slice(n_table))

(record,) = [r for r in per_n[n_table] if mnist5k_spectra.setting_of(r.configuration) == kept]
recomputed = {k: v for k, v in mnist5k_spectra.entropies(again).items() if float(k) >= 0.5}
for order, by_layer in recomputed.items():
    for name, value in by_layer.items():
        assert math.isclose(value, record.metrics["entropy"][order][name], rel_tol=1e-6)
rows = {name: [by_layer[name] for by_layer in recomputed.values()] for name in again}
table(["layer", *(f"order {order}" for order in recomputed)], rows, spec=".6f")

# %% [markdown]
# ## Paper against ours
#
# The paper estimates its spectra stochastically, on networks with millions of parameters.
# It shows histograms of single layers and describes them in words: *heavy-tailed*, *zero-dominant*.
# Words need a criterion before they can be checked.
# Ours is the column *small, of all* in the table above: the fraction of a layer's eigenvalues, zeros included, below one hundredth of the largest.
#
# By itself that fraction proves little.
# A layer with many more weights than $n(C-1)$ is dominated by zeros whatever the network does, and so are the paper's: its estimates take $n = 2000$ images of $C = 10$ or 100 classes, and the wide layers of its residual networks have more than two million weights each.
# The column *small, of the unforced* is the fair question.
# It leaves out the zeros that are forced, and asks how many of the eigenvalues that *could* be large are small.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two points for each layer: the fraction of all its eigenvalues below one hundredth of the largest, and the same among the eigenvalues that the rank bound leaves free. A dotted line marks nine tenths."}, "figure": {"caption": "How much of each layer's spectrum is near zero, in the recorded networks (mean over seeds): of all eigenvalues, and of those that the number of samples does not force to be zero. Dotted: our criterion.", "name": "fig-five-small"}}
figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
for series, (key, title) in enumerate(
    {"small_fraction": "of all", "small_fraction_of_cap": "of the unforced"}.items()
):
    means = {name: statistics.fmean(m[key][name] for m in at_n) for name in at_n[0]["layers"]}
    plotting.plot_layer_profile(axes, means, label=title, series=series)
axes.axhline(0.9, color=plotting.INK, linestyle=":", linewidth=1)
axes.set(ylabel="fraction below $\\lambda_1 / 100$", ylim=(0.88, 1.005))
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# The verdicts, with their criteria and evidence, are at the top of this page and in the {ref}`ledger <ledger>`.
# They are about this network, these digits and these $n$, and say nothing about the paper's own networks.
# Its claim that the entropy correlates with generalization is not touched here at all.
#
# **Deviations.**
# * Another network, other data, fewer images: see the scale of each verdict.
#   The `paper` profile has nothing of its own in this chapter, and runs what `laptop` runs.
# * Exact spectra instead of Lanczos quadrature with random probes.
#   What the estimate does to the value is a chapter of its own.
# * One Hessian of the training loss without weight decay, with frozen statistics of batch normalisation, on images as they are.
#   The paper does not say more than that it draws its images at random and does not augment them.

# %% [markdown]
# ## What failed
#
# **Orders below ½.**
# In double precision an eigenvalue smaller than some $10^{-12}$ of the largest is lost in the round-off of the largest, and counts as zero.
# How many there are depends on the machine.
# Order 2 never notices.
# Order ¼ takes fourth roots, and the fourth root of $10^{-12}$ is $10^{-3}$.
#
# If $k$ eigenvalues of at most $\varepsilon$ each were dropped, $\sum_j q_j^\alpha$ has lost at most $k\, (\varepsilon / \operatorname{Tr} H_l)^\alpha$, for $\alpha < 1$.
# The table turns this into the largest possible error of the entropy, in the worst layer of the kept network.

# %%
worst = {}
for alpha in (0.1, 0.25, 0.5, 0.75):
    errors = []
    for s in again.values():
        missing = s.rank_bound - s.rank
        total = float(((s.eigenvalues / s.trace) ** alpha).sum())
        lost = missing * (s.tolerance / s.trace) ** alpha
        errors.append(math.log1p(lost / total) / (1 - alpha))
    assert alpha < 0.5 or max(errors) < 1e-3  # the tables show thousandths of a nat
    worst[alpha] = math.ceil(math.log10(max(1e-16, *errors)))
bounds = {alpha: f"below 1e{exponent}" for alpha, exponent in worst.items()}
table(["order", "error of the entropy (nats)"], bounds)

# %% [markdown]
# So an order near zero does not measure the network, it measures the arithmetic.
# At ½ and above the error is far below every difference that we discuss.
#
# **The paper's two categories.**
# It sorts layers into *multi-cluster* and *uniform* spectra, and chooses the order by category.
# We could not turn the two words into a rule that two readers would apply alike: on logarithmic axes a gap between clusters is a bend in a curve, and every layer has bends.
# There is no claim about it in the ledger.

# %% [markdown]
# ## Exercises
#
# 1. Show that $\mathcal H_\alpha(\kappa H) = \mathcal H_\alpha(H)$ for $\kappa > 0$, and conclude that neither the factor in front of the loss nor the unit of a whole layer's weights matters.
#
# ````{dropdown} Solution
# The $q_j$ are ratios of eigenvalues, and $\kappa$ cancels.
# A factor in the loss multiplies $H$.
# A layer whose weights are written in another unit, $W_l = u\, V_l$, has the Hessian $u^2 H_l$ in $V_l$.
# That is the whole content of the paper's invariance; {ref}`chapter 3 <chapter-reparametrization>` finds its border.
# ````
#
# 2. A spectrum has one eigenvalue $1$ and $k$ eigenvalues $\varepsilon$.
#    At which $k$ does the entropy of order ½ reach that of two equal eigenvalues, for $\varepsilon = 10^{-6}$?
#    And the entropy of order 2?
#
# ````{dropdown} Solution
# Order ½: $2 \log \big( (1 + k \sqrt\varepsilon) / \sqrt{1 + k \varepsilon} \big) = \log 2$ means $1 + 10^{-3} k = \sqrt{2\,(1 + 10^{-6} k)}$, so $k \approx 415$.
# Order 2: $(1 + k\varepsilon)^2 = 2\,(1 + k \varepsilon^2)$, so $k \approx (\sqrt 2 - 1) \cdot 10^{6}$.
# One order sees the dust a thousand times sooner than the other.
# ````
#
# 3. The proof of {prf:ref}`five-halves` needs $\alpha \le 1$.
#    Find two positive semidefinite $2 \times 2$ matrices whose mean has a *smaller* entropy of order $\infty$ than the weighted mean of theirs.
#
# ````{dropdown} Solution
# Diagonal ones will do, with trace 1.
# Take $\rho' = \operatorname{diag}(1, 0)$ and $\rho'' = \operatorname{diag}(\frac12, \frac12)$.
# Their mean is $\operatorname{diag}(\frac34, \frac14)$, with entropy $-\log \frac34 = 0.288$.
# The mean of the entropies is $\frac12 \log 2 = 0.347$.
# ````
#
# 4. Run this chapter on another data set: `papermill notebooks/01_five_minutes.ipynb out.ipynb -p dataset fashion-mnist`.
#    Then with `-p model mlp`.
#    Which feature of the spectra stays, and which goes?
#
# ````{dropdown} Hint
# Look at the first layer.
# In a fully connected network it sees whole images, most of whose border pixels never change.
# ````

# %% [markdown]
# ## How to cite
#
# The Rényi paper is {cite:t}`renyi2025`; the residual network is from {cite:t}`he2016`, the digits are a part of MNIST {cite:p}`lecun1998`.
# For this book see `CITATION.cff` in the repository, and quote the commit that the footer of this page names.
