"""Trace, top eigenvalues and density of the Hessian against the matrix written out."""

import pytest
import torch
from networks import NAMED, Case
from torch import nn

from paperkit.curvature import HessianOperator, dense_gauss_newton, dense_hessian
from paperkit.estimators import hessian_top_eigenvalues, hessian_trace, spectral_density
from paperkit.estimators.hessian import block_probe_trace

SOME = [
    NAMED["relu MLP"],
    NAMED["residual"],
    NAMED["tanh before the second layer"],
    NAMED["functional gate"],
]


def hessian_of(case: Case, device: torch.device, n: int = 6):
    model, inputs, targets = case.make(n, device=device)
    return model, (inputs, targets), dense_hessian(model, inputs, targets)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_the_exact_trace_is_that_of_the_dense_hessian_biases_included(case, device):
    model, data, hessian = hessian_of(case, device)
    result = hessian_trace(model, data)
    assert result.method == "exact" and result.standard_error is None
    assert float(result) == pytest.approx(float(hessian.trace()), rel=1e-10)


def test_uneven_batches_count_every_sample_once(device):
    model, (inputs, targets), _ = hessian_of(NAMED["relu MLP"], device)
    parts = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    for method in ("exact", "split"):
        result = hessian_trace(model, parts, method=method, products=40)
        whole = hessian_trace(model, (inputs, targets), method=method, products=40)
        assert float(result) == pytest.approx(float(whole), rel=1e-10)
        assert result.n == len(inputs)


def test_an_estimate_lies_within_three_standard_errors_in_97_of_100_seeds(device):
    case = NAMED[
        "tanh before the second layer"
    ]  # tanh: the two parts of the Hessian both have a trace
    model, data, hessian = hessian_of(case, device)
    exact = float(hessian.trace())
    misses = 0
    for seed in range(100):
        result = hessian_trace(model, data, method="split", products=20, seed=seed)
        assert result.standard_error is not None
        misses += abs(float(result) - exact) > 3 * result.standard_error
    assert misses <= 3


@pytest.mark.parametrize("method", ["block_probes", "xtrace", "hutch++", "hutchinson"])
def test_a_named_estimator_estimates_the_whole(method, device):
    model, data, hessian = hessian_of(NAMED["tanh before the second layer"], device)
    result = hessian_trace(model, data, method=method, products=60)
    assert result.method == method and result.standard_error is not None
    assert abs(float(result) - float(hessian.trace())) < 5 * result.standard_error


def test_the_split_trace_adds_the_exact_gauss_newton_part(device):
    model, data, hessian = hessian_of(NAMED["tanh before the second layer"], device)
    result = hessian_trace(model, data, method="split", products=60)
    part = result.assumptions["gauss_newton_part"]
    exact = float(dense_gauss_newton(model, data[0]).trace())
    assert part == pytest.approx(exact, rel=1e-10)
    rest = float(hessian.trace()) - exact
    assert abs(float(result) - part - rest) < 5 * result.standard_error


@pytest.mark.parametrize(
    "case",
    [NAMED["relu MLP"], NAMED["LeNet"], NAMED["residual"], NAMED["siamese"]],
    ids=lambda c: c.name,
)
def test_where_everything_is_piecewise_linear_the_split_trace_is_exact(case, device):
    model, data, hessian = hessian_of(case, device)
    result = hessian_trace(model, data, method="split")
    assert result.method == "exact" and result.probes is None and result.standard_error is None
    assert float(result) == pytest.approx(float(hessian.trace()), rel=1e-10)
    auto = hessian_trace(model, data, max_dense=1)
    assert auto.method == "exact"
    assert float(auto) == pytest.approx(float(result), rel=1e-12)


def test_too_few_products_are_refused_also_where_the_method_is_chosen(device):
    model, data, _ = hessian_of(NAMED["tanh before the second layer"], device)
    for method in ("auto", "split", "block_probes"):
        with pytest.raises(ValueError, match="products=1 must be at least 2: one has no spread"):
            hessian_trace(model, data, method=method, products=1, max_dense=1)


def test_probes_of_the_blocks_own_have_the_stated_variance(device):
    r"""Var = 2/(n² k) Σ_b ‖Σ_{i in b} H_i without its diagonal‖², below that of shared probes."""
    model, (inputs, targets), hessian = hessian_of(
        NAMED["tanh before the second layer"], device, n=8
    )
    operator = HessianOperator(model, (inputs, targets))  # each block is a sample
    variance = 0.0
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        matrix = dense_hessian(model, x, y)
        variance += 2 * float((matrix - matrix.diagonal().diag()).square().sum()) / 8**2
    whole = hessian - hessian.diagonal().diag()
    assert variance < float(2 * whole.square().sum())
    estimates = [block_probe_trace(operator, 2, seed=seed) for seed in range(400)]
    errors = torch.tensor([float(estimate) for estimate in estimates]) - float(hessian.trace())
    # The mean of 400 squared errors of kurtosis below 9 has the relative standard error √(8/400).
    tolerance = 5 * (8 / 400) ** 0.5
    assert float(errors.square().mean()) == pytest.approx(variance / 2, rel=tolerance)
    reported = torch.tensor([estimate.standard_error for estimate in estimates])
    assert float(reported.square().mean()) == pytest.approx(variance / 2, rel=tolerance)


@pytest.mark.parametrize("which", ["algebraic", "magnitude"])
@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_top_eigenvalues_are_those_of_the_dense_hessian(case, which, device):
    model, data, hessian = hessian_of(case, device)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    key = eigenvalues if which == "algebraic" else eigenvalues.abs()
    expected = eigenvalues[key.argsort(descending=True)[:3]].cpu()
    result = hessian_top_eigenvalues(model, data, 3, which, tolerance=1e-8)
    assert result.converged
    torch.testing.assert_close(result.eigenvalues, expected, rtol=1e-7, atol=0.0)
    residual = hessian @ result.vectors.T - result.vectors.T * result.eigenvalues.to(device)
    largest = float(eigenvalues.abs().max())
    assert bool((residual.norm(dim=0) <= 1.1e-8 * largest).all())


def test_the_largest_magnitude_can_belong_to_a_negative_eigenvalue(device):
    """f = w² − 3 v² for one sample: what power iteration finds is not the largest eigenvalue."""

    class Saddle(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5, 0.25], dtype=torch.float64, device=device))

        def forward(self, inputs):
            weights = torch.tensor([1.0, -3.0], dtype=torch.float64, device=inputs.device)
            return (inputs * (self.w.square() * weights).sum()).reshape(-1, 1)

    inputs = torch.ones(1, 1, dtype=torch.float64, device=device)
    model = Saddle()
    # Residual 1, so that H is J Jᵀ + diag(2, −6).
    targets = model(inputs).detach() - 1.0
    data = (inputs, targets)
    top = {
        which: float(hessian_top_eigenvalues(model, data, 1, which, "half_squared_error"))
        for which in ("algebraic", "magnitude")
    }
    # J = (1, −1.5): H = [[3, −1.5], [−1.5, −3.75]]
    expected = torch.linalg.eigvalsh(torch.tensor([[3.0, -1.5], [-1.5, -3.75]]))
    assert top["algebraic"] == pytest.approx(float(expected[1]), rel=1e-6)
    assert top["magnitude"] == pytest.approx(float(expected[0]), rel=1e-6)
    assert top["magnitude"] < 0 < top["algebraic"]


def test_a_cap_that_is_met_is_reported(device):
    model, data, _ = hessian_of(NAMED["residual"], device)
    result = hessian_top_eigenvalues(model, data, 2, tolerance=1e-12, max_products=4)
    assert not result.converged


def test_the_density_integrates_to_one_and_has_the_mean_of_the_spectrum(device):
    model, data, hessian = hessian_of(NAMED["relu MLP"], device)
    result = spectral_density(model, data, probes=20, steps=60)
    grid, value = result.density.grid, result.density.value
    step = float(grid[1] - grid[0])
    # The grid reaches four standard deviations beyond the last Ritz value, so that less than
    # 1e-4 of the mass is outside.
    assert float(value.sum()) * step == pytest.approx(1.0, abs=1e-3)
    mean = float((grid * value).sum()) * step
    exact = float(hessian.trace()) / len(hessian)
    trace = result.quadrature.trace(lambda t: t)
    assert mean == pytest.approx(trace.value / len(hessian), rel=1e-2)
    assert abs(mean - exact) < 4 * trace.standard_error / len(hessian) + 1e-2 * abs(exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method='guess' is unknown"),
        ({"method": "split", "parameters": ["0.weight"]}, "leave parameters=None"),
        ({"method": "xtrace", "products": 0}, "products"),
    ],
)
def test_bad_arguments_get_one_sentence(options, message, device):
    model, data, _ = hessian_of(NAMED["relu MLP"], device)
    with pytest.raises(ValueError, match=message):
        hessian_trace(model, data, **options)


def test_every_tensor_names_its_device(explicit_devices, device):
    model, inputs, targets = NAMED["tanh before the second layer"].make(device=device)
    with explicit_devices():
        hessian_trace(model, (inputs, targets))
        hessian_trace(model, (inputs, targets), method="split", products=8)
        hessian_top_eigenvalues(model, (inputs, targets))
        spectral_density(model, (inputs, targets), steps=5)
