r"""Curvature matrices written out in full, by automatic differentiation alone.

These are the slow twins that every fast route is compared with, and the objects of the chapter on
curvature. Their cost grows with the square of the number of parameters: they are for small
networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature.jacobian_products import reverse_pass
from paperkit.curvature.second_derivatives import missing_refused, refuse_wrong_second_derivative
from paperkit.network.evaluation import check_inputs, check_outputs, evaluation
from paperkit.network.losses import Loss, LossLike, get_loss
from paperkit.network.network import Network, network_outputs, own_parameters
from paperkit.network.problem import refuse_cut, settled, unlabelled_loss
from paperkit.network.samples import Inputs, as_inputs

# Number of backward passes that share a sweep through the graph. More of them take more memory and
# save no more time.
_ROWS_AT_ONCE = 64

# Steps of power iteration. They give a norm to a few percent, which is enough for an error bound.
_POWER_STEPS = 20


def select_parameters(
    parameters: Mapping[str, Tensor], names: Sequence[str] | None
) -> tuple[list[str], list[Tensor]]:
    """Return the names and the tensors of the chosen parameters; None chooses all.

    Raises
    ------
    ValueError
        If a name is unknown or none is chosen.
    """
    if not parameters:
        raise ValueError("model has no parameters that can be differentiated.")
    chosen = list(parameters)
    if names is not None:
        chosen = arguments.names("parameters", names, parameters)
    return chosen, [parameters[name] for name in chosen]


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _rows(outputs: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Stack the gradients of all entries of a vector, a batch of them at a time: (entries, d)."""
    seeds = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)
    rows = []
    for batch in seeds.split(_ROWS_AT_ONCE):
        try:
            gradients = reverse_pass(
                [outputs], sources, [batch], retain_graph=True, is_grads_batched=True
            )
            rows.append(torch.cat([part.reshape(len(batch), -1) for part in gradients], dim=1))
        except RuntimeError:  # an operation has no batching rule
            rows += [
                _flatten(reverse_pass([outputs], sources, [seed], retain_graph=True)).unsqueeze(0)
                for seed in batch
            ]
    return torch.cat(rows)


def hessian_product(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    vectors: Tensor,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
) -> Tensor:
    """Multiply the loss Hessian, or a diagonal block of it, with vectors (Pearlmutter 1994).

    Parameters
    ----------
    model : nn.Module
        Network that is called as ``model(inputs)`` and returns (n, C); measured in evaluation mode.
    inputs, targets : Tensor
        Batch of n samples, over which the loss is a mean.
    vectors : Tensor
        Vectors of shape (d,) or (k, d), parameters flattened row-major in the order of
        ``parameters``.
    loss : str, nn.Module or callable
        Loss in a form that :func:`paperkit.network.get_loss` accepts.
    parameters : sequence of str, optional
        Names from ``model.named_parameters()`` that make up the block; default all.

    Returns
    -------
    Tensor
        Same shape as ``vectors``.

    Raises
    ------
    ValueError
        If a name is unknown, the vectors have the wrong length, or the data do not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import hessian_product
    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs, targets = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> v = torch.tensor([1.0, 1.0])
    >>> hessian_product(model, inputs, targets, v, "half_squared_error")  # x (xᵀv)
    tensor([3., 6.])
    """
    network = Network.of(model)
    _, chosen = select_parameters(own_parameters(network), parameters)
    d = sum(parameter.numel() for parameter in chosen)
    single = isinstance(vectors, Tensor) and vectors.ndim == 1
    shape = (d,) if single else ("k", d)
    arguments.tensor("vectors", vectors, shape=shape, floating=True, finite=True)
    probes = vectors.reshape(-1, d).to(chosen[0])
    network, (inputs, targets), bound = _settle_batch(network, inputs, targets, loss, parameters)
    checked = _refuse_missing_derivatives(network, inputs, targets, bound, parameters)
    with checked, evaluation(network) as leaves:
        gradient, sources = _loss_gradient(network, inputs, targets, bound, parameters, leaves)
        products = _rows(probes @ gradient, sources)
    return products.reshape(vectors.shape)


def _settle_batch(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    loss: LossLike,
    parameters: Sequence[str] | None,
) -> tuple[Network, tuple[Inputs, Tensor], Loss]:
    network, batches, bound = settled(model, (inputs, targets), get_loss(loss))
    assert bound is not None
    select_parameters(own_parameters(network), parameters)
    pair = batches.joined()
    refuse_cut(network, pair[0], parameters)
    return network, pair, bound


def _refuse_missing_derivatives(
    network: Network,
    inputs: Inputs,
    targets: Tensor,
    loss: Loss,
    parameters: Sequence[str] | None,
) -> AbstractContextManager[None]:
    """Refuse a model with a wrong second derivative; the context refuses one without any."""
    names, _ = select_parameters(own_parameters(network), parameters)
    refuse_wrong_second_derivative(network, inputs, targets, loss, names)
    return missing_refused()


def _loss_gradient(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    loss: Loss,
    parameters: Sequence[str] | None,
    leaves: dict[str, Tensor],
) -> tuple[Tensor, list[Tensor]]:
    outputs = _outputs(model, inputs, leaves)
    loss.check(outputs, targets)
    _, sources = select_parameters(leaves, parameters)
    gradients = torch.autograd.grad(
        outputs,
        sources,
        # The gradient in the outputs comes from the loss in float64. PyTorch's own backward pass
        # computes p − 1, which has no digits left for a fitted label.
        loss.gradient(outputs, targets) / len(outputs),
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    gradient = _flatten(gradients)
    if gradient.grad_fn is None:  # the loss is affine in these parameters, so its Hessian is zero
        gradient = gradient + 0.0 * _flatten(sources)
    return gradient, sources


def _outputs(model: nn.Module, inputs: Inputs, leaves: dict[str, Tensor]) -> Tensor:
    check_inputs(inputs)
    outputs = network_outputs(model, leaves, inputs)
    check_outputs(outputs, len(inputs))
    return outputs


def dense_hessian(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
) -> Tensor:
    """Write out the loss Hessian, or a diagonal block of it.

    Parameters
    ----------
    model, inputs, targets, loss, parameters
        As in :func:`hessian_product`.

    Returns
    -------
    Tensor
        Shape (d, d), symmetric, in the model's dtype; parameters in the order given, each
        flattened row-major.

    Raises
    ------
    ValueError
        As :func:`hessian_product`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import dense_hessian
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = nn.init.ones_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> hessian = dense_hessian(model, torch.ones(1, 1), torch.zeros(1, 1), "half_squared_error")
    >>> hessian  # of ½ (w₁w₂)² at (1, 1)
    tensor([[1., 2.],
            [2., 1.]])
    >>> torch.linalg.eigvalsh(hessian).round(decimals=4)  # indefinite away from a minimum
    tensor([-1.,  3.])
    """
    return dense_hessian_and_round_off(model, inputs, targets, loss, parameters)[0]


def dense_hessian_and_round_off(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
) -> tuple[Tensor, float]:
    """Return the Hessian, and a bound on the change of its eigenvalues by round-off.

    The triangles above and below the diagonal come from different sums, so their difference is a
    sample of the round-off in both. Its 2-norm bounds the change of the eigenvalues (Weyl).
    """
    network, (inputs, targets), bound = _settle_batch(model, inputs, targets, loss, parameters)
    checked = _refuse_missing_derivatives(network, inputs, targets, bound, parameters)
    with checked, evaluation(network) as leaves:
        gradient, sources = _loss_gradient(network, inputs, targets, bound, parameters, leaves)
        hessian = _rows(gradient, sources)
    symmetric = 0.5 * (hessian + hessian.T)
    smallest_bound = torch.finfo(network.narrowest).eps * _norm(symmetric)
    return symmetric, max(_norm(0.5 * (hessian - hessian.T)), smallest_bound)


def _norm(matrix: Tensor) -> float:
    """Return the 2-norm of a matrix that commutes with its transpose, by power iteration."""
    matrix = matrix.to(torch.float64)
    generator = torch.Generator(device="cpu").manual_seed(0)
    vector = torch.randn(len(matrix), generator=generator, dtype=torch.float64, device="cpu")
    vector, norm = vector.to(matrix.device), 0.0
    for _ in range(_POWER_STEPS):
        image = matrix.T @ (matrix @ (vector / vector.norm()))
        norm = float(image.norm()) ** 0.5
        if not norm:
            break
        vector = image
    return norm


def dense_jacobian(
    model: nn.Module, inputs: Inputs, parameters: Sequence[str] | None = None
) -> Tensor:
    """Write out the Jacobian of all outputs: shape (n, C, d), outputs × parameters.

    Raises
    ------
    ValueError
        If a parameter name is unknown or the inputs do not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import dense_jacobian
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> model[0].weight.data, model[1].weight.data = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    >>> dense_jacobian(model, torch.tensor([[1.0], [10.0]]))  # x (w₂, w₁)
    tensor([[[ 3.,  2.]],
    <BLANKLINE>
            [[30., 20.]]])
    """
    model, inputs = Network.of(model), as_inputs(inputs)
    select_parameters(own_parameters(model), parameters)
    with evaluation(model) as leaves:
        outputs = _outputs(model, inputs, leaves)
        _, sources = select_parameters(leaves, parameters)
        jacobian = _rows(outputs.reshape(-1), sources)
    return jacobian.reshape(*outputs.shape, -1)


def _weighted_gram(
    model: nn.Module,
    inputs: Inputs,
    parameters: Sequence[str] | None,
    factor: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return (1/n) Σ_i (R_i J_i)ᵀ R_i J_i for the row factors R = factor(outputs), (n, r, C)."""
    model, inputs = Network.of(model), as_inputs(inputs)
    select_parameters(own_parameters(model), parameters)
    with evaluation(model) as leaves, torch.no_grad():
        outputs = _outputs(model, inputs, leaves)
    jacobian = dense_jacobian(model, inputs, parameters)
    rows = (factor(outputs) @ jacobian).flatten(0, 1)
    return rows.T @ rows / inputs.shape[0]


def dense_gauss_newton(
    model: nn.Module,
    inputs: Inputs,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    r"""Write out the Gauss–Newton matrix :math:`\frac1n \sum_i J_i^\top \Lambda_i J_i`, (d, d).

    For softmax cross-entropy it is also the Fisher matrix under the model's own labels
    (Martens 2020). Valid also where samples interact, as under batch statistics: J_i is then the
    Jacobian of sample i's outputs within this batch. Some losses need the targets, as one with
    class weights does.

    Raises
    ------
    ValueError
        If the loss or a parameter name is unknown, or the inputs do not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import dense_gauss_newton
    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> dense_gauss_newton(model, inputs, "half_squared_error")  # the mean of x xᵀ
    tensor([[5., 1.],
            [1., 2.]])
    """
    if targets is not None:
        model, (inputs, targets), bound = _settle_batch(model, inputs, targets, loss, parameters)
    else:
        model, inputs = Network.of(model), as_inputs(inputs)
        bound = unlabelled_loss(model, inputs, get_loss(loss))
    return _weighted_gram(
        model, inputs, parameters, lambda outputs: bound.hessian_factor(outputs, targets)
    )


def dense_empirical_fisher(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
) -> Tensor:
    r"""Write out the uncentred second moment :math:`\frac1n \sum_i g_i g_i^\top`, (d, d).

    :math:`g_i` is the gradient of sample i's loss at its observed label.

    Raises
    ------
    ValueError
        As :func:`hessian_product`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.curvature import dense_empirical_fisher
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> inputs, targets = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[2.0], [1.0]])
    >>> dense_empirical_fisher(model, inputs, targets, "half_squared_error")  # of (f − y)² x xᵀ
    tensor([[6.5000, 4.0000],
            [4.0000, 8.0000]])
    """
    network, (inputs, targets), bound = _settle_batch(model, inputs, targets, loss, parameters)

    def residual_rows(outputs: Tensor) -> Tensor:
        bound.check(outputs, targets)
        return bound.gradient(outputs, targets).unsqueeze(1)

    return _weighted_gram(network, inputs, parameters, residual_rows)
