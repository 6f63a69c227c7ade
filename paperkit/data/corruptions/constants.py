"""The constants of CIFAR-10-C: one row for each severity, from 1 to 5.

Hendrycks and Dietterich (2019) publish them in the script that made the archive,
``make_cifar_c.py`` of https://github.com/hendrycks/robustness (Apache License 2.0). They are much
milder than those of ImageNet-C. Lengths are in pixels of images whose shorter side has 32.
"""

from __future__ import annotations

SIDE = 32
"""The shorter side, in pixels, of the images that the constants are meant for."""

CONSTANTS: dict[str, tuple[tuple[float, ...], ...]] = {
    # standard deviation
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    # photons at full intensity
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    # share of the values that are replaced
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    # standard deviation at full intensity
    "speckle_noise": ((0.06,), (0.10,), (0.12,), (0.16,), (0.20,)),
    # standard deviation of the kernel
    "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1.0,)),
    # radius of the disk, standard deviation of the kernel that smooths it
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    # standard deviation of the kernel, largest shift, rounds
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    # radius, standard deviation of the kernel
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    # end of the range of factors, which begins at 1 and has steps of 0.01
    "zoom_blur": ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,)),
    # mean and standard deviation of the flakes, their size, threshold, radius and standard
    # deviation of their motion blur, share of the image that is not whitened
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    # factor of the image, factor of the frost
    "procedural_frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    # amount, decay of the fractal's roughness
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    # addition to the value of HSV
    "brightness": ((0.05,), (0.10,), (0.15,), (0.20,), (0.30,)),
    # factor of the deviation from the mean
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    # factor of the saturation of HSV, and addition to it
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    # mean and standard deviation of the liquid, its smoothing, threshold, intensity of water or
    # smoothing of mud, whether it is mud
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    # strength and smoothing of the displacements, shift of the affine map's points, over the side
    "elastic_transform": (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    # factor of the number of pixels of a side
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    # quality
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
}
