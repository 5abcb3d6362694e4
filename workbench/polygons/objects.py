"""Which polygons of neighbouring tiles are one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from workbench.candidates.offer import INSIDE
from workbench.polygons.on_disk import SpilledPolygons
from workbench.polygons.overlap import common_area
from workbench.polygons.pixel_area import Lattices
from workbench.polygons.seam_pairs import SUREST

# the area that a row shares with others of its tile, relative to the smaller one of each pair (n,)
SharesOf = Callable[[int, NDArray[np.int64]], NDArray[np.float64]]
RIVALS = 0.1  # polygons of a tile that share more than this of the smaller one are not one object


@dataclass(frozen=True)
class Objects:
    """Which rows are one object; iterates over the objects of two or more rows."""

    label: NDArray[np.int64]  # (n,) the first row of each row's object
    by_label: NDArray[np.int64]  # (n,) all rows, object after object

    @classmethod
    def of(
        cls,
        matches: NDArray[Any],
        shapes: SpilledPolygons,
        tile: NDArray[np.int64],
        lattices: Lattices,
    ) -> Objects:
        """Join matches into objects, best first, but never two overlapping polygons of one tile.

        Those are different objects, or a whole and its part: otherwise, a chain of neighbours would
        unite them. Rows that no match connects are never joined.
        """
        label = np.arange(len(tile))
        links = coo_array(
            (np.ones(len(matches), np.int8), (matches["i"], matches["j"])), shape=(len(tile),) * 2
        )
        component = connected_components(links, directed=False)[1][matches["i"]]
        order = np.lexsort((*(matches[name] for name in reversed(SUREST)), component))
        ends = np.flatnonzero(np.diff(component[order], append=-1)) + 1

        def overlaps(row: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
            others = shapes[rows]
            common = common_area(
                np.repeat(shapes[np.array([row])], len(rows)), others, lattices[tile[row]]
            )
            return common / np.minimum(shapes.area[row], shapes.area[rows])

        for first, last in pairwise([0, *ends.tolist()]):
            for rows in _joined(matches[order[first:last]], tile, overlaps):
                label[rows] = min(rows)
        return cls(label, np.argsort(label, kind="stable"))

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        sizes = np.bincount(self.label, minlength=1)
        for first in np.flatnonzero(sizes > 1).tolist():
            yield self.members(first)

    @property
    def joined(self) -> NDArray[np.bool_]:
        """Whether each row's object has other rows."""
        return np.asarray(np.bincount(self.label, minlength=len(self.label))[self.label] > 1)

    def have(self, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each row's object has a marked row."""
        return self.sums(marked.astype(np.float64)) > 0

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of the values `(n,)` of all rows of each row's object."""
        of_object = np.bincount(self.label, values, minlength=len(self.label))
        return np.asarray(of_object[self.label], np.float64)

    def members(self, row: int) -> NDArray[np.int64]:
        """The rows of a row's object, in order."""
        label = self.label[row]
        place = int(np.searchsorted(self.label, label, sorter=self.by_label))
        end = int(np.searchsorted(self.label, label, side="right", sorter=self.by_label))
        return self.by_label[place:end]


def _joined(
    matches: NDArray[Any], tile: NDArray[np.int64], overlaps: SharesOf
) -> Iterable[list[int]]:
    """Join connected rows match by match, in the given order; return the rows of each object."""
    object_of: dict[int, list[int]] = {}
    refused = []
    for match in matches:
        one, other = (object_of.setdefault(int(match[side]), [int(match[side])]) for side in "ij")
        if one is other:
            continue
        if _rivals(one, other, tile, overlaps):
            refused.append(match)
        else:
            _join(one, other, object_of)
    for match in refused:
        one, other = (object_of[int(match[side])] for side in "ij")
        if one is not other and _end_at_each_other(match, one, other, tile, overlaps):
            _join(one, other, object_of)
    return {id(rows): rows for rows in object_of.values()}.values()


def _join(one: list[int], other: list[int], object_of: dict[int, list[int]]) -> None:
    if len(one) < len(other):
        one, other = other, one
    one.extend(other)
    for row in other:
        object_of[row] = one


def _end_at_each_other(
    match: Any, one: list[int], other: list[int], tile: NDArray[np.int64], overlaps: SharesOf
) -> bool:
    """Whether two objects are pieces of one, though a tile shows a whole and a part of it.

    Each ends at the other one's tile, and has no other piece there. If polygons of both overlap in
    one tile, the smaller one lies on the larger one.
    """
    i_tile, j_tile = tile[match["i"]], tile[match["j"]]
    if not (match["cut_i"] and match["cut_j"]):
        return False
    if (tile[one] == j_tile).any() or (tile[other] == i_tile).any():
        return False
    shares = [overlaps(i, rows) for i, rows in _pairs_of_a_tile(one, other, tile)]
    return all(((share <= RIVALS) | (share >= INSIDE)).all() for share in shares)


def _rivals(one: list[int], other: list[int], tile: NDArray[np.int64], overlaps: SharesOf) -> bool:
    """Whether two objects have polygons of one tile that overlap."""
    return any((overlaps(i, rows) > RIVALS).any() for i, rows in _pairs_of_a_tile(one, other, tile))


def _pairs_of_a_tile(
    one: list[int], other: list[int], tile: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each row of one object with the rows of another one from the same tile."""
    for i in one:
        rows = [j for j in other if tile[j] == tile[i]]
        if rows:
            yield i, np.array(rows)
