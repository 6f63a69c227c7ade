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
from torchvision.datasets import CIFAR10

from paperkit.data import cifar, files

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


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
def root(real_images, tmp_path, monkeypatch):
    """A folder with the set's files, three images in each training batch and five in the test."""
    images, labels = real_images
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    parts = {name: slice(3 * k, 3 * k + 3) for k, (name, _) in enumerate(CIFAR10.train_list)}
    train = [[name, write_batch(folder / name, images[p], labels[p])] for name, p in parts.items()]
    test = [["test_batch", write_batch(folder / "test_batch", images[15:], labels[15:])]]
    meta = pickle.dumps({"label_names": list(CLASSES)})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": hashlib.md5(meta).hexdigest()})
    return tmp_path


def test_the_set_is_put_together_from_all_its_batches(root, real_images):
    images, labels = real_images
    data = cifar.read(root)
    assert np.array_equal(data.train.images, images[:15])
    assert np.array_equal(data.train.labels, labels[:15])
    assert np.array_equal(data.test.images, images[15:])
    assert np.array_equal(data.test.labels, labels[15:])
    assert data.classes == CLASSES
    for part in (data.train, data.test):
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int64
        assert part.images.flags.c_contiguous


def test_reading_the_set_warns_of_nothing(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar.read(root)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["truncate", "flip a bit", "empty"])
def test_a_damaged_file_is_named_with_the_remedy(root, name, damage):
    path = root / CIFAR10.base_folder / name
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip a bit":
        content[len(content) // 2] ^= 1
    else:
        content.clear()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is incomplete or altered.*md5.*delete it"):
        cifar.read(root)


@pytest.mark.parametrize("name", ["data_batch_5", "batches.meta"])
def test_a_pickle_with_a_wrong_checksum_is_never_opened(root, name, tmp_path):
    touched = tmp_path / "touched"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (touched,)

    path = root / CIFAR10.base_folder / name
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="incomplete or altered"):
        cifar.read(root)
    assert not touched.exists()
    pickle.loads(path.read_bytes())
    assert touched.exists(), "the pickle would not have run anything, so nothing was shown"


def test_the_checksums_are_those_of_the_published_set():
    sums = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    assert len(sums) == 6
    assert sums["data_batch_1"] == "c99cafc152244af753f735de768cd75f"
    assert sums["test_batch"] == "40351d587109b95175f43aff81a1287e"


def test_a_missing_batch_starts_a_download_into_the_root(tmp_path, monkeypatch):
    calls = []

    def download(dataset, root, folder):
        calls.append((dataset, root, folder))
        raise FileNotFoundError("offline")

    monkeypatch.setattr(files, "download", download)
    with pytest.raises(FileNotFoundError, match="offline"):
        cifar.read(tmp_path)
    assert calls == [("CIFAR10", tmp_path, tmp_path / CIFAR10.base_folder)]
