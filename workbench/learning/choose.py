"""What is kept where classes are known: what has one, once at each place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.candidates.offer import ONE_CLASS_PER_PLACE, MaskPairs, Reason, one_label_per_object
from workbench.candidates.select import Thresholds, passes
from workbench.candidates.table import Candidates


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
    tile_row, tile_col = (candidates.column(name) for name in ("tile_row", "tile_col"))
    ordinal, pred_iou = candidates.column("ordinal"), candidates.column("pred_iou")
    rows = np.flatnonzero(good)
    keys = (ordinal, -pred_iou, -class_score, tile_col, tile_row)
    rows = rows[np.lexsort([key[rows] for key in keys])]
    changes = np.flatnonzero(np.diff(tile_row[rows]) | np.diff(tile_col[rows])) + 1
    tiles = np.split(rows, changes)
    kept = [tile[_once_at_each_place(candidates.take(tile))] for tile in tiles]
    rows = np.concatenate(kept)
    rows = rows[np.lexsort([key[rows] for key in (ordinal, tile_col, tile_row)])]
    return Classed(candidates.take(rows), class_id[rows], class_score[rows])


def _once_at_each_place(candidates: Candidates) -> NDArray[np.bool_]:
    """Mark what stays of candidates of one tile, best first, by what their masks share, `(n,)`."""
    pairs, rank = MaskPairs(candidates), np.arange(len(candidates))
    pairs.compare(rank)
    decided = one_label_per_object(pairs.shared, pairs.area, rank, ONE_CLASS_PER_PLACE)
    return np.asarray(decided.reason == Reason.OFFERED)
