"""One function that turns the name of a data set into tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paperkit import arguments
from paperkit.data import cifar, digits, idx, mnist5k, tiny_imagenet
from paperkit.data.files import Images, RawDataset, data_root
from paperkit.data.splits import stratified

_READERS: dict[str, Callable[[Path], RawDataset]] = {
    "mnist5k": mnist5k.read,
    "digits": digits.read,
    "fashion-mnist": partial(idx.read, idx.FASHION_MNIST),
    "mnist": partial(idx.read, idx.MNIST),
    "cifar10": partial(cifar.read, "CIFAR10"),
    "cifar100": partial(cifar.read, "CIFAR100"),
    "tiny-imagenet": tiny_imagenet.read,
}

NAMES: tuple[str, ...] = tuple(_READERS)
"""The names that :func:`load` knows."""

_LARGEST_COUNT = 2**62

# Numbers that tell the choices of one seed apart.
_VALIDATION, TRAIN, TEST = 0, 1, 2


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One part of a data set.

    Attributes
    ----------
    inputs : Tensor
        Shape (n, channels, height, width), floating point.
    targets : Tensor
        Shape (n,), int64, on the same device.

    Raises
    ------
    ValueError
        If the two do not hold the same number of samples.

    Examples
    --------
    >>> import torch
    >>> from paperkit.data import Split
    >>> split = Split(inputs=torch.zeros(4, 1, 8, 8), targets=torch.tensor([0, 1, 0, 1]))
    >>> split
    Split(n=4, shape=(1, 8, 8))
    >>> len(split), split.targets.bincount()
    (4, tensor([2, 2]))
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        arguments.tensor("inputs", self.inputs, shape=("n", "…"), empty=True)
        arguments.tensor("targets", self.targets, shape=(len(self.inputs), "…"), empty=True)

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"Split(n={len(self)}, shape={tuple(self.inputs.shape[1:])})"


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A data set in memory.

    Attributes
    ----------
    name : str
        The set's name, in :data:`NAMES`.
    classes : tuple of str
        Names of the classes, in the order of the targets.
    train, validation, test : Split
        The three parts; ``validation`` has length 0 unless it was asked for.
    mean, std : Tensor
        Shape (channels,): mean and standard deviation (dividing by the number of pixels)
        of the training part as it is here, on the scale from 0 to 1. Where the data are
        normalised, x ↦ x · std + mean undoes it.

    Examples
    --------
    >>> from paperkit.data import load
    >>> digits = load("digits", train_size=200)
    >>> digits.shape, digits.num_classes
    ((1, 8, 8), 10)
    >>> pixels = digits.train.inputs * digits.std + digits.mean  # undoes the normalisation
    >>> round(float(pixels.max()), 4)
    1.0
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: Tensor
    std: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one input."""
        channels, height, width = self.train.inputs.shape[1:]
        return channels, height, width

    def __repr__(self) -> str:
        return (
            f"ImageData({self.name!r}, shape={self.shape}, classes={self.num_classes}, "
            f"train={len(self.train)}, validation={len(self.validation)}, test={len(self.test)})"
        )


def load(
    name: str,
    *,
    root: str | Path | None = None,
    validation: float | int = 0,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    normalize: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ImageData:
    """Load a data set as tensors.

    ``mnist5k`` and ``digits`` ship in installed packages and carry a fixed split of ours
    (see their modules); the others have official training and test parts, and are
    downloaded to ``root`` where they are not found. Every file is verified by checksum.
    ``cifar100`` has its fine labels. ``tiny-imagenet`` is the exception: it is not downloaded,
    its official validation part serves as test part because the test labels are secret, only its
    archive is verified by checksum and an unpacked folder by counts and sizes, and of its images
    only those of the parts that were asked for are read.

    The validation part is taken out of the official training part first, and the training
    subset chosen from what remains, so ``train_size`` does not change which samples
    validate. All choices keep the proportions of the classes and depend on ``seed`` alone.
    A part that is a subset comes in random order, so that a prefix of it is a fair sample;
    a whole official part keeps its own order.

    Parameters
    ----------
    name : str
        The set's name, in :data:`NAMES`.
    root : str or Path, optional
        Folder of downloaded sets; by default the environment variable ``PAPERKIT_DATA``,
        else ``~/.cache/paperkit/data``.
    validation : float or int
        Samples to set aside for validation: a count, or a fraction below 1 of the official
        training part.
    train_size, test_size : int, optional
        Size of a subset; by default everything that is there.
    seed : int
        Seed of the validation part and of the subsets.
    normalize : bool
        Whether to subtract the mean and divide by the standard deviation of the training
        part, by channel; otherwise inputs lie between 0 and 1.
    device : torch.device or str
        Where the tensors live.
    dtype : torch.dtype
        Floating-point type of the inputs.

    Returns
    -------
    ImageData
        Training, validation and test parts, classes and statistics.

    Raises
    ------
    FileNotFoundError
        If a file is missing and cannot be downloaded.
    TypeError
        If a size is neither a count nor, for ``validation``, a fraction.
    ValueError
        If the name is unknown, a file is damaged, or a size does not fit the set.

    Examples
    --------
    >>> from paperkit.data import load
    >>> load("digits", validation=0.1, train_size=500)  # nothing is downloaded for this one
    ImageData('digits', shape=(1, 8, 8), classes=10, train=500, validation=144, test=360)
    >>> one, other = load("digits", train_size=500), load("digits", train_size=500)
    >>> bool((one.train.inputs == other.train.inputs).all())  # the seed decides, and nothing else
    True
    """
    name = arguments.choice("name", name, NAMES)
    seed = arguments.integer("seed", seed, at_least=0)
    normalize = arguments.flag("normalize", normalize)
    device, dtype = arguments.device("device", device), arguments.dtype("dtype", dtype)
    for argument, size in (("train_size", train_size), ("test_size", test_size)):
        if size is not None:
            arguments.integer(argument, size, at_least=1)
    _validation_count(validation)
    raw = _READERS[name](data_root(root))

    validation_count = _validation_count(validation, len(raw.train))
    held_out, train = _divide(raw.train, validation_count, seed)
    if train_size is not None:
        train_size = subset_size("train_size", train_size, len(train))
        train = subset(train, train_size, seed, stream=TRAIN)
    test = raw.test
    if test_size is not None:
        test_size = subset_size("test_size", test_size, len(test))
        test = subset(test, test_size, seed, stream=TEST)

    mean, std = (
        torch.as_tensor(statistic, dtype=dtype, device=device)
        for statistic in channel_statistics(train.images, raw.white)
    )
    statistics = (mean, std) if normalize else None

    def split(part: Images) -> Split:
        return to_split(part, raw.white, statistics, device=device, dtype=dtype)

    return ImageData(
        name=name,
        classes=raw.classes,
        train=split(train),
        validation=split(held_out),
        test=split(test),
        mean=mean,
        std=std,
    )


def channel_statistics(images: np.ndarray, white: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel, on the scale from 0 to 1.

    They are computed from the histogram of the stored values, so the result does not
    depend on the order of the samples or on how a sum is rounded.

    Parameters
    ----------
    images : numpy.ndarray
        Shape (n, channels, height, width), uint8.
    white : int
        The stored value that becomes 1.

    Returns
    -------
    mean, std : numpy.ndarray
        Shape (channels,), float64.
    """
    histograms = np.stack(
        [np.bincount(images[:, k].ravel(), minlength=256) for k in range(images.shape[1])]
    )
    values = np.arange(256) / white
    probabilities = histograms / histograms.sum(axis=1, keepdims=True)
    mean = probabilities @ values
    variance = (probabilities * (values - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.sqrt(variance)


def _validation_count(validation: float | int, available: int = _LARGEST_COUNT) -> int:
    reason = "a fraction; give a count as an integer"
    if isinstance(validation, float):
        share = arguments.number("validation", validation, at_least=0, below=1, because=reason)
        return round(share * available)
    most, reason = available - 1, "one of the training samples must be left"
    return arguments.integer("validation", validation, at_least=0, at_most=most, because=reason)


def subset_size(argument: str, size: int, available: int) -> int:
    """Return a subset's size, or refuse it in a sentence that names ``argument``."""
    reason = f"{available} samples are there"
    return arguments.integer(argument, size, at_least=1, at_most=available, because=reason)


def _divide(whole: Images, size: int, seed: int) -> tuple[Images, Images]:
    if size == 0:
        return whole[np.arange(0)], whole
    chosen, rest = stratified(whole.labels, size, np.random.default_rng([seed, _VALIDATION]))
    return whole[chosen], whole[rest]


def subset(whole: Images, size: int, seed: int, *, stream: int) -> Images:
    """Return a stratified subset in random order, or the whole in its own order.

    Parameters
    ----------
    whole : Images
        The part to choose from.
    size : int
        Samples to choose; all of them keep their order.
    seed : int
        Seed of the choice and of the order.
    stream : int
        Number of the part: :data:`TRAIN` or :data:`TEST`.
    """
    if size == len(whole):
        return whole
    chosen, _ = stratified(whole.labels, size, np.random.default_rng([seed, stream]))
    return whole[chosen]


def to_split(
    part: Images,
    white: int,
    statistics: tuple[Tensor, Tensor] | None,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Split:
    """Return stored images as a tensor on its device, between 0 and 1 or normalised.

    Parameters
    ----------
    part : Images
        Images and labels.
    white : int
        The stored value that becomes 1.
    statistics : tuple of Tensor or None
        Mean and standard deviation of each channel, which normalise.
    device, dtype
        Place and type of the inputs.
    """
    # The bytes travel to the device; the four or eight times larger floats are made there.
    inputs = torch.from_numpy(part.images).to(device=device).to(dtype=dtype).div_(white)
    if statistics is not None:
        mean, std = statistics
        inputs.sub_(mean[:, None, None]).div_(std[:, None, None])
    return Split(inputs, torch.from_numpy(part.labels).to(device=device))
