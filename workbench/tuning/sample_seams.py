"""Merging polygons where sample tiles overlap, as in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.candidates.offer import Offer, TileMasks
from workbench.candidates.table import Candidates
from workbench.polygons.continuation import Continuations, RowCol
from workbench.polygons.seams import merge_seams
from workbench.raster.scene import Scene
from workbench.raster.tiles import Tile, TileGrid, tile_windows
from workbench.runs.plan import ScenePlan


@dataclass(frozen=True)
class ChosenTile:
    """A tile with all its candidates, by ordinal, and the rows of those that become labels."""

    part: ScenePlan
    tile: Tile
    candidates: Candidates
    masks: TileMasks
    rows: NDArray[np.int64]

    @property
    def index(self) -> RowCol:
        """Row and column of the tile."""
        return self.tile.row, self.tile.col

    @property
    def window(self) -> shapely.Polygon:
        """The window on the map."""
        return self.part.scene.window_polygon(self.tile.window)


def beside_others(tiles: Sequence[ChosenTile]) -> list[int]:
    """The positions of the tiles whose windows overlap another one of the same scale."""
    windows = np.array([tile.window for tile in tiles], object)
    scale = np.array([tile.part.scene.scale for tile in tiles])
    i, j = shapely.STRtree(windows).query(windows)
    meets = (i != j) & (scale[i] == scale[j])
    i, j = i[meets], j[meets]
    shared = shapely.area(shapely.intersection(windows[i], windows[j])) > 0
    return np.unique(i[shared]).tolist()


def what_continues(tiles: Sequence[ChosenTile], offer: Offer) -> list[NDArray[np.int64]]:
    """For each tile, the rows of candidates that continue what another tile's edge has cut."""
    more: list[NDArray[np.int64]] = [np.empty(0, np.int64) for _ in tiles]
    if offer.by_class:  # a run does not look for such candidates of concepts
        return more
    for grid, of_scene in _by_scene(tiles):
        cut = Continuations(grid)
        place = {tiles[n].index: n for n in of_scene}
        for n in of_scene:
            cut.see(tiles[n].tile, tiles[n].candidates.take(tiles[n].rows))
        while wanted := cut.turn():
            for n in (place[index] for index in wanted if index in place):
                one = tiles[n]
                found = cut.found(one.tile, one.candidates, one.rows, one.masks, offer)
                more[n] = np.union1d(more[n], found.continues)
    return more


def merged(
    polygons: Sequence[gpd.GeoDataFrame], tiles: Sequence[ChosenTile], offer: Offer
) -> gpd.GeoDataFrame:
    """Merge the polygons of some tiles, given as frames for `merge_seams`.

    In the result, `seam` marks polygons that reach into the window of a tile not given here.
    """
    windows = pd.concat(
        [tile_windows(one.part.scene, [one.tile]) for one in tiles], ignore_index=True
    )
    whole = pd.concat(merge_seams(polygons, windows, offer=offer), ignore_index=True)
    return whole.assign(seam=_reach(whole.geometry.bounds.to_numpy(), _not_computed(tiles)))


def _by_scene(tiles: Sequence[ChosenTile]) -> list[tuple[TileGrid, list[int]]]:
    scenes: dict[str, tuple[TileGrid, list[int]]] = {}
    for n, one in enumerate(tiles):
        scenes.setdefault(one.part.scene.name, (one.part.grid, []))[1].append(n)
    return list(scenes.values())


def _not_computed(tiles: Sequence[ChosenTile]) -> NDArray[np.float64]:
    """The bounds `(n, 4)` on the map of all tiles next to these."""
    known = {(one.part.scene.name, *one.index) for one in tiles}
    others: dict[tuple[str, int, int], tuple[Scene, Tile]] = {}
    for one in tiles:
        grid = one.part.grid
        for row in range(max(0, one.tile.row - 1), min(grid.n_rows, one.tile.row + 2)):
            for col in range(max(0, one.tile.col - 1), min(grid.n_cols, one.tile.col + 2)):
                key = (one.part.scene.name, row, col)
                if key not in known:
                    others[key] = one.part.scene, grid.tile(row, col)
    windows = [scene.window_polygon(tile.window) for scene, tile in others.values()]
    return shapely.bounds(np.array(windows, object)).reshape(-1, 4)


def _reach(bounds: NDArray[np.float64], windows: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each of some bounds `(n, 4)` shares an area with any window `(m, 4)`."""
    one, other = bounds[:, None], windows[None]
    low, high = np.maximum(one, other)[..., :2], np.minimum(one, other)[..., 2:]
    shared = np.asarray((low < high).all(axis=2), bool)
    return np.asarray(shared.any(axis=1), bool)
