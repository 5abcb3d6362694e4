"""Comparing the polygons of two overlapping windows: which match, are cut, or are the other's.

`seams.merge_seams` decides by this; its module defines *cut*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from workbench._support.cores import usable_cores
from workbench.candidates.offer import TOUCH_PX
from workbench.polygons.areas import middle_of
from workbench.polygons.clean import only_polygons
from workbench.polygons.on_disk import SpilledPolygons
from workbench.polygons.overlap import common_area, common_frame, iou, may_reach, most_common
from workbench.polygons.pixel_area import Lattice, Lattices
from workbench.polygons.portions import Each, Portion, do_here, polygons_of

AGREE = 0.5  # IoU inside the shared overlap from which two polygons are the same object
SEEN = 0.95  # share of a polygon inside the neighbour's window that counts as all of it
BATCH = 1024  # polygons that are looked at together: memory goes with them
PAIRS_AT_ONCE = 128  # of windows; as they come row by row, most polygons are in two such portions
OBJECTS_AT_ONCE = 64  # that are united together

_THREADS = ThreadPoolExecutor(usable_cores(), "seams")

# Two polygons (rows i and j) of two windows that look alike in the overlap, the surest match first
# in the order of the first six fields. `seen`: the whole polygon lies in the other one's window,
# clear of its edges.
MATCH = np.dtype(
    [
        ("several", "?"),
        *((name, "f8") for name in ("minus_iou", "minus_common", "minus_smaller")),
        *((name, "i8") for name in ("i", "j")),
        *((name, "?") for name in ("cut_i", "cut_j", "seen_i", "seen_j")),
    ]
)
SUREST = ("several", "minus_iou", "minus_common", "minus_smaller", "i", "j")


@dataclass(frozen=True)
class _Side:
    """The polygons of one window that reach into its overlap with another window.

    `seen`: the other window sees the whole polygon, clear of its edges.
    """

    box: shapely.Polygon
    rows: NDArray[np.int64]
    whole: NDArray[np.object_]
    shared: NDArray[np.object_]  # the part inside the overlap
    cut: NDArray[np.bool_]
    seen: NDArray[np.bool_]


class Comparison(NamedTuple):
    """What pairs of windows say of their polygons."""

    matches: NDArray[Any]  # of MATCH
    foreign: NDArray[np.int64]  # (n, 2), row and other window: that window decides about the row
    cut: NDArray[np.int64]  # (n, 2), row and other window: towards it, the row is cut


def compare_neighbours(
    shapes: SpilledPolygons,
    tile: NDArray[np.int64],
    windows: gpd.GeoDataFrame,
    each: Each = do_here,
) -> Iterator[Comparison]:
    """Compare all pairs of overlapping windows of one scale, some at a time.

    `each` is who compares. What is held in memory is that of some pairs.
    """
    boxes = windows.geometry.to_numpy()
    a, b = shapely.STRtree(boxes).query(boxes)
    scale = windows["scale"].to_numpy()
    a, b = a[scale[a] == scale[b]], b[scale[a] == scale[b]]
    pairs = np.column_stack((a, b))[a < b]
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    starts = np.searchsorted(tile, np.arange(len(boxes) + 1))

    def portions() -> Iterator[Portion]:
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            some = pairs[start : start + PAIRS_AT_ONCE]
            number, of_some = np.unique(some, return_inverse=True)
            row = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in number])
            # most polygons lie in one window alone, and are of no interest here
            tree, frames = shapely.STRtree(boxes[number]), shapely.box(*shapes.bounds[row].T)
            row = row[np.bincount(tree.query(frames)[0], minlength=len(row)) > 1]
            seen_in = np.searchsorted(number, tile[row])
            frame = gpd.GeoDataFrame(
                {"row": row, "window": seen_in}, geometry=shapes[row], crs=windows.crs
            )
            yield Portion(frame, (number, windows.iloc[number], of_some.reshape(-1, 2)))

    with closing(each(_compare, portions())) as results:
        for result in results:
            yield result.more


def _compare(given: Portion) -> Portion:
    """Compare pairs of windows; returns one `Comparison` for all of them.

    `window` of the polygons, and the pairs, count the windows of the portion.
    """
    frame, (number, windows, pairs) = polygons_of(given), given.more
    geometry, row = frame.geometry.to_numpy(), frame["row"].to_numpy()
    bounds, area = shapely.bounds(geometry).reshape(-1, 4), shapely.area(geometry)
    boxes, touch = windows.geometry.to_numpy(), TOUCH_PX * windows["pixel"].to_numpy()
    lattices = Lattices(windows)
    starts = np.searchsorted(frame["window"].to_numpy(), np.arange(len(boxes) + 1))

    def side(here: int, there: int, overlap: shapely.Polygon) -> _Side:
        x0, y0, x1, y1 = overlap.bounds
        at = np.arange(starts[here], starts[here + 1])
        inside = (bounds[at, 0] < x1) & (bounds[at, 2] > x0)
        inside &= (bounds[at, 1] < y1) & (bounds[at, 3] > y0)
        at = at[inside]
        whole = geometry[at]
        shared = whole.copy()
        reach = bounds[at] @ np.diag([-1, -1, 1, 1]) > [-x0, -y0, x1, y1]
        beyond = reach.any(axis=1)
        shared[beyond] = shapely.intersection(whole[beyond], overlap)
        # a polygon lies in its own window: what the other window sees of it is in the overlap
        seen = shapely.area(shared) >= SEEN * area[at]
        edge = _cut_strip(boxes[there], boxes[here], touch[there])
        seen[seen] = ~shapely.intersects(whole[seen], edge)
        cut = shapely.intersects(whole, _cut_strip(boxes[here], boxes[there], touch[here]))
        return _Side(boxes[here], row[at], whole, shared, cut, seen)

    def compare(i: int, j: int) -> Comparison:
        overlap = shapely.intersection(boxes[i], boxes[j])
        if overlap.area == 0:
            return Comparison(np.empty(0, MATCH), _pairs(), _pairs())
        one, other = side(i, j, overlap), side(j, i, overlap)
        first, second = number[[i, j]].tolist()
        foreign = _pairs(
            (_others_to_decide(one, other), second), (_others_to_decide(other, one), first)
        )
        cut = _pairs((one.rows[one.cut], second), (other.rows[other.cut], first))
        return Comparison(_agreeing(one, other, lattices[i]), foreign, cut)

    # shapely does not hold Python's lock while it works
    compared = list(_THREADS.map(compare, *pairs.T.tolist()))
    return Portion(None, Comparison(*map(np.concatenate, zip(*compared, strict=True))))


def united(
    pieces: Sequence[NDArray[np.int64]],
    shapes: SpilledPolygons,
    tile: NDArray[np.int64],
    kept: NDArray[np.bool_],
    windows: gpd.GeoDataFrame,
    each: Each = do_here,
) -> Iterator[shapely.MultiPolygon]:
    """Unite the pieces of each object, given as rows, without the stubs.

    `tile` and `kept` are those of all rows; `each` is who unites.
    """
    boxes, pixel = windows.geometry.to_numpy(), windows["pixel"].to_numpy()

    def portions() -> Iterator[Portion]:
        for start in range(0, len(pieces), OBJECTS_AT_ONCE):
            some = pieces[start : start + OBJECTS_AT_ONCE]
            row = np.concatenate(some)
            number, seen_in = np.unique(tile[row], return_inverse=True)
            columns = {"window": seen_in, "kept": kept[row]}
            frame = gpd.GeoDataFrame(columns, geometry=shapes[row], crs=windows.crs)
            yield Portion(frame, ([len(rows) for rows in some], boxes[number], pixel[number]))

    with closing(each(_unite, portions())) as results:
        for result in results:
            yield from polygons_of(result).geometry


def _unite(given: Portion) -> Portion:
    """Unite the pieces of objects, of which each has as many as is said."""
    frame, (sizes, boxes, pixel) = polygons_of(given), given.more
    geometry, window = frame.geometry.to_numpy(), frame["window"].to_numpy()
    ends = np.cumsum(sizes)
    wholes = [
        shapely.union_all(
            without_stubs(geometry[own], window[own], frame["kept"].to_numpy()[own], boxes, pixel)
        )
        for own in map(slice, ends - sizes, ends)
    ]
    whole = only_polygons(np.array(wholes, object))
    return Portion(gpd.GeoDataFrame(geometry=whole, crs=frame.crs))


def without_stubs(
    pieces: NDArray[np.object_],
    tile: NDArray[np.int64],
    kept: NDArray[np.bool_],
    boxes: NDArray[np.object_],
    pixel: NDArray[np.float64],
) -> NDArray[np.object_]:
    """Take the stubs off the `(n,)` pieces of one object, which come from the windows `tile`.

    Pieces that are `kept` stay as they are: a person has accepted them whole. `boxes` and `pixel`
    are those of all windows.

    A stub lies in the overlap of two windows, but only one of them shows it. It ends at the edge of
    that window, although the other one sees beyond. With the stub, the union of the pieces would
    end there in a straight line.
    """
    of_tile = {here: shapely.union_all(pieces[tile == here]) for here in np.unique(tile).tolist()}
    cleared = pieces.copy()
    for n, here in enumerate(tile.tolist()):
        for there, other in of_tile.items():
            overlap = shapely.intersection(boxes[here], boxes[there])
            if kept[n] or here == there or not overlap.area:
                continue
            alone = shapely.difference(shapely.intersection(pieces[n], overlap), other)
            parts = shapely.get_parts(alone)
            own, its = (
                _cut_strip(boxes[a], boxes[b], TOUCH_PX * pixel[a])
                for a, b in ((here, there), (there, here))
            )
            stubs = parts[shapely.intersects(parts, own) & ~shapely.intersects(parts, its)]
            if len(stubs):
                cleared[n] = shapely.difference(cleared[n], shapely.union_all(stubs))
    return cleared


def _pairs(*pairs: tuple[NDArray[np.int64], int]) -> NDArray[np.int64]:
    """Rows with the window that is given for them, as `(n, 2)`."""
    columns = [np.column_stack((rows, np.full(len(rows), window))) for rows, window in pairs]
    return np.concatenate([np.empty((0, 2), np.int64), *columns])


def _agreeing(one: _Side, other: _Side, lattice: Lattice) -> NDArray[Any]:
    """All pairs that look alike in the overlap, as `MATCH`."""
    m, n = shapely.STRtree(other.shared).query(one.shared)
    area, other_area = shapely.area(one.shared), shapely.area(other.shared)
    bounds, other_bounds = shapely.bounds(one.shared), shapely.bounds(other.shared)
    # a U whose two legs reach into the overlap may be two polygons on one side: if both are cut,
    # only the parts that meet the other one count
    both_cut = one.cut[m] & other.cut[n]
    parted = shapely.get_num_geometries(one.shared) > 1
    other_parted = shapely.get_num_geometries(other.shared) > 1
    in_parts = both_cut & (parted[m] | other_parted[n])
    most = most_common(bounds[m], other_bounds[n], area[m], other_area[n])
    possible = (most > 0) & (in_parts | may_reach(AGREE, most, area[m], other_area[n]))
    m, n, both_cut = m[possible], n[possible], both_cut[possible]
    common, piece, other_piece = _common_area(one.shared[m], other.shared[n], lattice)
    piece = np.where(both_cut, piece, area[m])
    other_piece = np.where(both_cut, other_piece, other_area[n])
    alike = iou(common, piece, other_piece)
    same = (common > 0) & (alike >= AGREE)
    m, n, common, alike = m[same], n[same], common[same], alike[same]
    # a whole and its part may look alike in one overlap and differ in another, which tells them
    # apart; large overlaps tell more than the corner of four tiles
    several = (np.bincount(m, minlength=len(area))[m] > 1) | (
        np.bincount(n, minlength=len(other_area))[n] > 1
    )
    smaller = np.minimum(shapely.area(one.whole[m]), shapely.area(other.whole[n]))
    alike, common = np.round(alike, 6), np.round(common, 6)
    found = np.empty(len(m), MATCH)
    for name, values in zip(
        MATCH.names or (),
        (
            *(several, -alike, -common, -smaller),
            *(one.rows[m], other.rows[n], one.cut[m], other.cut[n], one.seen[m], other.seen[n]),
        ),
        strict=True,
    ):
        found[name] = values
    return found


def _common_area(
    one: NDArray[np.object_], other: NDArray[np.object_], lattice: Lattice
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The area that each pair shares, and the area of those parts of either that share any."""
    parts, pair = shapely.get_parts(one, return_index=True)
    other_parts, other_pair = shapely.get_parts(other, return_index=True)
    # only parts whose bounds meet: most lie far apart, and each is small
    per_pair = np.bincount(other_pair, minlength=len(one))
    first = np.cumsum(per_pair) - per_pair
    i = np.repeat(np.arange(len(parts)), per_pair[pair])
    step = np.arange(len(i)) - np.repeat(np.cumsum(per_pair[pair]) - per_pair[pair], per_pair[pair])
    j = first[pair[i]] + step
    near = common_frame(shapely.bounds(parts)[i], shapely.bounds(other_parts)[j]) > 0
    i, j = i[near], j[near]
    common = common_area(parts[i], other_parts[j], lattice)
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
    """Rows of one window that the other sees as well or better, so that its proposals count."""
    return one.rows[one.seen & (one.cut | _nearer(one.whole, other.box, one.box))]


def _nearer(
    polygons: NDArray[np.object_], one: shapely.Polygon, other: shapely.Polygon
) -> NDArray[np.bool_]:
    """Whether the middle of each polygon is nearer to the centre of one window than the other.

    At equal distance, the left or upper window counts as nearer.
    """
    middle = middle_of(polygons)
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
