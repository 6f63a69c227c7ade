"""A study's runs in TensorBoard, read again by TensorBoard's own reader."""

import shutil
import sys

import pytest

from paperkit.cli import main
from paperkit.experiments import run_study
from paperkit.experiments.archive import Archive
from paperkit.experiments.tensorboard import Follower, run_name

STUDY = "selftest_trained"


@pytest.fixture
def runs(tmp_path):
    """Read what TensorBoard shows of the study's runs, by their names without the keys."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read():
        found = {}
        for folder in sorted((tmp_path / "logs" / STUDY).iterdir()):
            events = accumulator.EventAccumulator(str(folder)).Reload()
            tags = events.Tags()["scalars"]
            found[folder.name.rpartition(",")[0]] = {
                tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags
            }
        return found

    return read


def test_the_epochs_and_the_record_of_each_run_are_shown(studies_folder, store, tmp_path, runs):
    records = run_study(STUDY, "smoke", store, progress=False)
    words = ["study", "tensorboard", STUDY, "--profile", "smoke", "--store", str(store)]
    for _ in range(2):  # a second copy takes the place of the first
        assert main([*words, "--logdir", str(tmp_path / "logs")]) == 0
        shown = runs()
        assert set(shown) == {"lr=0.1", "lr=0.2"}
        for record in records:
            own = shown[f"lr={record.configuration['lr']}"]
            assert [step for step, _ in own["epochs/loss"]] == [1, 2, 3]
            ((step, value),) = own["record/loss"]
            assert (step, value) == (3, pytest.approx(record.metrics["loss"], rel=1e-6))
            assert own["epochs/loss"][-1] == own["record/loss"][0]
            assert own["record/of_layers/only"] == [(3, 1.0)]
            assert not any("curve" in tag for tag in own)


def test_a_run_is_followed_while_it_is_under_way(studies_folder, store, tmp_path, runs):
    """The states of a store that a run leaves behind are shown one after the other."""
    run_study(STUDY, "smoke", store, progress=False)
    working = Archive(store).working
    record = working.records(STUDY)[0]
    kept, path = working.checkpoint(STUDY, record.key), working.path(STUDY, record.key)
    unfinished = working.unfinished_checkpoint(STUDY, record.key)
    for other in working.records(STUDY)[1:]:
        working.path(STUDY, other.key).unlink()
        working.checkpoint(STUDY, other.key).unlink()
    text = path.read_text()
    path.unlink()
    shutil.move(kept, unfinished)
    follower = Follower(STUDY, "smoke", store, tmp_path / "logs")
    follower.update()
    assert (follower.begun, follower.finished) == (1, 0)
    name = f"lr={record.configuration['lr']}"
    assert [step for step, _ in runs()[name]["epochs/loss"]] == [1, 2, 3]
    assert "record/loss" not in runs()[name]
    path.write_text(text)
    shutil.move(unfinished, kept)
    follower.update()
    assert (follower.begun, follower.finished) == (1, 1)
    assert [step for step, _ in runs()[name]["epochs/loss"]] == [1, 2, 3]
    assert len(runs()[name]["record/loss"]) == 1
    follower.close()


def test_a_run_that_begins_anew_is_shown_anew(studies_folder, store, tmp_path, runs, monkeypatch):
    run_study(STUDY, "smoke", store, progress=False)
    follower = Follower(STUDY, "smoke", store, tmp_path / "logs")
    follower.update()
    monkeypatch.setattr(
        "paperkit.experiments.tensorboard.checkpoint.load",
        lambda path: {"history": [{"epoch": 1, "loss": 9.0}]},
    )
    for key in follower.configurations:
        follower._shown[key].state = None
    follower.update()
    follower.close()
    for own in runs().values():
        assert own["epochs/loss"] == [(1, 9.0)]
        assert own["epochs/lr"] == []


def test_a_study_without_such_checkpoints_shows_its_records_alone(studies_folder, store, tmp_path):
    run_study("selftest_many", "smoke", store, progress=False)
    follower = Follower("selftest_many", "smoke", store, tmp_path / "logs")
    follower.update()
    follower.close()
    assert (follower.begun, follower.finished) == (2, 2)


def test_a_name_has_the_values_that_differ_and_is_one_folder():
    grid = {"a" * 20: {"data": "a/b c", "n": 1, "seed": 0}, "b" * 20: {"data": "d", "seed": 0}}
    assert run_name("a" * 20, grid) == "data=a_b_c,n=1,aaaaaaaa"
    assert run_name("c" * 20, {"c" * 20: {"seed": 0}}) == "cccccccc"


def test_without_tensorboard_there_is_one_sentence(studies_folder, store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["study", "tensorboard", STUDY, "--store", str(store)]) == 1
    told = capsys.readouterr().err
    assert told == "paperkit: TensorBoard is not installed: run `pip install tensorboard`.\n"
