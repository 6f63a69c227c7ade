"""A file is replaced whole or not at all."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from paperkit import atomic


def test_what_is_written_takes_the_name_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    atomic.write_text(path, "erste Fassung, ü")
    atomic.write_text(path, "second")
    assert path.read_bytes() == b"second"
    assert [other.name for other in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    with atomic.replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_text() == "old"
        file.write(b" and half")
    assert path.read_text() == "half and half"


@pytest.mark.parametrize("step", ["fsync", "replace", "the block"])
def test_a_failure_at_any_step_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def fail(*arguments):
        raise OSError("disk full")

    if step != "the block":
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"), atomic.replacing(path) as file:
        file.write(b"new")
        if step == "the block":
            fail()
    assert path.read_text() == "old"
    assert [other.name for other in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_of_one_name_do_not_mix(tmp_path):
    path = tmp_path / "a.txt"
    with atomic.replacing(path) as first, atomic.replacing(path) as second:
        first.write(b"first " * 1000)
        second.write(b"second " * 1000)
    assert path.read_bytes() == b"first " * 1000


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from paperkit import checkpoint
# Python ignores the signal that comes with the error of a file that may not grow further.
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    checkpoint.save({"weights": torch.zeros(2**21, device="cpu")}, Path(sys.argv[1]))
except OSError as error:
    print(error)
"""


def test_a_disk_without_room_is_named_also_where_the_writer_swallows_it(tmp_path):
    path = tmp_path / "a.pt"
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "too large" in done.stdout
    assert str(path) in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_keeps_that_files_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        atomic.copy(tmp_path / "missing", tmp_path / "a.txt")
    with pytest.raises(OSError, match=r"^a picture is cut$"), atomic.replacing(tmp_path / "a"):
        raise OSError("a picture is cut")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("system", ["without locks", "whose locks fail"])
def test_a_system_that_cannot_hold_files_writes_them_and_removes_none(
    tmp_path, monkeypatch, system
):
    def fail(*arguments):
        raise OSError("no locks available")

    if system == "without locks":
        monkeypatch.setattr(atomic, "fcntl", None)
    else:
        monkeypatch.setattr(atomic.fcntl, "flock", fail)
    path, left = tmp_path / "a.txt", tmp_path / ".a.txt.other.partial"
    left.write_text("perhaps somebody writes it")
    atomic.write_text(path, "whole")
    assert path.read_text() == "whole"
    assert left.exists()


def test_writers_of_one_name_in_many_threads_lose_no_file(tmp_path):
    path = tmp_path / "a.txt"

    def write(number):
        for step in range(40):
            atomic.write_text(path, f"{number} {step}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert path.read_text().endswith(" 39")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path):
    path = tmp_path / "a.txt"
    left = tmp_path / ".a.txt.killed.partial"
    other = tmp_path / ".b.txt.killed.partial"
    left.write_text("half")
    other.write_text("of another file")
    with atomic.replacing(path) as first:
        first.write(b"first")
        atomic.write_text(path, "second")
        assert not left.exists()
        assert other.exists()
    assert path.read_bytes() == b"first"
    assert sorted(file.name for file in tmp_path.iterdir()) == [other.name, "a.txt"]
