"""Kinds of spectra, matches of order and kind: on spectra and populations that are known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from paperkit import data
from paperkit.estimators import layer_spectra
from paperkit.experiments import Record
from paperkit.experiments.studies import population, population_training
from paperkit.experiments.studies import renyi_layer_spectra as spectra
from paperkit.experiments.studies import renyi_order_selection as orders
from paperkit.ledger.claims import load_claims
from paperkit.ledger.criteria import matches, values_of

E = math.e


def powers(*exponents):
    return torch.tensor([E**-x for x in exponents], dtype=torch.float64)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (powers(0, 0.5, 1, 1.5, 2), "one cluster"),  # gaps all alike
        (torch.ones(6, dtype=torch.float64), "one cluster"),  # no gap at all
        (powers(0, 0.1, 0.2, 3.2, 3.3), "clusters"),  # groups that are 3 apart and 0.1 wide
        (torch.tensor([1, 1, 0.2, 0.2]).double(), "clusters"),  # values that come twice each
        (powers(0, 1, 1.4), "neither"),  # the wider gap is two and a half times the other
        (powers(0, 1.25, 1.65), "clusters"),  # the wider gap is more than three times the other
        (powers(0, 0.8, 1.3), "one cluster"),  # the wider gap is less than twice the other
        (powers(0, 3), "neither"),  # a single gap has no other to be compared with
        (powers(0, 5, 5.1, 5.2), "neither"),  # all but one lie below a hundredth
    ],
)
def test_the_kind_of_a_spectrum_is_that_of_its_gaps_above_a_hundredth(values, kind):
    assert spectra.kind_of(values) == kind


def test_what_lies_below_a_hundredth_of_the_largest_decides_nothing():
    large = powers(0, 0.5, 1, 1.5, 2)
    more = torch.cat([large, powers(6, 6.1, 40)])
    assert spectra.gaps(more) == pytest.approx([0.5] * 4)
    assert spectra.kind_of(more) == spectra.kind_of(large) == "one cluster"


def test_the_shares_of_small_eigenvalues_and_of_the_largest():
    values = torch.tensor([100.0, 50, 0.9, 0.1], dtype=torch.float64)
    # The largest hundredth of four hundred are the first four, and two are at least 1.
    assert spectra.small_share(values, 400) == pytest.approx(398 / 400)
    assert spectra.top_share(values, 400) == 1.0
    assert spectra.top_share(values, 100) == pytest.approx(100 / 151)
    assert spectra.top_share(values, 101) == pytest.approx(150 / 151)  # rounded up


def network(kinds):
    """A linear layer whose Hessian has given eigenvalues, each from one image."""
    model = nn.Sequential(nn.Linear(len(kinds), 1, bias=False))
    inputs = torch.diag(torch.tensor(kinds).sqrt()).double()
    return model.double(), (inputs, torch.zeros(len(kinds), 1).double())


def test_the_metrics_of_a_layer_whose_eigenvalues_are_known():
    model, batch = network([8.0, 4.0, 2.0, 1.0])  # divided by the number of images
    found = spectra.measure(layer_spectra(model, batch, "half_squared_error"))
    assert found["layers"] == ["0"] and found["largest"]["0"] == pytest.approx(2.0)
    assert found["kind"] == {"0": "one cluster"} and found["large_eigenvalues"] == {"0": 4}
    assert found["widest_gap"]["0"] == pytest.approx(math.log(2))
    assert found["layers_of_a_kind_slack"] == spectra.ALLOWED
    assert found["heavy_and_zero_dominant"] == {"0": False}
    assert found["entropy"]["1_5"]["0"] < found["entropy"]["0_5"]["0"] < math.log(4)
    unclear = spectra.measure(layer_spectra(*network([8.0, 4.0]), "half_squared_error"))
    assert unclear["layers_of_a_kind_slack"] == pytest.approx(-0.9)


def test_a_run_trains_a_network_and_measures_it_where_the_population_does(tmp_path):
    configuration = spectra.STUDY.grid("smoke")[0]
    checkpoint = tmp_path / "weights.pt"
    context = SimpleNamespace(device="cpu", checkpoint=checkpoint, progress=False)
    found = spectra.run(configuration, context)
    assert found["layers"] == ["fc1", "fc2", "fc3"] and set(found["eigenvalues"]) == {
        "fc1",
        "fc2",
        "fc3",
    }
    images = data.load("mnist5k", train_size=128)
    model = population_training.load_trained(configuration, checkpoint, images)
    batch = images.train.inputs[:8].double(), images.train.targets[:8]
    sharpness = population.sharpness(model, batch, "mlp")
    for layer, own in sharpness.items():
        assert found["entropy"]["0_5"][layer] == pytest.approx(-own[0.5])


@pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
def test_each_population_has_a_network_by_sgd_whose_spectra_are_known(profile):
    grid = spectra.STUDY.grid(profile)
    assert all(spectra.setting_of(c) in population_training.grid(profile) for c in grid)
    assert len({c["network"] for c in grid}) == len(grid)
    for cell, seed in {(c["cell"], c["seed"]) for c in orders.STUDY.grid(profile)}:
        own = [c for c in grid if (c["cell"], c["seed"]) == (cell, seed)]
        assert [c["optimizer"] for c in own] in (["sgd"], ["sgd", "adam"])
        assert {c["n"] for c in own} <= set(population.SAMPLES[profile])


# --- orders and kinds -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taus", "kind", "share"),
    [
        ({"0_5": 0.6, "1_5": 0.2}, "clusters", 1.0),
        ({"0_5": 0.6, "1_5": 0.2}, "one cluster", 0.0),
        ({"0_5": -0.6, "1_5": -0.2}, "one cluster", 1.0),
        ({"0_1": 0.1, "0_5": 0.4, "1_5": 0.4}, "clusters", 0.5),
        ({"0_1": 0.4, "0_5": 0.4, "1_5": 0.1}, "clusters", 1.0),
    ],
)
def test_a_match_is_a_best_order_on_the_predicted_side(taus, kind, share):
    assert orders.match(taus, kind) == share


def test_kinds_dealt_out_at_random_match_as_often_as_their_numbers_say():
    low, high = {"0_5": 0.6, "1_5": 0.2}, {"0_5": 0.2, "1_5": 0.6}
    taus = {"a": low, "b": high, "c": high, "d": low}
    kinds = dict(zip("abcd", ("clusters", "one cluster", "one cluster", "neither"), strict=True))
    found = orders.matches(taus, kinds)
    assert (found["cases"], found["share_of_matches"]) == (3, 1.0)
    # A third of the layers is low and a third of the cards says so; the others are high.
    assert found["share_by_chance"] == pytest.approx(1 / 9 + 4 / 9)
    same = orders.matches(taus, dict.fromkeys("abcd", "clusters"))
    assert same["share_of_matches"] == same["share_by_chance"] == 0.5


def test_a_kind_is_what_more_than_half_of_the_networks_have():
    assert orders.common_kind(["clusters", "clusters"]) == "clusters"
    assert orders.common_kind(["clusters", "one cluster"]) == "neither"
    assert orders.common_kind(["one cluster", "one cluster", "neither"]) == "one cluster"


def test_robust_orders_reach_nine_tenths_of_the_best_on_their_side():
    mean = {"0_1": 0.5, "0_5": 0.46, "1_5": 0.3, "3": 0.2}
    assert orders.robustness_slack(mean) == pytest.approx(min(0.46 - 0.45, 0.3 - 0.27))
    assert orders.robustness_slack({**mean, "3": 0.4}) == pytest.approx(0.3 - 0.36)
    # Correlations below zero are no robust ones, even where all are alike.
    assert orders.robustness_slack(dict.fromkeys(mean, -0.5)) == pytest.approx(-0.05)


def records(sharpness):
    return [
        Record(
            "population",
            "laptop",
            {},
            {
                "learned": True,
                "gap": float(i),
                "renyi": {
                    order: {layer: sharpness(i, order, layer) for layer in ("a/b", "c")}
                    for order in ("0_5", "1_5")
                },
            },
            {},
        )
        for i in range(8)
    ]


def rising(i, order, layer):
    # Layer a.b rises with the gap at order ½ and falls at 3/2; layer c does the opposite.
    return float(i if (order == "0_5") == (layer == "a/b") else -i)


def test_layers_whose_best_order_is_known():
    kinds = {"a/b": "clusters", "c": "one cluster"}
    found = orders.analyse(records(rising), kinds, "all")
    assert found["share_of_matches"] == 1.0 and found["share_by_chance"] == 0.5
    assert found["best_order"] == {"a/b": 0.5, "c": 1.5}
    assert found["mean_tau"] == {"0_5": 0.0, "1_5": 0.0}
    own = orders.analyse(records(rising), kinds, "clusters")
    assert own["layers"] == ["a/b"] and own["correlation_of_half_less_three_halves"] == 2.0
    turned = orders.analyse(records(rising), {"a/b": "one cluster", "c": "neither"}, "one cluster")
    assert turned["correlation_of_three_halves_less_half"] == -2.0
    assert turned["share_of_matches"] == 0.0
    none = orders.analyse(records(rising), {"a/b": "neither", "c": "neither"}, "clusters")
    assert (none["has_layers"], none["has_cases"]) == (False, False)
    assert orders.analyse(records(rising), {"a/b": "neither"}, "all")["has_cases"] is False


def test_a_run_asks_for_thirty_networks_and_the_one_whose_spectra_are_known():
    asked = []

    def record_of(study, network):
        asked.append((study, network))
        if study == "renyi_layer_spectra":
            metrics = {"layers": ["a.b", "c"], "kind": {"a/b": "clusters", "c": "one cluster"}}
            return SimpleNamespace(metrics={"learned": True, **metrics})
        return records(rising)[len(asked) % 8]

    configuration = next(c for c in orders.STUDY.grid("laptop") if c["population"] == "resnet")
    found = orders.run(configuration, SimpleNamespace(record_of=record_of))
    assert (found["networks"], found["agreement"]) == (30, 1.0)
    assert [study for study, _ in asked].count("renyi_layer_spectra") == 1
    assert all(network["cell"] == "resnet" and network["n"] == 64 for _, network in asked)
    assert found["layers"] == ["a/b"]


def test_the_claims_select_five_populations_and_eight_networks():
    for claim in load_claims():
        if claim.criterion.study == orders.STUDY.name:
            grid = orders.STUDY.grid(claim.profile)
            chosen = [c for c in grid if matches(c, claim.criterion.where)]
            assert len({c["population"] for c in chosen}) == len(chosen) == 5
        if claim.criterion.study == spectra.STUDY.name:
            grid = spectra.STUDY.grid(claim.profile)
            chosen = [c for c in grid if matches(c, claim.criterion.where)]
            assert len({c["network"] for c in chosen}) == len(chosen) == 8


def test_a_layer_by_layer_yes_or_no_is_read_as_numbers():
    record = Record("s", "laptop", {}, {"heavy_and_zero_dominant": {"a": True, "b": False}}, {})
    assert values_of(record, "heavy_and_zero_dominant") == [1.0, 0.0]
