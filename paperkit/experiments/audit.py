"""Audits: run a random sample of a study's published records again, and renew stale ones.

A record is stale once the code behind it has changed. If a sample, run by the new code, agrees
with what was recorded, the published records are renewed: they get the new fingerprint, and say
that they were renewed, when, from what and by which sample. The sample is as large as it takes to
meet a bad record where a fifth of them are bad, with probability 0.9. A run that disagrees is
noted in its record, and belongs to every later sample until it agrees or is published anew, so
that no other day's draw can pass it by. On another processor than that of the records the sample
can be run by both codes, and what the new one finds be compared with what the old one finds there.
Ours, because workflow tools run whatever is out of date; none lets a sample vouch for the rest.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, quantiles, stdev
from typing import Any, TypeGuard

import torch

from paperkit import atomic
from paperkit.experiments import provenance
from paperkit.experiments.archive import Archive, digest_of
from paperkit.experiments.earlier_code import (
    Given,
    NotingSession,
    audits_folder,
    commit_behind,
    metrics_by_earlier_code,
)
from paperkit.experiments.records import Record, from_json
from paperkit.experiments.session import Session
from paperkit.experiments.study import Study, require_profile, study_named
from paperkit.statistics.intervals import (
    PREDICTION,
    prediction_interval,
    sample_size,
    two_sided_interval,
)

BAD, POWER = 0.2, 0.9
"""Share of bad records that a sample is to meet, and the least probability that it does."""

SEEDS = 3
"""Least number of recorded seeds whose spread can judge another value of a trained run."""

TOGETHER = 5
"""Least number of runs whose changes are judged together where there are fewer seeds."""

MARGIN = 0.1
"""Largest mean change that counts as none, in deviations of the recorded runs of the study, where
one that explodes counts for no more than another."""

_DISAGREED = "disagreed"


@dataclass(frozen=True)
class Comparison:
    """One metric of one run: what was recorded, what the audit found, and what was allowed.

    ``agrees`` is None where nothing can be said: the run was trained, its value is another one, and
    there are too few recorded seeds, and too few runs in the sample, to tell how much that means.
    """

    key: str
    metric: str
    recorded: Any
    audited: Any
    allowed: str
    agrees: bool | None


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit.

    Attributes
    ----------
    study : str
    seed : str
        Seed of the sample.
    sample : tuple of str
        Keys of the runs that were run again.
    comparisons : tuple of Comparison
    stale : int
        How many records were stale before.
    renewed : int
        How many of them were renewed.
    """

    study: str
    seed: str
    sample: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    stale: int
    renewed: int

    @property
    def agrees(self) -> bool:
        """Whether every metric of the sample agreed; one that cannot be judged did not."""
        return all(comparison.agrees for comparison in self.comparisons)

    @property
    def undecided(self) -> bool:
        """Whether nothing disagreed, and something could not be judged."""
        found = {comparison.agrees for comparison in self.comparisons}
        return None in found and False not in found

    @property
    def passed(self) -> bool:
        """Whether the sample agreed and no record is left stale."""
        return self.agrees and self.renewed == self.stale


def audit(
    study: Study | str,
    sample: int | None = None,
    seed: str | None = None,
    *,
    runs: Sequence[str] = (),
    both_codes: bool = False,
    profile: str = "laptop",
    store: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Audit:
    """Run a random sample of a study's published records again and compare.

    A deterministic study's metrics must agree within its ``tolerance``; those of a trained one
    must lie in the 99 % prediction interval of the recorded seeds of the same configuration. Of a
    configuration with fewer than three seeds no single value can be judged, because a trained
    network is another one on another processor; then the mean change from what is recorded to what
    is found is judged, over five runs of the sample or more. Its 99 % interval must hold 0 and be
    within a tenth of the deviation of the study's recorded runs, or of what their middle half says
    of it, if that is less; a wider one decides nothing.
    The stale records of the profile are renewed if the sample agrees and the code is committed.

    Parameters
    ----------
    study : Study or str
    sample : int, optional
        How many records, from the stale ones if there are any; default as many as meet a bad one
        with probability 0.9 where a fifth are bad. Those that disagreed before come besides.
    seed : str, optional
        Draws the sample; by default the date in UTC.
    runs : sequence of str
        Keys of the records to run again, or beginnings of them, in place of a sample. No
        stale record is then renewed, because what was chosen says nothing of the others.
    both_codes : bool
        Whether the code behind the records, from git, runs the sample here too, from the same
        records and checkpoints of other studies, and what it finds takes the place of what is
        recorded. Then all metrics must agree within the study's tolerance, of trained runs too.
        Both codes' runs are kept in the working store until the sample is judged, so that an audit
        that is cut off goes on.
    profile : {"laptop", "paper"}
    store : path, optional
        The working store, which serves the checkpoints that the sample needs.
    device : str or torch.device
    progress : bool

    Returns
    -------
    Audit

    Raises
    ------
    ValueError
        If the study has no published record of the profile, or none of a given key; with
        ``both_codes``, as :func:`metrics_by_earlier_code`.
    """
    study = study_named(study) if isinstance(study, str) else study
    require_profile(profile)
    if sample is not None and sample < 1:
        raise ValueError(f"sample is {sample}; give at least 1.")
    archive = Archive(store)
    audited = [r for r in archive.published.records(study.name) if r.profile == profile]
    if not audited:
        raise ValueError(f"study {study.name!r} has no published {profile} record to audit.")
    stale = [record for record in audited if archive.is_stale(study, record)]
    seed = seed or provenance.now()[:10]
    pool = stale or audited
    drawn = _named(audited, runs) if runs else _drawn(pool, sample, seed)
    inputs = Session(archive, profile, torch.device(device), progress)
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory() as fresh:
        kept = audits_folder(archive.working.folder) / archive.code(study)
        shelf = Archive(kept if both_codes else fresh)
        session = Session(shelf, profile, torch.device(device), progress, inputs=inputs)
        again, given = zip(*(_again(session, inputs, study, one) for one in drawn), strict=True)
    expected, compared = drawn, study
    if both_codes:
        if progress:
            print("The code behind the records runs the sample, too.", file=sys.stderr)
        store = archive.working.folder
        earlier = metrics_by_earlier_code(drawn, given, store, str(device))
        expected = [replace(r, metrics=m) for r, m in zip(drawn, earlier, strict=True)]
        # Both ran on one machine, where a trained run is the same to its last digits.
        compared = replace(study, trained=False)
    for record, found in zip(expected, again, strict=True):
        comparisons.extend(_compare(compared, record, found, audited))
    comparisons = _judged_together(comparisons, audited)
    outcome = Audit(
        study.name, seed, tuple(r.key for r in drawn), tuple(comparisons), len(stale), 0
    )
    tree = provenance.tree_state()
    if runs or not stale or tree.dirty is not False:
        return outcome
    note: dict[str, Any] = {"date": provenance.now(), "commit": tree.commit}
    note |= {"seed": seed, "sample": outcome.sample}
    if both_codes:
        note["beside"] = sorted({str(commit_behind(record)) for record in drawn})
    with archive.published.lock(study.name):
        if not outcome.agrees:
            wrong = {c.key for c in comparisons if c.agrees is False}
            archive.published.add(_disagreeing(r, note) for r in drawn if r.key in wrong)
            _forget(archive, study, drawn)
            return outcome
        archive.published.forget(study.name)
        # A record that was published anew in the meantime stays as it is.
        unchanged = [r for r in stale if archive.published.record(study.name, r.key) == r]
        archive.published.add(_renewed(r, archive.code(study), note) for r in unchanged)
    _forget(archive, study, drawn)
    return replace(outcome, renewed=len(unchanged))


def _again(session: Session, inputs: Session, study: Study, record: Record) -> tuple[Record, Given]:
    """Run a record again, or return what an audit that was cut off found; and what it was given."""
    notes = session.archive.working.folder / "given" / f"{record.key}.json"
    made = session.archive.working.record(study.name, record.key)
    if made is not None and not session.archive.is_stale(study, made) and notes.is_file():
        given: Given = json.loads(notes.read_text(encoding="utf-8"))
        # A network that was trained again in the meantime is another one.
        if all(
            digest_of(Path(path)) == from_json(text, str(notes)).provenance.get("checkpoint")
            for text, path in given["checkpoints"].values()
        ):
            return made, given
    # Runs that one of the sample needed and made are there for the next ones.
    noting = NotingSession(
        inputs.archive, inputs.profile, inputs.device, inputs.progress, name=inputs.name
    )
    made = replace(session, inputs=noting).perform(study, record.configuration)
    atomic.write_text(notes, json.dumps(noting.given))
    return made, noting.given


def _forget(archive: Archive, study: Study, drawn: Sequence[Record]) -> None:
    """Remove the runs that both codes have made for a sample, which is judged."""
    for code in (archive.code(study), *{record.fingerprint for record in drawn}):
        shutil.rmtree(audits_folder(archive.working.folder) / code, ignore_errors=True)


def _drawn(pool: Sequence[Record], sample: int | None, seed: str) -> list[Record]:
    """Return the records that disagreed before, and a random sample of the others."""
    before = [record for record in pool if record.provenance.get(_DISAGREED)]
    others = [record for record in pool if not record.provenance.get(_DISAGREED)]
    size = sample_size(len(pool), BAD, POWER) if sample is None else sample
    return [*before, *random.Random(seed).sample(others, min(size, len(others)))]


def _named(records: Sequence[Record], runs: Sequence[str]) -> list[Record]:
    """Return the records whose keys begin so, each of them once."""
    found: dict[str, Record] = {}
    for name in runs:
        known = [record for record in records if name and record.key.startswith(name)]
        if len(known) != 1:
            several = f"{len(known)} records begin so" if known else "no record has that key"
            raise ValueError(f"runs names {name!r}: {several}; results/ lists the keys.")
        found[known[0].key] = known[0]
    return list(found.values())


def _renewed(record: Record, code: str, note: dict[str, Any]) -> Record:
    known = dict(record.provenance)
    entry = {**note, "sample": list(note["sample"]), "from": record.fingerprint}
    disagreed = known.pop(_DISAGREED, None)
    if disagreed:
        entry[_DISAGREED] = disagreed
    history = [*known.get("renewed", []), entry]
    return replace(record, provenance={**known, "fingerprint": code, "renewed": history})


def _disagreeing(record: Record, note: dict[str, Any]) -> Record:
    entry = {name: note[name] for name in ("date", "commit", "seed")}
    history = [*record.provenance.get(_DISAGREED, []), entry]
    return replace(record, provenance={**record.provenance, _DISAGREED: history})


def _compare(
    study: Study, recorded: Record, audited: Record, records: Sequence[Record]
) -> Iterator[Comparison]:
    old, new = dict(_flat(recorded.metrics)), dict(_flat(audited.metrics))
    siblings = [dict(_flat(r.metrics)) for r in records if _same_but_seed(r, recorded)]
    for metric in sorted(old.keys() | new.keys()):
        before, after = old.get(metric), new.get(metric)
        allowed = f"{study.tolerance:g} relative"
        agrees: bool | None = _equal(study, before, after)
        if not agrees and study.trained and _is_number(before) and _is_number(after):
            recorded_values = [sibling.get(metric) for sibling in siblings]
            values = [value for value in recorded_values if _is_number(value)]
            if len(values) < SEEDS:
                allowed = f"unknown, because it needs {SEEDS} seeds or {TOGETHER} runs"
                agrees = None
            else:
                low, high = prediction_interval(values)
                allowed = f"{low:.6g} to {high:.6g}, 99 % over {len(values)} seeds"
                agrees = low <= after <= high
        yield Comparison(recorded.key, metric, before, after, allowed, agrees)


def _judged_together(
    comparisons: Sequence[Comparison], records: Sequence[Record]
) -> list[Comparison]:
    """Judge what is undecided by the mean change of its metric over the sample."""
    judged: dict[str, dict[str, Any]] = {}
    for metric in {c.metric for c in comparisons if c.agrees is None}:
        pairs = [(c.recorded, c.audited) for c in comparisons if c.metric == metric]
        changes = [b - a for a, b in pairs if _is_number(a) and _is_number(b)]
        known = [dict(_flat(record.metrics)).get(metric) for record in records]
        values = [value for value in known if _is_number(value)]
        if min(len(changes), len(values)) < TOGETHER:
            continue
        (low, high), margin = two_sided_interval(changes, PREDICTION), MARGIN * _deviation(values)
        is_shifted, is_known = not low <= 0.0 <= high, -margin <= low and high <= margin
        agrees = False if is_shifted else True if is_known else None
        allowed = (
            f"a mean change whose 99 % interval holds 0 and is within ±{margin:.3g}; it is "
            f"{low:.3g} to {high:.3g} over {len(changes)} runs"
        )
        judged[metric] = {"allowed": allowed, "agrees": agrees}
    return [replace(c, **judged.get(c.metric, {})) if c.agrees is None else c for c in comparisons]


def _deviation(values: Sequence[float]) -> float:
    """Return the deviation, or that of normal values with the same middle half, if it is less."""
    low, _, high = quantiles(values, n=4)
    return min(stdev(values), (high - low) / (2 * NormalDist().inv_cdf(0.75)))


def _equal(study: Study, before: Any, after: Any) -> bool:
    if not (_is_number(before) and _is_number(after)):
        return bool(before == after)
    # Relative to the recorded value; round-off is not reproducible to any relative tolerance.
    if max(abs(before), abs(after)) < study.round_off:
        return True
    return bool(abs(after - before) <= study.tolerance * abs(before))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_but_seed(record: Record, other: Record) -> bool:
    return {**record.configuration, "seed": 0} == {**other.configuration, "seed": 0}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the scalars of nested metrics with their dotted names, and the lengths of lists."""
    if isinstance(value, dict):
        for part, item in value.items():
            yield from _flat(item, f"{name}.{part}" if name else part)
    elif isinstance(value, list):
        yield f"{name}.length", len(value)
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}.{index}")
    else:
        yield name, value
