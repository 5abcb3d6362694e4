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
    """Name the tiles that are reviewed to their end: what seems empty there is empty.

    `waiting` `(n,)` marks the labels that nobody has judged yet. A tile counts if the middle of a
    label lies in its core and none of them waits. Without any label it may be one that nobody has
    come to, so it counts only where no label waits in any tile.
    """
    if len(labels) and not waiting.any():
        return set(tiles["tile"])
    return tiles_of(labels[~waiting], tiles) - tiles_of(labels[waiting], tiles)


def tiles_of(layer: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame) -> set[str]:
    """Name the tiles in whose core the middle of something lies."""
    home = home_in(tiles, layer)
    return set(tiles["tile"].iloc[home[home >= 0]])


def home_in(tiles: gpd.GeoDataFrame, layer: gpd.GeoDataFrame) -> NDArray[np.int64]:
    """Row `(n,)` of the tile in whose core the middle of each shape lies, -1 for none.

    The middle is a point that lies in the shape. Both layers are in one CRS.
    """
    points = middle_of(layer.geometry.to_numpy())
    home = np.full(len(points), -1)
    point, tile = shapely.STRtree(tiles.geometry.to_numpy()).query(points, predicate="intersects")
    home[point[::-1]] = tile[::-1]  # on an edge the first
    return home
