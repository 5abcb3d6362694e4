"""What continues a mask that a tile's edge has cut, where the neighbour's selection has nothing.

A neighbour may have proposed the rest of an object and scored it below the thresholds, because it
sees less of it. The rest is still among its stored candidates. It is taken where it agrees with the
piece inside the overlap of both tiles, so that the object does not end in a straight line.

Everything here is about boxes and run-length encodings in pixels. The polygons are joined later,
by `merge_seams`, as those of all tiles are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates.offer import TOUCH_PX, Offer, TileMasks
from workbench.candidates.rle import cropped
from workbench.candidates.table import Candidates
from workbench.polygons.seam_pairs import AGREE
from workbench.raster.tiles import Tile, TileGrid

Index = tuple[int, int]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of a tile, end exclusive


@dataclass(frozen=True)
class _Part:
    """What a tile shows in its overlap with a neighbour: masks, and which of them it cuts."""

    rles: list[dict[str, Any]]
    cut: NDArray[np.bool_]


@dataclass(frozen=True)
class _Piece:
    """A mask inside an overlap, and where the overlap lies in the tile that is to continue it."""

    rle: dict[str, Any]
    overlap: Box


class Continuations:
    """Pieces of one scene that no selected mask of the neighbour continues.

    Tell it of the selection of each tile with `see`, in any order; `wanted` then names the tiles
    whose stored candidates may continue something, and `found` looks among them.
    """

    def __init__(self, grid: TileGrid) -> None:
        self._grid = grid
        self._waiting: dict[tuple[Index, Index], _Part] = {}  # until the neighbour is seen
        self._pieces: dict[Index, list[_Piece]] = {}

    @property
    def wanted(self) -> list[Index]:
        """The tiles (row, column) that may continue something, in order."""
        return sorted(self._pieces)

    def see(self, tile: Tile, chosen: Candidates) -> None:
        """Take note of the masks that become labels of a tile."""
        boxes = _exclusive(chosen.boxes)
        here = (tile.row, tile.col)
        for neighbour in self._neighbours(tile):
            there = (neighbour.row, neighbour.col)
            part = _part(chosen, boxes, _overlap(tile, neighbour), tile, neighbour)
            other = self._waiting.pop((there, here), None)
            if other is None:
                self._waiting[here, there] = part
                continue
            iou = _iou(part.rles, other.rles)
            self._note(neighbour, tile, part, iou.max(axis=1, initial=0) < AGREE)
            self._note(tile, neighbour, other, iou.max(axis=0, initial=0) < AGREE)

    def found(
        self, tile: Tile, stored: Candidates, chosen: NDArray[np.int64], masks: TileMasks,
        offer: Offer,
    ) -> NDArray[np.int64]:  # fmt: skip
        """Return the rows of `stored`, ascending, that continue a piece of a neighbour.

        `stored` are all candidates of the tile, `masks` the same, and `chosen` the rows that become
        labels. A row is taken only if `offer` lets it stand beside those.
        """
        others = np.ones(len(stored), bool)
        others[chosen] = False
        boxes, area = _exclusive(stored.boxes), stored.column("area_px")
        taken: set[int] = set()
        for piece in self._pieces.get((tile.row, tile.col), []):
            near = np.flatnonzero(others & _may_agree(boxes, area, piece))
            if not len(near):
                continue
            alike = _iou([piece.rle], _in_overlap(stored, near, piece.overlap))[0]
            best = np.argsort(-alike, kind="stable")
            for row in near[best[alike[best] >= AGREE]].tolist():
                beside = np.append(chosen, list(taken - {row})).astype(np.int64)
                if masks.may_join(row, beside, offer):
                    taken.add(row)
                    break
        return np.array(sorted(taken), np.int64)

    def _note(self, tile: Tile, cut_by: Tile, part: _Part, alone: NDArray[np.bool_]) -> None:
        overlap = _overlap(tile, cut_by)
        for row in np.flatnonzero(alone & part.cut).tolist():
            pieces = self._pieces.setdefault((tile.row, tile.col), [])
            pieces.append(_Piece(part.rles[row], overlap))

    def _neighbours(self, tile: Tile) -> Iterator[Tile]:
        """Those beside a tile; what lies in the windows of others lies in theirs, too."""
        for row, col in ((0, -1), (-1, 0), (0, 1), (1, 0)):
            r, c = tile.row + row, tile.col + col
            if 0 <= r < self._grid.n_rows and 0 <= c < self._grid.n_cols:
                yield self._grid.tile(r, c)


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
    # at which edge of its own tile the neighbour sees further
    if neighbour.col < tile.col:
        cut, beyond = boxes[:, 0] < TOUCH_PX, boxes[:, 2] > x1
    elif neighbour.col > tile.col:
        cut, beyond = boxes[:, 2] > tile.window.width - TOUCH_PX, boxes[:, 0] < x0
    elif neighbour.row < tile.row:
        cut, beyond = boxes[:, 1] < TOUCH_PX, boxes[:, 3] > y1
    else:
        cut, beyond = boxes[:, 3] > tile.window.height - TOUCH_PX, boxes[:, 1] < y0
    rows = np.flatnonzero(reaches)
    # what lies in the overlap alone is the neighbour's to decide
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
    """Whether the box and the area of each mask have room for what it must share with a piece."""
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
