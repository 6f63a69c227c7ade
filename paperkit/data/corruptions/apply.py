"""One function that corrupts a batch of images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from paperkit import arguments
from paperkit.data.corruptions import blur, colour, digital, noise, weather
from paperkit.data.corruptions.constants import CONSTANTS
from paperkit.data.corruptions.draws import Draws

_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "procedural_frost": weather.procedural_frost,
    "fog": weather.fog,
    "brightness": colour.brightness,
    "contrast": colour.contrast,
    "saturate": colour.saturate,
    "spatter": weather.spatter,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}

CORRUPTIONS: tuple[str, ...] = tuple(_FUNCTIONS)
"""The names that :func:`corrupt` knows."""

_SMALLEST_SIDE = 8
_AT_ONCE = 256
"""Images that are corrupted at a time, which bounds the memory."""


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupt images in the style of CIFAR-10-C.

    The 19 corruptions and their five severities have the constants of Hendrycks and Dietterich
    (2019, *Benchmarking neural network robustness to common corruptions and perturbations*) for
    CIFAR-10-C, which are milder than those of ImageNet-C. They are computed anew, so results
    are of the same kind as the archive's and not its bytes; a set made with them is called
    CIFAR-C-style. :func:`load_corrupted` reads the archive itself.

    Lengths in pixels are scaled with the shorter side over 32, the published size: standard
    deviations and radii of blurs, the largest shift of ``glass_blur``, the flakes of ``snow``,
    the drops of ``spatter`` and the displacements of ``elastic_transform``.

    Other differences from the archive:

    * ``procedural_frost`` has the archive's weights, but its frost is a fractal where the
      archive has photographs. A result with it is not one of the archive's ``frost``.
    * ``spatter`` takes the borders of drops where the archive runs an edge detector.
    * ``jpeg_compression`` alone rounds to bytes.

    A higher severity does not always change the images more in the mean square, because the
    published constants do not all grow together:

    * ``glass_blur`` scatters alike at severities 1 to 3, and at 4 and 5. Between them only the
      blur grows, which smooths what was scattered.
    * ``motion_blur`` is the same at 3 and 4, where only a radius grows that is six standard
      deviations long already.
    * ``procedural_frost`` darkens the image from 3 on, against what the frost brightens.
    * ``saturate`` removes colour at 1 and 2 and adds it from 3 on.
    * ``spatter`` turns from water to mud at 4.
    * ``elastic_transform`` has an affine map that shrinks from 1 to 5, while displacements grow
      from nothing to half a pixel.

    Parameters
    ----------
    images : Tensor
        Shape (n, channels, height, width) with 1 or 3 channels and sides of 8 pixels or more;
        floating-point numbers from 0 to 1, so before any normalisation.
    name : str
        The corruption, in :data:`CORRUPTIONS`.
    severity : int
        From 1 to 5.
    seed : int
        Seed of all draws. Those of an image depend on the seed, the corruption and the image's
        place in the batch, and neither on the severity nor on the other images.

    Returns
    -------
    Tensor
        Same shape, dtype and device, between 0 and 1; ``images`` is left alone. The computation
        runs on the CPU in double precision.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or images of one channel, which have no colour, are
        to be saturated.

    Examples
    --------
    >>> import torch
    >>> from paperkit.data import corrupt
    >>> ramp = torch.linspace(0, 1, 8, dtype=torch.float64).expand(1, 1, 8, 8)
    >>> faint = corrupt(ramp, "contrast", severity=2)  # halves the distance from the mean
    >>> float(faint.min()), float(faint.max())
    (0.25, 0.75)
    >>> noisy = corrupt(ramp, "gaussian_noise", severity=1, seed=3)
    >>> bool((noisy == corrupt(ramp, "gaussian_noise", severity=1, seed=3)).all())
    True
    """
    arguments.tensor(
        "images", images, shape=("n", "channels", "height", "width"), floating=True, finite=True
    )
    name = arguments.choice("name", name, CORRUPTIONS)
    severity = arguments.integer("severity", severity, at_least=1, at_most=5)
    seed = arguments.integer("seed", seed, at_least=0)
    _check_images(images, name)
    pixels = images.detach().to(device="cpu", dtype=torch.float64).numpy()
    result = np.empty_like(pixels)
    for start in range(0, len(pixels), _AT_ONCE):
        part = range(start, min(start + _AT_ONCE, len(pixels)))
        chunk = pixels[part.start : part.stop]
        corrupted = _FUNCTIONS[name](chunk, Draws(seed, name, part), *CONSTANTS[name][severity - 1])
        result[part.start : part.stop] = np.clip(corrupted, 0, 1)
    return torch.from_numpy(result).to(device=images.device, dtype=images.dtype)


def _check_images(images: Tensor, name: str) -> None:
    shown, (channels, height, width) = arguments.shown(images), images.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"images={shown} must have 1 or 3 channels, not {channels}.")
    if min(height, width) < _SMALLEST_SIDE:
        raise ValueError(
            f"images={shown} must have sides of {_SMALLEST_SIDE} pixels at least: smaller ones "
            "have nothing to blur."
        )
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"images={shown} must lie between 0 and 1, not between {low:.3g} and {high:.3g}: load "
            "them with normalize=False, or undo the normalisation."
        )
    if name == "saturate" and channels == 1:
        raise ValueError(
            f"images={shown} must have 3 channels for name='saturate': grey has no colour."
        )
