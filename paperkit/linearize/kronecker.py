r"""Kronecker-factored approximations of the layers' Gauss–Newton blocks: K-FAC and EKFAC.

A layer's block is :math:`G_l = \frac1n \sum_i \sum_r \operatorname{vec} G_{ir}
\operatorname{vec}(G_{ir})^\top`, with the gradients :math:`G_{ir} = \sum_t s_{irt} a_{it}^\top` of
the rows r of the Hessian factor R: :math:`s_{irt} = (R_i B_{it})_r` is what reaches position t of
the pre-activation, :math:`a_{it}` the layer's input there, with a 1 appended where the layer has a
bias. Treating s and a as independent, and positions as uncorrelated, gives (Martens and Grosse
2015; Grosse and Martens 2016)

.. math::

   G_l \approx \Omega \otimes \Psi, \qquad
   \Omega = \frac1n \sum_{i,r,t} s_{irt} s_{irt}^\top, \qquad
   \Psi = \frac1{nP} \sum_{i,t} a_{it} a_{it}^\top .

The gradients' sum over positions makes Ω a sum and Ψ a mean over the P positions; averaging both
would lose a factor P. For one sample with one position the product is exact.

K-FAC's eigenvectors are :math:`U = U_\Omega \otimes U_\Psi`. EKFAC (George et al. 2018) keeps them
and replaces the eigenvalues by the diagonal of :math:`U^\top G_l U`. So its trace is that of the
block, and no other diagonal, K-FAC's included, comes closer to it: in
:math:`\|G_l - U \operatorname{diag}(\lambda) U^\top\|_F =
\|U^\top G_l U - \operatorname{diag}(\lambda)\|_F` the off-diagonal part does not depend on λ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.symmetric import eigenpairs_of
from paperkit.linearize.layer import LayerLinearization, contract_positions
from paperkit.linearize.layer_types import WeightLayout
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.weights import warn_left_out


@dataclass(frozen=True)
class KroneckerFactors:
    r"""A symmetric matrix :math:`U \operatorname{diag}(\lambda)\, U^\top`.

    :math:`U = U_\Omega \otimes U_\Psi` is orthogonal. The matrix acts on a layer's parameters that
    are written as a matrix, (outputs, columns): the weight as one row an output, and the bias as
    last column. Between the g groups of a convolution it is zero.

    Attributes
    ----------
    name : str
        Name of the layer.
    parameter_shapes : dict of str to torch.Size
        Name and shape of the weight and, where there is one, of the bias.
    output_basis : Tensor
        Eigenvectors :math:`U_\Omega` as columns, shape (g, o, o), float64.
    input_basis : Tensor
        Eigenvectors :math:`U_\Psi` as columns, shape (g, i, i), float64.
    eigenvalues : Tensor
        Eigenvalues :math:`\lambda`, shape (g, o, i), float64.
    transposed : bool
        Whether the weight is stored input channels first.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.linearize import kfac, linearize
    >>> model = nn.Linear(2, 1, bias=False)
    >>> factors = kfac(linearize(model, torch.tensor([[3.0, 4.0]]), "half_squared_error"))[""]
    >>> round(factors.trace(), 4)  # ‖x‖²
    25.0
    >>> factors.matrix().round(decimals=4)  # one sample, one position: exact
    tensor([[ 9., 12.],
            [12., 16.]], dtype=torch.float64)
    >>> factors.inverse_product(torch.tensor([[3.0, 4.0]]), damping=75.0)  # x / (25 + 75)
    tensor([[0.0300, 0.0400]])
    """

    name: str
    parameter_shapes: dict[str, torch.Size]
    output_basis: Tensor
    input_basis: Tensor
    eigenvalues: Tensor
    transposed: bool = False

    def join(self, parameters: dict[str, Tensor]) -> Tensor:
        r"""Write the weight and the bias, (…, \*shape) each, as a matrix (…, outputs, columns).

        Raises
        ------
        KeyError
            If a name of ``parameter_shapes`` is missing.
        """
        groups, outputs, _ = self.eigenvalues.shape
        columns = []
        for name, layout in self._layouts().items():
            matrices = layout.matrices(parameters[name])
            columns.append(matrices.reshape(*matrices.shape[:-3], groups * outputs, -1))
        return torch.cat(columns, dim=-1)

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`join`."""
        layouts = self._layouts()
        parts = matrix.split([layout.matrix_shape[2] for layout in layouts.values()], dim=-1)
        return {
            name: layout.weight(part.reshape(*matrix.shape[:-2], *layout.matrix_shape))
            for (name, layout), part in zip(layouts.items(), parts, strict=True)
        }

    def _layouts(self) -> dict[str, WeightLayout]:
        """Return the layout of each parameter; a bias is a matrix of a single column."""
        groups = len(self.eigenvalues)
        return {
            name: WeightLayout(shape, groups, self.transposed and len(shape) > 1)
            for name, shape in self.parameter_shapes.items()
        }

    def product(self, matrix: Tensor) -> Tensor:
        """Multiply with one or more parameter matrices.

        Parameters
        ----------
        matrix : Tensor
            Shape (…, outputs, columns), see :meth:`join`.

        Returns
        -------
        Tensor
            Same shape and dtype; the arithmetic is in float64.

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        return self._scale_in_eigenbasis(matrix, self.eigenvalues)

    def inverse_product(self, gradient: Tensor, damping: float) -> Tensor:
        r"""Multiply with :math:`(U \operatorname{diag}(\lambda) U^\top + \nu I)^{-1}`.

        Parameters
        ----------
        gradient : Tensor
            Shape (…, outputs, columns), see :meth:`join`.
        damping : float
            Damping :math:`\nu > 0`, in the units of the eigenvalues.

        Returns
        -------
        Tensor
            Same shape and dtype; the arithmetic is in float64.

        Raises
        ------
        ValueError
            If the shape does not fit or ``damping`` is not positive and finite.
        """
        damping = arguments.number("damping", damping, above=0)
        return self._scale_in_eigenbasis(gradient, 1.0 / (self.eigenvalues + damping))

    def trace(self) -> float:
        """Return the sum of all eigenvalues."""
        return float(self.eigenvalues.sum())

    def matrix(self) -> Tensor:
        """Write the matrix out, (d, d), for parameter matrices flattened row-major."""
        g, o, i = self.eigenvalues.shape
        identity = torch.eye(g * o * i, dtype=torch.float64, device=self.eigenvalues.device)
        return self.product(identity.reshape(-1, g * o, i)).flatten(1)

    def _scale_in_eigenbasis(self, matrix: Tensor, scales: Tensor) -> Tensor:
        g, o, i = self.eigenvalues.shape
        needs = f"layer {self.name} needs (…, {g * o}, {i}), as join() returns"
        arguments.instance("matrix", matrix, Tensor, needs)
        if matrix.shape[-2:] != (g * o, i):
            raise ValueError(f"matrix has shape {tuple(matrix.shape)}: {needs}.")
        blocks = matrix.to(torch.float64).reshape(*matrix.shape[:-2], g, o, i)
        rotated = self.output_basis.mT @ blocks @ self.input_basis
        blocks = self.output_basis @ (rotated * scales) @ self.input_basis.mT
        return blocks.reshape(matrix.shape).to(matrix.dtype)


def kfac(
    linearization: Linearization, targets: Tensor | None = None, *, strict: bool = False
) -> dict[str, KroneckerFactors]:
    r"""Approximate each layer's Gauss–Newton block by :math:`\Omega \otimes \Psi`.

    For cross-entropy the block is the Fisher matrix under the model's own labels
    (information-geometric paper, equation 2), computed without sampling labels; for ``mse`` it is
    2/C times the Fisher matrix of the unit-variance Gaussian. The paper, Section 4.2, takes EKFAC
    for its natural gradient, with details in an appendix that was not at hand.

    Parameters
    ----------
    linearization : Linearization
        Layers to approximate, with the loss that they carry.
    targets : Tensor, optional
        Observed targets of all samples. With them the empirical Fisher matrix is approximated, from
        a gradient a sample in place of the rows of the Hessian factor.
    strict : bool
        Whether a layer whose calls share the weight but not the bias is refused; else it is left
        out, and a warning names it.

    Returns
    -------
    dict of str to KroneckerFactors
        Approximation of each layer's block, by the layer's name.

    Raises
    ------
    ValueError
        If the targets do not fit; with ``strict`` if a layer is left out.

    Warns
    -----
    LeftOutWarning
        If a layer is left out.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.linearize import kfac, linearize
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    >>> factors = kfac(linearize(model, torch.eye(2)))
    >>> factors["0"].eigenvalues.shape  # one group, two outputs, two inputs and the bias
    torch.Size([1, 2, 3])
    """
    layers = _layers_with_one_bias("kfac", linearization, strict)
    rows = _output_rows(linearization, targets)
    return {name: _kfac_layer(layer, rows) for name, layer in layers.items()}


def ekfac(
    linearization: Linearization, targets: Tensor | None = None, *, strict: bool = False
) -> dict[str, KroneckerFactors]:
    r"""Approximate each layer's block in K-FAC's eigenbasis, with the best eigenvalues there.

    :math:`\lambda_{jk} = \frac1n \sum_{i,r} \bigl(U_\Omega^\top G_{ir} U_\Psi\bigr)_{jk}^2`, with
    positions summed before squaring (George et al. 2018). The trace is exact, and in the Frobenius
    norm the block is approximated at least as well as by :func:`kfac`: see the module's derivation.

    Parameters
    ----------
    linearization, targets, strict
        As in :func:`kfac`.

    Returns
    -------
    dict of str to KroneckerFactors
        Approximation of each layer's block, by the layer's name.

    Raises
    ------
    ValueError
        As :func:`kfac`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.linearize import ekfac, kfac, linearize
    >>> model = nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[5.0, 0.0], [0.0, 0.0]])
    >>> found = linearize(model, torch.eye(2))  # sure of one sample, not of the other
    >>> fisher = found.layers[""].rows().T.double() @ found.layers[""].rows().double() / 2
    >>> for approximate in (kfac, ekfac):
    ...     difference = approximate(found)[""].matrix() - fisher
    ...     print(approximate.__name__, round(float(difference.norm()), 4))
    kfac 0.1721
    ekfac 0.0
    """
    layers = _layers_with_one_bias("ekfac", linearization, strict)
    rows = _output_rows(linearization, targets)
    return {
        name: _correct_eigenvalues(_kfac_layer(layer, rows), layer, rows)
        for name, layer in layers.items()
    }


def _layers_with_one_bias(
    measure: str, linearization: Linearization, strict: bool
) -> dict[str, LayerLinearization]:
    """Return the layers whose calls all have the same bias; refuse the others, or warn of them."""
    arguments.instance("linearization", linearization, Linearization, "linearize returns one")
    strict = arguments.flag("strict", strict)
    reason = "it shares its weight between calls with different biases"
    left_out = {
        name: reason
        for name, layer in linearization.layers.items()
        if any(use.module.bias is not _bias(layer) for use in layer.uses)
    }
    if strict and left_out:
        raise ValueError(f"layer {next(iter(left_out))} cannot be approximated, because {reason}.")
    if left_out:
        warn_left_out(measure, left_out)
    return {n: layer for n, layer in linearization.layers.items() if n not in left_out}


def _output_rows(linearization: Linearization, targets: Tensor | None) -> Tensor:
    """Return the rows (n, r, C) whose pull-backs to the weights are the gradients G_ir."""
    if targets is None:
        return linearization.hessian_factor
    return linearization.residuals(targets).unsqueeze(1)


def _pairs(
    layer: LayerLinearization, rows: Tensor, entries_per_sample: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield s (m, r, g, o, P) and a (m, g, i, P) in float64, for m samples at a time.

    Positions of all uses of the weight are joined. ``entries_per_sample`` is the number of float64
    entries that the caller itself will hold for a sample.
    """
    biased = _bias(layer) is not None
    positions = sum(use.positions() for use in layer.uses)
    groups, outputs, fan_in = layer.layout.matrix_shape
    entries = positions * groups * (rows.shape[1] * outputs + fan_in + biased)
    step = max(1, layer.memory_budget // (8 * 3 * (entries + entries_per_sample)))
    for start in range(0, layer.num_samples, step):
        samples = slice(start, min(start + step, layer.num_samples))
        factor = rows[samples].double()
        signals, inputs = [], []
        for use in layer.uses:
            cotangents = use.cotangents(samples).double()
            signals.append(torch.einsum("nrc,ncgot->nrgot", factor, cotangents))
            inputs.append(use.columns(samples).double())
        columns = torch.cat(inputs, dim=3)
        if biased:
            columns = torch.cat([columns, torch.ones_like(columns[:, :, :1])], dim=2)
        yield torch.cat(signals, dim=4), columns


def _kfac_layer(layer: LayerLinearization, rows: Tensor) -> KroneckerFactors:
    output_factor = input_factor = torch.zeros((), dtype=torch.float64, device=rows.device)
    positions = sum(use.positions() for use in layer.uses)
    for signals, columns in _pairs(layer, rows):
        # Rows are called v here, because einsum adds in alphabetical order of the letters: samples,
        # positions, rows.
        output_factor = output_factor + torch.einsum("nvgot,nvgqt->goq", signals, signals)
        input_factor = input_factor + torch.einsum("ngit,ngjt->gij", columns, columns)
    n = layer.num_samples
    output_values, output_basis = eigenpairs_of(output_factor / n)
    input_values, input_basis = eigenpairs_of(input_factor / (n * positions))
    eigenvalues = output_values.clamp(min=0.0).unsqueeze(2) * input_values.clamp(min=0.0).unsqueeze(
        1
    )
    return KroneckerFactors(
        layer.name,
        _parameter_shapes(layer),
        output_basis,
        input_basis,
        eigenvalues,
        layer.layout.transposed,
    )


def _correct_eigenvalues(
    factors: KroneckerFactors, layer: LayerLinearization, rows: Tensor
) -> KroneckerFactors:
    """Replace the eigenvalues by the mean squares of the gradients in the eigenbasis."""
    total = torch.zeros_like(factors.eigenvalues)
    for signals, columns in _pairs(layer, rows, rows.shape[1] * total.numel()):
        gradients = contract_positions(
            torch.einsum("goq,nrgot->nrgqt", factors.output_basis, signals),
            torch.einsum("gij,ngit->ngjt", factors.input_basis, columns),
        )
        total += gradients.square_().sum(dim=(0, 1))
    return replace(factors, eigenvalues=total / layer.num_samples)


def _bias(layer: LayerLinearization) -> Tensor | None:
    return layer.uses[0].module._parameters["bias"]


def _parameter_shapes(layer: LayerLinearization) -> dict[str, torch.Size]:
    bias = _bias(layer)
    shapes = {layer.weight_name: layer.weight_shape}
    if bias is not None:
        shapes[layer.weight_name.removesuffix("weight") + "bias"] = bias.shape
    return shapes
