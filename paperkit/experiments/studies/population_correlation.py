"""What chance and grouping do to the rank correlations of `population`.

Two analyses of its records, both at the networks of the first seed; the first is of those that
have learned something:

* ``selection``, in each cell: the largest τ over layers and orders, which the Rényi paper's figures
  show, against what permuted gaps give; beside it τ within each optimizer and within each pair of
  learning rate and batch size, which tells whether a correlation is one of groups only;
* ``pairs``, for each cell, optimizer and weight decay: whether the three pairs of learning rate and
  batch size end at training accuracies within one point of each other.
"""

from __future__ import annotations

from typing import Any

from paperkit.experiments import Record, RunContext, Study
from paperkit.experiments.studies import population
from paperkit.statistics import kendall_tau, permutation_test

PERMUTATIONS = {"smoke": 200, "laptop": 10_000, "paper": 10_000}
FIXED = "0_5"
"""The order that was chosen beforehand, to which the choice afterwards is compared."""

ALIKE = 0.01
"""Training accuracies within this distance count as alike."""

GROUPS = ("optimizer", "batch_size")
BASELINES = (
    "hessian_trace",
    "fisher_rao_norm",
    "pac_bayes_flatness",
    "parameter_norm",
    "sam_sharpness",
    "asam_sharpness",
    "information_geometric_sharpness",
    "rangamani_sharpness",
    "maximum_local_sensitivity",
    "log_volume",
    "gauss_newton_trace",
    "mean_loss",
)


def grid(profile: str) -> list[dict[str, Any]]:
    """List the analyses; at smoke there are too few networks for any."""
    if profile == "smoke":
        return []
    networks = _networks(profile)
    cells = list(dict.fromkeys(c["cell"] for c in networks))
    selection = [
        {
            "analysis": "selection",
            "profile": profile,
            "cell": cell,
            "permutations": PERMUTATIONS[profile],
            "seed": 0,
        }
        for cell in cells
    ]
    settings = dict.fromkeys((c["cell"], c["optimizer"], c["weight_decay"]) for c in networks)
    pairs = [
        {
            "analysis": "pairs",
            "profile": profile,
            "cell": cell,
            "optimizer": optimizer,
            "weight_decay": decay,
            "setting": f"{cell}, {optimizer}, {decay:g}",
            "seed": 0,
        }
        for cell, optimizer, decay in settings
    ]
    return selection + pairs


def _networks(profile: str) -> list[dict[str, Any]]:
    (n,) = population.SAMPLES[profile]
    return [c for c in population.grid(profile) if c["n"] == n and c["seed"] == 0]


def selection(records: list[Record], permutations: int) -> dict[str, Any]:
    """Return what choosing the layer and the order after the gaps were seen is worth.

    ``critical`` is what the largest τ over all layers and orders exceeds in a twentieth of the
    permutations, ``critical_of_one`` that of a single layer at the order fixed beforehand, and
    ``inflation`` their difference. ``by_layer`` has the same for each layer by itself, where the
    order alone is chosen, and ``inflation_of_order`` the largest of its differences.
    """
    gap = [record.metrics["gap"] for record in records]
    tables = [record.metrics["renyi"] for record in records]
    tried: dict[Any, list[float]] = {
        (order, layer): [table[order][layer] for table in tables]
        for order, layers in tables[0].items()
        for layer in layers
    }
    test = permutation_test(tried, gap, permutations=permutations)
    first = next(layer for order, layer in tried if order == FIXED)
    one = {first: tried[FIXED, first]}
    alone = permutation_test(one, gap, permutations=permutations)
    best: Any = max(test.tau, key=lambda name: test.tau[name])
    by_layer = {}
    for layer in tables[0][FIXED]:
        orders = {order: tried[order, layer] for order in tables[0]}
        chosen = permutation_test(orders, gap, permutations=permutations)
        fixed = permutation_test({FIXED: orders[FIXED]}, gap, permutations=permutations)
        by_layer[layer] = {
            "tau": max(chosen.tau.values()),
            "critical": chosen.critical,
            "inflation": chosen.critical - fixed.critical,
        }
    baselines = {
        name: [_number(record.metrics["measures"][name]) for record in records]
        for name in BASELINES
    }
    measures = {
        "renyi_mean": [record.metrics["renyi_mean"][FIXED] for record in records],
        **baselines,
    }
    within = {
        group: {
            name: kendall_tau(column, gap, [r.configuration[group] for r in records]).value
            for name, column in measures.items()
        }
        for group in GROUPS
    }
    return {
        "inflation": test.critical - alone.critical,
        "by_layer": by_layer,
        "inflation_of_order": max(found["inflation"] for found in by_layer.values()),
        "critical": test.critical,
        "critical_of_one": alone.critical,
        "largest": {"tau": test.tau[best], "order": best[0], "layer": best[1]},
        "p_value_of_largest": test.p_value_of_maximum[best],
        "tau": {name: kendall_tau(column, gap).value for name, column in measures.items()},
        "tau_within": within,
    }


def _number(measured: Any) -> float:
    return float(measured["value"])


def pairs(accuracies: list[float]) -> dict[str, Any]:
    """Return whether training accuracies are alike."""
    return {"comparable": max(accuracies) - min(accuracies) <= ALIKE, "accuracies": accuracies}


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Analyse the records of one cell, or of one setting in it."""
    names = ("cell", "optimizer", "weight_decay")
    chosen = {name: configuration[name] for name in names if name in configuration}
    records = [
        context.record_of(population.STUDY.name, network)
        for network in _networks(configuration["profile"])
        if all(network[name] == value for name, value in chosen.items())
    ]
    if configuration["analysis"] == "pairs":
        return pairs([record.metrics["train_accuracy"] for record in records])
    learned = [record for record in records if record.metrics["learned"]]
    found = selection(learned, configuration["permutations"])
    return {**found, "networks": len(learned), "left_out": len(records) - len(learned)}


STUDY = Study(
    name="population_correlation",
    question="How large does the largest of many rank correlations get by chance, what is left of "
    "a correlation within groups of networks, and do the pairs of learning rate and batch size "
    "converge alike?",
    grid=grid,
    run=run,
    needs=(population.STUDY.name,),
    trained=True,
)
