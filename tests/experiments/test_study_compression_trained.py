import math

import pytest
import torch
from torch import nn

from paperkit.experiments.studies import convolution_bounds, cross_entropy_limit, norm_estimator

STUDIES = [convolution_bounds.STUDY, cross_entropy_limit.STUDY, norm_estimator.STUDY]


def test_a_search_finds_the_norm_of_a_linear_map():
    model = nn.Linear(2, 2, bias=False).double()
    model.weight.data = torch.diag(torch.tensor([3.0, 0.5], dtype=torch.float64))
    inputs = torch.ones(4, 2, dtype=torch.float64)
    assert norm_estimator.exact_norms(model, inputs).tolist() == pytest.approx([3.0] * 4)
    found = norm_estimator.largest_quotients(model, inputs, seed=0)
    assert float(found.max()) <= 3.0 + 1e-12
    assert float(found.min()) > 2.5


def test_a_search_leaves_the_neighbourhood_where_the_output_saturates():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Sigmoid()).double()
    model[0].weight.data.fill_(20.0)
    inputs = torch.full((4, 1), 0.3, dtype=torch.float64)
    exact = norm_estimator.exact_norms(model, inputs)
    slope = 20.0 * math.exp(-6.0) / (1.0 + math.exp(-6.0)) ** 2
    assert exact.tolist() == pytest.approx([slope] * 4)
    assert float((norm_estimator.largest_quotients(model, inputs, seed=0) / exact).max()) > 2.0


def test_the_trace_is_measured_below_each_level():
    found = cross_entropy_limit.traces("cross_entropy", 20, -2, 0)
    assert list(found) == [-1, -2]
    assert all(metrics["loss"] <= 10.0**level for level, metrics in found.items())
    assert found[-1]["share_of_first"] == 1.0


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_each_smoke_run_gives_numbers(study):
    for configuration in study.grid("smoke"):
        metrics = study.run(configuration, context=None)
        assert metrics
        assert all(math.isfinite(value) for value in metrics.values())
