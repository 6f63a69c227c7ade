import math

import pytest
import torch

from paperkit.experiments.studies import compression_equality as study
from paperkit.experiments.studies._stacks import generator_of


def test_two_inputs_of_length_one_and_two_give_b_below_c():
    inputs = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    a, b, c, d = study.letters(study.linear_stack(one, None, inputs))
    assert (a, b) == pytest.approx((1.0, 1.0))
    assert c == pytest.approx(1.25)
    assert d == pytest.approx(c)


def test_a_second_layer_separates_c_and_d():
    one = torch.ones(1, 1, dtype=torch.float64)
    _, _, c, d = study.letters(study.linear_stack(one, one, one))
    assert (c, d) == pytest.approx((1.0, math.sqrt(2.0)))


def test_a_constant_product_is_no_constant_ratio():
    found = study.constant_product(2, generator_of(0))
    assert found["error"] < 1e-12
    assert found["ratio_spread"] > 0.1


def test_a_jacobian_of_rank_one_that_is_not_aligned_has_a_below_b():
    found = study.rank_one(2, generator_of(0))
    assert found["error"] < 1e-12
    assert found["slack"] > 0.01


@pytest.mark.parametrize("configuration", study.STUDY.grid("smoke"), ids=lambda c: c["fact"])
def test_each_fact_of_a_smoke_run_gives_numbers(configuration):
    metrics = study.run(configuration, context=None)
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values())
