"""The rest of a mask that a tile's edge has cut, if the neighbour did not select it.

A neighbour may have proposed the rest of an object and scored it below the thresholds, because it
sees less of it. The rest is still among its stored candidates. It is taken if it agrees with the
piece inside the overlap of both tiles, so that the object does not end in a straight line.

Everything here is about boxes and run-length encodings in pixels. Later, `merge_seams` joins these
polygons like all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates.offer import SIDES, TOUCH_PX, Offer, TileMasks
from workbench.candidates.rle import cropped
from workbench.candidates.table import Candidates
from workbench.polygons.seam_pairs import AGREE
from workbench.raster.tiles import Tile, TileGrid

RowCol = tuple[int, int]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of a tile, end exclusive


@dataclass(frozen=True)
class _Part:
    """What a tile shows in its overlap with a neighbour: masks, and which of them it cuts."""

    rles: list[dict[str, Any]]
    cut: NDArray[np.bool_]


ShownBeside = dict[RowCol, _Part]  # by neighbour


@dataclass(frozen=True)
class _Piece:
    """A mask inside an overlap, and where the overlap lies in the tile that may continue it.

    `shown_by` is the tile that has the mask; with `number`, it tells pieces apart.
    """

    rle: dict[str, Any]
    overlap: Box
    shown_by: RowCol
    number: int


class Found(NamedTuple):
    """Rows of a tile's candidates, ascending."""

    continues: NDArray[np.int64]  # a piece of a neighbour
    too_large: NDArray[np.int64]  # the rest of a piece, but as large as their tile: no labels


class Continuations:
    """Pieces of one scene that no selected mask of the neighbour continues.

    Report the selection of each tile with `see`, in any order. Then, round by round, `turn` names
    the tiles whose stored candidates may continue something, and `found` searches them. A mask that
    continues a piece may be cut itself: the next round continues it.
    """

    def __init__(self, grid: TileGrid) -> None:
        self._grid = grid
        self._waiting: dict[tuple[RowCol, RowCol], _Part] = {}  # until the neighbour is seen
        self._next: dict[RowCol, list[_Piece]] = {}
        self._now: dict[RowCol, list[_Piece]] = {}
        self._known: dict[RowCol, list[_Piece]] = {}  # of all rounds
        self._taken: dict[RowCol, set[int]] = {}  # ordinals

    def see(self, tile: Tile, chosen: Candidates) -> None:
        """Take note of the masks that become labels of a tile."""
        self.note(tile, shown_to_neighbours(tile, chosen, self._grid))

    def note(self, tile: Tile, shown: ShownBeside) -> None:
        """Take note of what a tile's labels show; `see` does both."""
        here = (tile.row, tile.col)
        for there, part in shown.items():
            neighbour = self._grid.tile(*there)
            other = self._waiting.pop((there, here), None)
            if other is None:
                self._waiting[here, there] = part
                continue
            iou = _iou(part.rles, other.rles)
            self._note(neighbour, tile, part, iou.max(axis=1, initial=0) < AGREE)
            self._note(tile, neighbour, other, iou.max(axis=0, initial=0) < AGREE)

    def turn(self) -> list[RowCol]:
        """Begin a round: the tiles (row, column) to look in, in order; none at the end."""
        self._now, self._next = self._next, {}
        for index, pieces in self._now.items():
            pieces.sort(key=lambda piece: (piece.shown_by, piece.number))
            self._known.setdefault(index, []).extend(pieces)
        return sorted(self._now)

    def found(
        self, tile: Tile, stored: Candidates, chosen: NDArray[np.int64], masks: TileMasks,
        offer: Offer,
    ) -> Found:  # fmt: skip
        """Find the rows of `stored` that continue a piece of a neighbour.

        `stored` are all candidates of the tile, `masks` the same, and `chosen` the rows that become
        labels. `merge_seams` decides which stay: the object, or the labels that it overlaps. A row
        that is as large as its tile is taken only if it continues pieces on three or four sides.
        """
        index = (tile.row, tile.col)
        before = np.isin(stored.column("ordinal"), sorted(self._taken.get(index, ())))
        there = np.union1d(chosen, np.flatnonzero(before))
        boxes, area = _exclusive(stored.boxes), stored.column("area_px")
        new: list[int] = []
        too_large: set[int] = set()
        for piece in self._now.get(index, []):
            near = np.flatnonzero(_may_agree(boxes, area, piece))
            alike = _iou([piece.rle], _in_overlap(stored, near, piece.overlap))[0]
            near, alike = near[alike >= AGREE], alike[alike >= AGREE]
            if np.isin(near, there).any():
                continue
            best_first = near[np.argsort(-alike, kind="stable")].tolist()
            for row in best_first:
                alone = masks.may_join(row, np.empty(0, np.int64), offer)
                if alone or self._is_enclosed(index, stored, row):
                    there = np.union1d(there, [row])
                    new.append(row)
                    break
            else:
                too_large.update(best_first[:1])
        rows = np.array(sorted(new), np.int64)
        self._take(tile, stored.take(rows))
        return Found(rows, np.array(sorted(too_large), np.int64))

    def _take(self, tile: Tile, more: Candidates) -> None:
        """Note masks that continue something."""
        taken = self._taken.setdefault((tile.row, tile.col), set())
        taken |= set(more.column("ordinal").tolist())
        for there, part in shown_to_neighbours(tile, more, self._grid).items():
            self._note(self._grid.tile(*there), tile, part, np.ones(len(part.rles), bool))

    def _note(self, tile: Tile, cut_by: Tile, part: _Part, alone: NDArray[np.bool_]) -> None:
        """Remember the pieces of `cut_by` that are `alone`, for a tile to continue."""
        overlap, shown_by = _overlap(tile, cut_by), (cut_by.row, cut_by.col)
        for row in np.flatnonzero(alone & part.cut).tolist():
            pieces = self._next.setdefault((tile.row, tile.col), [])
            pieces.append(_Piece(part.rles[row], overlap, shown_by, row))

    def _is_enclosed(self, index: RowCol, stored: Candidates, row: int) -> bool:
        """Whether a mask continues pieces on three or four sides of its tile."""
        sides = {
            piece.shown_by
            for piece in self._known[index]
            if _iou([piece.rle], _in_overlap(stored, np.array([row]), piece.overlap))[0, 0] >= AGREE
        }
        return len(sides) >= SIDES


def shown_to_neighbours(tile: Tile, chosen: Candidates, grid: TileGrid) -> ShownBeside:
    """What the masks that become labels of a tile show in its overlap with each neighbour."""
    boxes = _exclusive(chosen.boxes)
    return {
        (there.row, there.col): _part(chosen, boxes, _overlap(tile, there), tile, there)
        for there in _neighbours(tile, grid)
    }


def _neighbours(tile: Tile, grid: TileGrid) -> Iterator[Tile]:
    """Those beside a tile; what lies in the windows of others lies in theirs, too."""
    for row, col in ((0, -1), (-1, 0), (0, 1), (1, 0)):
        r, c = tile.row + row, tile.col + col
        if 0 <= r < grid.n_rows and 0 <= c < grid.n_cols:
            yield grid.tile(r, c)


def _overlap(tile: Tile, neighbour: Tile) -> Box:
    """The part of a tile's window that the neighbour's window shares."""
    dx = neighbour.window.col_off - tile.window.col_off
    dy = neighbour.window.row_off - tile.window.row_off
    width, height = tile.window.width, tile.window.height
    return max(0, dx), max(0, dy), min(width, width + dx), min(height, height + dy)


def _part(
    chosen: Candidates, boxes: NDArray[np.int64], overlap: Box, tile: Tile, neighbour: Tile
) -> _Part:
    """The masks that reach into an overlap."""
    x0, y0, x1, y1 = overlap
    reaches = (boxes[:, 2] > x0) & (boxes[:, 0] < x1) & (boxes[:, 3] > y0) & (boxes[:, 1] < y1)
    # the edge of the tile beyond which the neighbour sees
    if neighbour.col < tile.col:
        cut, beyond = boxes[:, 0] < TOUCH_PX, boxes[:, 2] > x1
    elif neighbour.col > tile.col:
        cut, beyond = boxes[:, 2] > tile.window.width - TOUCH_PX, boxes[:, 0] < x0
    elif neighbour.row < tile.row:
        cut, beyond = boxes[:, 1] < TOUCH_PX, boxes[:, 3] > y1
    else:
        cut, beyond = boxes[:, 3] > tile.window.height - TOUCH_PX, boxes[:, 1] < y0
    rows = np.flatnonzero(reaches)
    # the neighbour decides about what lies only in the overlap
    return _Part(_in_overlap(chosen, rows, overlap), (cut & beyond)[rows])


def _in_overlap(
    candidates: Candidates, rows: NDArray[np.int64], overlap: Box
) -> list[dict[str, Any]]:
    """The part of some masks that lies in an overlap; only these masks are decoded."""
    counts = candidates.take(rows).table.column("rle").to_pylist()
    return cropped(counts, candidates.rules.height, candidates.rules.width, overlap)


def _may_agree(
    boxes: NDArray[np.int64], area: NDArray[np.int64], piece: _Piece
) -> NDArray[np.bool_]:
    """Whether each mask can share enough with a piece, by its box and area alone."""
    left, top, wide, tall = np.asarray(coco.toBbox([piece.rle]))[0]
    x0, y0, x1, y1 = piece.overlap
    sides = [
        np.minimum(boxes[:, 2], min(x1, x0 + left + wide)) - np.maximum(boxes[:, 0], x0 + left),
        np.minimum(boxes[:, 3], min(y1, y0 + top + tall)) - np.maximum(boxes[:, 1], y0 + top),
    ]
    shared = np.minimum(area, np.maximum(sides[0], 0) * np.maximum(sides[1], 0))
    return np.asarray(shared >= AGREE * float(coco.area([piece.rle])[0]), bool)


def _iou(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> NDArray[np.float64]:
    if not ours or not theirs:
        return np.zeros((len(ours), len(theirs)))
    return np.asarray(coco.iou(ours, theirs, [0] * len(theirs)), float)


def _exclusive(boxes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Boxes whose last pixel is exclusive."""
    return boxes.astype(np.int64) + np.array([0, 0, 1, 1], np.int64)
