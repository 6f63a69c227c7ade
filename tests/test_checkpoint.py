import os
import zipfile

import pytest
import torch

from paperkit import checkpoint


@pytest.fixture
def state():
    weights = torch.arange(1000.0, device="cpu")
    return {"weights": weights, "history": [{"loss": 0.5}], "name": "x"}


def test_what_is_saved_is_loaded(state, tmp_path):
    path = tmp_path / "new folder" / "run.pt"
    checkpoint.save(state, path)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state


def test_nothing_but_the_checkpoint_is_left_beside_it(state, tmp_path):
    checkpoint.save(state, tmp_path / "run.pt")
    checkpoint.save(state, tmp_path / "run.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_save_that_is_cut_off_leaves_the_previous_checkpoint(state, tmp_path, monkeypatch, step):
    path = tmp_path / "run.pt"
    checkpoint.save(state, path)

    def cut_off(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, cut_off)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"name": "y"}, path)
    assert checkpoint.load(path)["name"] == "x"


def test_the_bytes_are_on_the_disk_before_they_take_the_name(state, tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: (order.append("fsync"), fsync(*a)))
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("replace"), replace(*a)))
    checkpoint.save(state, tmp_path / "run.pt")
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def flip_a_bit_of_a_name(content):
    content[content.index(b"data.pkl")] ^= 128
    return content


def flip_a_bit_of_the_weights(content):
    position = content.index(torch.tensor([500.0, 501.0], device="cpu").numpy().tobytes())
    content[position] ^= 1
    return content


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:0],
        lambda content: b"not a checkpoint",
        flip_a_bit_of_the_weights,
        flip_a_bit_of_a_name,
    ],
    ids=["truncated", "empty", "other content", "a bit of the weights", "a bit of a name"],
)
def test_a_damaged_checkpoint_is_named_as_the_file_to_delete(state, tmp_path, damage):
    path = tmp_path / "run.pt"
    checkpoint.save(state, path)
    path.write_bytes(damage(bytearray(path.read_bytes())))
    with pytest.raises(ValueError, match=f"checkpoint {path} is damaged; delete it"):
        checkpoint.load(path)


def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(state, tmp_path):
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    checkpoint.save(state, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="is damaged; delete it"):
        checkpoint.load(packed)


def test_a_file_that_torch_wrote_but_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="is damaged; delete it"):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "run.pt")
