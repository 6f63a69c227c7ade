"""What may be spent on the Rényi sharpness of several blocks, and how each is measured for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch

from paperkit.estimators.plan import PRODUCT, Gradient
from paperkit.linearize import LayerLinearization
from paperkit.linearize.blocks import Block
from paperkit.linearize.weights import WeightBlock

# Fewer probes have no error bar worth the name, fewer steps no bracket; so many steps resolve most.
FEWEST, _STEPS_EACH, _MOST_PROBES = 8, 25, 100

_BYTES = torch.float64.itemsize


@dataclass(frozen=True)
class Settings:
    """How to get from a matrix to its entropies."""

    orders: tuple[float, ...]
    policy: str
    method: str
    probes: int | None
    steps: int | None
    max_steps: int
    seed: int
    max_dense: int
    memory_budget: int

    def fits(self, size: int) -> bool:
        """Whether a symmetric matrix of that size may be written out in float64."""
        return 2 * size * size * _BYTES <= self.memory_budget


@dataclass
class Spending:
    """What may still be spent, in gradients, and on how many layers.

    ``strict`` spends more where an error bar needs it.
    """

    gradient: Gradient
    left: float
    layers: int
    strict: bool = True

    def share(self, count: int) -> float:
        """Return what that many of the layers may take."""
        return self.left * count / max(self.layers, count)

    def pay(self, gradients: float, count: int) -> None:
        """Take off what that many layers will have taken; the next ones share what is left."""
        self.left = max(0.0, self.left - gradients)
        self.layers -= count


@dataclass(frozen=True)
class Effort:
    """How a block is measured: exactly, or by so many probes and steps; cost in gradients."""

    exact: bool
    probes: int
    max_steps: int
    gradients: float

    @classmethod
    def by_quadrature(cls, share: float, product: float, settings: Settings) -> Effort:
        """Choose probes and steps so that products of a given cost fit a share of the cost."""
        count = share / product
        probes, longest = settings.probes, settings.steps or settings.max_steps
        if probes is None:
            probes = round(min(max(count / _STEPS_EACH, FEWEST), _MOST_PROBES))
            if settings.steps is None:
                # Rounded down, so that the effort is within the share.
                longest = int(min(max(count / probes, FEWEST), longest))
        return cls(False, probes, longest, probes * longest * product)

    def of(self, settings: Settings) -> Settings:
        """Return the settings with this effort."""
        return replace(settings, probes=self.probes, max_steps=self.max_steps)


def planned_efforts(
    layers: Mapping[str, Block], settings: Settings, spend: Spending
) -> dict[str, Effort | None]:
    """Return each layer's effort, the cheapest layers first; None where it is left out."""
    gradient, left = spend.gradient, spend.share(len(layers))
    exact = {
        name: gradient.gram(layer) if has_pairs(layer) else PRODUCT * layer.num_parameters
        for name, layer in layers.items()
    }
    efforts: dict[str, Effort | None] = {}
    for index, name in enumerate(sorted(layers, key=exact.__getitem__)):
        layer, share = layers[name], left / (len(layers) - index)
        possible = settings.method != "lanczos" and _fits(layer, settings)
        if settings.method == "exact" and not possible:
            raise ValueError(
                f"method='exact' needs a {_size(layer)} × {_size(layer)} matrix for layer {name}: "
                "raise memory_budget or max_dense, or use method='lanczos'."
            )
        if settings.method == "exact" or (possible and exact[name] <= share):
            effort = Effort(True, 0, 0, exact[name])
        else:
            product = PRODUCT
            if has_pairs(layer):
                product = gradient.layer_product(layer, settings.memory_budget)
            effort = Effort.by_quadrature(share, product, settings)
        optional = isinstance(layer, WeightBlock) and layer.optional
        if (optional or not spend.strict) and effort.gradients > max(left, share):
            efforts[name] = None
            continue
        efforts[name] = effort
        left = max(0.0, left - effort.gradients)
    return efforts


def has_pairs(block: Block) -> TypeGuard[LayerLinearization]:
    """Whether a layer's pairs give the block."""
    return isinstance(block, LayerLinearization) and block.exact_block


def _size(block: Block) -> int:
    """Return the size of the matrix that holds a block's spectrum."""
    if not has_pairs(block):
        return block.num_parameters
    return min(block.num_samples * block.hessian_factor.shape[1], block.num_parameters)


def _fits(block: Block, settings: Settings) -> bool:
    return settings.fits(_size(block)) and (
        block.exact_block or block.num_parameters <= settings.max_dense
    )
