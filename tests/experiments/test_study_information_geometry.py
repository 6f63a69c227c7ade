"""The facts about the Fisher matrix and the sharpness by it, on cases that are known by hand."""

import math

import pytest
import torch
from torch import nn

from paperkit.experiments.published import published_table
from paperkit.experiments.studies import (
    fisher_identities,
    igs_invariance,
    igs_margins,
    igs_published,
    igs_regularizer,
    takeuchi_identities,
)
from paperkit.experiments.studies._fisher import (
    Problem,
    exact_losses,
    pseudo_inverse,
    random_problem,
    written_out,
)
from paperkit.experiments.studies.igs_invariance import Curve, partner, symmetric_copy
from paperkit.experiments.studies.igs_published import lower_bound
from paperkit.experiments.studies.takeuchi_identities import bias_and_trace

STUDIES = [
    fisher_identities,
    igs_invariance,
    igs_margins,
    igs_published,
    igs_regularizer,
    takeuchi_identities,
]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.STUDY.name)
def test_a_smoke_run_gives_finite_metrics(study):
    for configuration in study.STUDY.grid("smoke"):
        metrics = study.STUDY.run(configuration, None)
        assert all(math.isfinite(value) for value in metrics.values()), configuration


@pytest.mark.parametrize("study", [s for s in STUDIES if hasattr(s, "FACTS")])
def test_a_smoke_run_visits_every_fact(study):
    for profile in ("smoke", "laptop"):
        assert {c["fact"] for c in study.STUDY.grid(profile)} == set(study.FACTS)


@pytest.fixture
def fair():
    """Two classes at even odds, a weight for each; two samples at 1 and one at 2."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False, dtype=torch.float64))
    nn.init.zeros_(model[0].weight)
    inputs = torch.tensor([[1.0], [1.0], [2.0]], dtype=torch.float64)
    return Problem(model, inputs, torch.tensor([0, 1, 0]))


def test_the_written_out_fisher_matrix_of_a_fair_coin(fair):
    written = written_out(fair)
    expected = 0.25 * 2.0 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(written.fisher, expected)
    assert written.rank == 1
    # Every squared gradient is x²/2, and F has the eigenvalue mean of x²/2.
    assert written.sharpness() == pytest.approx(1.0)
    assert exact_losses(fair) == pytest.approx([math.log(2.0)] * 3)


def test_the_pseudo_inverse_leaves_the_null_space_alone():
    matrix = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(pseudo_inverse(matrix), matrix / 16.0)


def test_an_identity_fails_where_a_side_is_wrong(monkeypatch):
    configuration = {"network": "tanh_bias", "samples": 5, "classes": 3, "seed": 0}
    assert igs_invariance.FACTS["definition"](**configuration)["difference"] < 1e-10
    monkeypatch.setattr(igs_invariance, "_library", lambda problem, **options: 1.0)
    assert igs_invariance.FACTS["definition"](**configuration)["difference"] > 0.1


def test_the_partner_on_the_curve_has_the_same_value_and_another_slope():
    x = torch.ones(1, 3, dtype=torch.float64)
    for theta in (-0.1, 0.0, 0.1):
        here, there = Curve(theta, 0.5)(x), Curve(partner(theta), 0.5)(x)
        torch.testing.assert_close(here, there)
    assert partner(0.0) == 1.0


@pytest.mark.parametrize("symmetry", ["permutation", "signs"])
def test_a_symmetric_copy_is_another_network_of_the_same_function(symmetry):
    network = "relu_bias" if symmetry == "permutation" else "tanh_bias"
    problem = random_problem(network, 4, 3, seed=1)
    copied = symmetric_copy(symmetry, problem.model, seed=1)
    torch.testing.assert_close(copied(problem.inputs), problem.model(problem.inputs))
    assert not torch.equal(copied[0].weight, problem.model[0].weight)


def test_the_bias_of_an_exponential_rate_is_known():
    bias, trace = bias_and_trace("exponential", shape=2.0, samples=10)
    assert bias == pytest.approx(1.0 / 19.0)
    assert trace == pytest.approx(0.5)
    bias, trace = bias_and_trace("normal", shape=3.0, samples=10)
    assert (bias, trace) == (pytest.approx(0.3), pytest.approx(3.0))


def test_the_bound_on_a_difference_is_that_of_equal_errors():
    # With equal errors and two degrees of freedom each, Student's quantile is 2.132.
    gain, lower = lower_bound((2.0, 0.1), (1.0, 0.1), runs=3)
    assert gain == 1.0
    assert lower == pytest.approx(1.0 - 2.132 * math.sqrt(0.02), abs=1e-3)


def test_the_table_has_five_methods_in_seven_rows():
    table = published_table("igs_table_1")
    assert len(table["rows"]) == 7
    assert all(list(row) == table["methods"] for row in table["rows"].values())
    assert len(igs_published.grid("laptop")) == 28
