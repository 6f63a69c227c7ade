"""Small photographs for tests: tiles of the two pictures that scikit-learn ships."""

import functools

import torch
from sklearn.datasets import load_sample_images
from torch.nn import functional


@functools.cache
def photographs(height=32, width=32, channels=3):
    """Return 24 images (n, channels, height, width) in double precision, between 0 and 1."""
    pictures = []
    for picture in load_sample_images().images:
        whole = torch.from_numpy(picture / 255).permute(2, 0, 1)[None]
        small = functional.interpolate(whole, (3 * height, 4 * width), mode="area")[0]
        tiles = small.unfold(1, height, height).unfold(2, width, width)
        pictures.append(tiles.permute(1, 2, 0, 3, 4).flatten(0, 1))
    images = torch.cat(pictures).clamp(0, 1)
    return images if channels == 3 else images.mean(1, keepdim=True)
