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

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property

import torch
from torch import Tensor, nn
from typing_extensions import override

from paperkit import arguments
from paperkit.curvature.dense import select_parameters
from paperkit.curvature.routes import (
    DOUBLE_BACKWARD,
    REVERSE_OVER_FORWARD,
    VECTORIZED_REVERSE_OVER_FORWARD,
    Chunk,
    OutputCurvature,
    Route,
    trusted,
)
from paperkit.linalg.probes import draw_probes
from paperkit.memory import GIBIBYTE, chunk_sizes
from paperkit.network.evaluation import check_inputs, check_outputs, evaluation
from paperkit.network.footprint import SavedStorages
from paperkit.network.interaction import refuse_changed, seen_apart
from paperkit.network.losses import LossLike, get_loss
from paperkit.network.network import Forward, network_outputs, own_parameters
from paperkit.network.problem import refuse_cut, settled, smallest_batch
from paperkit.network.replacements import UsedFunctions
from paperkit.network.samples import Inputs

Parameters = dict[str, Tensor]

# More probes at once hardly amortize the shared pass any further.
_PROBES_AT_ONCE = 16

# Fewer samples at once leave the processor idle between small operations.
_SAMPLES_AT_ONCE = 8

# Float64 numbers for each output of a sample and each vector, as the loss's curvature is applied.
_LOSS_ENTRIES = 5


def _random_like(outputs: Tensor) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    found = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu")
    return found.to(outputs.device)


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
        stay within it, down to one sample and one vector. The need is estimated from what one
        sample's forward pass saves.

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
        Device and floating format of the vectors.
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

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import CurvatureOperator, GaussNewtonOperator
    >>> model = nn.Linear(2, 1)
    >>> G = GaussNewtonOperator(model, (torch.ones(3, 2), torch.zeros(3, 1)), "mse")
    >>> isinstance(G, CurvatureOperator), G.dimension, G.parameter_names, G.positive_semidefinite
    (True, 3, ['weight', 'bias'], True)
    >>> {name: part.shape for name, part in G.split(torch.zeros(3)).items()}
    {'weight': torch.Size([1, 2]), 'bias': torch.Size([1])}
    """

    positive_semidefinite = True
    # Peak bytes of a chunk in units of what its forward pass saves, a fixed part and a part for
    # each vector: the most that was measured on an MLP, a residual network and a transformer.
    _memory: tuple[float, float] = (1.0, 2.2)

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

    @property
    @abstractmethod
    def curvature(self) -> OutputCurvature:
        """The matrix, in terms of the outputs."""

    @cached_property
    def _routes(self) -> list[Route]:
        """The ways to compute that can be trusted; only products outside ``cached`` need them."""
        with self._evaluation() as everything:
            return self._trusted_routes(everything)

    @property
    def routes(self) -> tuple[str, ...]:
        """Names of the ways to compute that agree with backward passes, the fastest first."""
        return tuple(route.name for route in self._routes)

    def _evaluation(self) -> AbstractContextManager[Parameters]:
        """Evaluation mode in which the chosen parameters alone record gradients."""
        return evaluation(self.model, self.parameter_names)

    @property
    def shares_passes(self) -> bool:
        """Whether several vectors share the passes of a product, rather than have them each."""
        return self._routes[0] not in (REVERSE_OVER_FORWARD, DOUBLE_BACKWARD)

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

    def _pulled_back(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what a product pulls back from outputs that change by random numbers."""
        curvature = self.curvature
        weighed = curvature.weigh(outputs, _random_like(outputs).unsqueeze(0), targets)
        if curvature.residual is None:
            return weighed
        return torch.cat([curvature.residual(outputs, targets).unsqueeze(0), weighed])

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

    def _chunk(self, everything: Parameters, inputs: Inputs, targets: Tensor) -> Chunk:
        def network(chosen: Parameters) -> Tensor:
            with self._used if self._noted else nullcontext():
                return network_outputs(self.model, chosen, inputs)

        chosen = {name: everything[name] for name in self.parameter_names}
        return Chunk(network, chosen, targets)

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

    def _trusted_routes(self, everything: Parameters) -> list[Route]:
        """Return the ways to compute that agree with the general one, the fastest first."""
        inputs, targets = next(iter(self.data))
        few = max(2, self._fewest)
        chunk = self._chunk(everything, inputs[:few], targets[:few])
        generator = torch.Generator(device="cpu").manual_seed(0)
        probes = torch.randn(2, self.dimension, generator=generator, device="cpu")
        probes = probes.to(self.device, self.dtype)
        self._used.functions.clear()
        routes = trusted(self.candidate_routes(), chunk, probes, self.curvature)
        self._compared = frozenset(self._used.functions)
        return routes

    def candidate_routes(self) -> list[Route]:
        """Return the ways to compute that need a check, the fastest first."""
        return [VECTORIZED_REVERSE_OVER_FORWARD, REVERSE_OVER_FORWARD]

    def _sum_over_samples(self, routes: Sequence[Route], chunk: Chunk, probes: Tensor) -> Tensor:
        """Return the products summed over the samples of a chunk, (k, d)."""
        route = next(r for r in routes if len(probes) > 1 or not r.for_several)
        if route != DOUBLE_BACKWARD:
            self._used.functions.clear()
            # An error here is the model's own: the general way below meets and raises it again.
            with suppress(Exception):
                products = route.products(chunk, probes, self.curvature)
                if self._used.functions <= self._compared:
                    return products
        # The model takes another path for this chunk than for the two samples of the check, which
        # therefore says nothing for the other fast ways either.
        self._noted = False
        try:
            return DOUBLE_BACKWARD.products(chunk, probes, self.curvature)
        finally:
            self._noted = True


class GaussNewtonOperator(CurvatureOperator):
    r"""The Gauss–Newton matrix :math:`\frac1n \sum_i J_i^\top \Lambda_i J_i` of the loss.

    It does not depend on the targets. For the arguments see :class:`CurvatureOperator`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import GaussNewtonOperator
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = nn.init.ones_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> data = torch.ones(1, 1), torch.zeros(1, 1)
    >>> GaussNewtonOperator(model, data, "half_squared_error")(torch.eye(2))  # JᵀJ with J = (1, 1)
    tensor([[1., 1.],
            [1., 1.]])
    """

    @property
    @override
    def curvature(self) -> OutputCurvature:
        return OutputCurvature(self.loss.hessian_product)


class FisherOperator(CurvatureOperator):
    r"""The Fisher matrix under the model's own labels (information-geometric paper, equation 2).

    The loss names the likelihood. Cross-entropy: the softmax distribution, and the matrix is the
    Gauss–Newton matrix. Both squared errors: a Gaussian around the outputs with unit variance, and
    the matrix is :math:`\frac1n \sum_i J_i^\top J_i`: the Gauss–Newton matrix of
    ``half_squared_error``, but C/2 times that of ``mse``. For the arguments see
    :class:`CurvatureOperator`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import FisherOperator
    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = torch.ones(1, 1), torch.tensor([0])
    >>> FisherOperator(model, data)(torch.eye(2))  # diag(p) − ppᵀ, whatever the label
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """

    @property
    @override
    def curvature(self) -> OutputCurvature:
        return OutputCurvature(self.loss.likelihood().hessian_product)


class EmpiricalFisherOperator(CurvatureOperator):
    r"""The uncentred second moment :math:`\frac1n \sum_i g_i g_i^\top` of the samples' gradients.

    :math:`g_i = J_i^\top r_i` at the observed target, with :math:`r_i r_i^\top` in the place of
    :math:`\Lambda_i`; it is no Fisher matrix of the model (Kunstner et al. 2019). For the arguments
    see :class:`CurvatureOperator`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import EmpiricalFisherOperator
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    >>> EmpiricalFisherOperator(model, data, "half_squared_error")(torch.eye(2))  # 3² x xᵀ
    tensor([[ 9., 18.],
            [18., 36.]])
    """

    @property
    @override
    def curvature(self) -> OutputCurvature:
        def weigh(outputs: Tensor, changes: Tensor, targets: Tensor) -> Tensor:
            residuals = self.loss.gradient(outputs, targets)
            return residuals * (residuals * changes).sum(dim=-1, keepdim=True)

        return OutputCurvature(weigh)
