"""What is offered as labels of what SAM's own selection keeps.

Selection compares boxes, so it lets masks pass that a reviewer would only delete: one that covers
its whole tile, one that repeats another, two that share half of their area. The rules here look at
the masks themselves. They are the same within a tile and, in `merge_seams`, across tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from threading import RLock
from typing import Literal, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates.select import suppress
from workbench.candidates.table import Candidates
from workbench.candidates.valid import on_valid_pixels, valid_in_scene
from workbench.raster.tiles import Tile, TileGrid

Overlaps = Literal["all", "nested", "one"]

TOUCH_PX = 2  # networks stop a pixel or two short of the edge
SIDES = 3  # a mask that touches so many edges of the scene is its background
# shares of the smaller of two masks that both cover
# measured by benchmarks/labels.py: from 0.75 on, objects went with what overlapped them
APART = 0.25  # up to this they are neighbours whose outlines are not exact
INSIDE = 0.65  # from this on the smaller one is a part of the larger one
AT_ONCE = 1024  # masks that are compared together: memory


@dataclass(frozen=True)
class Offer:
    """Which of the selected masks become labels.

    `max_area_share` leaves out masks that cover more of their tile's valid pixels, and those that
    touch three or four edges of the scene, or of their tile if no neighbour continues them; None
    offers them. `duplicate_iou` leaves out the worse
    of two masks with a higher IoU; None offers both. `overlaps` says what may lie on top of each
    other: `all` that is selected, `nested` only parts on their wholes, `one` nothing: at each place
    there is one label. Two masks are at different places if both cover at most the share `apart`
    of the smaller one. `by_class` says that the candidates are those of concepts: which class lies
    where decides about them, as for learned classes.
    """

    max_area_share: float | None = 0.8
    duplicate_iou: float | None = 0.7
    overlaps: Overlaps = "nested"
    apart: float = APART
    by_class: bool = False


# where classes are known, a score tells which of two masks is meant, so neighbours may share more
ONE_CLASS_PER_PLACE = Offer(None, None, "one", apart=0.5)


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

    def among(self, rows: NDArray[np.bool_]) -> Shared:
        """The pairs of which both rows are marked, `(n,)`."""
        both = rows[self.i] & rows[self.j]
        return Shared(self.i[both], self.j[both], self.common[both], self.overlaps[both])

    def conflicting(self, area: NDArray[np.float64], offer: Offer) -> Shared:
        """The pairs that `offer` does not allow; `area` `(n,)` is that of the rows."""
        both, _ = _forbidden(self, area, offer)
        return Shared(self.i[both], self.j[both], self.common[both], self.overlaps[both])


_NONE_SHARED = Shared(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, bool))


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


class MaskPairs:
    """What the masks of one tile have in common; each pair is compared once."""

    def __init__(self, candidates: Candidates) -> None:
        size = [candidates.rules.height, candidates.rules.width]
        counts = candidates.table.column("rle").to_pylist()
        self.rles = [{"size": size, "counts": rle} for rle in counts]
        self.area = candidates.column("area_px").astype(float)
        self._boxes = candidates.boxes
        self._compared = np.zeros(len(candidates), bool)
        self.shared = _NONE_SHARED

    def compare(self, rows: NDArray[np.int64]) -> bool:
        """Put the pairs of these rows that have an area in common into `shared`.

        Returns whether there were rows that had not been compared before.
        """
        new = rows[~self._compared[rows]]
        pairs = [self.shared]
        for start in range(0, len(new), AT_ONCE):
            ours = new[start : start + AT_ONCE]
            known = self._near(ours, np.flatnonzero(self._compared))
            pairs += [self.between(ours, known), _each_once(self.between(ours, ours))]
            self._compared[ours] = True
        if len(new):
            columns = zip(*((one.i, one.j, one.common, one.overlaps) for one in pairs), strict=True)
            self.shared = Shared(*map(np.concatenate, columns))
        return len(new) > 0

    def between(self, ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> Shared:
        """The pairs of a row of `ours` and one of `theirs` that have an area in common."""
        if not len(ours) or not len(theirs):
            return _NONE_SHARED
        mine, others = [[self.rles[row] for row in rows.tolist()] for rows in (ours, theirs)]
        iou = np.asarray(coco.iou(mine, others, [0] * len(others)))
        a, b = np.nonzero(iou)
        i, j, share = ours[a], theirs[b], iou[a, b]
        common = np.rint(share * (self.area[i] + self.area[j]) / (1 + share))  # whole pixels
        return Shared(i, j, common, np.ones(len(i), bool))

    def _near(self, ours: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of `rows` whose box meets one of `ours`: the masks of others need no decoding."""
        if not len(rows):
            return rows
        boxes = [shapely.box(*self._boxes[some].T.astype(float)) for some in (ours, rows)]
        return rows[np.unique(shapely.STRtree(boxes[1]).query(boxes[0])[1])]


@dataclass(frozen=True)
class Conflicts:
    """Pairs of rows `(m,)` of which only one may be a label, from the best row on.

    `twice`: the worse one is a double of the better one.
    """

    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    twice: NDArray[np.bool_]

    @classmethod
    def of(
        cls, shared: Shared, area: NDArray[np.float64], rank: NDArray[np.int64], offer: Offer
    ) -> Self:
        """Find the pairs that `offer` does not allow.

        `area` and `rank` (best first) are `(n,)`. The order of the pairs does not matter.
        """
        both, twice = _forbidden(shared, area, offer)
        i, j, twice = shared.i[both], shared.j[both], twice[both]
        first = rank[i] < rank[j]
        better, worse = np.where(first, i, j), np.where(first, j, i)
        order = np.lexsort((rank[worse], rank[better]))
        return cls(better[order], worse[order], twice[order])

    def decide(self, among: NDArray[np.bool_]) -> Offered:
        """Leave out the worse row of each pair, greedily; `among` `(n,)` are the rows to ask for.

        The others count as offered.
        """
        alive = suppress(among, np.column_stack((self.better, self.worse)))
        reason = np.full(len(among), Reason.OFFERED, np.uint8)
        rival = np.full(len(among), -1, np.int64)
        told = np.flatnonzero(alive[self.better] & among[self.worse])[::-1]  # the best rival last
        worse = self.worse[told]
        reason[worse] = np.where(self.twice[told], Reason.DUPLICATE, Reason.OVERLAP)
        rival[worse] = self.better[told]
        return Offered(reason, rival)


def one_label_per_object(
    shared: Shared, area: NDArray[np.float64], rank: NDArray[np.int64], offer: Offer
) -> Offered:
    """Leave out what repeats a better row, or overlaps it as `offer` does not allow.

    `area` and `rank` (best first) are `(n,)`.
    """
    return Conflicts.of(shared, area, rank, offer).decide(np.ones(len(area), bool))


class TileMasks:
    """The masks of one tile, and which of them may be labels beside each other.

    Several threads may use it: in the tuner one works ahead while another one learns classes.
    """

    def __init__(
        self,
        candidates: Candidates,
        tile: Tile,
        grid: TileGrid,
        valid: NDArray[np.bool_] | None,
    ) -> None:
        # a label has no invalid pixels, so masks are compared without them
        valid = valid_in_scene(valid, tile, grid)
        seen = {} if valid is None else {(tile.row, tile.col): valid}
        self.candidates = candidates = on_valid_pixels(candidates, grid, seen)
        self._lock = RLock()  # of all that is compared once: pairs and conflicts belong together
        self._pairs = MaskPairs(candidates)
        self._rank = np.empty(len(candidates), np.int64)
        self.pred_iou = candidates.column("pred_iou").astype(float)
        best_first = np.lexsort((candidates.column("ordinal"), -self.pred_iou))
        self._rank[best_first] = np.arange(len(candidates))
        self._sides = _scene_edges_touched(candidates.boxes, tile, grid)
        n_valid = tile.window.width * tile.window.height if valid is None else valid.sum()
        self.share = self._pairs.area / max(1, n_valid)  # of the tile's valid pixels
        self._conflicts: tuple[Offer, Conflicts] | None = None  # of all that were compared

    def offered(self, rows: NDArray[np.int64], offer: Offer) -> Offered:
        """Decide for `rows`, all that are selected; other rows count as offered."""
        left = np.zeros(len(self._rank), bool)
        left[rows] = True
        whole = left & self.as_large_as_the_tile(offer)
        left &= ~whole
        if offer.overlaps != "all" or offer.duplicate_iou is not None:
            decided = self._conflicts_among(np.flatnonzero(left), offer).decide(left)
        else:
            offered = np.full(len(left), Reason.OFFERED, np.uint8)
            decided = Offered(offered, np.full(len(left), -1, np.int64))
        decided.reason[whole] = Reason.WHOLE_TILE
        return decided

    def labels(self, rows: NDArray[np.int64], offer: Offer) -> NDArray[np.int64]:
        """Return those of the selected `rows` that are offered."""
        return rows[self.offered(rows, offer).reason[rows] == Reason.OFFERED]

    def may_join(self, row: int, labels: NDArray[np.int64], offer: Offer) -> bool:
        """Whether a row may be one more label beside others, to all of which it gives way."""
        if self.as_large_as_the_tile(offer)[row]:
            return False
        shared = self._pairs.between(np.array([row]), labels)
        return not _forbidden(shared, self._pairs.area, offer)[0].any()

    @property
    def pairs(self) -> MaskPairs:
        """What the masks have in common, as far as they were compared."""
        return self._pairs

    def compare(self, rows: NDArray[np.int64]) -> None:
        """Compare these masks with one another now, so that `offered` need not."""
        with self._lock:
            if self._pairs.compare(rows):
                self._conflicts = None

    def _conflicts_among(self, rows: NDArray[np.int64], offer: Offer) -> Conflicts:
        """All known conflicts, and at least those of `rows`: selected rows change, they do not."""
        with self._lock:
            self.compare(rows)
            if self._conflicts is None or self._conflicts[0] != offer:
                found = Conflicts.of(self._pairs.shared, self._pairs.area, self._rank, offer)
                self._conflicts = offer, found
            return self._conflicts[1]

    def as_large_as_the_tile(self, offer: Offer) -> NDArray[np.bool_]:
        """Mark the rows `(n,)` that are too large a part of their tile for a label."""
        if offer.max_area_share is None:
            return np.zeros(len(self.share), bool)
        return np.asarray((self.share > offer.max_area_share) | (self._sides >= SIDES), bool)


def _each_once(shared: Shared) -> Shared:
    """Keep one of (i, j) and (j, i), and no row with itself."""
    once = shared.i < shared.j
    return Shared(shared.i[once], shared.j[once], shared.common[once], shared.overlaps[once])


def _forbidden(
    shared: Shared, area: NDArray[np.float64], offer: Offer
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs `(m,)` may not both be labels, and which of these are duplicates."""
    smaller = np.minimum(area[shared.i], area[shared.j])
    union = area[shared.i] + area[shared.j] - shared.common
    twice = np.zeros(len(shared.i), bool)
    if offer.duplicate_iou is not None:
        twice = shared.common > offer.duplicate_iou * union
    both = twice.copy()
    if offer.overlaps != "all":
        partly = shared.overlaps & (shared.common > offer.apart * smaller)
        if offer.overlaps == "nested":
            partly &= shared.common < INSIDE * smaller
        both |= partly
    return both, twice


def _scene_edges_touched(boxes: NDArray[np.int32], tile: Tile, grid: TileGrid) -> NDArray[np.int64]:
    """How many of the scene's four edges each box touches; no other tile sees what lies there."""
    x0, y0 = boxes[:, 0] + tile.window.col_off, boxes[:, 1] + tile.window.row_off
    x1, y1 = boxes[:, 2] + tile.window.col_off, boxes[:, 3] + tile.window.row_off
    touched = (x0 < TOUCH_PX, y0 < TOUCH_PX, x1 >= grid.width - TOUCH_PX,
               y1 >= grid.height - TOUCH_PX)  # fmt: skip
    return np.sum(touched, axis=0).astype(np.int64)
