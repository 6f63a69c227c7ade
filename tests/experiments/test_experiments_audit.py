import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from repository import COMMIT

import paperkit
from paperkit.cli import main
from paperkit.experiments import run_study
from paperkit.experiments.archive import Archive, PublishedResults
from paperkit.experiments.audit import Comparison, _judged_together, audit
from paperkit.experiments.earlier_code import (
    NotingSession,
    audits_folder,
    metrics_by_earlier_code,
)
from paperkit.experiments.fingerprint import fingerprint
from paperkit.experiments.records import Record
from paperkit.experiments.session import Session
from paperkit.experiments.study import configurations, study_named

pytestmark = pytest.mark.usefixtures("studies_folder")


@pytest.fixture
def published(committed, store):
    for name in ("selftest_training", "selftest_measure"):
        run_study(name, "laptop", store, progress=False)
        Archive(store).publish(name)


def test_an_audit_of_unchanged_code_agrees_and_changes_nothing(published, store):
    before = Archive().published.path("selftest_measure").read_bytes()
    found = audit("selftest_measure", store=store, progress=False)
    assert found.passed and (found.stale, found.renewed) == (0, 0)
    # If two of six are bad, four miss both with probability 1/15, and three with 1/5.
    assert len(found.sample) == 4
    assert Archive().published.path("selftest_measure").read_bytes() == before


def test_an_audit_runs_in_a_store_of_its_own(published, store):
    files = {path: path.read_bytes() for path in (store / "records").rglob("*.json")}
    audit("selftest_training", store=store, progress=False)
    assert {path: path.read_bytes() for path in (store / "records").rglob("*.json")} == files


def test_chosen_runs_are_repeated_and_renew_nothing(published, store, edit, capsys):
    keys = [record.key for record in Archive().published.records("selftest_measure")]
    assert audit("selftest_measure", runs=[keys[1]], store=store, progress=False).sample == (
        keys[1],
    )
    command = ["audit", "selftest_measure", "--store", str(store), "--run"]
    assert main([*command, keys[0][:8]]) == 0
    assert "selftest_measure: 1 run repeated; the " in capsys.readouterr().out
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    found = audit("selftest_measure", runs=keys[:2], store=store, progress=False)
    assert found.agrees and (found.stale, found.renewed, found.sample) == (6, 0, tuple(keys[:2]))
    assert main([*command, keys[0]]) == 0
    for wrong, sentence in (("zz", "no record has that key"), ("", "no record has that key")):
        with pytest.raises(ValueError, match=sentence):
            audit("selftest_measure", runs=[wrong], store=store, progress=False)


def test_agreement_under_new_code_renews_the_records_and_says_so(published, store, edit):
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    old = Archive().published.records("selftest_measure")[0].fingerprint
    found = audit("selftest_measure", sample=1, seed="a", store=store, progress=False)
    assert found.passed and (found.stale, found.renewed) == (6, 6)
    new = fingerprint(study_named("selftest_measure"))
    for record in Archive().published.records("selftest_measure"):
        assert record.fingerprint == new
        (entry,) = record.provenance["renewed"]
        assert entry["from"] == old
        assert (entry["seed"], entry["sample"]) == ("a", list(found.sample))
        assert entry["commit"].startswith("0123") and entry["date"].endswith("Z")
    # The working store still holds the record under its former fingerprint.
    Archive(store).publish("selftest_measure")
    assert {r.fingerprint for r in Archive().published.records("selftest_measure")} == {new}


def test_disagreement_leaves_the_records_stale_and_exits_1(published, store, edit, capsys):
    before = {record.key: record for record in Archive().published.records("selftest_measure")}
    edit("selftest_measure.py", '"large": 10.0', '"large": 10.0001')
    edit("selftest_measure.py", '"small": 1.0', '"small": 1.00001')
    assert main(["audit", "selftest_measure", "--store", str(store)]) == 1
    out = capsys.readouterr().out
    assert "size: recorded" in out and "do NOT agree" in out and "6 records stay stale" in out
    for record in Archive().published.records("selftest_measure"):
        old = before[record.key]
        assert (record.metrics, record.fingerprint) == (old.metrics, old.fingerprint)


def test_a_failed_audit_binds_every_later_one(published, store, edit):
    edit("selftest_measure.py", '"large": 10.0', '"large": 10.0001')
    failed = audit("selftest_measure", sample=6, store=store, progress=False)
    wrong = {c.key for c in failed.comparisons if not c.agrees}
    assert 0 < len(wrong) < 6
    for seed in "abc":  # another day's draw meets them again
        again = audit("selftest_measure", 1, seed, store=store, progress=False)
        assert wrong < set(again.sample) and not again.agrees and again.renewed == 0
    edit("selftest_measure.py", '"large": 10.0001', '"large": 9.0 + 1.0')
    passed = audit("selftest_measure", 1, "d", store=store, progress=False)
    assert passed.passed and passed.renewed == 6
    for record in Archive().published.records("selftest_measure"):
        assert "disagreed" not in record.provenance
        (entry,) = record.provenance["renewed"]
        assert len(entry.get("disagreed", [])) == (4 if record.key in wrong else 0)


def test_uncommitted_code_that_disagrees_binds_nothing(published, store, edit, request):
    edit("selftest_measure.py", '"large": 10.0', '"large": 10.0001')
    request.getfixturevalue("uncommitted")
    assert not audit("selftest_measure", sample=6, store=store, progress=False).agrees
    assert "disagreed" not in Archive().published.path("selftest_measure").read_text()


def test_the_studys_tolerance_decides(published, store, edit):
    edit("selftest_measure.py", '"small": 1.0', '"small": 1.0000001')
    edit("selftest_measure.py", '"large": 10.0', '"large": 10.000001')
    assert audit("selftest_measure", sample=6, store=store, progress=False).agrees
    edit("selftest_measure.py", "needs=(", "tolerance=1e-9, needs=(")
    assert not audit("selftest_measure", sample=6, store=store, progress=False).agrees


def test_uncommitted_code_renews_nothing(published, store, edit, request, capsys):
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    request.getfixturevalue("uncommitted")
    assert main(["audit", "selftest_measure", "--store", str(store)]) == 1
    assert "the code has uncommitted changes; commit it" in capsys.readouterr().out
    assert "renewed" not in Archive().published.path("selftest_measure").read_text()


def test_a_trained_value_may_move_within_the_spread_across_seeds(published, store, edit):
    # Seeds 0, 1, 2 spread by about 1; the shift by 0.01 is far inside, by 100 far outside.
    edit(
        "selftest_training.py", '"total": state["total"], "s', '"total": state["total"] + 0.01, "s'
    )
    found = audit("selftest_training", sample=3, store=store, progress=False)
    assert found.agrees and found.renewed == 3
    (moved, *_) = [c for c in found.comparisons if c.metric == "total"]
    assert moved.audited != moved.recorded and "99 % over 3 seeds" in moved.allowed
    edit("selftest_training.py", "+ 0.01", "+ 100")
    assert not audit("selftest_training", sample=3, store=store, progress=False).agrees


def test_where_seeds_are_few_the_runs_of_the_sample_are_judged_together():
    def comparisons(changes, agrees=None):
        return [
            Comparison(str(k), "loss", 1.0 + k, 1.0 + k + change, "unknown", agrees)
            for k, change in enumerate(changes)
        ]

    # The recorded runs 0, 10, …, 90 deviate by 30.28, so a mean change within ±3.03 is none.
    records = [Record("s", "laptop", {"seed": k}, {"loss": 10.0 * k}, {}) for k in range(10)]

    def judged(changes, known=records):
        return _judged_together(comparisons(changes), known)

    scattered = [0.3, -0.2, 0.1, -0.4, 0.25]
    assert {c.agrees for c in judged(scattered)} == {True}
    shifted = [0.3, 0.2, 0.31, 0.24, 0.25]
    assert {c.agrees for c in judged(shifted)} == {False}
    # Mean 0.26, standard error 0.02025; Student's t at 99 % with four degrees of freedom is 4.604.
    assert judged(shifted)[0].allowed == (
        "a mean change whose 99 % interval holds 0 and is within ±3.03; it is 0.167 to 0.353 over "
        "5 runs"
    )
    # An interval that would hide a change of the size of the runs' own differences decides nothing.
    assert {c.agrees for c in judged([20 * change for change in scattered])} == {None}
    # A recorded run that explodes makes no room for the others.
    exploded = [*records, Record("s", "laptop", {"seed": 10}, {"loss": 1e34}, {})]
    assert {c.agrees for c in judged([20 * change for change in scattered], exploded)} == {None}
    assert {c.agrees for c in judged(shifted[:4])} == {c.agrees for c in judged(shifted, [])}
    assert {c.agrees for c in judged(shifted[:4])} == {None}
    # A run that agrees to the digit counts among the changes, and stays as it is.
    mixed = [*comparisons(scattered[:4]), *comparisons([0.0], agrees=True)]
    assert {c.agrees for c in _judged_together(mixed, records)} == {True}


def test_one_run_of_one_seed_that_moved_is_not_judged(published, store, edit, capsys):
    path = Archive().published.path("selftest_training")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(lines[0], encoding="utf-8")
    edit(
        "selftest_training.py", '"total": state["total"], "s', '"total": state["total"] + 0.01, "s'
    )
    found = audit("selftest_training", store=store, progress=False)
    assert found.undecided and not found.agrees and found.renewed == 0
    assert "disagreed" not in path.read_text(encoding="utf-8")
    assert main(["audit", "selftest_training", "--store", str(store)]) == 1
    printed = capsys.readouterr().out
    assert "allowed unknown, because it needs 3 seeds or 5 runs" in printed
    assert "do not disagree, but not all can be compared" in printed


def test_a_metric_that_appears_or_changes_its_word_disagrees(published, store, edit):
    edit("selftest_training.py", '"ordered": True', '"ordered": False')
    assert not audit("selftest_training", sample=1, store=store, progress=False).agrees
    edit("selftest_training.py", '"ordered": False', '"ordered": True, "more": 1')
    assert not audit("selftest_training", sample=1, store=store, progress=False).agrees


def test_the_sample_is_drawn_by_its_seed(published, store):
    samples = {
        audit("selftest_measure", 1, s, store=store, progress=False).sample for s in "abcdef"
    }
    assert len(samples) > 1
    again = [audit("selftest_measure", 1, "a", store=store, progress=False).sample for _ in "12"]
    assert again[0] == again[1]


def test_a_study_without_published_records_is_refused(committed, store):
    with pytest.raises(ValueError, match="has no published laptop record to audit"):
        audit("selftest_measure", store=store)


def test_an_empty_sample_is_refused(store):
    with pytest.raises(ValueError, match="sample is 0; give at least 1"):
        audit("selftest_measure", sample=0, store=store)


def test_both_codes_are_compared_in_place_of_the_record(published, store, edit, monkeypatch):
    # The records are those of another processor: everything here differs from them alike.
    edit("selftest_training.py", '"total": state["total"], "s', '"total": state["total"] + 99, "s')
    assert not audit("selftest_training", sample=3, store=store, progress=False).agrees
    shift = {"by": 99.0}

    def earlier(records, given, store, device):
        assert device == "cpu"
        return [{**r.metrics, "total": r.metrics["total"] + shift["by"]} for r in records]

    monkeypatch.setattr("paperkit.experiments.audit.metrics_by_earlier_code", earlier)
    # A trained run must agree to round-off, where the spread across seeds would allow 0.01.
    shift["by"] = 99.01
    options = {"both_codes": True, "store": store, "progress": False}
    assert not audit("selftest_training", sample=3, **options).agrees
    shift["by"] = 99.0
    found = audit("selftest_training", sample=3, **options)
    assert found.agrees and found.renewed == 3
    for record in Archive().published.records("selftest_training"):
        assert record.provenance["renewed"][-1]["beside"] == [COMMIT]


def test_the_command_says_what_was_compared(published, store, edit, monkeypatch, capsys):
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    monkeypatch.setattr(
        "paperkit.experiments.audit.metrics_by_earlier_code",
        lambda records, given, store, device: [{**r.metrics, "size": -1.0} for r in records],
    )
    assert main(["audit", "selftest_measure", "--both-codes", "--store", str(store)]) == 1
    out = capsys.readouterr().out
    assert "size: earlier code -1.0, now " in out
    assert "do NOT agree with what the earlier code finds here." in out


NOTHING = {"records": {}, "checkpoints": {}}


def _shelf_of(study, store):
    """Return where the runs of a study by the earlier code are kept."""
    [folder] = (audits_folder(store) / fingerprint(study)).iterdir()
    return Archive(folder).working


def _git(root, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(root), *identity, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Return a git tree with this package, and a function that commits a changed study in it."""
    root = tmp_path_factory.mktemp("earlier")
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(paperkit.__file__).parent, root / "paperkit", ignore=skipped)
    (root / "pyproject.toml").write_text("")  # the mark of a repository
    _git(root, "init", "--quiet")
    path = root / "paperkit/experiments/studies/entropy_facts.py"
    text = path.read_text()

    def commit(addition=""):
        path.write_text(text + addition)
        _git(root, "add", "--all")
        _git(root, "commit", "--quiet", "--allow-empty", "--message", "code")
        return _git(root, "rev-parse", "HEAD")

    return root, commit


def _record(study, configuration, **known):
    return Record(
        study=study.name,
        profile="laptop",
        configuration=configuration,
        metrics={},
        provenance={"fingerprint": fingerprint(study), **known},
    )


def test_the_code_behind_a_record_runs_it_again(earlier, tmp_path):
    root, commit = earlier
    study = study_named("entropy_facts")
    two = configurations(study, "laptop")[:2]
    made_by, renewed_by = commit(), commit("# no code\n")
    records = [
        _record(study, two[0], commit=made_by),
        _record(study, two[1], commit="gone", renewed=[{"commit": renewed_by}]),
    ]
    found = metrics_by_earlier_code(records, [NOTHING] * 2, tmp_path / "store", root=root)
    here = Session(Archive(tmp_path / "here"), "laptop", torch.device("cpu"))
    assert found == [here.perform(study, one).metrics for one in two]


def test_a_call_that_was_cut_off_goes_on_where_it_was(earlier, tmp_path):
    root, commit = earlier
    study = study_named("entropy_facts")
    known = commit()
    records = [_record(study, one, commit=known) for one in configurations(study, "laptop")[:2]]
    metrics_by_earlier_code(records[:1], [NOTHING], tmp_path, root=root)
    shelf = _shelf_of(study, tmp_path)
    shelf.add([replace(shelf.record(study.name, records[0].key), metrics={"kept": 1.0})])
    first, second = metrics_by_earlier_code(records, [NOTHING] * 2, tmp_path, root=root)
    assert first == {"kept": 1.0}
    assert second == shelf.record(study.name, records[1].key).metrics != first


def test_runs_of_another_code_are_made_again(earlier, tmp_path):
    root, commit = earlier
    study = study_named("entropy_facts")
    record = _record(study, configurations(study, "laptop")[0], commit=commit())
    metrics_by_earlier_code([record], [NOTHING], tmp_path, root=root)
    shelf = _shelf_of(study, tmp_path)
    made = shelf.record(study.name, record.key)
    other = {**made.provenance, "fingerprint": "other"}
    shelf.add([replace(made, metrics={"other": 1.0}, provenance=other)])
    [found] = metrics_by_earlier_code([record], [NOTHING], tmp_path, root=root)
    assert found == made.metrics


def test_the_earlier_code_is_given_the_inputs_of_the_present(earlier, tmp_path):
    root, commit = earlier
    population, study = study_named("population"), study_named("population_correlation")
    real = PublishedResults(Path(paperkit.__file__).parents[1] / "results", lambda _: True)
    code = fingerprint(population)
    needed = [
        replace(record, provenance={**record.provenance, "fingerprint": code})
        for record in real.records("population")
    ]
    Archive(tmp_path).working.add(needed)
    one = real.records(study.name)[0]
    record = _record(study, one.configuration, commit=commit())
    noting = NotingSession(Archive(tmp_path), "laptop", torch.device("cpu"))
    here = Session(Archive(tmp_path / "here"), "laptop", torch.device("cpu"), inputs=noting)
    expected = here.perform(study, one.configuration).metrics
    # Whatever code made them, and the tree has no results: it would train for hours.
    old = json.dumps(noting.given).replace(code, "0" * 64)
    [found] = metrics_by_earlier_code([record], [json.loads(old)], tmp_path, root=root)
    assert found == expected


def test_a_session_notes_the_checkpoints_that_it_gives(published, store):
    noting = NotingSession(Archive(store), "laptop", torch.device("cpu"))
    study = study_named("selftest_measure")
    here = Session(Archive(store / "here"), "laptop", torch.device("cpu"), inputs=noting)
    run = here.perform(study, configurations(study, "laptop")[0])
    [(text, path)] = noting.given["checkpoints"].values()
    assert json.loads(text)["key"] in run.provenance["inputs"]
    assert Path(path).is_file()


def _both(monkeypatch, change):
    """Let the earlier code find what is recorded, but for a change."""
    monkeypatch.setattr(
        "paperkit.experiments.audit.metrics_by_earlier_code",
        lambda records, given, store, device: [{**r.metrics, **change} for r in records],
    )


def test_an_audit_goes_on_and_leaves_no_runs_behind_when_it_ends(
    published, store, edit, monkeypatch
):
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    _both(monkeypatch, {})
    options = {"both_codes": True, "store": store, "progress": False}
    keys = [record.key for record in Archive(store).published.records("selftest_measure")]
    assert audit("selftest_measure", runs=keys, **options).agrees
    [kept] = audits_folder(store).iterdir()
    assert list((kept / "records").rglob("*.json"))
    with monkeypatch.context() as ended:
        ended.setattr(Session, "perform", lambda *_: pytest.fail("a run is made again"))
        assert audit("selftest_measure", **options).renewed
    assert not list(audits_folder(store).iterdir())


def test_a_run_that_disagreed_is_made_again_by_the_next_audit(published, store, edit, monkeypatch):
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    _both(monkeypatch, {"size": -1.0})
    assert not audit("selftest_measure", both_codes=True, store=store, progress=False).agrees
    assert not list(audits_folder(store).iterdir())


def test_a_run_on_a_network_that_was_trained_again_is_made_again(
    published, store, edit, monkeypatch
):
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    _both(monkeypatch, {})
    options = {"both_codes": True, "store": store, "progress": False}
    key = Archive(store).published.records("selftest_measure")[0].key
    audit("selftest_measure", runs=[key], **options)
    [notes] = audits_folder(store).rglob(f"given/{key}.json")
    [(_, path)] = json.loads(notes.read_text())["checkpoints"].values()
    Path(path).write_text("another network")
    performed, perform = [], Session.perform

    def counted(session, run, configuration):
        performed.append(run.name)
        return perform(session, run, configuration)

    monkeypatch.setattr(Session, "perform", counted)
    audit("selftest_measure", runs=[key], **options)
    assert "selftest_measure" in performed


@pytest.mark.parametrize(
    ("addition", "sentence"),
    [
        ("CHANGED = 1\n", "is not what made the records of 'entropy_facts'"),
        ("raise OSError('no disk')\n", "does not run here: OSError: no disk"),
        (None, "git has no commit ffff"),
    ],
)
def test_other_code_than_that_behind_a_record_is_refused(earlier, addition, sentence, tmp_path):
    root, commit = earlier
    study = study_named("entropy_facts")
    known = "f" * 40 if addition is None else commit(addition)
    record = _record(study, configurations(study, "laptop")[0], commit=known)
    with pytest.raises(ValueError, match=sentence):
        metrics_by_earlier_code([record], [NOTHING], tmp_path, root=root)
