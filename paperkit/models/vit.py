"""Vision transformers for small images: that of Lee et al. (2021), and the simple one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit import arguments

_SHIFTS = ((1, -1, 0, 0), (-1, 1, 0, 0), (0, 0, 1, -1), (0, 0, -1, 1))
"""Zeros before and after the columns, then the rows: one pixel right, left, down and up."""


class Patches(nn.Module):
    """Cut images into square patches, row by row; no parameters.

    Parameters
    ----------
    patch : int
        Pixels on a side of a patch.
    shifted : bool
        Whether copies of the image, shifted by one pixel to each of four sides, are appended as
        channels before it is cut (Lee et al. 2021, section 3.2, whose shifts are diagonal and half
        a patch; those here are of the vit-pytorch library).
    """

    def __init__(self, patch: int, shifted: bool) -> None:
        super().__init__()
        self.patch = patch
        self.shifted = shifted

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) to (n, patches, entries of a patch)."""
        if self.shifted:
            images = torch.cat([images, *(functional.pad(images, s) for s in _SHIFTS)], dim=1)
        side = self.patch
        grid = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention after a layer normalisation.

    Parameters
    ----------
    dim : int
        Width of a token.
    heads : int
        Number of heads, a divisor of ``dim``.
    bias : bool
        Whether the last linear layer has a bias; the first has none.
    locality : bool
        Locality self-attention (Lee et al. 2021, section 3.3): no token attends to itself, and the
        factor of the scores is a learned one, the exponential of the parameter ``temperature``.
    """

    def __init__(self, dim: int, heads: int, bias: bool, locality: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.locality = locality
        self.norm = nn.LayerNorm(dim)
        if locality:
            self.temperature = nn.Parameter(self.norm.weight.new_full((1,), math.log(self.scale)))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.softmax = nn.Softmax(dim=-1)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (n, tokens, dim) to the same shape."""
        parts = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in parts)
        scores = q @ k.transpose(-2, -1)
        if self.locality:
            itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
            scores = (scores * self.temperature.exp()).masked_fill(itself, -math.inf)
        else:
            scores = scores * self.scale
        mixed = self.softmax(scores) @ v
        return self.out(mixed.transpose(-3, -2).flatten(-2))


class FeedForward(nn.Module):
    """Layer normalisation and two linear layers with a GELU in between.

    Parameters
    ----------
    dim, hidden : int
        Widths of a token and of the hidden layer.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (n, tokens, dim) to the same shape."""
        return self.fc2(self.activation(self.fc1(self.norm(tokens))))


class Block(nn.Module):
    """Attention, then a feed-forward layer, with a residual connection around each.

    Parameters
    ----------
    dim, heads, mlp_dim : int
        Width of a token, number of heads, and width of the feed-forward layer.
    bias, locality : bool
        Options of :class:`Attention`.
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int, bias: bool, locality: bool) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, bias, locality)
        self.feed_forward = FeedForward(dim, mlp_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (n, tokens, dim) to the same shape."""
        tokens = tokens + self.attention(tokens)
        return tokens + self.feed_forward(tokens)


class ViT(nn.Module):
    """Vision transformer for small data sets (Lee et al. 2021), ViT-Small of the SA-SAM release.

    Patches are shifted and normalised, embedded linearly, joined by a class token and added to
    learned positions; blocks of attention and feed-forward layers follow, then a layer
    normalisation and a linear layer on the class token. There is no dropout. Linear layers have
    PyTorch's initial weights, class token and positions are standard normal, as in the vit-pytorch
    library. The default sizes are those of the release.

    All linear layers but the last apply one weight to every token, and layer normalisation, softmax
    or GELU follow them, so that their Hessian blocks are not their Gauss–Newton blocks: measures of
    layers go the general way there, and their ``obstacle`` says why.

    Parameters
    ----------
    in_channels : int
        Channels of an input.
    num_classes : int
        Number of outputs.
    image_size : tuple of int
        Height and width of an input, multiples of ``patch``.
    patch : int
        Pixels on a side of a patch.
    dim, depth, heads, mlp_dim : int
        Width of a token, number of blocks, of heads (a divisor of ``dim``), and width of the
        feed-forward layers.
    shifted_patches : bool
        Whether copies of the image, shifted by one pixel each way, are cut into patches with it.
    locality : bool
        Whether no token attends to itself, and the factor of the scores is learned.

    Raises
    ------
    ValueError
        If patches do not divide the images, or heads the width of a token.

    Examples
    --------
    >>> import torch
    >>> from paperkit.models import ViT
    >>> model = ViT(in_channels=1, image_size=(28, 28), dim=16, depth=1, heads=2, mlp_dim=16)
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> tuple(model.positions.shape)  # 7 · 7 patches and the class token
    (50, 16)
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: tuple[int, int] = (32, 32),
        patch: int = 4,
        dim: int = 512,
        depth: int = 6,
        heads: int = 8,
        mlp_dim: int = 512,
        shifted_patches: bool = True,
        locality: bool = True,
    ) -> None:
        in_channels = arguments.integer("in_channels", in_channels, at_least=1)
        num_classes = arguments.integer("num_classes", num_classes, at_least=1)
        rows, columns = _grid(image_size, patch)
        _check_sizes(dim, depth, heads, mlp_dim)
        shifted_patches = arguments.flag("shifted_patches", shifted_patches)
        locality = arguments.flag("locality", locality)
        super().__init__()
        entries = in_channels * patch**2 * (1 + len(_SHIFTS) * shifted_patches)
        self.patches = Patches(patch, shifted_patches)
        self.patch_norm = nn.LayerNorm(entries)
        self.embedding = nn.Linear(entries, dim)
        device = self.embedding.weight.device
        self.positions = nn.Parameter(torch.randn(rows * columns + 1, dim, device=device))
        self.class_token = nn.Parameter(torch.randn(1, dim, device=device))
        self.blocks = nn.Sequential(
            *(Block(dim, heads, mlp_dim, bias=True, locality=locality) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images of shape (n, channels, height, width) to logits of shape (n, classes)."""
        patches = self.embedding(self.patch_norm(self.patches(inputs)))
        class_tokens = self.class_token.expand(len(patches), -1, -1)
        tokens = torch.cat([class_tokens, patches], dim=1) + self.positions
        return self.fc(self.norm(self.blocks(tokens)[:, 0]))


class SimpleViT(nn.Module):
    """The simple vision transformer of Beyer et al. (2022), as in the vit-pytorch library.

    Patches are normalised, embedded linearly, normalised again and added to fixed positions of
    sines and cosines; blocks of attention, without biases, and feed-forward layers follow, then a
    layer normalisation, the mean over tokens and a linear layer. Older versions of that library
    take the mean before the normalisation. Initial weights are PyTorch's. The Rényi sharpness paper
    trains one on CIFAR-10 (appendix G.2), of sizes that it does not tell; the default sizes are
    those of :class:`ViT`, and what is said there of measures of layers holds here.

    Parameters
    ----------
    in_channels : int
        Channels of an input.
    num_classes : int
        Number of outputs.
    image_size : tuple of int
        Height and width of an input, multiples of ``patch``.
    patch : int
        Pixels on a side of a patch.
    dim, depth, heads, mlp_dim : int
        Width of a token (a multiple of four, eight at least), number of blocks, of heads (a divisor
        of ``dim``), and width of the feed-forward layers.

    Raises
    ------
    ValueError
        If patches do not divide the images, heads the width of a token, or four that width.

    Examples
    --------
    >>> import torch
    >>> from paperkit.models import SimpleViT
    >>> model = SimpleViT(in_channels=1, image_size=(28, 28), dim=16, depth=1, heads=2, mlp_dim=16)
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> model.positions.requires_grad
    False
    """

    positions: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: tuple[int, int] = (32, 32),
        patch: int = 4,
        dim: int = 512,
        depth: int = 6,
        heads: int = 8,
        mlp_dim: int = 512,
    ) -> None:
        in_channels = arguments.integer("in_channels", in_channels, at_least=1)
        num_classes = arguments.integer("num_classes", num_classes, at_least=1)
        rows, columns = _grid(image_size, patch)
        _check_sizes(dim, depth, heads, mlp_dim)
        if dim % 4 or dim < 8:
            raise ValueError(
                f"dim={dim} must be a multiple of four, eight at least, for positions in sines "
                "and cosines of two coordinates."
            )
        super().__init__()
        entries = in_channels * patch**2
        self.patches = Patches(patch, shifted=False)
        self.patch_norm = nn.LayerNorm(entries)
        self.embedding = nn.Linear(entries, dim)
        self.embedding_norm = nn.LayerNorm(dim)
        positions = sinusoidal_positions(rows, columns, dim)
        self.register_buffer("positions", positions.to(self.embedding.weight))
        self.blocks = nn.Sequential(
            *(Block(dim, heads, mlp_dim, bias=False, locality=False) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images of shape (n, channels, height, width) to logits of shape (n, classes)."""
        patches = self.embedding(self.patch_norm(self.patches(inputs)))
        tokens = self.embedding_norm(patches) + self.positions
        return self.fc(self.norm(self.blocks(tokens)).mean(dim=1))


def sinusoidal_positions(rows: int, columns: int, dim: int) -> Tensor:
    r"""Return sines and cosines of the coordinates of a grid at dim/4 frequencies.

    Parameters
    ----------
    rows, columns : int
        Size of the grid.
    dim : int
        Entries for each place, a multiple of four.

    Returns
    -------
    Tensor
        Shape (rows · columns, dim), row by row: :math:`\sin x\omega_j`, :math:`\cos x\omega_j`,
        :math:`\sin y\omega_j`, :math:`\cos y\omega_j` with :math:`\omega_j = 10^{-4j/(dim/4 - 1)}`,
        x being the column; in double precision, on the CPU.
    """
    exponents = torch.linspace(0, 4, dim // 4, dtype=torch.float64, device="cpu")
    frequencies = 10.0**-exponents
    y = torch.arange(rows, device="cpu").repeat_interleave(columns)[:, None] * frequencies
    x = torch.arange(columns, device="cpu").repeat(rows)[:, None] * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


def _grid(image_size: Sequence[int], patch: int) -> tuple[int, int]:
    sides = arguments.integers("image_size", image_size, at_least=1, length=2)
    patch = arguments.integer("patch", patch, at_least=1)
    if any(side % patch for side in sides):
        raise ValueError(
            f"image_size={sides} is not cut into whole patches by patch={patch}: give a divisor "
            "of height and width."
        )
    return sides[0] // patch, sides[1] // patch


def _check_sizes(dim: int, depth: int, heads: int, mlp_dim: int) -> None:
    dim = arguments.integer("dim", dim, at_least=1)
    arguments.integer("depth", depth, at_least=1)
    heads = arguments.integer("heads", heads, at_least=1)
    arguments.integer("mlp_dim", mlp_dim, at_least=1)
    if dim % heads:
        raise ValueError(f"dim={dim} is not a multiple of heads={heads}: make it one.")
