"""Each corruption is what it says, where that can be worked out by other means."""

import colorsys
import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from paperkit.data import corrupt
from paperkit.data.corruptions import blur, weather
from paperkit.data.corruptions.draws import Draws
from tests.data.photographs import photographs

SEVERITIES = range(1, 6)
BLURS = ("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur")


def by_severity(*constants):
    return list(enumerate(constants, start=1))


def grey(value, n=40, channels=3, size=(32, 32)):
    return torch.full((n, channels, *size), value, dtype=torch.float64)


def point(size):
    """One white pixel in the middle of a black image."""
    image = torch.zeros(1, 1, size, size, dtype=torch.float64)
    image[0, 0, size // 2, size // 2] = 1
    return image


def assert_variance(sample, variance):
    """The sample variance of normal numbers lies within four of its standard errors."""
    assert sample.var() == pytest.approx(variance, rel=4 * math.sqrt(2 / sample.numel()))


# --- noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "sigma"), by_severity(0.04, 0.06, 0.08, 0.09, 0.10))
def test_gaussian_noise_has_its_variance(severity, sigma):
    noise = corrupt(grey(0.5), "gaussian_noise", severity) - 0.5
    assert_variance(noise, sigma**2)
    assert abs(noise.mean()) < 4 * sigma / math.sqrt(noise.numel())


@pytest.mark.parametrize(("severity", "rate"), by_severity(500, 250, 100, 75, 50))
def test_shot_noise_counts_photons(severity, rate):
    counts = corrupt(grey(0.25), "shot_noise", severity) * rate
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
    mean = 0.25 * rate
    assert counts.mean() == pytest.approx(mean, abs=4 * math.sqrt(mean / counts.numel()))
    # The variance of a Poisson sample's variance is (mean + 2 mean²) / n.
    error = math.sqrt((mean + 2 * mean**2) / counts.numel())
    assert counts.var() == pytest.approx(mean, abs=4 * error)


@pytest.mark.parametrize(("severity", "amount"), by_severity(0.01, 0.02, 0.03, 0.05, 0.07))
def test_impulse_noise_replaces_its_share_by_black_and_white_alike(severity, amount):
    result = corrupt(grey(0.5), "impulse_noise", severity)
    for share, value in ((1 - amount, 0.5), (amount / 2, 0), (amount / 2, 1)):
        error = math.sqrt(share * (1 - share) / result.numel())
        assert (result == value).double().mean() == pytest.approx(share, abs=4 * error)


@pytest.mark.parametrize(("severity", "sigma"), by_severity(0.06, 0.1, 0.12, 0.16, 0.2))
def test_speckle_noise_is_in_proportion_to_the_intensity(severity, sigma):
    for value in (0.25, 0.5):
        noise = corrupt(grey(value), "speckle_noise", severity) - value
        assert_variance(noise, (value * sigma) ** 2)
    assert not corrupt(grey(0.0), "speckle_noise", severity).any()


# --- blur ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", [*BLURS, "elastic_transform", "pixelate"])
def test_averages_leave_constant_images_alone(name, severity):
    for size in ((28, 28), (32, 32), (64, 64), (24, 50)):
        images = grey(0.3, n=2, size=size)
        torch.testing.assert_close(corrupt(images, name, severity), images, rtol=0, atol=1e-12)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur"])
@pytest.mark.parametrize("size", [28, 32, 64])
def test_kernels_have_sum_one(name, severity, size):
    assert corrupt(point(size), name, severity).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("severity", "sigma"), by_severity(0.4, 0.6, 0.7, 0.8, 1.0))
@pytest.mark.parametrize("size", [32, 64])
def test_gaussian_blur_has_the_normal_kernel_scaled_with_the_image(severity, sigma, size):
    line = corrupt(point(size), "gaussian_blur", severity)[0, 0].sum(0)
    sigma *= size / 32
    reach = int(4 * sigma + 0.5)
    places = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(places**2) / (2 * sigma**2)) * (places.abs() <= reach)
    torch.testing.assert_close(line, weights / weights.sum(), rtol=0, atol=1e-12)


def test_defocus_of_radius_one_is_a_cross_smoothed_by_its_alias():
    edge = math.exp(-1 / (2 * 0.2**2))
    line = np.array([edge, 1, edge]) / (1 + 2 * edge)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    expected = np.zeros((5, 5))
    for row, column in np.argwhere(cross):
        expected[row : row + 3, column : column + 3] += cross[row, column] * np.outer(line, line)
    result = corrupt(point(32), "defocus_blur", 4)[0, 0, 14:19, 14:19]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-15)


def test_a_kernel_is_stretched_as_its_pixels_are():
    kernel = np.outer([1.0, 2.0, 1.0], [0.0, 1.0, 3.0])
    assert np.array_equal(blur.stretched_kernel(kernel, 1.0), kernel)
    for odd in (3, 5):
        # Each pixel becomes odd × odd pixels, and their weights share its own.
        expected = np.kron(kernel, np.full((odd, odd), 1 / odd**2))
        np.testing.assert_allclose(blur.stretched_kernel(kernel, odd), expected, atol=1e-15)
    for scale in (0.25, 0.875, 1.25, 2.0):
        stretched = blur.stretched_kernel(kernel, scale)
        assert stretched.sum() == pytest.approx(kernel.sum(), rel=1e-14)


def test_glass_blur_takes_each_pixel_from_its_neighbours():
    # A pixel's value names its place; severity 1 has a kernel of one pixel.
    places = torch.arange(1024, dtype=torch.float64).reshape(1, 1, 32, 32)
    found = (corrupt(places / 1023, "glass_blur", 1) * 1023).round().long()[0, 0]
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    up, left = rows - found // 32, columns - found % 32
    moves = (rows > 1) & (columns > 1)
    assert set(torch.stack([up, left], -1)[moves].unique(dim=0).flatten().tolist()) == {0, 1}
    assert not up[~moves].any() and not left[~moves].any()
    for shift in (up, left):
        assert shift[moves].double().mean() == pytest.approx(0.5, abs=4 * 0.5 / 30)


def test_motion_blur_is_half_a_normal_kernel_along_its_direction():
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2.0**2))
    weights /= weights.sum()
    image = point(40).numpy()
    along = blur.blurred_along(image, np.array([0.0]), 6, 2.0)[0, 0]
    np.testing.assert_allclose(along[20, 20:7:-1], weights, atol=1e-15)
    assert np.count_nonzero(along) == 13
    down = blur.blurred_along(image, np.array([90.0]), 6, 2.0)[0, 0]
    np.testing.assert_allclose(down, along.T, atol=1e-15)


def test_zooming_is_that_of_scipy():
    images = photographs(32, 48)[:2].numpy()
    for factor in (1.0, 1.05, 1.21, 1.75):
        sizes = [math.ceil(size / factor) for size in images.shape[2:]]
        tops = [(size - part) // 2 for size, part in zip(images.shape[2:], sizes, strict=True)]
        part = images[:, :, tops[0] : tops[0] + sizes[0], tops[1] : tops[1] + sizes[1]]
        large = ndimage.zoom(part, (1, 1, factor, factor), order=1)
        trims = [(new - old) // 2 for new, old in zip(large.shape[2:], (32, 48), strict=True)]
        expected = large[:, :, trims[0] : trims[0] + 32, trims[1] : trims[1] + 48]
        np.testing.assert_allclose(blur.zoomed(images, factor), expected, rtol=0, atol=1e-12)


def test_zoom_blur_is_the_mean_of_the_image_and_its_enlargements():
    images = photographs()[:2]
    # The published range has these seven factors, because 1.06 - 1 is rounded up.
    factors = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06]
    enlarged = sum(blur.zoomed(images.numpy(), factor) for factor in factors)
    expected = (images + torch.from_numpy(enlarged)) / 8
    result = corrupt(images, "zoom_blur", 1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


# --- colour -------------------------------------------------------------------------------------


def ramp(channels):
    line = torch.linspace(0, 1, 32, dtype=torch.float64)
    return line.expand(1, channels, 32, 32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("severity", "amount"), by_severity(0.05, 0.1, 0.15, 0.2, 0.3))
def test_brightness_adds_to_grey(channels, severity, amount):
    expected = (ramp(channels) + amount).clamp(max=1)
    result = corrupt(ramp(channels), "brightness", severity)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("severity", "factor"), by_severity(0.75, 0.5, 0.4, 0.3, 0.15))
def test_contrast_scales_the_deviation_from_the_mean(channels, severity, factor):
    expected = 0.5 + factor * (ramp(channels) - 0.5)
    result = corrupt(ramp(channels), "contrast", severity)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)


HSV = {
    "brightness": [(1, 0, v) for v in (0.05, 0.1, 0.15, 0.2, 0.3)],
    "saturate": [(0.3, 0, 0), (0.1, 0, 0), (1.5, 0, 0), (2, 0.1, 0), (2.5, 0.2, 0)],
}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", HSV)
def test_colours_change_as_hue_saturation_and_value_do(name, severity):
    factor, more_saturation, more_value = HSV[name][severity - 1]
    colours = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    colours[0, :, 0, 0], colours[0, :, 0, 1] = 0.0, 0.4
    colours[0, :, 0, 2] = torch.tensor([1.0, 0.0, 0.0])
    expected = torch.empty_like(colours)
    for row in range(8):
        for column in range(8):
            hue, saturation, value = colorsys.rgb_to_hsv(*colours[0, :, row, column].tolist())
            saturation = min(saturation * factor + more_saturation, 1)
            changed = colorsys.hsv_to_rgb(hue, saturation, min(value + more_value, 1))
            expected[0, :, row, column] = torch.tensor(changed, dtype=torch.float64)
    torch.testing.assert_close(corrupt(colours, name, severity), expected, rtol=0, atol=1e-12)


# --- weather ------------------------------------------------------------------------------------


def test_fog_lies_between_its_bounds_and_has_one_fractal_at_equal_decay():
    value = 0.5
    layers = []
    for severity, amount in ((1, 0.2), (2, 0.5)):
        result = corrupt(grey(value, n=3, channels=1), "fog", severity)
        layers.append((result * (value + amount) / value - value) / amount)
    torch.testing.assert_close(layers[0], layers[1], rtol=0, atol=1e-12)
    assert layers[0].amin((1, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert layers[0].amax((1, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-12)


def test_a_smooth_fractal_is_smooth_and_periodic():
    rough, smooth = (
        weather.plasma(Draws(0, "fog", range(20)), 64, 64, decay)[:, 0] for decay in (1.2, 3.0)
    )
    for layer in (rough, smooth):
        around = np.abs(layer[:, :, 0] - layer[:, :, -1]).mean()
        inside = np.abs(np.diff(layer, axis=2)).mean()
        assert around < 2 * inside
    assert np.abs(np.diff(smooth, axis=2)).mean() < 0.2 * np.abs(np.diff(rough, axis=2)).mean()


def test_frost_on_black_is_a_bluish_layer_with_the_published_weights():
    mild, strong = (corrupt(grey(0.0, n=3), "procedural_frost", s) for s in (1, 2))
    torch.testing.assert_close(strong, 1.5 * mild, rtol=1e-12, atol=1e-15)
    red, green, blue = mild.unbind(1)
    torch.testing.assert_close(red, 0.85 * blue, rtol=1e-12, atol=0)
    torch.testing.assert_close(green, 0.93 * blue, rtol=1e-12, atol=0)
    assert 0.15 < blue.max() <= 0.2


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_snow_falls_from_two_opposite_sides(severity, size):
    share = [0.95, 0.9, 0.9, 0.85, 0.8][severity - 1]
    result = corrupt(grey(0.0, n=4, size=size), "snow", severity)
    torch.testing.assert_close(result, result.flip(2, 3), rtol=0, atol=1e-12)
    assert (result[:, 0] == result[:, 1]).all() and (result[:, 0] == result[:, 2]).all()
    # Black is whitened to 0.5 before it snows.
    assert result.min() >= 0.5 * (1 - share) - 1e-12


@pytest.mark.parametrize("severity", [4, 5])
def test_mud_covers_by_four_fifths_or_not_at_all(severity):
    mud = torch.tensor([63, 42, 20], dtype=torch.float64)[:, None, None] / 255
    covered = (1 - corrupt(grey(1.0), "spatter", severity)) / (1 - mud)
    torch.testing.assert_close(covered[:, 0], covered[:, 2], rtol=0, atol=1e-12)
    some = covered[covered > 1e-12]
    assert 0 < len(some) < covered.numel()
    assert some.min() >= 0.8 - 1e-12 and some.max() <= 1 + 1e-12


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_is_turquoise_of_half_strength_at_most(severity):
    result = corrupt(grey(0.0), "spatter", severity)
    turquoise = torch.tensor([175, 238, 238], dtype=torch.float64)[:, None, None] / 255
    light = result / turquoise
    torch.testing.assert_close(light[:, 0], light[:, 1], rtol=0, atol=1e-12)
    brightest = light.amax((1, 2, 3))
    wet = brightest > 0
    assert wet.any()
    torch.testing.assert_close(brightest[wet], torch.full_like(brightest[wet], 0.5))


# --- digital ------------------------------------------------------------------------------------


def test_the_elastic_transform_of_severity_one_is_an_affine_map():
    images = (ramp(1) + 2 * ramp(1).mT) / 3
    middle = corrupt(images.expand(5, -1, -1, -1), "elastic_transform", 1)[:, 0, 13:19, 13:19]
    for axis in (1, 2):
        second = middle.diff(n=2, dim=axis)
        torch.testing.assert_close(second, torch.zeros_like(second), rtol=0, atol=1e-12)
    assert (middle - images[0, 0, 13:19, 13:19]).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (64, 64), (40, 56)])
def test_pixelate_is_the_box_filter_of_pillow(severity, size):
    factor = [0.95, 0.9, 0.85, 0.75, 0.65][severity - 1]
    image = photographs(*size)[3]
    result = corrupt(image[None], "pixelate", severity)[0]
    for channel, expected in zip(image, result, strict=True):
        picture = Image.fromarray(channel.numpy().astype(np.float32))
        small = picture.resize([int(side * factor) for side in size[::-1]], Image.Resampling.BOX)
        large = np.asarray(small.resize(size[::-1], Image.Resampling.BOX))
        np.testing.assert_allclose(expected, large, rtol=0, atol=1e-6)


def test_pixelate_gives_each_block_its_mean():
    images = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0)).double()
    result = corrupt(images, "pixelate", 4)  # a side of 40 pixels has 30 blocks
    rows, columns = torch.meshgrid(*2 * [(2 * torch.arange(40) + 1) * 30 // 80], indexing="ij")
    block = rows * 30 + columns
    sums = torch.zeros(900, dtype=torch.float64).index_add(0, block.flatten(), images.flatten())
    means = sums / block.flatten().bincount()
    torch.testing.assert_close(result[0, 0], means[block], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("severity", "quality"), by_severity(80, 65, 58, 50, 40))
def test_jpeg_is_what_pillow_writes_and_reads(severity, quality):
    colour = photographs(40, 56)[7]
    for image, mode in ((colour, "RGB"), (colour[:1], "L")):
        pixels = (image * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
        content = BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=quality)
        decoded = Image.open(content)
        assert decoded.mode == mode
        expected = np.asarray(decoded).reshape(*pixels.shape[:2], -1).transpose(2, 0, 1) / 255
        result = corrupt(image[None], "jpeg_compression", severity)[0]
        np.testing.assert_array_equal(result.numpy(), expected)
