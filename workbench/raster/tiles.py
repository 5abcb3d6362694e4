"""The tile grid: windows with overlap, spread evenly over a scene."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from rasterio.windows import Window

from workbench.raster.scene import Scene

# 1024 px in degrees become 1060 px in metres: four tiles would see nearly the same
WHOLE_UP_TO = 1.1  # tiles; a side of a scene up to this long is not divided
MOST_OVERLAP = 0.35  # of a tile: more costs time and shows the same objects again


@dataclass(frozen=True, order=True, slots=True)  # a run may have millions
class Tile:
    """A window with overlap, and the core that it alone is responsible for, in scene pixels."""

    row: int
    col: int
    window: Window
    core: Window


@dataclass(frozen=True)
class TileGrid:
    """Tiles over a scene of `width` × `height` pixels.

    All windows of a grid have one size, `window_width` × `window_height`. Along each side of the
    scene they are spread evenly, from its first pixel to its last. `tile_size` is the usual side
    of a window. It is longer where a side of the scene is up to `WHOLE_UP_TO` tiles long, which
    then is one tile, and shorter where windows would otherwise share more than `MOST_OVERLAP`.
    `overlap` is the least that neighbours share. Only where the scene is smaller than a tile does
    a window reach beyond it. The cores partition the scene; they meet in the middle of the
    overlaps.
    """

    width: int
    height: int
    tile_size: int = 1024
    overlap: float = 0.1875

    @property
    def n_rows(self) -> int:
        """Rows of tiles."""
        return self._count(self.height)

    @property
    def n_cols(self) -> int:
        """Columns of tiles."""
        return self._count(self.width)

    def __len__(self) -> int:
        return self.n_rows * self.n_cols

    def __iter__(self) -> Iterator[Tile]:
        return (self.tile(row, col) for row in range(self.n_rows) for col in range(self.n_cols))

    @property
    def window_width(self) -> int:
        """Width of every window, pixels."""
        return self._size(self.width)

    @property
    def window_height(self) -> int:
        """Height of every window, pixels."""
        return self._size(self.height)

    def tile(self, row: int, col: int) -> Tile:
        """Return one tile by its index."""
        window = Window(
            self._start(self.width, col),
            self._start(self.height, row),
            self.window_width,
            self.window_height,
        )
        left, right = self._core(self.width, col)
        top, bottom = self._core(self.height, row)
        return Tile(row, col, window, Window(left, top, right - left, bottom - top))

    def within(self, left: float, top: float, right: float, bottom: float) -> Iterator[Tile]:
        """Yield the tiles whose core meets a rectangle of scene pixels."""
        rows = self._meeting(self.height, top, bottom)
        cols = self._meeting(self.width, left, right)
        return (self.tile(row, col) for row in rows for col in cols)

    def _count(self, length: int) -> int:
        """Windows along a side of the scene."""
        if length <= int(WHOLE_UP_TO * self.tile_size):
            return 1
        step = max(1, self.tile_size - round(self.tile_size * self.overlap))
        return 1 + -(-max(0, length - self.tile_size) // step)

    def _size(self, length: int) -> int:
        """Length of each window along a side of the scene."""
        n = self._count(length)
        if n == 1:
            return max(length, self.tile_size)
        least_new = 1 - max(MOST_OVERLAP, self.overlap)  # of each further window
        return min(self.tile_size, math.ceil(length / (1 + (n - 1) * least_new)))

    def _start(self, length: int, i: int) -> int:
        n = self._count(length)
        return (length - self._size(length)) * i // (n - 1) if n > 1 else 0

    def _meeting(self, length: int, low: float, high: float) -> range:
        """The tiles along a side whose cores meet an interval; of a map of the world, without
        looking at its millions of tiles.
        """
        every = range(self._count(length))
        first = bisect_left(every, low, key=lambda i: self._core(length, i)[1])
        return range(first, bisect_right(every, high, key=lambda i: self._core(length, i)[0]))

    def _core(self, length: int, i: int) -> tuple[int, int]:
        def meets(j: int) -> int:  # where the cores of tiles j - 1 and j meet
            return (self._start(length, j - 1) + self._start(length, j) + self._size(length)) // 2

        return meets(i) if i else 0, meets(i + 1) if i + 1 < self._count(length) else length


def tiles_over(scene: Scene, grid: TileGrid, aoi: shapely.Geometry | None) -> list[Tile]:
    """Return the tiles whose core meets the AOI (in the scene's CRS), row by row; None is all."""
    if aoi is None:
        return list(grid)
    if shapely.is_empty(aoi):
        return []
    to_pixel = ~scene.transform
    x0, y0, x1, y1 = shapely.bounds(aoi)
    (left, top), (right, bottom) = to_pixel @ (x0, y1), to_pixel @ (x1, y0)
    shapely.prepare(aoi)
    return [
        tile
        for tile in grid.within(left, top, right, bottom)
        if shapely.intersects(aoi, scene.window_polygon(tile.core))
    ]


def tile_windows(scene: Scene, tiles: list[Tile]) -> gpd.GeoDataFrame:
    """Return the windows of tiles as polygons on the map, clipped to the scene.

    Args:
        scene: Gives the CRS and the transform.
        tiles: Tiles of its grid.

    Returns:
        One row for each tile: `source`, `tile_row`, `tile_col`, `pixel`, the larger side of a pixel
        in map units, and `scale`, that of the scene.

    Example:
        >>> windows = tile_windows(scene, list(TileGrid(scene.width, scene.height)))
    """
    return gpd.GeoDataFrame(
        {
            "source": np.full(len(tiles), scene.name, dtype=object),
            "tile_row": np.array([tile.row for tile in tiles], np.int32),
            "tile_col": np.array([tile.col for tile in tiles], np.int32),
            "pixel": np.full(len(tiles), max(scene.transform.a, -scene.transform.e)),
            "scale": np.full(len(tiles), scene.scale, np.int32),
        },
        geometry=[scene.window_polygon(tile.window.intersection(scene.window)) for tile in tiles],
        crs=scene.crs,
    )


def tile_name(source: str, row: int, col: int) -> str:
    """Name a tile for people and files, as in `ortho/r3c12`."""
    return f"{source}/r{row}c{col}"


def tile_named(name: str) -> tuple[str, int, int]:
    """Return source, row and column of the tile that `tile_name` has named."""
    source, _, place = name.rpartition("/")
    row, _, col = place[1:].partition("c")
    return source, int(row), int(col)


def tile_names(frame: pd.DataFrame) -> pd.Series:
    """Return the `tile_name` of each row, from `source`, `tile_row` and `tile_col`."""
    row, col = frame["tile_row"].astype(str), frame["tile_col"].astype(str)
    return frame["source"].astype(str) + "/r" + row + "c" + col
