"""The area that polygons along pixel edges share, several times as fast as their intersection.

A general overlay looks for crossings of all edges. Here all edges lie on one lattice, so each row
of pixels is a few runs, and the pixels that two polygons share in it are counted.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

OFF = 1e-3  # of a pixel; the corners of `to_polygons` are off only by rounding
AT_ONCE = 1_000_000  # pixel edges that are compared at once, to limit memory


class Lattice(NamedTuple):
    """A corner of a pixel on the map, and the side of all pixels, in map units."""

    x: float
    y: float
    pixel: float


class Lattices:
    """The lattice of each window; windows of one source share a lattice."""

    def __init__(self, windows: gpd.GeoDataFrame) -> None:
        """`windows` come from `tile_windows`."""
        self._corners = windows.geometry.bounds.to_numpy()[:, :2]
        self._pixel = windows["pixel"].to_numpy()
        self.source = pd.factorize(windows["source"])[0]  # a number for each window

    def __getitem__(self, window: int) -> Lattice:
        x, y = self._corners[window].tolist()
        return Lattice(x, y, float(self._pixel[window]))


class _Edges(NamedTuple):
    """Where rows of pixels enter or leave polygons: polygon, row and column, each `(m,)`."""

    polygon: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]


def common_pixel_area(
    one: NDArray[np.object_], other: NDArray[np.object_], lattice: Lattice
) -> NDArray[np.float64] | None:
    """The area that each of `(n,)` pairs shares, in square map units.

    None if a polygon has edges off the lattice.
    """
    ends = np.cumsum(shapely.length(one) + shapely.length(other)) / lattice.pixel
    cuts = np.flatnonzero(np.diff(ends // AT_ONCE, prepend=0)).tolist()
    areas = [np.empty(0)]
    for first, last in pairwise([0, *cuts, len(one)]):
        shared = _common(one[first:last], other[first:last], lattice)
        if shared is None:
            return None
        areas.append(shared)
    return np.concatenate(areas)


def _common(
    one: NDArray[np.object_], other: NDArray[np.object_], lattice: Lattice
) -> NDArray[np.float64] | None:
    bounds = [shapely.bounds(shapes).reshape(-1, 4)[:, [1, 3]] for shapes in (one, other)]
    low, high = np.maximum(*bounds)[:, 0], np.minimum(*bounds)[:, 1]
    if not (low < high).any():
        return np.zeros(len(one))
    rows = np.rint((np.column_stack((low, high)) - lattice.y) / lattice.pixel).astype(np.int64)
    edges = [_edges(shapes, lattice, rows) for shapes in (one, other)]
    if edges[0] is None or edges[1] is None:
        return None
    return _shared(edges[0], edges[1], len(one)) * lattice.pixel**2


def _edges(shapes: NDArray[np.object_], lattice: Lattice, rows: NDArray[np.int64]) -> _Edges | None:
    """All vertical edges, pixel by pixel, in the given rows: `(n, 2)`, the last one exclusive.

    None if any edge lies off the lattice.
    """
    rings, polygon = _rings(shapes)
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    places = (corners - (lattice.x, lattice.y)) / lattice.pixel
    whole = np.rint(places)
    if np.abs(places - whole).max(initial=0) > OFF:
        return None
    x, y = whole.astype(np.int64).T
    same = ring[1:] == ring[:-1]
    x0, x1, y0, y1 = x[:-1][same], x[1:][same], y[:-1][same], y[1:][same]
    if ((x0 != x1) & (y0 != y1)).any():
        return None
    of = polygon[ring[:-1][same]]
    low = np.maximum(np.minimum(y0, y1), rows[of, 0])
    tall = np.maximum(np.minimum(np.maximum(y0, y1), rows[of, 1]) - low, 0)
    first = np.cumsum(tall) - tall
    step = np.arange(int(tall.sum())) - np.repeat(first, tall)
    return _Edges(np.repeat(of, tall), np.repeat(low, tall) + step, np.repeat(x0, tall))


def _rings(shapes: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    parts, of = shapely.get_parts(shapes, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    return rings, of[part]


def _shared(one: _Edges, other: _Edges, n: int) -> NDArray[np.float64]:
    """The pixels that each of `n` pairs shares."""
    if not len(one.row) or not len(other.row):
        return np.zeros(n)
    low = min(edges.column.min(initial=0) for edges in (one, other))
    wide = max(edges.column.max(initial=0) for edges in (one, other)) - low + 1
    bottom = min(edges.row.min(initial=0) for edges in (one, other))
    tall = max(edges.row.max(initial=0) for edges in (one, other)) - bottom + 1
    keys = [
        ((edges.polygon * tall + edges.row - bottom) * wide + edges.column - low)
        for edges in (one, other)
    ]
    # the lowest bit tells whose edge it is
    key = np.sort(np.concatenate((keys[0] * 2, keys[1] * 2 + 1)))
    theirs = key & 1
    inside = (np.cumsum(1 - theirs) & 1) & (np.cumsum(theirs) & 1)
    place = key >> 1
    run = (place[1:] - place[:-1]) * inside[:-1]  # a row ends outside of both
    pair = place[:-1] // (tall * wide)
    return np.bincount(pair, run, minlength=n).astype(np.float64)
