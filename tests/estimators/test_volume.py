"""Local volumes, against determinants and minors written out."""

import itertools
import math

import pytest
import torch
from helpers import gaussian
from jacobians import Squares, full_rank_4x6, with_singular_values
from networks import NAMED
from round_off import moves_of_model
from torch import nn

from paperkit.estimators.volume import log_volume, log_volumes


def test_the_volume_is_the_root_of_the_sum_of_squared_minors() -> None:
    matrix = full_rank_4x6()
    minors = [
        float(torch.linalg.det(matrix[:, list(columns)]))
        for columns in itertools.combinations(range(6), 4)
    ]
    cauchy_binet = math.sqrt(sum(minor**2 for minor in minors))
    assert float(log_volumes(matrix[None]).exp()) == pytest.approx(cauchy_binet, rel=1e-12)
    assert cauchy_binet == pytest.approx(3.2045, abs=5e-5)


def test_the_printed_determinant_is_zero_for_fewer_outputs_than_inputs() -> None:
    matrix = full_rank_4x6()
    assert abs(float(torch.linalg.det(matrix.T @ matrix))) < 1e-12
    assert float(torch.linalg.det(matrix @ matrix.T)) > 10.0


@pytest.mark.parametrize(
    ("matrix", "cube", "ball"),
    [
        (torch.ones(1, 2, dtype=torch.float64), 2.0, math.sqrt(2.0)),
        (full_rank_4x6(), 10.862, 3.2045),
    ],
)
def test_the_volume_compares_balls_not_cubes(matrix, cube, ball) -> None:
    # A linear image of the unit cube is a zonotope: its volume is the sum of absolute minors.
    rows, columns = matrix.shape
    zonotope = sum(
        abs(float(torch.linalg.det(matrix[:, list(chosen)])))
        for chosen in itertools.combinations(range(columns), rows)
    )
    assert zonotope == pytest.approx(cube, abs=5e-4)
    assert float(log_volumes(matrix[None]).exp()) == pytest.approx(ball, abs=5e-5)


def test_a_rank_deficient_jacobian_has_no_volume_but_its_top_k() -> None:
    jacobian = with_singular_values([2.0, 0.5, 0.0], 7)[None]
    assert float(log_volumes(jacobian)) == -math.inf
    # −inf although the computed third singular value is some 1e-17, not zero.
    assert float(log_volumes(jacobian, k=2)) == pytest.approx(0.0, abs=1e-13)
    assert float(log_volumes(jacobian, k=1)) == pytest.approx(math.log(2.0), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_a_deep_bottleneck_leaves_of_a_zero_is_no_volume(dtype: torch.dtype) -> None:
    # The bottleneck passes two numbers, so the Jacobian has rank 2 up to the round-off of sixteen
    # layers on either side.
    def half(inputs: int, outputs: int) -> list[nn.Module]:
        widths = itertools.pairwise([inputs, *[32] * 16])
        hidden = [layer for pair in widths for layer in (nn.Linear(*pair), nn.Tanh())]
        return [*hidden, nn.Linear(32, outputs)]

    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(*half(4, 2), *half(2, 4)).to(dtype)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    for moved, inputs in moves_of_model(model, gaussian(200, 4).to(dtype), times=5):
        result = log_volume(moved, (inputs, torch.zeros(200)), k=3)
        assert float(result) == -math.inf
        assert result.assumptions["rank_deficient"] == 200


def test_fewer_inputs_than_outputs_have_no_volume() -> None:
    jacobian = gaussian(2, 4, 3)
    assert torch.equal(log_volumes(jacobian), torch.full((2,), -math.inf, dtype=torch.float64))
    assert torch.isfinite(log_volumes(jacobian, k=3)).all()


def test_the_volume_scales_with_the_power_of_the_outputs() -> None:
    jacobian = gaussian(3, 4, 9)
    shift = log_volumes(1e-40 * jacobian) - log_volumes(jacobian)
    torch.testing.assert_close(
        shift, torch.full_like(shift, 4 * math.log(1e-40)), rtol=1e-13, atol=0.0
    )


def test_the_two_averages_are_the_log_of_the_mean_and_the_mean_of_the_logs() -> None:
    # f = (x₁², x₂²)/2 has the Jacobian diag(x): volumes 6 and 1/2.
    model = Squares()
    inputs = torch.tensor([[2.0, 3.0], [1.0, 0.5]], dtype=torch.float64)
    data = (inputs, torch.zeros(2, dtype=torch.int64))
    assert float(log_volume(model, data)) == pytest.approx(math.log(3.25), rel=1e-13)
    assert float(log_volume(model, data, average="log")) == pytest.approx(
        math.log(3.0) / 2, rel=1e-13
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"average": "sum"}, "average='sum'"), ({"k": 0}, "k=0"), ({"k": 9}, "k=9")],
)
def test_bad_arguments_are_refused_by_name(options, message) -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    with pytest.raises(ValueError, match=message):
        log_volume(model, (inputs, targets), **options)
