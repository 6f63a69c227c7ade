"""The methods that every loss has, and its demands on the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Targets = Callable[[], Iterable[Tensor]]
"""Starts a pass over the targets of all data."""


class Loss(ABC):
    r"""A loss, mean over samples, that depends on the parameters only through the outputs.

    Outputs are a matrix (n, C), a row a sample: what a model returns for a sample, flattened.
    Every derivative is computed in float64 and handed back in the outputs' dtype.

    Attributes
    ----------
    name : str
        Name of the loss in results and error messages.
    reduction : str
        Average that is taken and its factor, in words.

    Examples
    --------
    >>> import torch
    >>> from paperkit.network import get_loss
    >>> loss = get_loss("cross_entropy")
    >>> outputs, targets = torch.zeros(1, 2), torch.tensor([0])  # p = (½, ½)
    >>> loss.sample_losses(outputs, targets)  # log 2
    tensor([0.6931], dtype=torch.float64)
    >>> loss.gradient(outputs, targets)  # p − e_y
    tensor([[-0.5000,  0.5000]])
    >>> loss.hessian_product(outputs, torch.tensor([[1.0, 0.0]]))  # (diag p − ppᵀ) e₀
    tensor([[ 0.2500, -0.2500]])
    """

    name: str
    reduction: str

    @property
    def curvature_needs_targets(self) -> bool:
        """Whether Λ_i depends on the target."""
        return True

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the n samples, a differentiable scalar, float64."""
        return self.sample_losses(outputs, targets).mean()

    @abstractmethod
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's loss ℓ_i, (n,), float64."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ∂ℓ_i/∂f_i, (n, C), differentiable in the outputs."""

    @abstractmethod
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        """Multiply Λ_i with each sample's change, (…, n, C)."""

    @abstractmethod
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return rows R_i, (n, r, C), with R_iᵀ R_i = Λ_i.

        Raises
        ------
        ValueError
            If some Λ_i has a negative eigenvalue.
        """

    @abstractmethod
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse targets that do not fit outputs of this shape.

        Raises
        ------
        ValueError
            With one sentence that names ``targets`` and what fits.
        """

    def likelihood(self) -> Loss:
        """Return the loss whose output Hessian is the Fisher matrix of the outputs.

        Raises
        ------
        ValueError
            If the loss is no negative log-likelihood that is known here.
        """
        raise ValueError(
            f"loss={self.name} has no known likelihood, which the Fisher matrix under the model's "
            "own labels needs: use cross-entropy without class weights and label smoothing, a "
            "squared error, BCEWithLogitsLoss without weights or PoissonNLLLoss of logarithms."
        )

    def needs_data(self, sample: Tensor, targets: Tensor) -> bool:
        """Whether :meth:`bound` has anything to settle.

        Parameters
        ----------
        sample : Tensor
            Output of the model for some samples, (n, …); only its shape matters.
        targets : Tensor
            Targets of a batch.
        """
        return sample.ndim != 2

    def bound(self, sample: Tensor, targets: Targets) -> Loss:
        """Return the loss on given data: a mean over their samples, outputs flattened.

        Parameters
        ----------
        sample : Tensor
            Output of the model for some samples, (n, …).
        targets : callable
            Function that starts a pass over the targets of all data.

        Raises
        ------
        ValueError
            If outputs and targets do not fit each other, or all weights are zero.
        """
        return self

    def without_targets(self, sample: Tensor) -> Loss:
        """Return the loss where only its output Hessian is asked for, and no targets are given.

        Raises
        ------
        ValueError
            If that cannot be without targets.
        """
        if self.curvature_needs_targets:
            raise ValueError(f"targets=None: the output Hessian of loss={self.name} needs them.")
        return self

    def __str__(self) -> str:
        return self.name


def refuse_negative(eigenvalues: Tensor, name: str) -> None:
    """Raise where Λ_i has eigenvalues that are negative beyond round-off: (n, C)."""
    scale = eigenvalues.abs().amax(dim=-1, keepdim=True)
    negative = eigenvalues < -1e-9 * scale
    if bool(negative.any()):
        sample = int(negative.any(dim=-1).nonzero()[0])
        raise ValueError(
            f"loss={name} is not convex in the outputs (sample {sample}): measures that rest on "
            "the Gauss–Newton matrix need a convex loss; Hessian measures do not."
        )


def refuse_not_finite(targets: Tensor) -> None:
    """Raise where targets have NaN or infinite entries."""
    if targets.is_floating_point() and not bool(torch.isfinite(targets).all()):
        raise ValueError("targets has NaN or infinite entries: clean the data first.")
