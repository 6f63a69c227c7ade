import hashlib
import importlib.util
import pickle
import struct
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from paperkit.data import cifar, files


class Python2Pickler(pickle._Pickler):
    """Writes byte strings and booleans as the Python 2 and numpy that made CIFAR-10 did."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_byte_string(self, value):
        length = len(value)
        short = length < 256
        self.write(b"U" + bytes([length]) if short else b"T" + struct.pack("<i", length))
        self.write(value)
        self.memoize(value)

    def save_boolean(self, value):
        self.write(b"K" + bytes([value]))

    dispatch[bytes] = save_byte_string
    dispatch[bool] = save_boolean


def write_batch(path, images, labels):
    """Write a batch file in CIFAR-10's format and return its MD5 sum."""
    batch = {
        b"data": images.reshape(len(images), -1),
        b"labels": [int(label) for label in labels],
        b"batch_label": b"testing batch 1 of 1",
        b"filenames": [b"%d.png" % k for k in range(len(images))],
    }
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(batch)
    content = path.read_bytes().replace(b"numpy._core.", b"numpy.core.")
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


@pytest.fixture(scope="module")
def real_images():
    """The twenty CIFAR-10 test images that foolbox ships, their labels in the file names."""
    package = importlib.util.find_spec("foolbox").submodule_search_locations[0]
    paths = sorted(Path(package, "data").glob("cifar10_*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)
    labels = np.array([int(path.stem.split("_")[2]) for path in paths])
    assert images.shape == (20, 3, 32, 32)
    return np.ascontiguousarray(images), labels


@pytest.fixture
def batch(real_images, tmp_path):
    path = tmp_path / "test_batch"
    return path, write_batch(path, *real_images)


def test_a_batch_of_real_images_is_read_back(batch, real_images):
    data = cifar.read_batch(*batch)
    assert np.array_equal(data.images, real_images[0])
    assert np.array_equal(data.labels, real_images[1])
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == np.int64


def test_reading_a_batch_warns_of_nothing(batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar.read_batch(*batch)


@pytest.mark.parametrize("damage", ["truncate", "flip a bit", "empty"])
def test_a_damaged_batch_is_named_with_the_remedy(batch, damage):
    path, md5 = batch
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip a bit":
        content[len(content) // 2] ^= 1
    else:
        content.clear()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is incomplete or altered.*md5.*delete it"):
        cifar.read_batch(path, md5)


def test_a_pickle_with_a_wrong_checksum_is_never_opened(batch, tmp_path):
    touched = tmp_path / "touched"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (touched,)

    path, md5 = batch
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="incomplete or altered"):
        cifar.read_batch(path, md5)
    assert not touched.exists()
    pickle.loads(path.read_bytes())
    assert touched.exists(), "the pickle would not have run anything, so nothing was shown"


def test_the_set_is_put_together_from_all_its_batches(real_images, tmp_path, monkeypatch):
    images, labels = real_images
    folder = tmp_path / cifar.FOLDER
    folder.mkdir()
    train = {
        name: write_batch(folder / name, images[3 * k : 3 * k + 3], labels[3 * k : 3 * k + 3])
        for k, name in enumerate(cifar.TRAIN_BATCHES)
    }
    test = {"test_batch": write_batch(folder / "test_batch", images[15:], labels[15:])}
    monkeypatch.setattr(cifar, "TRAIN_BATCHES", train)
    monkeypatch.setattr(cifar, "TEST_BATCHES", test)
    data = cifar.read(tmp_path)
    assert np.array_equal(data.train.images, images[:15])
    assert np.array_equal(data.train.labels, labels[:15])
    assert np.array_equal(data.test.images, images[15:])
    assert len(data.classes) == 10


def test_a_missing_batch_starts_a_download_into_the_root(tmp_path, monkeypatch):
    calls = []

    def download(dataset, root, folder):
        calls.append((dataset, root, folder))
        raise FileNotFoundError("offline")

    monkeypatch.setattr(files, "download", download)
    with pytest.raises(FileNotFoundError, match="offline"):
        cifar.read(tmp_path)
    assert calls == [("CIFAR10", tmp_path, tmp_path / cifar.FOLDER)]
