"""Every measure of the four papers, one file a family."""

from paperkit.estimators.renyi import (
    LayerSpectrum,
    RenyiSharpness,
    layer_spectra,
    renyi_entropy,
    renyi_sharpness,
)

__all__ = [
    "LayerSpectrum",
    "RenyiSharpness",
    "layer_spectra",
    "renyi_entropy",
    "renyi_sharpness",
]
