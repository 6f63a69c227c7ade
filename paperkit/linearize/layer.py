r"""A layer's inputs and output Jacobians, and the curvature that follows from them.

A weight is used one or more times in a forward pass (positions of a convolution are one use,
calling the module twice is two). For each use we keep the layer's input :math:`a` and the Jacobian
:math:`B = \partial f/\partial z` of the outputs in its pre-activation. Unfolded into P positions,

.. math:: \frac{\partial f_{ic}}{\partial W} = \sum_{t=1}^{P} B_{ict}^\top\, a_{it}^\top ,

and with :math:`R_i^\top R_i = \Lambda_i` the layer's Gauss–Newton block is
:math:`\frac1n \sum_i (R_i J_i)^\top (R_i J_i)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.linalg.gram import Spectrum, gram_spectrum
from paperkit.linearize.layer_types import LayerType, WeightLayout, type_of


@dataclass
class LayerUse:
    r"""A call of a layer.

    Attributes
    ----------
    module : nn.Module
        The layer.
    inputs : Tensor
        Activation x that enters the layer, shape (n, …), samples first.
    output_jacobian : Tensor
        Jacobian :math:`B = \partial f/\partial z`, shape (n, C, …).
    input_jacobian : Tensor or None
        Jacobian :math:`X = \partial f/\partial x`, shape (n, C, …), where it was asked for. Every
        consumer of the tensor that the layer reads counts, so it equals B A, with A the layer's
        linear map, only where the layer is the sole consumer; a skip connection is a second. None
        also where no gradient reaches that tensor.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.linearize import linearize
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.ones_(model[1].weight)
    >>> use = linearize(model, torch.tensor([[3.0, 4.0]]), "half_squared_error").layers["0"].uses[0]
    >>> use.inputs, use.output_jacobian  # a and B
    (tensor([[3., 4.]]), tensor([[[1., 1.]]]))
    >>> use.positions()  # a convolution has several
    1
    """

    module: nn.Module
    inputs: Tensor
    output_jacobian: Tensor
    input_jacobian: Tensor | None = None
    layer_type: LayerType = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.layer_type = type_of(self.module)

    @property
    def layout(self) -> WeightLayout:
        """How the weight holds the matrices of its groups."""
        return self.layer_type.layout(self.module)

    @property
    def groups(self) -> int:
        """The number of groups of a convolution; 1 for a linear layer."""
        return self.layout.groups

    def positions(self) -> int:
        """Return the number P of positions at which this use applies the weight to each sample."""
        return self.layer_type.num_positions(self.output_jacobian.shape[2:])

    def columns(self, samples: slice) -> Tensor:
        """Return the inputs a of some samples, shape (n, g, i, P)."""
        sizes = self.output_jacobian.shape[2:]
        return self.layer_type.columns(self.module, self.inputs[samples], sizes)

    def cotangents(self, samples: slice) -> Tensor:
        """Return the output Jacobian B of some samples, shape (n, C, g, o, P)."""
        return self.layer_type.cotangents(self.module, self.output_jacobian[samples])


def contract_positions(cotangents: Tensor, columns: Tensor) -> Tensor:
    """Sum B aᵀ over positions: (n, r, g, o, P), (n, g, i, P) → (n, r, g, o, i)."""
    n, r, g, o, positions = cotangents.shape
    left = cotangents.transpose(1, 2).reshape(n * g, r * o, positions)
    right = columns.reshape(n * g, -1, positions).transpose(1, 2)
    return torch.bmm(left, right).reshape(n, g, r, o, -1).transpose(1, 2)


@dataclass
class LayerLinearization:
    r"""The inputs and output Jacobians of a layer, from a backward pass for each output.

    Attributes
    ----------
    name : str
        Name of the module in the model.
    weight_name : str
        Name of the weight among the model's parameters.
    weight_shape : torch.Size
        Shape of W.
    uses : list of LayerUse
        The layer's calls within one forward pass.
    hessian_factor : Tensor
        Factor R, shape (n, r, C), with :math:`R_i^\top R_i = \Lambda_i`.
    obstacle : str or None
        Reason why the Gauss–Newton block need not be the Hessian block; None where the proposition
        makes them equal.
    memory_budget : int
        Bytes that a method may use for temporaries.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.linearize import linearize
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU())
    >>> _ = nn.init.ones_(model[0].weight)
    >>> layer = linearize(model, torch.tensor([[3.0, 4.0]]), "half_squared_error").layers["0"]
    >>> layer.jacobian()  # B aᵀ
    tensor([[[3., 4.]]])
    >>> layer.spectrum()  # the block's one eigenvalue is ‖a‖²
    Spectrum(dimension=2, rank=1, largest=25, trace=25)
    >>> layer.exact_block  # and the Hessian block's, because everything is piecewise linear
    True
    """

    name: str
    weight_name: str
    weight_shape: torch.Size
    hessian_factor: Tensor
    obstacle: str | None
    memory_budget: int
    uses: list[LayerUse] = field(default_factory=list)

    @property
    def exact_block(self) -> bool:
        """Whether the Gauss–Newton block equals the Hessian block."""
        return self.obstacle is None

    @property
    def num_parameters(self) -> int:
        """The number d_l of entries of the weight."""
        return self.weight_shape.numel()

    @property
    def num_samples(self) -> int:
        """The number n of samples."""
        return self.hessian_factor.shape[0]

    @property
    def num_outputs(self) -> int:
        """The number C of the network's outputs."""
        return self.hessian_factor.shape[2]

    @property
    def layout(self) -> WeightLayout:
        """How the weight holds the matrices of its groups."""
        return self.uses[0].layout

    def jacobian(self) -> Tensor:
        """Return J = ∂f/∂W, shape (n, C, d_l), the weight flattened row-major."""
        all_samples = slice(None)
        parts = (
            contract_positions(use.cotangents(all_samples), use.columns(all_samples))
            for use in self.uses
        )
        total = sum(parts, start=torch.zeros((), device=self.hessian_factor.device))
        return self.layout.weight(total).flatten(2)

    def rows(self, samples: slice = slice(None)) -> Tensor:
        """Return the rows R J of some samples, shape (n_chunk · r, d_l), each like the weight."""
        rows = self._matrix_rows(samples)
        return self.layout.weight(rows.unflatten(1, self.layout.matrix_shape)).flatten(1)

    def _matrix_rows(self, samples: slice) -> Tensor:
        """Return the rows R J of some samples, each as the matrices of the weight's groups."""
        factor = self.hessian_factor[samples]
        weighted_rows: Tensor | None = None
        for use in self.uses:
            weighted = torch.einsum("nrc,ncgot->nrgot", factor, use.cotangents(samples))
            rows = contract_positions(weighted, use.columns(samples))
            weighted_rows = rows if weighted_rows is None else weighted_rows.add_(rows)
        assert weighted_rows is not None
        return weighted_rows.flatten(2).flatten(0, 1)

    def _column_blocks(self) -> Iterator[Tensor]:
        """Yield all rows of R J, a few output channels of the weight at a time."""
        n, r, _ = self.hessian_factor.shape
        g, channels, fan_in = self.layout.matrix_shape
        all_samples = slice(None)
        weighted = [
            torch.einsum("nrc,ncgot->nrgot", self.hessian_factor, use.cotangents(all_samples))
            for use in self.uses
        ]
        columns = [use.columns(all_samples) for use in self.uses]
        # Each entry of a row is held in the layer's format, in a transposed temporary of that
        # format, and in a float64 copy.
        bytes_per_channel = n * r * g * fan_in * (8 + 2 * weighted[0].element_size())
        step = max(1, min(channels, self.memory_budget // (2 * bytes_per_channel)))
        for start in range(0, channels, step):
            block: Tensor | None = None
            for left, right in zip(weighted, columns, strict=True):
                rows = contract_positions(left[:, :, :, start : start + step], right)
                block = rows if block is None else block.add_(rows)
            assert block is not None
            yield block.flatten(2).flatten(0, 1)

    def _sample_chunks(self, bytes_per_sample: int) -> list[slice]:
        step = max(1, self.memory_budget // (2 * bytes_per_sample))
        starts = range(0, self.num_samples, step)
        return [slice(start, min(start + step, self.num_samples)) for start in starts]

    def _row_bytes(self) -> int:
        element = self.hessian_factor.element_size()
        return self.hessian_factor.shape[1] * self.num_parameters * (8 + 2 * element)

    def spectrum(self) -> Spectrum:
        """Return the exact spectrum of the Gauss–Newton block, accumulated in float64.

        The smaller of the block itself (d_l × d_l) and its Gram dual (n r × n r) is decomposed.
        """
        num_rows = self.hessian_factor.shape[0] * self.hessian_factor.shape[1]
        scale = self.num_samples**-0.5
        if self.num_parameters <= num_rows:
            chunks = self._sample_chunks(self._row_bytes())
            blocks: Iterator[Tensor] = (self._matrix_rows(chunk) for chunk in chunks)
        else:
            blocks = self._column_blocks()
        return gram_spectrum((block.mul_(scale) for block in blocks), num_rows, self.num_parameters)

    def gauss_newton_product(self, probes: Tensor) -> Tensor:
        r"""Multiply the block :math:`\frac1n \sum_i J_i^\top \Lambda_i J_i` with probes.

        A product takes two contractions and two layer-sized products, without autograd. The order
        of contraction is the cheaper one: through the rows R J, or probe by probe through the
        positions.

        Parameters
        ----------
        probes : Tensor
            Shape (k, \*weight_shape), the weights' dtype and device.

        Returns
        -------
        Tensor
            Same shape.

        Raises
        ------
        ValueError
            If the shape does not fit the weight.
        """
        shape = ("k", *self.weight_shape)
        arguments.tensor(f"probes of layer {self.name}", probes, shape=shape, floating=True)
        layout = self.layout
        vectors = layout.matrices(probes).flatten(1)
        n, _, num_outputs = self.hessian_factor.shape
        positions = sum(use.positions() for use in self.uses)
        through_rows = num_outputs * (positions + 2 * len(vectors))
        through_positions = 2 * len(vectors) * positions
        if through_rows <= through_positions:
            chunks = self._sample_chunks(self._row_bytes())
            product = self._product_through_rows
        else:
            groups, channels, fan_in = layout.matrix_shape
            entries_per_probe = positions * (groups * channels + fan_in)
            chunks = self._sample_chunks(len(vectors) * entries_per_probe * vectors.element_size())
            product = self._product_through_positions
        total = torch.zeros_like(vectors)
        for chunk in chunks:
            product(chunk, vectors, total)
        return layout.weight((total / n).reshape(len(vectors), *layout.matrix_shape))

    def _product_through_rows(self, samples: slice, vectors: Tensor, total: Tensor) -> None:
        rows = self._matrix_rows(samples)
        total.addmm_(vectors @ rows.T, rows)

    def _product_through_positions(self, samples: slice, vectors: Tensor, total: Tensor) -> None:
        k = len(vectors)
        factor = self.hessian_factor[samples]
        responses: Tensor | None = None
        for use in self.uses:
            g = use.groups
            columns, cotangents = use.columns(samples), use.cotangents(samples)
            weights = vectors.reshape(k, g, -1, columns.shape[2])
            change = torch.einsum("kgoi,ngit->nkgot", weights, columns)
            response = torch.einsum("ncgot,nkgot->nck", cotangents, change)
            responses = response if responses is None else responses + response
        assert responses is not None
        weighted = factor.transpose(1, 2) @ (factor @ responses)
        for use in self.uses:
            columns, cotangents = use.columns(samples), use.cotangents(samples)
            pulled = torch.einsum("nck,ncgot->nkgot", weighted, cotangents)
            total += torch.einsum("nkgot,ngit->kgoi", pulled, columns).reshape(total.shape)
