"""Which candidates are kept when classes are known: those with a class, one at each place."""

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
    """The rows whose best class scores at least `class_thresh`, one at each place, ascending.

    `class_score` `(n,)` is the probability of the best class of each candidate; -1 for one
    that must not be kept. `select_in_tile` decides about each tile on its own.
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
    """Do what `select_classes` does, for one tile whose pairs of masks are known.

    Among masks that share more than half of the smaller one, those with the highest total worth
    stay (see `Places.worth_most`). The order of the rows does not matter.
    """
    good = class_score >= class_thresh
    places = places_of(candidates, shared.among(good), class_score)
    return np.flatnonzero(places.worth_most(class_thresh))


def places_of(candidates: Candidates, shared: Shared, class_score: NDArray[np.float64]) -> Places:
    """Find the candidates of a tile that compete for one place.

    If two are worth the same, the smaller one stays, then the one with the higher predicted IoU,
    then the one with the lower ordinal.
    """
    ties = (-candidates.column("pred_iou"), candidates.column("ordinal"))
    return Places.of(shared, candidates.column("area_px").astype(float), class_score, ties)


@dataclass(frozen=True)
class Places:
    """Pairs of rows that compete for one place, and the class score of each row, `score` `(n,)`.

    Only one row of each pair `(m,)` may stay; pairs are sorted by the larger row, then by the
    smaller one. `rank` `(n,)` is the order of the rows by size.
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

        `area`, `score` and each of `ties` are `(n,)`. If two rows are worth the same, the
        smaller one stays, then the one with the lowest `ties`, then the earlier one.
        """
        rank = _places_in(np.lexsort((*ties[::-1], -score, area)))
        pairs = shared.conflicting(area, ONE_CLASS_PER_PLACE)
        first = rank[pairs.i] < rank[pairs.j]
        smaller, larger = np.where(first, pairs.i, pairs.j), np.where(first, pairs.j, pairs.i)
        order = np.argsort(rank[larger] * len(rank) + rank[smaller])
        return cls(score, rank, smaller[order], larger[order])

    def worth_most(self, class_thresh: float) -> NDArray[np.bool_]:
        """Mark the rows that stay, among those that score at least `class_thresh`, `(n,)`.

        A row's worth is the amount by which its score exceeds the threshold. From small to large,
        a row replaces all rows that it covers if it is worth more than all of them together. So a
        block that scores a little more than one of its roofs does not remove all of them. The usual
        suppression, best score first, would lose half of the fields that were found where one scene
        teaches others (benchmarks/classes.py). Among nested masks, the best possible choice stays.
        """
        good = self.score >= class_thresh
        both = good[self.smaller] & good[self.larger]
        smaller, larger = self.smaller[both], self.larger[both]
        worth = self.score - class_thresh
        stays = good.copy()
        first = np.flatnonzero(np.diff(larger, prepend=-1))
        # a plain loop: most rows cover only one or two others
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
        # rows that were dropped for a row that was itself dropped later come back
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
