"""Where tiles overlap: one polygon for each object, whichever tiles saw it.

All verdicts are about pairs of polygons of two overlapping windows. A polygon is *cut* towards a
neighbour if it touches an edge of its own window inside the neighbour's: the neighbour sees what
lies beyond. Two polygons that agree inside the shared overlap are the same object, and then

- if both windows see both whole, the worse one is dropped (a duplicate), or the cut one,
- what the other window sees whole is dropped if the other polygon reaches beyond this window,
- otherwise both are pieces, and the object is their union.

A polygon that agrees with none of a neighbour, though the neighbour sees all of it uncut, is the
neighbour's to decide if it is cut here, or nearer to the neighbour's centre: it is dropped, as it
would be in one large tile. Otherwise overlaps would hold the proposals of two tiles, not of one.

If two overlapping polygons of one tile agree with the same one of the next, the surer match counts,
and the other polygon is dropped if it is cut there and nothing else continues it.

Windows of different scales are not compared so: `scales` says which scale shows an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from workbench.candidates.offer import SIDES, TOUCH_PX, Offer, Reason, Shared, one_label_per_object
from workbench.polygons.clean import only_polygons
from workbench.polygons.on_disk import SpilledPolygons
from workbench.polygons.overlap import common_area, may_conflict, may_repeat
from workbench.polygons.scales import not_at_their_scale
from workbench.polygons.seam_pairs import BATCH, MATCH, SUREST, compare_neighbours, without_stubs
from workbench.raster.scene import raster_of

KEY = ["source", "tile_row", "tile_col"]


def merge_seams(
    polygons: Iterable[gpd.GeoDataFrame],
    windows: gpd.GeoDataFrame,
    folder: Path | None = None,
    offer: Offer = Offer(),  # noqa: B008  a plain value
) -> Iterator[gpd.GeoDataFrame]:
    """Make one polygon of each object that several tiles saw.

    Geometry is kept in a temporary file; memory holds only numbers of all polygons, and the
    geometry of some neighbours. The result does not depend on the order of the rows.

    Args:
        polygons: Frames of `to_polygons`, at least one, not cleaned. Scenes may be mixed.
            With a column `continues`, the rows that it marks are no labels without other rows of
            their object.
        windows: The windows of all tiles that were segmented, at all scales, from `tile_windows`.
        folder: Where to put the temporary file; None is the system's folder for such files.
        offer: Which duplicates, overlaps and tile-wide shapes to leave out.

    Yields:
        Batches of the layer, at least one, sorted by source, tile and ordinal. `n_tiles` is the
        number of tiles that saw the object; scores and ordinal are those of its best piece.
        `at_edge` is also true where the windows end, and where a tile cut a polygon that the next
        tile does not continue. Where polygons have a `class_id`, only those of one class are the
        same object, and the class score decides before the other scores.

    Example:
        >>> layer = pd.concat(merge_seams([polygons], tile_windows(scene, list(grid))))
    """
    windows = _in_order(windows)
    with closing(SpilledPolygons(folder)) as shapes:
        rows = _put_away(polygons, windows, shapes)
        tile, rank = rows.pop("tile").to_numpy(), _ranks(rows)
        continues = np.zeros(len(rows), bool)
        if "continues" in rows:
            continues = rows.pop("continues").to_numpy(bool)
        class_id = rows["class_id"].to_numpy() if "class_id" in rows else None
        groups, keep, unfinished = _decide(shapes, tile, rank, windows, class_id)
        keep &= groups.have(~continues)  # what continues nothing that was selected is no label
        at_edge = rows["at_edge"].to_numpy() | unfinished | _reach_the_end(shapes, tile, windows)
        rows = rows.assign(n_tiles=1, at_edge=at_edge)
        rows = _unite(rows, shapes, groups, keep, tile, rank, windows)
        if offer.max_area_share is not None:
            keep[_spans_its_tile(shapes, groups, tile, windows)] = False
        seen_by = partial(_seen_by, groups, tile)
        keep[not_at_their_scale(shapes, np.flatnonzero(keep), tile, windows, seen_by)] = False
        new = groups.have(continues)  # no tile has compared them with its labels
        left = np.flatnonzero(keep)
        keep[_not_offered(shapes, left, windows, seen_by, rank, offer, new)] = False
        for batch in _in_batches(np.flatnonzero(keep)):
            key = windows[KEY].iloc[tile[batch]].reset_index(drop=True)
            frame = pd.concat([key, rows.iloc[batch].reset_index(drop=True)], axis=1)
            yield gpd.GeoDataFrame(frame, geometry=shapes[batch], crs=windows.crs)


def _in_order(windows: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Sort by raster, scale and tile; adds the column `raster`."""
    windows = windows.assign(raster=windows["source"].map(raster_of))
    order = ["raster", "scale", "tile_row", "tile_col"]
    return windows.sort_values(order, kind="stable", ignore_index=True)


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
    class_id: NDArray[np.int64] | None,
) -> tuple[_Groups, NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows are one object, which are kept of each, and which a neighbour does not continue.

    `rank` is the place of each row, best first.
    """
    # most pairs yield no verdict, so only verdicts are kept
    said = [bytearray(), bytearray(), bytearray()]
    for verdicts in compare_neighbours(shapes, tile, windows):
        for all_of, of_pair in zip(said, verdicts, strict=True):
            all_of += of_pair.tobytes()
    matches = np.frombuffer(said[0], MATCH)
    foreign, cut = (np.frombuffer(pairs, np.int64).reshape(-1, 2) for pairs in said[1:])
    if class_id is not None:
        matches = matches[class_id[matches["i"]] == class_id[matches["j"]]]
    groups = _Groups.of(matches, shapes, tile)
    together = groups.label[matches["i"]] == groups.label[matches["j"]]
    refused = np.zeros(len(tile), bool)  # a better one of its tile has what continues it
    for side in ("i", "j"):
        refused[matches[side][~together & matches[f"cut_{side}"]]] = True
    matches = matches[together]
    i, j = matches["i"], matches["j"]
    matched = np.column_stack((np.append(i, j), np.append(tile[j], tile[i])))
    disowned, unfinished, replaced = (np.zeros(len(tile), bool) for _ in range(3))
    disowned[_not_among(matched, len(windows), foreign)] = True
    unfinished[_not_among(matched, len(windows), cut)] = True
    disowned |= unfinished & refused & ~groups.joined
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
    windows: gpd.GeoDataFrame,
) -> pd.DataFrame:
    """Unite what is kept of each group in its best row; clears `keep` of the other rows."""
    columns = {name: rows[name].to_numpy().copy() for name in ("at_edge", "area_px", "n_tiles")}
    boxes, pixel = windows.geometry.to_numpy(), windows["pixel"].to_numpy()
    for members in groups:
        left = members[keep[members]]
        if not len(left):
            continue
        best = left[np.argmin(rank[left])]
        columns["n_tiles"][best] = len(np.unique(tile[members]))
        columns["at_edge"][best] = columns["at_edge"][left].any()
        if len(left) > 1:
            per_area = columns["area_px"][best] / shapes.area[best]
            whole = shapely.union_all(without_stubs(shapes[left], tile[left], boxes, pixel))
            shapes.replace(best, only_polygons(np.array([whole]))[0])
            columns["area_px"][best] = round(shapes.area[best] * per_area)
        keep[left] = left == best
    return rows.assign(**columns)


def _ranks(polygons: pd.DataFrame) -> NDArray[np.int64]:
    """The place of each polygon, best first: whole before clipped by invalid pixels, then scores.

    Equal scores go in the order of tiles and ordinals.
    """
    rank = np.empty(len(polygons), np.int64)
    keys = [-polygons["stability"], -polygons["confidence"], polygons["at_edge"]]
    if "class_score" in polygons:
        keys.insert(2, -polygons["class_score"])
    order = np.lexsort(keys)
    rank[order] = np.arange(len(polygons))
    return rank


def _overlap(geometry: NDArray[np.object_], others: NDArray[np.object_]) -> bool:
    """Whether a polygon covers a tenth of another one, or is covered by it to a tenth."""
    common = common_area(geometry, others)
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
        order = np.lexsort((*(matches[name] for name in reversed(SUREST)), component))
        ends = np.flatnonzero(np.diff(component[order], append=-1)) + 1
        for first, last in pairwise([0, *ends.tolist()]):
            for group in _joined(matches[order[first:last]], shapes, tile):
                label[group] = min(group)
        return cls(label, np.argsort(label, kind="stable"))

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        sizes = np.bincount(self.label, minlength=1)
        for first in np.flatnonzero(sizes > 1).tolist():
            yield self.members(first)

    @property
    def joined(self) -> NDArray[np.bool_]:
        """Whether each row's group has other rows."""
        return np.asarray(np.bincount(self.label, minlength=len(self.label))[self.label] > 1)

    def have(self, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each row's group has a row that is marked."""
        n = np.bincount(self.label[marked], minlength=len(self.label))
        return np.asarray(n[self.label] > 0)

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


def _reach_the_end(
    shapes: SpilledPolygons, tile: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> NDArray[np.bool_]:
    """Whether each polygon touches the outline of all that the windows of its scale see."""
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
    shapes: SpilledPolygons, groups: _Groups, tile: NDArray[np.int64], windows: gpd.GeoDataFrame
) -> NDArray[np.bool_]:
    """Whether each polygon touches three or four edges of its window, and no other continues it.

    It is what lies between the objects of that tile, and ends where the tile does.
    """
    bounds = windows.geometry.bounds.to_numpy()[tile]
    near = np.abs(shapes.bounds - bounds) < TOUCH_PX * windows["pixel"].to_numpy()[tile, None]
    return np.asarray(~groups.joined & (near.sum(axis=1) >= SIDES), bool)


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
    seen_by: Callable[[int], set[int]],
    rank: NDArray[np.int64],
    offer: Offer,
    new: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Rows that repeat a better one, or overlap one that no tile has seen together with them.

    `seen_by` gives the tiles that saw a row: which overlaps to allow, a tile that saw both has
    decided. It has not compared what other tiles saw of the same objects, nor rows that are `new`.
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
    common = [np.empty(0)]
    for batch in _in_batches(np.arange(len(pairs))):
        i, j = pairs[batch].T
        common.append(common_area(shapes[i], shapes[j]))
    shared = Shared(pairs[:, 0], pairs[:, 1], np.concatenate(common), apart)
    decided = one_label_per_object(shared, shapes.area, rank, offer)
    return np.flatnonzero(decided.reason != Reason.OFFERED)
