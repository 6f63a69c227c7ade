import math

import pytest
import torch

from paperkit.experiments.studies import compression_volume as study
from paperkit.experiments.studies._stacks import generator_of, volumes

SUM = torch.tensor([[1.0, 1.0]], dtype=torch.float64)


def test_the_sum_of_two_coordinates_stretches_a_square_by_two_and_a_disc_by_root_two():
    assert study.image_of_cube(SUM) == 2
    assert study.image_of_ball(SUM) == pytest.approx(math.sqrt(2.0))
    assert float(volumes(SUM[None])) == pytest.approx(math.sqrt(2.0))


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_weights_of_directions_give_means_over_the_sphere(dimension):
    directions, weights = study.directions_of(dimension)
    assert weights.sum() == pytest.approx(1.0)
    assert weights @ directions[:, 0] ** 2 == pytest.approx(1.0 / dimension)


def test_the_image_of_a_cube_under_a_diagonal_map_is_a_box():
    box = torch.diag(torch.tensor([2.0, 3.0, 0.5], dtype=torch.float64))
    assert study.image_of_cube(box) == pytest.approx(3.0)
    assert study.image_of_ball(box) == pytest.approx(3.0)


def test_positive_eigenvalues_alone_exceed_the_bound_where_the_rank_is_low():
    found = study.positive_eigenvalues(2, generator_of(0))
    assert found["excess"] > 1
    assert found["error"] < 1e-12


def test_a_finite_variance_is_no_limit():
    found = study.covariance(2, generator_of(0))
    assert found["error"] < 1e-6 < found["without_the_limit"]


@pytest.mark.parametrize("configuration", study.STUDY.grid("smoke"), ids=lambda c: c["fact"])
def test_each_fact_of_a_smoke_run_gives_numbers(configuration):
    metrics = study.run(configuration, context=None)
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values())
