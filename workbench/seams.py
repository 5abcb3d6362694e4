"""Where tiles overlap: one polygon for each object, whichever tiles saw it.

All verdicts are about pairs of polygons of two overlapping windows. A polygon is *cut* towards a
neighbour if it touches an edge of its own window inside the neighbour's: the neighbour sees what
lies beyond. Two polygons that agree inside the shared overlap are the same object, and then

- of two that both windows see whole, the worse one goes (a duplicate), or the cut one,
- what the other window sees whole goes, if the other polygon reaches beyond this window,
- otherwise both are pieces, and the object is their union.

A polygon that agrees with none of a neighbour, though the neighbour sees all of it uncut, is the
neighbour's to decide if it is cut here, or nearer to the neighbour's centre: it goes, as it would
have in one large tile. Otherwise overlaps would hold the proposals of two tiles, not of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from workbench.polygons import only_polygons
from workbench.spill import SpilledPolygons

AGREE = 0.5  # IoU inside the shared overlap from which two polygons are the same object
SEEN = 0.95  # share of a polygon inside the neighbour's window that counts as all of it
DUPLICATE = 0.7  # IoU from which two finished polygons are one too many
TOUCH_PX = 2  # networks stop a pixel or two short of the edge
BATCH = 1024  # polygons, or pairs of windows, that are looked at together: memory goes with them

KEY = ["source", "tile_row", "tile_col"]
_THREADS = ThreadPoolExecutor(os.cpu_count(), "seams")


# Two polygons (rows i and j) of two windows that look alike in the overlap, the surest match first
# in the order of the first six fields. `cut` as above; `seen`: all of the polygon lies in the other
# one's window, clear of its edges.
_MATCH = np.dtype(
    [
        ("several", "?"),
        *((name, "f8") for name in ("minus_iou", "minus_common", "minus_smaller")),
        *((name, "i8") for name in ("i", "j")),
        *((name, "?") for name in ("cut_i", "cut_j", "seen_i", "seen_j")),
    ]
)
_SUREST = ("several", "minus_iou", "minus_common", "minus_smaller", "i", "j")


def merge_seams(
    polygons: Iterable[gpd.GeoDataFrame], windows: gpd.GeoDataFrame, folder: Path | None = None
) -> Iterator[gpd.GeoDataFrame]:
    """Make one polygon of each object that several tiles saw; yields them in batches.

    `polygons` come from `to_polygons`, one frame at least, `windows` from `tile_windows`; several
    scenes may be stacked. Adds `n_tiles`, the number of tiles that saw
    the object; scores and ordinal are those of the best piece that is left. `at_edge` becomes true
    also where the windows end, and where a tile cut a polygon that the next one does not continue.
    The result does not depend on the order of the rows and is sorted by source, tile and ordinal;
    there is at least one batch.

    Geometry lies in a file in `folder` meanwhile. Of all polygons memory holds numbers only, and
    the geometry of some neighbours.
    """
    windows = windows.sort_values(KEY, kind="stable").reset_index(drop=True)
    with closing(SpilledPolygons(folder)) as shapes:
        rows = _put_away(polygons, windows, shapes)
        tile, rank = rows.pop("tile").to_numpy(), _ranks(rows)
        groups, keep, unfinished = _decide(shapes, tile, rank, windows)
        at_edge = rows["at_edge"].to_numpy() | unfinished | _reach_the_end(shapes, windows)
        rows = _unite(rows.assign(n_tiles=1, at_edge=at_edge), shapes, groups, keep, tile, rank)
        seen_by = partial(_seen_by, groups, tile)
        keep[_duplicates(shapes, np.flatnonzero(keep), windows, seen_by, rank)] = False
        for batch in _in_batches(np.flatnonzero(keep)):
            key = windows[KEY].iloc[tile[batch]].reset_index(drop=True)
            frame = pd.concat([key, rows.iloc[batch].reset_index(drop=True)], axis=1)
            yield gpd.GeoDataFrame(frame, geometry=shapes[batch], crs=windows.crs)


def _put_away(
    polygons: Iterable[gpd.GeoDataFrame], windows: gpd.GeoDataFrame, shapes: SpilledPolygons
) -> pd.DataFrame:
    """Put the geometry into the file; returns the other columns. Both by tile and ordinal.

    In place of the columns of the key there is `tile`, the row of the window.
    """
    number = pd.Series(np.arange(len(windows)), index=pd.MultiIndex.from_frame(windows[KEY]))
    columns = []
    for frame in polygons:
        shapes.append(frame.geometry.to_numpy())
        tile = number.reindex(pd.MultiIndex.from_frame(frame[KEY])).to_numpy(np.int64)
        others = pd.DataFrame(frame.drop(columns=[*KEY, frame.geometry.name]))
        columns.append(others.assign(tile=tile))
    rows = pd.concat(columns, ignore_index=True)
    order = np.lexsort((rows["ordinal"], rows["tile"]))
    shapes.settle(order)
    return rows.iloc[order].reset_index(drop=True)


def _decide(
    shapes: SpilledPolygons,
    tile: NDArray[np.int64],
    rank: NDArray[np.int64],
    windows: gpd.GeoDataFrame,
) -> tuple[_Groups, NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows are one object, which are kept of each, and which a neighbour does not continue.

    `rank` is the place of each row, best first.
    """
    # of most pairs there is nothing to say: what is said is kept, and not that it was asked
    said = [bytearray(), bytearray(), bytearray()]
    for verdicts in _compare_neighbours(shapes, tile, windows):
        for all_of, of_pair in zip(said, verdicts, strict=True):
            all_of += of_pair.tobytes()
    matches = np.frombuffer(said[0], _MATCH)
    foreign, cut = (np.frombuffer(pairs, np.int64).reshape(-1, 2) for pairs in said[1:])
    groups = _Groups.of(matches, shapes, tile)
    matches = matches[groups.label[matches["i"]] == groups.label[matches["j"]]]
    i, j = matches["i"], matches["j"]
    matched = np.column_stack((np.append(i, j), np.append(tile[j], tile[i])))
    disowned, unfinished, replaced = (np.zeros(len(tile), bool) for _ in range(3))
    disowned[_not_among(matched, len(windows), foreign)] = True
    unfinished[_not_among(matched, len(windows), cut)] = True
    replaced[_replaced(matches, rank)] = True
    keep = ~(replaced | disowned)
    for members in groups:
        if not keep[members].any():  # each was replaced by another one of the group
            left = members[~disowned[members]]
            keep[left[np.argsort(rank[left])[:1]]] = True
    return groups, keep, unfinished


def _in_batches(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """At least one batch, should it be empty."""
    return np.split(rows, np.arange(BATCH, len(rows), BATCH))


def _not_among(
    matched: NDArray[np.int64], n_windows: int, pairs: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows of those pairs (row, window) that are not among the matched ones."""
    known = np.isin(pairs @ [n_windows, 1], matched @ [n_windows, 1])
    return np.asarray(pairs[~known, 0])


def _replaced(matches: NDArray[Any], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that go because the other one of a match shows the same object better."""
    i, j, cut_i, cut_j = (matches[name] for name in ("i", "j", "cut_i", "cut_j"))
    one = ~(cut_i & cut_j)
    both = matches["seen_i"] & matches["seen_j"]
    worse_i = np.where(cut_i == cut_j, rank[i] > rank[j], cut_i)
    i_goes = one & matches["seen_i"] & (~both | worse_i)
    j_goes = one & matches["seen_j"] & (~both | ~worse_i)
    return np.append(i[i_goes], j[j_goes])


def _seen_by(groups: _Groups, tile: NDArray[np.int64], row: int) -> set[int]:
    """The tiles that saw an object."""
    return set(tile[groups.members(row)].tolist())


def _unite(
    rows: pd.DataFrame,
    shapes: SpilledPolygons,
    groups: _Groups,
    keep: NDArray[np.bool_],
    tile: NDArray[np.int64],
    rank: NDArray[np.int64],
) -> pd.DataFrame:
    """Unite what is kept of each group in its best row; clears `keep` of the other rows."""
    columns = {name: rows[name].to_numpy().copy() for name in ("at_edge", "area_px", "n_tiles")}
    for members in groups:
        left = members[keep[members]]
        if not len(left):
            continue
        best = left[np.argmin(rank[left])]
        columns["n_tiles"][best] = len(np.unique(tile[members]))
        columns["at_edge"][best] = columns["at_edge"][left].any()
        if len(left) > 1:
            per_area = columns["area_px"][best] / shapes.area[best]
            shapes.replace(best, only_polygons(np.array([shapely.union_all(shapes[left])]))[0])
            columns["area_px"][best] = round(shapes.area[best] * per_area)
        keep[left] = left == best
    return rows.assign(**columns)


def _ranks(polygons: pd.DataFrame) -> NDArray[np.int64]:
    """The place of each polygon, best first: whole before clipped by invalid pixels, then scores.

    Equal scores go in the order of tiles and ordinals.
    """
    rank = np.empty(len(polygons), np.int64)
    order = np.lexsort((-polygons["stability"], -polygons["confidence"], polygons["at_edge"]))
    rank[order] = np.arange(len(polygons))
    return rank


@dataclass(frozen=True)
class _Side:
    """The polygons of one window that reach into its overlap with another window.

    `seen`: the other window sees all of the polygon, and it does not touch that window's edges.
    """

    box: shapely.Polygon
    rows: NDArray[np.int64]
    whole: NDArray[np.object_]
    shared: NDArray[np.object_]  # the part inside the overlap
    cut: NDArray[np.bool_]
    seen: NDArray[np.bool_]


class _Verdicts(NamedTuple):
    """What two windows say of their polygons."""

    matches: NDArray[Any]  # of _MATCH
    foreign: NDArray[np.int64]  # (n, 2), row and other window: which is to decide
    cut: NDArray[np.int64]  # (n, 2), the same


def _compare_neighbours(
    shapes: SpilledPolygons, tile: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> Iterator[_Verdicts]:
    """Compare all pairs of overlapping windows; what is held in memory is that of a few pairs."""
    boxes, touch = windows.geometry.to_numpy(), TOUCH_PX * windows["pixel"].to_numpy()
    a, b = shapely.STRtree(boxes).query(boxes)
    bounds = shapes.bounds
    starts = np.searchsorted(tile, np.arange(len(boxes) + 1))

    def side(here: int, there: int, overlap: shapely.Polygon) -> _Side:
        x0, y0, x1, y1 = overlap.bounds
        rows = np.arange(starts[here], starts[here + 1])
        inside = (bounds[rows, 0] < x1) & (bounds[rows, 2] > x0)
        inside &= (bounds[rows, 1] < y1) & (bounds[rows, 3] > y0)
        rows = rows[inside]
        whole = shapes[rows]
        shared = whole.copy()
        reach = bounds[rows] @ np.diag([-1, -1, 1, 1]) > [-x0, -y0, x1, y1]
        beyond = reach.any(axis=1)
        shared[beyond] = shapely.intersection(whole[beyond], overlap)
        # a polygon lies in its own window: what the other window sees of it is in the overlap
        seen = shapely.area(shared) >= SEEN * shapes.area[rows]
        edge = _cut_strip(boxes[there], boxes[here], touch[there])
        seen[seen] = ~shapely.intersects(whole[seen], edge)
        cut = shapely.intersects(whole, _cut_strip(boxes[here], boxes[there], touch[here]))
        return _Side(boxes[here], rows, whole, shared, cut, seen)

    def compare(i: int, j: int) -> _Verdicts:
        overlap = shapely.intersection(boxes[i], boxes[j])
        if overlap.area == 0:
            return _Verdicts(np.empty(0, _MATCH), _pairs(), _pairs())
        one, other = side(i, j, overlap), side(j, i, overlap)
        foreign = _pairs((_others_to_decide(one, other), j), (_others_to_decide(other, one), i))
        cut = _pairs((one.rows[one.cut], j), (other.rows[other.cut], i))
        return _Verdicts(_agreeing(one, other), foreign, cut)

    pairs = np.column_stack((a, b))[a < b]
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    for start in range(0, len(pairs), BATCH):
        # shapely does not hold Python's lock while it works
        yield from _THREADS.map(compare, *pairs[start : start + BATCH].T.tolist())


def _pairs(*pairs: tuple[NDArray[np.int64], int]) -> NDArray[np.int64]:
    """Rows, and the window that they have in common, as `(n, 2)`."""
    columns = [np.column_stack((rows, np.full(len(rows), window))) for rows, window in pairs]
    return np.concatenate([np.empty((0, 2), np.int64), *columns])


def _agreeing(one: _Side, other: _Side) -> NDArray[Any]:
    """All pairs that look alike in the overlap, as `_MATCH`."""
    m, n = shapely.STRtree(other.shared).query(one.shared)
    area, other_area = shapely.area(one.shared), shapely.area(other.shared)
    bounds, other_bounds = shapely.bounds(one.shared), shapely.bounds(other.shared)
    # a U whose two legs reach into the overlap may be two polygons on one side: of two that are
    # cut, only the parts that meet the other one count
    both_cut = one.cut[m] & other.cut[n]
    parted = shapely.get_num_geometries(one.shared) > 1
    other_parted = shapely.get_num_geometries(other.shared) > 1
    in_parts = both_cut & (parted[m] | other_parted[n])
    # sizes and frames alone rule most pairs out, at a fraction of an intersection's cost
    most = np.minimum(_common_frame(bounds[m], other_bounds[n]), np.minimum(area[m], other_area[n]))
    union = area[m] + other_area[n] - most
    possible = (most > 0) & (in_parts | (most >= AGREE * union * (1 - 1e-9)))
    m, n, both_cut = m[possible], n[possible], both_cut[possible]
    common, piece, other_piece = _common_area(one.shared[m], other.shared[n])
    piece = np.where(both_cut, piece, area[m])
    other_piece = np.where(both_cut, other_piece, other_area[n])
    union = piece + other_piece - common
    same = (common > 0) & (common >= AGREE * union)
    m, n, common, union = m[same], n[same], common[same], union[same]
    # a whole and its part may look alike in one overlap and different in another, where they are
    # told apart; large overlaps tell more than the corner of four tiles
    several = (np.bincount(m, minlength=len(area))[m] > 1) | (
        np.bincount(n, minlength=len(other_area))[n] > 1
    )
    smaller = np.minimum(shapely.area(one.whole[m]), shapely.area(other.whole[n]))
    iou, common = np.round(common / union, 6), np.round(common, 6)
    found = np.empty(len(m), _MATCH)
    for name, values in zip(
        _MATCH.names or (),
        (
            *(several, -iou, -common, -smaller),
            *(one.rows[m], other.rows[n], one.cut[m], other.cut[n], one.seen[m], other.seen[n]),
        ),
        strict=True,
    ):
        found[name] = values
    return found


def _common_frame(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area that each pair of bounds shares: no less than what is inside them."""
    x0, y0, x1, y1 = one.T
    u0, v0, u1, v1 = other.T
    wide, tall = np.minimum(x1, u1) - np.maximum(x0, u0), np.minimum(y1, v1) - np.maximum(y0, v0)
    return np.maximum(wide, 0) * np.maximum(tall, 0)


def _common_area(
    one: NDArray[np.object_], other: NDArray[np.object_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The area that each pair shares, and the area of those parts of either that share any."""
    parts, pair = shapely.get_parts(one, return_index=True)
    other_parts, other_pair = shapely.get_parts(other, return_index=True)
    # parts of one pair meet: most of them lie far apart, and each is small
    per_pair = np.bincount(other_pair, minlength=len(one))
    first = np.cumsum(per_pair) - per_pair
    i = np.repeat(np.arange(len(parts)), per_pair[pair])
    step = np.arange(len(i)) - np.repeat(np.cumsum(per_pair[pair]) - per_pair[pair], per_pair[pair])
    j = first[pair[i]] + step
    near = _common_frame(shapely.bounds(parts)[i], shapely.bounds(other_parts)[j]) > 0
    i, j = i[near], j[near]
    common = shapely.area(shapely.intersection(parts[i], other_parts[j]))
    i, j, common = i[common > 0], j[common > 0], common[common > 0]
    met, other_met = np.unique(i), np.unique(j)
    n = len(one)
    return (
        _sums(pair[i], common, n),
        _sums(pair[met], shapely.area(parts[met]), n),
        _sums(other_pair[other_met], shapely.area(other_parts[other_met]), n),
    )


def _sums(row: NDArray[np.int64], values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The sum of the values of each of `n` rows."""
    return np.bincount(row, values, n).astype(np.float64)


def _others_to_decide(one: _Side, other: _Side) -> NDArray[np.int64]:
    """Rows of one window that the other sees as well or better: its own proposals count there."""
    return one.rows[one.seen & (one.cut | _nearer(one.whole, other.box, one.box))]


def _nearer(
    polygons: NDArray[np.object_], one: shapely.Polygon, other: shapely.Polygon
) -> NDArray[np.bool_]:
    """Whether the middle of each polygon is nearer to the centre of one window than the other.

    Of windows at one distance, the left or upper one counts as nearer.
    """
    middle = shapely.point_on_surface(polygons)
    near, far = (shapely.distance(middle, box.centroid) for box in (one, other))
    first = (one.bounds[0], -one.bounds[3]) < (other.bounds[0], -other.bounds[3])
    return np.asarray(near <= far if first else near < far)


def _cut_strip(box: shapely.Polygon, neighbour: shapely.Polygon, width: float) -> shapely.Geometry:
    """The strip along those edges of a window that lie inside its neighbour's window."""
    x0, y0, x1, y1 = box.bounds
    nx0, ny0, nx1, ny1 = neighbour.bounds
    left, bottom, right, top = max(x0, nx0), max(y0, ny0), min(x1, nx1), min(y1, ny1)
    strips = []
    if nx0 < x0 < nx1:
        strips.append(shapely.box(x0, bottom, x0 + width, top))
    if nx0 < x1 < nx1:
        strips.append(shapely.box(x1 - width, bottom, x1, top))
    if ny0 < y0 < ny1:
        strips.append(shapely.box(left, y0, right, y0 + width))
    if ny0 < y1 < ny1:
        strips.append(shapely.box(left, y1 - width, right, y1))
    return shapely.union_all(strips)


def _overlap(geometry: NDArray[np.object_], others: NDArray[np.object_]) -> bool:
    """Whether a polygon covers a tenth of another one, or is covered by it to a tenth."""
    common = shapely.area(shapely.intersection(geometry, others))
    smaller = np.minimum(shapely.area(geometry), shapely.area(others))
    return bool((common > 0.1 * smaller).any())


@dataclass(frozen=True)
class _Groups:
    """Which rows are one object; goes through the groups of two and more rows."""

    label: NDArray[np.int64]  # (n,) the first row of each row's group
    by_label: NDArray[np.int64]  # (n,) all rows, group after group

    @classmethod
    def of(cls, matches: NDArray[Any], shapes: SpilledPolygons, tile: NDArray[np.int64]) -> _Groups:
        """Join matches to objects, best first, but never two overlapping polygons of one tile.

        Those are different objects, or a whole and its part: without this, a chain of neighbours
        would unite them. What is not connected by any match is no neighbour.
        """
        label = np.arange(len(tile))
        links = coo_array(
            (np.ones(len(matches), np.int8), (matches["i"], matches["j"])), shape=(len(tile),) * 2
        )
        component = connected_components(links, directed=False)[1][matches["i"]]
        order = np.lexsort((*(matches[name] for name in reversed(_SUREST)), component))
        ends = np.flatnonzero(np.diff(component[order], append=-1)) + 1
        for first, last in pairwise([0, *ends.tolist()]):
            for group in _joined(matches[order[first:last]], shapes, tile):
                label[group] = min(group)
        return cls(label, np.argsort(label, kind="stable"))

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        sizes = np.bincount(self.label, minlength=1)
        for first in np.flatnonzero(sizes > 1).tolist():
            yield self.members(first)

    def members(self, row: int) -> NDArray[np.int64]:
        """The rows of a row's group, in order."""
        label = self.label[row]
        place = int(np.searchsorted(self.label, label, sorter=self.by_label))
        end = int(np.searchsorted(self.label, label, side="right", sorter=self.by_label))
        return self.by_label[place:end]


def _joined(
    matches: NDArray[Any], shapes: SpilledPolygons, tile: NDArray[np.int64]
) -> Iterable[list[int]]:
    """Join the matches, in this order, of rows that these connect."""
    group_of: dict[int, list[int]] = {}
    for match_i, match_j in zip(matches["i"].tolist(), matches["j"].tolist(), strict=True):
        one = group_of.setdefault(match_i, [match_i])
        other = group_of.setdefault(match_j, [match_j])
        if one is other:
            continue
        rivals = ((i, [j for j in other if tile[j] == tile[i]]) for i in one)
        if any(
            _overlap(shapes[np.array([i])], shapes[np.array(rows)]) for i, rows in rivals if rows
        ):
            continue
        if len(one) < len(other):
            one, other = other, one
        one.extend(other)
        for row in other:
            group_of[row] = one
    return {id(group): group for group in group_of.values()}.values()


def _reach_the_end(shapes: SpilledPolygons, windows: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Whether each polygon touches the outline of all that the windows see together."""
    outline = windows.union_all().boundary
    shapely.prepare(outline)
    reach = np.zeros(len(shapes), bool)
    for rows in _in_batches(np.arange(len(reach))):
        near = rows[shapely.intersects(outline, shapely.box(*shapes.bounds[rows].T))]
        reach[near] = shapely.intersects(outline, shapes[near])
    return reach


def _neighbourhoods(
    bounds: NDArray[np.float64], rows: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> Iterator[NDArray[np.int64]]:
    """Those of the rows that reach a few windows, if they reach more than one, in their order."""
    tree = shapely.STRtree(windows.geometry.to_numpy())
    reached = [np.empty((0, 2), np.int32)]
    for batch in _in_batches(rows):
        row, window = tree.query(shapely.box(*bounds[batch].T))
        shared = np.bincount(row, minlength=len(batch))[row] > 1
        pairs = np.column_stack((window[shared], batch[row[shared]]))
        reached.append(pairs.astype(np.int32))
    pairs = np.concatenate(reached)
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    last = np.flatnonzero(np.diff(pairs[:, 0], append=-1)) + 1
    start = 0
    while start < len(pairs):
        end = last[np.searchsorted(last, min(start + BATCH, len(pairs)))]
        yield np.unique(pairs[start:end, 1]).astype(np.int64)
        start = end


def _duplicates(
    shapes: SpilledPolygons,
    rows: NDArray[np.int64],
    windows: gpd.GeoDataFrame,
    seen_by: Callable[[int], set[int]],
    rank: NDArray[np.int64],
) -> list[int]:
    """Rows that repeat a better one, though no tile has seen both; else suppression has decided.

    `seen_by` gives the tiles that saw a row.
    """
    found: set[tuple[int, int]] = set()
    for near in _neighbourhoods(shapes.bounds, rows, windows):
        frames = np.asarray(shapely.box(*shapes.bounds[near].T), object)
        i, j = shapely.STRtree(frames).query(frames)
        i, j = near[i[i < j]], near[j[i < j]]
        # sizes and frames alone rule nearly all pairs out, at a fraction of an intersection's cost
        area, other_area = shapes.area[i], shapes.area[j]
        most = np.minimum(
            _common_frame(shapes.bounds[i], shapes.bounds[j]), np.minimum(area, other_area)
        )
        possible = most > DUPLICATE * (area + other_area - most)
        found.update(
            (m, n)
            for m, n in zip(i[possible].tolist(), j[possible].tolist(), strict=True)
            if not seen_by(m) & seen_by(n)
        )
    pairs = sorted(found)
    same: list[tuple[int, int]] = []
    for batch in _in_batches(np.arange(len(pairs))):
        i, j = np.array(pairs, np.int64).reshape(-1, 2)[batch].T
        common = shapely.area(shapely.intersection(shapes[i], shapes[j]))
        over = common > DUPLICATE * (shapes.area[i] + shapes.area[j] - common)
        same += zip(i[over].tolist(), j[over].tolist(), strict=True)
    by_rank = [sorted(pair, key=lambda row: rank[row]) for pair in same]
    gone: set[int] = set()
    for best, worse in sorted(by_rank, key=lambda pair: (rank[pair[0]], rank[pair[1]])):
        if best not in gone:
            gone.add(worse)
    return sorted(gone)
