"""Every claim can fail: with other evidence its verdict is another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from paperkit.experiments.archive import Archive
from paperkit.experiments.records import Record
from paperkit.ledger.claims import Claim, load_claims
from paperkit.ledger.criteria import CRITERIA, REFUTED, REPRODUCED, grouped, select, values_of
from paperkit.ledger.verdict import verdicts

CLAIMS = {claim.id: claim for claim in load_claims()}
DECIDED = {
    verdict.claim.id: verdict
    for verdict in verdicts()
    if verdict.word != "not run" and verdict.records
}
each_claim = pytest.mark.parametrize("name", DECIDED)

# Claims on more than half of all cells are not decided by three; by nine they would be.
TOO_FEW_CELLS = {
    "renyi-order-above-one-for-uniform",
    "renyi-order-matches-small-networks",
    "renyi-orders-robust",
}


def with_metric(record: Record, metric: str, change: Callable[[float], float]) -> Record:
    """Return a record in which each number of a metric is another one."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict) and "value" in value:
            return {**value, "value": change(float(value["value"]))}
        if isinstance(value, dict):
            return {key: changed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [changed(item) for item in value]
        return change(float(value))

    first, *rest = metric.split(".")
    if rest:
        inner = replace(record, metrics=record.metrics[first])
        found = with_metric(inner, ".".join(rest), change).metrics
    else:
        found = changed(record.metrics[first])
    return replace(record, metrics={**record.metrics, first: found})


def _in_step(record: Record, metrics: list[str], against: str, rises: bool) -> Record:
    """Return a record whose metrics rise, or fall, with another one from record to record."""
    value = values_of(record, against)[0]
    for metric in metrics:
        record = with_metric(record, metric, lambda _: value if rises else -value)
    return record


def contradicted(claim: Claim, records: list[Record]) -> list[Record]:
    """Return records that speak against the verdict, by the criterion's own meaning."""
    call = claim.criterion
    first, *others = records
    if call.name in ("identity_holds", "inequality_holds"):
        decided = CRITERIA[call.name].function(records, **call.arguments).word
        if decided == REFUTED:
            return [with_metric(record, call.metric, lambda _: 0.0) for record in records]
        against = 1.0 if call.name == "identity_holds" else -1.0
        return [with_metric(first, call.metric, lambda _: against), *others]
    if call.name == "counterexample_exists":
        return [with_metric(record, call.metric, lambda _: 0.0) for record in records]
    if call.name == "fraction_at_least":
        units = list(grouped(records, call.unit).values())
        held = [
            all(
                value >= call.at_least for record in own for value in values_of(record, call.metric)
            )
            for own in units
        ]
        against = call.at_least + (-1.0 if sum(held) > len(held) / 2 else 1.0)
        return [with_metric(record, call.metric, lambda _: against) for record in records]
    if call.name == "number_matches":
        return [
            with_metric(record, call.metric, lambda value: 10 * value + 1) for record in records
        ]
    if call.name == "rank_correlation":
        held = CRITERIA[call.name].function(records, **call.arguments).word == REPRODUCED
        rises = (call.at_most is None) != held
        return [_in_step(record, call.metrics, call.against, rises) for record in records]
    if call.name == "correlation_exceeds":
        held = CRITERIA[call.name].function(records, **call.arguments).word == REPRODUCED
        led = [_in_step(record, call.larger, call.against, not held) for record in records]
        return [_in_step(record, call.smaller, call.against, held) for record in led]
    if call.name in ("ordering_holds", "difference_within"):
        held = CRITERIA[call.name].function(records, **call.arguments).word == REPRODUCED
        # Far apart on the wrong side, or, for what did not hold, on the right one.
        far = call.name == "ordering_holds" and not held
        apart = 1e3 if far else -1e3 if call.name == "ordering_holds" else 1e3 * held
        sides = ((call.larger, apart), (call.smaller, 0.0))
        if call.name == "ordering_holds" and call.logarithm:  # which takes positive numbers only
            sides = ((call.larger, 1e3 if far else 1e-3), (call.smaller, 1.0))
        return [
            with_metric(record, side.metric or call.metric, lambda _, v=value: v)
            for side, value in sides
            for record in select(records, side.where)
        ]
    if call.name == "trend_holds":
        return [with_metric(record, call.metric, lambda value: -value) for record in records]
    raise AssertionError(f"{call.name} has no contradiction here: add one.")


def from_more_cells(records: list[Record]) -> list[Record]:
    """Return the records of each cell three times, as if they were those of three cells."""
    return [
        replace(record, configuration={**record.configuration, "cell": f"{k}, {cell}"})
        for record in records
        for cell in [record.configuration["cell"]]
        for k in range(3)
    ]


@each_claim
def test_other_evidence_gives_another_verdict(name: str) -> None:
    verdict = DECIDED[name]
    records = list(verdict.records)
    arguments = {**verdict.claim.criterion.arguments}
    if verdict.claim.paper_value is not None:
        arguments["paper_value"] = verdict.claim.paper_value
    decide = CRITERIA[verdict.claim.criterion.name].function
    before = decide(records, **arguments).word
    if name in TOO_FEW_CELLS:
        assert before == "inconclusive"
        many, metric = from_more_cells(records), verdict.claim.criterion.metric
        ends = [[with_metric(r, metric, lambda _, v=v: v) for r in many] for v in (-1e3, 1e3)]
        assert [decide(end, **arguments).word for end in ends] == ["not reproduced", "reproduced"]
    else:
        assert decide(contradicted(verdict.claim, records), **arguments).word != before


@each_claim
def test_evidence_is_measured_and_no_default(name: str) -> None:
    verdict = DECIDED[name]
    call = verdict.claim.criterion
    given = call.arguments
    metrics = given.get("metrics") or given.get("larger")
    if not isinstance(metrics, list):
        sides = [given[side].metric for side in ("larger", "smaller") if side in given]
        metrics = [metric for metric in (given.get("metric"), *sides) if metric is not None]
    values = [v for record in verdict.records for m in metrics for v in values_of(record, m)]
    # A number that is the same in every run was not measured; whole numbers may be.
    assert len(set(values)) > 1 or all(value == int(value) for value in values)


def test_each_claim_that_is_decided_is_tried() -> None:
    archive = Archive()
    published = {path.stem for path in archive.published.folder.glob("*.jsonl")}
    runnable = [
        claim
        for claim in CLAIMS.values()
        if claim.profile == "laptop" and claim.criterion.study in published
    ]
    assert len(DECIDED) > 0.9 * len(runnable) > 0
    for verdict in DECIDED.values():
        chosen = archive.records(verdict.claim.criterion.study, verdict.claim.profile)
        assert len(select(chosen, verdict.claim.criterion.where)) >= len(verdict.records) > 0
