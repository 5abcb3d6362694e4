"""Which scale shows an object, if a scene was segmented at several.

It is the finest scale that sees the object whole, in a window whose edges it does not reach. So a
polygon of a coarser scale is dropped if it fits in a window of a finer one. If it does not fit, the
finer polygons of the object are pieces, merged or not: those that agree with the coarser polygon
inside the windows that saw them are dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from workbench.candidates.offer import TOUCH_PX
from workbench.polygons.on_disk import SpilledPolygons
from workbench.polygons.overlap import iou_of
from workbench.polygons.seam_pairs import AGREE, BATCH

NONE = np.iinfo(np.int32).max  # no scale


def not_at_their_scale(
    shapes: SpilledPolygons,
    rows: NDArray[np.int64],
    tile: NDArray[np.int64],
    windows: gpd.GeoDataFrame,
    seen_by: Callable[[int], set[int]],
) -> NDArray[np.int64]:
    """Return those of the rows that another scale shows better.

    `tile` `(n,)` is the window of each row, and `seen_by` gives the windows of all its pieces.
    `windows` have `raster` and `scale`.
    """
    scale = windows["scale"].to_numpy()
    if not len(rows) or scale.min() == scale.max():
        return np.empty(0, np.int64)
    whole_at = _finest_that_holds(shapes, rows, tile, windows)
    own = scale[tile[rows]]
    counts = whole_at >= own
    pieces, coarser = rows[whole_at > own], rows[counts & (own > scale.min())]
    covered = _covered(shapes, pieces, coarser, tile, windows, seen_by)
    return np.unique(np.concatenate((rows[~counts], covered)))


def _finest_that_holds(
    shapes: SpilledPolygons,
    rows: NDArray[np.int64],
    tile: NDArray[np.int64],
    windows: gpd.GeoDataFrame,
) -> NDArray[np.int64]:
    """The finest scale `(n,)` of the same raster that sees each row whole; `NONE` if none does."""
    raster, scale = windows["raster"].to_numpy(), windows["scale"].to_numpy()
    tree = shapely.STRtree(_open_at_the_end(windows))
    margin = TOUCH_PX * windows["pixel"].to_numpy()[tile[rows], None]
    frames = shapely.box(*(shapes.bounds[rows] + margin * [-1, -1, 1, 1]).T)
    finest = np.full(len(rows), NONE, np.int64)
    for start in range(0, len(rows), BATCH):
        i, window = tree.query(frames[start : start + BATCH], predicate="within")
        i += start
        same = raster[window] == raster[tile[rows[i]]]
        np.minimum.at(finest, i[same], scale[window[same]])
    return finest


def _open_at_the_end(windows: gpd.GeoDataFrame) -> NDArray[np.object_]:
    """The windows, extended where no window of their raster, at any scale, sees further."""
    frames = windows.geometry.bounds
    of_raster = frames.groupby(windows["raster"])
    ends = np.column_stack(
        [of_raster[side].transform(side[:3]).to_numpy() for side in frames.columns]
    )
    # a coarser scale ends up to a pixel before the scene
    pixel = windows["pixel"].groupby(windows["raster"]).transform("max").to_numpy()[:, None]
    bounds = frames.to_numpy()
    wider = bounds + (np.abs(bounds - ends) < pixel) * 2 * TOUCH_PX * pixel * [-1, -1, 1, 1]
    return np.asarray(shapely.box(*wider.T), object)


def _covered(
    shapes: SpilledPolygons,
    pieces: NDArray[np.int64],
    coarser: NDArray[np.int64],
    tile: NDArray[np.int64],
    windows: gpd.GeoDataFrame,
    seen_by: Callable[[int], set[int]],
) -> NDArray[np.int64]:
    """The pieces that agree with a polygon of a coarser scale where their windows see it."""
    scale, boxes = windows["scale"].to_numpy(), windows.geometry.to_numpy()
    frames = np.asarray(shapely.box(*shapes.bounds[coarser].T), object)
    tree = shapely.STRtree(frames)
    i, j = tree.query(shapely.box(*shapes.bounds[pieces].T))
    i, j = pieces[i], coarser[j]
    finer = scale[tile[i]] < scale[tile[j]]
    i, j = i[finer], j[finer]
    alike = [np.empty(0)]
    for start in range(0, len(i), BATCH):
        here, there = i[start : start + BATCH], j[start : start + BATCH]
        seen = [shapely.union_all(boxes[sorted(seen_by(row))]) for row in here.tolist()]
        alike.append(iou_of(shapes[here], shapely.intersection(shapes[there], seen)))
    return i[np.concatenate(alike) >= AGREE]
