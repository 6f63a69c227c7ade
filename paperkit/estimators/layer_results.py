"""Results by layer, with what they leave out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from torch import nn

from paperkit.estimators.result import metrics_of
from paperkit.linearize.weights import warn_left_out

T = TypeVar("T")


class LayerResults(dict[str, T], Generic[T]):
    """Results by layer: a dict that knows what it leaves out.

    Attributes
    ----------
    left_out : dict of str to str
        The other weights that were to be measured, by name, and why each is not here, or has NaN
        for its value.
    coverage : float
        The share of the network's parameters that belongs to the weights that have a value.

    Examples
    --------
    >>> import warnings
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import LeftOutWarning, layer_spectra
    >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    >>> warnings.simplefilter("ignore", LeftOutWarning)
    >>> spectra = layer_spectra(model, (torch.tensor([[0, 1, 2]]), torch.tensor([0])), max_dense=4)
    >>> list(spectra), list(spectra.left_out)
    (['2'], ['0'])
    >>> round(spectra.coverage, 2)  # the weights of the last layer, 12 of 24 parameters
    0.5
    """

    def __init__(
        self, results: Mapping[str, T], left_out: Mapping[str, str], coverage: float
    ) -> None:
        super().__init__(results)
        self.left_out = dict(left_out)
        self.coverage = coverage

    def metrics(self) -> dict[str, Any]:
        """Return :meth:`Measurement.metrics` of each layer, by layer.

        Where a layer has a result for each order, the orders are strings: ``{"fc": {"0.5": …}}``.

        Raises
        ------
        TypeError
            If the results are no measurements; spectra are none.
        """
        return metrics_of(self)

    def __repr__(self) -> str:
        lines = [f"{name!r}: {value!r}" for name, value in self.items()]
        lines += [f"{name!r} left out: {reason}" for name, reason in self.left_out.items()]
        return "\n".join([*lines, f"covers {self.coverage:.1%} of the parameters"])


def layer_results(
    measure: str,
    model: nn.Module,
    results: Mapping[str, T],
    parameters: Iterable[str],
    left_out: Mapping[str, str],
    *,
    strict: bool,
) -> LayerResults[T]:
    """Put results together, and say once what they leave out.

    Parameters
    ----------
    measure : str
        The measure's name.
    model : nn.Module
        The network.
    results : mapping of str to result
        By layer.
    parameters : iterable of str
        Names of the parameters that have a value.
    left_out : mapping of str to str
        Why each other weight has none.
    strict : bool
        Whether the first of these ends the measure.

    Raises
    ------
    ValueError
        If ``strict`` and something is left out, or there is no result.

    Warns
    -----
    LeftOutWarning
        If something is left out.
    """
    if left_out and (strict or not results):
        name, reason = next(iter(left_out.items()))
        raise ValueError(f"layers: {name} cannot be measured: {reason}.")
    if not results:
        raise ValueError("layers: the model has no weight that can be measured.")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    covered = sum(sizes[name] for name in set(parameters))
    coverage = covered / sum(sizes.values())
    if left_out:
        warn_left_out(measure, left_out, f"; it covers {coverage:.1%} of the parameters")
    return LayerResults(results, left_out, coverage)
