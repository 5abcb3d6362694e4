"""What is offered as labels of what SAM's own selection keeps.

Selection compares boxes, so it lets masks pass that a reviewer would only delete: one that covers
its whole tile, one that repeats another, two that share half of their area. The rules here look at
the masks themselves. They are the same within a tile and, in `merge_seams`, across tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates.rle import encode_masks
from workbench.candidates.select import suppress
from workbench.candidates.table import Candidates
from workbench.raster.tiles import Tile, TileGrid

Overlaps = Literal["all", "nested", "one"]

TOUCH_PX = 2  # networks stop a pixel or two short of the edge
SIDES = 3  # a mask that touches so many edges of the scene is its background
# shares of the smaller of two masks that both cover
# measured by benchmarks/labels.py: from 0.75 on, objects went with what overlapped them
APART = 0.25  # up to this they are neighbours whose outlines are not exact
INSIDE = 0.65  # from this on the smaller one is a part of the larger one


@dataclass(frozen=True)
class Offer:
    """Which of the selected masks become labels.

    `max_area_share` leaves out masks that cover more of their tile's valid pixels, and those that
    touch three or four edges of the scene, or of their tile if no neighbour continues them; None
    offers them. `duplicate_iou` leaves out the worse
    of two masks with a higher IoU; None offers both. `overlaps` says what may lie on top of each
    other: `all` that is selected, `nested` only parts on their wholes, `one` nothing: at each place
    there is one label.
    """

    max_area_share: float | None = 0.8
    duplicate_iou: float | None = 0.7
    overlaps: Overlaps = "nested"


class Reason(IntEnum):
    """Why a mask is offered or not."""

    OFFERED = 0
    WHOLE_TILE = 1  # as large as its tile
    DUPLICATE = 2  # of a better one
    OVERLAP = 3  # with a better one


@dataclass(frozen=True)
class Offered:
    """The reason of each row `(n,)`, and the row that it gives way to, -1 for none."""

    reason: NDArray[np.uint8]
    rival: NDArray[np.int64]


@dataclass(frozen=True)
class Shared:
    """Pairs of rows `(m,)` that have an area in common, and its size.

    Where `overlaps` is false, the pair may overlap as it likes; it may not be a double.
    """

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    common: NDArray[np.float64]
    overlaps: NDArray[np.bool_]


def offered(
    candidates: Candidates,
    grid: TileGrid,
    valid: Mapping[tuple[int, int], NDArray[np.bool_]],
    offer: Offer,
) -> Candidates:
    """Keep those of the selected candidates that become labels, tile by tile.

    Args:
        candidates: Those that `select` has kept, of any tiles of one scene.
        grid: The scene's tiles.
        valid: The `(h, w)` validity mask of each tile (row, column) that has invalid pixels.
        offer: Which masks to leave out.

    Returns:
        The candidates that become labels, in the same order.

    Example:
        >>> labels = offered(select(candidates, Thresholds()), grid, {}, Offer())
    """
    index = np.column_stack([candidates.column("tile_row"), candidates.column("tile_col")])
    found, tile_of = np.unique(index, axis=0, return_inverse=True)
    keep = np.zeros(len(candidates), bool)
    for number, (row, col) in enumerate(found.tolist()):
        rows = np.flatnonzero(tile_of == number)
        masks = TileMasks(candidates.take(rows), grid.tile(row, col), grid, valid.get((row, col)))
        keep[rows[masks.labels(np.arange(len(rows)), offer)]] = True
    return candidates.take(keep)


class TileMasks:
    """The masks of one tile and what they share; each pair is compared once."""

    def __init__(
        self,
        candidates: Candidates,
        tile: Tile,
        grid: TileGrid,
        valid: NDArray[np.bool_] | None,
    ) -> None:
        size = [candidates.rules.height, candidates.rules.width]
        counts = candidates.table.column("rle").to_pylist()
        self._rles = [{"size": size, "counts": rle} for rle in counts]
        self._area = candidates.column("area_px").astype(float)
        self._rank = np.empty(len(candidates), np.int64)
        self.pred_iou = candidates.column("pred_iou").astype(float)
        best_first = np.lexsort((candidates.column("ordinal"), -self.pred_iou))
        self._rank[best_first] = np.arange(len(candidates))
        self._sides = _scene_edges_touched(candidates.boxes, tile, grid)
        self.share = self._shares(tile, grid, valid)  # of the tile's valid pixels
        self._compared = np.zeros(len(candidates), bool)
        self._i, self._j = np.empty((2, 0), np.int64)
        self._common = np.empty(0)

    def offered(self, rows: NDArray[np.int64], offer: Offer, last: int = -1) -> Offered:
        """Decide for `rows`, all that are selected; other rows count as offered.

        One row may come `last`, whatever its score: it gives way to all others.
        """
        reason = np.full(len(self._rles), Reason.OFFERED, np.uint8)
        rival = np.full(len(self._rles), -1, np.int64)
        left = np.zeros(len(self._rles), bool)
        left[rows] = True
        if offer.max_area_share is not None:
            whole = left & ((self.share > offer.max_area_share) | (self._sides >= SIDES))
            reason[whole], left[whole] = Reason.WHOLE_TILE, False
        if offer.overlaps != "all" or offer.duplicate_iou is not None:
            self._compare(np.flatnonzero(left))
            both = left[self._i] & left[self._j]
            i, j, common = self._i[both], self._j[both], self._common[both]
            shared = Shared(i, j, common, np.ones(len(i), bool))
            rank = self._rank
            if last >= 0:
                rank = rank.copy()
                rank[last] = len(rank)
            decided = one_label_per_object(shared, self._area, rank, offer)
            gone = decided.reason != Reason.OFFERED
            reason[gone], rival[gone] = decided.reason[gone], decided.rival[gone]
        return Offered(reason, rival)

    def labels(self, rows: NDArray[np.int64], offer: Offer) -> NDArray[np.int64]:
        """Return those of the selected `rows` that are offered."""
        return rows[self.offered(rows, offer).reason[rows] == Reason.OFFERED]

    def shared(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """All pairs of rows `(m,)` that have an area in common, and its size in pixels."""
        self._compare(np.arange(len(self._rles)))
        return self._i, self._j, self._common

    def _compare(self, rows: NDArray[np.int64]) -> None:
        """Find the pairs of these rows that share an area."""
        new = rows[~self._compared[rows]]
        if not len(new):
            return
        known = np.flatnonzero(self._compared)
        others = np.concatenate((known, new))
        ours = [self._rles[row] for row in new.tolist()]
        theirs = [self._rles[row] for row in others.tolist()]
        iou = np.asarray(coco.iou(ours, theirs, [0] * len(theirs)))
        a, b = np.nonzero(iou)
        once = b < len(known) + a  # of two new ones the pair is there twice
        a, b = a[once], b[once]
        i, j = new[a], others[b]
        share = iou[a, b]
        common = share * (self._area[i] + self._area[j]) / (1 + share)
        self._i, self._j = np.append(self._i, i), np.append(self._j, j)
        self._common = np.append(self._common, common)
        self._compared[new] = True

    def _shares(
        self, tile: Tile, grid: TileGrid, valid: NDArray[np.bool_] | None
    ) -> NDArray[np.float64]:
        width = min(grid.width - tile.window.col_off, tile.window.width)
        height = min(grid.height - tile.window.row_off, tile.window.height)
        if valid is None and (width, height) == (tile.window.width, tile.window.height):
            return self._area / (width * height)
        inside = np.zeros((tile.window.height, tile.window.width), bool)
        inside[:height, :width] = True if valid is None else valid[:height, :width]
        if not self._rles or not inside.any():
            return np.zeros(len(self._rles))
        there = {"size": list(inside.shape), "counts": encode_masks(inside[None])[0]}
        # of a crowd, COCO's IoU is the share of the mask that lies in it
        covered = np.asarray(coco.iou(self._rles, [there], [1]))[:, 0] * self._area
        return covered / float(inside.sum())


def one_label_per_object(
    shared: Shared, area: NDArray[np.float64], rank: NDArray[np.int64], offer: Offer
) -> Offered:
    """Leave out what repeats a better row, or overlaps it as `offer` does not allow.

    `area` and `rank` (best first) are `(n,)`. Greedy from the best row on, so the result does not
    depend on the order of the pairs.
    """
    smaller = np.minimum(area[shared.i], area[shared.j])
    union = area[shared.i] + area[shared.j] - shared.common
    twice = np.zeros(len(shared.i), bool)
    if offer.duplicate_iou is not None:
        twice = shared.common > offer.duplicate_iou * union
    both = twice.copy()
    if offer.overlaps != "all":
        partly = shared.overlaps & (shared.common > APART * smaller)
        if offer.overlaps == "nested":
            partly &= shared.common < INSIDE * smaller
        both |= partly
    i, j, twice = shared.i[both], shared.j[both], twice[both]
    first = rank[i] < rank[j]
    better, worse = np.where(first, i, j), np.where(first, j, i)
    order = np.lexsort((rank[worse], rank[better]))
    better, worse, twice = better[order], worse[order], twice[order]
    reason = np.full(len(area), Reason.OFFERED, np.uint8)
    rival = np.full(len(area), -1, np.int64)
    alive = suppress(np.ones(len(area), bool), np.column_stack((better, worse)))
    told = np.flatnonzero(alive[better])[::-1]  # of several rivals the best is told
    reason[worse[told]] = np.where(twice[told], Reason.DUPLICATE, Reason.OVERLAP)
    rival[worse[told]] = better[told]
    return Offered(reason, rival)


def _scene_edges_touched(boxes: NDArray[np.int32], tile: Tile, grid: TileGrid) -> NDArray[np.int64]:
    """How many of the scene's four edges each box touches; no other tile sees what lies there."""
    x0, y0 = boxes[:, 0] + tile.window.col_off, boxes[:, 1] + tile.window.row_off
    x1, y1 = boxes[:, 2] + tile.window.col_off, boxes[:, 3] + tile.window.row_off
    touched = (x0 < TOUCH_PX, y0 < TOUCH_PX, x1 >= grid.width - TOUCH_PX,
               y1 >= grid.height - TOUCH_PX)  # fmt: skip
    return np.sum(touched, axis=0).astype(np.int64)
