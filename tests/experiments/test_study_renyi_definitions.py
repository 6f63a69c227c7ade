"""What the facts of Section 2 compute, on cases that are known by hand."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch

from paperkit.experiments.studies import renyi_definitions
from paperkit.experiments.studies._renyi_facts import (
    SEEDS,
    Fact,
    entropy,
    facts_grid,
    matrix_of,
    random_rotation,
    relative,
)
from paperkit.experiments.studies.renyi_definitions import (
    decimal_entropy,
    descend,
    forward_by_hand,
    mixed_entropy,
    negative_share,
    network_and_batch,
    outside,
    random_factors,
    signed_spectrum,
)


def test_a_grid_has_all_combinations_and_seeds_only_where_chance_plays():
    facts = {
        "drawn": Fact(dict, {"alpha": (0.5, 1.0, 2.0), "size": (2, 3)}),
        "fixed": Fact(dict, {"alpha": (0.5, 1.0)}, chance=False),
    }
    assert len(facts_grid(facts, "laptop")) == 6 * SEEDS["laptop"] + 2
    smoke = facts_grid(facts, "smoke")
    assert len(smoke) == 4 + 2
    assert {c["alpha"] for c in smoke if c["fact"] == "drawn"} == {0.5, 2.0}


def test_the_entropy_by_definition_is_known_for_uniform_and_for_two_masses():
    for alpha in (0.5, 1, 2.0, 30.0):
        assert entropy(np.array([2.0, 2.0, 2.0, 0.0]), alpha) == pytest.approx(math.log(3))
    assert entropy(np.array([3.0, 1.0]), 2.0) == pytest.approx(-math.log(0.625))
    # A mass whose power underflows leaves the entropy of the rest.
    assert entropy(np.array([1e-200, 1.0]), 3.0) == pytest.approx(0.0)


def test_sixty_digits_agree_with_the_definition_and_see_the_distance_from_order_one():
    masses = np.array([1.0, 2.0, 5.0])
    assert float(decimal_entropy(masses, Decimal(2))) == pytest.approx(entropy(masses, 2.0))
    shannon = decimal_entropy(masses, Decimal(1))
    near = decimal_entropy(masses, 1 + Decimal(10) ** -20)
    assert 0 < shannon - near < Decimal(10) ** -19


def test_relative_differences_are_absolute_below_one():
    assert relative(3.0, 4.0) == pytest.approx(0.25)
    assert relative(0.1, 0.2) == pytest.approx(0.1)


def test_a_matrix_has_the_eigenvalues_that_it_is_made_of():
    generator = np.random.default_rng(0)
    rotation = random_rotation(5, generator)
    assert np.allclose(rotation @ rotation.T, np.eye(5))
    values = np.array([-1.0, 0.0, 2.0])
    assert np.allclose(np.linalg.eigvalsh(matrix_of(values, generator)), values)


def test_the_mixed_formula_is_the_entropy_where_no_eigenvalue_is_negative():
    values = np.array([3.0, 1.0])
    assert mixed_entropy(values, 2.0) == pytest.approx(entropy(values, 2.0))
    signed = np.array([3.0, -1.0])
    assert mixed_entropy(signed, 2.0) == pytest.approx(-math.log(10 / 4))
    assert outside(mixed_entropy(signed, 2.0), 2) == pytest.approx(math.log(10 / 4))
    assert outside(0.5, 2) == 0


def test_a_signed_spectrum_has_the_share_of_negative_weight_asked_for():
    values = signed_spectrum(10, 0.25, np.random.default_rng(1))
    assert -values[values < 0].sum() / values[values > 0].sum() == pytest.approx(0.25)
    assert negative_share(torch.diag(torch.from_numpy(values))) == pytest.approx(0.2)


def test_factors_multiply_to_one_and_the_forward_pass_is_the_networks():
    factors = random_factors(4, np.random.default_rng(2))
    assert math.prod(factors) == pytest.approx(1.0)
    for network, slope in (("relu", 0.0), ("leaky_relu", 0.01)):
        model, inputs, _, _ = network_and_batch(network, 3, 0)
        expected = model(inputs).detach().numpy()
        assert np.allclose(forward_by_hand(model, inputs.numpy(), slope), expected)
        assert not np.allclose(forward_by_hand(model, inputs.numpy(), slope + 0.5), expected)


def test_descent_lowers_the_loss():
    model, inputs, targets, _ = network_and_batch("gelu", 3, 0)
    first = descend(model, inputs, targets, steps=1, lr=0.1)
    assert descend(model, inputs, targets, steps=50, lr=0.1) < first


@pytest.mark.parametrize(
    "configuration",
    [*renyi_definitions.grid("smoke"), {"fact": "proxy", "proxy": "Gauss-Newton", "seed": 0}],
    ids=lambda c: " ".join(str(v) for v in c.values()),
)
def test_each_fact_gives_finite_numbers(configuration):
    for value in renyi_definitions.run(configuration, context=None).values():
        assert all(math.isfinite(v) for v in (value if isinstance(value, list) else [value]))


def test_a_hessian_scaled_by_another_exponent_would_be_seen():
    (configuration,) = [
        c
        for c in renyi_definitions.grid("smoke")
        if (c["fact"], c.get("network"), c.get("depth")) == ("layer scaling", "relu", 2)
    ]
    metrics = renyi_definitions.run(configuration, context=None)
    assert metrics["hessian_error"] < 1e-10 < 0.1 < metrics["positive_exponent_error"]
