"""The Fisher–Rao norm of a network's parameters."""

from __future__ import annotations

import torch
from torch import nn

from paperkit import arguments
from paperkit.curvature.dense import select_parameters
from paperkit.curvature.jacobian_products import JacobianProduct
from paperkit.estimators.result import Measurement
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import batches
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import GRADIENT_GRAPH, TANGENT, Chunks, Footprint
from paperkit.network.losses import LossLike
from paperkit.network.network import network_outputs, own_parameters
from paperkit.network.problem import measure_of, refuse_cut

LABELS = ("model", "observed")


@measure_of
def fisher_rao_norm(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    *,
    labels: str = "model",
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return the Fisher–Rao norm of the parameters, without a root.

    Under the model's own labels it is :math:`\theta^\top F \theta` (information-geometric paper,
    Section 3.2), under the observed ones the mean of :math:`\langle\theta, g_i\rangle^2` (Liang et
    al. 2019). Both need one product :math:`J_i\theta` a sample. For a bias-free network of L
    weight layers that is positively homogeneous in each, :math:`J_i\theta = L f_i`.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them, of any sizes; all samples count equally.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    labels : str
        ``"model"`` or ``"observed"``.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        In the units of the loss squared for observed labels; every parameter counts, biases and
        normalisation included.

    Raises
    ------
    ValueError
        If ``labels`` is unknown or the data do not fit the model.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import fisher_rao_norm
    >>> model = nn.Linear(1, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0], [-1.0]])
    >>> norm = fisher_rao_norm(model, (torch.ones(1, 1), torch.tensor([0])))
    >>> round(float(norm), 4)  # linear in θ: the variance of the logits, 4 p (1 − p)
    0.42
    """
    labels = arguments.choice("labels", labels, LABELS)
    if labels == "model":
        loss.likelihood()  # refuses a loss without one

    select_parameters(own_parameters(model), None)
    first, _ = next(iter(batches(data)))
    refuse_cut(model, first)
    terms = []
    with evaluation(model) as parameters, torch.no_grad():
        product = JacobianProduct(
            lambda values, inputs: network_outputs(model, values, inputs), parameters, parameters
        )

        def cost(sample: Footprint) -> float:
            fast = product.compare(first[: sample.fewest])
            return sample.bytes_of(TANGENT if fast else GRADIENT_GRAPH)

        for inputs, targets in Chunks(model, parameters, cost, memory_budget)(data):
            outputs, change = product(inputs)
            response = change.to(torch.float64)
            check_outputs(outputs, len(inputs))
            loss.check(outputs, targets)
            if labels == "model":
                curved = loss.hessian_product(outputs.to(torch.float64), response, targets)
                terms.append((response * curved).sum(dim=1))
            else:
                residuals = loss.gradient(outputs.to(torch.float64), targets)
                terms.append((residuals * response).sum(dim=1).square())
    values = torch.cat(terms)
    return Measurement(
        value=float(values.mean()),
        measure="fisher_rao_norm",
        method="exact",
        n=len(values),
        loss=loss,
        assumptions={"labels": labels},
    )
