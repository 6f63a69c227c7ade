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
        Outputs f, shape (n, C).
    hessian_factor : Tensor
        Factor R, shape (n, r, C), with R_iᵀ R_i the Hessian of the loss in the outputs of sample i.
    layers : dict of str to LayerLinearization
        Layers by module name, in the order of the forward pass.
    loss : Loss
        The loss whose output Hessian the layers carry.
    input_jacobian : Tensor or None
        Jacobian X = ∂f/∂x of the outputs in the network's input, shape (n, C, …), where it was
        asked for and the input is not a tensor of integers.
    parameter_jacobians : dict of str to Tensor or None
        Jacobians (n, C, entries), flattened row-major, of every parameter that is not the weight of
        one of the layers, by parameter name; None unless all parameters were asked for.
    memory_budget : int
        Bytes for the pairs and for temporaries, half of it each.
    exact_parameters : frozenset of str
        Names of the parameters in which the outputs are piecewise linear as far as autograd's
        record shows, so that their Hessian block is their Gauss–Newton block. These are the weights
        of exact layers, and biases, scales and shifts like them. The whole model is judged, not
        ``layers`` alone.
    left_out : mapping of str to str
        Reasons why other weights that were asked for are not among ``layers``, by name.
    computed_in : torch.dtype
        Narrowest floating format in which the network's pass computes, whose round-off the pairs
        carry.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.linearize import linearize
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = linearize(model, torch.eye(3))
    >>> found.num_samples, found.num_outputs, list(found.layers)
    (3, 2, ['0', '2'])
    >>> products = found.gauss_newton_products({"0": torch.ones(5, 4, 3), "2": torch.ones(5, 2, 4)})
    >>> products["0"].shape  # five probes of every layer, without a pass through the network
    torch.Size([5, 4, 3])
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
        jacobians = self.parameter_jacobians or {}
        return sum(layer.num_parameters for layer in self.layers.values()) + sum(
            jacobian.shape[2] for jacobian in jacobians.values()
        )

    def jacobian_blocks(self) -> Iterator[tuple[str, Tensor]]:
        """Yield ∂f/∂θ over all parameters: a name and its Jacobian (n, C, entries), row-major.

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
    """Memory for the linearizations of consecutive samples, without their input Jacobians.

    The memory is reserved once and filled piece by piece, so that the pairs are never held twice.

    Parameters
    ----------
    first : Linearization
        First piece, whose layers, uses and options are those of all pieces.
    num_samples : int
        Number n of samples of all pieces together.
    """

    def __init__(self, first: Linearization, num_samples: int) -> None:
        def reserve(piece: Tensor) -> Tensor:
            return piece.new_empty(num_samples, *piece.shape[1:])

        layers = {
            name: replace(
                layer,
                uses=[
                    LayerUse(use.module, reserve(use.inputs), reserve(use.output_jacobian))
                    for use in layer.uses
                ],
            )
            for name, layer in first.layers.items()
        }
        jacobians = first.parameter_jacobians
        if jacobians is not None:
            jacobians = {name: reserve(jacobian) for name, jacobian in jacobians.items()}
        self._buffers = replace(
            first,
            outputs=reserve(first.outputs),
            hessian_factor=reserve(first.hessian_factor),
            layers=layers,
            input_jacobian=None,
            parameter_jacobians=jacobians,
        )
        self._filled = 0

    def add(self, piece: Linearization) -> None:
        """Copy the linearization of the next samples into the memory."""
        samples = slice(self._filled, self._filled + piece.num_samples)
        buffers = self._buffers
        buffers.outputs[samples] = piece.outputs
        buffers.hessian_factor[samples] = piece.hessian_factor
        for name, layer in buffers.layers.items():
            layer.obstacle = layer.obstacle or piece.layers[name].obstacle
            for into, use in zip(layer.uses, piece.layers[name].uses, strict=True):
                into.inputs[samples] = use.inputs
                into.output_jacobian[samples] = use.output_jacobian
        for name, jacobian in (buffers.parameter_jacobians or {}).items():
            assert piece.parameter_jacobians is not None
            jacobian[samples] = piece.parameter_jacobians[name]
        exact = buffers.exact_parameters & piece.exact_parameters
        self._buffers = replace(buffers, exact_parameters=exact)
        self._filled = samples.stop

    def linearization(self, memory_budget: int) -> Linearization:
        """Return the linearization of all samples, whose methods may use half of the budget."""
        for layer in self._buffers.layers.values():
            layer.hessian_factor = self._buffers.hessian_factor
            layer.memory_budget = memory_budget // 2
        return replace(self._buffers, memory_budget=memory_budget)
