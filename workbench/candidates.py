"""Candidates: every mask that a Segmenter proposed above its floors, and what is chosen of them.

The expensive step (the network) ends in this table, the cheap ones (thresholds, non-maximum
suppression, polygons) start from it. Filtering and suppression follow
`segment_anything.SamAutomaticMaskGenerator` row for row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

SCHEMA = pa.schema(
    [
        ("tile_row", pa.int32()),
        ("tile_col", pa.int32()),
        ("ordinal", pa.int32()),  # the generator's order within the tile; breaks ties
        ("pred_iou", pa.float32()),
        ("stability_score", pa.float32()),
        ("x0", pa.int32()),  # boxes are SAM's: XYXY, tile pixels, last pixel inclusive
        ("y0", pa.int32()),
        ("x1", pa.int32()),
        ("y1", pa.int32()),
        ("area_px", pa.int32()),
        ("point_x", pa.float64()),  # the prompt, tile pixels
        ("point_y", pa.float64()),
        ("crop_x0", pa.int32()),  # XYXY, tile pixels, last pixel exclusive
        ("crop_y0", pa.int32()),
        ("crop_x1", pa.int32()),
        ("crop_y1", pa.int32()),
        ("rle", pa.binary()),  # COCO compressed counts of the whole tile
    ]
)


@dataclass(frozen=True)
class Thresholds:
    """SAM's two scores, as the sliders set them."""

    pred_iou_thresh: float = 0.85
    stability_score_thresh: float = 0.92


@dataclass(frozen=True)
class Rules:
    """What a table of candidates was made under; `height` and `width` are the tile's, in pixels."""

    height: int
    width: int
    pred_iou_floor: float = 0.5
    stability_floor: float = 0.5
    box_nms_thresh: float = 0.7
    crop_nms_thresh: float = 0.7
    crop_n_layers: int = 0


@dataclass(frozen=True)
class Candidates:
    """An Arrow table with the columns of `SCHEMA`, and the rules that it was made under."""

    table: pa.Table
    rules: Rules

    @classmethod
    def from_columns(cls, rules: Rules, columns: Mapping[str, Any]) -> Candidates:
        """Build from arrays of equal length, one for each column of `SCHEMA`."""
        arrays = [pa.array(columns[field.name], type=field.type) for field in SCHEMA]
        return cls(pa.Table.from_arrays(arrays, schema=SCHEMA), rules)

    @classmethod
    def empty(cls, rules: Rules) -> Candidates:
        """Build a table without rows."""
        return cls(SCHEMA.empty_table(), rules)

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> NDArray[Any]:
        """Return one numeric column as `(n,)`."""
        return self.table.column(name).to_numpy()

    @property
    def boxes(self) -> NDArray[np.int32]:
        """`(n, 4)`, XYXY, tile pixels, last pixel inclusive."""
        return np.column_stack([self.column(name) for name in ("x0", "y0", "x1", "y1")])

    @property
    def crop_boxes(self) -> NDArray[np.int32]:
        """`(n, 4)`, XYXY, tile pixels, last pixel exclusive."""
        return np.column_stack(
            [self.column(name) for name in ("crop_x0", "crop_y0", "crop_x1", "crop_y1")]
        )

    def take(self, rows: NDArray[Any]) -> Candidates:
        """Keep some rows: `(n,)` booleans, or row numbers in the order wanted."""
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        return replace(self, table=self.table.take(pa.array(rows, type=pa.int64())))

    def at_tile(self, row: int, col: int) -> Candidates:
        """Say which tile the rows belong to."""
        rows, cols = np.full(len(self), row), np.full(len(self), col)
        return self.with_column("tile_row", rows).with_column("tile_col", cols)

    def with_column(self, name: str, values: Any) -> Candidates:
        """Replace a column by `(n,)` values."""
        field = SCHEMA.field(name)
        column = pa.array(values, type=field.type)
        return replace(
            self, table=self.table.set_column(SCHEMA.get_field_index(name), field, column)
        )

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """Decode the masks one by one, each `(height, width)` of the tile."""
        size = [self.rules.height, self.rules.width]
        for counts in self.table.column("rle").to_pylist():
            yield coco.decode({"size": size, "counts": counts}).view(bool)


# called while a tile is computed, often: the share that is done, and how to get what there is
Watch = Callable[[float, Callable[[], "Candidates"]], None]


class Segmenter(Protocol):
    """Anything that proposes masks for a tile."""

    @property
    def key(self) -> Mapping[str, Any]:
        """All that the candidates depend on, as plain values: model, weights, prompts, rules."""

    def load(self) -> None:
        """Get ready to propose: all that can be wrong with weights or device raises here."""

    def propose(self, image: NDArray[np.uint8], watch: Watch | None = None) -> Candidates:
        """Return the pruned candidates of one RGB tile `(h, w, 3)`, at tile row and column 0.

        A Segmenter that takes long tells `watch` how far it is.
        """

    def begin(
        self, image: NDArray[np.uint8], watch: Watch | None = None
    ) -> Callable[[], Candidates]:
        """Do what a tile at a time can do, as with a network; return what is left of `propose`.

        That may be done in another thread, while the next tile has begun.
        """
        found = self.propose(image, watch)
        return lambda: found


def encode_masks(masks: NDArray[np.bool_]) -> list[bytes]:
    """Encode `(n, h, w)` masks as COCO compressed counts."""
    if not len(masks):
        return []
    columns = np.asfortranarray(masks.transpose(1, 2, 0).view(np.uint8))
    return [rle["counts"] for rle in coco.encode(columns)]


def encode_edges(
    mask: NDArray[Any], place: NDArray[Any], n: int, height: int, width: int
) -> list[bytes]:
    """Encode `n` masks of `(height, width)`, given where their runs of pixels begin and end.

    One entry, in any order, for each edge of a run: the number of its mask, and its place, x times
    height plus y. A run that ends where the next column's begins need not be joined to it.
    """
    if not n:
        return []
    size = height * width
    stride = size + 2  # of a mask: its places, one after the last pixel, and its end
    end = np.arange(n) * stride + size + 1
    key = np.sort(np.concatenate([mask.astype(np.int64) * stride + place, end]))
    keep = key % stride != size  # a run that ends with the last pixel needs no end
    keep[1:] &= key[1:] != key[:-1]
    keep[:-1] &= key[1:] != key[:-1]
    key = key[keep]
    after = np.searchsorted(key, end) + 1
    counts = np.diff(key, prepend=-1)
    counts[[0, *after[:-1]]] -= 1
    counts[after - 1] -= 1
    parts = np.split(counts.astype(np.uint32), after[:-1])
    rles = coco.frPyObjects([{"size": [height, width], "counts": part} for part in parts], 0, 0)
    return [rle["counts"] for rle in rles]


def concat(tables: Sequence[Candidates]) -> Candidates:
    """Stack the candidates of several tiles, all made under the same rules."""
    rules = {candidates.rules for candidates in tables}
    if len(rules) != 1:
        raise ValueError(f"candidates of {len(rules)} sets of rules cannot be stacked")
    return Candidates(pa.concat_tables([c.table for c in tables]).combine_chunks(), rules.pop())


def passes(candidates: Candidates, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Apply SAM's two score filters; a threshold of 0 filters nothing, as in SAM.

    Comparisons are in float32, as torch compares a float32 tensor with a Python number.
    """
    keep = np.ones(len(candidates), bool)
    if thresholds.pred_iou_thresh > 0:
        keep &= candidates.column("pred_iou") > np.float32(thresholds.pred_iou_thresh)
    if thresholds.stability_score_thresh > 0:
        keep &= candidates.column("stability_score") >= np.float32(
            thresholds.stability_score_thresh
        )
    return keep


def select(candidates: Candidates, thresholds: Thresholds) -> Candidates:
    """Keep what `SamAutomaticMaskGenerator` keeps at these thresholds, tile by tile.

    Non-maximum suppression runs within each crop by predicted IoU, then among the crops of a tile
    with smaller crops first. Rows come out by tile and ordinal, whatever their order was. Raises
    `ValueError` for thresholds below the floors that the candidates were stored with.
    """
    selector = Selector(candidates.take(passes(candidates, thresholds)))
    return selector.candidates.take(selector.rows(thresholds))


class Selector:
    """`select` for many thresholds: which boxes overlap does not change, and is found once."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = _in_order(candidates)  # by tile and ordinal
        rules, boxes = candidates.rules, self.candidates.boxes.astype(np.float32)
        tile = [self.candidates.column(name) for name in ("tile_row", "tile_col")]
        score, crops = self.candidates.column("pred_iou"), self.candidates.crop_boxes
        best_first = np.argsort(-score, kind="stable")
        self._within_crops = _pairs_of_groups(
            boxes, _groups(*(key[best_first] for key in (*tile, *crops.T))), best_first,
            rules.box_nms_thresh,
        )  # fmt: skip
        self._among_crops = np.empty((0, 2), np.int64)
        if rules.crop_n_layers > 0:
            x0, y0, x1, y1 = crops.astype(np.float32).T
            larger = -(np.float32(1) / ((x1 - x0) * (y1 - y0)))
            # of equal ones the generator's order, crop after crop, each as it was suppressed
            crop = np.empty(len(boxes), np.int64)
            for rows in _groups(*tile, *crops.T):
                crop[rows] = rows.min()
            smaller_first = np.lexsort((-score, crop, larger))
            self._among_crops = _pairs_of_groups(
                boxes, _groups(*(key[smaller_first] for key in tile)), smaller_first,
                rules.crop_nms_thresh,
            )  # fmt: skip

    def rows(self, thresholds: Thresholds) -> NDArray[np.int64]:
        """Return the row numbers of `candidates` that `select` keeps."""
        rules = self.candidates.rules
        for name, value, floor in (
            ("pred_iou_thresh", thresholds.pred_iou_thresh, rules.pred_iou_floor),
            ("stability_score_thresh", thresholds.stability_score_thresh, rules.stability_floor),
        ):
            if value < floor:
                raise ValueError(
                    f"{name} {value:g} is below {floor:g}, the floor that candidates were stored "
                    f"with: take at least {floor:g}, or run again with a lower floor"
                )
        keep = _suppress(passes(self.candidates, thresholds), self._within_crops)
        return np.flatnonzero(_suppress(keep, self._among_crops))

    def rival(self, row: int, thresholds: Thresholds) -> int:
        """Return the best row that suppresses `row` at these thresholds, -1 if none does."""
        keep = passes(self.candidates, thresholds)
        if keep[row]:
            for pairs in (self._within_crops, self._among_crops):
                keep = _suppress(keep, pairs)
                if not keep[row]:
                    rivals = pairs[pairs[:, 1] == row, 0]
                    return int(rivals[keep[rivals]][0])
        return -1


def prune(candidates: Candidates) -> Candidates:
    """Drop the rows that no thresholds above the floors can ever select.

    Within one crop of one tile, in the order of suppression, a candidate is *settled* if nothing
    that is left and overlaps it comes earlier: it is kept whenever it passes the thresholds. What
    it overlaps that comes later and is no more stable passes only together with it, so it can
    never win. Exact for the `box_nms_thresh` of the rules, and for no other.
    """
    candidates = _in_order(candidates)
    boxes = candidates.boxes.astype(np.float32)
    scores = candidates.column("pred_iou")
    # NaN (no pixel above the lower offset) passes only where nothing is filtered
    stability = np.nan_to_num(candidates.column("stability_score"), nan=-np.inf)
    keep = np.ones(len(candidates), bool)
    crops = candidates.crop_boxes
    for rows in _groups(candidates.column("tile_row"), candidates.column("tile_col"), *crops.T):
        order = rows[np.argsort(-scores[rows], kind="stable")]
        keep[order] = _can_win(boxes[order], stability[order], candidates.rules.box_nms_thresh)
    return candidates.take(keep)


def _can_win(
    boxes: NDArray[np.float32], stability: NDArray[np.float32], thresh: float
) -> NDArray[np.bool_]:
    """One pass in the order of suppression: each verdict depends on earlier ones only."""
    alive = np.ones(len(boxes), bool)
    settled = np.ones(len(boxes), bool)
    pairs = _overlapping(boxes, thresh)
    later_of = np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, len(boxes))))
    for i in np.unique(pairs[:, 0]):
        if not alive[i]:
            continue
        later = later_of[i]
        if settled[i]:
            alive[later[stability[later] <= stability[i]]] = False
        settled[later] = False
    return alive


def nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], thresh: float
) -> NDArray[np.int64]:
    """Suppress as `torchvision.ops.nms` does: the same float32 arithmetic, ties by row number.

    `boxes` is `(n, 4)` XYXY; returns the row numbers kept, best first.
    """
    order = np.argsort(-scores, kind="stable")
    return order[_suppress(np.ones(len(order), bool), _overlapping(boxes[order], thresh))]


def _suppress(alive: NDArray[np.bool_], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Greedy suppression of rows: the first of a pair, if it is kept, removes the second.

    Instead of row by row, all rows that nothing left can remove are decided at once; that takes as
    many rounds as there are links in the longest chain of overlaps, five or so.
    """
    alive = alive.copy()
    pairs = pairs[alive[pairs].all(axis=1)]
    while len(pairs):
        safe = alive.copy()
        safe[pairs[:, 1]] = False
        alive[pairs[safe[pairs[:, 0]], 1]] = False
        pairs = pairs[alive[pairs].all(axis=1) & ~safe[pairs[:, 0]]]
    return alive


def _pairs_of_groups(
    boxes: NDArray[np.float32],
    groups: list[NDArray[np.int64]],
    order: NDArray[np.int64],
    thresh: float,
) -> NDArray[np.int64]:
    """Overlapping pairs of rows within each group (places in `order`), first the earlier one."""
    pairs = [rows[_overlapping(boxes[rows], thresh)] for rows in (order[group] for group in groups)]
    return np.concatenate([np.empty((0, 2), np.int64), *pairs])


def _overlapping(boxes: NDArray[np.float32], thresh: float) -> NDArray[np.int64]:
    """Pairs `(m, 2)` of rows, i < j and sorted, whose IoU in float32 is above `thresh`."""
    x0, y0, x1, y1 = np.ascontiguousarray(boxes.T)
    area = (x1 - x0) * (y1 - y0)
    outlines = shapely.box(x0, y0, x1, y1)
    tree = shapely.STRtree(outlines)
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(boxes), 1024):  # large masks overlap nearly all: memory
        i, j = tree.query(outlines[start : start + 1024])
        i = i + start
        i, j = i[j > i], j[j > i]
        w = np.minimum(x1[j], x1[i]) - np.maximum(x0[j], x0[i])
        h = np.minimum(y1[j], y1[i]) - np.maximum(y0[j], y0[i])
        inter = np.maximum(w, 0) * np.maximum(h, 0)
        with np.errstate(invalid="ignore"):  # 0 / 0 of two points: NaN, which overlaps nothing
            iou = inter / (area[i] + area[j] - inter)
        over = iou > np.float64(thresh)  # torchvision compares in double
        found.append(np.column_stack((i[over], j[over])))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _in_order(candidates: Candidates) -> Candidates:
    keys = [candidates.column(name) for name in ("ordinal", "tile_col", "tile_row")]
    return candidates.take(np.lexsort(keys))


def _groups(*keys: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Row numbers of equal keys, each group in row order."""
    if not len(keys[0]):
        return []
    order = np.lexsort(keys)
    changes = np.zeros(len(order) - 1, bool)
    for key in keys:
        changes |= np.diff(key[order]) != 0
    return np.split(order, np.flatnonzero(changes) + 1)
