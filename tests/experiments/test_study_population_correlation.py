"""Selection among correlations, groups, and pairs of learning rate and batch size, by hand."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from paperkit.experiments import Record
from paperkit.experiments.studies import population_correlation as study
from paperkit.ledger.claims import load_claims
from paperkit.ledger.criteria import matches

ORDERS = ("0_5", "1_5", "3")


def networks(sharpness, gap):
    """Records of 30 networks with one sharpness for each order of two layers."""
    return [
        Record(
            "population",
            "laptop",
            {"optimizer": "sgd" if i < 15 else "adam", "batch_size": 16 * (i % 3), "seed": 0},
            {
                "gap": gap(i),
                "renyi": {
                    o: {"one": sharpness(i, o, 0), "two": sharpness(i, o, 1)} for o in ORDERS
                },
                "renyi_mean": dict.fromkeys(ORDERS, sharpness(i, "0_5", 0)),
                "measures": {name: {"value": float(i)} for name in study.BASELINES},
            },
            {},
        )
        for i in range(30)
    ]


def draws(seed):
    return torch.randn(30, generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_maximum_over_one_measure_in_many_guises_is_not_inflated():
    column = draws(0)
    found = study.selection(networks(lambda i, o, layer: column[i], float), 2000)
    assert found["inflation"] == found["inflation_of_order"] == 0.0


def test_a_maximum_over_independent_measures_is_inflated():
    columns = {(o, layer): draws(7 * k + layer) for k, o in enumerate(ORDERS) for layer in (0, 1)}
    found = study.selection(networks(lambda i, o, layer: columns[o, layer][i], float), 2000)
    # A τ of 30 networks has a standard deviation of 0.129: 95 % points of 0.21, and 0.31 for six.
    assert 0.06 < found["inflation"] < 0.16
    # The three orders of one layer reach less: 0.27, the cube root of 95 % for each.
    assert 0.02 < found["inflation_of_order"] < found["inflation"]
    assert {one["tau"] for one in found["by_layer"].values()} == {
        max(study.kendall_tau(columns[o, layer], list(range(30))).value for o in ORDERS)
        for layer in (0, 1)
    }
    assert found["largest"]["tau"] == max(
        study.kendall_tau(column, list(range(30))).value for column in columns.values()
    )


def test_a_correlation_of_groups_vanishes_within_them():
    # Within an optimizer the sharpness falls with the gap, and between the two it rises.
    def sharpness(i, o, layer):
        return (100 if i >= 15 else 0) - float(i)

    found = study.selection(networks(sharpness, float), 200)
    assert found["tau_within"]["optimizer"]["renyi_mean"] == -1.0
    assert found["tau"]["renyi_mean"] == pytest.approx((225 - 210) / 435)
    assert found["tau"]["hessian_trace"] == 1.0


def test_networks_that_have_not_learned_are_left_out_and_counted():
    column = draws(0)
    records = networks(lambda i, o, layer: column[i], float)
    for i, record in enumerate(records):
        record.metrics["learned"] = i >= 5
    left_out = [dataclasses.replace(r, metrics={"learned": False}) for r in records[:5]]
    tables = iter([*left_out, *records[5:]])
    context = SimpleNamespace(record_of=lambda study, network: next(tables))
    configuration = study.grid("laptop")[0] | {"permutations": 200}
    found = study.run(configuration, context)
    assert (found["networks"], found["left_out"]) == (25, 5)
    assert found["tau"] == study.selection(records[5:], 200)["tau"]


@pytest.mark.parametrize(
    ("accuracies", "alike"), [([0.991, 1.0, 0.995], True), ([0.98, 1.0], False), ([1.0, 1.0], True)]
)
def test_accuracies_are_alike_within_one_point(accuracies, alike):
    assert study.pairs(accuracies)["comparable"] is alike


def test_the_claims_select_one_analysis_each():
    grid = study.grid("laptop")
    assert len(grid) == 4 + 4 * 2 * 5 and study.grid("smoke") == []
    claims = {c.id: c for c in load_claims() if c.criterion.study == study.STUDY.name}
    selected = {
        name: [c for c in grid if matches(c, claim.criterion.where)]
        for name, claim in claims.items()
    }
    assert len(selected["renyi-selection-of-order"]) == 4
    assert len({c["setting"] for c in selected["renyi-linear-scaling"]}) == 40
