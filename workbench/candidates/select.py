"""What is kept of the candidates: thresholds and non-maximum suppression, row for row as in
`segment_anything.SamAutomaticMaskGenerator`, and the pruning that can never change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from workbench.candidates.table import Candidates, Rules


@dataclass(frozen=True)
class Thresholds:
    """SAM's two scores, as the sliders set them."""

    pred_iou_thresh: float = 0.85
    stability_score_thresh: float = 0.92

    def refuse_below(self, rules: Rules) -> None:
        """Raise `ValueError` for a threshold below its floor: what it wants is not stored."""
        for name, value, floor in (
            ("pred_iou_thresh", self.pred_iou_thresh, rules.pred_iou_floor),
            ("stability_score_thresh", self.stability_score_thresh, rules.stability_floor),
        ):
            if value < floor:
                raise ValueError(
                    f"{name} ({value:g}) is below the floor of what is stored ({floor:g}). Raise "
                    "it, or lower the floor and choose another out_dir: candidates below the floor "
                    "must be computed again"
                )


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
    with smaller crops first.

    Args:
        candidates: Candidates of any number of tiles of one scene, in any order.
        thresholds: Smallest scores to keep, 0 to 1.

    Returns:
        The rows that are kept, sorted by tile and ordinal; without rows if none is.

    Raises:
        ValueError: A threshold is below the floor that the candidates were stored with.

    Example:
        >>> kept = select(candidates, Thresholds(pred_iou_thresh=0.9))
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
        thresholds.refuse_below(self.candidates.rules)
        keep = suppress(passes(self.candidates, thresholds), self._within_crops)
        return np.flatnonzero(suppress(keep, self._among_crops))

    def rival(self, row: int, thresholds: Thresholds) -> int:
        """Return the best row that suppresses `row` at these thresholds, -1 if none does."""
        keep = passes(self.candidates, thresholds)
        if keep[row]:
            for pairs in (self._within_crops, self._among_crops):
                keep = suppress(keep, pairs)
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
    return order[suppress(np.ones(len(order), bool), _overlapping(boxes[order], thresh))]


def suppress(alive: NDArray[np.bool_], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
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
