"""Proposition 2.2: scaling layers against each other keeps the entropies."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.bounds.statement import Identity
from paperkit.estimators.entropy import renyi_entropy
from paperkit.estimators.spectra import layer_spectra
from paperkit.linearize.recording import layers_of
from paperkit.network.batches import as_batch
from paperkit.network.evaluation import evaluation
from paperkit.network.network import network_outputs

# Modules that are positively homogeneous of degree 1 in their inputs, whatever their settings.
_HOMOGENEOUS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Identity, nn.Dropout, nn.Flatten),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layer_scaling_invariance(
    model: nn.Module,
    data: object,
    factors: Mapping[str, float],
    alpha: float,
    loss: str = "cross_entropy",
) -> dict[str, Identity]:
    """Compare every layer's entropy before and after layers are multiplied by positive factors.

    Source: Rényi paper, Proposition 2.2, Proposition E.1 and Corollary E.2; identities. They hold
    for α = 1 too. They need positively homogeneous activations *and* no biases; factors for
    single units, or the joint Hessian of all layers, are not covered.

    Parameters
    ----------
    model : nn.Module
        Network, which is left unchanged.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    factors : mapping of str to float
        Positive factors by layer name; layers that are not named keep their weights.
    alpha : float
        Order α > 0.
    loss : str
        Name from :data:`paperkit.network.LOSSES`.

    Returns
    -------
    dict of str to Identity
        Statements by layer, with the scaled network on the left and the given network on the right.
        ``homogeneous`` is True where the modules show it, False where scaling a layer by 2 does not
        double the outputs, None where neither decides.

    Raises
    ------
    ValueError
        If a factor is not positive, a layer is unknown, or the data do not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.renyi import layer_scaling_invariance
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    >>> data = torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])
    >>> _ = nn.init.eye_(model[0].weight), nn.init.eye_(model[2].weight)
    >>> scaled = layer_scaling_invariance(model.double(), data, {"0": 4.0, "2": 0.25}, alpha=0.5)
    >>> scaled["0"]
    Identity(Rényi paper, Prop. 2.2: ℋ_α of layer 0 = that after scaling: 0.693147 = 0.693147,
        certified)
    """
    alpha = arguments.order("alpha", alpha)
    scales = {
        name: arguments.number(f"factors[{name!r}]", factor, above=0)
        for name, factor in arguments.mapping("factors", factors).items()
    }
    arguments.module("model", model)
    arguments.names("factors", list(scales), layers_of(model), at_least=0)
    before = layer_spectra(model, data, loss)
    after = layer_spectra(_scale_layers(model, scales), data, loss)
    assumptions = {
        "factors_have_product_one": math.isclose(math.prod(scales.values()), 1, rel_tol=1e-12),
        "homogeneous": _is_homogeneous(model, as_batch(data)[0], list(before)),
    }
    return {
        name: Identity(
            statement=f"ℋ_α of layer {name} = that after scaling",
            source="Rényi paper, Prop. 2.2",
            left=renyi_entropy(after[name].eigenvalues, alpha),
            right=renyi_entropy(before[name].eigenvalues, alpha),
            assumptions=assumptions,
        )
        for name in before
    }


def _scale_layers(model: nn.Module, factors: Mapping[str, float]) -> nn.Module:
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, factor in factors.items():
            scaled.get_submodule(name).get_parameter("weight").mul_(factor)
    return scaled


def _is_homogeneous(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> bool | None:
    """Whether the outputs are proportional to a positive factor on any one layer's weights."""
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    linear = [module for module in modules if isinstance(module, _LINEAR)]
    if (
        all(isinstance(module, (nn.Sequential, *_HOMOGENEOUS, *_LINEAR)) for module in modules)
        and all(module.bias is None for module in linear)
        and len({id(module.weight) for module in linear}) == len(linear)
    ):
        return True
    with evaluation(model), torch.no_grad():
        outputs = network_outputs(model, {}, inputs)
        for layer in layers:
            name = f"{layer}.weight"
            doubled = network_outputs(model, {name: 2 * model.get_parameter(name)}, inputs)
            if float((doubled - 2 * outputs).norm()) > 1e-4 * float(outputs.norm()):
                return False
    return None
