"""Which order correlates best with the gap, and whether the kind of a layer's spectrum tells it.

A population is thirty networks of one cell and one seed, from the records of `population`; those
that have learned nothing are left out. A layer's kind in it is the one that more than half of the
population's networks in `renyi_layer_spectra` have, and *neither* if there is none.

A *case* is a layer of one of the two kinds in a population. The Rényi paper's Section 4.1 predicts
an order below 1 for a layer with clusters, and above 1 for one with a single cluster. A case is a
*match* if the order with the largest τ of sharpness and gap lies on that side of 1. The orders are
those of `population`, which are in the two ranges that the paper uses; where orders of both sides
reach the largest τ, the case is half a match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from paperkit.experiments import Record, RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.experiments.studies import population
from paperkit.experiments.studies import renyi_layer_spectra as spectra
from paperkit.statistics import kendall_tau

ALL = "all"
"""Every layer, whatever its kind."""

HALF, THREE_HALVES = "0_5", "1_5"
"""The orders that the paper recommends below and above 1."""

ROBUST = 0.9
"""Part of the largest mean correlation on its side of 1 that a recommended order has to reach."""

Kinds = Mapping[str, str]
ByOrder = Mapping[str, float]


def number(order: str) -> float:
    """Return the order that a record writes as ``0_5``."""
    return float(order.replace("_", "."))


def common_kind(kinds: Sequence[str]) -> str:
    """Return the kind that more than half of the networks have, else that it is neither."""
    kind, count = Counter(kinds).most_common(1)[0]
    return kind if 2 * count > len(kinds) else spectra.NEITHER


def match(taus: ByOrder, kind: str) -> float:
    """Return 1 if the best order is on the side of 1 that a kind predicts, ½ if on both, else 0."""
    best = max(taus.values())
    sides = {number(order) < 1 for order, tau in taus.items() if tau == best}
    return fmean(below == (kind == spectra.CLUSTERS) for below in sides)


def matches(taus: Mapping[str, ByOrder], kinds: Kinds) -> dict[str, Any]:
    """Return the share of matches among the cases, and that of kinds dealt out at random.

    ``share_by_chance`` is the mean over all ways to deal the cases' kinds to the cases.

    Parameters
    ----------
    taus : mapping
        By layer and by order.
    kinds : mapping
        By layer.
    """
    cases = [layer for layer in taus if kinds[layer] != spectra.NEITHER]
    if not cases:
        return {"has_cases": False, "cases": 0}
    return {
        "has_cases": True,
        "cases": len(cases),
        "matches": {layer: match(taus[layer], kinds[layer]) for layer in cases},
        "share_of_matches": fmean(match(taus[layer], kinds[layer]) for layer in cases),
        "share_by_chance": fmean(match(taus[a], kinds[b]) for a in cases for b in cases),
    }


def robustness_slack(mean: ByOrder) -> float:
    """Return by how much the recommended orders exceed what a robust order has to reach.

    Parameters
    ----------
    mean : mapping
        Correlation, averaged over layers, by order.
    """
    below = [tau for order, tau in mean.items() if number(order) < 1]
    above = [tau for order, tau in mean.items() if number(order) > 1]
    return min(mean[HALF] - ROBUST * max(below), mean[THREE_HALVES] - ROBUST * max(above))


def analyse(records: Sequence[Record], kinds: Kinds, spectral_kind: str) -> dict[str, Any]:
    """Return what the layers of one kind, or all layers, say of the orders.

    Parameters
    ----------
    records : sequence of Record
        Networks of `population` that have learned something.
    kinds : mapping
        By layer.
    spectral_kind : str
        Name of a kind, or :data:`ALL`.
    """
    layers = [layer for layer, kind in kinds.items() if spectral_kind in (ALL, kind)]
    if not layers or len(records) < 2:
        return {"has_layers": False, "has_cases": False, "layers": []}
    gap = [record.metrics["gap"] for record in records]
    tables = [record.metrics["renyi"] for record in records]
    taus = {
        layer: {
            order: kendall_tau([table[order][layer] for table in tables], gap).value
            for order in tables[0]
        }
        for layer in layers
    }
    mean = {order: fmean(own[order] for own in taus.values()) for order in tables[0]}
    return {
        "has_layers": True,
        "layers": layers,
        "kind": {layer: kinds[layer] for layer in layers},
        "tau": taus,
        "best_order": {
            layer: number(max(own, key=lambda o: own[o])) for layer, own in taus.items()
        },
        "mean_tau": mean,
        "correlation_of_half_less_three_halves": mean[HALF] - mean[THREE_HALVES],
        "correlation_of_three_halves_less_half": mean[THREE_HALVES] - mean[HALF],
        "robustness_slack": robustness_slack(mean),
        **matches(taus, kinds),
    }


def kinds_of(records: Sequence[Record]) -> tuple[dict[str, str], float]:
    """Return each layer's kind in a population, and the part of layers whose kind all share.

    Parameters
    ----------
    records : sequence of Record
        Networks of `renyi_layer_spectra` that have learned something.
    """
    by_layer = {
        spectra.key(layer): [record.metrics["kind"][spectra.key(layer)] for record in records]
        for layer in (records[0].metrics["layers"] if records else [])
    }
    kinds = {layer: common_kind(own) for layer, own in by_layer.items()}
    alike = [len(set(own)) == 1 for own in by_layer.values()]
    return kinds, fmean(alike) if alike else 0.0


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Analyse the layers of one kind in one population."""
    profile = configuration["profile"]
    names = ("cell", "seed")

    def records_of(study: Study) -> list[Record]:
        (n, *_) = population.SAMPLES[profile]
        networks = [c for c in study.grid(profile) if c["n"] == n]
        chosen = [c for c in networks if all(c[name] == configuration[name] for name in names)]
        records = [context.record_of(study.name, network) for network in chosen]
        return [record for record in records if record.metrics["learned"]]

    kinds, agreement = kinds_of(records_of(spectra.STUDY))
    records = records_of(population.STUDY)
    found = analyse(records, kinds, configuration["spectral_kind"])
    return {**found, "networks": len(records), "agreement": agreement}


STUDY = Study(
    name="renyi_order_selection",
    question="Which order correlates best with the generalization gap, and does the kind of a "
    "layer's spectrum predict it?",
    grid=grid_of("renyi_order_selection"),
    run=run,
    needs=(population.STUDY.name, spectra.STUDY.name),
    trained=True,
)
