"""The networks that everything is measured on, and the parts that all tools share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit.data import load
from paperkit.estimators.entropy import renyi_entropy
from paperkit.linearize import layers_of
from paperkit.models import build
from paperkit.training import train

ORDERS = (0.5, 1.5)
"""Orders of the Rényi entropies; the same spectra serve both."""

PROBES = 16
"""Number of vectors multiplied at a time."""

LANCZOS_PROBES, LANCZOS_STEPS = 100, 15
"""Numbers k of probes and m of Lanczos steps, as in the Rényi paper (its l and m)."""


@dataclass(frozen=True)
class Problem:
    """A network in evaluation mode and one batch; the loss is the mean cross-entropy.

    Attributes
    ----------
    model : nn.Module
        Network that returns (n, C).
    inputs, targets : Tensor
        Inputs of n samples, and their labels.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def data(self) -> list[tuple[Tensor, Tensor]]:
        """The batch as the list of batches that the libraries ask for."""
        return [(self.inputs, self.targets)]

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """All parameters by name, without a record of gradients."""
        return {name: value.detach() for name, value in self.model.named_parameters()}

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """The linear and convolution layers, by name."""
        return layers_of(self.model)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The layers' weights, by layer."""
        return {name: layer.weight for name, layer in self.layers.items()}

    def gradient(self) -> None:
        """Run the unit of cost: one forward and one backward pass."""
        self.model.zero_grad()
        functional.cross_entropy(self.model(self.inputs), self.targets).backward()

    def vectors(self, count: int = PROBES) -> Tensor:
        """Return the same standard normal vectors (count, d) for all tools."""
        d = sum(value.numel() for value in self.parameters.values())
        return self._draw(count, d, seed=1)

    def layer_vectors(self, count: int = PROBES) -> dict[str, Tensor]:
        """Return the same standard normal vectors for each layer's weight, (count, *shape)."""
        return {
            name: self._draw(count, *weight.shape, seed=2 + position)
            for position, (name, weight) in enumerate(self.weights.items())
        }

    def _draw(self, *shape: int, seed: int) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        return torch.randn(*shape, generator=generator, device="cpu").to(self.inputs)


def residual_network(samples: int, device: str) -> Problem:
    """Return ResNet-20 with its initial weights on random 32 × 32 inputs, C = 10, float32."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    model = build("resnet20", in_channels=3, num_classes=10, seed=0).to(device).eval()
    inputs = torch.randn(samples, 3, 32, 32, generator=generator, device="cpu")
    targets = torch.randint(0, 10, (samples,), generator=generator, device="cpu")
    return Problem(model, inputs.to(device), targets.to(device))


def digits_network(samples: int | None, device: str) -> Problem:
    """Return a tanh MLP 64–32–32–10, trained on digits, on some of them; float64."""
    data = load("digits", device=device, dtype=torch.float64)
    model = build(
        "mlp",
        in_channels=1,
        num_classes=10,
        input_shape=data.shape,
        hidden=(32, 32),
        activation="tanh",
    )
    model = model.to(device=device, dtype=torch.float64)
    train(model, data.train, epochs=100, progress=False)
    return Problem(model.eval(), data.train.inputs[:samples], data.train.targets[:samples])


PROBLEMS = {"ResNet-20": residual_network, "digits MLP": digits_network}


def entropies(spectra: Sequence[Tensor]) -> Tensor:
    """Return the Rényi entropies of the layers' spectra, one order after the other."""
    values = [renyi_entropy(spectrum, order) for spectrum in spectra for order in ORDERS]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def gram_eigenvalues(rows: Tensor) -> Tensor:
    """Return the nonzero eigenvalues of GᵀG, in float64, through the smaller Gram matrix."""
    precise = rows.to(torch.float64)
    gram = precise @ precise.T if precise.shape[0] <= precise.shape[1] else precise.T @ precise
    eigenvalues = torch.linalg.eigvalsh(gram)
    tolerance = max(rows.shape) * torch.finfo(torch.float64).eps * eigenvalues[-1]
    return eigenvalues[eigenvalues > tolerance]


def ritz_values(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    """Return the two Ritz values after two Lanczos steps, by which Lanczos runs are compared."""
    a, b = diagonal[:2].double().cpu()
    coupling = off_diagonal[0].double().cpu()
    return torch.linalg.eigvalsh(torch.stack([a, coupling, coupling, b]).reshape(2, 2))
