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
from torchvision.datasets import CIFAR10, CIFAR100

from paperkit.data import cifar, files, load

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


def write_batch(path, images, **labels):
    """Write a batch file in the sets' format and return its MD5 sum."""
    batch = {
        b"data": images.reshape(len(images), -1),
        **{key.encode(): [int(label) for label in values] for key, values in labels.items()},
        b"batch_label": b"testing batch 1 of 1",
        b"filenames": [b"%d.png" % k for k in range(len(images))],
    }
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(batch)
    content = path.read_bytes().replace(b"numpy._core.", b"numpy.core.")
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def images_of_foolbox(name):
    """Return the twenty test images that foolbox ships, their labels in the file names."""
    package = importlib.util.find_spec("foolbox").submodule_search_locations[0]
    paths = sorted(Path(package, "data").glob(f"{name}_*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)
    labels = np.array([int(path.stem.split("_")[2]) for path in paths])
    assert images.shape == (20, 3, 32, 32)
    return np.ascontiguousarray(images), labels


@pytest.fixture(scope="module")
def real_images():
    return images_of_foolbox("cifar10")


@pytest.fixture
def root(real_images, tmp_path, monkeypatch):
    """A folder with the set's files, three images in each training batch and five in the test."""
    images, labels = real_images
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    parts = {name: slice(3 * k, 3 * k + 3) for k, (name, _) in enumerate(CIFAR10.train_list)}
    train = [
        [name, write_batch(folder / name, images[p], labels=labels[p])] for name, p in parts.items()
    ]
    path = folder / "test_batch"
    test = [["test_batch", write_batch(path, images[15:], labels=labels[15:])]]
    meta = pickle.dumps({"label_names": list(CLASSES)})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": hashlib.md5(meta).hexdigest()})
    return tmp_path


def test_the_set_is_put_together_from_all_its_batches(root, real_images):
    images, labels = real_images
    data = cifar.read("CIFAR10", root)
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
        cifar.read("CIFAR10", root)


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
        cifar.read("CIFAR10", root)


@pytest.mark.parametrize("name", ["data_batch_5", "batches.meta"])
def test_a_pickle_with_a_wrong_checksum_is_never_opened(root, name, tmp_path):
    touched = tmp_path / "touched"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (touched,)

    path = root / CIFAR10.base_folder / name
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="incomplete or altered"):
        cifar.read("CIFAR10", root)
    assert not touched.exists()
    pickle.loads(path.read_bytes())
    assert touched.exists(), "the pickle would not have run anything, so nothing was shown"


def test_the_checksums_are_those_of_the_published_set():
    sums = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    assert len(sums) == 6
    assert sums["data_batch_1"] == "c99cafc152244af753f735de768cd75f"
    assert sums["test_batch"] == "40351d587109b95175f43aff81a1287e"


@pytest.fixture
def root_of_100(tmp_path, monkeypatch):
    """A folder with the files of CIFAR-100: fifteen training images and five test images."""
    images, labels = images_of_foolbox("cifar100")
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    for name, part in (("train", slice(15)), ("test", slice(15, None))):
        md5 = write_batch(
            folder / name,
            images[part],
            fine_labels=labels[part],
            coarse_labels=labels[part] // 5,
        )
        monkeypatch.setattr(CIFAR100, f"{name}_list", [[name, md5]])
    meta = {
        "fine_label_names": [f"fine {k}" for k in range(100)],
        "coarse_label_names": [f"coarse {k}" for k in range(20)],
    }
    content = pickle.dumps(meta)
    (folder / "meta").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5})
    return tmp_path


def test_cifar100_has_its_images_and_fine_labels(root_of_100):
    images, labels = images_of_foolbox("cifar100")
    data = load("cifar100", root=root_of_100, normalize=False)
    assert data.classes == tuple(f"fine {k}" for k in range(100))
    assert np.array_equal(data.train.inputs.mul(255).round().byte(), images[:15])
    assert np.array_equal(data.test.inputs.mul(255).round().byte(), images[15:])
    assert data.train.targets.tolist() == labels[:15].tolist()
    assert data.test.targets.tolist() == labels[15:].tolist()
    assert labels.max() >= 20, "coarse labels would pass as well"


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_file_of_cifar100_is_named_before_it_is_opened(root_of_100, name):
    path = root_of_100 / CIFAR100.base_folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is incomplete or altered.*md5.*delete it"):
        load("cifar100", root=root_of_100)


def test_the_checksums_are_those_of_the_published_cifar100():
    assert CIFAR100.train_list == [["train", "16019d7e3df5f24257cddd939b257f8d"]]
    assert CIFAR100.test_list == [["test", "f0ef6b0ae62326f3e7ffdfab6717acfc"]]
    assert CIFAR100.meta["md5"] == "7973b15100ade9c7d40fb424638fde48"


def test_a_missing_batch_starts_a_download_into_the_root(tmp_path, monkeypatch):
    calls = []

    def download(dataset, root, folder):
        calls.append((dataset, root, folder))
        raise FileNotFoundError("offline")

    monkeypatch.setattr(files, "download", download)
    with pytest.raises(FileNotFoundError, match="offline"):
        cifar.read("CIFAR10", tmp_path)
    assert calls == [("CIFAR10", tmp_path, tmp_path / CIFAR10.base_folder)]
