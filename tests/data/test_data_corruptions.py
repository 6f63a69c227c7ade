"""Corruptions: the published constants, and what holds for all of them."""

import numpy as np
import pytest
import torch

from paperkit.data import CORRUPTIONS, corrupt
from paperkit.data.corruptions.constants import CONSTANTS
from tests.data.photographs import photographs

SIZES = [(28, 28), (32, 32), (64, 64), (40, 56)]
SEVERITIES = range(1, 6)

# The constants of make_cifar_c.py in https://github.com/hendrycks/robustness, commit ca36008,
# typed from there. Zoom blur has ranges there, whose ends stand here, and elastic transform has
# the image's side of 32 as a factor.
PUBLISHED = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "speckle_noise": [0.06, 0.1, 0.12, 0.16, 0.2],
    "gaussian_blur": [0.4, 0.6, 0.7, 0.8, 1],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [1.06, 1.11, 1.16, 1.21, 1.26],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "spatter": [
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
    "jpeg_compression": [80, 65, 58, 50, 40],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "elastic_transform": [
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ],
}

# Severities that change images less than the severity before, by the published constants: glass
# blur smooths more what it scatters alike; saturation is removed before it is added; spatter turns
# from water to mud; the affine map of the elastic transform shrinks; frost is laid over a darker
# image.
FALLS = {
    "glass_blur": {2, 3, 5},
    "saturate": {3},
    "spatter": {4},
    "elastic_transform": {2, 3, 4, 5},
    "procedural_frost": {4},
}


def few(height=32, width=32, channels=3):
    return photographs(height, width, channels)[::5]


def channels_of(name):
    return (3,) if name == "saturate" else (1, 3)


def test_there_are_nineteen_with_the_published_constants():
    assert len(CORRUPTIONS) == 19
    table = {
        name: [row if isinstance(row, tuple) else (row,) for row in rows]
        for name, rows in PUBLISHED.items()
    }
    table["procedural_frost"] = table.pop("frost")
    assert {name: list(rows) for name, rows in CONSTANTS.items()} == table
    assert set(CONSTANTS) == set(CORRUPTIONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_images_of_any_size_stay_images(name, size):
    for channels in channels_of(name):
        images = few(*size, channels)
        before = images.clone()
        for severity in (1, 3, 5):
            result = corrupt(images, name, severity)
            assert result.shape == images.shape
            assert result.dtype == images.dtype
            assert result.min() >= 0 and result.max() <= 1
            assert result.isfinite().all()
            assert not torch.equal(result, images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_dtype_and_device_are_kept(name, device):
    images = few().to(device)[:2]
    exact = corrupt(images, name, 2)
    assert exact.device == images.device
    for dtype, unit in ((torch.float32, 2**-23), (torch.float16, 2**-10)):
        rounded = images.to(dtype)
        result = corrupt(rounded, name, 2)
        assert result.dtype == dtype
        assert result.device == images.device
        # The same computation in double precision, rounded once at the end.
        again = corrupt(rounded.double(), name, 2)
        torch.testing.assert_close(result.double(), again, rtol=unit, atol=unit)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_alone_decides(name):
    images = few()
    first = corrupt(images, name, 4, seed=7)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert first.numpy().tobytes() == corrupt(images, name, 4, seed=7).numpy().tobytes()


RANDOM = sorted(
    set(CORRUPTIONS)
    - {"gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate"}
    - {"pixelate", "jpeg_compression"}
)


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_and_another_place_give_other_draws(name):
    images = few()[:1].expand(3, -1, -1, -1)
    result = corrupt(images, name, 4, seed=0)
    assert not torch.equal(result, corrupt(images, name, 4, seed=1))
    assert not torch.equal(result[0], result[1])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_does_not_depend_on_those_after_it(name, monkeypatch):
    monkeypatch.setattr("paperkit.data.corruptions.apply._AT_ONCE", 2)
    images = few()
    whole, beginning = corrupt(images, name, 3, seed=2), corrupt(images[:3], name, 3, seed=2)
    torch.testing.assert_close(beginning, whole[:3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_a_higher_severity_changes_images_more_where_the_constants_grow(name, size):
    images = photographs(*size)[::2]
    changes = [float((corrupt(images, name, s) - images).square().mean()) for s in SEVERITIES]
    for severity in range(2, 6):
        before, after = changes[severity - 2 : severity]
        if name == "motion_blur" and severity == 4:
            # The weights beyond six standard deviations are all that changes.
            assert after == pytest.approx(before, rel=1e-6)
        else:
            assert (after < before) == (severity in FALLS.get(name, ())), (severity, changes)


BAD = {
    "integers": (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "floating-point numbers"),
    "three dimensions": (torch.zeros(3, 8, 8), r"of shape \(n, channels, height, width\)"),
    "no image": (torch.zeros(0, 3, 8, 8), "with one entry at least"),
    "two channels": (torch.zeros(1, 2, 8, 8), "must have 1 or 3 channels, not 2"),
    "a small side": (torch.zeros(1, 3, 8, 7), "must have sides of 8 pixels at least"),
    "normalised": (torch.full((1, 1, 8, 8), -0.5), "must lie between 0 and 1.*normalize=False"),
    "bytes": (torch.full((1, 1, 8, 8), 255.0), "must lie between 0 and 1, not between 255 and"),
    "NaN": (torch.full((1, 1, 8, 8), torch.nan), "finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_are_no_images_gets_one_sentence(case):
    images, sentence = BAD[case]
    with pytest.raises(ValueError, match=f"images=.*{sentence}"):
        corrupt(images, "contrast", 1)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"name": "frost"}, ValueError, "name='frost' is unknown"),
        ({"name": "fogg"}, ValueError, r"name='fogg' is unknown \(did you mean 'fog'\?\)"),
        ({"severity": 0}, ValueError, "severity=0 must be between 1 and 5"),
        ({"severity": 6}, ValueError, "severity=6 must be between 1 and 5"),
        ({"severity": 1.5}, TypeError, "severity=1.5 must be an integer"),
        ({"seed": -1}, ValueError, "seed=-1 must be at least 0"),
        ({"name": "saturate"}, ValueError, "images=.*must have 3 channels for name='saturate'"),
        ({"images": np.zeros((1, 1, 8, 8))}, TypeError, "images=.*must be a Tensor"),
    ],
)
def test_other_arguments_that_do_not_fit_get_one_sentence(options, error, sentence):
    given = {"images": torch.zeros(1, 1, 8, 8), "name": "fog", "severity": 1} | options
    with pytest.raises(error, match=sentence):
        corrupt(**given)
