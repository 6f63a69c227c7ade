import dataclasses
import gzip
import hashlib
import struct

import numpy as np
import pytest

from paperkit.data import digits, files, idx

DEBIAN_FOLDER = idx.FASHION_MNIST.folders[0]


def encode(array):
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture(scope="module")
def whole():
    """Real digits, of the kind that the format was made for."""
    return digits.read(files.data_root(None))


@pytest.fixture
def source(whole):
    """A source of four small files; and a folder that holds them."""
    arrays = {
        "train-images-idx3-ubyte": whole.train.images[:, 0],
        "train-labels-idx1-ubyte": whole.train.labels.astype(np.uint8),
        "t10k-images-idx3-ubyte": whole.test.images[:, 0],
        "t10k-labels-idx1-ubyte": whole.test.labels.astype(np.uint8),
    }
    contents = {name: encode(array) for name, array in arrays.items()}
    described = tuple(
        idx.IdxFile(name, arrays[name].shape, hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    )
    return idx.IdxSource("Digits", described, whole.classes), contents


@pytest.fixture
def root(source, tmp_path):
    folder = tmp_path / "Digits" / "raw"
    folder.mkdir(parents=True)
    for name, content in source[1].items():
        (folder / name).write_bytes(content)
    return tmp_path


def test_what_was_written_in_the_format_is_read_back(source, root, whole):
    data = idx.read(source[0], root)
    for part, original in ((data.train, whole.train), (data.test, whole.test)):
        assert np.array_equal(part.images, original.images)
        assert np.array_equal(part.labels, original.labels)
        assert part.labels.dtype == np.int64


def test_gzipped_files_are_read_as_well(source, root, whole):
    path = root / "Digits" / "raw" / "train-images-idx3-ubyte"
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert np.array_equal(idx.read(source[0], root).train.images, whole.train.images)


def test_files_in_a_system_folder_need_no_download(source, root, whole):
    elsewhere = dataclasses.replace(source[0], folders=(root / "Digits" / "raw",))
    assert np.array_equal(idx.read(elsewhere, root / "empty").test.images, whole.test.images)


def test_a_truncated_file_is_named_with_its_length(source, root):
    path = root / "Digits" / "raw" / "t10k-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    with pytest.raises(
        ValueError, match=rf"{path} is truncated \(it holds 1000 of {len(content)} bytes\); delete"
    ):
        idx.read(source[0], root)


def test_a_truncated_gzip_file_is_named(source, root):
    path = root / "Digits" / "raw" / "t10k-images-idx3-ubyte"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path = path.with_name(path.name + ".gz")
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=f"{path} is truncated or damaged.*delete it"):
        idx.read(source[0], root)


def test_one_changed_pixel_is_a_wrong_checksum(source, root):
    path = root / "Digits" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is incomplete or altered.*sha256.*delete it"):
        idx.read(source[0], root)


def test_a_missing_file_is_downloaded_into_the_folder_it_is_read_from(source, root, monkeypatch):
    name = "t10k-labels-idx1-ubyte"
    (root / "Digits" / "raw" / name).unlink()
    calls = []

    def download(dataset, into, folder):
        calls.append((dataset, into))
        (folder / name).write_bytes(source[1][name])

    monkeypatch.setattr(files, "download", download)
    assert len(idx.read(source[0], root).test) == 360
    assert calls == [("Digits", root)]


def test_a_download_that_leaves_a_file_missing_is_an_error(source, root, monkeypatch):
    (root / "Digits" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    monkeypatch.setattr(files, "download", lambda *arguments: None)
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte is in none of .*raw"):
        idx.read(source[0], root)


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 5)])
def test_torchvisions_parser_reads_what_the_format_says(shape, tmp_path):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "array.gz").write_bytes(gzip.compress(encode(array)))
    file = idx.IdxFile("array", shape, hashlib.sha256(encode(array)).hexdigest())
    parsed = idx._read_array(file, (tmp_path,))
    assert parsed.dtype == np.uint8
    assert np.array_equal(parsed, array)
    parsed += 1  # a view of immutable bytes would refuse


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_debian_s_fashion_mnist_is_complete(tmp_path):
    data = idx.read(idx.FASHION_MNIST, tmp_path)
    assert data.train.images.shape == (60000, 1, 28, 28)
    assert data.test.images.shape == (10000, 1, 28, 28)
    assert np.bincount(data.train.labels).tolist() == [6000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert not any(tmp_path.iterdir())
