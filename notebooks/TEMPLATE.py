# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
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
# (chapter-template)=
# # A chapter's title is its subject
#
# **Question.** What does the chapter ask, in one sentence?
#
# **Answer.** What it finds stands here, in three sentences at most, with the number or the word that matters.
# Each number is one that the chapter prints or a record holds.
#
# **Time.** Reading: about 5 minutes; running: a few seconds on one core.
#
# **You need:** the logarithm.
#
# A chapter without claims says here, in one line, that what it finds is computed where it stands.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke, laptop or paper
seed = 0  # draws the eigenvalues
samples = None  # eigenvalues; None: the profile's own number
device = "cpu"  # cpu or cuda; auto: a GPU where there is one
store = None  # folder for new records; this chapter makes none

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import Comparisons, distance, number, setup, table

p = setup(
    globals(),
    {"smoke": {"samples": 50}, "laptop": {"samples": 500}, "paper": {"samples": 5000}},
    allowed=["seed", "samples"],
    threads=1,
)

import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from paperkit.estimators import renyi_entropy
from paperkit.plotting import INK

checked = Comparisons()

# %% [markdown]
# A chapter begins as a copy of this file, under the name `NN_subject.py`.
# This one is no page of the book, has no executed pair, and runs in the tests.
# Each cell shows one habit of a chapter, on a small example: how much of an entropy the largest eigenvalues hold.
# Write one sentence a line, and one logical joint a sentence.
#
# A chapter with claims shows its verdicts between the parameters and the set-up, by a cell with the tag `remove-input` that calls `show_verdicts("NN_subject", profile, store, first=[…])` of {mod}`paperkit.ledger`.
# The five claims that matter most are named in `first`; the others are folded.
#
# **Symbols.** They are those of the {doc}`notation page <../book/notation>`.
# A letter that this chapter alone uses otherwise is named here, and on that page.
#
# **Computed here.** Nothing is trained and no record is read; all arithmetic is in float64.
#
# | statement | in the paper | here |
# |---|---|---|
# | the entropy of a spectrum | Rényi, Definition 2.1 and eq. 6 | {eq}`eq-template-entropy` |
#
# (template-entropy)=
# ## A section derives one equation
#
# Say why an equation comes before it comes: we want to know over how many directions a spectrum is spread.
# Define each symbol where it first stands.
# Let $\lambda_j \ge 0$ be the eigenvalues and $q_j = \lambda_j / \sum_k \lambda_k$ their shares.
# The Rényi entropy of order $\alpha \ne 1$ is the logarithm of a sum of powers of these shares, and the paper's number stands beside ours:
#
# $$
# \mathcal H_\alpha = \frac{1}{1-\alpha} \log \sum_j q_j^\alpha
# \qquad (\text{Rényi paper: eq. 6}) .
# $$ (eq-template-entropy)
#
# The next cell is the equation, in about ten lines, and holds it against brute force and against the library.
# A visible cell has about 15 lines, and 20 at most; no hidden cell is longer than the longest visible one.


# %%
def entropy(eigenvalues: Tensor, alpha: float) -> Tensor:
    q = eigenvalues / eigenvalues.sum()
    return (q**alpha).sum().log() / (1 - alpha)


eigenvalues = torch.rand(p.samples, dtype=torch.float64) ** 4
values = eigenvalues.tolist()
for alpha in (0.5, 2.0):
    powers = math.fsum((value / math.fsum(values)) ** alpha for value in values)
    brute_force, library = math.log(powers) / (1 - alpha), renyi_entropy(eigenvalues, alpha)
    ours = entropy(eigenvalues, alpha)
    checked.agree(f"entropy of order {alpha}", ours, brute_force=brute_force, library=library)
print(
    f"under another unit: relative difference {number(distance(ours, entropy(3 * eigenvalues, 2)))}"
)

# %% [markdown]
# Every table comes from `table`, and every small number from `number`, which prints round-off as "below 1e-12".
# What the figure draws is computed in sight; only the drawing is hidden.
# A cell that draws random numbers or trains is seeded, and a cell whose last digits may move says how far: `nbval-rtol=1e-6`.

# %% tags=["nbval-rtol=1e-6"]
largest = eigenvalues.sort(descending=True).values
counts = [p.samples // part for part in (10, 4, 2, 1)]
rows = {k: [entropy(largest[:k], alpha) for alpha in (0.5, 2.0)] for k in counts}
table(["largest eigenvalues", "entropy of order ½", "entropy of order 2"], rows)

# %% tags=["hide-input"] mystnb={"image": {"alt": "What the figure shows, in words, for those who cannot see it: two rising curves, the one of order one half above the one of order two."}, "figure": {"caption": "What the figure shows, and how to read it. The entropy of the largest eigenvalues against their number, for two orders.", "name": "fig-template"}}
figure, axes = plt.subplots(figsize=(5.5, 3.4))
for name, column in zip(("order ½", "order 2"), zip(*rows.values(), strict=True), strict=True):
    axes.plot(counts, column, marker="o", label=name)
axes.axhline(math.log(p.samples), color=INK, lw=1, ls=":")
axes.set(xlabel="largest eigenvalues", ylabel="entropy (nats)")
axes.legend()
plt.show()

# %% [markdown]
# The last table of a chapter says what was checked.

# %%
checked.table()

# %% [markdown]
# ## Deviations, and what failed
#
# * *What differs from the paper* stands here, one point each.
#   A second sentence of a point is indented.
# * *What failed* stands beside it, with the same care.
#
# ## Exercises
#
# **1.** Show that the entropy does not depend on the unit of the eigenvalues.
#
# ````{dropdown} Solution
# A common factor cancels in every $q_j$.
# ````
#
# ## How to cite
#
# Cite the book as `CITATION.cff` says, and a statement of a paper by the paper: here {cite:t}`renyi2025`.
