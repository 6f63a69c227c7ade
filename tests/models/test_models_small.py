"""Small networks: their shapes, seeds and the features that they are named for."""

import pytest
import torch
from torch import nn

from paperkit.linearize import linearize
from paperkit.models.small import (
    DIGIT_NETWORKS,
    OPTIONS,
    BatchStandardization,
    Residual,
    TwoHalves,
    build_dense_network,
    build_digit_network,
)
from paperkit.network import SamplesInteractError


def digits(n=5):
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64, device="cpu")


@pytest.mark.parametrize("name", DIGIT_NETWORKS)
def test_a_digit_network_is_drawn_from_its_seed_and_ready_to_be_measured(name):
    before = torch.get_rng_state()
    first, again, other = (build_digit_network(name, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    assert first(digits()).shape == (5, 10)
    assert first(digits()).dtype == torch.float64
    assert torch.equal(first(digits()), again(digits()))
    assert not torch.equal(first(digits()), other(digits()))


def test_frozen_statistics_and_scales_are_away_from_where_an_error_would_not_show():
    model = build_digit_network("residual, frozen batch norm", seed=0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2
    for norm in norms:
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            low, high = tensor.detach().aminmax()
            assert 0.5 <= float(low) < float(high) <= 1.5


def test_batch_statistics_make_samples_interact_and_frozen_ones_do_not():
    frozen = build_digit_network("residual, frozen batch norm", seed=0)
    assert set(linearize(frozen, digits()).layers) == {"stem", "conv", "head"}
    with pytest.raises(SamplesInteractError):
        linearize(build_digit_network("batch statistics", seed=0), digits())


def test_two_halves_share_one_weight():
    model = TwoHalves().double()
    left, right = digits().flatten(1).chunk(2, dim=1)
    swapped = torch.cat([right, left], dim=1).view(5, 1, 8, 8)
    torch.testing.assert_close(model(swapped), model(digits()), rtol=1e-12, atol=1e-14)


def test_standardization_with_epsilon_is_standardization_with_another_epsilon_after_scaling():
    z = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = BatchStandardization(1e-2)(0.3 * z)
    assert torch.allclose(scaled, BatchStandardization(1e-2 / 0.3**2)(z), rtol=1e-12, atol=0)
    assert torch.allclose(
        BatchStandardization(1e-2)(z),
        nn.functional.batch_norm(z, None, None, training=True, eps=1e-2),
        rtol=1e-12,
        atol=1e-15,
    )


@pytest.mark.parametrize("option", ["", *OPTIONS])
def test_a_dense_network_has_the_widths_and_the_option_of_its_name(option):
    network = f"leaky_relu_{option}" if option else "leaky_relu"
    model = build_dense_network(network, seed=0, widths=(5, 4, 4, 3), epsilon=0.1)
    inputs = digits(6).flatten(1)[:, :5]
    assert model(inputs).shape == (6, 3)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == (4 if option == "residual" else 3)
    assert all((layer.bias is not None) == (option == "bias") for layer in linears)
    kinds = {type(module) for module in model.modules()}
    assert (BatchStandardization in kinds) == (option == "norm")
    assert (Residual in kinds) == (option == "residual")
    assert bool(torch.allclose(model(inputs).sum(1), torch.ones(6).double())) == (option == "brier")


def test_the_seed_decides_the_dense_network():
    weights = [build_dense_network("relu", seed)[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_unknown_networks_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"network='relu_dropout' is unknown: use one of relu"):
        build_dense_network("relu_dropout", seed=0)
    with pytest.raises(ValueError, match=r"name='GELUE' is unknown \(did you mean 'GELU'"):
        build_digit_network("GELUE", seed=0)
