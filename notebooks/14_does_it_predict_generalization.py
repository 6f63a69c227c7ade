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
# (chapter-predict)=
# # Does it predict generalization?
#
# **Question.** Do networks with a larger Rényi sharpness have a larger generalization gap, and does it tell more than what was known before?
#
# **Answer.** Not at our scale: the mean over layers, order ½, has a $\tau$ of 0.54, −0.00, −0.27 and 0.19 with the gap in four cells; single layers go either way.
# The training loss alone reaches −0.87 to −0.98, and most measures follow it.
# The local sensitivity grows with the gap in all.
#
# **Time.** Reading: about 20 minutes; running: about a quarter of a minute on one core.
#
# **You need:** {doc}`the population <13_thirty_networks_four_times>`, and what a p-value is.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke, laptop or paper
permutations = None  # of the gaps; None: the profile's own number
device = "auto"  # auto, cpu or cuda: who trains and measures what is missing
store = None  # folder for new records; None: the repository's own
engine = "in-process"  # who runs what is missing of the study

# %% tags=["remove-input"]
from paperkit.ledger import show_verdicts

show_verdicts(
    "14_does_it_predict_generalization",
    profile,
    store,
    first=[
        "renyi-uniform-spectrum-generalizes",
        "renyi-one-layer-suffices",
        "renyi-strongest-in-small-networks",
        "renyi-selection-of-order",
        "igs-tic-predicts-gap",
    ],
)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import setup, table

p = setup(
    globals(),
    {
        "smoke": {"samples": 8, "permutations": 100},
        "laptop": {"samples": 64, "permutations": 10_000},
        "paper": {"samples": 2000, "permutations": 10_000},
    },
    allowed=["permutations", "engine"],
    threads=1,
    gpu=True,
)

import math
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np

from paperkit.experiments import run_study
from paperkit.experiments.studies.population import ORDERS
from paperkit.ledger.correlation import jackknife, tau
from paperkit.ledger.criteria import value_of
from paperkit.plotting import INK, QUIET
from paperkit.statistics import kendall_tau, permutation_test

measured = run_study("population", p.profile, p.store, p.engine, device=p.device)

# %% [markdown]
# The Rényi paper's main figures are experiments.
# In each of them one layer's sharpness of thirty networks stands against their generalization gap, the points lie near a rising line, and a correlation of 0.8 or 0.9 stands above it.
# The older measures beside it reach less, and some of them go the wrong way.
#
# This chapter asks the same of the {doc}`population <13_thirty_networks_four_times>`: four cells of thirty small networks.
# What counts as an answer was written down before the runs, and the verdicts above are computed from it.
# They cannot refute figures that were drawn from larger networks; they tell what holds at our scale.
# The text below looks at the same numbers one by one.
#
# **Symbols.** For networks $1, \dots, N$ let $g_i$ be the gap, test loss less training loss in nats, and $s_i$ a measure.
# $\alpha$ is the order of the entropy, $z_i$ a third number such as the training loss.
#
# **Computed here.** Nothing is trained on this page; all numbers come from the records of the study `population`, and the permutations are drawn live.
# Networks that have learned nothing are left out.
#
# | statement | in the paper | here |
# |---|---|---|
# | rank correlation | Section 4.1, eq. 8 | {eq}`eq-predict-tau` |
# | the measures side by side | Section 5.2, Figures 2, 3, 8–13 | {ref}`predict-table` |
# | each layer, the best order | Section 5.2, Appendix G.4 | {ref}`predict-orders` |
# | one layer suffices | Section 3, after eq. 2; Appendix B | {ref}`predict-layers` |

# %% [markdown]
# (predict-tau)=
# ## Counting pairs
#
# A measure may be on any scale, so only ranks are compared.
# Kendall's coefficient takes all pairs of networks, and counts those that measure and gap order alike less those that they order oppositely:
#
# $$
# \tau = \frac{2}{N(N-1)} \sum_{i<j} \operatorname{sign}(s_i - s_j)\, \operatorname{sign}(g_i - g_j)
# \qquad (\text{paper: eq. 8}) .
# $$ (eq-predict-tau)
#
# Pairs are compared within a cell only.
# Thirty networks give 435 pairs, but they are no 435 trials: each network is in 29 of them.
# If measure and gap had nothing to do with each other, $\tau$ would have a standard deviation of 0.129.


# %%
def kendall(s, g):
    pairs = list(combinations(range(len(s)), 2))
    return sum(np.sign(s[i] - s[j]) * np.sign(g[i] - g[j]) for i, j in pairs) / len(pairs)


first = [r for r in measured if r.seed == 0 and r.configuration["n"] == p.samples]
cells = {}
for record in first:
    if record.metrics["learned"]:
        cells.setdefault(record.configuration["cell"], []).append(record)


def column(records, metric):
    return [value_of(record, metric) for record in records]


for own in cells.values():
    s, g = column(own, "renyi_mean.0_5"), column(own, "gap")
    assert abs(kendall(s, g) - float(kendall_tau(s, g))) < 1e-12
table(["cell", "networks compared"], {cell: len(own) for cell, own in cells.items()})

# %% [markdown]
# (predict-table)=
# ## All measures side by side
#
# Every measure is taken on the same 64 training images, exactly where that is possible.
# The Rényi sharpness is minus the entropy of a layer's spectrum, so the paper's claim is a positive $\tau$ in its rows.
# Orders ½ and 3/2 were fixed before the runs.
# Sensitivity, volume and dimension are those of the outputs as functions of the images, and relative flatness is that of the last layer.

# %% tags=["hide-input"]
NAMES = {
    "renyi_mean.0_5": "Rényi, mean of layers, order ½",
    "renyi_mean.1_5": "Rényi, mean of layers, order 3/2",
    "renyi_first.0_5": "Rényi, first layer, order ½",
    "renyi_last.0_5": "Rényi, last layer, order ½",
    "renyi_joint.0_5": "Rényi, all layers jointly, order ½",
    "measures.information_geometric_sharpness": "IGS",
    "measures.gauss_newton_trace": "Gauss–Newton trace, ½‖·‖²",
    "measures.maximum_local_sensitivity": "maximum local sensitivity",
    "measures.log_volume": "log volume",
    "measures.local_dimension": "local dimension",
    "measures.relative_flatness": "relative flatness",
    "measures.hessian_trace": "trace of the Hessian",
    "measures.fisher_rao_norm": "Fisher–Rao norm",
    "measures.pac_bayes_flatness": "PAC-Bayes flatness",
    "measures.sam_sharpness": "SAM's sharpness",
    "measures.asam_sharpness": "ASAM's sharpness",
    "measures.parameter_norm": "norm of the parameters",
    "train_loss": "training loss",
}

# %%
taus = {
    metric: [float(kendall_tau(column(own, metric), column(own, "gap"))) for own in cells.values()]
    for metric in NAMES
}

# %% tags=["hide-input"] mystnb={"image": {"alt": "Table of colours with eighteen rows, one for each measure, and four columns, one for each cell. The rows of the classical sharpness measures, of information-geometric sharpness and of the training loss are strongly negative everywhere. The row of the maximum local sensitivity is strongly positive everywhere. The rows of the Rényi sharpness change their sign from cell to cell."}, "figure": {"caption": "Kendall's τ of each measure with the generalization gap, over about thirty networks in each cell. A value beyond ±0.25 would be met in one of twenty cells by chance.", "name": "fig-predict-table"}}
figure, axes = plt.subplots(figsize=(5.5, 6.4))
image = axes.pcolormesh(list(taus.values()), vmin=-1, vmax=1, cmap="RdBu_r", ec="white", lw=2)
for i, values in enumerate(taus.values()):
    for j, value in enumerate(values):
        colour = "white" if abs(value) > 0.6 else "black"
        axes.text(j + 0.5, i + 0.5, f"{value:+.2f}", ha="center", va="center", color=colour)
axes.set_xticks(np.arange(len(cells)) + 0.5, cells)
axes.set_yticks(np.arange(len(NAMES)) + 0.5, NAMES.values())
axes.tick_params(length=0, labeltop=True, labelbottom=False)
axes.grid(visible=False)
axes.invert_yaxis()
plt.show()

# %%
if p.profile == "laptop":  # the numbers of the answer at the head
    rounded = [round(value, 2) for value in taus["renyi_mean.0_5"]]
    assert rounded == [0.54, 0.00, -0.27, 0.19]
    assert [round(f(taus["train_loss"]), 2) for f in (min, max)] == [-0.98, -0.87]
    assert min(taus["measures.maximum_local_sensitivity"]) > 0.75
    classical = ("hessian_trace", "fisher_rao_norm", "pac_bayes_flatness", "sam_sharpness")
    assert all(max(taus[f"measures.{name}"]) < -0.5 for name in classical)

# %% [markdown]
# Read the last row first.
# The training loss, which costs nothing, ranks the gaps almost perfectly, the wrong way round: a lower loss, a larger gap.
# The trace of the Hessian, the Fisher–Rao norm, PAC-Bayes flatness and SAM's sharpness do the same.
# For networks that end at different losses this has a simple reason: near a minimum of the cross-entropy the curvature is proportional to the probabilities that are still missing, so it falls as the loss does.
# So far this agrees with the paper, whose baselines are negative too, on CIFAR-100; and one of them, the norm of the parameters, is positive here.
# Information-geometric sharpness is bound to the training loss even more tightly: where there are fewer rows than parameters, as here, it is a function of the samples' losses and of nothing else.
#
# The rows of the Rényi sharpness do not agree with each other.
# The mean over layers rises with the gap among perceptrons, not at all among networks of the VGG kind, and falls among residual networks.
# One measure is large and positive in all cells: the maximum local sensitivity, by how much the output moves with the input.
# It grows as training makes the outputs more decided, so it too may only tell how far training went; {ref}`a section below <predict-partial>` asks.
#
# (predict-orders)=
# ## Every layer, every order
#
# The paper shows, for each layer, the order whose correlation is highest, chosen after the gaps were known.
# Whoever tries more is bound to find more, so a choice among many needs a null of its own.
# Permute the gaps among the networks, so that nothing can be foretold, and take the *largest* $\tau$ over all layers and orders.
# Do so many times: a twentieth of these maxima lie above the *critical value*.
# Permuting the gaps keeps what the layers have in common, so neighbouring orders, which are almost one measure, count as one.


# %%
def tried(records):
    """Return the columns of all layers at all orders, by order and layer."""
    orders = records[0].metrics["renyi"]
    return {
        (order, layer): column(records, f"renyi.{order}.{layer}")
        for order, layers in orders.items()
        for layer in layers
    }


searches = {
    cell: permutation_test(tried(own), column(own, "gap"), permutations=p.permutations)
    for cell, own in cells.items()
}

# %%
rows = {}
for cell, search in searches.items():
    best = max(search.tau, key=search.tau.get)
    layer = best[1].replace("/", ".")
    found = search.tau[best], search.critical, search.p_value_of_maximum[best]
    rows[cell] = (best[0].replace("_", "."), layer, *found)
header = ["cell", "order", "layer", "largest τ", "critical value", "p-value"]
table(header, rows, spec={"largest τ": ".2f", "critical value": ".2f", "p-value": ".2g"})

# %% tags=["hide-input"] mystnb={"image": {"alt": "Four panels, one for each cell, of the rank correlation with the gap against the order, with a line for each layer and a band around zero. Among perceptrons the first layer stays near 0.9 up to order one. In the VGG cell all lines fall from positive values at small orders to negative ones. In the residual cell the first layers are negative and the last positive at nearly all orders. In the transformer the last layer is at 0.6 to 0.9 and the others scatter around zero."}, "figure": {"caption": "Kendall's τ of the Rényi sharpness with the gap, by layer and order. The first layer is dashed, the last one thick; all others are thin. In the band, nineteen of twenty permutations of the gaps keep the largest value of the whole panel.", "name": "fig-predict-orders"}}
figure, panels = plt.subplots(
    len(cells), 1, figsize=(5.5, 2.1 * len(cells)), sharex=True, squeeze=False
)
for panel, (cell, search) in zip(panels[:, 0], searches.items(), strict=True):
    layers = cells[cell][0].metrics["layers"]
    for layer in layers:
        place = layer.replace(".", "/")
        line = [value for (_, name), value in search.tau.items() if name == place]
        style = "--" if layer == layers[0] else "-"
        panel.plot(ORDERS, line, color=INK, ls=style, lw=2.5 if layer == layers[-1] else 1)
    panel.axhspan(-search.critical, search.critical, color=QUIET, alpha=0.25, lw=0)
    panel.set(ylim=(-1, 1), ylabel="τ with the gap")
    panel.set_title(cell, loc="left")
panels[-1, 0].set_xlabel("order α")
plt.show()

# %% [markdown]
# In every cell the search finds something that chance does not explain, and each time something else: the first layer or a middle one at the smallest order, the last layer at order 3 or 3/2.
# So some spectra do know about the gap.
# But the sign of what they know is not fixed.
# In the residual network the last layers rise with the gap and the first ones fall, by as much.
# In the VGG cell all layers rise at order 0.1 and all fall at order 2.
# Whoever may choose layer and order after the gaps are known can report 0.64 to 0.92; whoever chose beforehand would have had to be lucky.
#
# Chance alone does not make such values.
# For one layer at one order the critical value is about $1.645 \cdot 0.129 = 0.21$; the search lifts it by half, to 0.31 to 0.37, and no further.
# A verdict at the head says by how much.
#
# (predict-layers)=
# ## One layer, or all of them
#
# The paper argues that one layer is enough, and shows panels for single layers; its panel "all layers" takes the Hessian of all weights jointly.
# At order ½, fixed beforehand:

# %%
rows = {}
for cell, own in cells.items():
    gap, half = column(own, "gap"), {k[1]: v for k, v in tried(own).items() if k[0] == "0_5"}
    by_layer = sorted(float(kendall_tau(values, gap)) for values in half.values())
    mean, jointly = (
        float(kendall_tau(column(own, name), gap)) for name in ("renyi_mean.0_5", "renyi_joint.0_5")
    )
    rows[cell] = (len(by_layer), by_layer[0], by_layer[-1], mean, jointly)
header = ["cell", "layers", "smallest τ", "largest", "mean of layers", "jointly"]
table(header, rows, spec=".2f")

# %% [markdown]
# "One layer suffices" would need the smallest value of a row to be large, since nothing says which layer to take.
# It is negative in three of four cells.
# All layers jointly have no correlation to speak of, or a weakly negative one.
#
# (predict-groups)=
# ## Is it only the group?
#
# A correlation over thirty networks may have one cause: two optimizers, say, that leave networks of two kinds.
# Then every measure that tells the kinds apart has the correlation, and within one kind nothing is left.
# So count only pairs that share their optimizer; then only pairs that share their learning rate and batch size; then only those that share both, and so differ in the weight decay alone.


# %%
def group_of(record, names):
    return tuple(record.configuration[name] for name in names)


LEVELS = {
    "all pairs": (),
    "same optimizer": ("optimizer",),
    "same rate and batch": ("batch_size",),
    "both the same": ("optimizer", "batch_size"),
}
SHOWN = {
    "renyi_mean.0_5": "Rényi, order ½",
    "measures.hessian_trace": "trace of the Hessian",
    "measures.maximum_local_sensitivity": "local sensitivity",
    "train_loss": "training loss",
}

# %%
enough = {cell: own for cell, own in cells.items() if len(own) > 7}  # a smoke run has two networks
rows = {}
for cell, own in enough.items():
    for metric, name in SHOWN.items():
        s, g = column(own, metric), column(own, "gap")
        groups = [[group_of(record, names) for record in own] for names in LEVELS.values()]
        rows[f"{cell}, {name}"] = [float(kendall_tau(s, g, labels)) for labels in groups]
table(["cell and measure", *LEVELS], rows, spec=".2f")

# %% [markdown]
# In one cell the groups hide a strong relation.
# Perceptrons that differ in the weight decay alone are ranked almost perfectly by the Rényi sharpness, and between the groups the relation is weaker.
# In the residual cell it even turns: 0.60 within the smallest groups, −0.27 over all pairs.
# In the two other cells it is small, and mostly negative within the groups.
# The training loss, in contrast, keeps its hold at every level.
#
# (predict-partial)=
# ## What the training loss knows already
#
# A network that was trained to a lower loss has, in these cells, a larger gap, and a training loss costs nothing to find out.
# What does a measure add?
# Kendall's partial coefficient takes out of the correlation of $s$ and $g$ what both owe to a third number $z$:
#
# $$
# \tau_{sg \cdot z} = \frac{\tau_{sg} - \tau_{sz}\, \tau_{gz}}
# {\sqrt{(1 - \tau_{sz}^2)(1 - \tau_{gz}^2)}} .
# $$ (eq-predict-partial)
#
# It is the partial correlation of the signs of pairs.
# The interval beside it leaves out one network after the other (the jackknife), and holds with 95 %.


# %%
def partial(rows):
    """Return the partial coefficient of the columns s, g and z."""
    s, g, z = rows.T
    sg, sz, gz = tau(s, g), tau(s, z), tau(g, z)
    if 1 in (abs(sz), abs(gz)):
        return math.nan
    return (sg - sz * gz) / math.sqrt((1 - sz**2) * (1 - gz**2))


rows = {}
for cell, own in enough.items():
    for metric, name in list(SHOWN.items())[:3]:
        data = np.array([column(own, m) for m in (metric, "gap", "train_loss")]).T
        value, error, _ = jackknife(partial, [data])
        plain, own_error, _ = jackknife(lambda rows: tau(rows[:, 0], rows[:, 1]), [data])
        rows[f"{cell}, {name}"] = (plain, 1.96 * own_error, value, 1.96 * error)
header = ["cell and measure", "τ", "±", "given the training loss", "± "]
table(header, rows, spec=".2f")

# %% [markdown]
# Given the training loss, little is left of most measures, and the intervals are wide.
# Three values stay clear of zero: the Rényi sharpness among perceptrons, and the maximum local sensitivity among perceptrons and residual networks.
# The trace of the Hessian adds nothing that thirty networks could show.
# So the sensitivity is the best candidate for a measure that sees more than progress, and a population that ends at one training loss would be the test of it.
#
# (predict-seeds)=
# ## Another seed
#
# The perceptrons were trained from three seeds, so there are three populations.
# If a correlation belongs to the measure and not to the draw, it comes back.

# %%
seeds = {}
for record in measured:
    if record.configuration["n"] == p.samples and record.metrics["learned"]:
        seeds.setdefault((record.configuration["cell"], record.seed), []).append(record)
repeated = {cell for cell, seed in seeds if seed > 0} or {"mlp"}
rows = {
    key: [float(kendall_tau(column(own, metric), column(own, "gap"))) for metric in SHOWN]
    for key, own in seeds.items()
    if key[0] in repeated
}
table(["cell", "seed", *SHOWN.values()], rows, spec=".2f")

# %% [markdown]
# It does come back, in all columns, within a tenth.
# These are the same thirty settings, and one kind of network; another data set might say something else.
#
# ## What to take from it
#
# At this scale the claim that Rényi sharpness is the measure that goes with generalization is not reproduced, and the verdicts at the head say so one by one.
# Three things would change our mind.
#
# * *The paper's own runs.* Its networks are larger and trained for ten times as many epochs; the `paper` profile has them, and {doc}`what it would cost <../book/what_it_costs>` is worked out.
# * *A population that fits its data.* Where all networks interpolate, the gap is the test loss, and the training loss cannot explain it.
#   The perceptrons of SGD are such networks, and too few.
# * *A rule for layer and order* that is stated before the gaps are seen and holds in more than one cell.
#
# ## Deviations, and what failed
#
# * *Scale.* {doc}`The chapter before <13_thirty_networks_four_times>` lists what is smaller than in the paper.
# * *Four of the transformer's layers* have a Rényi sharpness here, estimated with two probes and sixteen steps, because its blocks are no Gauss–Newton blocks and each step costs a product with the Hessian; in the other cells every layer is exact.
# * *Sixty-four images.* The paper takes 2,000.
#   Order 3/2 ranks networks otherwise at 128 images than at 64.
# * *Information-geometric sharpness* is taken with fewer rows than parameters, where it is a function of the losses; a fair test of it needs more samples or a smaller network.
# * *The intervals* of the table are the jackknife's over networks, which takes the thirty for a sample of such networks.
#
# ## Exercises
#
# **1.** Thirty networks give 435 pairs.
# Why is the standard deviation of $\tau$ without any relation 0.129, and not $1/\sqrt{435} = 0.048$?
#
# ````{dropdown} Solution
# Pairs that share a network are not independent.
# If network $i$ happens to have the largest measure and the largest gap, all of its 29 pairs agree.
# The exact variance is $2(2N + 5) / (9N(N - 1))$, for $N = 30$ the square of 0.129.
# ````
#
# **2.** Two measures have the same $\tau$ of 0.6 with the gap.
# One has it within each optimizer as well, the other has 0 there.
# Which would you trust on a network trained by a third optimizer?
#
# ````{dropdown} Solution
# Neither blindly; but the second tells the two optimizers apart and nothing else, so that it says nothing about a third one.
# ````
#
# **3.** A measure is an increasing function of the training loss.
# What is its partial coefficient given the training loss?
#
# ````{dropdown} Solution
# It has $\tau_{sz} = 1$ with the training loss, so that numerator and denominator of {eq}`eq-predict-partial` are both 0: the coefficient is not defined, because nothing of the measure is left.
# ````
#
# ## How to cite
#
# Cite the book as `CITATION.cff` says, and a statement of a paper by the paper: here {cite:t}`renyi2025` and {cite:t}`igs2022`.
