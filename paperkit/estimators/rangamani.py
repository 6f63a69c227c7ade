r"""Scale-invariant flatness of Rangamani et al. (2021).

.. math:: \lambda_{\max}\bigl(D^{1/2} H D^{1/2}\bigr) , \qquad
          D = \operatorname{blockdiag}(\lVert W_l \rVert_F^2\, I)

with H the Hessian of the loss in all weight tensors together, the blocks between layers included.
Where multiplying each :math:`W_l` with :math:`c_l > 0` leaves the network's function as it is,
:math:`D^{1/2}` takes the factors up that H loses, and the value stays. It does change when single
neurons are rescaled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperkit.curvature import HessianOperator
from paperkit.estimators.parameter_norm import weight_names
from paperkit.estimators.perturbed_loss import select_parameters
from paperkit.estimators.result import Measurement
from paperkit.linalg.eigenpairs import top_eigenpairs
from paperkit.linalg.operator import FunctionOperator
from paperkit.memory import GIBIBYTE
from paperkit.network.losses import LossLike
from paperkit.network.problem import measure_of


@measure_of
def rangamani_sharpness(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
    *,
    tolerance: float = 1e-4,
    max_products: int = 1000,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return :math:`\lambda_{\max}(D^{1/2} H D^{1/2})` (Rangamani et al. 2021).

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    parameters : sequence of str, optional
        Names from ``model.named_parameters()``; default the weight tensors
        (:func:`paperkit.estimators.weight_names`). Biases and normalisation have
        no part in it. Each tensor is one block of D.
    tolerance : float
        Tolerance of the eigenvector's residual, relative to the largest magnitude of the spectrum.
        The eigenvalue itself is accurate to about the square of it, divided by the relative gap.
    max_products : int
        Hessian products at most.
    seed : int
        Seed of the starting vector.
    memory_budget : int
        Bytes for temporaries.

    Returns
    -------
    Measurement
        In units of the loss. ``bracket`` is the value ± the residual's norm, in which an
        eigenvalue lies for certain; ``assumptions["products"]`` counts Hessian products.

    Raises
    ------
    ValueError
        If the data do not fit the model, a name is unknown, or an option is out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import rangamani_sharpness
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> data = torch.ones(1, 1), torch.ones(1, 1)
    >>> for scale in (1.0, 4.0):  # the same function, at a minimum
    ...     _ = model[0].weight.data.fill_(scale), model[1].weight.data.fill_(1 / scale)
    ...     print(round(float(rangamani_sharpness(model, data, "half_squared_error")), 4))
    2.0
    2.0
    """
    names = weight_names(model) if parameters is None else parameters
    chosen = select_parameters(model, names)
    hessian = HessianOperator(model, data, loss, list(chosen), memory_budget=memory_budget)
    norms = torch.cat(
        [
            parameter.detach().double().norm().to(hessian.dtype).expand(parameter.numel())
            for parameter in chosen.values()
        ]
    )

    def scaled(vectors: Tensor) -> Tensor:
        return norms * hessian(norms * vectors)

    pairs = top_eigenpairs(
        FunctionOperator.like(hessian, scaled),
        1,
        "algebraic",
        tolerance=tolerance,
        max_products=max_products,
        seed=seed,
    )
    value, residual = float(pairs.eigenvalues[0]), float(pairs.residuals[0])
    return Measurement(
        value=value,
        measure="rangamani_sharpness",
        method="lanczos",
        n=hessian.num_samples,
        loss=loss,
        bracket=(value - residual, value + residual),
        converged=bool(pairs.converged[0]),
        assumptions={"parameters": tuple(chosen), "products": pairs.products},
    )
