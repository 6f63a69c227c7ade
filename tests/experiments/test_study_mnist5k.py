"""The studies of chapter 1: what they record, and that it can be measured again."""

import math
from pathlib import Path

import pytest
import torch

from paperkit.estimators import LayerSpectrum
from paperkit.experiments import records_of, run_study
from paperkit.experiments.studies import mnist5k_spectra as spectra_study
from paperkit.experiments.studies import mnist5k_training as training
from paperkit.ledger.claims import load_claims
from paperkit.ledger.criteria import values_of

CLAIMS = Path(__file__).parents[2] / "claims"


def spectrum(eigenvalues, dimension, n=10, num_outputs=3):
    return LayerSpectrum(
        layer="fc",
        eigenvalues=torch.tensor(eigenvalues, dtype=torch.float64, device="cpu"),
        dimension=dimension,
        n=n,
        num_outputs=num_outputs,
        method="gram",
        obstacle=None,
        tolerance=0.0,
        loss="cross_entropy",
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A store with one smoke run of the spectra, and of the training that they need."""
    store = tmp_path_factory.mktemp("store")
    return store, run_study("mnist5k_spectra", "smoke", store, progress=False)


def test_the_spectra_bring_the_training_that_they_need(smoke):
    store, records = smoke
    assert [r.configuration["n"] for r in records] == [4, 8]
    (trained,) = records_of("mnist5k_training", "smoke", store)
    assert 0 < trained.metrics["test_accuracy"] <= 1
    assert all(trained.key in record.provenance["inputs"] for record in records)


def test_the_inequalities_of_the_chapter_hold_in_every_record(smoke):
    for record in smoke[1]:
        assert record.metrics["exact_blocks"]
        assert record.metrics["order_slack"] > 0
        assert record.metrics["cap_slack"] > 0
        assert record.metrics["halves_slack"] > -1e-10


def test_the_kept_network_measured_again_gives_the_recorded_entropies(smoke):
    store, records = smoke
    setting, path = spectra_study.kept_checkpoint("smoke", store)
    images = training.load_images(setting, dtype=torch.float64)
    network = training.load_trained(setting, path, images)
    n = records[0].configuration["n"]
    again = spectra_study.entropies(spectra_study.spectra_on(network, images, slice(n)))
    for order, by_layer in records[0].metrics["entropy"].items():
        assert again[order] == pytest.approx(by_layer, rel=1e-6)


def test_every_claim_of_the_chapter_names_a_metric_that_is_recorded(smoke):
    claims = [claim for claim in load_claims(CLAIMS) if claim.chapter == "01_five_minutes"]
    assert claims
    for claim in claims:
        assert claim.criterion.study == "mnist5k_spectra"
        assert values_of(smoke[1][0], claim.criterion.arguments["metric"])


def test_without_a_kept_network_one_sentence_names_the_command(root):
    with pytest.raises(FileNotFoundError, match="paperkit study run mnist5k_training"):
        spectra_study.kept_checkpoint("laptop", root / "store")


def test_the_live_seed_of_the_chapter_is_none_of_the_recorded_ones():
    seeds = [configuration["seed"] for configuration in training.STUDY.grid("laptop")]
    assert len(seeds) == 5 and 0 not in seeds


def test_every_trained_network_is_measured_at_every_n():
    trained = training.STUDY.grid("laptop")
    measured = spectra_study.STUDY.grid("laptop")
    assert len(measured) == len(trained) * 3
    assert all(spectra_study.setting_of(configuration) in trained for configuration in measured)


def test_the_eigenvalues_are_kept_for_one_run_of_the_grid():
    kept = [
        c for c in spectra_study.STUDY.grid("laptop") if spectra_study.KEPT.items() <= c.items()
    ]
    assert len(kept) == 1


def test_small_eigenvalues_are_counted_with_the_zeros_and_without_the_forced_ones():
    # The layer has 2 large eigenvalues and 3 small ones; at most 20 of 50 can differ from zero.
    layer = spectrum([1.0, 0.01, 0.009, 1e-3, 1e-9], dimension=50)
    metrics = spectra_study.measure({"fc": layer})
    assert metrics["small_fraction"]["fc"] == 48 / 50
    assert metrics["small_fraction_of_cap"]["fc"] == 18 / 20


def test_halves_in_different_directions_leave_a_slack_of_log_two():
    half = spectrum([1.0, 1.0, 1.0], dimension=50)
    whole = spectrum([0.5] * 6, dimension=50)
    slack = spectra_study.halves_slack({"fc": whole}, [{"fc": half}, {"fc": half}])
    assert slack == pytest.approx(math.log(2), rel=1e-12)


def test_kept_eigenvalues_fill_the_rank_bound_with_zeros():
    layer = spectrum([1 / 3, 2e-10 / 3], dimension=5)
    assert spectra_study.kept_eigenvalues(layer) == [0.3333333, 6.666667e-11, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("images", "expected"), [(100, 100), (10_000, 1437)])
def test_a_setting_limits_the_training_images_to_those_there_are(images, expected):
    loaded = training.load_images({"dataset": "digits", "images": images})
    assert len(loaded.train) == expected
