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
# (chapter-one-linearization)=
# # One linearization, every measure
#
# **Question.** How many of the papers' measures can be read off one pair of tensors for each layer, $(a_l, B_l)$, and by which equations?
#
# **Answer.** Every measure of the network's tangent: spectra, entropies, traces, Fisher matrix, Kronecker factors; with input Jacobians $X_l$, sensitivities.
# What needs the Hessian between two layers, or the loss elsewhere, stays outside.
# Each equation agrees with brute force and the library.
#
# **Time.** Reading: about 55 minutes; running: under twenty seconds on two cores.
#
# **You need:** the chain rule, the singular values of a matrix, and from {doc}`chapter 2 <02_curvature_objects>` when a layer's Hessian is its Gauss–Newton block.
#
# What this chapter finds is proved or computed where it stands, so there are no verdicts: a cell whose assertion fails stops the notebook.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke or laptop
seed = 0  # draws the weights and the images
samples = None  # images; None: the profile's own number
device = "cpu"  # cpu or cuda; auto: a GPU where there is one
store = None  # folder for new records; this chapter makes none

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import Comparisons, distance, setup, table

p = setup(
    globals(),
    {"smoke": {"samples": 8}, "laptop": {"samples": 15}},
    allowed=["seed", "samples"],
    threads=1,
)

from copy import deepcopy

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional

from paperkit import estimators, plotting
from paperkit.bounds import compression
from paperkit.curvature import FisherOperator, dense_gauss_newton, dense_hessian, dense_jacobian
from paperkit.experiments.studies import curvature_blocks as study
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linearize import ekfac, kfac, linearize
from paperkit.models.small import build_digit_network
from paperkit.models.untied import operator_matrix, untie

checked = Comparisons()
agree = checked.agree
real = {"dtype": torch.float64, "device": p.device}

# %% [markdown]
# Three of the four papers of this book measure different things: eigenvalues of a Hessian block, lengths of gradients in a curved metric, traces and singular values of a Jacobian.
# (The SA-SAM paper is about steps; chapters 6 and 7 have it.)
# Each comes with code of its own, and each code differentiates the network again.
#
# They all look at the same object.
# Replace the network by its tangent at the current weights.
# Of each layer two tensors then remain: $a_l$, which holds what the layer's weights multiply, and $B_l$, which holds how the outputs answer to the layer's result.
# We derive the measures one by one, and turn each equation into a few lines of code.
#
# Each result is then computed twice more, by brute force and by the library (Takeuchi's criterion by the library alone).
# In the cells `agree` asserts that all three are equal, up to a relative distance of 1e-12 unless another tolerance is given, and notes it for {ref}`a table at the end <one-checked>`.
# The distance is that of the whole vectors or matrices, over the norm of ours; a small entry may be known less well.
#
# The *block* of layer $l$ is the part $H_l$ of the loss's Hessian that belongs to its weights.
# In every layer of the network below it equals the Gauss–Newton block $G_l$, by the proposition of {doc}`chapter 2 <02_curvature_objects>`, so one name serves both.
#
# **Symbols.** They are those of the {doc}`notation page <../book/notation>`.
# These letters have a meaning of their own here:
#
# * $\gamma_h$, $\beta_h$, $m_h$, $s_h$ to {ref}`batch normalisation <one-fisher>`;
# * $Q_i$, $M_l$, $M$, $\Pi$, $c_i$ to the rows of {ref}`all samples <one-igs>`: an orthonormal factor, the stacked rows of a layer and of all parameters, the projector on their range, a gradient's coordinates (as an index, $c$ counts outputs);
# * $\sigma_j$ to the singular values of $X_l$, and $\kappa_l$ and $G_{ir}$ to {ref}`relative flatness <one-flatness>`;
# * $s_{irt}$, $\Omega_l$, $\Psi_l$ and $U$ to {ref}`Kronecker factors <one-kfac>`.
#
# **Computed here.** Nothing is trained, no record is read, and all arithmetic is in float64.
#
# | quantity | in the paper | here |
# |---|---|---|
# | the pair, and what it determines | – | {eq}`eq-one-pair` |
# | a block times a vector | – | {eq}`eq-one-product` |
# | its nonzero spectrum | – | {eq}`eq-one-gram` |
# | Rényi entropies of all orders | Rényi, Definition 2.1 and eq. 6 | {eq}`eq-one-entropy` |
# | the Fisher matrix over all parameters | IGS, eq. 2 | {eq}`eq-one-fisher` |
# | information-geometric sharpness | IGS, eq. 6 | {eq}`eq-one-igs` |
# | Takeuchi's criterion, with $F^{+}$ for $H^{-1}$; the Fisher–Rao norm | IGS, eq. 9; Section 3.2 | {eq}`eq-one-tic`; {eq}`eq-one-fisher` |
# | trace sharpness $S$, tied and untied | Compression, eqs. 3 and 4 | {eq}`eq-one-sharing` |
# | local sensitivity, volume, dimension | Compression, Definitions 3.3, 3.7 and F.1, eq. 15 | {eq}`eq-one-features` |
# | relative flatness | Petzka et al. {cite:p}`petzka2021` | {eq}`eq-one-flatness` |
# | adaptive sharpness, the weights' part | Compression, eq. 40 | {eq}`eq-one-flatness` |
# | K-FAC and EKFAC | IGS, Section 4.2 (EKFAC) | {eq}`eq-one-kfac` |
#
# (one-pair)=
# ## The pass
#
# Our network is small enough that every matrix can be written out.
# It reads real 8 × 8 digits, and has three layers.
#
# * The *stem* is a convolution with stride 2, followed by batch normalisation with frozen statistics and ReLU.
# * *Conv* is a second convolution with its normalisation; its result is **added to its own input** before the next ReLU.
# * The *head* is a linear layer, which comes after pooling.
#
# Write $x_l$ for the activation that enters layer $l$.
# A convolution cuts it into patches $a_{l,t}$, one for each position $t = 1, \dots, P_l$.
# A linear layer has one position, $P_l = 1$, and its one patch is $x_l$ itself.
# The layer multiplies each patch by its weights $W_l$, a matrix of $h_l$ rows and $k_l$ columns, and adds its bias if it has one: $z_{l,t} = W_l\, a_{l,t} + b_l$.
#
# A forward pass over $n$ samples records the $a_l$.
# Then each of the $C$ outputs $f_c$ is sent backwards once, which gives $B_l = \partial f / \partial z_l$ in all layers together.
# Samples do not interact, so one backward pass serves all $n$ of them.

# %% tags=["hide-input"] mystnb={"image": {"alt": "A chain of boxes from the image to the outputs: stem, normalisation and ReLU, conv, normalisation, a sum, ReLU and pooling, head. It runs downwards. A curved arrow, the skip connection, leads from the input of conv to the sum. Left of the arrows into each layer stand x and the patches a, left of the arrows out of it z; right of them, in red, the Jacobians X and B."}, "figure": {"caption": "The pass. Left of the arrows, what goes forward: the activation that enters a layer, its patches, and the layer's result. Right of them, in red, what comes back from the outputs: the Jacobians in these tensors. The skip connection reads the input of conv a second time, so X of conv is more than B times the layer.", "name": "fig-one-pass"}}
figure, axes = plt.subplots(figsize=(5.5, 7))
boxes = ("image", "stem", "norm\nReLU", "conv", "norm", "+", "ReLU\npool", "head", "outputs")
places = dict(zip(boxes, (0, 2.4, 4.8, 7.2, 9.4, 11, 12.6, 15, 17.2), strict=True))
red, weights = plotting.COLORS[2], ("stem", "conv", "head")
for name, y in places.items():
    shape = {"boxstyle": "round", "ec": plotting.INK, "fc": "#d7ebe8" if name in weights else "w"}
    axes.text(0, y, name, ha="center", va="center", bbox=shape, zorder=2)
    axes.annotate("", (0, y - 0.4), (0, 0), arrowprops={"arrowstyle": "->"}, zorder=1)
    if name in weights:
        for place, forward, back in ((y - 1.2, r"$x \to a$", "$X$"), (y + 1.1, "$z$", "$B$")):
            axes.text(-0.12, place, forward, ha="right", va="center")
            axes.text(0.12, place, back, ha="left", va="center", color=red)
skip = {"arrowstyle": "->", "connectionstyle": "arc3,rad=0.6"}
axes.annotate("", (-0.15, 11), (-0.3, 5), arrowprops=skip)
axes.text(-0.9, 8.2, "skip: $x$", ha="right", va="center")
axes.annotate("", (0.9, 0), (0.9, 17.2), arrowprops={"arrowstyle": "->", "color": red})
axes.text(1, 8.2, "back from\nthe outputs", va="center", color=red)
axes.set(xlim=(-2.2, 2.2), ylim=(17.9, -0.7), xticks=[], yticks=[], frame_on=False)
plt.show()

# %% [markdown]
# Six indices say where an entry stands.
# (In a spectrum, $j$ counts the eigenvalues or singular values.)
#
# | index | counts | to |
# |---|---|---|
# | $l$ | layers | 3 |
# | $i$, and $j$ beside it | samples | $n$ |
# | $c$ | outputs | $C$ |
# | $t$, $t'$ | positions of layer $l$ | $P_l$ |
# | $h$ | channels, the rows of $W_l$ | $h_l$ |
# | $r$ | rows of the loss's factor $R_i$ | $C - 1$ |
#
# To see what the two tensors know, change the weights $W_l$ by a small matrix $V$.
# No input of the layer depends on the layer's own weights, so $z_{l,t}$ moves by exactly $V a_{l,t}$.
# The outputs then move by $B_{l,t} V a_{l,t}$ in first order, and the contributions of the positions add up.
#
# Write $B_{l,ict}$ for the row of $h_l$ numbers that belongs to output $c$ of sample $i$ and to position $t$.
# For this output the change is the left side of the next equation.
# It is linear in $V$, so it is the scalar product of $V$ with the gradient, which the right side reads off:
#
# $$
# \mathrm d f_{ic} = \sum_{t} B_{l,ict}^{\vphantom\top}\, V a_{l,it}
# \qquad\Longleftrightarrow\qquad
# \frac{\partial f_{ic}}{\partial W_l} = \sum_{t=1}^{P_l} B_{l,ict}^\top\, a_{l,it}^\top .
# $$ (eq-one-pair)
#
# Written as one row, the gradient on the right is row $c$ of the Jacobian $J_{l,i} = \partial f_i / \partial \operatorname{vec} W_l$.
#
# The pair has $n (C h_l + k_l) P_l$ numbers, and the Jacobian has $n C h_l k_l$.
# So the pair is the smaller of the two where the layer is wide and its positions are few: for an image it has 116 numbers for 1,600 in the head, and 784 for 360 in the stem.
#
# The cell takes the pair from the library's pass and multiplies it out to the Jacobians.
# The brute force differentiates every output by itself.

# %%
model = build_digit_network("residual, frozen batch norm", p.seed).to(p.device)
data = inputs, targets = study.digits_batch(p.samples, p.seed, p.device)
linearization = linearize(model, inputs, input_jacobians=True, all_parameters=True)

layers, n, C = linearization.layers, *linearization.outputs.shape
uses = {name: layer.uses[0] for name, layer in layers.items()}  # each layer is called once
W = {name: use.module.weight.detach().flatten(1) for name, use in uses.items()}  # (h, k)
a = {name: use.columns(slice(None))[:, 0] for name, use in uses.items()}  # (n, k, P)
B = {name: use.cotangents(slice(None))[:, :, 0] for name, use in uses.items()}  # (n, C, h, P)
J = {name: torch.einsum("ncht,nkt->nchk", B[name], a[name]).flatten(2) for name in layers}

brute = {name: dense_jacobian(model, inputs, [f"{name}.weight"]) for name in layers}
library = {name: layer.jacobian() for name, layer in layers.items()}
agree("Jacobian of a layer's weights", J, brute_force=brute, library=library)
assert all(layer.exact_block for layer in layers.values())

# %% [markdown]
# (one-product)=
# ## A block times a vector
#
# Every method that never writes a matrix out asks for one thing: the block times a vector.
# The block is $G_l = \frac1n \sum_i J_{l,i}^\top \Lambda_i J_{l,i}$, where $\Lambda_i$ is the $C \times C$ Hessian of the loss in the outputs of sample $i$.
# Equation {eq}`eq-one-pair` holds $J_{l,i}$ and its transpose.
# Apply the three factors, from right to left, to a change $V$ of the weights.
# The first gives the change $u_i$ of the outputs, and the other two give the product:
#
# $$
# u_i = \sum_t B_{l,it}\, V a_{l,it} \in \mathbb R^C,
# \qquad
# G_l\, V = \frac1n \sum_{i,t} B_{l,it}^\top\, (\Lambda_i u_i)\; a_{l,it}^\top .
# $$ (eq-one-product)
#
# For softmax cross-entropy, with the probabilities $p_i$ of sample $i$, the middle factor is $\Lambda_i u = p_i \odot (u - p_i^\top u)$.
# It costs a few operations for each output.
# Autograd takes no part and the network is not run again, so the code may take many $V$ at once.
#
# The brute force multiplies by the *Hessian*, from automatic differentiation of the loss.


# %%
prob = linearization.outputs.softmax(dim=1)


def gauss_newton_product(name: str, V: Tensor) -> Tensor:
    moved = torch.einsum("vhk,nkt->vnht", V.view(-1, *W[name].shape), a[name])
    u = torch.einsum("ncht,vnht->vnc", B[name], moved)
    weighed = prob * (u - (prob * u).sum(dim=2, keepdim=True))
    return torch.einsum("vnc,ncht,nkt->vhk", weighed, B[name], a[name]).flatten(1) / n


H = {name: dense_hessian(model, *data, parameters=[f"{name}.weight"]) for name in layers}
V = {k: draw_probes(3, w.numel(), generator_of(0), device=p.device) for k, w in W.items()}
shaped = {name: V[name].view(-1, *layers[name].weight_shape) for name in layers}
agree(
    "Gauss–Newton block times a vector",
    {name: gauss_newton_product(name, V[name]) for name in layers},
    brute_force={name: V[name] @ H[name] for name in layers},
    library={k: v.flatten(1) for k, v in linearization.gauss_newton_products(shaped).items()},
)

# %% [markdown]
# (one-gram)=
# ## The spectrum, exactly
#
# The Rényi paper asks for eigenvalues, and a wide layer's block has too many rows to be diagonalised.
# A fact about all matrices helps: $M^\top M$ and $M M^\top$ have the same nonzero eigenvalues.
# To use it, the block has to be written as $M_l^\top M_l$.
# Suppose that $\Lambda_i = R_i^\top R_i$ with some matrix $R_i$, which we construct in a moment.
# Stack the matrices $R_i J_{l,i} / \sqrt n$ of all samples into $M_l$.
# Then $G_l = M_l^\top M_l$, which has $d_l = h_l k_l$ rows.
# The other product, $K_l = M_l M_l^\top$, is a Gram matrix, of the inner products of the rows of $M_l$.
# Insert {eq}`eq-one-pair`, and the part of it for the samples $i$ and $j$ needs nothing but inner products of the pair:
#
# $$
# K_l = M_l M_l^\top,
# \qquad
# (K_l)_{ij} = \frac1n \sum_{t,t'} \langle a_{l,it},\, a_{l,jt'} \rangle\; (R_i B_{l,it}) (R_j B_{l,jt'})^\top .
# $$ (eq-one-gram)
#
# The fewer rows $R_i$ has, the smaller $K_l$ is.
# To see how few can be enough, write $\sqrt{p_i}$ for the vector of the roots of the probabilities.
# It has length one, since the probabilities sum to one.
# It turns $\Lambda_i$ into a product whose middle factor is a projection:
#
# $$
# \Lambda_i = \operatorname{diag}(p_i) - p_i p_i^\top
# = \operatorname{diag}(\sqrt{p_i})\, \Big(I - \sqrt{p_i}\, \sqrt{p_i}^{\,\top}\Big)\, \operatorname{diag}(\sqrt{p_i}) .
# $$ (eq-one-factor)
#
# The middle factor projects on the complement of $\sqrt{p_i}$.
# Choose a matrix $Q_i$ whose $C - 1$ rows are orthonormal and orthogonal to $\sqrt{p_i}$.
# Then the projection is $Q_i^\top Q_i$, and $R_i = Q_i \operatorname{diag}(\sqrt{p_i})$ is a factor of $C - 1$ rows.
# No factor has fewer, because the null vectors of $\Lambda_i$ are the multiples of $\mathbf 1$, as every $p_{ic} > 0$, so that its rank is $C - 1$.
#
# Hence $K_l$ has $n(C - 1)$ rows, where $G_l$ has $d_l$.
# The smaller of the two numbers bounds the rank, and the library writes out the smaller of the two matrices: in the stem that is $G_l$; the report at the end says *gram* of both, which means that the spectrum was read off the pair.
# The cell builds $K_l$ in every layer; its brute force diagonalises the Hessian.

# %%
Lambda = torch.diag_embed(prob) - prob[:, :, None] * prob[:, None, :]
root = prob.sqrt().unsqueeze(1)  # (n, 1, C)
R = torch.linalg.svd(root).Vh[:, 1:] * root  # the right singular vectors but the first are ⟂ root
assert distance(R.mT @ R, Lambda) < 1e-12

eigenvalues, spectra = {}, {name: layer.spectrum() for name, layer in layers.items()}
for name in layers:
    RB = torch.einsum("nrc,ncht->nrht", R, B[name])
    inner = torch.einsum("nkt,mku->nmtu", a[name], a[name])
    K = torch.einsum("nrht,mshu,nmtu->nrms", RB, RB, inner).reshape(n * (C - 1), -1) / n
    eigenvalues[name] = torch.linalg.eigvalsh(K).flip(0)[: spectra[name].rank]

dense = {k: torch.linalg.eigvalsh(H[k]).flip(0)[: spectra[k].rank] for k in layers}
library = {name: spectrum.eigenvalues for name, spectrum in spectra.items()}
agree("spectrum through the Gram dual", eigenvalues, brute_force=dense, library=library)
for k in layers:  # beyond the rank there is nothing
    assert torch.linalg.eigvalsh(H[k])[: -spectra[k].rank].abs().sum() < 1e-12
sizes = {k: (*W[k].shape, W[k].numel(), n * (C - 1), spectra[k].rank) for k in layers}
table(["layer", "rows $h$", "columns $k$", "weights $d$", "$n(C - 1)$", "rank"], sizes)

# %% [markdown]
# The rank of the head is $n(C - 1)$, and that of the other two stays below both numbers.
#
# The library has another factor $R_i$ of the same $\Lambda_i$, and so the same spectrum.
# It comes from a Householder reflection, which stays accurate where the softmax is saturated.
#
# (one-entropy)=
# ## All orders at once
#
# The Rényi paper {cite:p}`renyi2025` keeps of a spectrum only how it is spread.
# So divide the nonzero eigenvalues $\lambda_j$ by their sum, $q_j = \lambda_j / \sum_k \lambda_k$, and take the entropy of the order $\alpha$ that is wanted:
#
# $$
# \begin{gathered}
# \mathcal H_\alpha(H_l) = \frac{1}{1-\alpha} \log \sum_j q_j^\alpha
# \qquad (\text{Rényi paper: eq. 6, for } \alpha \ne 1) ,
# \\
# \mathcal H_1(H_l) = -\sum_j q_j \log q_j .
# \end{gathered}
# $$ (eq-one-entropy)
#
# One spectrum serves every order.
# Where it does not fit into memory, the entropies can be estimated from products {eq}`eq-one-product` alone, again for every order at once.
# {doc}`Chapter 4 <04_stochastic_estimators>` derives the estimate: random probes, and from each a small Lanczos matrix.
# It has two errors.
# The probes scatter, which gives a standard error.
# The Lanczos steps are finitely many, which gives a *bracket*, the interval that contains the result of infinitely many steps for the same probes.
#
# Both ways are in the figure.
# The estimate takes 100 probes and, in each layer, as many steps as make every bracket narrower than its standard error; here these are between 15 and 40.
# The cell of the figure asserts that the bracket, widened by four standard errors, contains the exact entropy.


# %%
def entropy(eigenvalues: Tensor, alpha: float) -> Tensor:
    log_q = (eigenvalues / eigenvalues.sum()).log()
    if alpha == 1:
        return -(log_q.exp() * log_q).sum()
    return (alpha * log_q).logsumexp(dim=0) / (1 - alpha)


def at_all_orders(spectra: dict[str, Tensor]) -> dict[str, dict[float, Tensor]]:
    return {
        name: {order: entropy(values, order) for order in orders}
        for name, values in spectra.items()
    }


orders = (0.5, 1.0, 1.5, 2.0)
found = estimators.renyi_sharpness(model, data, orders)
library = {name: {order: -float(found[name][order]) for order in orders} for name in layers}
ours, brute = at_all_orders(eigenvalues), at_all_orders(dense)
agree("Rényi entropies of all orders", ours, brute_force=brute, library=library)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels, a curve for each of the three layers. Above: the eigenvalues fall by several decades with their index; the first nine of the head stand far above its others. Below: the entropy falls as the order grows from 0.1 to 4; error bars at the orders 0.5, 1, 1.5 and 2 lie across the curves."}, "figure": {"caption": "The three layers of one network, from one pass. Above: all nonzero eigenvalues of each layer's Hessian block. Below: the Rényi entropy of that spectrum, in nats, against its order; the bars are estimates from one set of Lanczos matrices a layer, with four standard errors.", "name": "fig-one-spectra"}}
styles = plotting.layer_styles(list(layers))
grid = [step / 20 for step in range(2, 81)]
estimates = estimators.renyi_sharpness(model, data, orders, method="lanczos", probes=100)
figure, (upper, lower) = plt.subplots(2, figsize=(5.5, 6.2))
for name, values in eigenvalues.items():
    upper.semilogy(range(1, len(values) + 1), values.cpu(), label=name, **styles[name])
    lower.plot(grid, [float(entropy(values, alpha)) for alpha in grid], **styles[name])
    for alpha, one in estimates[name].items():
        low, high = one.bracket
        wider = 4 * one.standard_error
        assert low - wider <= -entropy(values, alpha) <= high + wider
        assert 15 <= one.assumptions["steps"] <= 40 and one.assumptions["reliable"]
        assert high - low < one.standard_error
        bar = {"color": styles[name]["color"], "fmt": "o", "ms": 3, "capsize": 4}
        lower.errorbar(alpha, -one.value, wider, **bar)
upper.set(xlabel="index of the eigenvalue", ylabel="eigenvalue")
lower.set(xlabel="order α", ylabel="entropy")
upper.legend(title="layer")
plt.show()

# %% [markdown]
# The first nine eigenvalues of the head stand apart.
# All images have nearly the same features after the pooling: the second moment of the $x_i$ that enter the head has one large eigenvalue, and the next is less than a fiftieth of it.
# So the head's block is nearly the mean of the $\Lambda_i$ along that one direction, and this mean has $C - 1$ nonzero eigenvalues, since a common shift of all logits changes no probability.

# %% tags=["nbval-rtol=1e-6"]
x = a["head"].squeeze(2)  # (n, k), the features
moment = torch.linalg.eigvalsh(x.T @ x / n).flip(0)
assert moment[1] < moment[0] / 50
assert eigenvalues["head"][C - 2] > 20 * eigenvalues["head"][C - 1]
table(["eigenvalue of the second moment", "value"], {"largest": moment[0], "next": moment[1]})

# %% [markdown]
# (one-fisher)=
# ## All parameters, biases and normalisation included
#
# Information-geometric sharpness belongs to the network and not to a layer, so it needs the Jacobian $J$ in *every* parameter.
# Biases and normalisation have no pair of their own, but their Jacobians can be read off the pairs of the layers that they follow.
#
# A bias is added at every position, so $\partial f / \partial b_l = \sum_t B_{l,t}$.
#
# For normalisation, look at one channel $h$.
# Frozen normalisation maps $z_h$ to $y_h = \gamma_h (z_h - m_h) / s_h + \beta_h$, with a scale $\gamma_h$, a shift $\beta_h$, a stored mean $m_h$ and a stored deviation $s_h$.
# The Jacobians in $\gamma_h$ and $\beta_h$ need $\partial f / \partial y_h$, and the pair has $B_l = \partial f / \partial z$.
# By the chain rule $\partial f / \partial z_{ht} = (\gamma_h / s_h)\, \partial f / \partial y_{ht}$, so for $\gamma_h \ne 0$ each gives the other:
#
# $$
# \begin{aligned}
# \frac{\partial f}{\partial \beta_h} &= \sum_t \frac{\partial f}{\partial y_{ht}} = \frac{s_h}{\gamma_h} \sum_t B_{l,ht}, \\
# \frac{\partial f}{\partial \gamma_h} &= \sum_t \frac{\partial f}{\partial y_{ht}} \frac{z_{ht} - m_h}{s_h}
# = \sum_t B_{l,ht}\, \frac{z_{ht} - m_h}{\gamma_h} .
# \end{aligned}
# $$ (eq-one-normalisation)

# %%
blocks = {f"{name}.weight": J[name] for name in layers} | {"head.bias": B["head"].sum(dim=3)}
for name, norm in (("stem", model.norm1), ("conv", model.norm2)):
    z = torch.einsum("hk,nkt->nht", W[name], a[name])
    gamma, mean = norm.weight.detach(), norm.running_mean
    deviation = (norm.running_var + norm.eps).sqrt()
    centred = (z - mean[:, None]) / gamma[:, None]
    number = "norm1" if name == "stem" else "norm2"
    blocks[f"{number}.weight"] = torch.einsum("ncht,nht->nch", B[name], centred)
    blocks[f"{number}.bias"] = B[name].sum(dim=3) * deviation / gamma

names = [name for name, _ in model.named_parameters()]
brute_force = {name: dense_jacobian(model, inputs, [name]) for name in blocks}
library = dict(linearization.jacobian_blocks())
agree("Jacobian in every parameter", blocks, brute_force=brute_force, library=library)

# %% [markdown]
# Now all Jacobians are at hand, and with them the Fisher matrix $F$.
# It is the mean of $g_i g_i^\top$, with $g_i$ the gradient of a sample's loss whose label is drawn from the model.
# For softmax cross-entropy this is the Gauss–Newton matrix of all parameters $\theta$ {cite:p}`martens2020`, with the $\Lambda_i$ and $R_i$ of before.
# So stack again, now with all columns: $M_i = R_i J_i / \sqrt n$, and $M$ for all samples.
# Then
#
# $$
# F = \frac1n \sum_i J_i^\top \Lambda_i J_i = M^\top M ,
# \qquad
# \theta^\top F\, \theta = \lVert M \theta \rVert^2
# \qquad (\text{IGS paper: eq. 2, Section 3.2}) .
# $$ (eq-one-fisher)
#
# The second is the Fisher–Rao norm {cite:p}`liang2019`, without a root, as the paper has it.
# $M$ has $n(C-1)$ rows, while $F$ has one for each of the $d$ parameters.

# %%
M = (R @ torch.cat([blocks[name] for name in names], dim=2)).flatten(0, 1) / n**0.5
F = dense_gauss_newton(model, inputs)
theta = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
identity = torch.eye(len(theta), **real)
operator = FisherOperator(model, data)
agree("Fisher matrix of all parameters", M.T @ M, brute_force=F, library=operator(identity))

norm = estimators.fisher_rao_norm(model, data)
square = (M @ theta).square().sum()
agree("Fisher–Rao norm", square, brute_force=theta @ F @ theta, library=norm)

# %% [markdown]
# (one-igs)=
# ## Information-geometric sharpness, in the space of the samples
#
# The measure {cite:p}`igs2022` is $\mathrm{IGS} = \frac1n \sum_i g_i^\top F^{+} g_i$, where $g_i$ is now the gradient of sample $i$'s loss $\ell_i$ with its own label $y$, and $F^{+}$ the pseudo-inverse.
# Written like this it needs a pseudo-inverse of a singular $d \times d$ matrix.
# It can be had in the space of the samples instead, because the gradients are combinations of the rows of $M$.
#
# To see this, begin with the gradient of the loss in the outputs, $p_i - e_y$, where $e_y$ is the unit vector of the label.
# The column of $\Lambda_i$ that belongs to the label is $\Lambda_i e_y = p_{iy}(e_y - p_i)$, a multiple of it.
# Since $\Lambda_i = R_i^\top R_i$, this column is also $R_i^\top (R_i e_y)$.
# So the gradient in the outputs is $R_i^\top c_i$ with some coordinates $c_i$, and $J_i^\top$ carries it on to the parameters:
#
# $$
# p_i - e_y = R_i^\top c_i, \qquad c_i = - \frac{R_i\, e_y}{p_{iy}},
# \qquad
# g_i = J_i^\top (p_i - e_y) = \sqrt n\, M_i^\top c_i .
# $$ (eq-one-dual)
#
# Now put $g_i$ into the measure.
# It brings $M_i$ and $M_i^\top$ to either side of $F^{+} = (M^\top M)^{+}$.
# Over all samples together, $\Pi = M (M^\top M)^{+} M^\top$ is the projector on the range of $M$, a subspace of $\mathbb R^{n(C-1)}$; write $\Pi_{ii}$ for its diagonal block of sample $i$.
#
# A projector lengthens nothing, which gives a bound.
# The bound knows no more than the losses $\ell_i = -\log p_{iy}$, because they fix the length of $c_i$:
#
# $$
# \begin{gathered}
# \mathrm{IGS} = \sum_i c_i^\top \Pi_{ii}\, c_i \;\le\; \sum_i \lVert c_i \rVert^2
# = \sum_i \big( e^{\ell_i} - 1 \big)
# \qquad (\text{IGS paper: eq. 6, for the left side}) ,
# \\
# \lVert c_i \rVert^2 = \frac{e_y^\top \Lambda_i e_y}{p_{iy}^2} = \frac1{p_{iy}} - 1 .
# \end{gathered}
# $$ (eq-one-igs)
#
# If $M$ has full row rank, $\Pi$ is the identity and the bound is met.
# **Then the measure is a function of the losses alone, and no geometry is left in it.**
#
# When can the rank be full?
# Of the $d = 366$ directions of the parameters here, 33 change no probability, as counted below.
# So the rank is at most 333, and full row rank needs $n(C-1) \le 333$.
# We therefore take two batches: ours, and one of 60 images, whose $n(C-1) = 540$ rows are too many, so that the projector matters.
#
# A second measure is in the same numbers.
# Takeuchi's criterion is $\frac1n \operatorname{Tr}(H^{-1} C_g)$, with the Hessian and the second moment $C_g$ of the gradients under the distribution of the data (IGS paper, eq. 9, where it is $C$).
# On a sample $C_g$ becomes $\widehat F = \frac1n \sum_i g_i g_i^\top$.
# The library has $F^{+}$ in the place of $H^{-1}$ unless told otherwise, and since the trace of $F^{+} g_i g_i^\top$ is $g_i^\top F^{+} g_i$, this gives
#
# $$
# \frac1n \operatorname{Tr}\big( F^{+} \widehat F \big) = \frac1{n^2} \sum_i g_i^\top F^{+} g_i = \frac{\mathrm{IGS}}{n} .
# $$ (eq-one-tic)


# %%
def projected_sharpness(linearization, targets: Tensor) -> tuple[Tensor, int]:
    J = torch.cat([block for _, block in linearization.jacobian_blocks()], dim=2)
    R, n = linearization.hessian_factor, len(targets)
    p_y = linearization.outputs.softmax(dim=1).gather(1, targets[:, None])
    c = -R[range(n), :, targets] / p_y  # (n, C − 1)
    left, singular, _ = torch.linalg.svd((R @ J).flatten(0, 1) / n**0.5, full_matrices=False)
    basis = left[:, singular > 1e-12 * singular[0]].unflatten(0, c.shape)
    return torch.einsum("nrj,nr->nj", basis, c).square().sum(), basis.shape[2]


# %% tags=["nbval-rtol=1e-6"]
rows, of_batch = [], {}
for batch in (data, study.digits_batch(60, p.seed, p.device)):
    one = linearize(model, batch[0], all_parameters=True)
    igs, rank = projected_sharpness(one, batch[1])
    of_batch[len(batch[1])] = igs
    J_all = dense_jacobian(model, batch[0])
    g = torch.einsum("ncd,nc->nd", J_all, one.residuals(batch[1]))
    F = torch.einsum("nra,nrb->ab", *[one.hessian_factor @ J_all] * 2) / len(g)
    brute = (g @ torch.linalg.pinv(F, rtol=1e-14, hermitian=True) * g).sum() / len(g)
    library = estimators.information_geometric_sharpness(model, batch)
    agree(f"IGS, n = {len(g)}", igs, brute_force=brute, library=library, tolerance=1e-6)
    tic = estimators.takeuchi_information_criterion(model, batch)
    assert distance(igs / len(g), tic) < 1e-6 and rank == library.rank <= len(theta) - 33
    rows.append((len(g), library.num_rows, rank, igs, library.upper_bound, library.method))
table(["$n$", "rows of $M$", "rank", "IGS", r"$\sum_i (e^{\ell_i} - 1)$", "method"], rows)

# %%
# Random images reach more patterns of the ReLUs than digits, so that only the 33 directions remain.
drawn = torch.randn(250, *inputs.shape[1:], generator=generator_of(0), dtype=inputs.dtype)
many = 3 * drawn.to(p.device)
some_labels = torch.zeros(250, dtype=torch.int64, device=p.device)
one = linearize(model, many, all_parameters=True)
assert projected_sharpness(one, some_labels)[1] == len(theta) - 33

# %% [markdown]
# On 15 images the measure equals the bound, and on 60 the projector takes two fifths of it away.
# There the rank is 330 and not 333: on these 60 digits three more directions change no probability.
# On 250 random images, which reach more patterns of the ReLUs, the cell finds 333, so that the 33 directions are all.
# The tolerance is 1e-6 here, because brute force inverts $F$, whose condition number is the square of that of $M$.
#
# These are the 33 directions that change no probability, and the cells after them write them out (that the stem's block has rank 33, too, is chance).
#
# * *Seventeen in the head.* Each of its 17 columns, the bias included, may add the same amount to all ten logits.
# * *Eight in the filters,* one for each of the eight channels of the two convolutions.
#   If the filter is scaled, the scale and the shift of its normalisation can undo it.
# * *Four in the channels between the two convolutions.* Such a channel may grow, through the scale and shift of the stem's normalisation, while the filters that read it shrink.
# * *Four in the channels behind the sum.* Such a channel may grow, through the scale and shift of conv's normalisation, while the head's four columns that read it shrink.
#
# In the last eight the skip connection carries too much or too little of the channel, and the central weight of the channel's own filter makes up for it: if a channel $x$ between the convolutions becomes $2x$, for example, the skip adds $2x$ where $x$ is wanted, and the central weight takes one $x$ away.

# %%
parameters = {name: q.detach() for name, q in model.named_parameters()}
conv, head = parameters["conv.weight"], parameters["head.weight"]
unmoved = []
for column in torch.eye(17, **real):  # the features and the bias
    logits = column.expand(10, 17)
    unmoved.append({"head.weight": logits[:, :16], "head.bias": logits[:, 16]})

# %%
for own in torch.eye(4, **real):  # a channel of each convolution
    grown = []
    for name, number, norm in (("stem", "norm1", model.norm1), ("conv", "norm2", model.norm2)):
        deviation = (norm.running_var + norm.eps).sqrt()
        scale, shift = own * norm.weight.detach(), own * norm.bias.detach()
        filters = own[:, None, None, None] * parameters[f"{name}.weight"]
        undone = {f"{number}.weight": -scale}
        undone[f"{number}.bias"] = -scale * norm.running_mean / deviation
        unmoved.append({f"{name}.weight": filters, **undone})
        grown.append({f"{number}.weight": scale, f"{number}.bias": shift})
    skip = torch.zeros_like(conv)  # the central weight that adds the channel once
    skip[:, :, 1, 1] = torch.diag(own * deviation / norm.weight.detach())
    between, behind = grown
    unmoved.append({**between, "conv.weight": -conv * own[None, :, None, None] - skip})
    unmoved.append({**behind, "conv.weight": skip, "head.weight": -head * own.repeat_interleave(4)})

# %%
zero = {name: torch.zeros_like(q) for name, q in parameters.items()}
N = torch.stack([torch.cat([q.flatten() for q in (zero | u).values()]) for u in unmoved])
assert (M @ N.T).norm() < 1e-12 * M.norm() * N.norm()
assert len(N) == torch.linalg.matrix_rank(N) == 33

# %% [markdown]
# (one-sharing)=
# ## Trace sharpness, with shared weights and without
#
# The compression paper {cite:p}`compression` measures sharpness by a trace, for the loss $\frac12 \lVert f - y \rVert^2$.
# There $\Lambda_i = I$, so the trace of the block is the mean squared gradient of the outputs.
# Insert {eq}`eq-one-pair`, and write the square as a double sum over positions.
# The inner product of two outer products is the product of two inner products, so
#
# $$
# \begin{gathered}
# S_l = \frac1n \sum_i \Big\lVert \sum_t B_{l,it}^\top \otimes a_{l,it} \Big\rVert^2
# = \frac1n \sum_i \sum_{t,t'} \langle B_{l,it}, B_{l,it'} \rangle \langle a_{l,it}, a_{l,it'} \rangle
# \\
# (\text{compression paper: eq. 3, for one layer}) .
# \end{gathered}
# $$ (eq-one-sharing)
#
# The product $\langle B_t, B_{t'} \rangle$ sums over outputs and channels.
# The terms with $t \ne t'$ are what weight sharing adds, and they can cancel the others.
#
# Sharing can be undone in two ways.
#
# * Give **every position its own copy** of the weight.
#   Then only $t = t'$ is left, $\sum_t \lVert B_t \rVert^2 \lVert a_t \rVert^2$.
# * Free **every entry of the layer's matrix** $A_l$, where $z_l = A_l x_l + b_l$.
#   Then the gradient is the outer product of $B_l$ and $x_l$, with the squared norm $\lVert B_l \rVert_F^2 \lVert x_l \rVert^2$ (compression paper: eq. 4).
#
# The table calls the three *tied*, *positions* and *operator*.
# A linear layer has one position, and for it all three are the same.
# For the brute force we build the networks without sharing and differentiate them.
# They compute the same function, and differ only in what counts as a parameter.

# %%
A = {name: operator_matrix(use.module, use.inputs.shape[1:]) for name, use in uses.items()}


def freed_trace(name: str, sharing: str) -> Tensor:
    """Return the mean squared gradient in one weight of the network without sharing."""
    network, use = deepcopy(model), uses[name]
    setattr(network, name, untie(use.module, use.inputs.shape[1:], sharing))
    assert distance(model(inputs), network(inputs)) < 1e-12
    return dense_jacobian(network, inputs, [f"{name}.weight"]).square().sum() / n


# %% tags=["nbval-rtol=1e-6"]
S = {"tied": {}, "positions": {}, "operator": {}}
for name, use in uses.items():
    BB, aa = B[name].flatten(1, 2).mT @ B[name].flatten(1, 2), a[name].mT @ a[name]
    norms = B[name].square().sum(dim=(1, 2, 3)) * use.inputs.flatten(1).square().sum(dim=1)
    S["tied"][name] = (BB * aa).sum() / n
    S["positions"][name] = torch.einsum("ntt,ntt->", BB, aa) / n
    S["operator"][name] = norms.sum() / n

brute = {sharing: {name: freed_trace(name, sharing) for name in layers} for sharing in S}
library = {k: estimators.layer_gauss_newton_traces(model, data, sharing=k) for k in S}
agree("trace sharpness, tied and untied", S, brute_force=brute, library=library)
table(["layer", *S], {name: [column[name] for column in S.values()] for name in layers})

# %% [markdown]
# In the convolutions the columns differ widely, in the stem by a factor of more than seven.
# Bounds of the compression paper that divide a gradient by $\lVert x_l \rVert$ are about the last column, while its sharpness is the first.
# {ref}`A later section <one-bounds>` shows what becomes of such a bound.
#
# (one-features)=
# ## How the outputs answer to the features, and a second reader
#
# The compression paper asks how the outputs answer to an activation $x_l$ that enters a layer, and measures this by the Jacobian $X_l = \partial f / \partial x_l$.
# At each sample $X_l$ has singular values $\sigma_1 \ge \dots \ge \sigma_C$ ($x_l$ has at least $C$ entries here).
# The largest is the strongest response, their product is the change of volume, and a ratio of their sums counts the directions that matter.
# With a bar for the mean over the samples, the four measures are
#
# $$
# \mathrm{MLS} = \overline{\sigma_1}, \quad
# \mathrm{MLS}_{\mathrm{norm}} = \overline{\lVert x \rVert^2 \sigma_1^2}, \quad
# \mathrm{Vol} = \overline{\textstyle\prod_j \sigma_j}, \quad
# D_{\mathrm{PR}} = \overline{\big(\textstyle\sum_j \sigma_j^2\big)^2 \big/ \textstyle\sum_j \sigma_j^4} ,
# $$ (eq-one-features)
#
# in the compression paper Definitions 3.7, F.1 and 3.3, and equation 15.
#
# *A name.* The second is the paper's *normalized* sensitivity.
# The paper's letters NMLS stand for another one, the *network* sensitivity of Definition 3.9, which is the sum of the $\mathrm{MLS}$ of all layers.
#
# *A convention.* The product of the singular values is $\sqrt{\det X X^\top}$, and the paper's equation 7 has $\nabla f^\top \nabla f$ under the root.
# That is the same matrix if the Jacobian is inputs × outputs, as in its equation 13.
# In its equations 4 and 14 it is outputs × inputs, as here; read so, the determinant in equation 7 would vanish ({ref}`errata <errata-volume>`).
#
# Is $X_l$ in the pair?
# If the layer is the only one that reads $x_l$, then $f$ depends on $x_l$ through $z_l = A_l x_l + b_l$ alone, and $X_l = B_l A_l$.
# A **skip connection** is a second reader.
# In our block, $y = \gamma (z - m)/s + \beta$ is added to $x$ itself.
# With $\tilde\gamma = \gamma / s$, channel by channel, the chain rule for $y$ gives $B_{\mathrm{conv}} = \tilde\gamma\, \partial f / \partial (x + y)$.
# The sum $x + y$ hears of $x$ in both ways, so the two contributions add up (compression paper: eq. 16):
#
# $$
# X_{\mathrm{conv}} = \underbrace{B_{\mathrm{conv}} A_{\mathrm{conv}}}_{\text{through the layer}}
# + \underbrace{\tilde\gamma^{-1} B_{\mathrm{conv}}}_{\text{through the skip}} .
# $$ (eq-one-skip)
#
# The pair of a layer does not say who else reads the layer's input, so in general the second term is not known.
# The pass therefore records $X_l$ beside $B_l$, at the tensor itself, where autograd adds up all readers.
# It costs no further pass.
#
# For the brute force we cut the network before each layer and differentiate what is left, the layer's *tail*.


# %%
class Tail(nn.Module):
    """Rest of the network, from the input of a layer on."""

    def __init__(self, start: str):
        super().__init__()
        self.start = start

    def forward(self, x):
        if self.start == "stem":
            return model(x)
        if self.start == "conv":
            added = functional.relu(model.norm2(model.conv(x)) + x)
            x = functional.adaptive_avg_pool2d(added, 2).flatten(1)
        return model.head(x)


# %%
tails = {name: Tail(name) for name in layers}
X = {k: vmap(jacrev(lambda x, k=k: tails[k](x[None])[0]))(use.inputs) for k, use in uses.items()}
X = {name: jacobian.detach().flatten(2) for name, jacobian in X.items()}
through_layer = {name: B[name].flatten(2) @ A[name] for name in layers}
scale = (model.norm2.weight / (model.norm2.running_var + model.norm2.eps).sqrt()).detach()
skip = {"stem": 0, "conv": (B["conv"] / scale[:, None]).flatten(2), "head": 0}
ours = {name: through_layer[name] + skip[name] for name in layers}
library = {name: use.input_jacobian.flatten(2) for name, use in uses.items()}
agree("Jacobian in a layer's input", ours, brute_force=X, library=library)
assert distance(X["conv"], through_layer["conv"]) > 0.01  # the skip connection counts

# %% tags=["hide-input"] mystnb={"image": {"alt": "Scatter plot with one marker for each layer and sample: the sensitivity through the layer alone against the whole sensitivity. The markers of stem and head lie on the diagonal, those of conv far below it."}, "figure": {"caption": "The sensitivity of the outputs to a layer's input, at every sample: all of it (horizontal) and the part that passes through the layer (vertical). On the line where the layer is the only reader, below it where a skip connection reads too.", "name": "fig-one-skip"}}
figure, axes = plt.subplots(figsize=(5.5, 3.8))
for (name, marker), color in zip(
    {"stem": "o", "conv": "s", "head": "^"}.items(), plotting.COLORS, strict=False
):
    whole, part = (torch.linalg.matrix_norm(v[name], ord=2).cpu() for v in (X, through_layer))
    axes.plot(whole, part, marker, ms=5, color=color, mfc="none", label=name)
ends = axes.get_xlim()
axes.plot(ends, ends, color="0.5", lw=1, ls=":", zorder=0)
axes.set(xlabel="all readers: ‖X‖₂", ylabel="through the layer: ‖BA‖₂")
axes.legend(title="layer")
plt.show()

# %% [markdown]
# At the head all samples lie on one point, because there $B_l = I$, so that $X_l$ is the head's weight matrix at every sample.
#
# Now the measures {eq}`eq-one-features`, from the singular values.
# The volume is a product of ten of them, so the table has its logarithm.
#
# In the folded cell, the brute force avoids singular values: it uses operator norms, the triangular factor of $X^\top$ for the determinant, and traces of $X X^\top$ and its square.
# The library takes each tail for a network of its own, whose input is $x_l$.
# A small singular value is known only up to the round-off of the largest, so the tolerance is 1e-10.


# %% tags=["nbval-rtol=1e-6"]
def features(jacobian: Tensor, x: Tensor) -> dict[str, Tensor]:
    sigma = torch.linalg.svdvals(jacobian)
    squares = sigma.square()
    return {
        "MLS": sigma[:, 0].mean(),
        "normalized MLS": (x.flatten(1).square().sum(dim=1) * squares[:, 0]).mean(),
        "log volume": sigma.prod(dim=1).mean().log(),
        "dimension": (squares.sum(dim=1).square() / squares.square().sum(dim=1)).mean(),
    }


found = {k: features(use.input_jacobian.flatten(2), use.inputs) for k, use in uses.items()}
rows = {name: list(row.values()) for name, row in found.items()}
table(["layer", *found["head"]], rows)

# %% tags=["hide-input"]
brute, library = {}, {}
whole = [estimators.maximum_local_sensitivity, estimators.normalized_maximum_local_sensitivity]
whole += [estimators.log_volume, estimators.local_dimension]
for name, use in uses.items():
    K, norm = X[name] @ X[name].mT, torch.linalg.matrix_norm(X[name], ord=2)
    x = use.inputs.flatten(1).norm(dim=1)
    traces = torch.einsum("ncc->n", K), torch.einsum("ncd,ndc->n", K, K)
    triangular = torch.linalg.qr(X[name].mT).R  # its diagonal squared multiplies to det X Xᵀ
    volume = triangular.diagonal(dim1=1, dim2=2).prod(dim=1).abs().mean().log()
    dimension = (traces[0].square() / traces[1]).mean()
    values = norm.mean(), (x * norm).square().mean(), volume, dimension
    brute[name] = dict(zip(found[name], values, strict=True))
    values = [one(tails[name], (use.inputs, targets)) for one in whole]
    library[name] = dict(zip(found[name], values, strict=True))
row = "sensitivities, volume, dimension"
agree(row, found, brute_force=brute, library=library, tolerance=1e-10)

# %% [markdown]
# The sums over the layers, of the sensitivities $\mathrm{MLS}$ and of the volumes, are the paper's Definitions 3.9 (its NMLS) and 3.5.
#
# (one-flatness)=
# ## Measures that look at the weights as well
#
# Make the weights of a layer twice as large, and let another layer undo it: the Hessian block is divided by four.
# Some measures multiply the Hessian by the weights twice, so that the factor drops out.
#
# For them we need the block entry by entry of $W_l$.
# So fold the rows of $R_i J_{l,i}$ into the shape of $W_l$: $G_{ir} = \sum_t (R_i B_{l,it})_r^\top\, a_{l,it}^\top$, where $r$ counts the rows of $R_i$.
# The block is then $G_l = \frac1n \sum_{i,r} \operatorname{vec} G_{ir} \operatorname{vec}(G_{ir})^\top$.
#
# **Relative flatness** {cite:p}`petzka2021` is $\kappa_l = \sum_{h,h'} \langle w_h, w_{h'} \rangle \operatorname{Tr} H_{hh'}$, with $w_h$ the rows of $W_l$ and $H_{hh'}$ the part of $H_l$ that belongs to two of them.
# Let $v_h$ be row $h$ of one $G_{ir}$.
# This $G_{ir}$ contributes $\operatorname{Tr} v_h^\top v_{h'} = \langle v_h, v_{h'} \rangle$ to the trace.
# Summed with the weights, that is $\sum_{h,h'} \langle w_h, w_{h'} \rangle \langle v_h, v_{h'} \rangle = \lVert \sum_h w_h^\top v_h \rVert_F^2$, the squared norm of $W_l^\top G_{ir}$.
#
# **Adaptive sharpness** is the sum of $w_j^2 H_{jj}$, over all parameters in the paper and here over the entries $w_j$ of a $W_l$.
# It needs only the diagonal of the block, where $G_{ir}$ contributes its squared entries.
# So both measures are mean squared norms of products with $W_l$:
#
# $$
# \begin{gathered}
# \kappa_l = \frac1n \sum_{i,r} \big\lVert W_l^\top G_{ir} \big\rVert_F^2 ,
# \\
# \sum_j w_j^2\, H_{jj} = \frac1n \sum_{i,r} \big\lVert W_l \odot G_{ir} \big\rVert_F^2
# \qquad (\text{compression paper: eq. 40}) .
# \end{gathered}
# $$ (eq-one-flatness)
#
# Here the Hessian is that of cross-entropy.

# %% tags=["nbval-rtol=1e-6"]
kappa, adaptive, brute_kappa, brute_adaptive = {}, {}, {}, {}
for name in layers:
    G = (R @ J[name]).unflatten(2, W[name].shape)  # (n, C − 1, h, k)
    kappa[name] = (W[name].T @ G).square().sum() / n
    adaptive[f"{name}.weight"] = (W[name] * G).square().sum() / n

    folded = H[name].view(*W[name].shape, *W[name].shape)
    brute_kappa[name] = torch.einsum("st,sktk->", W[name] @ W[name].T, folded)
    brute_adaptive[f"{name}.weight"] = W[name].flatten().square() @ H[name].diagonal()

library = estimators.relative_flatness(model, data, layers=list(layers))
agree("relative flatness", kappa, brute_force=brute_kappa, library=library)
library = estimators.adaptive_sharpness(model, data, parameters=list(adaptive)).by_parameter
row = "adaptive sharpness, the weights' part"
agree(row, adaptive, brute_force=brute_adaptive, library=library)
table(["layer", "relative flatness"], kappa, spec=".6f")

# %% [markdown]
# (one-kfac)=
# ## Kronecker factors
#
# Optimizers want the inverse of a block, and a Kronecker product of two small matrices is cheap to invert.
# How far is $G_l$ from such a product?
# Write $s_{irt} = (R_i B_{l,it})_r^\top$ for the column of $h_l$ numbers that the output side contributes, and append a 1 to $a_{l,it}$ where there is a bias.
# Then $G_{ir} = \sum_t s_{irt}\, a_{l,it}^\top$, and $G_l$ is a mean of Kronecker products.
# To arrive at a single one, drop the terms with $t \ne t'$, and then replace the mean of the products by the product of the means:
#
# $$
# \begin{aligned}
# G_l &= \frac1n \sum_{i,r} \sum_{t,t'} s_{irt}^{\vphantom\top} s_{irt'}^\top \otimes a_{l,it}^{\vphantom\top} a_{l,it'}^\top
# \;\approx\; \Omega_l \otimes \Psi_l, \\
# \Omega_l &= \frac1n \sum_{i,r,t} s_{irt}^{\vphantom\top} s_{irt}^\top,
# \qquad
# \Psi_l = \frac1{n P_l} \sum_{i,t} a_{l,it}^{\vphantom\top} a_{l,it}^\top .
# \end{aligned}
# $$ (eq-one-kfac)
#
# This is **K-FAC** ({cite:t}`martens2015`; {cite:t}`grosse2016` for convolutions).
# It lets every $s$ meet every $a$ of the layer, also those of other samples and positions.
#
# **EKFAC** {cite:p}`george2018` keeps the eigenvectors $U = U_\Omega \otimes U_\Psi$ of the two factors and corrects the eigenvalues.
# It takes the diagonal of $U^\top G_l\, U$, which is $\frac1n \sum_{i,r}$ of the squared entries of $U_\Omega^\top G_{ir}\, U_\Psi$.
# In this basis no other diagonal comes closer to $G_l$: the entries off the diagonal of $U^\top G_l\, U$ are an error that no diagonal changes.
#
# The table has the distance of both from the block, in the Frobenius norm and over the norm of the block.

# %% tags=["nbval-rtol=1e-6"]
kronecker, corrected, exact = {}, {}, {}
for name, use in uses.items():
    one = torch.ones_like(a[name][:, :1])
    columns = a[name] if use.module.bias is None else torch.cat([a[name], one], dim=1)
    s = torch.einsum("nrc,ncht->nrht", R, B[name])
    Omega = torch.einsum("nrht,nrgt->hg", s, s) / n
    Psi = torch.einsum("nkt,njt->kj", columns, columns) / (n * columns.shape[2])
    U = torch.kron(torch.linalg.eigh(Omega).eigenvectors, torch.linalg.eigh(Psi).eigenvectors)
    G = torch.einsum("nrht,nkt->nrhk", s, columns).flatten(2)
    exact[name] = torch.einsum("nra,nrb->ab", G, G) / n
    kronecker[name] = torch.kron(Omega, Psi)
    corrected[name] = U * ((G @ U).square().sum(dim=(0, 1)) / n) @ U.T
errors = {k: [distance(exact[k], m[k]) for m in (kronecker, corrected)] for k in exact}
assert all(better < worse for worse, better in errors.values())
table(["distance from the block", "K-FAC", "EKFAC"], errors)


# %% [markdown]
# For the convolutions K-FAC is off by two thirds and by four fifths of the block, and EKFAC by somewhat less.
# For the head both are close, because at random weights all samples have nearly the same $\Lambda_i$ and nearly the same features.
#
# The brute force for K-FAC lets every $s$ meet every $a$, one pair at a time.
# That for EKFAC, in the folded cell, takes the diagonal of the block that automatic differentiation gives, in the library's basis.


# %%
def every_pair(name: str) -> Tensor:
    """Return the mean of all products of an s with an a, written out."""
    use = uses[name]
    s = torch.einsum("nrc,ncht->nrth", R, B[name]).flatten(1, 2)
    patches = a[name].mT.flatten(0, 1)
    if use.module.bias is not None:
        patches = functional.pad(patches, (0, 1), value=1.0)
    total = torch.zeros((), device=p.device)
    for own in s:  # the columns of one sample, with the patches of all
        pairs = torch.einsum("ih,jk->ijhk", own, patches).flatten(2)
        total = total + (pairs.mT @ pairs).sum(dim=0)
    return total / (n * len(patches))


brute = {name: every_pair(name) for name in layers}
library = {k: factors.matrix() for k, factors in kfac(linearization).items()}
agree("K-FAC", kronecker, brute_force=brute, library=library)

# %% tags=["hide-input"]
brute, library = {}, ekfac(linearization)
for name, factors in library.items():
    block = brute_force[f"{name}.weight"].unflatten(2, W[name].shape)
    if uses[name].module.bias is not None:
        block = torch.cat([block, brute_force[f"{name}.bias"].unsqueeze(3)], dim=3)
    rows = (R @ block.flatten(2)).flatten(0, 1)
    U = torch.kron(factors.output_basis[0], factors.input_basis[0])
    brute[name] = U * (U.T @ (rows.T @ rows / n) @ U).diagonal() @ U.T
    assert distance(corrected[name].trace(), exact[name].trace()) < 1e-12
library = {name: factors.matrix() for name, factors in library.items()}
agree("EKFAC", corrected, brute_force=brute, library=library, tolerance=1e-9)

# %% [markdown]
# The trace of EKFAC is that of the block, in any basis.
# The tolerance on its matrix is 1e-9, because eigenvectors are less certain than eigenvalues.
#
# (one-call)=
# ## All of it in one call
#
# `measure(model, data)` linearizes once and computes the measures of this chapter from the pass.
# Takeuchi's criterion is the row `information_geometric_sharpness` divided by $n$ ({eq}`eq-one-tic`), and `kfac(linearization)` and `ekfac(linearization)` take the same pass.
# The last four rows are no part of the pass; they need a forward pass or one product $J\theta$ at most.
# A row *of the network* is about all layers together, or, for the sensitivities, the volume and the dimension, about the network's own input (of the two rows whose names begin with `network_` the first is a sum over layers, and the second the logarithm of one).
# Four rows are not derived above: `mean_loss` is $L$, `parameter_norm` the length of all layers' weights, `input_invariant_local_sensitivity` is the mean of $\lVert X \operatorname{diag}(x) \rVert_F^2$, with $x$ the network's input (compression paper: eq. 43), and `mean_exponential_loss` is the bound of {eq}`eq-one-igs` over $n$.
# A fifth, `gauss_newton_trace`, is $S$ over all parameters, biases and normalisation included, and so more than the sum of the layers' rows above it.
#
# The last column says what a value presumes, and for some what was found; two values can be compared only where the former agrees:
#
# * `exact_block=True`: the recorded operations allow the Hessian block to be read off the Gauss–Newton block.
#   Where they do not, `measure` takes Hessian products and says so.
# * `policy`: what was done with negative eigenvalues, of which there are none here.
# * `rank` and `num_rows` of information-geometric sharpness: they are equal, so this value is the closed form {eq}`eq-one-igs`.
# * `sharing` of the trace: which of the three columns above it is.
# * `average` and `rank_deficient` of the volume: what was averaged, and at how many samples it is zero.
#   Likewise `undefined`: at how many samples there is no dimension.
# * `labels`: whether they are the model's or the data's.
# * `loss`: the Hessian measures are of cross-entropy, the traces of ½‖f − y‖², as the compression paper defines them, and the measures of features have no loss in them at all.

# %% tags=["nbval-rtol=1e-6"]
report = estimators.measure(model, data)


def described(one) -> tuple[str, str, float, str, str]:
    order = f", α = {one.alpha}" if hasattr(one, "alpha") else ""
    facts = {k: v for k, v in one.assumptions.items() if isinstance(v, bool | int | str)}
    if one.loss is not None:
        facts = {"loss": one.loss, **facts}
    presumes = ", ".join(f"{key}={value}" for key, value in facts.items())
    return one.measure, (one.layer or "network") + order, one.value, one.method, presumes or "–"


rows = map(described, report.measurements())
table(["measure", "of", "value", "method", "presumes"], rows, spec=".5g")

# %% [markdown]
# (one-checked)=
# **Everything that was checked.** What we computed by hand must be what the report says, and below is every comparison of three ways.
# Every tolerance comes from the arithmetic.
# It is 1e-12 relative, except where a step multiplies by a condition number or turns eigenvectors, as said at the place.

# %%
by_hand = {
    "layer_gauss_newton_traces": S["tied"],
    "relative_flatness": {"head": kappa["head"]},
    "adaptive_weight_sharpness": sum(adaptive.values()),
    "maximum_local_sensitivity": found["stem"]["MLS"],
    "normalized_maximum_local_sensitivity": found["stem"]["normalized MLS"],
    "log_volume": found["stem"]["log volume"],
    "local_dimension": found["stem"]["dimension"],
    "network_maximum_local_sensitivity": sum(row["MLS"] for row in found.values()),
    "network_log_volume": torch.stack([row["log volume"] for row in found.values()]).logsumexp(0),
    "gauss_newton_trace": sum(block.square().sum() for block in blocks.values()) / n,
    "fisher_rao_norm": square,
    "information_geometric_sharpness": of_batch[n],
}
assert max(distance(value, report[name]) for name, value in by_hand.items()) < 1e-10
for name, by_order in report["renyi_sharpness"].items():
    assert max(distance(-entropy(eigenvalues[name], o), one) for o, one in by_order.items()) < 1e-12
checked.table()

# %% [markdown]
# (one-cost)=
# ## What the sharing saves
#
# A linearization first tries on a few samples whether they interact; then it takes one forward pass and $C$ backward passes over the batch.
# A measure that is asked for alone needs a linearization of its own.
# To see what is shared, we count the forward passes over the whole batch.
# Each call makes two: one for the loss, so that bad data are refused at once, and the linearization.
# Where entropies are asked for it makes two more, to time a gradient and tell the cost beforehand.
#
# The price is memory: the pairs of all layers take about $C$ times what the layers' outputs take.
# If `memory_budget` is small, `measure` goes through the samples a few at a time, or through the layers in groups.
# The numbers must stay the same.


# %%
def passes(measures: list[str]) -> int:
    sizes = []
    hook = model.register_forward_hook(lambda module, arguments, f: sizes.append(len(f)))
    estimators.measure(model, data, measures)
    hook.remove()
    return sizes.count(n)


every = estimators.PASS_MEASURES
separately, together = sum(passes([name]) for name in every), passes(list(every))
print(f"{len(every)} measures, one at a time: {separately} passes; in one call: {together}")

streamed = [name for name in every if name != "information_geometric_sharpness"]
whole = estimators.measure(model, data, streamed).measurements()
small = estimators.measure(model, data, streamed, memory_budget=300_000).measurements()
assert all(distance(one, other) < 1e-10 for one, other in zip(small, whole, strict=True))

# %% [markdown]
# The passes are not the whole cost.
# The Gram products {eq}`eq-one-gram` grow with the square of $n(C-1)$, and so does what information-geometric sharpness does with the rows of $M$.
# Each is paid once in either case, since no other measure needs it.
# So sharing saves most among cheap measures, and least where one of them is dear.
# The times, beside those of other libraries, are on the {doc}`benchmarks page <../book/benchmarks>`.
#
# Information-geometric sharpness is the one that cannot be split: all rows of $M$ meet in one projector, and a budget without room for it is refused.
#
# (one-bounds)=
# ## Two sides of a bound, from the same pass
#
# The compression paper bounds the sensitivities by the sharpness {cite:p}`compression`.
# The step that carries its bounds is {eq}`eq-one-sharing` for **one** position, where the gradient is an outer product: $\lVert \partial f / \partial W \rVert_F = \lVert B \rVert_F \lVert x \rVert$ (its equation 4).
# If the layer is the only reader of $x$, then $X = BW$, and this gives for $x \ne 0$
#
# $$
# \lVert X \rVert_F \;\le\; \lVert W \rVert_2\, \lVert B \rVert_F \;=\; \frac{\lVert W \rVert_2}{\lVert x \rVert}\, \Big\lVert \frac{\partial f}{\partial W} \Big\rVert_F .
# $$ (eq-one-bound)
#
# (Compression paper: eq. 5, corrected; the printed line has another middle term, see the {ref}`errata <errata-linear-stability>`.)
# The paper states equation 5 for the first layer, a linear one.
# Its chain begins one link earlier, with $\lVert X \rVert_2 \le \lVert X \rVert_F$, so {eq}`eq-one-bound` is its second inequality, and its two ends are $\lVert X \rVert_2$ and the right side.
# From it follow the bounds
#
# $$
# \mathrm{MLS} \le \lVert W_1 \rVert_2 \Big( \frac1n \sum_i \lVert x_i \rVert^{-2} \Big)^{1/2} S^{1/2} ,
# \qquad
# \sum_l \mathrm{MLS}_l \le \Big( \frac1n \sum_{i,l} \frac{\lVert W_l \rVert_2^2}{\lVert x_{l,i} \rVert^2} \Big)^{1/2} S^{1/2}
# $$ (eq-one-eleven)
#
# (compression paper: eqs. 11 and 12), with the sharpness $S$ of all parameters; the paper counts convolutions among the layers of the second.
#
# A convolution breaks the equality in the middle in two ways, so that the right side may be too small.
# A patch holds a part of $x$ only, so that even with a copy of the weight at each position the gradient is too short; and with one weight for all, positions can cancel in the gradient (or add, as here on average).
# What holds there has $A_l$ for $W_l$, and $\lVert B_l \rVert_F \lVert x_l \rVert$ for the gradient.
# The mean square of that is the last column of {ref}`the table of traces <one-sharing>`.
#
# The next table has the three bounds for a dense network and for ours.
# For ours the gradient is once *tied*, that in the shared weights, and once *operator*, that in the entries of $A_l$.
# The rows of one equation have different sums $S$, and are not to be compared down the column.
# With *tied*, $S$ is the trace over all parameters, biases and normalisation included, as in the paper.
# With *operator* it is the trace over the entries of the $A_l$, and in equation 11 over the first layer's alone, which is less and enough.
# The left side of equation 5 is $\lVert X \rVert_F$ here, as in {eq}`eq-one-bound`.
# The norm of a layer is $\lVert A_l \rVert_2$ in every row, which is $\lVert W_l \rVert_2$ in a dense one.
#
# A bound of the library carries both sides and its hypotheses, which are checked on the recorded tensors.
# `certified` says that the theorem applies, and `holds` that the left side is not above the right.

# %% tags=["nbval-rtol=1e-6"]
dense_network = build_digit_network("ReLU MLP", p.seed).to(p.device)
networks = {"dense": dense_network, "convolution": model}
rows = {}
for kind, sharing in (("dense", "tied"), ("convolution", "tied"), ("convolution", "operator")):
    terms = compression.compression_terms(networks[kind], data)
    bounds = {
        "eq. 5": compression.linear_stability_bounds(terms, sharing=sharing)[1],
        "eq. 11": compression.sensitivity_bound(terms, sharing=sharing),
        "eq. 12": compression.network_sensitivity_bound(terms, sharing=sharing),
    }
    for equation, bound in bounds.items():
        untied_first = sharing == "operator" and equation != "eq. 12"
        assert bound.certified == (kind == "dense" or untied_first)
        assert bound.holds == (bound.certified or equation != "eq. 5")
        rows[kind, sharing, equation] = bound.left, bound.right, bound.holds, bound.certified
columns = ["first layer", "gradient in", "bound", "left", "right", "holds", "certified"]
table(columns, rows, spec=".5f")

# %% tags=["nbval-rtol=1e-6"]
size = uses["stem"].inputs.flatten(1).norm(dim=1)  # of each image
right = torch.linalg.matrix_norm(A["stem"], 2) / size * J["stem"].flatten(1).norm(dim=1)
norms = {"‖X‖₂": 2, "‖X‖ in the Frobenius norm": "fro"}
ratios = {name: torch.linalg.matrix_norm(X["stem"], o) / right for name, o in norms.items()}
if p.profile == "laptop" and p.seed == 0:
    assert ratios["‖X‖₂"].max() < 1 < ratios["‖X‖ in the Frobenius norm"].min()
rows = {name: (ratio.min(), ratio.max()) for name, ratio in ratios.items()}
table(["over the right side of eq. 5, tied", "least of all images", "largest"], rows, spec=".2f")

# %% [markdown]
# Where a bound is certified, it holds.
# Where it is not, it may hold all the same, as three rows show.
# The second inequality of equation 5, corrected, does not: with the tied gradient $\lVert X \rVert_F$ exceeds the right side at every image, in a network at random weights that nobody designed for the purpose.
# (Equation 5 is a bound for each sample; the first table has the sample at which left minus right is largest.)
# The paper's two ends, with $\lVert X \rVert_2$ on the left, hold at all of these images, if only just, and so do equations 11 and 12.
# That the ends too can fail is shown by Exercise 2, with two pixels; the {ref}`errata <errata-tied-weights>` have the correction.
#
# The last row is not certified, because conv is not the only reader of its input.
# For residual layers the paper has a bound of its own (Appendix A, eq. 17), on a difference of sensitivities.

# %% [markdown]
# ## Deviations, and what failed
#
# * *Hessian measures: one layer at a time, and only where everything after the layer is piecewise linear.* A layer with a GELU or a layer normalisation after it, anywhere on the way to the outputs, still gets $G_l$ from its pair, and everything that is built on $J$ and $X$.
#   But its Hessian block is another matrix, and the entropy and the flatness of the *Hessian* then need Hessian products.
# * *$X_l$ is not in the pair.* Multiplying $B_l$ by the layer is the natural shortcut.
#   It is wrong by the skip connection's share, without a warning.
# * *Information-geometric sharpness on few samples* is a function of the losses.
#   The value in the report above contains no curvature.
# * *K-FAC is no measure of the block.* For the convolutions its error is of the size of the block.
#   It belongs to optimizers, where a cheap inverse matters more than accuracy; {eq}`eq-one-product` and {eq}`eq-one-gram` need no approximation.
# * *Random weights.* The identities hold at any weights, so none were trained.
#   The numbers mean nothing beyond this page.
# * *The normalisation formula* {eq}`eq-one-normalisation` divides by $\gamma_h$.
#   The library records the Jacobian at the normalisation's own output instead, and has no such division.
#
# ## Exercises
#
# **1.** For which layers is {eq}`eq-one-sharing` with $t \ne t'$ dropped never smaller than the double sum?
#
# ````{dropdown} Solution
# For layers of one position the two are equal; for the others either may be larger.
# The off-diagonal terms are $\sum_{t \ne t'} \langle B_t, B_{t'} \rangle \langle a_t, a_{t'} \rangle$, of either sign.
# If all positions agree, $B_t = b$ and $a_t = a$, the double sum is $P^2 \lVert b \rVert^2 \lVert a \rVert^2$, which is $P$ times the other; if they cancel it is zero.
# By the inequality of Cauchy and Schwarz the factor $P$ is the worst.
# ````
#
# **2.** Find a network of one convolution and one linear layer, with two pixels and one output, for which the sensitivity is positive and the gradient of the convolution's weight is zero.
# Does it break the paper's equation 12?
#
# ````{dropdown} Solution
# Take $f = v_1 w x_1 + v_2 w x_2$, a convolution with a kernel of one pixel and weight $w$.
# At $x = (1, 1)$ and $v = (1, -1)$, $\partial f / \partial w = x_1 - x_2 = 0$, while $\lVert \partial f / \partial x \rVert = \sqrt 2\, |w|$.
# Equation 5 at the convolution would read $\sqrt 2\,|w| \le 0$.
#
# Equation 12 has all parameters on its right side: $S = \lVert \partial f / \partial v \rVert^2 = 2 w^2$.
# The linear layer reads $w x$, of length $\sqrt 2\,|w|$, and has the sensitivity $\lVert v \rVert = \sqrt 2$.
# So equation 12 would read
#
# $$
# \sqrt 2\, |w| + \sqrt 2 \;\le\; \sqrt{\frac{w^2}{2} + \frac{2}{2 w^2}}\; \sqrt 2\, |w| = \sqrt{w^4 + 2} ,
# $$
#
# which is false for $0 < |w| < 2$: squared, it says $4 + 2 |w| \le |w|^3$.
# Equation 11, taken with the convolution as the first layer, would read $\sqrt 2\,|w| \le |w| \cdot \sqrt{1/2} \cdot \sqrt{2}\,|w| = w^2$, which is false for $|w| < \sqrt 2$.
# ````
#
# **3.** Let the linear head's features be $x_i$, the activation that enters it.
# Show that its block is $\frac1n \sum_i \Lambda_i \otimes x_i x_i^\top$, and that for $n = 1$ K-FAC without the bias is exact.
#
# ````{dropdown} Solution
# $B = I$ and $P = 1$, so {eq}`eq-one-product` reads $G V = \frac1n \sum_i \Lambda_i V x_i x_i^\top$, which is $\frac1n \sum_i \Lambda_i \otimes x_i x_i^\top$ applied to the row-major vector of $V$.
# The $s_r$ are the rows of $R$, so for $n = 1$ $\Omega = \sum_r s_r s_r^\top = R^\top R = \Lambda$, and $\Psi = x x^\top$.
# ````
#
# **4.** Two samples of the batch are equal, with the same label.
# How large can the rank of $M$ be, and is {eq}`eq-one-igs` still a function of the losses?
#
# ````{dropdown} Solution
# The rows of the two samples are equal, so the rank is at most $(n-1)(C-1)$.
# In the space of the two samples $\Pi$ projects on pairs $(u, u) / \sqrt 2$, so each $\Pi_{ii}$ is $\frac12 I$ if the rows are otherwise independent.
# The two contribute $\lVert c \rVert^2$ together, and not $2 \lVert c \rVert^2$: still a function of the losses, but a smaller one than the bound.
# ````
#
# ## How to cite
#
# Cite the book as `CITATION.cff` says, and the chapter as "One linearization, every measure".
# The measures belong to the papers that the table at the top names; Gram duals of Jacobians are old, and ours are no discovery.
