r"""Curvature matrices of a whole network, or of some of its parameters, as products with vectors.

With f the outputs of the n samples, J_i the Jacobian of sample i's outputs in the chosen
parameters, :math:`r_i` and :math:`\Lambda_i` the gradient and the Hessian of its loss in its
outputs, each matrix is a mean over samples:

.. math::

   H = \frac1n \sum_i \bigl(J_i^\top \Lambda_i J_i + \textstyle\sum_c r_{ic} \nabla^2 f_{ic}\bigr),
   \qquad G = \frac1n \sum_i J_i^\top \Lambda_i J_i, \qquad
   \frac1n \sum_i J_i^\top r_i r_i^\top J_i ,

the Hessian, the Gauss–Newton matrix and the empirical Fisher matrix (Martens 2020). No matrix is
formed, no gradient of a single sample is kept, and no cost grows with the number of outputs beyond
the network's own last layer. All products follow from one forward-mode pass, the change
:math:`J_i v` of the outputs along v, and one reverse pass.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from paperkit import arguments
from paperkit.curvature.dense import select_parameters
from paperkit.curvature.jacobian_products import (
    forward_products,
    reverse_pass,
    reverse_products,
)
from paperkit.curvature.jets import Jet, NoRuleError, ParameterJet
from paperkit.curvature.second_derivatives import missing_refused, refuse_wrong_second_derivative
from paperkit.linalg.probes import draw_probes
from paperkit.memory import GIBIBYTE, chunk_sizes
from paperkit.network.evaluation import check_inputs, check_outputs, evaluation
from paperkit.network.footprint import GRADIENT_GRAPH, SavedStorages
from paperkit.network.interaction import refuse_changed, seen_apart
from paperkit.network.losses import LossLike, get_loss
from paperkit.network.network import Forward, network_outputs, own_parameters
from paperkit.network.problem import refuse_cut, settled, smallest_batch
from paperkit.network.replacements import UsedFunctions, differentiated_twice
from paperkit.network.samples import Inputs, concatenate

Parameters = dict[str, Tensor]

# More probes at once hardly amortize the shared pass any further.
_PROBES_AT_ONCE = 16

# Fewer samples at once leave the processor idle between small operations.
_SAMPLES_AT_ONCE = 8

# Float64 numbers for each output of a sample and each vector, as the loss's curvature is applied.
_LOSS_ENTRIES = 5

# Bytes that the samples save over bytes of the weights, from which on passes are what a product
# costs, rather than the weights' own arithmetic.
_WORK_IN_SAMPLES = 10

# Peak bytes of a product with jets, in units of what their pass forward saves.
_JETS_MEMORY = 1.6


@dataclass(frozen=True)
class _Chunk:
    """Some samples: the network on them as a function of the chosen parameters.

    Attributes
    ----------
    network : callable
        Chosen parameters, by name → outputs (m, C).
    parameters : dict of str to Tensor
        The chosen parameters, leaves that record gradients.
    targets : Tensor
        Of the m samples.
    """

    network: Callable[[Parameters], Tensor]
    parameters: Parameters
    targets: Tensor

    def leaves(self) -> list[Tensor]:
        """Return the chosen parameters in order."""
        return list(self.parameters.values())

    def detached(self) -> Parameters:
        """Return the chosen parameters without a record of their own."""
        return {name: leaf.detach() for name, leaf in self.parameters.items()}


def _rows(parts: Sequence[Tensor], count: int) -> Tensor:
    """Flatten the parts of ``count`` parameter vectors and join them: (count, d)."""
    sizes = [part.numel() // count for part in parts]
    joined = parts[0].new_empty(count, sum(sizes))
    # Parts can lie in memory in any order: written to their place, they are copied once.
    for place, part in zip(joined.split(sizes, dim=1), parts, strict=True):
        if count == 1:
            place.view(part.shape).copy_(part)
        else:
            part = part.unsqueeze(1) if part.ndim == 1 else part
            place.unflatten(1, part.shape[1:]).copy_(part)
    return joined


def _sum_in_place(tensors: Iterable[Tensor]) -> Tensor:
    """Add tensors to the first of them."""
    return functools.reduce(Tensor.add_, tensors)


def _random_like(outputs: Tensor) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    found = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu")
    return found.to(outputs.device)


_Route = Callable[[_Chunk, Tensor], Tensor]


class CurvatureOperator(ABC):
    r"""A symmetric curvature matrix, mean over samples, as a function of vectors.

    Calling it multiplies the matrix with k vectors, the rows of a (k, d) tensor, or with one
    vector (d,). A vector holds the chosen parameters in the order of ``parameter_names``, each
    flattened row-major. Each call reads the data and the model's weights anew, so it sees weights
    that have changed since; the model is left as it was found.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C), one row a sample; run in evaluation mode.
    data : pair or iterable
        ``(inputs, targets)``, or an iterable of such batches, of any sizes, that can be read more
        than once. Samples count equally, whatever the batch they come in. Batches on another
        device are moved to the model's.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    parameters : sequence of str, optional
        Names from ``model.named_parameters()`` that make up the block; default all. Frozen
        parameters count like others, and a weight under two names counts once.
    forward : callable, optional
        ``(model, inputs) -> outputs``, for a model that is not called as ``model(inputs)``; see
        :class:`paperkit.network.Network`.
    memory_budget : int
        Bytes that a product may use for what autograd saves; samples and vectors are chunked to
        stay within it, down to one sample and one vector. It is an estimate from what one sample's
        forward pass saves.

    Attributes
    ----------
    dimension : int
        d.
    num_samples : int
        n, as counted when the operator was built.
    products : int
        Products with single vectors so far.
    parameter_names : list of str
        The chosen parameters in order.
    device, dtype
        Of the vectors.
    positive_semidefinite : bool
        Whether the matrix is so by construction.

    Raises
    ------
    ValueError
        If a parameter name is unknown, the data do not fit, a vector has the wrong shape, dtype
        or device, or a product is not finite.
    SamplesInteractError
        A ValueError: if the outputs for a sample depend on the others in its batch.
    RandomModelError
        A ValueError: if the model gives other outputs for the same inputs.

    Notes
    -----
    Forward mode is faster but not to be trusted everywhere: some operations have no rule for it,
    and the forward rule of PyTorch's layer normalisation takes the statistics for
    constants, so that its own derivative, and a Hessian from it, is wrong without an error. So each
    way of computing is compared once, on two samples, with backward passes alone, and used only
    where it agrees with them. Where other samples take another path through the model, with
    functions that the comparison has not seen, backward passes alone serve too.
    """

    positive_semidefinite = True
    # Peak bytes of a chunk in units of what its forward pass saves, a fixed part and a part for
    # each vector: the most that was measured on an MLP, a residual network and a transformer.
    _memory: tuple[float, float]

    def __init__(
        self,
        model: nn.Module,
        data: object,
        loss: LossLike = "cross_entropy",
        parameters: Sequence[str] | None = None,
        *,
        forward: Forward | None = None,
        memory_budget: int = GIBIBYTE,
    ) -> None:
        self.memory_budget = arguments.memory_budget("memory_budget", memory_budget)
        network, batches, bound = settled(model, data, get_loss(loss), forward)
        assert bound is not None
        self.model, self.data, self.loss = network, batches, bound
        self.products = 0
        self._used, self._noted = UsedFunctions(), True
        self._compared: frozenset[Callable] = frozenset()
        self.parameter_names, leaves = select_parameters(own_parameters(network), parameters)
        with self._evaluation() as everything:
            self._shapes = {n: everything[n].shape for n in self.parameter_names}
            self.dimension = sum(shape.numel() for shape in self._shapes.values())
            self.device, self.dtype = leaves[0].device, leaves[0].dtype
            self.num_samples, self._sample_bytes = self._inspect(everything)
        refuse_cut(network, next(iter(batches))[0], self.parameter_names)
        self._refuse_wrong()

    def _refuse_wrong(self) -> None:  # noqa: B027 - first derivatives need no check
        """Raise if derivatives that the products need are missing or wrong."""

    @cached_property
    def _routes(self) -> list[_Route]:
        """The ways to compute that can be trusted; only products outside ``cached`` need them."""
        with self._evaluation() as everything:
            return self._trusted_routes(everything)

    def _evaluation(self) -> AbstractContextManager[Parameters]:
        """Evaluation mode in which the chosen parameters alone record gradients."""
        return evaluation(self.model, self.parameter_names)

    @property
    def shares_passes(self) -> bool:
        """Whether several vectors share the passes of a product, rather than have them each."""
        return self._routes[0] not in (self._one_by_one, self._by_backward_passes)

    @property
    def round_off(self) -> float:
        """Relative round-off of a product, that of the narrowest format the model computes in."""
        return torch.finfo(self.model.narrowest).eps

    def split(self, vector: Tensor) -> Parameters:
        """Cut a vector (d,) into the parameters' shapes, or k vectors (k, d) into (k, …) each."""
        parts = vector.split([shape.numel() for shape in self._shapes.values()], dim=-1)
        leading = vector.shape[:-1]
        return {
            name: part.reshape((*leading, *shape))
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply the matrix with k vectors (k, d), or with one (d,)."""
        arguments.instance("vectors", vectors, Tensor)
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != self.dimension or not len(vectors):
            raise ValueError(
                f"vectors has shape {tuple(vectors.shape)}: "
                f"pass (k, {self.dimension}) or ({self.dimension},)."
            )
        if (vectors.dtype, vectors.device) != (self.dtype, self.device):
            raise ValueError(
                f"vectors is {vectors.dtype} on {vectors.device}: convert it to {self.dtype} on "
                f"{self.device}, as the model's parameters."
            )
        probes = vectors.detach().reshape(-1, self.dimension)
        total, count = self._sum(probes)
        self.products += len(probes)
        product = total.div_(count)
        self._refuse_infinite(product)
        self._refuse_underflow(probes, product)
        return product.reshape(vectors.shape)

    def _refuse_infinite(self, product: Tensor) -> None:
        # The norm is one pass over the numbers; it overflows before they do.
        if not math.isfinite(float(product.norm())) and not bool(torch.isfinite(product).all()):
            raise ValueError("the product has NaN or infinite entries: check the model's weights.")

    def _refuse_underflow(self, probes: Tensor, product: Tensor) -> None:
        """Raise where a product is all but zero because the format has no smaller numbers.

        A zero can also be right, so the loss's own derivatives are looked at in double precision.
        """
        limits = torch.finfo(self.dtype)
        least = limits.tiny / limits.eps
        if self.dtype == torch.float64 or product.numel() == 0:
            return
        # Some entries are large enough if the norm is: a pass that most products end with.
        enough = least * math.sqrt(product.numel())
        if float(product.norm()) >= enough or float(product.abs().max()) >= least:
            return
        if not probes.any():
            return
        largest = 0.0
        with self._evaluation() as everything, torch.no_grad():
            for inputs, targets in self.data:
                samples, _ = self._chunk_sizes(len(inputs), 1)
                for x, y in zip(inputs.split(samples), targets.split(samples), strict=True):
                    outputs = self._chunk(everything, x, y).network({}).double()
                    largest = max(largest, float(self._pulled_back(outputs, y).abs().max()))
        if 0 < largest < least:
            raise ValueError(
                f"model: the loss's derivatives in the outputs are at most {largest:.1g}, which "
                f"{self.dtype} does not hold: measure model.double()."
            )

    @abstractmethod
    def _pulled_back(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what a product pulls back from outputs that change by random numbers."""

    def block_quadratic_forms(
        self, count: int, generator: torch.Generator, *, blocks: int = 32
    ) -> Tensor:
        r"""Return :math:`\sum_{i \in b} v_{bj}^\top A_i v_{bj}` for blocks b of the samples.

        :math:`A_i` is the matrix of sample i alone, so that :math:`A = \frac1n \sum_i A_i`, and the
        :math:`v_{bj}` are vectors of random signs, of which each block has its own: over the blocks
        the forms of one j add up to an unbiased estimate of :math:`n \operatorname{Tr} A`. Its
        variance is :math:`2 \sum_b \lVert \sum_{i \in b} \bar A_i \rVert_F^2`, the bar for a matrix
        without its diagonal. For random blocks that is little more than
        :math:`2 \sum_i \lVert \bar A_i \rVert_F^2`, where one vector shared by all samples gives
        :math:`2\, \lVert \sum_i \bar A_i \rVert_F^2`, up to n times more, at the same cost.

        Parameters
        ----------
        count : int
            Vectors of a block; they count as so many products.
        generator : torch.Generator
            On the CPU; it assigns the samples of each batch to blocks and draws the signs.
        blocks : int
            How many blocks to cut the samples of one batch into, fewer where they are fewer. Each
            further batch starts a new block, so that there can be more.

        Returns
        -------
        Tensor
            Shape (number of blocks, count), float64.

        Raises
        ------
        ValueError
            If the data do not fit or a product is not finite.
        """
        size = max(self._fewest, -(-self.num_samples // blocks))
        at_once = chunk_sizes(count, 4 * self.dimension, self.dtype, self.memory_budget)
        forms = []
        with self._evaluation() as everything:
            for inputs, targets in self.data:
                check_inputs(inputs)
                order = torch.randperm(len(inputs), generator=generator, device="cpu")
                for block in order.to(inputs.device).split(size):
                    x, y = inputs[block], targets[block.to(targets.device)]
                    found = []
                    for k in at_once:
                        vectors = draw_probes(
                            k, self.dimension, generator, dtype=self.dtype, device=self.device
                        )
                        total = self._sum_over_block(everything, x, y, vectors)
                        self._refuse_infinite(total)
                        found.append((vectors * total).sum(dim=1, dtype=torch.float64))
                    forms.append(torch.cat(found))
        self.products += count
        return torch.stack(forms)

    def _sum_over_block(
        self, everything: Parameters, inputs: Inputs, targets: Tensor, probes: Tensor
    ) -> Tensor:
        """Return the products with probes (k, d), summed over some samples."""
        routes = self._routes  # which may measure first what a sample takes
        samples, at_once = self._chunk_sizes(len(inputs), len(probes))
        total: list[Tensor] = []
        for x, y in zip(inputs.split(samples), targets.split(samples), strict=True):
            chunk = self._chunk(everything, x, y)
            for i, part in enumerate(probes.split(at_once)):
                found = self._sum_over_samples(routes, chunk, part)
                if i < len(total):
                    total[i] += found
                else:
                    total.append(found)
        return total[0] if len(total) == 1 else torch.cat(total)

    def _sum(self, probes: Tensor) -> tuple[Tensor, int]:
        """Return the products summed over all samples, (k, d), and the number of samples."""
        total: Tensor | None = None
        count = 0
        with self._evaluation() as everything:
            for inputs, targets in self.data:
                check_inputs(inputs)
                part = self._sum_over_block(everything, inputs, targets, probes)
                total = part if total is None else total.add_(part)
                count += len(inputs)
        assert total is not None  # an empty stream was refused when the data were inspected
        return total, count

    def _inspect(self, everything: Parameters) -> tuple[int, int]:
        """Check the data; return the number of samples and the bytes that one sample saves."""
        count = saved = 0
        outputs = torch.empty(0, device=self.device)
        apart: set[tuple] = set()
        for inputs, targets in self.data:
            check_inputs(inputs)
            if count == 0:
                outputs, saved = self._first_samples(everything, inputs, targets)
                self._sample_bytes = saved
                self._loss_bytes = _LOSS_ENTRIES * 8 * outputs.shape[1]
            self.loss.check(outputs.new_zeros(1, 1).expand(len(inputs), outputs.shape[1]), targets)
            # Chunks of one sample would show nothing.
            for part in inputs.split(max(2, self._chunk_sizes(len(inputs), 1)[0])):
                key = (part.shape, part.dtype)
                if key not in apart and seen_apart(self.model, everything, part):
                    apart.add(key)
            count += len(inputs)
        return count, saved

    def _first_samples(
        self, everything: Parameters, inputs: Inputs, targets: Tensor
    ) -> tuple[Tensor, int]:
        """Return outputs of the first samples, and the bytes that one of them saves."""
        few = smallest_batch(self.model, everything, inputs)
        self._fewest = len(few) if len(few) > 2 else 1
        with torch.no_grad():
            together = self._chunk(everything, few, targets).network({})
        check_outputs(together, len(few))
        saved = SavedStorages([*everything.values(), *self.model.buffers()])

        def run(count: int) -> Tensor:
            # A copy, since a view would count the storage of the whole batch.
            chunk = self._chunk(everything, inputs[:count].clone(), targets[:count])
            with saved.noted():
                return chunk.network(chunk.parameters)

        try:
            alone = run(self._fewest)
        except Exception:
            alone = run(len(few))  # which normalises by batch statistics, perhaps
        alone = alone.detach()
        refuse_changed(self.model, everything, few, alone, together)
        return alone, max(1, saved.bytes() // len(alone))

    def _chunk(self, everything: Parameters, inputs: Inputs, targets: Tensor) -> _Chunk:
        def network(chosen: Parameters) -> Tensor:
            with self._used if self._noted else nullcontext():
                return network_outputs(self.model, chosen, inputs)

        chosen = {name: everything[name] for name in self.parameter_names}
        return _Chunk(network, chosen, targets)

    def _chunk_sizes(self, num_samples: int, num_probes: int) -> tuple[int, int]:
        """Return how many samples and how many probes fit the memory budget together."""
        fixed, each = self._memory
        probes = min(num_probes, _PROBES_AT_ONCE)
        enough = min(num_samples, _SAMPLES_AT_ONCE)
        while True:
            passes = self._sample_bytes * (fixed + each * probes)
            samples = int(self.memory_budget / (passes + self._loss_bytes * probes))
            if samples >= enough or probes == 1:
                # Chunks of equal size: a small last one would leave the processor idle.
                pieces = -(-num_samples // max(self._fewest, samples))
                return -(-num_samples // pieces), probes
            probes //= 2

    def _trusted_routes(self, everything: Parameters) -> list[_Route]:
        """Return the ways to compute that agree with the general one, the fastest first."""
        inputs, targets = next(iter(self.data))
        few = max(2, self._fewest)
        chunk = self._chunk(everything, inputs[:few], targets[:few])
        generator = torch.Generator(device="cpu").manual_seed(0)
        probes = torch.randn(2, self.dimension, generator=generator, device="cpu")
        probes = probes.to(self.device, self.dtype)
        self._used.functions.clear()
        expected = self._by_backward_passes(chunk, probes)
        # Squares of the entries themselves may be too small for the format.
        scale = float(expected.abs().max()) or 1.0
        tolerance = torch.finfo(self.dtype).eps ** 0.5 * float((expected / scale).norm())
        routes: list[_Route] = []
        for route in self._fast_routes():
            if routes and route != self._one_by_one:
                continue  # one way for several vectors is enough
            try:
                difference = float(((route(chunk, probes) - expected) / scale).norm())
            # An operation without a rule, or a model's own code that takes nothing but a tensor.
            except Exception:
                continue
            if difference <= tolerance:
                routes.append(route)
                if route not in self._for_several:
                    break
        self._compared = frozenset(self._used.functions)
        return [*routes, self._by_backward_passes]

    def _fast_routes(self) -> list[_Route]:
        """Return the ways to compute that need a check, the fastest first."""
        return [self._all_at_once, self._one_by_one]

    @property
    def _for_several(self) -> tuple[_Route, ...]:
        """Ways that have nothing over others for a single vector."""
        return (self._all_at_once,)

    def _sum_over_samples(self, routes: Sequence[_Route], chunk: _Chunk, probes: Tensor) -> Tensor:
        """Return the products summed over the samples of a chunk, (k, d)."""
        route = next(r for r in routes if len(probes) > 1 or r not in self._for_several)
        if route != self._by_backward_passes:
            self._used.functions.clear()
            # What the model cannot do at all, it will say again below.
            with suppress(Exception):
                found = route(chunk, probes)
                if self._used.functions <= self._compared:
                    return found
        # The model takes another path for this chunk than for the two samples of the check, which
        # therefore says nothing for the other fast ways either.
        self._noted = False
        try:
            return self._by_backward_passes(chunk, probes)
        finally:
            self._noted = True

    @abstractmethod
    def _all_at_once(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        """Forward mode, all probes in one vectorized pass."""

    @abstractmethod
    def _one_by_one(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        """Forward mode, a pass for each probe."""

    @abstractmethod
    def _by_backward_passes(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        """Reverse mode alone, the general way."""


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
    """

    positive_semidefinite = False
    _memory = (5.0, 3.2)
    # What `cached` keeps: each batch with its gradient, and the weights' versions at that time.
    _graphs: Sequence[tuple[_Chunk, tuple[Tensor, ...]]] = ()
    _versions: Sequence[int] = ()
    _functions_kept: frozenset[Callable] = frozenset()

    def _pulled_back(self, outputs: Tensor, targets: Tensor) -> Tensor:
        change = _random_like(outputs)
        residuals = self._residuals(outputs, targets)
        return torch.stack([residuals, self._output_curvature(outputs, change, targets)])

    def _residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss gradients in the outputs, (m, C)."""
        return self.loss.gradient(outputs, targets)

    def _output_curvature(self, outputs: Tensor, change: Tensor, targets: Tensor) -> Tensor:
        """Return the change of the residuals with the outputs, (…, m, C)."""
        return self.loss.hessian_product(outputs, change, targets)

    def _fast_routes(self) -> list[_Route]:
        # Jets save passes over the samples and cost passes over the weights.
        first = [self._by_jets, self._by_one_backward_pass]
        return [*(first[::-1] if self._work_is_in_weights else first), *super()._fast_routes()]

    @property
    def _for_several(self) -> tuple[_Route, ...]:
        return (self._all_at_once, self._by_one_backward_pass)

    @property
    def _work_is_in_weights(self) -> bool:
        weights = self.dimension * self.dtype.itemsize
        return self._sample_bytes * self.num_samples < _WORK_IN_SAMPLES * weights

    def _refuse_wrong(self) -> None:
        inputs, targets = next(iter(self.data))
        refuse_wrong_second_derivative(self.model, inputs, targets, self.loss, self.parameter_names)
        few = max(2, self._fewest)
        with self._evaluation() as everything:
            # Where a second derivative is missing, this says so.
            chunk = self._chunk(everything, inputs[:few], targets[:few])
            direction = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
            self._along(chunk, self._gradient_graph(chunk), direction)

    def _trusted_routes(self, everything: Parameters) -> list[_Route]:
        routes = super()._trusted_routes(everything)
        if routes[0] == self._by_jets:
            # A single sample may take another path, of which the estimate needs to know nothing.
            with suppress(NoRuleError):
                self._memory = self._jets_memory(everything)
        return routes

    def _jets(self, chunk: _Chunk, probes: Tensor) -> tuple[list[ParameterJet], Jet | Tensor]:
        """Return the chosen parameters' jets and the outputs', a tensor if they are constant."""
        jets = [
            ParameterJet.of(chunk.parameters[name], vectors)
            for name, vectors in self.split(probes).items()
        ]
        return jets, chunk.network(dict(zip(chunk.parameters, jets, strict=True)))

    def _by_jets(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        jets, outputs = self._jets(chunk, probes)
        if not isinstance(outputs, Jet):
            return torch.zeros_like(probes)
        values, changes = outputs.parts.detach().split([1, len(probes)])
        cotangents = torch.cat(
            [
                self._residuals(values[0], chunk.targets).unsqueeze(0),
                self._output_curvature(values[0], changes, chunk.targets),
            ]
        )
        pulled = reverse_pass([outputs.parts], [jet.parts for jet in jets], [cotangents])
        return _rows([part[1:] for part in pulled], len(probes))

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
                _, outputs = self._jets(chunk, vectors)
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

    def _all_at_once(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        def gradient(chosen: Parameters) -> Parameters:
            outputs, pull_back = vjp(chunk.network, chosen)[:2]
            residuals = self._residuals(outputs, chunk.targets)
            # The forward mode around it needs no graph of the gradient, and this one only once.
            return pull_back(residuals, retain_graph=False, create_graph=False)[0]

        point = chunk.detached()
        products = vmap(lambda probe: jvp(gradient, (point,), (probe,))[1])(self.split(probes))
        return _rows([products[name] for name in self.parameter_names], len(probes))

    def _one_by_one(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        products = []
        for probe in probes:
            outputs, change = jvp(chunk.network, (chunk.parameters,), (self.split(probe),))[:2]
            cotangents = (
                self._output_curvature(outputs.detach(), change.detach(), chunk.targets),
                self._residuals(outputs.detach(), chunk.targets),
            )
            products.append(_rows(reverse_pass((outputs, change), chunk.leaves(), cotangents), 1))
        return torch.cat(products)

    def _by_backward_passes(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        gradient = self._gradient_graph(chunk)
        return torch.cat([self._along(chunk, gradient, probe) for probe in probes])

    def _by_one_backward_pass(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        """Reverse over reverse, one vectorized pass through the gradient's graph."""
        return self._along_all(chunk, self._gradient_graph(chunk), probes)

    def _gradient_graph(self, chunk: _Chunk) -> tuple[Tensor, ...]:
        """Return the gradient, summed over samples, with its graph."""
        with differentiated_twice():
            outputs = chunk.network(chunk.parameters)
        residuals = self._residuals(outputs, chunk.targets)
        with missing_refused():
            return reverse_pass([outputs], chunk.leaves(), [residuals], create_graph=True)

    def _along(self, chunk: _Chunk, gradient: Sequence[Tensor], probe: Tensor) -> Tensor:
        """Return the gradient's derivative along one vector, (1, d); the Hessian is symmetric."""
        cotangents = list(self.split(probe.flatten()).values())
        with missing_refused():
            return _rows(reverse_pass(gradient, chunk.leaves(), cotangents, retain_graph=True), 1)

    def _along_all(self, chunk: _Chunk, gradient: Sequence[Tensor], probes: Tensor) -> Tensor:
        """Return the gradient's derivatives along k vectors, (k, d)."""
        cotangents = list(self.split(probes).values())
        pulled = reverse_pass(
            gradient, chunk.leaves(), cotangents, retain_graph=True, is_grads_batched=True
        )
        return _rows(pulled, len(probes))

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
                graphs.append((chunk, self._gradient_graph(chunk)))
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

    def _sum(self, probes: Tensor) -> tuple[Tensor, int]:
        if not self._graphs or not self._graphs_serve(len(probes)):
            return super()._sum(probes)
        if self._weight_versions() != self._versions:
            raise ValueError("the model's weights have changed: leave cached() before they do.")
        along = self._along if len(probes) == 1 else self._along_all
        at_once = self._chunk_sizes(self.num_samples, len(probes))[1]
        total = [
            _sum_in_place(along(chunk, gradient, part) for chunk, gradient in self._graphs)
            for part in probes.split(at_once)
        ]
        return total[0] if len(total) == 1 else torch.cat(total), self.num_samples

    def _graphs_serve(self, count: int) -> bool:
        """Whether products with so many vectors are best taken through the graphs that are kept."""
        if count == 1:
            return True
        if self._by_one_backward_pass not in self._routes:
            return False
        fits = self._chunk_sizes(self.num_samples, count)[0] == self.num_samples
        return fits and self._functions_kept <= self._compared


class ResidualOperator(HessianOperator):
    r"""The Hessian minus its Gauss–Newton part, :math:`\frac1n\sum_{i,c} r_{ic} \nabla^2 f_{ic}`.

    It is the Hessian of the outputs weighted with residuals that are held fixed; a product costs
    as much as one with the Hessian. Its diagonal vanishes under the block proposition, and its
    spectrum is narrower than the Hessian's, which helps an estimator of the trace. For the
    arguments see :class:`CurvatureOperator`.
    """

    def _residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super()._residuals(outputs, targets).detach()

    def _output_curvature(self, outputs: Tensor, change: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros_like(change)


class _OutputWeightedOperator(CurvatureOperator):
    r"""A matrix :math:`\frac1n \sum_i J_i^\top M_i J_i` with a C × C matrix for each sample.

    :math:`M_i` is applied to the change :math:`J_i v` of the outputs and never formed; what it
    returns is pulled back.
    """

    _memory = (1.0, 2.2)

    def _pulled_back(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._weigh(outputs, targets, _random_like(outputs).unsqueeze(0))

    @abstractmethod
    def _weigh(self, outputs: Tensor, targets: Tensor, changes: Tensor) -> Tensor:
        """Apply M_i to the changes (k, m, C) of m samples' outputs."""

    def _all_at_once(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        changes = forward_products(chunk.network, chunk.detached(), self.split(probes))
        outputs = chunk.network(chunk.parameters)
        pulled = reverse_pass(
            [outputs],
            chunk.leaves(),
            [self._weigh(outputs.detach(), chunk.targets, changes)],
            is_grads_batched=True,
        )
        return _rows(pulled, len(probes))

    def _one_by_one(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        point = chunk.detached()
        with torch.no_grad():
            changes = [jvp(chunk.network, (point,), (self.split(v),))[1] for v in probes]
        outputs = chunk.network(chunk.parameters)
        return self._pull_back(chunk, outputs, torch.stack(changes))

    def _by_backward_passes(self, chunk: _Chunk, probes: Tensor) -> Tensor:
        outputs = chunk.network(chunk.parameters)
        changes = reverse_products(outputs, chunk.parameters, self.split(probes))
        return self._pull_back(chunk, outputs, changes)

    def _pull_back(self, chunk: _Chunk, outputs: Tensor, changes: Tensor) -> Tensor:
        weighted = self._weigh(outputs.detach(), chunk.targets, changes)
        pulled = [
            _rows(reverse_pass([outputs], chunk.leaves(), [row], retain_graph=True), 1)
            for row in weighted
        ]
        return torch.cat(pulled)


class GaussNewtonOperator(_OutputWeightedOperator):
    r"""The Gauss–Newton matrix :math:`\frac1n \sum_i J_i^\top \Lambda_i J_i` of the loss.

    It does not depend on the targets. For the arguments see :class:`CurvatureOperator`.
    """

    def _weigh(self, outputs: Tensor, targets: Tensor, changes: Tensor) -> Tensor:
        return self.loss.hessian_product(outputs, changes, targets)


class FisherOperator(_OutputWeightedOperator):
    r"""The Fisher matrix under the model's own labels (information-geometric paper, eq. 2).

    The loss names the likelihood. Cross-entropy: the softmax distribution, and the matrix is the
    Gauss–Newton matrix. Both squared errors: a Gaussian around the outputs with unit variance, and
    the matrix is :math:`\frac1n \sum_i J_i^\top J_i`: the Gauss–Newton matrix of
    ``half_squared_error``, but C/2 times that of ``mse``. For the arguments see
    :class:`CurvatureOperator`.
    """

    def _weigh(self, outputs: Tensor, targets: Tensor, changes: Tensor) -> Tensor:
        return self.loss.likelihood().hessian_product(outputs, changes, targets)


class EmpiricalFisherOperator(_OutputWeightedOperator):
    r"""The uncentred second moment :math:`\frac1n \sum_i g_i g_i^\top` of the samples' gradients.

    :math:`g_i = J_i^\top r_i` at the observed target, so that :math:`M_i = r_i r_i^\top`; it is no
    Fisher matrix of the model (Kunstner et al. 2019). For the arguments see
    :class:`CurvatureOperator`.
    """

    def _weigh(self, outputs: Tensor, targets: Tensor, changes: Tensor) -> Tensor:
        residuals = self.loss.gradient(outputs, targets)
        return residuals * (residuals * changes).sum(dim=-1, keepdim=True)
