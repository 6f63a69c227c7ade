"""What a measure will cost, known before it starts: in gradients of the same data, and in seconds.

A gradient is a forward and a backward pass over all samples. Methods are chosen by counted
operations, which are the same on every machine; seconds, from one timed gradient, only decide
whether something is said.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from paperkit import arguments
from paperkit.linalg.operator import FunctionOperator, SymmetricOperator
from paperkit.linearize.layer import LayerLinearization
from paperkit.linearize.layer_types import layer_type
from paperkit.linearize.remainder import is_normalization
from paperkit.network.batches import Batches
from paperkit.network.evaluation import evaluation
from paperkit.network.losses import Loss
from paperkit.network.network import Network, network_outputs
from paperkit.network.problem import smallest_batch

CEILING = 20.0
"""Gradients that one of a report's measures takes where nobody asks for more."""

ALONE = 100.0
"""Gradients that a measure asked for alone takes."""

PRODUCT = 2.0
"""Gradients that a product of a curvature matrix with one vector of many takes."""

# Probes that share one pass over the pairs.
PROBES_AT_ONCE = 16

# So many operations, about a second's, are no cost: small networks are measured exactly.
_NO_COST = 5e9
# Seconds or gradients above which a measure says its cost before it starts.
_SECONDS = 5.0
_GRADIENTS = 500.0
# A bar is shown from so many seconds on.
_SHOWN_SECONDS = 10.0
# Samples of the first timed gradient, and the seconds that a timed gradient takes at least, where
# there are samples for it. In a shorter one calls would cost more than samples.
_TIMED_SAMPLES, _TIMED_SECONDS = 32, 0.01
# Measured on residual networks and MLPs: gradients of a pass that records the pairs, a part for
# each output; samples that a vectorized pass saves where a parameter needs a pass for each sample.
_PAIRS, _PAIRS_OUTPUT = 1.0, 0.4
_SAMPLES_AT_ONCE = 8
# Operations in single precision that one of a Gram matrix and of its eigenvalues counts as.
_GRAM, _EIGENVALUES = 2.0, 6.0


class CostWarning(UserWarning):
    """What was asked for takes long; the message says how long and what to pass instead.

    Examples
    --------
    >>> import warnings
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import CostWarning, spectral_density
    >>> model, data = nn.Linear(500, 100), (torch.rand(40, 500), torch.arange(40))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     density = spectral_density(model, data, probes=20, steps=30)
    >>> [warning.category is CostWarning for warning in caught]
    [True]
    """


@dataclass(frozen=True)
class Gradient:
    """The unit of cost: one gradient of the mean loss over all samples.

    Attributes
    ----------
    model, data, loss
        Network, data and loss, settled.
    num_samples, num_outputs : int
        n and C.
    operations : float
        Operations of its matrix products and convolutions, counted on a few samples.
    """

    model: Network
    data: Batches
    loss: Loss
    num_samples: int
    num_outputs: int
    operations: float

    @classmethod
    def of(cls, model: Any, data: object, loss: Loss) -> Gradient:
        """Count the operations of a forward pass; a backward pass takes twice as many."""
        network, stream = Network.of(model), Batches.of(data)
        n = sum(len(inputs) for inputs, _ in stream)
        inputs = next(iter(stream))[0]
        with evaluation(network) as parameters, torch.no_grad():
            few = smallest_batch(network, parameters, inputs)
            with FlopCounterMode(display=False) as counter:
                outputs = network_outputs(network, parameters, few)
        each = max(counter.get_total_flops(), 1) / len(few)
        return cls(network, stream, loss, n, outputs.shape[1], 3.0 * n * each)

    @cached_property
    def seconds(self) -> float:
        """How long it takes, from one on some of the samples."""
        inputs, targets = next(iter(self.data))
        count = min(len(targets), _TIMED_SAMPLES)
        with evaluation(self.model) as parameters:
            while True:
                # The first of two may load code.
                elapsed = min(self._timed(parameters, inputs, targets, count) for _ in range(2))
                if elapsed >= _TIMED_SECONDS or count == len(targets):
                    return elapsed * self.num_samples / count
                count = min(len(targets), 4 * count)

    def _timed(
        self, parameters: dict[str, Tensor], inputs: Any, targets: Tensor, count: int
    ) -> float:
        """Return the seconds of a gradient of the first samples."""
        start = time.perf_counter()
        outputs = network_outputs(self.model, parameters, inputs[:count])
        self.loss.check(outputs, targets[:count])
        value = self.loss.value(outputs, targets[:count])
        torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        return time.perf_counter() - start

    def allowed(
        self,
        default: float,
        products: int | None = None,
        time_budget: float | None = None,
    ) -> float:
        """Return how many gradients may be spent.

        Parameters
        ----------
        default : float
            Where neither of the others is given; more where that takes no second.
        products : int, optional
            Products of curvature matrices with vectors, of about two gradients each.
        time_budget : float, optional
            Seconds; the smaller of the two counts.

        Raises
        ------
        TypeError, ValueError
            If one of them is no positive number.
        """
        limits = []
        if products is not None:
            limits.append(PRODUCT * arguments.integer("products", products, at_least=1))
        if time_budget is not None:
            seconds = arguments.number("time_budget", time_budget, above=0)
            limits.append(seconds / self.seconds)
        return min(limits) if limits else max(default, _NO_COST / self.operations)

    def pairs(self, *, all_parameters: bool = False) -> float:
        """Return what a linearization takes, in gradients.

        Parameters
        ----------
        all_parameters : bool
            Whether the Jacobians in all parameters are wanted; those of no layer or normalisation
            take a pass for each output of each sample.
        """
        cost = _PAIRS + _PAIRS_OUTPUT * self.num_outputs
        if all_parameters:
            known = {
                id(parameter)
                for module in self.model.modules()
                if layer_type(module) is not None or is_normalization(module)
                for parameter in module.parameters(recurse=False)
            }
            if any(id(parameter) not in known for parameter in self.model.parameters()):
                cost += self.num_outputs * max(1.0, self.num_samples / _SAMPLES_AT_ONCE)
        return cost

    def gram(self, layer: LayerLinearization) -> float:
        """Return what the exact spectrum of a layer takes beside its pairs, in gradients."""
        rows = layer.num_samples * layer.hessian_factor.shape[1]
        small, large = sorted((rows, layer.num_parameters))
        work = _GRAM * small**2 * large + _EIGENVALUES * small**3 + _rows_work(layer)
        return work / self.operations

    def layer_product(self, layer: LayerLinearization, room: int) -> float:
        """Return what the product of a layer's block with one of many probes takes, in gradients.

        Parameters
        ----------
        layer : LayerLinearization
            With its pairs.
        room : int
            Bytes: where four copies of the rows R J fit, they are formed only once.
        """
        rows = layer.num_samples * layer.hessian_factor.shape[1]
        through_rows = 4.0 * rows * layer.num_parameters
        if 4 * rows * layer.num_parameters * layer.hessian_factor.element_size() > room:
            through_rows += _rows_work(layer) / PROBES_AT_ONCE
        positions = sum(use.positions() for use in layer.uses)
        outputs = layer.weight_shape[0] * layer.hessian_factor.shape[2]
        through_positions = 4.0 * layer.num_samples * positions * (layer.num_parameters + outputs)
        return min(through_rows, through_positions) / self.operations

    def announce(self, what: str, gradients: float, advice: str) -> None:
        """Warn if it takes long.

        Parameters
        ----------
        what : str
            The measure and its method.
        gradients : float
            The planned cost.
        advice : str
            How to have it cheaper.

        Warns
        -----
        CostWarning
            Above 5 seconds, or 500 gradients that are more than what counts as no cost.
        """
        if gradients <= CEILING:
            return
        seconds = gradients * self.seconds
        is_work = gradients * self.operations > _NO_COST
        if seconds > _SECONDS or (gradients > _GRADIENTS and is_work):
            warnings.warn(
                f"{what}: planned cost about {gradients:,.0f} gradients of these data, "
                f"{seconds:.2g} s; {advice}.",
                CostWarning,
                stacklevel=3,
            )

    @contextmanager
    def progress(
        self, operator: SymmetricOperator, products: int, what: str
    ) -> Iterator[SymmetricOperator]:
        """Count an operator's products in a bar on a terminal, if they take long."""
        long = products * PRODUCT * self.seconds > _SHOWN_SECONDS if sys.stderr.isatty() else False
        if not long:
            yield operator
            return
        with tqdm(total=products, desc=what, unit="product", file=sys.stderr) as bar:

            def counted(vectors: Tensor) -> Tensor:
                result = operator(vectors)
                bar.update(len(vectors))
                return result

            yield FunctionOperator.like(operator, counted)


def _rows_work(layer: LayerLinearization) -> float:
    """Return the operations that form the rows R J of a layer."""
    rows = layer.num_samples * layer.hessian_factor.shape[1]
    positions = sum(use.positions() for use in layer.uses)
    return 2.0 * rows * positions * layer.num_parameters
