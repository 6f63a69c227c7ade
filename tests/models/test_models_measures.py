"""The library's measures of layers on small instances of each family."""

import pytest
import torch

from paperkit.estimators import layer_spectra, measure
from paperkit.models import VGG, ImageNetResNet, SimpleViT, ViT, WideResNet

SIZES = {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
PIECEWISE_LINEAR = {
    "resnet18": lambda: ImageNetResNet(18, 1, 3, width=2),
    "resnet50": lambda: ImageNetResNet(50, 1, 3, stem="7x7", width=2),
    "wide": lambda: WideResNet(10, 1, 1, 3),
    "vgg": lambda: VGG([(4,), (4, 4)], 1, 3, (8, 8)),
    "vgg_bn": lambda: VGG([(4,), (4, 4)], 1, 3, (8, 8), hidden=(5,), batch_norm=True),
}
TRANSFORMERS = {
    "vit": lambda: ViT(1, 3, (8, 8), **SIZES),
    "plain_vit": lambda: ViT(1, 3, (8, 8), shifted_patches=False, locality=False, **SIZES),
    "simple_vit": lambda: SimpleViT(1, 3, (8, 8), **SIZES),
}


def prepared(make, device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double().to(device).eval()
    generator = torch.Generator(device="cpu").manual_seed(1)
    inputs = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64, device="cpu")
    return model, (inputs.to(device), torch.tensor([0, 1, 2, 0], device=device))


def weights_of(model):
    kinds = torch.nn.Conv2d | torch.nn.Linear
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("name", [*PIECEWISE_LINEAR, *TRANSFORMERS])
def test_the_default_report_lacks_nothing(name, device):
    model, data = prepared({**PIECEWISE_LINEAR, **TRANSFORMERS}[name], device)
    report = measure(model, data)
    assert not report.missing
    assert set(weights_of(model)) <= set(report["renyi_sharpness"])


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_every_block_of_a_piecewise_linear_network_is_exact(name, device):
    model, data = prepared(PIECEWISE_LINEAR[name], device)
    spectra = layer_spectra(model, data)
    assert set(spectra) == set(weights_of(model))
    assert all(spectrum.exact_block for spectrum in spectra.values())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_layers_of_transformers_go_the_general_way_and_say_why(name, device):
    model, data = prepared(TRANSFORMERS[name], device)
    spectra = layer_spectra(model, data)
    assert spectra["fc"].exact_block
    for layer in set(weights_of(model)) - {"fc"}:
        assert not spectra[layer].exact_block
        assert spectra[layer].obstacle
    methods = {layer: result.method for layer, result in spectra.items()}
    assert methods["fc"] != methods["blocks.0.attention.qkv"]
