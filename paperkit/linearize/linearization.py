"""A network linearized on one set of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.memory import GIBIBYTE
from paperkit.network.losses import Loss


@dataclass(frozen=True)
class Linearization:
    """A network linearized on one set of samples.

    Attributes
    ----------
    outputs : Tensor
        f, shape (n, C).
    hessian_factor : Tensor
        R, shape (n, r, C), with R_iᵀ R_i the Hessian of the loss in the outputs of sample i.
    layers : dict of str to LayerLinearization
        By module name, in the order of the forward pass.
    loss : Loss
        The loss whose output Hessian the layers carry.
    input_jacobian : Tensor or None
        ∂f/∂x, the outputs' Jacobian in the network's input, shape (n, C, …), where it was asked for
        and the input is not a tensor of integers.
    parameter_jacobians : dict of str to Tensor or None
        Where all parameters were asked for: by parameter name the Jacobian (n, C, d_p), flattened
        row-major, of every parameter that is not the weight of one of the layers.
    memory_budget : int
        Bytes for the pairs and for temporaries, half of it each.
    exact_parameters : frozenset of str
        Names of the parameters in which the outputs are piecewise linear as far as autograd's
        record shows: their Hessian block is their Gauss–Newton block. The weights of exact layers,
        and biases, scales and shifts like them; the whole model is judged, not ``layers`` alone.
    left_out : mapping of str to str
        The other weights that were asked for, by name, and why each is not among ``layers``.
    computed_in : torch.dtype
        The narrowest floating format in which the network's pass computes, whose round-off the
        pairs carry.
    """

    outputs: Tensor
    hessian_factor: Tensor
    layers: dict[str, LayerLinearization]
    loss: Loss
    input_jacobian: Tensor | None = None
    parameter_jacobians: dict[str, Tensor] | None = None
    memory_budget: int = GIBIBYTE
    exact_parameters: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)
    computed_in: torch.dtype = torch.float64

    @property
    def num_samples(self) -> int:
        """The number n of samples."""
        return self.outputs.shape[0]

    @property
    def num_outputs(self) -> int:
        """The number C of outputs."""
        return self.outputs.shape[1]

    @property
    def num_parameters(self) -> int:
        """The number of parameters that :meth:`jacobian_blocks` covers."""
        rest = self.parameter_jacobians or {}
        return sum(layer.num_parameters for layer in self.layers.values()) + sum(
            jacobian.shape[2] for jacobian in rest.values()
        )

    def jacobian_blocks(self) -> Iterator[tuple[str, Tensor]]:
        """Yield ∂f/∂θ over all parameters: a parameter's name and its (n, C, d_p), row-major.

        Raises
        ------
        ValueError
            If the linearization was made without ``all_parameters=True``.
        """
        if self.parameter_jacobians is None:
            raise ValueError("linearization lacks the other parameters: set all_parameters=True.")
        for layer in self.layers.values():
            yield layer.weight_name, layer.jacobian()
        yield from self.parameter_jacobians.items()

    def residuals(self, targets: Tensor) -> Tensor:
        """Return ∂ℓ_i/∂f_i, the gradient of each sample's own loss in its outputs, (n, C).

        Raises
        ------
        ValueError
            If the targets do not fit the outputs.
        """
        arguments.instance("targets", targets, Tensor)
        self.loss.check(self.outputs, targets)
        return self.loss.gradient(self.outputs, targets)

    def gauss_newton_products(self, probes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multiply each layer's Gauss–Newton block with its probes, ``(k, *weight_shape)`` each.

        Raises
        ------
        KeyError
            If a name is not one of :attr:`layers`.
        """
        return {name: self.layers[name].gauss_newton_product(v) for name, v in probes.items()}


class LinearizationBuffer:
    """Room for the linearizations of consecutive samples, without their input Jacobians.

    It is reserved once and filled piece by piece, so that the pairs are never held twice.

    Parameters
    ----------
    first : Linearization
        The first piece; its layers, uses and options are those of all.
    num_samples : int
        n, of all pieces together.
    """

    def __init__(self, first: Linearization, num_samples: int) -> None:
        def room(piece: Tensor) -> Tensor:
            return piece.new_empty(num_samples, *piece.shape[1:])

        layers = {
            name: replace(
                layer,
                uses=[
                    LayerUse(use.module, room(use.inputs), room(use.output_jacobian))
                    for use in layer.uses
                ],
            )
            for name, layer in first.layers.items()
        }
        rest = first.parameter_jacobians
        if rest is not None:
            rest = {name: room(jacobian) for name, jacobian in rest.items()}
        self._whole = replace(
            first,
            outputs=room(first.outputs),
            hessian_factor=room(first.hessian_factor),
            layers=layers,
            input_jacobian=None,
            parameter_jacobians=rest,
        )
        self._filled = 0

    def add(self, piece: Linearization) -> None:
        """Copy the next samples in."""
        samples = slice(self._filled, self._filled + piece.num_samples)
        whole = self._whole
        whole.outputs[samples] = piece.outputs
        whole.hessian_factor[samples] = piece.hessian_factor
        for name, layer in whole.layers.items():
            layer.obstacle = layer.obstacle or piece.layers[name].obstacle
            for into, use in zip(layer.uses, piece.layers[name].uses, strict=True):
                into.inputs[samples] = use.inputs
                into.output_jacobian[samples] = use.output_jacobian
        for name, jacobian in (whole.parameter_jacobians or {}).items():
            assert piece.parameter_jacobians is not None
            jacobian[samples] = piece.parameter_jacobians[name]
        exact = whole.exact_parameters & piece.exact_parameters
        self._whole = replace(whole, exact_parameters=exact)
        self._filled = samples.stop

    def linearization(self, memory_budget: int) -> Linearization:
        """Return the linearization of all samples, whose methods may use half of the budget."""
        for layer in self._whole.layers.values():
            layer.hessian_factor = self._whole.hessian_factor
            layer.memory_budget = memory_budget // 2
        return replace(self._whole, memory_budget=memory_budget)
