"""Which tile a label belongs to: the one whose core holds its middle."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from workbench.polygons.areas import middle_of


def reviewed_tiles(
    tiles: gpd.GeoDataFrame, labels: gpd.GeoDataFrame, waiting: NDArray[np.bool_]
) -> set[str]:
    """Name the fully reviewed tiles: where they show no label, there is no object.

    `waiting` `(n,)` marks the labels that nobody has judged yet. A tile counts if its core holds
    the middle of a label and none of its labels waits. Nobody may have looked at a tile without
    labels, so such a tile counts only if no label waits in any tile.
    """
    if len(labels) and not waiting.any():
        return set(tiles["tile"])
    return tiles_of(labels[~waiting], tiles) - tiles_of(labels[waiting], tiles)


def tiles_of(layer: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame) -> set[str]:
    """Name the tiles whose core holds the middle of a label."""
    home = home_in(tiles, layer)
    return set(tiles["tile"].iloc[home[home >= 0]])


def home_in(tiles: gpd.GeoDataFrame, layer: gpd.GeoDataFrame) -> NDArray[np.int64]:
    """Find the row `(n,)` of the tile whose core holds the middle of each shape; -1: none.

    The middle is a point inside the shape. Both layers are in one CRS.
    """
    return home_of(tiles, middle_of(layer.geometry.to_numpy()))


def home_of(tiles: gpd.GeoDataFrame, points: NDArray[np.object_]) -> NDArray[np.int64]:
    """Find the row of the tile that holds each of `(n,)` points; -1: none."""
    home = np.full(len(points), -1)
    point, tile = shapely.STRtree(tiles.geometry.to_numpy()).query(points, predicate="intersects")
    home[point[::-1]] = tile[::-1]  # on an edge, the first tile
    return home
