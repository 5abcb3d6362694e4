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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.polygons import only_polygons
from workbench.spill import SpilledPolygons

AGREE = 0.5  # IoU inside the shared overlap from which two polygons are the same object
SEEN = 0.95  # share of a polygon inside the neighbour's window that counts as all of it
DUPLICATE = 0.7  # IoU from which two finished polygons are one too many
TOUCH_PX = 2  # networks stop a pixel or two short of the edge
BATCH = 1024  # polygons, or pairs of windows, that are looked at together: memory goes with them

KEY = ["source", "tile_row", "tile_col"]
_THREADS = ThreadPoolExecutor(os.cpu_count(), "seams")


@dataclass(frozen=True, slots=True)
class _Match:
    """Two polygons (row numbers) of two windows that look alike in the overlap.

    The surest matches come first in their `order`. `seen`: all of the polygon lies in the other
    one's window, clear of its edges.
    """

    order: tuple[float, ...]
    i: int
    j: int
    cut_i: bool
    cut_j: bool
    seen_i: bool
    seen_j: bool

    def replaced(self, rank: NDArray[np.int64]) -> list[int]:
        """The row that goes because the other one shows the same object better, if one does."""
        if self.cut_i and self.cut_j:
            return []
        if self.seen_i and self.seen_j:
            return [max((self.cut_i, rank[self.i], self.i), (self.cut_j, rank[self.j], self.j))[2]]
        return [self.i] * self.seen_i + [self.j] * self.seen_j


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
        rows = _put_away(polygons, shapes)
        tile = _tile_numbers(rows, windows)
        rank = _ranks(rows)
        # of most pairs there is nothing to say: what is said is kept, and not that it was asked
        matches, foreign, cut = [], [_pairs([])], [_pairs([])]
        for verdicts in _compare_neighbours(shapes, tile, windows):
            matches += verdicts.matches
            foreign += [verdicts.foreign] if len(verdicts.foreign) else []
            cut += [verdicts.cut] if len(verdicts.cut) else []
        groups = _group(sorted(matches, key=lambda match: match.order), shapes, tile)
        group_of = {int(row): number for number, group in enumerate(groups) for row in group}
        matches = [match for match in matches if group_of[match.i] == group_of[match.j]]
        i, j = _pairs([(match.i, match.j) for match in matches]).T
        matched = np.column_stack((np.append(i, j), np.append(tile[j], tile[i])))
        unmatched = partial(_not_among, matched, len(windows))
        disowned = np.zeros(len(rows), bool)
        disowned[unmatched(np.concatenate(foreign))] = True
        replaced = np.zeros(len(rows), bool)
        replaced[[row for match in matches for row in match.replaced(rank)]] = True

        keep = ~(replaced | disowned)
        for members in groups:
            if not keep[members].any():  # each was replaced by another one of the group
                left = members[~disowned[members]]
                keep[left[np.argsort(rank[left])[:1]]] = True
        at_edge = rows["at_edge"].to_numpy() | _reach_the_end(shapes, windows)
        at_edge[unmatched(np.concatenate(cut))] = True
        rows = _unite(rows.assign(n_tiles=1, at_edge=at_edge), shapes, groups, keep, tile, rank)

        def seen_by(row: int) -> set[int]:
            members = groups[group_of[row]] if row in group_of else np.array([row])
            return set(tile[members].tolist())

        shared = np.flatnonzero(keep & _reach_overlaps(shapes.bounds, windows))
        keep[_duplicates(shapes, shared, seen_by, rank)] = False
        for batch in _in_batches(np.flatnonzero(keep)):
            frame = gpd.GeoDataFrame(rows.iloc[batch], geometry=shapes[batch], crs=windows.crs)
            yield frame.reset_index(drop=True)


def _put_away(polygons: Iterable[gpd.GeoDataFrame], shapes: SpilledPolygons) -> pd.DataFrame:
    """Put the geometry into the file; returns the other columns. Both by tile and ordinal."""
    columns = []
    for frame in polygons:
        shapes.append(frame.geometry.to_numpy())
        columns.append(pd.DataFrame(frame.drop(columns=frame.geometry.name)))
    rows = pd.concat(columns, ignore_index=True).sort_values([*KEY, "ordinal"], kind="stable")
    shapes.settle(rows.index.to_numpy())
    return rows.reset_index(drop=True)


def _in_batches(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """At least one batch, should it be empty."""
    return np.split(rows, np.arange(BATCH, len(rows), BATCH))


def _not_among(
    matched: NDArray[np.int64], n_windows: int, pairs: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows of those pairs (row, window) that are not among the matched ones."""
    known = np.isin(pairs @ [n_windows, 1], matched @ [n_windows, 1])
    return np.asarray(pairs[~known, 0])


def _unite(
    rows: pd.DataFrame,
    shapes: SpilledPolygons,
    groups: list[NDArray[np.int64]],
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


def _tile_numbers(polygons: pd.DataFrame, windows: gpd.GeoDataFrame) -> NDArray[np.int64]:
    """The row of each polygon's window."""
    number = pd.Series(np.arange(len(windows)), index=pd.MultiIndex.from_frame(windows[KEY]))
    return number.reindex(pd.MultiIndex.from_frame(polygons[KEY])).to_numpy(np.int64)


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


@dataclass(frozen=True)
class _Verdicts:
    """What two windows say of their polygons (row, other window)."""

    matches: list[_Match]
    foreign: NDArray[np.int64]  # (n, 2): the other window's to decide
    cut: NDArray[np.int64]  # (n, 2)


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

    def compare(pair: tuple[int, int]) -> _Verdicts:
        i, j = pair
        overlap = shapely.intersection(boxes[i], boxes[j])
        if overlap.area == 0:
            return _Verdicts([], _pairs([]), _pairs([]))
        one, other = side(i, j, overlap), side(j, i, overlap)
        foreign = [(row, j) for row in _others_to_decide(one, other)]
        foreign += [(row, i) for row in _others_to_decide(other, one)]
        cut = [(row, j) for row in one.rows[one.cut].tolist()]
        cut += [(row, i) for row in other.rows[other.cut].tolist()]
        return _Verdicts(_agreeing(one, other), _pairs(foreign), _pairs(cut))

    pairs = sorted(zip(a[a < b].tolist(), b[a < b].tolist(), strict=True))
    for start in range(0, len(pairs), BATCH):
        # shapely does not hold Python's lock while it works
        yield from _THREADS.map(compare, pairs[start : start + BATCH])


def _pairs(pairs: list[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(pairs, np.int64).reshape(-1, 2)


def _agreeing(one: _Side, other: _Side) -> list[_Match]:
    """All pairs that look alike in the overlap."""
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
    alike = [
        (int(i), int(j), float(both), float(both / of))
        for i, j, both, of in zip(m[same], n[same], common[same], union[same], strict=True)
    ]
    partners = Counter(i for i, *_ in alike)
    other_partners = Counter(j for _, j, *_ in alike)
    return [
        _Match(
            # a whole and its part may look alike in one overlap and different in another, where
            # they are told apart; large overlaps tell more than the corner of four tiles
            (
                partners[i] > 1 or other_partners[j] > 1,
                -round(iou, 6),
                -round(both, 6),
                -min(one.whole[i].area, other.whole[j].area),
                int(one.rows[i]),
                int(other.rows[j]),
            ),
            int(one.rows[i]),
            int(other.rows[j]),
            bool(one.cut[i]),
            bool(other.cut[j]),
            bool(one.seen[i]),
            bool(other.seen[j]),
        )
        for i, j, both, iou in alike
    ]


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


def _others_to_decide(one: _Side, other: _Side) -> list[int]:
    """Rows of one window that the other sees as well or better: its own proposals count there."""
    return one.rows[one.seen & (one.cut | _nearer(one.whole, other.box, one.box))].tolist()


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


def _group(
    matches: list[_Match], shapes: SpilledPolygons, tile: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Join matches to objects, best first, but never two overlapping polygons of one tile.

    Those are different objects, or a whole and its part: without this, a chain of neighbours
    would unite them.
    """
    group_of: dict[int, list[int]] = {}
    for match in matches:
        one = group_of.setdefault(match.i, [match.i])
        other = group_of.setdefault(match.j, [match.j])
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
    groups = {id(group): np.array(sorted(group)) for group in group_of.values()}
    return sorted(groups.values(), key=lambda group: int(group[0]))


def _reach_overlaps(bounds: NDArray[np.float64], windows: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Whether the bounds of each polygon lie in more than one window."""
    tree = shapely.STRtree(windows.geometry.to_numpy())
    reach = np.zeros(len(bounds), bool)
    for rows in _in_batches(np.arange(len(bounds))):
        row, _ = tree.query(shapely.box(*bounds[rows].T))
        reach[rows] = np.bincount(row, minlength=len(rows)) > 1
    return reach


def _reach_the_end(shapes: SpilledPolygons, windows: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Whether each polygon touches the outline of all that the windows see together."""
    outline = windows.union_all().boundary
    shapely.prepare(outline)
    reach = np.zeros(len(shapes), bool)
    for rows in _in_batches(np.arange(len(reach))):
        near = rows[shapely.intersects(outline, shapely.box(*shapes.bounds[rows].T))]
        reach[near] = shapely.intersects(outline, shapes[near])
    return reach


def _duplicates(
    shapes: SpilledPolygons,
    rows: NDArray[np.int64],
    seen_by: Callable[[int], set[int]],
    rank: NDArray[np.int64],
) -> list[int]:
    """Rows that repeat a better one, though no tile has seen both; else suppression has decided.

    `seen_by` gives the tiles that saw a row.
    """
    frames = np.asarray(shapely.box(*shapes.bounds[rows].T))
    tree = shapely.STRtree(frames)
    pairs = []
    for batch in _in_batches(np.arange(len(rows))):
        i, j = tree.query(frames[batch])
        i = i + batch[0] if len(batch) else i
        i, j = rows[i[i < j]], rows[j[i < j]]
        # sizes and frames alone rule nearly all pairs out, at a fraction of an intersection's cost
        area, other_area = shapes.area[i], shapes.area[j]
        most = np.minimum(
            _common_frame(shapes.bounds[i], shapes.bounds[j]), np.minimum(area, other_area)
        )
        possible = most > DUPLICATE * (area + other_area - most)
        pairs += [
            (m, n)
            for m, n in zip(i[possible].tolist(), j[possible].tolist(), strict=True)
            if not seen_by(m) & seen_by(n)
        ]
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
