"""The 1,797 handwritten digits of 8 × 8 pixels shipped in scikit-learn (BSD licence).

It is the test part of the UCI set "Optical Recognition of Handwritten Digits", with 17
levels of grey and no split of its own. Ours is fixed: 1,437 training and 360 test images,
chosen and ordered by :func:`paperkit.data.splits.stratified` with seed 0, whatever seed
the caller passes for subsets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paperkit.data.files import RawDataset, RawImages, read_packaged_table
from paperkit.data.splits import stratified

TEST_SIZE = 360
_TABLE_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"


def read(root: Path) -> RawDataset:
    """Read the set from the folder of data sets or from the installed package."""
    table = read_packaged_table(
        root, "sklearn", "scikit-learn==1.9.1", "datasets/data/digits.csv.gz", _TABLE_SHA256
    )
    images = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)
    whole = RawImages(images, table[:, -1])
    test, train = stratified(whole.labels, TEST_SIZE, np.random.default_rng(0))
    return RawDataset(whole[train], whole[test], classes=tuple("0123456789"), white=16)
