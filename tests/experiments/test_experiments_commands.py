import json

import pytest

from paperkit.cli import build_parser, main
from paperkit.experiments import commands, provenance
from paperkit.experiments.archive import Archive
from paperkit.experiments.provenance import TreeState

pytestmark = pytest.mark.usefixtures("studies_folder")


def test_a_study_is_run_published_and_judged(committed, store, root, capsys):
    (root / "claims" / "test.yml").write_text(
        "- {id: gap, paper: Test, place: here, kind: identity, statement: none, profile: laptop,\n"
        "   criterion: {name: identity_holds, study: selftest_measure, metric: gap}}\n"
    )
    assert main(["study", "run", "selftest_measure", "--store", str(store)]) == 0
    assert "6 runs of the laptop profile are finished" in capsys.readouterr().out
    assert main(["study", "publish", "selftest_measure", "--store", str(store)]) == 0
    assert "6 records, 6 of them new or replaced" in capsys.readouterr().out
    assert len(Archive().published.path("selftest_measure").read_text().splitlines()) == 6
    assert main(["claims"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "verified: gap, here",
        "    largest `gap` below 1e-12 in 6 runs (at most 1e-10 allowed)",
        "1 verified",
    ]
    assert main(["claims", "--paper", "Another"]) == 1
    assert "paper='Another' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (TreeState("abc", False), ""),
        (TreeState("abc", True), "uncommitted changes, and records of it earn no verdict"),
        (TreeState(None, None), "in no git repository, and its records earn no verdict"),
    ],
)
def test_uncommitted_code_is_told_of_before_the_first_run(state, told, store, monkeypatch, capsys):
    monkeypatch.setattr(provenance, "tree_state", lambda: state)
    run = ["study", "run", "selftest_training", "--store", str(store)]
    monkeypatch.setattr(commands, "run_study", lambda *arguments, **options: [])
    for line, expected in ((run, told), ([*run, "--profile", "smoke"], "")):
        main(line)
        error = capsys.readouterr().err
        assert (expected in error) if expected else (error == "")


def test_nothing_is_told_of_uncommitted_code_where_nothing_is_run(uncommitted, store, capsys):
    run = ["study", "run", "selftest_training", "--store", str(store)]
    for line, is_told in ((run, True), (run, False), ([*run, "--rerun", "dirty"], True)):
        main(line)
        assert ("The code has uncommitted changes" in capsys.readouterr().err) is is_told


def test_the_list_counts_finished_stale_and_dirty_runs(uncommitted, store, edit, capsys):
    main(["study", "run", "selftest_training", "--store", str(store)])
    out = capsys.readouterr().out
    assert "3 of them come from uncommitted code and earn no verdict: --rerun dirty" in out
    edit("selftest_training.py", '"ordered": True', '"ordered": False')
    main(["study", "run", "selftest_training", "--store", str(store)])
    assert "3 of them are stale" in capsys.readouterr().out
    assert main(["study", "list", "--store", str(store)]) == 0
    out = capsys.readouterr().out
    assert "selftest_training: Is a run resumed?\n" in out
    assert "laptop  3 of 3 runs, 3 stale, 3 of uncommitted code" in out


def test_a_refusal_is_one_sentence_and_status_1(store, capsys):
    assert main(["study", "run", "selftest_mesure", "--store", str(store)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    told = "paperkit: study='selftest_mesure' is unknown (did you mean 'selftest_measure'?): "
    assert captured.err.startswith(told) and captured.err.count("\n") == 1


def test_a_refusal_shows_where_it_came_from_on_request(store):
    with pytest.raises(ValueError, match="study='nothing' is unknown"):
        main(["--traceback", "study", "run", "nothing", "--store", str(store)])


def test_the_schema_of_claims_is_rewritten(root, capsys):
    assert main(["schema"]) == 0
    path = root / "claims" / "schema.json"
    assert capsys.readouterr().out == f"{path}\n"
    assert "selftest_measure" in path.read_text()


def test_an_interrupt_says_that_nothing_finished_is_lost(store, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("paperkit.experiments.commands.run_study", interrupt)
    assert main(["study", "run", "selftest_training", "--store", str(store)]) == 130
    assert "what was finished is kept" in capsys.readouterr().err


def test_a_root_that_is_no_folder_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PAPERKIT_ROOT", str(tmp_path / "nowhere"))
    assert main(["claims"]) == 1
    assert "which is not a folder" in capsys.readouterr().err


def test_every_command_has_a_help_text(capsys):
    for words in (
        ["study", "run"],
        ["study", "publish"],
        ["study", "list"],
        ["audit"],
        ["claims"],
        ["schema"],
    ):
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args([*words, "--help"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith("usage: paperkit " + " ".join(words))


def test_a_store_that_is_no_folder_is_refused_in_a_sentence(tmp_path, capsys):
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.touch()
    loop.symlink_to(loop)
    for store, reason in ((file, "is no folder"), (loop, "cannot be used"), ("", "must be a path")):
        assert main(["study", "list", f"--store={store}"]) == 1
        told = capsys.readouterr().err
        assert reason in told and told.count("\n") == 1


@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused_in_a_sentence(device, committed, capsys):
    assert main(["study", "run", "selftest_training", f"--device={device}"]) == 1
    told = capsys.readouterr().err
    assert f"device='{device}'" in told and told.count("\n") == 1


CLAIMS = """
- {id: gap, paper: Test, place: here, kind: identity, statement: none, profile: laptop,
   criterion: {name: identity_holds, study: selftest_measure, metric: gap}}
- {id: slack, paper: Test, place: there, kind: inequality, statement: none, profile: laptop,
   criterion: {name: inequality_holds, study: selftest_measure, metric: slack}}
- {id: later, paper: Other, place: there, kind: identity, statement: none, profile: paper,
   criterion: {name: identity_holds, study: selftest_measure, metric: gap}}
"""


@pytest.fixture
def judged(committed, store, root):
    (root / "claims" / "test.yml").write_text(CLAIMS)
    main(["study", "run", "selftest_measure", f"--store={store}"])
    main(["study", "publish", "selftest_measure", f"--store={store}"])


@pytest.mark.parametrize(
    ("filters", "shown"),
    [
        ([], ["gap", "slack", "later"]),
        (["gap", "later"], ["gap", "later"]),
        (["--paper", "Test"], ["gap", "slack"]),
        (["--kind", "inequality"], ["slack"]),
        (["--word", "refuted", "--word", "not run"], ["slack", "later"]),
        (["--word", "stale"], []),
    ],
)
def test_claims_are_filtered_and_given_to_scripts_whole(judged, filters, shown, capsys):
    capsys.readouterr()
    assert main(["claims", "--json", *filters]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [claim["id"] for claim in found] == shown
    for claim in found:
        assert len(claim["records"]) == {"gap": 6, "slack": 6, "later": 0}[claim["id"]]
    assert main(["claims", *filters]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in lines[:-1:2]] == shown


def test_a_script_is_told_by_the_exit_status(judged, edit, capsys):
    assert main(["claims", "--fail-on", "refuted"]) == 1
    assert main(["claims", "--fail-on", "refuted", "gap"]) == 0
    assert main(["claims", "--fail-on", "stale"]) == 0
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    assert main(["claims", "--fail-on", "stale"]) == 1
    capsys.readouterr()
    assert main(["claims", "gap"]) == 0
    assert capsys.readouterr().out.startswith("verified (stale): gap, here\n")
    assert main(["claims", "gab"]) == 1
    assert "there is no claim 'gab' among these" in capsys.readouterr().err
