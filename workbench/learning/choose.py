"""What is kept where classes are known: what has one, once at each place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.candidates.offer import ONE_CLASS_PER_PLACE, Conflicts, MaskPairs, Shared
from workbench.candidates.select import Thresholds, passes, suppress
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
    `thresholds` are lower limits as in `select`. Of masks of one tile that share more than half of
    the smaller one, those stay that are worth most together (see `Places`). Of equal ones the
    higher predicted IoU stays, then the lower ordinal. Rows come out by tile and ordinal, whatever
    their order was.
    """
    good = (class_score >= class_thresh) & passes(candidates, thresholds)
    tile_row, tile_col = (candidates.column(name) for name in ("tile_row", "tile_col"))
    ordinal, pred_iou = candidates.column("ordinal"), candidates.column("pred_iou")
    rows = np.flatnonzero(good)
    keys = (ordinal, -pred_iou, tile_col, tile_row)
    rows = rows[np.lexsort([key[rows] for key in keys])]
    changes = np.flatnonzero(np.diff(tile_row[rows]) | np.diff(tile_col[rows])) + 1
    kept = []
    for tile in np.split(rows, changes):
        pairs = MaskPairs(candidates.take(tile))
        pairs.compare(np.arange(len(tile)))
        places = Places.of(pairs.shared, pairs.area, class_score[tile])
        kept.append(tile[places.worth_most(class_thresh)])
    rows = np.concatenate(kept)
    rows = rows[np.lexsort([key[rows] for key in (ordinal, tile_col, tile_row)])]
    return Classed(candidates.take(rows), class_id[rows], class_score[rows])


@dataclass(frozen=True)
class Places:
    """Which rows are about one place, and how sure the class of each is, `score` `(n,)`.

    Of each pair `(m,)` only one may stay; pairs are sorted by the larger row, then by the smaller
    one. `rank` `(n,)` is the order of the rows by size.
    """

    score: NDArray[np.float64]
    rank: NDArray[np.int64]
    smaller: NDArray[np.int64]
    larger: NDArray[np.int64]

    @classmethod
    def of(cls, shared: Shared, area: NDArray[np.float64], score: NDArray[np.float64]) -> Places:
        """Find the pairs that share more than half of the smaller row; earlier rows win ties."""
        rank = _places_in(np.lexsort((-score, area)))
        pairs = Conflicts.of(shared, area, rank, ONE_CLASS_PER_PLACE)
        order = np.lexsort((rank[pairs.better], rank[pairs.worse]))
        return cls(score, rank, pairs.better[order], pairs.worse[order])

    def worth_most(self, class_thresh: float) -> NDArray[np.bool_]:
        """Mark what stays of the rows that score at least `class_thresh`, `(n,)`.

        A row is worth what its score exceeds the threshold by. From small to large, a row takes
        the place of all that it covers if it is worth more than they are together. So a block
        that scores a little more than one of its roofs does not cost all of them, as it does if
        the best score goes first: on fields that scene after scene taught that lost half of those
        found. Masks that are nested get the best choice there is.
        """
        good = self.score >= class_thresh
        both = good[self.smaller] & good[self.larger]
        smaller, larger = self.smaller[both], self.larger[both]
        worth = self.score - class_thresh
        stays = good.copy()
        starts, last = np.flatnonzero(np.diff(larger, prepend=-1)), np.diff(larger, append=-1)
        for start, stop in zip(starts, np.flatnonzero(last) + 1, strict=True):
            covered = smaller[start:stop]
            covered = covered[stays[covered]]
            if worth[larger[start]] > worth[covered].sum() or not len(covered):
                stays[covered] = False
            else:
                stays[larger[start]] = False
        # what had to go for a row that went later comes back
        beaten = np.zeros(len(good), bool)
        beaten[smaller[stays[larger]]] = True
        beaten[larger[stays[smaller]]] = True
        free = good & ~stays & ~beaten
        rank = _places_in(np.lexsort((self.rank, -self.score)))
        first = rank[smaller] < rank[larger]
        pairs = np.column_stack(
            (np.where(first, smaller, larger), np.where(first, larger, smaller))
        )
        return stays | suppress(free, pairs)


def _places_in(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each row in an order of rows."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place
