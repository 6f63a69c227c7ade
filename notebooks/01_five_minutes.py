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
# **Question.** What does the Hessian of a layer look like at a trained network, and how much of that does one number, its Rényi entropy, retain?
#
# **Answer.** Nearly all eigenvalues are small: on 100 images, 90 % or more of those that can be nonzero lie below 1 % of the layer's largest, in each of five networks.
# The entropy keeps how evenly they are spread, and not their size.
# At order ½ it grew with the number of images, from 50 to 200.
#
# **Time.** Reading: about 35 minutes; running: about two minutes on two cores, most of them training.
#
# **You need:** the gradient of a loss, and what an eigenvalue is; for two proofs, Jensen's inequality and the Kullback–Leibler divergence.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke or laptop
dataset = None  # mnist5k, digits, fashion-mnist, …; None: the profile's own, here and below
model = None  # resnet8, lenet5, mlp, …
images = None  # training images, at most
epochs = None  # passes over them
samples = None  # images n on which the Hessian is measured; a multiple of 4
seed = 0  # of the network that is trained live
device = "auto"  # auto, cpu or cuda
store = None  # folder for new records; None: the repository's own

# %% tags=["remove-input"]
from paperkit.ledger import show_verdicts

show_verdicts(
    "01_five_minutes",
    profile,
    store,
    first=[
        "renyi-zero-dominant",
        "spectra-entropy-decreasing",
        "entropy-grows-with-samples",
        "entropy-halves",
        "spectra-small-below-the-cap",
    ],
)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import setup, table
from paperkit.experiments.studies import mnist5k_spectra, mnist5k_training

p = setup(
    globals(),
    {
        "smoke": {**mnist5k_training.SETTINGS["smoke"], "samples": 8, "dense": 200},
        "laptop": {**mnist5k_training.SETTINGS["laptop"], "samples": 100, "dense": 1000},
    },
    allowed="dataset model images epochs samples seed".split(),
)

import copy
import math
import statistics

import matplotlib.pyplot as plt
import torch

from paperkit import plotting
from paperkit.curvature import dense_hessian
from paperkit.estimators import layer_spectra, renyi_entropy, renyi_sharpness
from paperkit.experiments import run_study
from paperkit.statistics.intervals import prediction_interval
from paperkit.training import evaluate

# %% [markdown]
# Train a small residual network on real handwritten digits.
# Write down the exact curvature of the loss in every one of its layers.
# Then ask of each layer one question: is its curvature *spread* over many directions, or *gathered* in a few?
#
# The Rényi paper {cite:p}`renyi2025` says that this spread, and not the size of the curvature, tells how well a network generalizes.
# (It uses the word the other way round: its *spread* is how far eigenvalues differ from one another, so that a large spread is a small entropy.)
# In this book curvature is called spread when it is even.
# Whether that tells how well a network generalizes is a matter for later chapters.
# Here we only look, but we look at everything: not at a few leading eigenvalues, not at a stochastic estimate, but at every eigenvalue of every layer.
# Every value belongs to its number $n$ of images: two layers are compared only at the same $n$ and on the same images.
# How one network's value moves with $n$ is a question of its own, and has {ref}`a section <five-samples>`.
#
# **Symbols.** They are those of the {doc}`notation page <../book/notation>`.
# A few letters have a meaning of their own on this page: $z_j$ and $Z$ belong to a spectrum, $\rho$ is a matrix of trace one, $w'$ and $w''$ are the weights of a mean, $s_i$ is a share, and $\varepsilon$ is a small eigenvalue.
#
# **Computed here.** A network is trained and measured while you watch, without a GPU; the foot of the page names the machine on which that takes two minutes.
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

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two rows of handwritten digits from the test set, each with the class that the network gave it."}, "figure": {"caption": "Test images and what the network calls them. A wrong answer is crossed out, with the right one beside it.", "name": "fig-five-digits"}}
figure, grid = plt.subplots(2, 5, figsize=(5.5, 2.7))
answers = measured.eval()(precise.test.inputs[:10]).argmax(dim=1)
for axes, image, answer, target in zip(
    grid.flat, data.test.inputs, answers, data.test.targets, strict=False
):
    axes.imshow(image[0].cpu(), cmap="gray_r")
    right, given = data.classes[target], data.classes[answer]
    axes.set_title(right if answer == target else f"✗ {given}, {right}")
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
# Our network has batch normalisation; we measure in evaluation mode, where its statistics are constants.
# In a ReLU network of this kind the block is a Gauss–Newton matrix, exactly, for almost all weights, and shares its nonzero eigenvalues with a small Gram matrix of $n(C-1)$ rows, where $C$ is the number of classes; {ref}`chapter 2 <chapter-curvature>` proves it.
# So no layer has more than $\min\{n(C-1),\, d_l\}$ nonzero eigenvalues, its **rank bound**.
# One forward pass, $C$ backward passes and one small eigenvalue problem for each layer give all the spectra.
#
# Small eigenvalues drown in the noise of single precision, so we measure in double.
# Some of the smallest are lost in the round-off of double precision all the same, and how many depends on the processor; so the column *rank bound* says how many can be nonzero, and not how many were found.

# %%
inputs, targets = precise.train.inputs[: p.samples], precise.train.targets[: p.samples]

spectra = layer_spectra(measured, (inputs, targets))

rank_bound = p.samples * (precise.num_classes - 1)
columns = ["layer", "weights", "rank bound", "trace", "largest", "spectrum of"]
rows = {
    name: (s.dimension, s.rank_bound, s.trace, s.eigenvalues[0], s.obstacle or "Hessian")
    for name, s in spectra.items()
}
table(columns, rows, spec=".4g")

# %% [markdown]
# Before we believe it: write the Hessian block out entry by entry, by automatic differentiation, for the layers that are small enough, on two images.
# Its eigenvalues and ours must agree to 1e-12 of the largest.
# The dense matrix knows nothing of the rank bound, so it is the one that can contradict it.

# %%
few = (inputs[:2], targets[:2])
fast = layer_spectra(measured, few)
for name, s in fast.items():
    if s.dimension <= p.dense:
        dense = dense_hessian(measured, *few, parameters=[f"{name}.weight"])
        slow = torch.linalg.eigvalsh(dense).flip(0).cpu()
        padded = torch.nn.functional.pad(s.eigenvalues, (0, s.dimension - s.rank))
        assert (padded - slow).abs().max() < 1e-12 * slow[0]
        nonzero = int((slow.abs() > 1e-12 * slow[0]).sum())
        assert nonzero <= s.rank_bound
        print(f"{name}: the spectra agree to below 1e-12;")
        print(f"  {nonzero} of {s.dimension} not zero, at most {s.rank_bound}")

# %% [markdown]
# ## Look

# %% tags=["hide-input"] mystnb={"image": {"alt": "One panel for each layer: its eigenvalues in descending order on two logarithmic axes. All but the first fall by ten or more orders of magnitude, slowly at first and then as a cliff at the rank bound; most of the axis beyond it is shaded as zero in the large layers."}, "figure": {"caption": "Every eigenvalue of every layer of the kept network. Dashed: the rank bound n(C − 1), where it is smaller than the number of weights. Grey: counted as zero. Dotted: one hundredth of the largest.", "name": "fig-five-spectra"}}
plotting.plot_layer_spectra(
    {name: s.eigenvalues for name, s in spectra.items()},
    {name: s.dimension for name, s in spectra.items()},
    rank_bound,
)
plt.show()

# %% [markdown]
# The same numbers once more, in the way a physicist would look at them: every eigenvalue is a line of an emission spectrum.
# Flat directions are on the left, steep ones on the right.

# %% tags=["hide-input"] mystnb={"image": {"alt": "One strip for each layer. Each eigenvalue is a vertical line at its place on a logarithmic axis: a dense continuum of faint lines of small eigenvalues on the left, a few separate strong lines of large ones on the right. The rightmost stretch, with a few lines in each strip, is shaded; the title says what share of the trace they carry."}, "figure": {"caption": "The spectra as line spectra: one line for every nonzero eigenvalue of every layer, the stronger the larger. Shaded is the range of eigenvalues in which the fewest directions lie that carry nine tenths of the trace of all blocks together; a layer may have none there.", "name": "fig-five-lines"}}
plotting.landing_figure(
    {name: s.eigenvalues.tolist() for name, s in spectra.items()},
    {name: s.dimension for name, s in spectra.items()},
    narrow=True,
)
plt.show()

# %% [markdown]
# Read one panel of the figure of spectra, {numref}`fig-five-spectra`, from left to right.
# Few directions carry most of the curvature: five of them between 74 and 95 per cent, depending on the layer.
# Then comes a long slope, which bends: it is steeper, the further one goes.
# Then a cliff, and after it nothing that round-off would let us see.
# (The first layer's curve ends because it has only 144 weights.)
# The slopes of fitted lines show the bend (the second range ends where a spectrum does).


# %%
def slope(eigenvalues: torch.Tensor, first: int, last: int) -> float:
    """Return the logarithmic slope of a part of a spectrum."""
    part = eigenvalues[first - 1 : last].log()
    index = torch.arange(first, first + len(part), dtype=part.dtype, device=part.device).log()
    index = index - index.mean()
    return float(index @ part / (index @ index)) if len(part) > 2 else math.nan


ends = (1, p.samples // 2), (p.samples, 4 * p.samples)
columns = [f"slope from {first} to {last}" for first, last in ends]
rows = {
    name: [slope(s.eigenvalues, *end) for end in ends]  # a row for each layer
    for name, s in spectra.items()
}
table(["layer", *columns], rows, spec=".1f")

# %% [markdown]
# The paper calls such spectra *heavy-tailed*.
# If $\lambda_j$ falls like $j^{-s}$, the share of eigenvalues above $x$ falls like $x^{-1/s}$, so the tail is the left end of these panels: some fifty numbers.
#
# Two kinds of flatness meet in that figure, and they should not be mixed up.
# Beyond the dashed line zeros are **forced**: $n$ images with $C$ classes cannot bend the loss in more than $n(C-1)$ directions, whatever was learned.
# The small eigenvalues to the left of the dashed line are **found**: no count forces them to be small.
# Between the end of the curve and the dashed line stand dozens in each large layer, up to about a hundred, that are allowed, and too small for double precision to tell from zero; they are counted as zero.
# (The last layer has 64 forced zeros more, one for each of its inputs: adding one vector to all its rows shifts all outputs alike, and the softmax does not see it.)

# %% [markdown]
# (five-images)=
# ## Which images bend the loss?
#
# Something else can make many of them small.
# The block is a mean over images, $H_l = \frac1n \sum_i J_{l,i}^\top \Lambda_i J_{l,i}$, where $J_{l,i}$ is the derivative of the outputs in the weights, $p_i$ are the network's probabilities for image $i$, and $\Lambda_i = \operatorname{diag}(p_i) - p_i p_i^\top$.
# An image of whose class the network is certain has a $p_i$ near a unit vector, and then $\Lambda_i$ is almost zero: the image has next to no say in any layer.
#
# The trace of a mean is the mean of the traces, so each image has a share in the trace of each layer, and the shares $s_i$ add up to one.
# If $k$ images had all of the trace in equal parts, $1 / \sum_i s_i^2$ would be $k$; we call it the **effective number of images**.

# %%
bends = {name: torch.zeros(p.samples, dtype=torch.float64, device="cpu") for name in spectra}
for i in range(p.samples):
    one = layer_spectra(measured, (inputs[i : i + 1], targets[i : i + 1]))
    for name, s in one.items():
        bends[name][i] = s.trace / p.samples
shares = {name: part / spectra[name].trace for name, part in bends.items()}
assert all(abs(share.sum() - 1) < 1e-10 for share in shares.values())

prob = measured.eval()(inputs).detach().softmax(dim=1)
doubt = (1 - (prob**2).sum(dim=1)).cpu()  # the trace of Λ_i
shares["Λ alone"] = doubt / doubt.sum()
columns = ["trace of", "share of the top five", "effective number of images"]
rows = {
    name: (share.sort(descending=True).values[:5].sum(), 1 / (share @ share))
    for name, share in shares.items()
}
most = 1 - 1 / precise.num_classes
print(f"median trace of Λ: {doubt.median():.4f}, at most {most:.1f}")
table(columns, rows, spec=".2f")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Shares of the images in the trace of a layer on two logarithmic axes, with the images in the order of the network's doubt. A narrow band holds the shares in all layers and falls with the share of doubt, from about one fifth to less than one part in ten thousand. It crosses the dotted line of equal shares after about ten images."}, "figure": {"caption": "Each image's share in the trace of a layer of the kept network: the band from the smallest to the largest over its layers, and the shares in the first and in the last. The images stand in the order of the network's doubt, the trace of Λ, whose own shares are the solid line.", "name": "fig-five-images"}}
figure, axes = plt.subplots(figsize=(5.5, 3.6))
order = doubt.argsort(descending=True)
place = range(1, p.samples + 1)
first, *_, last = spectra
of_layers = torch.stack([shares[name][order].cpu() for name in spectra])
low, high = of_layers.amin(dim=0), of_layers.amax(dim=0)
axes.fill_between(place, low, high, color="#c9d3e0", linewidth=0, label="all layers")
for name, marker, color in zip((first, last), plotting.MARKERS, plotting.COLORS[1:], strict=False):
    axes.plot(place, shares[name][order].cpu(), marker, ms=3.5, color=color, label=name)
axes.plot(place, shares["Λ alone"][order], "-", color=plotting.INK, label="doubt")
axes.axhline(1 / p.samples, color=plotting.INK, ls=":", lw=1.4, label="equal shares")
axes.set(xscale="log", yscale="log", xlabel="images, from doubt to certainty")
axes.set(ylabel="share of the trace", xlim=(0.95, 1.05 * p.samples))
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# In every layer of this network a handful of images, those that it is in doubt about, bear most of the curvature.
# By their traces, the hundred images of the table count for six to twelve.
# So a small eigenvalue may say that the network is certain of its images, and nothing about its geometry.
# How many of them do, these shares cannot say.

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
# Let $Z = \sum_j q_j^\alpha$ and $z_j = q_j^\alpha / Z$, a distribution again.
# Differentiate {eq}`eq-five-entropy`:
#
# $$
# \frac{d \mathcal H_\alpha}{d\alpha}
# = \frac{\log Z}{(1-\alpha)^2} + \frac{\sum_j z_j \log q_j}{1-\alpha}
# = -\frac{1}{(1-\alpha)^2} \sum_j z_j \log \frac{z_j}{q_j} \;\le\; 0,
# $$
#
# because $\log z_j = \alpha \log q_j - \log Z$, so that $\sum_j z_j \log (z_j / q_j) = (\alpha - 1) \sum_j z_j \log q_j - \log Z$.
# This sum is the Kullback–Leibler divergence of $z$ from $q$: never negative, and zero only for $z = q$.
# At $\alpha = 1$ use continuity. ∎
# ````
#
# (five-cap)=
# ````{prf:corollary} The cap
# :label: five-cap-statement
#
# *Ours.* For softmax cross-entropy and a layer whose Hessian block is its Gauss–Newton block, at every order,
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
# The cap is proved, and has no badge: our eigenvalues come from a matrix of $n(C-1)$ rows, so no record of them could break it.
# What a record can break is the rank bound of a *dense* Hessian: the cell after the first table tries on this network, and {ref}`chapter 2 <dependence-on-n>` on others.
#
# The proof shows what an order does: it replaces the weights $q_j$ by $z_j \propto q_j^\alpha$, which favour the small ones for $\alpha < 1$ and the large ones for $\alpha > 1$.
# So an order below 1 listens to the many small eigenvalues, an order above 1 to the few large ones.
# The paper uses ½ and 3/2, one of each kind.

# %% tags=["hide-input"] mystnb={"image": {"alt": "The Rényi entropy of each layer against the order, from one quarter to four on a logarithmic axis. All curves fall, steeply at first and then less and less; many of them cross, most between the orders one quarter and one."}, "figure": {"caption": "Rényi entropy of every layer against the order. The Rényi sharpness is its negative. The layers' curves cross: which of two layers is the sharper one depends on the order.", "name": "fig-five-orders"}}
orders = [0.25 + 0.125 * k for k in range(31)]
curves = {
    name: [renyi_entropy(s.eigenvalues, alpha) for alpha in orders] for name, s in spectra.items()
}
figure, axes = plt.subplots(figsize=(5.5, 3.6))
plotting.plot_curves(axes, orders, curves)
axes.set(xscale="log", xlabel="order $\\alpha$", ylabel="Rényi entropy (nats)")
axes.set_xticks([0.25, 0.5, 1, 1.5, 2, 4], ["¼", "½", "1", "3/2", "2", "4"])
axes.minorticks_off()
plt.show()

# %% [markdown]
# The paper reports that the computation becomes unstable as $\alpha$ approaches 1, and leaves out the orders around it.
# Its Appendix G.4 names the reason: negative eigenvalues.
# That reason suffices: if they enter the two sums by different conventions, $\sum_j q_j^\alpha$ does not tend to 1 as $\alpha$ does, and the quotient by $1 - \alpha$ has a pole; the {ref}`errata <errata-definition>` have an example.
# Here there are none, and nothing happens at 1.
# The formula has a removable singularity there; an exact spectrum without negative entries passes through it as through any other order.

# %% [markdown]
# (five-samples)=
# ## How a value moves with $n$
#
# The cap {eq}`eq-five-cap` contains $n$.
# That alone would not make the entropy depend on it; a value far below its cap need not care.
# But it does care.
# For the orders up to 1 one thing can be proved, a lower bound by the halves, which makes growth plausible and does not imply it.
#
# ````{prf:proposition} Whole and halves
# :label: five-halves
#
# *Ours.* Let $n$ samples, which do not interact in the model, be split into two halves of the same size, $H_l'$ and $H_l''$ the blocks measured on each, and $w' = \operatorname{Tr} H_l' / (\operatorname{Tr} H_l' + \operatorname{Tr} H_l'')$, $w'' = 1 - w'$.
# If both blocks are positive semidefinite and not zero, then for $0 < \alpha \le 1$
#
# $$
# \mathcal H_\alpha(H_l) \;\ge\; w'\, \mathcal H_\alpha(H_l') + w''\, \mathcal H_\alpha(H_l'').
# $$ (eq-five-halves)
# ````
#
# ````{prf:proof}
# The loss is a mean over samples and the halves are equally large, so $H_l = \frac12 (H_l' + H_l'')$.
# Divided by its trace it is $\rho = w' \rho' + w'' \rho''$, where $\rho'$ and $\rho''$ are the halves divided by theirs.
# Let $v_j$ be the eigenvectors of $\rho$, and $\alpha < 1$, so that $x^\alpha$ is concave.
# Then $\operatorname{Tr} \rho^\alpha = \sum_j \langle v_j, \rho v_j \rangle^\alpha$ is at least $w' \sum_j \langle v_j, \rho' v_j \rangle^\alpha + w'' \sum_j \langle v_j, \rho'' v_j \rangle^\alpha$.
# The number $\langle v_j, \rho' v_j \rangle$ is a mean of the eigenvalues of $\rho'$, so by Jensen its power is at least $\langle v_j, \rho'^\alpha v_j \rangle$, and the sum of these over $j$ is $\operatorname{Tr} \rho'^\alpha$.
# With the same for $\rho''$ we have $\operatorname{Tr} \rho^\alpha \ge w' \operatorname{Tr} \rho'^\alpha + w'' \operatorname{Tr} \rho''^\alpha$.
# The logarithm is increasing and concave, and $1/(1-\alpha)$ positive, which gives the claim.
# For $\alpha = 1$ take the limit. ∎
# ````
#
# The whole, then, has at least the average entropy of its halves, each weighted by its trace.
# The weights matter: of the halves $\operatorname{diag}(1, 1)$ and $\operatorname{diag}(1000, 0)$ the plain average at order ½ is $\frac12 \log 2 = 0.347$, and their mean has only $0.061$.
# A half that dominates the trace pulls the entropy towards its own, and {ref}`a few images <five-images>` dominate here.
# So the proposition does not promise that more data raise the entropy; that they did so, on these images, is a measurement.

# %%
ladder = [p.samples // 4, p.samples // 2, p.samples, 2 * p.samples]
by_n = {n: mnist5k_spectra.spectra_on(measured, precise, slice(n)) for n in ladder}

middle = slice(p.samples // 2, p.samples)
halves = [by_n[p.samples // 2], mnist5k_spectra.spectra_on(measured, precise, middle)]
slack = mnist5k_spectra.halves_slack(by_n[p.samples], halves)
assert slack > -1e-10
print("the whole has at least the weighted mean entropy of its halves, as proved:")
print("in every layer, at every order up to 1")

# %%
entropies = {
    alpha: {name: [entropy(by_n[n][name].eigenvalues, alpha) for n in ladder] for name in spectra}
    for alpha in (0.5, 1.5)
}
if setting == mnist5k_training.SETTINGS["laptop"] and p.samples == 100:  # the kept network
    five = [float(s.eigenvalues[:5].sum() / s.eigenvalues.sum()) for s in spectra.values()]
    assert min(five) > 0.74 and max(five) < 0.95
    assert all(values == sorted(values) for values in entropies[0.5].values())
    assert sum(values[1] < values[0] for values in entropies[1.5].values()) == 5

# %% tags=["hide-input"] mystnb={"image": {"alt": "Entropy of each layer against the number of samples on a logarithmic axis, at order one half above and three halves below. Above, every curve rises, below the dashed line of the cap. Below, the curves are lower, and several fall from 25 to 50 samples."}, "figure": {"caption": "The same network, measured on more and more images. Dashed: the logarithm of n(C − 1), which caps the layers with more weights than that. At order ½ (above) the entropy rises; at order 3/2 (below), which listens to the few largest eigenvalues, several layers fall at first.", "name": "fig-five-samples"}}
figure, panels = plt.subplots(2, figsize=(5.5, 6.4), sharex=True)
for axes, alpha, title in zip(panels, (0.5, 1.5), ("order ½", "order 3/2"), strict=True):
    plotting.plot_curves(axes, ladder, entropies[alpha])
    caps = [math.log(n * (precise.num_classes - 1)) for n in ladder]
    axes.plot(ladder, caps, color=plotting.INK, linestyle="--", linewidth=1)
    axes.set(title=title, xscale="log", ylabel="Rényi entropy (nats)")
    axes.set_xticks(ladder, ladder)
    axes.minorticks_off()
panels[1].set_xlabel("images $n$")
plt.show()

# %% [markdown]
# At order ½ every curve of this network rises; of the five recorded networks one falls in one layer, the first, from 50 images to 100.
# At order 3/2 five of the eight layers fall from 25 images to 50, so growth is no rule at all.
# The ladder is nested, and its images are the first of the training set, for this network and for those of the records.
# The interval of the verdict is over networks that were trained with other seeds; how much another draw of images would move it, the record does not say.
#
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
trained = run_study("mnist5k_training", study_profile, p.store, device=p.device)
records = run_study("mnist5k_spectra", study_profile, p.store, device=p.device)
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

# %% tags=["hide-input"] mystnb={"image": {"alt": "Rényi entropy of order one half and of order three halves for each layer from the input to the output. Grey dots show the recorded networks; the kept network is the lowest of them in every layer at order ½, and in seven of eight at order 3/2."}, "figure": {"caption": "The layer profile of the kept network. Grey: the recorded networks, of which it is one.", "name": "fig-five-profile"}}
figure, axes = plt.subplots(figsize=(5.5, 3.6))
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
# Its last two columns ask how much of a spectrum is *near zero*, by which we mean below one hundredth of the layer's largest eigenvalue.
# *Small, of all* is the fraction among all $d_l$ eigenvalues, zeros included.
# *Small, of the unforced* is the fraction among those that *could* be large: it leaves out the zeros that the rank bound forces, and in the last layer those of the softmax's shift, one for each of its inputs.


# %%
def small_of_unforced(metrics: dict) -> dict[str, float]:
    """Return which fraction of the unforced eigenvalues is small."""
    C, *_, last = precise.num_classes, *metrics["layers"]
    fractions = {}
    for name, d in metrics["dimension"].items():
        free = min(n_table * (C - 1), d - d // C if name == last else d)
        large = d * (1 - metrics["small_fraction"][name])
        fractions[name] = 1 - large / free
    return fractions


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
columns["small, of the unforced"] = unforced = [small_of_unforced(m) for m in at_n]
layers = at_n[0]["layers"]
rows = {name: [spread([m[name] for m in own]) for own in columns.values()] for name in layers}
table(["layer", *columns], rows)

# %% [markdown]
# And here one of these measurements is made again, from the weights that were kept.
# Same weights, same images, double precision: the numbers must agree with the record to one part in a million.
# The order ¼ is left out; the section after next says why.
# The kept network was not chosen as typical: at order ½ its entropies are the smallest of the five in every layer.
# The figures of this page, and the layer table of {doc}`chapter 4 <04_stochastic_estimators>`, are about that one.

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
if study_profile == "laptop" and n_table == 100:  # where the kept network stands among the five
    for order, count in (("0.5", 8), ("1.5", 7)):
        own = record.metrics["entropy"][order]
        least = [own[name] == min(m["entropy"][order][name] for m in at_n) for name in own]
        assert (sum(least), len(least)) == (count, 8)
rows = {name: [by_layer[name] for by_layer in recomputed.values()] for name in again}
table(["layer", *(f"order {order}" for order in recomputed)], rows, spec=".6f")

# %% [markdown]
# ## Paper against ours
#
# The paper estimates its spectra stochastically, on networks with millions of parameters.
# It shows histograms of single layers and describes them in words: *heavy-tailed*, *zero-dominant*.
# Words need a criterion before they can be checked.
#
# For *heavy-tailed* we have none.
# A tail is its few largest members.
# We know of no test that would tell a power from, say, a lognormal law by some fifty eigenvalues of one matrix, which are no independent draws.
# So this chapter has no claim about tails.
#
# For *zero-dominant*, the column *small, of all* in the table above would be a criterion, and prove little.
# A layer with many more weights than $n(C-1)$ is dominated by zeros whatever the network does.
# So are the paper's, if its batch normalisation had fixed statistics, which it does not say: its estimates take $n = 2000$ images of $C = 10$ or 100 classes, and the wide layers of its residual networks have more than two million weights each.
# The column *small, of the unforced* is the fair question, and our criterion: nine tenths of the eigenvalues in every layer, in more than half of the networks.
# (The criterion counts the zeros of the softmax's shift among the free ones, which is kinder to the last layer by less than one percentage point and decides nothing: the first layer always has the smallest fraction.)
#
# The layers of one network are measured on the same images and are one trial, not eight.
# Five networks are five trials of the seed, all on the same images, and five successes in five show, with 95 % confidence, only that the share is above 0.549.
# That is why the claim says *more than half*, and why the same question with 50, 100 and 200 images at once is left undecided: in the first layer, with 200 images, some networks fall just below nine tenths.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two points for each layer on a logarithmic axis: the fraction of all its eigenvalues that are at least one hundredth of the largest, and the same among the eigenvalues that are not forced to be zero. All lie below a dotted line at one tenth."}, "figure": {"caption": "How much of each layer's spectrum is not near zero, in the recorded networks (mean over seeds): of all eigenvalues, and of those that are not forced to be zero. Dotted: one tenth. Below it nine tenths are near zero, as in our criterion.", "name": "fig-five-small"}}
figure, axes = plt.subplots(figsize=(5.5, 3.6))
fractions = {"of all": [m["small_fraction"] for m in at_n], "of the unforced": unforced}
for series, (title, own) in enumerate(fractions.items()):
    means = {name: 1 - statistics.fmean(m[name] for m in own) for name in at_n[0]["layers"]}
    plotting.plot_layer_profile(axes, means, label=title, series=series)
axes.axhline(0.1, color=plotting.INK, linestyle=":", linewidth=1)
axes.set(ylabel="fraction from $\\lambda_1 / 100$ up", yscale="log", ylim=(None, 0.2))
axes.legend(loc="lower left")
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
# Let each of the $k$ eigenvalues that the rank bound allows, dropped or kept, be wrong by at most $\varepsilon$.
# Since $|x^\alpha - y^\alpha| \le |x - y|^\alpha$ for $\alpha < 1$, the sum $\sum_j q_j^\alpha$ is wrong by at most $k\, (\varepsilon / \operatorname{Tr} H_l)^\alpha$ (the relative error of the trace is negligible beside it).
# The table turns this into a bound on the error of the entropy, in the worst layer of the kept network, with the library's threshold for $\varepsilon$.

# %%
worst = {}
for alpha in (0.1, 0.25, 0.5, 0.75):
    errors = []
    for s in again.values():
        total = float(((s.eigenvalues / s.trace) ** alpha).sum())
        wrong = s.rank_bound * (s.tolerance / s.trace) ** alpha / total
        change = -math.log1p(-wrong) if wrong < 1 else math.inf
        errors.append(change / (1 - alpha))
    assert alpha < 0.5 or max(errors) < 1e-3  # the tables show thousandths of a nat
    worst[alpha] = max(1e-16, *errors)
bounds = {
    alpha: f"below {10.0 ** math.ceil(math.log10(error)):g}" if error < 1 else "without bound"
    for alpha, error in worst.items()
}
table(["order", "error of the entropy (nats)"], bounds)

# %% [markdown]
# So at order 0.1 the bound says only that the error is below one nat.
# Nearer to zero it says nothing, and there is little to learn: the entropy tends to the logarithm of a count, that of the directions which the images allow, less the few that round-off dropped.
# From ½ to ¾ the error is far below every difference that we discuss.
# At 3/2 and beyond it is smaller still (at order 1 this bound diverges, and the error does not), because there $|x^\alpha - y^\alpha| \le \alpha\, |x - y|$ on $[0, 1]$: a lost eigenvalue costs its own size and no root of it.
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
