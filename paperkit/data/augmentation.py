"""Random crops and flips of a batch, without a loop over its samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from paperkit import arguments


def augment(
    inputs: Tensor, generator: torch.Generator, padding: int = 4, flip: bool = True
) -> Tensor:
    """Shift each image by its own random offset and flip it with probability ½.

    This is the augmentation of He et al. (2016, section 4.2) for CIFAR: pad every side with
    zeros, crop at random to the original size, mirror horizontally at random. On normalised
    data zero is the training mean.

    Parameters
    ----------
    inputs : Tensor
        Shape (n, channels, height, width), any device.
    generator : torch.Generator
        Source of the offsets and flips. A CPU generator gives the same augmentation on
        every device.
    padding : int
        Largest shift in pixels, in each direction.
    flip : bool
        Whether to mirror; for digits and letters it should be off.

    Returns
    -------
    Tensor
        Same shape, dtype and device; ``inputs`` is left alone.

    Raises
    ------
    ValueError
        If ``inputs`` is not a batch of images or ``padding`` is negative.

    Examples
    --------
    >>> import torch
    >>> from paperkit.data import augment
    >>> image = torch.zeros(1, 1, 3, 3)
    >>> image[0, 0, 1, 1] = 1.0
    >>> moved = augment(image, torch.Generator().manual_seed(0), padding=1)
    >>> moved.shape, float(moved.sum())  # a pixel in the middle stays in sight
    (torch.Size([1, 1, 3, 3]), 1.0)
    """
    arguments.tensor("inputs", inputs, shape=("n", "channels", "height", "width"), dense=True)
    arguments.instance("generator", generator, torch.Generator)
    most, reason = max(inputs.shape[2:]), "more would move images out of sight"
    padding = arguments.integer("padding", padding, at_least=0, at_most=most, because=reason)
    flip = arguments.flag("flip", flip)
    n, channels, height, width = inputs.shape
    draw_device = generator.device
    shifts = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=draw_device)
    rows = shifts[0] + torch.arange(height, device=draw_device)
    columns = shifts[1] + torch.arange(width, device=draw_device)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator, device=draw_device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded_width = width + 2 * padding
    pixels = (rows[:, :, None] * padded_width + columns[:, None, :]).reshape(n, 1, -1)
    pixels = pixels.to(inputs.device).expand(n, channels, -1)
    padded = functional.pad(inputs, (padding, padding, padding, padding))
    return padded.flatten(2).gather(2, pixels).reshape(inputs.shape)
