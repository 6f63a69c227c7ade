"""Each sample's loss gradient, written in the rows of a factor of the Fisher matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paperkit.estimators.baselines import exponential_losses, sample_losses
from paperkit.network.losses import CrossEntropy, LossLike, fitted


@dataclass(frozen=True)
class DualGradients:
    r"""Each sample's loss gradient in the rows of :math:`G_i = R_i J_i`.

    Attributes
    ----------
    factor : Tensor
        R, (n, r, C), float64.
    directions : Tensor
        b, (n, r), float64, with :math:`g_i = e^{s_i/2}\, G_i^\top b_i`.
    log_scales : Tensor
        s, (n,): the loss for cross-entropy, whose gradients would overflow without it; else zero.
    squared_norms : Tensor
        :math:`e^{s_i} \|b_i\|^2`, (n,): :math:`e^{\ell_i} - 1` for cross-entropy, 2ℓ for a squared
        error.
    """

    factor: Tensor
    directions: Tensor
    log_scales: Tensor
    squared_norms: Tensor

    @property
    def dual_vectors(self) -> Tensor:
        """a, (n, r), with g_i = G_iᵀ a_i."""
        return torch.exp(0.5 * self.log_scales).unsqueeze(1) * self.directions

    @property
    def num_rows(self) -> int:
        """The number of rows of G, n times r."""
        return self.directions.numel()


def dual_gradients(
    outputs: Tensor, targets: Tensor, loss: LossLike = "cross_entropy"
) -> DualGradients:
    """Write every sample's loss gradient in the rows of the Fisher factor.

    Parameters
    ----------
    outputs : Tensor
        (n, C); taken to float64 first.
    targets : Tensor
        Labels (n,), or (n, C) for the squared errors.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`. The squared errors count as Gaussian
        likelihoods: of unit variance for ``"half_squared_error"`` (derived here; the
        information-geometric paper's Appendix F was not at hand), of variance C/2 for ``"mse"``.

    Raises
    ------
    ValueError
        If the targets do not fit.
    """
    loss = fitted(loss, outputs, targets)
    logits = outputs.detach().to(torch.float64)
    if isinstance(loss, CrossEntropy) and loss.is_plain:
        targets = targets.long()
        factor = loss.hessian_factor(logits)
        losses = sample_losses(logits, targets)
        index = targets.view(-1, 1, 1).expand(-1, factor.shape[1], 1)
        column = factor.gather(2, index).squeeze(2)
        directions = -torch.exp(0.5 * losses).unsqueeze(1) * column
        return DualGradients(factor, directions, losses, exponential_losses(logits, targets))
    loss.likelihood()  # refuses a loss without one
    factor = loss.hessian_factor(logits, targets)
    right = loss.gradient(logits, targets).unsqueeze(2)
    directions = _solved(factor.transpose(1, 2), right).squeeze(2)
    return DualGradients(
        factor, directions, torch.zeros_like(directions[:, 0]), directions.square().sum(dim=1)
    )


def _solved(matrices: Tensor, right: Tensor) -> Tensor:
    """Solve for what lies in the range of each matrix.

    Raises
    ------
    ValueError
        If it does not, as far as round-off tells.
    """
    if matrices.shape[1] == matrices.shape[2]:
        return torch.linalg.solve(matrices, right)
    solution = torch.linalg.pinv(matrices) @ right
    missing = (matrices @ solution - right).flatten(1).norm(dim=1)
    if bool((missing > 1e-8 * right.flatten(1).norm(dim=1)).any()):
        raise ValueError(
            "outputs are so saturated that a loss gradient is not in the range of the Fisher "
            "matrix in double precision: use hard labels, one for each sample."
        )
    return solution
