"""What is kept where classes are known: what has one, once at each place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.candidates.offer import ONE_CLASS_PER_PLACE, MaskPairs, Shared
from workbench.candidates.select import suppress
from workbench.candidates.table import Candidates


def select_classes(
    candidates: Candidates, class_score: NDArray[np.float64], class_thresh: float
) -> NDArray[np.int64]:
    """The rows whose best class scores at least `class_thresh`, once at each place, ascending.

    `class_score` `(n,)` is the probability of the best class of each candidate; -1 where it may
    not be kept. Tiles are decided one by one, as in `select_in_tile`.
    """
    good = np.flatnonzero(class_score >= class_thresh)
    tile_row, tile_col = (candidates.column(name)[good] for name in ("tile_row", "tile_col"))
    order = np.lexsort((tile_col, tile_row))
    changes = np.diff(tile_row[order]) | np.diff(tile_col[order])
    kept = [np.empty(0, np.int64)]
    for rows in np.split(good[order], np.flatnonzero(changes) + 1):
        here = candidates.take(rows)
        pairs = MaskPairs(here)
        pairs.compare(np.arange(len(rows)))
        kept.append(rows[select_in_tile(here, pairs.shared, class_score[rows], class_thresh)])
    return np.sort(np.concatenate(kept))


def select_in_tile(
    candidates: Candidates,
    shared: Shared,
    class_score: NDArray[np.float64],
    class_thresh: float,
) -> NDArray[np.int64]:
    """As `select_classes`, of one tile whose pairs of masks are known.

    Of masks that share more than half of the smaller one, those stay that are worth most together
    (see `Places`). The order of the rows changes nothing.
    """
    good = class_score >= class_thresh
    places = places_of(candidates, shared.among(good), class_score)
    return np.flatnonzero(places.worth_most(class_thresh))


def places_of(candidates: Candidates, shared: Shared, class_score: NDArray[np.float64]) -> Places:
    """Which candidates of a tile are about one place.

    Of two that are worth the same the smaller one stays, then the higher predicted IoU, then the
    lower ordinal.
    """
    ties = (-candidates.column("pred_iou"), candidates.column("ordinal"))
    return Places.of(shared, candidates.column("area_px").astype(float), class_score, ties)


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
    def of(
        cls,
        shared: Shared,
        area: NDArray[np.float64],
        score: NDArray[np.float64],
        ties: Sequence[NDArray[Any]] = (),
    ) -> Places:
        """Find the pairs that share more than half of the smaller row.

        `area`, `score` and each of `ties` are `(n,)`. Of two rows that are worth the same the
        smaller one stays, then the one with the lowest `ties`, then the earlier one.
        """
        rank = _places_in(np.lexsort((*ties[::-1], -score, area)))
        pairs = shared.conflicting(area, ONE_CLASS_PER_PLACE)
        first = rank[pairs.i] < rank[pairs.j]
        smaller, larger = np.where(first, pairs.i, pairs.j), np.where(first, pairs.j, pairs.i)
        order = np.argsort(rank[larger] * len(rank) + rank[smaller])
        return cls(score, rank, smaller[order], larger[order])

    def worth_most(self, class_thresh: float) -> NDArray[np.bool_]:
        """Mark what stays of the rows that score at least `class_thresh`, `(n,)`.

        A row is worth what its score exceeds the threshold by. From small to large, a row takes
        the place of all that it covers if it is worth more than they are together. So a block
        that scores a little more than one of its roofs does not remove all of them. If the best
        score went first, as in the usual suppression, half of the fields that were found would be
        lost where one scene teaches others (benchmarks/classes.py). Of nested masks the best
        choice there is stays.
        """
        good = self.score >= class_thresh
        both = good[self.smaller] & good[self.larger]
        smaller, larger = self.smaller[both], self.larger[both]
        worth = self.score - class_thresh
        stays = good.copy()
        first = np.flatnonzero(np.diff(larger, prepend=-1))
        # numbers one by one: most rows cover one or two others
        covered_by = zip(
            larger[first].tolist(), first.tolist(), np.append(first, len(larger))[1:].tolist(),
            strict=True,
        )  # fmt: skip
        rows, is_worth, is_left = smaller.tolist(), worth.tolist(), stays.tolist()
        for row, start, stop in covered_by:
            covered = [other for other in rows[start:stop] if is_left[other]]
            if covered and is_worth[row] <= sum(is_worth[other] for other in covered):
                is_left[row] = False
            else:
                for other in covered:
                    is_left[other] = False
        stays = np.array(is_left, bool)
        # what had to go for a row that went later comes back
        beaten = np.zeros(len(good), bool)
        beaten[smaller[stays[larger]]] = True
        beaten[larger[stays[smaller]]] = True
        free = good & ~stays & ~beaten
        rank = _places_in(np.lexsort((self.rank, -self.score)))
        better = rank[smaller] < rank[larger]
        pairs = np.column_stack(
            (np.where(better, smaller, larger), np.where(better, larger, smaller))
        )
        return stays | suppress(free, pairs)


def _places_in(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each row in an order of rows."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place
