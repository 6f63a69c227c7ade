"""The broadened spectral density against the exact one."""

from __future__ import annotations

import math

import pytest
import torch
from known_spectra import INDEFINITE, Counted, D, power_law, rotated
from scipy.stats import wasserstein_distance

from paperkit.linalg.density import spectral_density
from paperkit.linalg.quadrature import SpectralQuadrature, stochastic_lanczos_quadrature
from paperkit.linalg.rules import Rule

EIGENVALUES = INDEFINITE["mostly positive"]
GRID = torch.linspace(-1, 2, 301, dtype=torch.float64)


def quadrature(device: torch.device | str = "cpu", **arguments) -> SpectralQuadrature:
    operator = Counted(rotated(EIGENVALUES).to(device))
    return stochastic_lanczos_quadrature(operator, **arguments)


def test_the_density_lies_within_four_standard_errors_of_the_exact_one() -> None:
    density = spectral_density(quadrature(steps=D, probes=200), GRID, 0.05)
    distance = (GRID.unsqueeze(1) - EIGENVALUES) / density.width
    exact = (-0.5 * distance.square()).exp().sum(1) / (D * 0.05 * math.sqrt(2 * math.pi))
    outside = (density.value - exact).abs() > 4 * density.standard_error + 1e-9
    assert not bool(outside.any())


def test_the_averaged_rule_is_nearer_to_the_spectrum_than_gauss_at_the_same_products() -> None:
    found = quadrature(steps=6, probes=40)
    exact = torch.full((D,), 1 / D, dtype=torch.float64)

    def distance(rule: Rule) -> float:
        weights = rule.weights.flatten() / rule.weights.sum()
        return wasserstein_distance(rule.nodes.flatten(), EIGENVALUES, weights, exact)

    assert distance(found.averaged) < 0.8 * distance(found.gauss)


def test_the_density_integrates_to_one_for_every_number_of_steps() -> None:
    for steps in (1, 5):
        density = spectral_density(quadrature(steps=steps, probes=20), GRID, 0.05)
        # The grid ends eight widths beyond the spectrum; the trapezoidal rule is then exact.
        assert abs(float(torch.trapezoid(density.value, GRID)) - 1) < 1e-12


@pytest.mark.parametrize(
    ("grid", "width", "message"),
    [
        (GRID, 0.0, "width=0.0"),
        (GRID, math.nan, "width=nan"),
        (GRID[:0], 0.1, "grid=<Tensor"),
        (GRID.reshape(1, -1), 0.1, "grid=<Tensor"),
        (GRID * math.inf, 0.1, "grid=.*infinite entries"),
    ],
)
def test_bad_input_is_refused(grid, width, message) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_density(quadrature(steps=2, probes=2), grid, width)


def test_the_density_names_its_devices(device: torch.device, explicit_devices) -> None:
    assert len(power_law()) == D
    operator = rotated(EIGENVALUES).to(device)
    with explicit_devices():
        found = stochastic_lanczos_quadrature(operator)
        density = spectral_density(found, GRID, 0.1)
    assert density.value.shape == GRID.shape
