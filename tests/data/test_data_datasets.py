import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from paperkit.data import NAMES, Split, load
from paperkit.data.datasets import channel_statistics

SHIPPED = {"mnist5k": ((1, 28, 28), 4000, 1000), "digits": ((1, 8, 8), 1437, 360)}


def image_set(split):
    return {image.cpu().numpy().tobytes() for image in split.inputs}


def counts(split):
    return np.bincount(split.targets.cpu(), minlength=10)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sets_have_their_shapes_counts_and_types(name, device):
    shape, train, test = SHIPPED[name]
    data = load(name, device=device)
    assert data.name == name
    assert data.shape == shape
    assert data.num_classes == 10
    assert (len(data.train), len(data.validation), len(data.test)) == (train, 0, test)
    assert data.validation.inputs.shape == (0, *shape)
    for split in (data.train, data.validation, data.test):
        assert split.inputs.dtype == torch.float32
        assert split.targets.dtype == torch.int64
        assert split.inputs.device.type == split.targets.device.type == device.type


@pytest.mark.parametrize("name", SHIPPED)
def test_training_and_test_images_are_disjoint(name):
    data = load(name)
    # digits and MNIST repeat no image within these sets except by rare chance, so a split
    # that leaked would share hundreds.
    assert len(image_set(data.train) & image_set(data.test)) == 0


def test_mnist5k_is_split_into_400_and_100_of_every_digit():
    data = load("mnist5k")
    assert counts(data.train).tolist() == [400] * 10
    assert counts(data.test).tolist() == [100] * 10


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("mnist5k", "f985f3e50436d985277e934028e24568f0c1cb494a9818ffe0d21c73738d28cb"),
        ("digits", "560434937e4c2d67fd5c1983e9315a192422f66b480a88e7a94cd50856977300"),
    ],
)
def test_the_fixed_split_of_shipped_sets_never_moves(name, digest):
    data = load(name, normalize=False, seed=5)
    pixels = torch.cat([data.train.inputs, data.test.inputs]).mul(255).round().byte()
    content = pixels.numpy().tobytes() + data.train.targets.numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == digest


def test_digits_are_the_images_and_labels_of_scikit_learn():
    reference = load_digits()
    pixels = {
        (image.astype(np.float32) / 16).tobytes(): label
        for image, label in zip(reference.images, reference.target, strict=True)
    }
    data = load("digits", normalize=False)
    for split in (data.train, data.test):
        for image, label in zip(split.inputs, split.targets, strict=True):
            assert pixels[image.numpy().tobytes()] == label
    assert len(data.train) + len(data.test) == len(reference.target)


def test_normalisation_centres_and_scales_the_training_part():
    data = load("mnist5k", dtype=torch.float64)
    inputs = data.train.inputs.numpy()  # numpy sums pairwise, to a few units of round-off
    assert inputs.mean() == pytest.approx(0, abs=1e-12)
    assert inputs.std() == pytest.approx(1, abs=1e-12)


def test_statistics_are_those_of_the_training_subset_and_undo_the_normalisation():
    options = {"train_size": 50, "validation": 100, "dtype": torch.float64}
    data = load("mnist5k", **options)
    plain = load("mnist5k", normalize=False, **options)
    assert torch.equal(data.mean, plain.mean)
    assert plain.mean.item() == pytest.approx(plain.train.inputs.numpy().mean(), rel=1e-12)
    assert plain.std.item() == pytest.approx(plain.train.inputs.numpy().std(), rel=1e-12)
    for name in ("train", "validation", "test"):
        restored = getattr(data, name).inputs * data.std + data.mean
        torch.testing.assert_close(restored, getattr(plain, name).inputs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", SHIPPED)
def test_unnormalised_inputs_fill_the_range_from_zero_to_one(name):
    data = load(name, normalize=False)
    assert data.train.inputs.min() == 0
    assert data.train.inputs.max() == 1


def test_statistics_of_several_channels_agree_with_numpy():
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5), dtype=np.uint8)
    mean, std = channel_statistics(images, 255)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 2, 3)), rtol=1e-13)


def test_parts_are_stratified_disjoint_and_of_the_size_asked_for():
    data = load("mnist5k", validation=500, train_size=1000, test_size=200)
    assert counts(data.validation).tolist() == [50] * 10
    assert counts(data.train).tolist() == [100] * 10
    assert counts(data.test).tolist() == [20] * 10
    parts = [image_set(data.train), image_set(data.validation), image_set(data.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1700


def test_a_fraction_for_validation_is_one_of_the_training_part():
    data = load("digits", validation=0.2)
    assert len(data.validation) == round(0.2 * 1437)
    assert len(data.train) + len(data.validation) == 1437


def test_the_training_size_does_not_change_which_samples_validate():
    small = load("digits", validation=100, train_size=50, normalize=False)
    large = load("digits", validation=100, normalize=False)
    assert torch.equal(small.validation.inputs, large.validation.inputs)


def test_the_seed_decides_the_subset():
    def inputs(seed):
        return load("digits", train_size=50, seed=seed, normalize=False).train.inputs

    assert torch.equal(inputs(1), inputs(1))
    assert not torch.equal(inputs(1), inputs(2))


def test_the_parts_own_their_memory():
    data = load("digits", train_size=10)
    data.train.inputs.zero_()
    assert load("digits", train_size=10).train.inputs.abs().sum() > 0


def test_reprs_are_one_line():
    data = load("digits")
    assert repr(data) == (
        "ImageData('digits', shape=(1, 8, 8), classes=10, train=1437, validation=0, test=360)"
    )
    assert repr(data.train) == "Split(n=1437, shape=(1, 8, 8))"


def test_an_unknown_name_gets_a_suggestion_and_the_list():
    with pytest.raises(
        ValueError, match=r"'minst5k' is unknown \(did you mean 'mnist5k'\?\)"
    ) as error:
        load("minst5k")
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"train_size": 0}, ValueError, "train_size=0 must be at least 1"),
        ({"train_size": 1438}, ValueError, "train_size=1438 must be between 1 and 1437"),
        ({"train_size": 10.0}, TypeError, "train_size=10.0 must be an integer"),
        ({"test_size": 361}, ValueError, "test_size=361 must be between 1 and 360"),
        ({"test_size": True}, TypeError, "test_size=True must be an integer"),
        ({"validation": 1.0}, ValueError, "validation=1.0 must be .* a fraction"),
        ({"validation": -1}, ValueError, "validation=-1 must be between 0"),
        ({"validation": 1437}, ValueError, "validation=1437 must be between 0 and 1436"),
        ({"validation": "0.1"}, TypeError, "validation='0.1' must be an integer"),
        ({"seed": -1}, ValueError, "seed=-1 must be at least 0"),
        ({"seed": 0.5}, TypeError, "seed=0.5 must be an integer"),
    ],
)
def test_sizes_and_seeds_that_do_not_fit_get_one_sentence(options, error, sentence):
    with pytest.raises(error, match=sentence):
        load("digits", **options)


def test_a_split_needs_one_target_for_each_input(device):
    with pytest.raises(ValueError, match=r"targets=.* of shape \(3, …\)"):
        Split(torch.zeros(3, 1, 2, 2, device=device), torch.zeros(2, device=device))
