r"""The Hessian of a network's loss, and its part without the Gauss–Newton matrix, as operators."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor
from typing_extensions import override

from paperkit.curvature.jacobian_products import Parameters
from paperkit.curvature.jets import Jet, NoRuleError
from paperkit.curvature.operators import CurvatureOperator
from paperkit.curvature.routes import (
    FORWARD_OVER_REVERSE,
    JETS,
    REVERSE_OVER_FORWARD,
    VECTORIZED_DOUBLE_BACKWARD,
    Chunk,
    OutputCurvature,
    Route,
    along,
    along_all,
    gradient_graph,
    parameter_jets,
    sum_in_place,
)
from paperkit.curvature.second_derivatives import refuse_wrong_second_derivative
from paperkit.network.evaluation import check_inputs
from paperkit.network.footprint import GRADIENT_GRAPH, SavedStorages
from paperkit.network.samples import concatenate

# Bytes that the samples save over bytes of the weights, from which on passes are what a product
# costs, rather than the weights' own arithmetic.
_WORK_IN_SAMPLES = 10

# Peak bytes of a product with jets, in units of what their pass forward saves.
_JETS_MEMORY = 1.6


class HessianOperator(CurvatureOperator):
    r"""The Hessian of the mean loss, or a diagonal block of it.

    Several vectors at a time share the passes that they have in common. Networks of linear and
    convolution layers, frozen batch normalisation, pooling and functions of each entry have rules
    of their own, forward over reverse (Pearlmutter 1994; ``paperkit.curvature.jets``). Others, and
    networks whose weights rather than samples are the work, take one vectorized backward pass
    through the gradient's graph. A single product is a plain one, or reverse over forward where
    forward mode can be trusted: one pass gives the outputs f and their change :math:`t = Jv`, and
    pulling back :math:`\Lambda t` from f and the residual r from t gives
    :math:`J^\top \Lambda J v + \sum_c r_c \nabla^2 f_c\, v`. For the arguments see
    :class:`CurvatureOperator`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import HessianOperator
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = nn.init.ones_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> H = HessianOperator(model, (torch.ones(1, 1), torch.zeros(1, 1)), "half_squared_error")
    >>> H(torch.eye(2))  # of ½ (w₁w₂)² at (1, 1)
    tensor([[1., 2.],
            [2., 1.]])
    """

    positive_semidefinite = False
    _memory = (5.0, 3.2)
    # `cached` keeps each batch with its gradient, and the weights' versions at that time.
    _graphs: Sequence[tuple[Chunk, tuple[Tensor, ...]]] = ()
    _versions: Sequence[int] = ()
    _functions_kept: frozenset[Callable] = frozenset()

    @property
    @override
    def curvature(self) -> OutputCurvature:
        return OutputCurvature(self.loss.hessian_product, self.loss.gradient)

    @override
    def candidate_routes(self) -> list[Route]:
        # Jets save passes over the samples and cost passes over the weights.
        first = [JETS, VECTORIZED_DOUBLE_BACKWARD]
        if self._work_is_in_weights:
            first.reverse()
        return [*first, FORWARD_OVER_REVERSE, REVERSE_OVER_FORWARD]

    @property
    def _work_is_in_weights(self) -> bool:
        weights = self.dimension * self.dtype.itemsize
        return self._sample_bytes * self.num_samples < _WORK_IN_SAMPLES * weights

    @override
    def _refuse_wrong(self) -> None:
        inputs, targets = next(iter(self.data))
        refuse_wrong_second_derivative(self.model, inputs, targets, self.loss, self.parameter_names)
        few = max(2, self._fewest)
        with self._evaluation() as everything:
            # Where a second derivative is missing, this says so.
            chunk = self._chunk(everything, inputs[:few], targets[:few])
            direction = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
            along(chunk, gradient_graph(chunk, self.curvature), direction)

    @override
    def _trusted_routes(self, everything: Parameters) -> list[Route]:
        routes = super()._trusted_routes(everything)
        if routes[0] == JETS:
            # A single sample may take another path, where the estimate is not needed.
            with suppress(NoRuleError):
                self._memory = self._jets_memory(everything)
        return routes

    def _jets_memory(self, everything: Parameters) -> tuple[float, float]:
        """Return the peak bytes of a sample, as ``_memory``, from what a pass with jets saves."""
        inputs, targets = next(iter(self.data))

        few = self._fewest

        def saved(copies: int, count: int) -> int:
            samples = concatenate([inputs[:few]] * copies)
            chunk = self._chunk(everything, samples, targets[:few])
            vectors = torch.zeros(count, self.dimension, dtype=self.dtype, device=self.device)
            storages = SavedStorages([*everything.values(), *self.model.buffers()])
            with storages.noted():
                _, outputs = parameter_jets(chunk, vectors)
                if isinstance(outputs, Jet):
                    outputs.parts.detach()
            return storages.bytes()

        def each(count: int) -> int:
            once = saved(1, count)
            try:
                # The difference leaves out the jets of parameters, which do not grow.
                return (saved(2, count) - once) // few
            except Exception:  # a model for one number of samples
                return once // few

        one, two = each(1), each(2)
        unit = self._sample_bytes / _JETS_MEMORY
        return max(1, 2 * one - two) / unit, max(1, two - one) / unit

    @contextmanager
    def cached(self) -> Iterator[int]:
        """Keep the graph of the gradient for the products meanwhile.

        A product is then one backward pass through the gradient's graph, without the passes that
        make it; several vectors share that pass where this is their fastest way. Weights and data
        must stay as they are meanwhile; a product raises a ValueError where weights have changed.
        Where the graph does not fit the memory budget, products are as they are outside. Yields
        about how many bytes the products take.
        """
        fits = self._graph_fits
        # The graph's leaves must go on recording for as long as it is used.
        with self._evaluation() if fits else nullcontext({}) as everything:
            graphs = []
            self._used.functions.clear()
            for inputs, targets in self.data if fits else ():
                check_inputs(inputs)
                chunk = self._chunk(everything, inputs, targets)
                graphs.append((chunk, gradient_graph(chunk, self.curvature)))
            self._functions_kept = frozenset(self._used.functions)
            self._graphs, self._versions = graphs, self._weight_versions()
            try:
                # The gradient and its derivative are of the parameters' size.
                vectors = 2 * self.dimension * self.dtype.itemsize
                yield vectors + (self._graph_bytes if fits else self.memory_budget)
            finally:
                self._graphs = ()

    def graph_serves(self, count: int) -> bool:
        """Whether products with so many vectors are taken through the graph that `cached` keeps."""
        return self._graph_fits and self._graphs_serve(count)

    @property
    def suits_single_vectors(self) -> bool:
        """Whether single products within :meth:`cached` cost about what several at a time do.

        Several at a time share passes over the samples. Where the work is in the weights there is
        little to share, and the vectors take much memory. On a GPU several always pay.
        """
        return self.device.type == "cpu" and self._graph_fits and self._work_is_in_weights

    @property
    def _graph_bytes(self) -> int:
        return int(GRADIENT_GRAPH * self._sample_bytes * self.num_samples)

    @property
    def _graph_fits(self) -> bool:
        return self._graph_bytes <= self.memory_budget

    def _weight_versions(self) -> list[int]:
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        return [tensor._version for tensor in tensors]

    @override
    def _sum(self, probes: Tensor) -> tuple[Tensor, int]:
        if not self._graphs or not self._graphs_serve(len(probes)):
            return super()._sum(probes)
        if self._weight_versions() != self._versions:
            raise ValueError("the model's weights have changed: leave cached() before they do.")
        derivative = along if len(probes) == 1 else along_all
        at_once = self._chunk_sizes(self.num_samples, len(probes))[1]
        total = [
            sum_in_place(derivative(chunk, gradient, part) for chunk, gradient in self._graphs)
            for part in probes.split(at_once)
        ]
        return total[0] if len(total) == 1 else torch.cat(total), self.num_samples

    def _graphs_serve(self, count: int) -> bool:
        """Whether products with so many vectors are best taken through the graphs that are kept."""
        if count == 1:
            return True
        if VECTORIZED_DOUBLE_BACKWARD not in self._routes:
            return False
        fits = self._chunk_sizes(self.num_samples, count)[0] == self.num_samples
        return fits and self._functions_kept <= self._compared


class ResidualOperator(HessianOperator):
    r"""The Hessian minus its Gauss–Newton part, :math:`\frac1n\sum_{i,c} r_{ic} \nabla^2 f_{ic}`.

    It is the Hessian of the outputs weighted with residuals that are held fixed; a product costs
    as much as one with the Hessian. Its diagonal vanishes under the block proposition, and its
    spectrum is narrower than the Hessian's, which helps an estimator of the trace. For the
    arguments see :class:`CurvatureOperator`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import ResidualOperator
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = nn.init.ones_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> data = torch.ones(1, 1), torch.zeros(1, 1)  # the residual is 1
    >>> ResidualOperator(model, data, "half_squared_error")(torch.eye(2))  # of w₁w₂: no diagonal
    tensor([[0., 1.],
            [1., 0.]])
    """

    @property
    @override
    def curvature(self) -> OutputCurvature:
        def weigh(outputs: Tensor, changes: Tensor, targets: Tensor) -> Tensor:
            return torch.zeros_like(changes)

        def residual(outputs: Tensor, targets: Tensor) -> Tensor:
            return self.loss.gradient(outputs, targets).detach()

        return OutputCurvature(weigh, residual)
