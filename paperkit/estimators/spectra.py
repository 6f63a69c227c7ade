"""Exact Hessian spectra of a network's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit.curvature.dense import dense_hessian_and_round_off
from paperkit.estimators.layer_results import LayerResults, layer_results
from paperkit.linalg.gram import Spectrum
from paperkit.linearize import LayerLinearization
from paperkit.linearize.blocks import Block, Blocks
from paperkit.linearize.weights import WeightBlock
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import as_batch
from paperkit.network.losses import LossLike
from paperkit.network.problem import measure_of

MAX_DENSE = 2048
"""The largest matrix that is written out where no other exact way is known."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LayerSpectrum(Spectrum):
    """All Hessian eigenvalues of one layer's weight.

    Attributes
    ----------
    eigenvalues : Tensor
        The nonzero ones, float64, descending, on the CPU.
    dimension : int
        d_l, the number of entries of the weight.
    tolerance : float
        Absolute; eigenvalues of smaller magnitude are counted as zero.
    layer : str
        The module's name.
    n, num_outputs : int
        Samples and outputs; at most min(n(C−1), d_l) eigenvalues of a softmax block are nonzero.
    method : str
        ``"gram"`` (Gauss–Newton block equal to the Hessian block) or ``"dense"`` (all columns of
        the Hessian block).
    obstacle : str or None
        Why the Gauss–Newton block need not be the Hessian block; None where the proposition makes
        them equal.
    loss : str
        With its reduction: see :data:`paperkit.network.LOSSES`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import layer_spectra
    >>> model = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 3))
    >>> spectrum = layer_spectra(model, (torch.eye(8)[:2], torch.tensor([0, 1])))["0"]
    >>> spectrum.dimension, spectrum.rank_bound  # min(n(C − 1), d_l): the others are zero
    (24, 4)
    >>> spectrum.exact_block, spectrum.method
    (True, 'gram')
    """

    layer: str
    n: int
    num_outputs: int
    method: str
    obstacle: str | None
    loss: str

    @property
    def exact_block(self) -> bool:
        """Whether the proposition makes the Hessian block its Gauss–Newton block."""
        return self.obstacle is None

    @property
    def rank_bound(self) -> int:
        """min(n(C−1), d_l), which caps the entropy of an exact softmax block at its logarithm."""
        return min(self.n * (self.num_outputs - 1), self.dimension)


@measure_of
def layer_spectra(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    max_dense: int = MAX_DENSE,
    strict: bool | None = None,
    chunk_size: int | None = None,
    memory_budget: int = GIBIBYTE,
) -> LayerResults[LayerSpectrum]:
    """Return every layer's exact Hessian spectrum.

    Where the recorded operations show that the layer's Hessian block is its Gauss–Newton block,
    the spectrum comes from the Gram dual of one linearization. Elsewhere, and for a weight that is
    no plain layer's, the block is written out column by column, if it has at most ``max_dense`` of
    them.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    layers : sequence of str, optional
        Module names, or names of parameters with two axes or more that are no module's ``weight``
        (``"rnn.weight_hh_l0"``); default all. Biases and the parameters of normalisation layers do
        not belong to any layer.
    max_dense : int
        The largest block to write out. Weights of other kinds than linear and convolution layers
        are written out by default only while they have no more columns together.
    strict : bool, optional
        Whether a layer that cannot be measured ends the call. Default: only if ``layers`` names it;
        else it is left out, with its reason in ``left_out`` and in a warning.
    chunk_size : int, optional
        Samples of one forward pass; default what the budget allows.
    memory_budget : int
        Bytes above the model and its data. Where the pairs of all layers take more than half of
        it, the layers are linearized in groups.

    Returns
    -------
    LayerResults of LayerSpectrum
        A dict by layer, in the order of the forward pass.

    Raises
    ------
    ValueError
        If the data do not fit the model, a name is unknown, or none of the layers can be measured;
        with ``strict`` if one cannot.

    Warns
    -----
    LeftOutWarning
        If a layer is left out.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import layer_spectra
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> data = torch.diag(torch.tensor([3.0, 1.0])), torch.zeros(2, 1)
    >>> spectrum = layer_spectra(model, data, "half_squared_error")["0"]
    >>> [round(value, 4) for value in spectrum.eigenvalues.tolist()]  # 3²/2 and 1²/2
    [4.5, 0.5]
    """
    inputs, targets = as_batch(data)
    blocks = Blocks(
        model,
        (inputs, targets),
        loss,
        layers,
        memory_budget=memory_budget,
        chunk_size=chunk_size,
    )
    spectra: dict[str, LayerSpectrum] = {}
    left_out: dict[str, str] = {}
    parameters = []

    def collect(found: Mapping[str, Block]) -> None:
        room = max_dense  # columns of all blocks together that nobody asked for
        for name, block in found.items():
            optional = isinstance(block, WeightBlock) and block.optional
            if not block.exact_block and block.num_parameters > (room if optional else max_dense):
                left_out[name] = _too_large(block, max_dense)
                continue
            try:
                spectra[name] = layer_spectrum(block, model, inputs, targets, loss)
            except (ValueError, RuntimeError) as error:
                left_out[name] = str(error).rstrip(".")
                continue
            parameters.append(block.weight_name)
            room -= block.num_parameters if optional else 0

    for group in blocks:
        collect(group)
    collect(blocks.remaining())
    return layer_results(
        "layer_spectra",
        model,
        spectra,
        parameters,
        left_out | dict(blocks.shared()),
        strict=blocks.named if strict is None else strict,
    )


def _too_large(block: Block, max_dense: int) -> str:
    return (
        f"its Hessian block is no Gauss–Newton block ({block.obstacle}), and too large to write "
        f"out with {block.num_parameters} columns for max_dense={max_dense}"
    )


def layer_spectrum(
    layer: Block, model: nn.Module, inputs: Tensor, targets: Tensor, loss: LossLike
) -> LayerSpectrum:
    """Return one layer's spectrum: from its pairs where its block is exact, else written out.

    Parameters
    ----------
    layer : LayerLinearization or WeightBlock
        The block of a weight of ``model`` on ``inputs`` under ``loss``.
    model, inputs, targets, loss
        Network, samples and loss; needed only where the block is not exact.
    """
    if isinstance(layer, LayerLinearization) and layer.exact_block:
        spectrum = layer.spectrum()
    else:
        spectrum = dense_spectrum(
            *dense_hessian_and_round_off(model, inputs, targets, loss, [layer.weight_name])
        )
    return LayerSpectrum(
        eigenvalues=spectrum.eigenvalues,
        dimension=spectrum.dimension,
        tolerance=spectrum.tolerance,
        round_off=spectrum.round_off,
        squared=spectrum.squared,
        rank_limit=spectrum.rank_limit,
        layer=layer.name,
        n=layer.num_samples,
        num_outputs=layer.num_outputs,
        method="gram" if layer.exact_block else "dense",
        obstacle=layer.obstacle,
        loss=str(loss),
    )


def dense_spectrum(matrix: Tensor, round_off: float = 0.0) -> Spectrum:
    """Return the eigenvalues of a symmetric (d, d) matrix, in float64, descending.

    Parameters
    ----------
    matrix : Tensor
        In the precision in which it was computed.
    round_off : float
        By how much that may have moved an eigenvalue.
    """
    eigenvalues = torch.linalg.eigvalsh(matrix.to(torch.float64)).flip(0).cpu()
    largest = float(eigenvalues.abs().max())
    tolerance = len(matrix) * torch.finfo(matrix.dtype).eps * largest
    found = eigenvalues[eigenvalues.abs() > tolerance]
    return Spectrum(found, len(matrix), tolerance, round_off)
