"""Where tiles overlap: one polygon for each object, whichever tiles saw it.

All verdicts are about pairs of polygons of two overlapping windows. A polygon is *cut* towards a
neighbour if it touches an edge of its own window inside the neighbour's: the neighbour sees what
lies beyond. Two polygons that agree inside the shared overlap are the same object, and then

- the cut one goes if the other is not cut and sees all of it,
- the worse one goes if neither is cut (a duplicate),
- otherwise both are pieces, and the object is their union.

A polygon that agrees with none of a neighbour, though the neighbour sees all of it uncut, is the
neighbour's to decide if it is cut here, or nearer to the neighbour's centre: it goes, as it would
have in one large tile. Otherwise overlaps would hold the proposals of two tiles, not of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

AGREE = 0.5  # IoU inside the shared overlap from which two polygons are the same object
SEEN = 0.95  # share of a polygon inside the neighbour's window that counts as all of it
DUPLICATE = 0.7  # IoU from which two finished polygons are one too many; SAM's box_nms_thresh
TOUCH_PX = 2  # networks stop a pixel or two short of the edge

KEY = ["source", "tile_row", "tile_col"]


@dataclass(frozen=True)
class _Match:
    """Two polygons (row numbers) that are the same object, better matches first when sorted."""

    rank: tuple[float, ...]
    i: int
    j: int


def merge_seams(polygons: gpd.GeoDataFrame, windows: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Make one polygon of each object that several tiles saw.

    `polygons` come from `to_polygons`, `windows` from `tile_windows`; several scenes may be
    stacked. Adds `n_tiles`, the number of tiles that saw the object; scores and index are those of
    the best piece that is left. The result does not depend on the order of the rows and is sorted
    by source, tile and ordinal.
    """
    polygons = polygons.sort_values([*KEY, "ordinal"], kind="stable").reset_index(drop=True)
    windows = windows.sort_values(KEY, kind="stable").reset_index(drop=True)
    tile = (
        windows.reset_index()
        .set_index(KEY)["index"]
        .reindex(polygons.set_index(KEY).index)
        .to_numpy()
    )
    geometry = polygons.geometry.to_numpy().copy()
    goes = np.zeros(len(polygons), bool)
    disowned = np.zeros(len(polygons), bool)
    matches: list[_Match] = []
    score = polygons[["confidence", "stability"]].to_numpy()
    better = np.empty(len(polygons), np.int64)
    # the rank of each polygon by score; equal scores in the order of tiles and ordinals
    better[np.lexsort((-score[:, 1], -score[:, 0]))] = np.arange(len(polygons))
    for a, b, rows_a, rows_b in _neighbours(geometry, tile, windows):
        found, replaced, foreign = _compare(geometry, rows_a, rows_b, windows, a, b, better)
        matches += found
        goes[replaced] = True
        disowned[foreign] = True

    groups = _group(sorted(matches, key=lambda match: match.rank), geometry, tile)
    merged = polygons.assign(n_tiles=1)
    area_px = polygons["area_px"].to_numpy()
    keep = ~(goes | disowned)
    for group in groups:
        members = np.array(sorted(group))
        left = members[~(goes | disowned)[members]]
        if not len(left):  # each was replaced by another one of the group
            left = members[~disowned[members]][:1]
        if not len(left):
            continue
        best = left[np.argmin(better[left])]
        keep[members], keep[best] = False, True
        merged.loc[best, "n_tiles"] = len(np.unique(tile[members]))
        merged.loc[best, "at_edge"] = bool(polygons["at_edge"].to_numpy()[left].any())
        if len(left) > 1:
            whole = _polygonal(shapely.union_all(geometry[left]))
            merged.loc[best, "area_px"] = round(area_px[best] * whole.area / geometry[best].area)
            geometry[best] = whole
    merged = merged.set_geometry(geometry, crs=polygons.crs)
    reach = keep & _reaches_overlap(geometry, windows)
    keep[_duplicates(geometry, np.flatnonzero(reach), tile, merged["n_tiles"], better)] = False
    return merged[keep].reset_index(drop=True)


def _neighbours(
    geometry: NDArray[np.object_], tile: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield overlapping windows a < b with the polygons of each that reach into the overlap."""
    boxes = windows.geometry.to_numpy()
    a, b = shapely.STRtree(boxes).query(boxes)
    a, b = a[a < b], b[a < b]
    bounds = shapely.bounds(geometry).reshape(-1, 4)
    starts = np.searchsorted(tile, np.arange(len(boxes) + 1))
    extent = shapely.bounds(boxes).reshape(-1, 4)
    for i, j in sorted(zip(a.tolist(), b.tolist(), strict=True)):
        x0, y0 = np.maximum(extent[i, :2], extent[j, :2])
        x1, y1 = np.minimum(extent[i, 2:], extent[j, 2:])
        if x0 >= x1 or y0 >= y1:
            continue
        sides = []
        for t in (i, j):
            rows = np.arange(starts[t], starts[t + 1])
            inside = (bounds[rows, 0] < x1) & (bounds[rows, 2] > x0)
            inside &= (bounds[rows, 1] < y1) & (bounds[rows, 3] > y0)
            sides.append(rows[inside])
        if len(sides[0]) and len(sides[1]):
            yield i, j, sides[0], sides[1]


def _compare(
    geometry: NDArray[np.object_],
    rows_a: NDArray[np.int64],
    rows_b: NDArray[np.int64],
    windows: gpd.GeoDataFrame,
    a: int,
    b: int,
    better: NDArray[np.int64],
) -> tuple[list[_Match], list[int], list[int]]:
    """Compare two windows: matches, rows that a match replaces, rows the other window disowns."""
    box_a, box_b = windows.geometry.iloc[a], windows.geometry.iloc[b]
    touch = TOUCH_PX * windows["pixel"].iloc[[a, b]].to_numpy()
    whole_a, whole_b = geometry[rows_a], geometry[rows_b]
    overlap = shapely.intersection(box_a, box_b)
    in_a, in_b = shapely.intersection(whole_a, overlap), shapely.intersection(whole_b, overlap)
    m, n = shapely.STRtree(in_b).query(in_a, predicate="intersects")
    common = shapely.area(shapely.intersection(in_a[m], in_b[n]))
    m, n, common = m[common > 0], n[common > 0], common[common > 0]
    cut_a = shapely.intersects(whole_a, _cut_strip(box_a, box_b, touch[0]))
    cut_b = shapely.intersects(whole_b, _cut_strip(box_b, box_a, touch[1]))
    seen_a = shapely.area(shapely.intersection(whole_a, box_b)) >= SEEN * shapely.area(whole_a)
    seen_b = shapely.area(shapely.intersection(whole_b, box_a)) >= SEEN * shapely.area(whole_b)

    candidates = []
    for k in range(len(m)):
        i, j = m[k], n[k]
        piece_a, piece_b = in_a[i], in_b[j]
        if cut_a[i] and cut_b[j]:
            # a U whose two legs reach into the overlap may be two polygons on one side
            piece_a, piece_b = _parts_near(piece_a, piece_b), _parts_near(piece_b, piece_a)
        union = shapely.area(piece_a) + shapely.area(piece_b) - common[k]
        if common[k] >= AGREE * union:
            # of a whole and its part that look alike in the overlap, wholes go with wholes
            size = min(shapely.area(whole_a[i]), shapely.area(whole_b[j]))
            rank = (-round(common[k] / union, 6), -size, int(rows_a[i]), int(rows_b[j]))
            candidates.append((rank, i, j))

    matches: list[_Match] = []
    goes: set[int] = set()
    taken_a: dict[int, list[int]] = {}
    taken_b: dict[int, list[int]] = {}
    for rank, i, j in sorted(candidates):
        rivals_a = whole_a[taken_b.get(j, [])]
        rivals_b = whole_b[taken_a.get(i, [])]
        if _overlap(whole_a[i], rivals_a) or _overlap(whole_b[j], rivals_b):
            continue
        taken_a.setdefault(i, []).append(j)
        taken_b.setdefault(j, []).append(i)
        row_a, row_b = int(rows_a[i]), int(rows_b[j])
        matches.append(_Match(rank, row_a, row_b))
        if cut_a[i] and not cut_b[j] and seen_a[i]:
            goes.add(row_a)
        elif cut_b[j] and not cut_a[i] and seen_b[j]:
            goes.add(row_b)
        elif not cut_a[i] and not cut_b[j]:
            goes.add(row_b if better[row_a] < better[row_b] else row_a)
    inside_b = seen_a & ~shapely.intersects(whole_a, _cut_strip(box_b, box_a, touch[1]))
    inside_a = seen_b & ~shapely.intersects(whole_b, _cut_strip(box_a, box_b, touch[0]))
    foreign_a = inside_b & (cut_a | _nearer(whole_a, box_b, box_a))
    foreign_b = inside_a & (cut_b | ~_nearer(whole_b, box_b, box_a))
    foreign_a[list(taken_a)] = False
    foreign_b[list(taken_b)] = False
    return matches, sorted(goes), [*rows_a[foreign_a], *rows_b[foreign_b]]


def _nearer(
    polygons: NDArray[np.object_], one: shapely.Polygon, other: shapely.Polygon
) -> NDArray[np.bool_]:
    """Whether the middle of each polygon is nearer to the centre of one window than the other."""
    middle = shapely.point_on_surface(polygons)
    return np.asarray(
        shapely.distance(middle, one.centroid) < shapely.distance(middle, other.centroid)
    )


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


def _parts_near(geometry: shapely.Geometry, other: shapely.Geometry) -> shapely.Geometry:
    """The parts of a geometry that share area with another one."""
    parts = shapely.get_parts(geometry)
    if len(parts) < 2:
        return geometry
    near = shapely.area(shapely.intersection(parts, other)) > 0
    return shapely.multipolygons(parts[near & (shapely.get_dimensions(parts) == 2)])


def _overlap(geometry: shapely.Geometry, others: NDArray[np.object_]) -> bool:
    """Whether a polygon covers a tenth of another one, or is covered by it to a tenth."""
    if not len(others):
        return False
    common = shapely.area(shapely.intersection(geometry, others))
    smaller = np.minimum(shapely.area(geometry), shapely.area(others))
    return bool((common > 0.1 * smaller).any())


def _group(
    matches: list[_Match], geometry: NDArray[np.object_], tile: NDArray[np.int64]
) -> list[list[int]]:
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
    unique = {id(group): group for group in group_of.values()}
    return sorted((group for group in unique.values() if len(group) > 1), key=min)


def _polygonal(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    parts = shapely.get_parts(geometry)
    return shapely.multipolygons(parts[shapely.get_dimensions(parts) == 2])


def _reaches_overlap(geometry: NDArray[np.object_], windows: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Whether the bounds of each polygon lie in more than one window."""
    if not len(geometry):
        return np.zeros(0, bool)
    frames = shapely.box(*shapely.bounds(geometry).T)
    row, _ = shapely.STRtree(windows.geometry.to_numpy()).query(frames)
    return np.bincount(row, minlength=len(geometry)) > 1


def _duplicates(
    geometry: NDArray[np.object_],
    rows: NDArray[np.int64],
    tile: NDArray[np.int64],
    n_tiles: NDArray[np.int64],
    better: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Rows that repeat a better one of another tile; within a tile, suppression has decided."""
    rows = rows[np.argsort(better[rows])]
    i, j = shapely.STRtree(geometry[rows]).query(geometry[rows], predicate="intersects")
    i, j = i[i < j], j[i < j]
    a, b = rows[i], rows[j]
    single = (np.asarray(n_tiles)[a] == 1) & (np.asarray(n_tiles)[b] == 1)
    i, j = i[~(single & (tile[a] == tile[b]))], j[~(single & (tile[a] == tile[b]))]
    common = shapely.area(shapely.intersection(geometry[rows[i]], geometry[rows[j]]))
    union = shapely.area(geometry[rows[i]]) + shapely.area(geometry[rows[j]]) - common
    same = common > DUPLICATE * union
    gone = np.zeros(len(rows), bool)
    for best, worse in sorted(zip(i[same].tolist(), j[same].tolist(), strict=True)):
        if not gone[best]:
            gone[worse] = True
    return rows[gone]
