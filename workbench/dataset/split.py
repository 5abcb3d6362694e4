"""A split into train, val and test that cannot leak: blocks of neighbours with a gap between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
_DRAWS = (200, 2000)  # the fewest and the most
_DRAWN_CHIPS = 100_000  # in all draws together: fewer chips, more draws


def spatial_split(
    boxes: NDArray[np.object_],
    objects: Sequence[Sequence[int]],
    *,
    val: float,
    test: float,
    seed: int,
) -> NDArray[np.object_]:
    """Assign chips to `train`, `val` or `test`, or to `''`: the gap between them.

    `boxes` are the chips' outlines `(n,)` in one CRS, `objects` the objects that each shows.
    Square blocks of chips stay together (block cross-validation: Roberts et al. 2017,
    doi:10.1111/ecog.02881). A chip that touches one of another split, or shows the same object,
    is left out: train gives way to val and test, and val to test. Blocks are drawn many times, with
    a seed. The draw that comes closest to the shares and leaves out the fewest chips is taken.

    scikit-learn's `GroupShuffleSplit` knows neither the gap nor objects that two chips share.
    """
    n = len(boxes)
    split = np.full(n, "train", dtype=object)
    if n == 0 or val + test == 0:
        return split
    i, j = _neighbours(boxes, objects)
    centres = shapely.get_coordinates(shapely.centroid(boxes))
    side = float(np.median(np.sqrt(shapely.area(boxes))))
    smallest = n * min(share for share in (val, test) if share > 0)
    # a small share is one block; a large one is up to four, so that it is not one place
    n_blocks = min(max(smallest / 16, 1), 4)
    block = max(1, round(np.sqrt(smallest / n_blocks))) * side
    rng = np.random.default_rng(seed)
    wanted = np.array([1 - val - test, val, test])
    best, lowest = np.zeros(n, int), np.inf
    for _ in range(int(np.clip(_DRAWN_CHIPS // n, *_DRAWS))):
        key = np.floor((centres - centres.min(axis=0)) / block + rng.random(2)).astype(int)
        _, owner = np.unique(key, axis=0, return_inverse=True)
        drawn = _draw(owner.ravel(), wanted, rng)
        kept = _with_gap(drawn, i, j)
        counts = np.bincount(kept[kept >= 0], minlength=3)
        cost = np.abs(counts / max(counts.sum(), 1) - wanted).sum() + np.mean(kept < 0)
        cost += ((counts == 0) & (wanted > 0)).sum()  # a share must not be empty
        if cost < lowest:
            best, lowest = kept, float(cost)
    return np.array([*SPLITS, ""], dtype=object)[best]


def _neighbours(
    boxes: NDArray[np.object_], objects: Sequence[Sequence[int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find pairs of chips that touch or overlap, or show the same object."""
    reach = (
        float(np.sqrt(shapely.area(boxes).min())) * 1e-3
    )  # the grids of two rasters may not meet exactly
    i, j = shapely.STRtree(boxes).query(boxes, predicate="dwithin", distance=reach)
    seen = pd.DataFrame(
        {"chip": np.repeat(np.arange(len(boxes)), [len(ids) for ids in objects]),
         "id": np.concatenate([np.asarray(ids, np.int64) for ids in objects])}
    )  # fmt: skip
    shared = seen.merge(seen, on="id")
    i = np.concatenate([i, shared["chip_x"].to_numpy()])
    j = np.concatenate([j, shared["chip_y"].to_numpy()])
    return i, j


def _draw(
    owner: NDArray[np.int64], wanted: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Fill test, then val, with blocks in random order; the rest is train (0)."""
    sizes = np.bincount(owner)
    order = list(rng.permutation(len(sizes)))
    of_block = np.zeros(len(sizes), int)
    for number in (2, 1):
        target, count = wanted[number] * len(owner), 0
        while order and target > 0 and (count == 0 or count + sizes[order[-1]] / 2 <= target):
            block = order.pop()
            of_block[block] = number
            count += sizes[block]
    return of_block[owner]


def _with_gap(
    drawn: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Leave out (-1) the chips beside a kept chip of a split with a higher number."""
    kept = drawn.copy()
    for number in (1, 0):
        beside = (kept[i] == number) & (kept[j] > number)
        kept[i[beside]] = -1
    return kept
