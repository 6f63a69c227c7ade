"""The Fisher matrix and all gradients at a point, written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature.dense import select_parameters
from paperkit.estimators.dual_gradients import DualGradients, dual_gradients
from paperkit.linalg.probes import generator_of
from paperkit.linalg.row_space import default_tolerance, row_factors
from paperkit.network import get_loss
from paperkit.network.batches import as_batch
from paperkit.network.evaluation import check_inputs, check_outputs, evaluation
from paperkit.network.network import Network, network_outputs, own_parameters

PAPER = "information-geometric paper"

VERSIONS = ("printed", "exact")

# Relative difference that round-off explains between two float64 computations of the same matrix.
ROUND_OFF = 1e-8

# A point counts as stationary if its gradient is smaller than this part of a sample's mean
# gradient.
STATIONARY = 1e-4


@dataclass(frozen=True)
class FisherGeometry:
    """The Fisher matrix and all samples' gradients at a point, written out.

    Attributes
    ----------
    outputs : Tensor
        Outputs f, (n, C), float64.
    targets : Tensor
        Labels (n,), or (n, C) for the squared errors.
    jacobian : Tensor
        Jacobian J, (n, C, d), float64.
    loss : str
        Name of the loss.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.information_geometry import FisherGeometry
    >>> outputs, jacobian = torch.zeros(1, 2).double(), torch.eye(2).double().unsqueeze(0)
    >>> geometry = FisherGeometry(outputs, torch.tensor([0]), jacobian, "cross_entropy")
    >>> geometry.gradients  # p − e_y
    tensor([[-0.5000,  0.5000]], dtype=torch.float64)
    >>> geometry.eigenpairs()[0]  # one of two: a softmax does not see a common shift
    tensor([0.5000], dtype=torch.float64)
    """

    outputs: Tensor
    targets: Tensor
    jacobian: Tensor
    loss: str

    @property
    def num_samples(self) -> int:
        """The number n of samples."""
        return len(self.outputs)

    @property
    def dual(self) -> DualGradients:
        """The gradients in the rows of the Fisher factor."""
        return dual_gradients(self.outputs, self.targets, self.loss)

    @property
    def rows(self) -> Tensor:
        """The rows R J of all samples, (n r, d); F is their Gram matrix (R J)ᵀ R J / n."""
        return (self.dual.factor @ self.jacobian).flatten(0, 1)

    @property
    def gradients(self) -> Tensor:
        """Each sample's loss gradient, (n, d)."""
        residual = get_loss(self.loss).gradient(self.outputs, self.targets)
        return torch.einsum("nc,ncd->nd", residual, self.jacobian)

    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """Return the nonzero eigenvalues of F, descending, and eigenvectors (d, k)."""
        rows = self.rows
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        nonzero = values > rank_tolerance(rows) * values.max()
        return values[nonzero].square() / self.num_samples, right[nonzero].T

    def inverse_norms(self, vectors: Tensor) -> Tensor:
        """Return vᵀ F⁺ v for each of k vectors v, (k, d), in the range of F."""
        eigenvalues, directions = self.eigenpairs()
        return ((vectors @ directions).square() / eigenvalues).sum(dim=1)

    def gradient_gram(self) -> Tensor:
        """Return g_iᵀ F⁺ g_j for all pairs of samples, (n, n), through the dual."""
        dual = self.dual
        rows, scales = self.rows, self.rows.norm(dim=1)
        space = row_factors(lambda: [(rows, scales)]).space(rank_tolerance(rows))
        basis = space.basis(rows, scales)
        r = dual.directions.shape[1]
        coordinates = torch.einsum("nrk,nr->nk", basis.unflatten(0, (-1, r)), dual.dual_vectors)
        return self.num_samples * coordinates @ coordinates.T


def fisher_geometry(
    model: nn.Module, data: object, loss: str = "cross_entropy", theta: Tensor | None = None
) -> FisherGeometry:
    """Write out Jacobian and outputs of a small model, at its own or other parameters.

    Parameters
    ----------
    model : nn.Module
        Network that is called as ``model(inputs)`` and returns (n, C); measured in evaluation mode
        and left as it was.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    loss : str
        Name from :data:`paperkit.network.LOSSES`.
    theta : Tensor, optional
        Vector of all parameters θ, in the order of ``named_parameters``; default the model's own.

    Raises
    ------
    ValueError
        If the data do not fit the model.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import fisher_geometry
    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> geometry = fisher_geometry(model, (torch.tensor([[2.0]]), torch.tensor([0])))
    >>> geometry.jacobian  # the logits are 2 w₀ and 2 w₁
    tensor([[[2., 0.],
             [0., 2.]]], dtype=torch.float64)
    >>> geometry.rows.T @ geometry.rows  # F = x² (diag(p) − ppᵀ)
    tensor([[ 1., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    loss = get_loss(loss).name
    model = Network.of(model)
    select_parameters(own_parameters(model), None)
    inputs, targets = as_batch(data)
    check_inputs(inputs)
    with evaluation(model) as parameters:
        point = flattened(parameters) if theta is None else _point(parameters, theta)
        with torch.no_grad():
            outputs = network_outputs(model, parameters, inputs)
        check_outputs(outputs, len(inputs))
        get_loss(loss).check(outputs, targets)
        function = outputs_of_vector(model, parameters, inputs)
        if theta is not None:
            outputs = function(point)
            check_outputs(outputs, len(inputs))
        jacobian = torch.func.jacrev(function)(point)
    return FisherGeometry(outputs.detach().double(), targets, jacobian.detach().double(), loss)


def _point(parameters: dict[str, Tensor], theta: Tensor) -> Tensor:
    size = sum(parameter.numel() for parameter in parameters.values())
    return arguments.tensor("theta", theta, shape=(size,), floating=True, finite=True).detach()


def check_sample(data: object, sample: int) -> int:
    """Return the index of a sample, checked before anything is computed."""
    n = len(as_batch(data)[1])
    return arguments.integer("sample", sample, at_least=0, at_most=n - 1)


def check_output(name: str, index: int, geometry: FisherGeometry) -> int:
    """Return the number of an output that exists."""
    last = geometry.outputs.shape[1] - 1
    return arguments.integer(name, index, at_least=0, at_most=last)


def flat_parameters(model: nn.Module) -> Tensor:
    """Return all parameters as one detached vector, in the order of ``named_parameters``.

    Examples
    --------
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import flat_parameters
    >>> model = nn.Linear(2, 1)
    >>> _ = nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
    >>> flat_parameters(model)
    tensor([1., 1., 0.])
    """
    network = Network.of(model)
    select_parameters(own_parameters(network), None)
    return flattened(dict(network.named_parameters()))


def flattened(parameters: dict[str, Tensor]) -> Tensor:
    """Return all parameters as one vector."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters.values()])


def outputs_of_vector(
    model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return the outputs as a function of one parameter vector."""
    shapes = [parameter.shape for parameter in parameters.values()]

    def function(vector: Tensor) -> Tensor:
        pieces = vector.split([shape.numel() for shape in shapes])
        values = {
            name: piece.view(shape)
            for name, piece, shape in zip(parameters, pieces, shapes, strict=True)
        }
        return network_outputs(model, values, inputs)

    return function


def rank_tolerance(matrix: Tensor) -> float:
    """Return the part of a matrix's largest singular value below which others count as zero."""
    return default_tolerance(matrix.shape[0], matrix.shape[1], matrix.dtype)


def random_direction(like: Tensor, size: int, seed: int) -> Tensor:
    """Return a random unit vector."""
    vector = torch.randn(size, generator=generator_of(seed), dtype=torch.float64, device="cpu")
    return (vector / vector.norm()).to(like)


def agree(left: Tensor, right: Tensor) -> bool:
    """Whether two matrices are equal up to round-off."""
    return float((left - right).norm()) <= ROUND_OFF * float(right.norm())
