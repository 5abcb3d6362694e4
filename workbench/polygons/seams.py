"""Where tiles overlap: one polygon for each object, whichever tiles saw it.

Pairs of polygons of two overlapping windows are compared. A polygon is *cut* towards a neighbour if
it touches an edge of its own window inside the neighbour's: the neighbour sees what lies beyond.
Two polygons that agree inside the shared overlap are the same object, and then

- if both windows see both whole, one is dropped as a duplicate: the cut one, or else the worse one,
- if only one of the windows sees the other's polygon whole, that polygon is dropped,
- otherwise both are pieces, and the object is their union.

A neighbour may see a polygon whole and uncut, but have none that agrees with it. Then the neighbour
decides, if the polygon is cut here or nearer to the neighbour's centre: the polygon is dropped, as
it would be in one large tile. Otherwise overlaps would hold the proposals of two tiles, not of one.

If two overlapping polygons of one tile agree with the same one of the next, the surer match counts.
The other polygon is *open* there, if it is cut and nothing else continues it. So is a polygon whose
rest is a mask as large as its tile. An object is dropped if more than half of it is open: it would
end in straight lines at the edges of tiles, although it is known what lies beyond.

Polygons that a person has accepted (`accepted_iou`) are never dropped or trimmed. Only of two that
show the same one, the shape that the person saw replaces the other.

Windows of different scales are not compared here: `scales` says which scale shows an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.candidates.offer import SIDES, TOUCH_PX, Offer, Reason, Shared, one_label_per_object
from workbench.polygons.objects import Objects
from workbench.polygons.on_disk import SpilledPolygons
from workbench.polygons.overlap import common_area, may_conflict, may_repeat
from workbench.polygons.pixel_area import Lattices
from workbench.polygons.portions import Each, do_here
from workbench.polygons.scales import not_at_their_scale
from workbench.polygons.seam_pairs import BATCH, MATCH, compare_neighbours, united
from workbench.raster.scene import raster_of

KEY = ["source", "tile_row", "tile_col"]


def merge_seams(
    polygons: Iterable[gpd.GeoDataFrame],
    windows: gpd.GeoDataFrame,
    folder: Path | None = None,
    offer: Offer = Offer(),  # noqa: B008  a plain value
    each: Each = do_here,
) -> Iterator[gpd.GeoDataFrame]:
    """Make one polygon of each object that several tiles saw.

    Geometry is kept in a temporary file; memory holds only a few numbers for each polygon, and the
    geometry of some neighbours. The result does not depend on the order of the rows.

    Args:
        polygons: Frames of `to_polygons`, at least one, not cleaned. Scenes may be mixed.
            Optional columns mark rows: `continues`, no labels without other rows of their object;
            `no_label`, which only show where an object goes on; `accepted_iou`, the
            IoU with a shape that a person has accepted, 0 without one. Either all frames have such
            a column, or none.
        windows: The windows of all tiles that were segmented, at all scales, from `tile_windows`.
        folder: Where to put the temporary file; None is the system's folder for such files.
        offer: Which duplicates, overlaps and tile-wide shapes to leave out.
        each: Who compares the windows of neighbours, and unites pieces.

    Yields:
        Batches of the layer, at least one, sorted by source, tile and ordinal. `n_tiles` is the
        number of tiles that saw the object; scores and ordinal are those of its best piece.
        `at_edge` is also true where the windows end, and where a tile cut a polygon that the next
        tile does not continue. If polygons have a `class_id`, only those of one class can be the
        same object, and the class score decides before the other scores. `accepted_iou` is the
        highest of the object's rows.

    Example:
        >>> layer = pd.concat(merge_seams([polygons], tile_windows(scene, list(grid))))
    """
    windows = _in_order(windows)
    with closing(SpilledPolygons(folder)) as shapes:
        rows = _put_away(polygons, windows, shapes)
        tile, roles = rows.pop("tile").to_numpy(), _Roles.of(rows)
        rows = rows.drop(columns=["continues", "no_label"], errors="ignore")
        rank = _ranks(rows)
        said = _Said.of(compare_neighbours(shapes, tile, windows, each)).of_one_class(rows)
        decided = _decide(said, shapes, tile, rank, roles, windows)
        objects, keep = decided.objects, decided.keep
        ends = decided.unfinished | _reach_the_end(shapes, tile, windows)
        rows = rows.assign(n_tiles=1, at_edge=rows["at_edge"].to_numpy() | ends)
        rows = _unite(rows, shapes, objects, keep, roles.kept, tile, rank, windows, each)
        if offer.max_area_share is not None:
            keep &= roles.kept | ~_spans_its_tile(shapes, objects, tile, windows)
        seen_by = partial(_seen_by, objects, tile)
        elsewhere = not_at_their_scale(shapes, np.flatnonzero(keep), tile, windows, seen_by)
        keep &= roles.kept | ~_marked(elsewhere, len(rows))
        new = objects.have(roles.continues)  # no tile has compared them with its labels
        left = np.flatnonzero(keep)
        worse = _not_offered(shapes, left, windows, tile, seen_by, rank, offer, new)
        keep &= roles.kept | ~_marked(worse, len(rows))
        for batch in _in_batches(np.flatnonzero(keep)):
            key = windows[KEY].iloc[tile[batch]].reset_index(drop=True)
            frame = pd.concat([key, rows.iloc[batch].reset_index(drop=True)], axis=1)
            yield gpd.GeoDataFrame(frame, geometry=shapes[batch], crs=windows.crs)


@dataclass(frozen=True)
class _Roles:
    """The marks of rows `(n,)`; see `merge_seams`."""

    continues: NDArray[np.bool_]
    no_label: NDArray[np.bool_]
    accepted_iou: NDArray[np.float64]

    @classmethod
    def of(cls, rows: pd.DataFrame) -> _Roles:
        """Read the columns that are there."""

        def column(name: str, kind: type) -> NDArray[Any]:
            return rows[name].to_numpy(kind) if name in rows else np.zeros(len(rows), kind)

        names = ("continues", "no_label", "accepted_iou")
        return cls(*map(column, names, (bool, bool, float)))

    @property
    def kept(self) -> NDArray[np.bool_]:
        """What a person has accepted."""
        return (self.accepted_iou > 0) & ~self.no_label


def _in_order(windows: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Sort by raster, scale and tile; adds the column `raster`."""
    windows = windows.assign(raster=windows["source"].map(raster_of))
    order = ["raster", "scale", "tile_row", "tile_col"]
    return windows.sort_values(order, kind="stable", ignore_index=True)


def _put_away(
    polygons: Iterable[gpd.GeoDataFrame], windows: gpd.GeoDataFrame, shapes: SpilledPolygons
) -> pd.DataFrame:
    """Put the geometry into the file; returns the other columns, both by tile and ordinal.

    `tile`, the row of the window, replaces the columns of the key.
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


@dataclass(frozen=True)
class _Said:
    """How the polygons of all neighbours compare; rows and windows as `(n, 2)`."""

    matches: NDArray[Any]  # of MATCH
    foreign: NDArray[np.int64]  # the other window decides about the row
    cut: NDArray[np.int64]  # the other window sees what lies beyond

    @classmethod
    def of(cls, comparisons: Iterable[tuple[NDArray[Any], ...]]) -> _Said:
        """Keep what comparisons of neighbours have found."""
        # most pairs yield no verdict, so only verdicts are kept
        said = [bytearray() for _ in range(3)]
        for verdicts in comparisons:
            for all_of, of_pair in zip(said, verdicts, strict=True):
                all_of += of_pair.tobytes()
        foreign, cut = (np.frombuffer(pairs, np.int64).reshape(-1, 2) for pairs in said[1:])
        return cls(np.frombuffer(said[0], MATCH), foreign, cut)

    def of_one_class(self, rows: pd.DataFrame) -> _Said:
        """Without the matches of rows that differ in their class, if they have one."""
        if "class_id" not in rows:
            return self
        class_id = rows["class_id"].to_numpy()
        same = class_id[self.matches["i"]] == class_id[self.matches["j"]]
        return replace(self, matches=self.matches[same])


@dataclass(frozen=True)
class _Decided:
    """Which rows are one object, which of them are kept, and which no neighbour continues."""

    objects: Objects
    keep: NDArray[np.bool_]
    unfinished: NDArray[np.bool_]


def _decide(
    said: _Said,
    shapes: SpilledPolygons,
    tile: NDArray[np.int64],
    rank: NDArray[np.int64],
    roles: _Roles,
    windows: gpd.GeoDataFrame,
) -> _Decided:
    """Decide by the comparisons; `rank` is the rank of each row, 0 for the best."""
    labels = ~(roles.no_label[said.matches["i"]] | roles.no_label[said.matches["j"]])
    objects = Objects.of(said.matches[labels], shapes, tile, Lattices(windows))
    together = labels & (objects.label[said.matches["i"]] == objects.label[said.matches["j"]])
    agreed = said.matches[together]
    goes_on = _rows_and_windows(agreed, tile)
    elsewhere = _rows_and_windows(said.matches[~together], tile)  # with polygons of other objects
    ends = said.cut[~_among(said.cut, goes_on)]
    open_ends = ends[_among(ends, elsewhere) & _side_by_side(tile[ends[:, 0]], ends[:, 1], windows)]
    is_open = _marked(open_ends[:, 0], len(tile))
    disowned = _marked(said.foreign[~_among(said.foreign, goes_on)][:, 0], len(tile))
    disowned &= ~roles.kept
    replaced = _marked(_replaced(agreed, rank, roles.accepted_iou), len(tile))
    keep = ~(replaced | disowned | roles.no_label)
    for members in objects:
        if not keep[members].any():  # each was replaced by another one of the object
            left = members[~disowned[members]]
            keep[left[np.argsort(rank[left])[:1]]] = True
    area = np.where(keep, shapes.area, 0)
    mostly_open = objects.sums(np.where(is_open, area, 0)) > 0.5 * objects.sums(area)
    keep &= objects.have(roles.kept) | ~mostly_open
    # a row that continues nothing selected is not a label
    keep &= objects.have(~roles.continues)
    return _Decided(objects, keep, _marked(ends[:, 0], len(tile)))


def _in_batches(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Split rows into batches; at least one, which may be empty."""
    return np.split(rows, np.arange(BATCH, len(rows), BATCH))


def _rows_and_windows(matches: NDArray[Any], tile: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row of the matches with the window of the other one, `(2 n, 2)`."""
    i, j = matches["i"], matches["j"]
    return np.column_stack((np.append(i, j), np.append(tile[j], tile[i])))


def _side_by_side(
    one: NDArray[np.int64], other: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> NDArray[np.bool_]:
    """Whether each pair of windows meets at more than a corner.

    The tiles on both sides of a corner also show what lies beyond it.
    """
    row, col, source = (windows[name].to_numpy() for name in ("tile_row", "tile_col", "source"))
    corner = (row[one] != row[other]) & (col[one] != col[other]) & (source[one] == source[other])
    return ~corner


def _among(pairs: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each pair (row, window) is among the others."""
    stride = max(one[:, 1].max(initial=0) for one in (pairs, others)) + 1
    return np.isin(pairs @ [stride, 1], others @ [stride, 1])


def _marked(rows: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Whether each of `n` rows is among the given ones."""
    marked = np.zeros(n, bool)
    marked[rows] = True
    return marked


def _replaced(
    matches: NDArray[Any], rank: NDArray[np.int64], accepted_iou: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The rows that are dropped because the other row of a match shows the object better."""
    i, j, cut_i, cut_j = (matches[name] for name in ("i", "j", "cut_i", "cut_j"))
    one = ~(cut_i & cut_j)
    both = matches["seen_i"] & matches["seen_j"]
    worse_i = np.where(cut_i == cut_j, rank[i] > rank[j], cut_i)
    i_goes = one & matches["seen_i"] & (~both | worse_i)
    j_goes = one & matches["seen_j"] & (~both | ~worse_i)
    # a person's polygon replaces the other one if it is uncut; otherwise both are united
    more = accepted_iou[i] - accepted_iou[j]
    i_goes = np.where(more == 0, i_goes, (more < 0) & ~cut_j)
    j_goes = np.where(more == 0, j_goes, (more > 0) & ~cut_i)
    return np.append(i[i_goes], j[j_goes])


def _seen_by(objects: Objects, tile: NDArray[np.int64], row: int) -> set[int]:
    """The tiles that saw an object."""
    return set(tile[objects.members(row)].tolist())


def _unite(
    rows: pd.DataFrame,
    shapes: SpilledPolygons,
    objects: Objects,
    keep: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    tile: NDArray[np.int64],
    rank: NDArray[np.int64],
    windows: gpd.GeoDataFrame,
    each: Each,
) -> pd.DataFrame:
    """Unite the kept rows of each object in its best row; clears `keep` for the others."""
    columns = {name: rows[name].to_numpy().copy() for name in ("at_edge", "area_px", "n_tiles")}
    several: dict[int, NDArray[np.int64]] = {}  # the pieces of objects, by their best row
    for members in objects:
        left = members[keep[members]]
        if not len(left):
            continue
        best = left[np.argmin(rank[left])]
        columns["n_tiles"][best] = len(np.unique(tile[members]))
        columns["at_edge"][best] = columns["at_edge"][left].any()
        if len(left) > 1:
            several[best] = left
        keep[left] = left == best
    wholes = united(list(several.values()), shapes, tile, kept, windows, each)
    for best, whole in zip(several, wholes, strict=True):
        per_area = columns["area_px"][best] / shapes.area[best]
        shapes.replace(best, whole)
        columns["area_px"][best] = round(shapes.area[best] * per_area)
    return rows.assign(**columns)


def _ranks(polygons: pd.DataFrame) -> NDArray[np.int64]:
    """The rank of each polygon, 0 for the best.

    Polygons that a person has accepted come first, most like what was seen; then those not at an
    edge; then scores decide. Equal scores are sorted by tile and ordinal.
    """
    rank = np.empty(len(polygons), np.int64)
    none = pd.Series(0, polygons.index)
    scores = [-polygons.get(name, none) for name in ("stability", "confidence", "class_score")]
    keys = (*scores, polygons["at_edge"], -polygons.get("accepted_iou", none))
    rank[np.lexsort(keys)] = np.arange(len(polygons))
    return rank


def _reach_the_end(
    shapes: SpilledPolygons, tile: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> NDArray[np.bool_]:
    """Whether each polygon touches the outline of the union of all windows of its scale."""
    reach = np.zeros(len(shapes), bool)
    scale = windows["scale"].to_numpy()
    for level in np.unique(scale):
        outline = windows.geometry[scale == level].union_all().boundary
        shapely.prepare(outline)
        for rows in _in_batches(np.flatnonzero(scale[tile] == level)):
            near = rows[shapely.intersects(outline, shapely.box(*shapes.bounds[rows].T))]
            reach[near] = shapely.intersects(outline, shapes[near])
    return reach


def _spans_its_tile(
    shapes: SpilledPolygons, objects: Objects, tile: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> NDArray[np.bool_]:
    """Whether each polygon touches three or four edges of its window, and no other continues it.

    It is the background between the objects of that tile, and ends where the tile ends.
    """
    bounds = windows.geometry.bounds.to_numpy()[tile]
    near = np.abs(shapes.bounds - bounds) < TOUCH_PX * windows["pixel"].to_numpy()[tile, None]
    return np.asarray(~objects.joined & (near.sum(axis=1) >= SIDES), bool)


def _reached(
    bounds: NDArray[np.float64], rows: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> NDArray[np.int32]:
    """Each of the rows with each window that it reaches, `(m, 2)`: window and row."""
    tree = shapely.STRtree(windows.geometry.to_numpy())
    reached = [np.empty((0, 2), np.int32)]
    for batch in _in_batches(rows):
        row, window = tree.query(shapely.box(*bounds[batch].T))
        reached.append(np.column_stack((window, batch[row])).astype(np.int32))
    return np.concatenate(reached)


def _neighbourhoods(reached: NDArray[np.int32]) -> Iterator[NDArray[np.int64]]:
    """The rows that reach a few windows, in their order; see `_reached`."""
    pairs = reached[np.lexsort(reached.T[::-1])]
    last = np.flatnonzero(np.diff(pairs[:, 0], append=-1)) + 1
    start = 0
    while start < len(pairs):
        end = last[np.searchsorted(last, min(start + BATCH, len(pairs)))]
        yield np.unique(pairs[start:end, 1]).astype(np.int64)
        start = end


def _not_offered(
    shapes: SpilledPolygons,
    rows: NDArray[np.int64],
    windows: gpd.GeoDataFrame,
    tile: NDArray[np.int64],
    seen_by: Callable[[int], set[int]],
    rank: NDArray[np.int64],
    offer: Offer,
    new: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Rows that repeat a better one, or overlap one that no tile has seen together with them.

    `seen_by` gives the tiles that saw a row. A tile that saw both rows has decided which overlaps
    to allow. It has not compared what other tiles saw of the same objects, nor rows that are `new`.
    """
    reached = _reached(shapes.bounds, rows, windows)
    several = np.bincount(reached[:, 1], minlength=len(shapes)) > 1
    beside_new = np.isin(reached[:, 0], reached[new[reached[:, 1]], 0])
    found = [np.empty((0, 2), np.int64)]
    for near in _neighbourhoods(reached[several[reached[:, 1]] | beside_new]):
        frames = np.asarray(shapely.box(*shapes.bounds[near].T), object)
        i, j = shapely.STRtree(frames).query(frames)
        i, j = near[i[i < j]], near[j[i < j]]
        asked = (several[i] & several[j]) | new[i] | new[j]
        i, j = i[asked], j[asked]
        possible = may_conflict(
            shapes.bounds[i], shapes.bounds[j], shapes.area[i], shapes.area[j], offer
        )
        found.append(np.column_stack((i[possible], j[possible])))
    pairs = np.unique(np.concatenate(found), axis=0)
    i, j = pairs.T
    apart = np.array([not seen_by(m) & seen_by(n) for m, n in pairs.tolist()], bool)
    apart |= new[i] | new[j]
    repeat = may_repeat(shapes.bounds[i], shapes.bounds[j], shapes.area[i], shapes.area[j], offer)
    pairs, apart = pairs[apart | repeat], apart[apart | repeat]
    common, lattices = [np.empty(0)], Lattices(windows)
    for batch in _in_batches(np.arange(len(pairs))):
        i, j = pairs[batch].T
        common.append(_common_area(shapes, i, j, tile, lattices))
    shared = Shared(pairs[:, 0], pairs[:, 1], np.concatenate(common), apart)
    decided = one_label_per_object(shared, shapes.area, rank, offer)
    return np.flatnonzero(decided.reason != Reason.OFFERED)


def _common_area(
    shapes: SpilledPolygons,
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    tile: NDArray[np.int64],
    lattices: Lattices,
) -> NDArray[np.float64]:
    """The area that pairs of rows share."""
    source, other = (lattices.source[tile[rows]] for rows in (i, j))
    one_source = np.where(source == other, source, -1)
    common = np.empty(len(i))
    for number in np.unique(one_source).tolist():
        here = np.flatnonzero(one_source == number)
        lattice = lattices[tile[i[here[0]]]] if number >= 0 else None
        common[here] = common_area(shapes[i[here]], shapes[j[here]], lattice)
    return common
