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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.polygons import only_polygons

AGREE = 0.5  # IoU inside the shared overlap from which two polygons are the same object
SEEN = 0.95  # share of a polygon inside the neighbour's window that counts as all of it
DUPLICATE = 0.7  # IoU from which two finished polygons are one too many
TOUCH_PX = 2  # networks stop a pixel or two short of the edge

KEY = ["source", "tile_row", "tile_col"]
_THREADS = ThreadPoolExecutor(os.cpu_count(), "seams")


@dataclass(frozen=True)
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


def merge_seams(polygons: gpd.GeoDataFrame, windows: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Make one polygon of each object that several tiles saw.

    `polygons` come from `to_polygons`, `windows` from `tile_windows`; several scenes may be
    stacked. Adds `n_tiles`, the number of tiles that saw the object; scores and index are those of
    the best piece that is left. `at_edge` becomes true also where the windows end, and where a tile
    cut a polygon that the next one does not continue. The result does not depend on the order of
    the rows and is sorted by source, tile and ordinal.
    """
    polygons = polygons.sort_values([*KEY, "ordinal"], kind="stable").reset_index(drop=True)
    windows = windows.sort_values(KEY, kind="stable").reset_index(drop=True)
    geometry = polygons.geometry.to_numpy()
    tile = _tile_numbers(polygons, windows)
    rank = _ranks(polygons)
    matches: list[_Match] = []
    foreign: list[tuple[int, int]] = []
    cut: list[tuple[int, int]] = []
    for verdicts in _compare_neighbours(geometry, tile, windows):
        matches += verdicts.matches
        foreign += verdicts.foreign
        cut += verdicts.cut

    groups = _group(sorted(matches, key=lambda match: match.order), geometry, tile)
    group_of = {int(row): number for number, group in enumerate(groups) for row in group}
    matches = [match for match in matches if group_of[match.i] == group_of[match.j]]
    matched = {(m.i, tile[m.j]) for m in matches} | {(m.j, tile[m.i]) for m in matches}
    disowned = np.zeros(len(polygons), bool)
    disowned[[row for row, window in foreign if (row, window) not in matched]] = True
    replaced = np.zeros(len(polygons), bool)
    replaced[[row for match in matches for row in match.replaced(rank)]] = True

    keep = ~(replaced | disowned)
    for members in groups:
        if not keep[members].any():  # each was replaced by another one of the group
            left = members[~disowned[members]]
            keep[left[np.argsort(rank[left])[:1]]] = True
    at_edge = polygons["at_edge"].to_numpy() | _reach_the_end(geometry, windows)
    at_edge[[row for row, window in cut if (row, window) not in matched]] = True
    merged = _unite(polygons.assign(n_tiles=1, at_edge=at_edge), groups, keep, tile, rank)
    geometry = merged.geometry.to_numpy()
    seen_by = {int(row): set(tile[group].tolist()) for group in groups for row in group}
    shared = np.flatnonzero(keep & _reach_overlaps(geometry, windows))
    tiles = [seen_by.get(row, {int(tile[row])}) for row in shared.tolist()]
    keep[_duplicates(geometry, shared, tiles, rank)] = False
    return merged[keep].reset_index(drop=True)


def _unite(
    polygons: gpd.GeoDataFrame,
    groups: list[NDArray[np.int64]],
    keep: NDArray[np.bool_],
    tile: NDArray[np.int64],
    rank: NDArray[np.int64],
) -> gpd.GeoDataFrame:
    """Unite what is kept of each group in its best row; clears `keep` of the other rows."""
    geometry = polygons.geometry.to_numpy().copy()
    columns = {name: polygons[name].to_numpy().copy() for name in ("at_edge", "area_px", "n_tiles")}
    for members in groups:
        left = members[keep[members]]
        if not len(left):
            continue
        best = left[np.argmin(rank[left])]
        columns["n_tiles"][best] = len(np.unique(tile[members]))
        columns["at_edge"][best] = columns["at_edge"][left].any()
        if len(left) > 1:
            whole = only_polygons(np.array([shapely.union_all(geometry[left])]))[0]
            per_area = columns["area_px"][best] / geometry[best].area
            columns["area_px"][best] = round(whole.area * per_area)
            geometry[best] = whole
        keep[left] = left == best
    return polygons.assign(**columns).set_geometry(geometry, crs=polygons.crs)


def _tile_numbers(polygons: gpd.GeoDataFrame, windows: gpd.GeoDataFrame) -> NDArray[np.int64]:
    """The row of each polygon's window."""
    number = pd.Series(np.arange(len(windows)), index=pd.MultiIndex.from_frame(windows[KEY]))
    return number.reindex(pd.MultiIndex.from_frame(polygons[KEY])).to_numpy(np.int64)


def _ranks(polygons: gpd.GeoDataFrame) -> NDArray[np.int64]:
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
    foreign: list[tuple[int, int]]  # the other window's to decide
    cut: list[tuple[int, int]]


def _compare_neighbours(
    geometry: NDArray[np.object_], tile: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> Iterator[_Verdicts]:
    """Compare all pairs of overlapping windows; what is held in memory is that of a few pairs."""
    boxes, touch = windows.geometry.to_numpy(), TOUCH_PX * windows["pixel"].to_numpy()
    a, b = shapely.STRtree(boxes).query(boxes)
    bounds = shapely.bounds(geometry).reshape(-1, 4)
    starts = np.searchsorted(tile, np.arange(len(boxes) + 1))

    def side(here: int, there: int, overlap: shapely.Polygon) -> _Side:
        x0, y0, x1, y1 = overlap.bounds
        rows = np.arange(starts[here], starts[here + 1])
        inside = (bounds[rows, 0] < x1) & (bounds[rows, 2] > x0)
        inside &= (bounds[rows, 1] < y1) & (bounds[rows, 3] > y0)
        rows = rows[inside]
        whole, shared = geometry[rows], geometry[rows]
        reach = bounds[rows] @ np.diag([-1, -1, 1, 1]) > [-x0, -y0, x1, y1]
        beyond = reach.any(axis=1)
        shared[beyond] = shapely.intersection(whole[beyond], overlap)
        # a polygon lies in its own window: what the other window sees of it is in the overlap
        seen = shapely.area(shared) >= SEEN * shapely.area(whole)
        edge = _cut_strip(boxes[there], boxes[here], touch[there])
        seen[seen] = ~shapely.intersects(whole[seen], edge)
        cut = shapely.intersects(whole, _cut_strip(boxes[here], boxes[there], touch[here]))
        return _Side(boxes[here], rows, whole, shared, cut, seen)

    def compare(pair: tuple[int, int]) -> _Verdicts:
        i, j = pair
        overlap = shapely.intersection(boxes[i], boxes[j])
        if overlap.area == 0:
            return _Verdicts([], [], [])
        one, other = side(i, j, overlap), side(j, i, overlap)
        foreign = [(row, j) for row in _others_to_decide(one, other)]
        foreign += [(row, i) for row in _others_to_decide(other, one)]
        cut = [(row, j) for row in one.rows[one.cut].tolist()]
        cut += [(row, i) for row in other.rows[other.cut].tolist()]
        return _Verdicts(_agreeing(one, other), foreign, cut)

    pairs = sorted(zip(a[a < b].tolist(), b[a < b].tolist(), strict=True))
    # shapely does not hold Python's lock while it works
    return _THREADS.map(compare, pairs)


def _agreeing(one: _Side, other: _Side) -> list[_Match]:
    """All pairs that look alike in the overlap."""
    m, n = shapely.STRtree(other.shared).query(one.shared)
    area, other_area = shapely.area(one.shared), shapely.area(other.shared)
    # a U whose two legs reach into the overlap may be two polygons on one side: of two that are
    # cut, only the parts that meet the other one count
    both_cut = one.cut[m] & other.cut[n]
    parted = shapely.get_num_geometries(one.shared) > 1
    other_parted = shapely.get_num_geometries(other.shared) > 1
    in_parts = both_cut & (parted[m] | other_parted[n])
    # sizes and frames alone rule most pairs out, at a fraction of an intersection's cost
    most = np.minimum(
        _common_frame(one.shared[m], other.shared[n]), np.minimum(area[m], other_area[n])
    )
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


def _common_frame(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.float64]:
    """The area that the bounds of each pair share: no less than what the two share."""
    x0, y0, x1, y1 = shapely.bounds(one).T
    u0, v0, u1, v1 = shapely.bounds(other).T
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
    near = _common_frame(parts[i], other_parts[j]) > 0
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


def _shared_area(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.float64]:
    return np.asarray(shapely.area(shapely.intersection(one, other)))


def _in_chunks(*columns: NDArray[np.object_]) -> list[list[NDArray[np.object_]]]:
    cuts = np.arange(64, len(columns[0]), 64)
    return [np.split(column, cuts) for column in columns]


def _overlap(geometry: shapely.Geometry, others: NDArray[np.object_]) -> bool:
    """Whether a polygon covers a tenth of another one, or is covered by it to a tenth."""
    if not len(others):
        return False
    common = shapely.area(shapely.intersection(geometry, others))
    smaller = np.minimum(shapely.area(geometry), shapely.area(others))
    return bool((common > 0.1 * smaller).any())


def _group(
    matches: list[_Match], geometry: NDArray[np.object_], tile: NDArray[np.int64]
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
        rivals = ((i, np.array([j for j in other if tile[j] == tile[i]], np.int64)) for i in one)
        if any(_overlap(geometry[i], geometry[rows]) for i, rows in rivals):
            continue
        if len(one) < len(other):
            one, other = other, one
        one.extend(other)
        for row in other:
            group_of[row] = one
    groups = {id(group): np.array(sorted(group)) for group in group_of.values()}
    return sorted(groups.values(), key=lambda group: int(group[0]))


def _reach_overlaps(geometry: NDArray[np.object_], windows: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Whether the bounds of each polygon lie in more than one window."""
    if not len(geometry):
        return np.zeros(0, bool)
    frames = shapely.box(*shapely.bounds(geometry).T)
    row, _ = shapely.STRtree(windows.geometry.to_numpy()).query(frames)
    return np.bincount(row, minlength=len(geometry)) > 1


def _reach_the_end(geometry: NDArray[np.object_], windows: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Whether each polygon touches the outline of all that the windows see together."""
    outline = windows.union_all().boundary
    shapely.prepare(outline)
    return shapely.intersects(outline, geometry)


def _duplicates(
    geometry: NDArray[np.object_],
    rows: NDArray[np.int64],
    seen_by: list[set[int]],
    rank: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Rows that repeat a better one, though no tile has seen both; else suppression has decided.

    `seen_by` holds the tiles that saw each of `rows`.
    """
    shapes = geometry[rows]
    i, j = shapely.STRtree(shapes).query(shapes)
    i, j = i[i < j], j[i < j]
    area = shapely.area(shapes)
    # sizes and frames alone rule nearly all pairs out, at a fraction of an intersection's cost
    most = np.minimum(_common_frame(shapes[i], shapes[j]), np.minimum(area[i], area[j]))
    possible = most > DUPLICATE * (area[i] + area[j] - most)
    possible[possible] = [
        not seen_by[m] & seen_by[n] for m, n in zip(i[possible], j[possible], strict=True)
    ]
    i, j = i[possible], j[possible]
    common = np.concatenate(
        [np.empty(0), *_THREADS.map(_shared_area, *_in_chunks(shapes[i], shapes[j]))]
    )
    same = common > DUPLICATE * (area[i] + area[j] - common)
    pairs = [
        sorted((m, n), key=lambda k: rank[rows[k]])
        for m, n in zip(i[same].tolist(), j[same].tolist(), strict=True)
    ]
    gone = np.zeros(len(rows), bool)
    for best, worse in sorted(pairs, key=lambda pair: (rank[rows[pair[0]]], rank[rows[pair[1]]])):
        if not gone[best]:
            gone[worse] = True
    return rows[gone]
