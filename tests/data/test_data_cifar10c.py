"""The archive CIFAR-10-C, from files of the real layout with 20 images for each severity."""

import tracemalloc

import numpy as np
import pytest
import torch

from paperkit.data import ARCHIVE_CORRUPTIONS, Split, cifar10c, load, load_corrupted

COUNT = 20


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(cifar10c, "IMAGES", COUNT)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8)
    return images, np.tile(rng.permutation(np.arange(COUNT) % 10).astype(np.uint8), 5)


@pytest.fixture
def root(tmp_path, arrays):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "fog.npy", arrays[0])
    np.save(folder / "labels.npy", arrays[1])
    return tmp_path


def test_the_names_are_those_of_the_archive():
    # The arrays of CIFAR-10-C.tar at https://zenodo.org/records/2535967, without labels.npy.
    assert sorted(ARCHIVE_CORRUPTIONS) == [
        "brightness",
        "contrast",
        "defocus_blur",
        "elastic_transform",
        "fog",
        "frost",
        "gaussian_blur",
        "gaussian_noise",
        "glass_blur",
        "impulse_noise",
        "jpeg_compression",
        "motion_blur",
        "pixelate",
        "saturate",
        "shot_noise",
        "snow",
        "spatter",
        "speckle_noise",
        "zoom_blur",
    ]


@pytest.mark.parametrize("severity", range(1, 6))
def test_a_severity_is_its_own_rows(root, arrays, severity, device):
    images, labels = arrays
    split = load_corrupted("fog", severity, root=root, device=device)
    assert isinstance(split, Split)
    assert split.inputs.dtype == torch.float32
    assert split.inputs.device.type == split.targets.device.type == device.type
    expected = images[(severity - 1) * COUNT : severity * COUNT].transpose(0, 3, 1, 2)
    assert np.array_equal(split.inputs.cpu().mul(255).round().byte(), expected)
    assert split.targets.tolist() == labels[:COUNT].tolist()


@pytest.mark.parametrize(("size", "severities"), [(10, 0.5), (None, 1.5)])
def test_only_the_images_asked_for_are_read(tmp_path, monkeypatch, size, severities):
    monkeypatch.setattr(cifar10c, "IMAGES", 400)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "snow.npy", np.zeros((2000, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(2000) % 10)
    tracemalloc.start()
    try:
        split = load_corrupted("snow", 3, root=tmp_path, size=size)
        # The peak counts NumPy's memory, but neither a mapped file nor tensors.
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(split) == (size or 400)
    assert peak < severities * 400 * 32 * 32 * 3


def test_a_subset_keeps_the_classes_and_is_the_clean_test_subset(root, arrays, monkeypatch):
    from paperkit.data import datasets
    from paperkit.data.files import RawDataset, RawImages

    images, labels = arrays
    test = RawImages(images[:COUNT].transpose(0, 3, 1, 2), labels[:COUNT].astype(np.int64))
    clean = RawDataset(test, test, tuple("0123456789"))
    monkeypatch.setitem(datasets._READERS, "cifar10", lambda root: clean)
    subset = load_corrupted("fog", 1, root=root, size=10, seed=6)
    assert subset.targets.bincount().tolist() == [1] * 10
    reference = load("cifar10", test_size=10, seed=6, normalize=False).test
    assert torch.equal(subset.inputs, reference.inputs)
    assert torch.equal(subset.targets, reference.targets)
    other = load_corrupted("fog", 1, root=root, size=10, seed=7)
    assert not torch.equal(other.inputs, subset.inputs)


def test_inputs_are_normalised_like_other_data(root, monkeypatch):
    from paperkit.data import datasets
    from paperkit.data.files import RawDataset, RawImages

    rng = np.random.default_rng(1)
    train = RawImages(rng.integers(0, 99, (9, 3, 32, 32), dtype=np.uint8), np.arange(9))
    monkeypatch.setitem(
        datasets._READERS, "cifar10", lambda root: RawDataset(train, train, tuple("0123456789"))
    )
    data = load("cifar10")
    plain = load_corrupted("fog", 2, root=root, dtype=torch.float64)
    normalised = load_corrupted("fog", 2, root=root, like=data, dtype=torch.float64)
    mean, std = data.mean[:, None, None].double(), data.std[:, None, None].double()
    expected = (plain.inputs - mean) / std
    torch.testing.assert_close(normalised.inputs, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"like=.*must have 3 channels"):
        load_corrupted("fog", 2, root=root, like=load("digits"))


def test_missing_files_say_where_to_get_them(tmp_path, root):
    with pytest.raises(FileNotFoundError, match=r"snow\.npy is missing; download https://zenodo"):
        load_corrupted("snow", 1, root=root)
    (root / "CIFAR-10-C" / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.npy is missing; download https://zenodo"):
        load_corrupted("fog", 1, root=root)


def test_pickled_arrays_are_refused(root):
    np.save(root / "CIFAR-10-C" / "fog.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"fog\.npy is truncated or no array of bytes; delete it"):
        load_corrupted("fog", 1, root=root)


@pytest.mark.parametrize("length", [0, 50, 5000])
def test_a_truncated_array_is_named(root, length):
    path = root / "CIFAR-10-C" / "fog.npy"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"{path} is truncated or no array of bytes; delete it"):
        load_corrupted("fog", 1, root=root)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fog", lambda images: images[:-1]),
        ("fog", lambda images: images.transpose(0, 3, 1, 2)),
        ("fog", lambda images: images.astype(np.float32)),
        ("labels", lambda labels: labels[:COUNT]),
        ("labels", lambda labels: labels.astype(np.float64)),
    ],
)
def test_another_shape_or_type_is_named(root, name, change):
    path = root / "CIFAR-10-C" / f"{name}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(ValueError, match=f"{path} has shape .* and type .* where CIFAR-10-C has"):
        load_corrupted("fog", 1, root=root)


def reorder(labels):
    return np.concatenate([labels[:COUNT], labels[COUNT:][::-1]])


@pytest.mark.parametrize("change", [reorder, lambda labels: labels + 1])
def test_labels_that_are_no_five_equal_parts_are_refused(root, change):
    path = root / "CIFAR-10-C" / "labels.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(ValueError, match=f"{path} must repeat 20 labels from 0 to 9 for each of 5"):
        load_corrupted("fog", 1, root=root)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"name": "procedural_frost"}, ValueError, "name='procedural_frost' is unknown"),
        ({"severity": 0}, ValueError, "severity=0 must be between 1 and 5"),
        ({"severity": 2.5}, TypeError, "severity=2.5 must be an integer"),
        ({"size": 21}, ValueError, "size=21 must be between 1 and 20"),
        ({"size": 0}, ValueError, "size=0 must be between 1 and 20"),
        ({"seed": -1}, ValueError, "seed=-1 must be at least 0"),
        ({"like": "cifar10"}, TypeError, "like='cifar10' must be"),
    ],
)
def test_arguments_that_do_not_fit_get_one_sentence(root, options, error, sentence):
    given = {"name": "fog", "severity": 1} | options
    with pytest.raises(error, match=sentence):
        load_corrupted(**given, root=root)
