"""Algorithm 1 on known spectra: that the reduced probes have its law, and each error its size."""

import math

import numpy as np
import pytest
import torch

from paperkit.estimators import renyi_entropy
from paperkit.experiments import run_study
from paperkit.experiments.grids import grid_of
from paperkit.experiments.studies import renyi_quadrature_error as study
from paperkit.ledger.claims import load_claims
from paperkit.ledger.criteria import matches, values_of
from paperkit.linalg import Spectrum, lanczos


def spectrum_of(eigenvalues, dimension):
    values = torch.tensor(eigenvalues, dtype=torch.float64, device="cpu")
    return Spectrum(values, dimension, tolerance=0.0)


@pytest.mark.parametrize("zeros", [0, 1, 40])
def test_lanczos_on_few_components_is_lanczos_on_all_weights(zeros):
    eigenvalues = [1.0 / k**2 for k in range(1, 21)]
    spectrum = spectrum_of(eigenvalues, 20 + zeros)
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(
        torch.randn(20 + zeros, 20 + zeros, generator=generator, dtype=torch.float64)
    ).Q
    values = torch.cat([spectrum.eigenvalues, torch.zeros(zeros, dtype=torch.float64)])
    matrix = (rotation * values) @ rotation.T
    start = torch.randn(1, 20 + zeros, generator=generator, dtype=torch.float64)
    components = start @ rotation
    few = components[:, :20]
    if zeros:
        few = torch.cat([few, components[:, 20:].norm(dim=1, keepdim=True)], dim=1)
    on_all, on_few = lanczos(matrix, start, 8), lanczos(study.diagonal_operator(spectrum), few, 8)
    assert torch.allclose(on_all.diagonal, on_few.diagonal, rtol=1e-9)
    assert torch.allclose(on_all.off_diagonal, on_few.off_diagonal, rtol=1e-9)


def test_the_components_among_the_zeros_have_the_share_that_they_have_in_all_dimensions():
    probes = study.unit_probes(spectrum_of([1.0, 1.0], 10), 20_000, np.random.default_rng(0))
    assert probes.shape == (20_000, 3)
    assert torch.allclose(probes.norm(dim=1), torch.ones(20_000, dtype=torch.float64))
    # Squared components have the means 1/10, 1/10 and 8/10, with errors of about 1e-3.
    shares = probes.square().mean(dim=0)
    assert torch.allclose(shares, shares.new_tensor([0.1, 0.1, 0.8]), atol=0.01)


def test_equal_eigenvalues_leave_the_offset_of_the_sums_and_nothing_else():
    # Every vector is an eigenvector: one step is exact, the two probes agree, and T has one entry.
    spectrum = spectrum_of([2.0] * 12, 12)
    draws = study.draw(spectrum, repeats=2, probes=3, steps=2, seed=[0])
    found = study.measure(spectrum, draws, alpha=0.5)
    assert found["entropy"] == pytest.approx(math.log(12))
    for name in ("error", "spread", "spread_of_two", "quadrature_error", "index_error"):
        assert found[name] == pytest.approx(0.0, abs=1e-9)
    assert found["printed_error"] == pytest.approx(math.log(3 / 12))
    assert found["accuracy_slack"] == pytest.approx(study.ALLOWED)


@pytest.fixture(scope="module")
def steep():
    spectrum = spectrum_of([k**-1.5 for k in range(1, 101)], 2000)
    return spectrum, study.draw(spectrum, repeats=20, probes=50, steps=6, seed=[1, 2])


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 1.5, 2.0, 2.5, 3.0])
def test_the_quadrature_is_on_the_side_of_the_theorem(steep, alpha):
    found = study.measure(*steep, alpha)
    assert found["side_slack"] >= -1e-8
    # Probe noise apart, the mean error is that of the quadrature.
    assert found["error"] == pytest.approx(found["quadrature_error"], abs=found["spread"])


def test_small_orders_see_the_dimension_and_a_node_at_zero_helps(steep):
    spectrum, draws = steep
    small = study.measure(spectrum, draws, 0.1)
    assert study.nearer_to_dimension(small["entropy"], small["error"], 2000) > 0
    half = study.measure(spectrum, draws, 0.5)
    assert study.nearer_to_dimension(half["entropy"], 0.0, 2000) < 0
    assert abs(half["radau_error"]) < half["quadrature_error"]
    assert half["quadrature_slack"] < 0


def test_a_second_probe_multiplies_the_noise_near_order_one(steep):
    found = study.measure(*steep, 0.99)
    assert found["spread_of_two"] > 10 * found["spread"]
    assert found["spread_of_one_probe_less_two"] < 0


def test_with_as_many_steps_as_eigenvalues_only_noise_is_left():
    spectrum = spectrum_of([4.0, 2.0, 1.0], 30)
    draws = study.draw(spectrum, repeats=5, probes=2000, steps=4, seed=[3])
    found = study.measure(spectrum, draws, 0.5)
    assert abs(found["quadrature_error"]) < 1e-6
    assert abs(found["error"]) < 0.05
    assert found["entropy"] == renyi_entropy([4.0, 2.0, 1.0], 0.5)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(
        "renyi_quadrature_error", "smoke", tmp_path_factory.mktemp("store"), progress=False
    )


def test_every_claim_names_a_metric_that_is_recorded_and_an_order_of_the_grid(smoke):
    claims = [c for c in load_claims() if c.criterion.study == "renyi_quadrature_error"]
    assert len(claims) > 5
    grid = grid_of("renyi_quadrature_error")("laptop")
    for claim in claims:
        assert values_of(smoke[0], claim.criterion.arguments["metric"])
        assert any(matches(c, claim.criterion.where) for c in grid)


def test_a_seed_stands_for_one_network():
    grid = grid_of("renyi_quadrature_error")("laptop")
    networks = {(c["seed"], c["model"]) for c in grid}
    assert len(networks) == len({c["seed"] for c in grid}) == 9
