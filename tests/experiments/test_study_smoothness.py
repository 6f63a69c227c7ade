"""The facts about the SA-SAM paper's steps, on cases that are known by hand."""

import math
from fractions import Fraction

import pytest
import torch

from paperkit.experiments.studies import smoothness_ascent, smoothness_steps
from paperkit.experiments.studies._smoothness import (
    LOSSES,
    Path,
    largest_relative_difference,
    written_out_steps,
)
from paperkit.experiments.studies.smoothness_ascent import dual_norm, worst_rise
from paperkit.experiments.studies.smoothness_steps import (
    certified_worst_case,
    huber_excess,
    is_positive_semidefinite,
    undefined_reads,
)


@pytest.mark.parametrize("study", [smoothness_steps, smoothness_ascent])
def test_a_smoke_run_visits_every_fact_and_gives_finite_metrics(study):
    smoke = study.STUDY.grid("smoke")
    assert {c["fact"] for c in smoke} == {c["fact"] for c in study.STUDY.grid("laptop")}
    assert {c["fact"] for c in smoke} == set(study.FACTS)
    for configuration in smoke:
        metrics = study.STUDY.run(configuration, None)
        assert all(math.isfinite(value) for value in metrics.values()), configuration


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_has_the_gradient_and_the_smoothness_that_it_says(name):
    loss = LOSSES[name](3, 0)
    w = torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss.value(w), w)
    torch.testing.assert_close(gradient, loss.gradient(w.detach()))
    assert float(loss.gradient(loss.minimizer).norm()) < 1e-12
    for point in (w.detach(), torch.zeros_like(w)):
        hessian = torch.autograd.functional.hessian(loss.value, point)
        assert float(torch.linalg.eigvalsh(hessian)[-1]) < loss.beta * (1 + 1e-9)


def test_one_step_on_the_worst_huber_loss_leaves_a_sixth():
    one = Fraction(1)
    assert huber_excess(one, one, one / 3, one, 1) == Fraction(1, 6)
    assert huber_excess(one, one, 2 * one, one, 1) == 0  # a parabola, left in a single step


def test_the_certificate_fails_where_the_rate_is_false():
    eighth, half = Fraction(1, 8), Fraction(1, 2)
    assert certified_worst_case(Fraction(3, 2), half, eighth)
    assert not certified_worst_case(Fraction(3, 2), half, eighth - Fraction(1, 1000))
    # The shorter step leaves a sixth on one loss, so no multiplier may prove an eighth.
    weights = (Fraction(k, 100) for k in range(101))
    assert not any(certified_worst_case(Fraction(1), weight, eighth) for weight in weights)


def test_a_matrix_with_a_negative_direction_is_not_semidefinite():
    zero, one, two = (Fraction(k) for k in range(3))
    identity = [[one, zero, zero], [zero, one, zero], [zero, zero, one]]
    assert is_positive_semidefinite(identity)
    assert not is_positive_semidefinite([[one, two, zero], [two, one, zero], [zero, zero, one]])


def test_each_round_reads_a_ratio_too_early_and_the_first_line_a_radius():
    assert [undefined_reads(rounds, 3, seed=0) for rounds in (1, 4)] == [2, 5]


def test_the_written_out_step_is_equation_5_on_a_parabola():
    points = torch.tensor([[1.0], [0.96], [0.48]], dtype=torch.float64)
    written = written_out_steps(
        lambda w, step: 4.0 * w,
        Path(points, [0.01, 0.125]),
        eta0=0.01,
        delta=1.0,
        damping=2.0,
        ascent=False,
    )
    assert written.etas == pytest.approx([0.01, 0.125])
    torch.testing.assert_close(written.points, points)
    assert largest_relative_difference(Path(2.0 * points, [0.01, 0.125]), written) > 0.4


@pytest.mark.parametrize(("p", "rise"), [(1.0, 4.0 + 2.0), (math.inf, 7.0 + 2.5)])
def test_the_worst_corner_of_a_ball(p, rise):
    matrix = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    assert worst_rise(matrix, torch.tensor([3.0, 4.0]).double(), 1.0, p) == pytest.approx(rise)


def test_the_worst_point_of_a_euclidean_ball_along_the_gradient():
    matrix = 2.0 * torch.eye(2, dtype=torch.float64)
    gradient = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert worst_rise(matrix, gradient, 1.0, 2.0) == pytest.approx(5.0 + 1.0)
    assert dual_norm(gradient, 1.0) == 4.0
    assert dual_norm(gradient, math.inf) == 7.0


def test_the_printed_direction_is_right_for_the_euclidean_norm_alone():
    shortfalls = {
        c["norm"]: smoothness_ascent.run(c, None)["shortfall"]
        for c in smoothness_ascent.grid("smoke")
        if c["fact"] == "direction"
    }
    assert abs(shortfalls.pop("2")) < 1e-12
    assert min(shortfalls.values()) > 1e-3
