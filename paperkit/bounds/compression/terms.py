"""The terms that both sides of the statements are made of, from a single linearization."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators.gradient_squares import (
    parameter_gradient_squares,
    weight_gradient_squares,
)
from paperkit.estimators.sensitivity import input_invariant_sensitivities
from paperkit.estimators.singular_values import frobenius_norms, largest_singular_values
from paperkit.estimators.volume import log_volumes
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.layer_operator import (
    OperatorNorm,
    apply_adjoint,
    operator_norm,
    weight_matrices,
    weight_matrix_norm,
)
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.linearize import linearize
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import as_batch

SHARING = ("tied", "operator")

NORMS = ("operator", "matrix", "frobenius")

# Relative round-off that a float64 bound may lose. A less precise model is allowed 100 units of its
# own round-off.
ROUND_OFF = 1e-9

PAPER = "compression paper"

JACOBIAN_SHAPE = ("n", "C", "d", "…")


@dataclass(frozen=True)
class CallTerms:
    r"""Terms of a call of a layer with input x, pre-activation z = A x, :math:`X` and :math:`B`.

    Attributes
    ----------
    name : str
        Name of the layer; or ``"input"`` for X in the network's input.
    sensitivity, frobenius, log_volume : Tensor
        Norms :math:`\|X\|_2` and :math:`\|X\|_F`, and the logarithm of the volume, shape (n,),
        float64.
    input_norm, cotangent_norm : Tensor
        Norms :math:`\|x\|` and :math:`\|B\|_F`, shape (n,).
    weight_gradient, bias_gradient : Tensor
        Norms :math:`\|\partial f/\partial W\|_F` and :math:`\|\partial f/\partial b\|_F` of the
        gradients in the layer's parameters with all their uses, shape (n,); the second is zero
        without a bias.
    operator : OperatorNorm
        Norm :math:`\|A\|_2`.
    matrix_norm, frobenius_norm : float
        Norm :math:`\|W\|_2` of the reshaped weight, and :math:`\sqrt P\,\|W\|_F \ge \|A\|_F`.
    num_cotangents : int
        Number h of entries of z.
    has_bias : bool
        Whether the layer adds a bias.
    unshared : bool
        Whether W acts once: in a single call, at a single position that sees the whole input, in a
        single group.
    single_reader : bool
        Whether :math:`X = B A`, because nothing else reads x.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.eye_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> terms = compression_terms(model, (torch.tensor([[3.0, 4.0]]), torch.zeros(1, 1)))
    >>> first = terms.calls[0]
    >>> first.input_norm, first.cotangent_norm  # ‖x‖ and ‖B‖_F
    (tensor([5.], dtype=torch.float64), tensor([1.4142], dtype=torch.float64))
    >>> first.weight_gradient  # ‖B‖_F ‖x‖, because the weight acts once
    tensor([7.0711], dtype=torch.float64)
    """

    name: str
    sensitivity: Tensor
    frobenius: Tensor
    log_volume: Tensor
    input_norm: Tensor
    cotangent_norm: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor
    operator: OperatorNorm
    matrix_norm: float
    frobenius_norm: float
    num_cotangents: int
    has_bias: bool
    unshared: bool
    single_reader: bool


@dataclass(frozen=True)
class CompressionTerms:
    r"""The terms of the paper's inequalities, of a network on n samples.

    Attributes
    ----------
    network : CallTerms
        Terms at the network's input. Their layer is the first one called, and ``single_reader``
        says whether that layer alone reads the input, unchanged.
    calls : tuple of CallTerms
        Terms of every call of every layer.
    gradient : Tensor
        Norm :math:`\|\partial f/\partial\theta\|_F` over all parameters, shape (n,), float64.
    scaled_gradient, scaled_first_gradient : Tensor
        Sum :math:`\sum_j \theta_j^2 \|\partial f/\partial\theta_j\|^2` over all parameters, and
        over the first layer's weight, shape (n,).
    input_invariant : Tensor
        Squared norm :math:`\|X \operatorname{diag}(x)\|_F^2` at the network's input, shape (n,).
    linearization : Linearization
        Linearization that the terms come from.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms
    >>> model = nn.Linear(2, 1, bias=False)  # f = wᵀx
    >>> terms = compression_terms(model, (torch.tensor([[3.0, 4.0]]), torch.zeros(1, 1)))
    >>> terms.gradient, terms.sharpness  # ‖x‖ and ‖x‖²
    (tensor([5.], dtype=torch.float64), 25.0)
    """

    network: CallTerms
    calls: tuple[CallTerms, ...]
    gradient: Tensor
    scaled_gradient: Tensor
    scaled_first_gradient: Tensor
    input_invariant: Tensor
    linearization: Linearization

    @property
    def num_outputs(self) -> int:
        """The number C of outputs, which is the exponent of the volume bounds."""
        return self.linearization.outputs.shape[1]

    @property
    def sharpness(self) -> float:
        """The sharpness S, which is the Gauss–Newton trace over all parameters."""
        return float(self.gradient.square().mean())

    @property
    def tolerance(self) -> float:
        """The relative round-off that the model's dtype explains."""
        return max(ROUND_OFF, 100.0 * torch.finfo(self.linearization.outputs.dtype).eps)


def compression_terms(
    model: nn.Module, data: object, *, memory_budget: int = GIBIBYTE
) -> CompressionTerms:
    """Linearize a network once and collect what all bounds of this module need.

    Parameters
    ----------
    model : nn.Module
        Network that is called as ``model(inputs)`` and returns (n, C); measured in evaluation mode
        and left as it was.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; the targets are not used.
    memory_budget : int
        Bytes for the pairs and temporaries.

    Returns
    -------
    CompressionTerms
        Terms of all layers and all samples.

    Raises
    ------
    ValueError
        If the data do not fit the model or the budget, or no gradient reaches a layer's input.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> terms = compression_terms(model, (torch.eye(2), torch.zeros(2, 1)))
    >>> [call.name for call in terms.calls]
    ['0', '2']
    >>> all(call.unshared and call.single_reader for call in terms.calls)
    True
    """
    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    inputs, _ = as_batch(data)
    linearization = linearize(
        model,
        inputs,
        "half_squared_error",
        input_jacobians=True,
        all_parameters=True,
        memory_budget=memory_budget,
    )
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    return compression_terms_from(linearization, inputs, parameters)


def compression_terms_from(
    linearization: Linearization, inputs: Tensor, parameters: dict[str, Tensor]
) -> CompressionTerms:
    """Return :func:`compression_terms` of a linearization.

    Parameters
    ----------
    linearization : Linearization
        Linearization with input Jacobians and all parameters.
    inputs : Tensor
        Inputs of the network, shape (n, …).
    parameters : dict of str to Tensor
        Parameters of the network by name.

    Raises
    ------
    ValueError
        If the linearization lacks a Jacobian.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms_from
    >>> from paperkit.linearize import linearize
    >>> model, x = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 4.0]])
    >>> pairs = linearize(model, x, "half_squared_error", input_jacobians=True, all_parameters=True)
    >>> terms = compression_terms_from(pairs, x, dict(model.named_parameters()))
    >>> terms.network.input_norm
    tensor([5.], dtype=torch.float64)
    """
    arguments.instance("linearization", linearization, Linearization, "linearize returns one")
    arguments.tensor(
        "inputs", inputs, shape=(linearization.num_samples, "…"), floating=True, finite=True
    )
    parameters = arguments.mapping("parameters", parameters, "a mapping from names to Tensors")
    if linearization.input_jacobian is None:
        raise ValueError("linearization has no input Jacobian: set input_jacobians=True.")
    if not linearization.layers:
        raise ValueError(
            "model: none of its linear or convolution layers could be linearized, and the bounds "
            "are about their weights: pass a network with one."
        )
    calls = [
        _call_terms(linearization, name, layer, use)
        for name, layer in linearization.layers.items()
        for use in layer.uses
    ]
    if not calls:
        raise ValueError("model has no linear or convolution layer, which the bounds are about.")
    first = next(iter(linearization.layers.values()))
    jacobian = linearization.input_jacobian.flatten(2)
    network = replace(
        calls[0],
        name="input",
        sensitivity=largest_singular_values(jacobian),
        frobenius=frobenius_norms(jacobian),
        log_volume=log_volumes(jacobian),
        single_reader=same_tensor(jacobian, through_layer(first.uses[0]))
        and same_tensor(inputs.flatten(1), first.uses[0].inputs.flatten(1)),
    )
    missing = [name for name, _ in linearization.jacobian_blocks() if name not in parameters]
    if missing:
        raise ValueError(f"parameters lacks {', '.join(missing)}: pass all of the network's.")
    scaled = {
        name: (block.double() * parameters[name].flatten().double()).square().sum(dim=(1, 2))
        for name, block in linearization.jacobian_blocks()
    }
    return CompressionTerms(
        network=network,
        calls=tuple(calls),
        gradient=parameter_gradient_squares(linearization).sqrt(),
        scaled_gradient=torch.stack(list(scaled.values())).sum(dim=0),
        scaled_first_gradient=scaled[first.weight_name],
        input_invariant=input_invariant_sensitivities(jacobian, inputs),
        linearization=linearization,
    )


def _call_terms(
    linearization: Linearization, name: str, layer: LayerLinearization, use: LayerUse
) -> CallTerms:
    if use.input_jacobian is None:
        raise ValueError(f"linearization has no Jacobian in the input of layer {name}.")
    jacobian = use.input_jacobian.flatten(2)
    weights = weight_matrices(use.module)
    bias = _bias_jacobian(linearization, use.module)
    return CallTerms(
        name=name,
        sensitivity=largest_singular_values(jacobian),
        frobenius=frobenius_norms(jacobian),
        log_volume=log_volumes(jacobian),
        input_norm=_norms(use.inputs),
        cotangent_norm=_norms(use.output_jacobian),
        weight_gradient=weight_gradient_squares(layer).sqrt(),
        bias_gradient=torch.zeros_like(_norms(use.inputs)) if bias is None else _norms(bias),
        operator=operator_norm(use.module, use.inputs.shape[1:]),
        matrix_norm=weight_matrix_norm(use.module),
        frobenius_norm=math.sqrt(use.positions()) * float(weights.norm()),
        num_cotangents=use.output_jacobian[0, 0].numel(),
        has_bias=bias is not None,
        unshared=len(layer.uses) == 1 and _acts_once(use),
        single_reader=same_tensor(jacobian, through_layer(use)),
    )


def _bias_jacobian(linearization: Linearization, module: nn.Module) -> Tensor | None:
    """Return ∂f/∂b; None where the layer has no bias of its own."""
    if module.bias is None:
        return None
    owners = [
        layer
        for layer in linearization.layers.values()
        if any(use.module.bias is module.bias for use in layer.uses)
    ]
    if len(owners) > 1:
        return None
    name = owners[0].weight_name.removesuffix("weight") + "bias"
    return (linearization.parameter_jacobians or {}).get(name)


def _acts_once(use: LayerUse) -> bool:
    """Whether a single patch holds every input entry once, so that ∂f/∂W = B xᵀ."""
    if use.positions() > 1 or use.groups > 1:
        return False
    columns = use.columns(slice(None)).flatten(1)
    return same_tensor(_norms(columns), _norms(use.inputs))


def through_layer(use: LayerUse) -> Tensor:
    """Return B A, shape (n, C, entries of the input)."""
    shape = use.inputs.shape[1:]
    rows = apply_adjoint(use.module, use.output_jacobian.flatten(0, 1), shape)
    return rows.reshape(*use.output_jacobian.shape[:2], -1)


def same_tensor(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree up to round-off of their largest entry."""
    if tensor.shape != other.shape:
        return False
    scale = float(torch.maximum(tensor.abs().max(), other.abs().max()))
    eps = torch.finfo(torch.promote_types(tensor.dtype, other.dtype)).eps
    return float((tensor - other).abs().max()) <= eps**0.5 * scale


def _norms(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).norm(dim=1, dtype=torch.float64)
