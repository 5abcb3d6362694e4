"""What is kept where classes are known: what has one, once at each place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates.select import Thresholds, passes
from workbench.candidates.table import Candidates

SHARED = 0.5  # of the smaller of two masks: above, both are about the same place


@dataclass(frozen=True)
class Classed:
    """Candidates that have a class: `class_id` and `class_score` `(n,)` beside the rows."""

    candidates: Candidates
    class_id: NDArray[np.int64]
    class_score: NDArray[np.float64]


def select_classes(
    candidates: Candidates,
    class_id: NDArray[np.int64],
    class_score: NDArray[np.float64],
    class_thresh: float,
    thresholds: Thresholds,
) -> Classed:
    """Keep the candidates whose best class scores at least `class_thresh`, once at each place.

    `class_id` and `class_score` `(n,)` are the best class of each candidate and its probability.
    `thresholds` are lower limits as in `select`. Of two masks of one tile that share more than
    half of the smaller one the better class score stays, of equal ones the higher predicted IoU,
    then the lower ordinal. Rows come out by tile and ordinal, whatever their order was.
    """
    good = (class_score >= class_thresh) & passes(candidates, thresholds)
    tile = [candidates.column(name) for name in ("tile_row", "tile_col")]
    ordinal, pred_iou = candidates.column("ordinal"), candidates.column("pred_iou")
    rows = np.flatnonzero(good)
    keys = (ordinal, -pred_iou, -class_score, tile[1], tile[0])
    rows = rows[np.lexsort([key[rows] for key in keys])]
    changes = np.flatnonzero(np.diff(tile[0][rows]) | np.diff(tile[1][rows])) + 1
    kept = [of_tile[keep_best(candidates.take(of_tile))] for of_tile in np.split(rows, changes)]
    rows = np.concatenate(kept)
    rows = rows[np.lexsort([key[rows] for key in (ordinal, tile[1], tile[0])])]
    return Classed(candidates.take(rows), class_id[rows], class_score[rows])


def keep_best(candidates: Candidates) -> NDArray[np.bool_]:
    """Mark what stays of candidates of one tile, best first, by what their masks share, `(n,)`."""
    size = [candidates.rules.height, candidates.rules.width]
    rles = [{"size": size, "counts": c} for c in candidates.table.column("rle").to_pylist()]
    x0, y0, x1, y1 = candidates.boxes.T
    area = candidates.column("area_px").astype(np.float64)
    keep = np.ones(len(rles), bool)
    for i in range(len(rles)):
        if not keep[i]:
            continue
        near = np.flatnonzero(
            keep[i + 1 :]
            & (x0[i + 1 :] <= x1[i]) & (x1[i + 1 :] >= x0[i])
            & (y0[i + 1 :] <= y1[i]) & (y1[i + 1 :] >= y0[i])
        ) + i + 1  # fmt: skip
        if len(near):
            # with `iscrowd` it is the share of the first that lies in the second
            inside = coco.iou([rles[j] for j in near], [rles[i]], [1])[:, 0]
            common = inside * area[near]
            keep[near[common > SHARED * np.minimum(area[near], area[i])]] = False
    return keep
