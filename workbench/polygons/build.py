"""Exact polygons on the map from candidates: along pixel edges, invalid pixels left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco
from rasterio.windows import Window

from workbench.candidates.rle import decode_runs, encode_masks
from workbench.candidates.table import Candidates
from workbench.candidates.valid import valid_in_scene, without_invalid
from workbench.polygons.trace import trace
from workbench.raster.scene import Scene
from workbench.raster.tiles import Tile, TileGrid

BATCH = 1000  # masks that are traced at once: memory grows with their runs


def to_polygons(
    candidates: Candidates,
    scene: Scene,
    grid: TileGrid,
    valid: Mapping[tuple[int, int], NDArray[np.bool_]],
) -> gpd.GeoDataFrame:
    """Turn the masks of candidates into MultiPolygons along pixel edges.

    Args:
        candidates: Candidates of any number of tiles of the scene.
        scene: Gives the CRS and the transform.
        grid: The tile grid of the candidates.
        valid: For each tile (row, column) that has invalid pixels, its validity mask, `(h, w)`.
            Invalid pixels are removed from the masks.

    Returns:
        One row for each mask that has a valid pixel, in the scene's CRS, with scores, `area_px` in
        pixels of the working grid, the `scale` of the scene and the key of its tile. `seam` marks
        polygons that reach into another tile's window, which merging may change; `at_edge` marks
        those that touch the scene's edge or invalid pixels.

    Example:
        >>> polygons = to_polygons(select(candidates, Thresholds()), scene, grid, {})
    """
    traced = [
        _trace(candidates.take(np.arange(i, min(i + BATCH, len(candidates)))), scene, grid, valid)
        for i in range(0, max(1, len(candidates)), BATCH)
    ]
    return traced[0] if len(traced) == 1 else pd.concat(traced, ignore_index=True)


def shapes_in_window(
    rles: Sequence[bytes], scene: Scene, window: Window, valid: NDArray[np.bool_]
) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Turn masks of one window (COCO counts) into MultiPolygons along pixel edges, on the map.

    `valid` `(h, w)` marks the valid pixels; the others are removed from the masks. A mask without a
    valid pixel is an empty MultiPolygon. Also returns which masks touch invalid pixels, `(n,)`.
    """
    counts = list(rles)
    touch = np.zeros(len(counts), bool)
    if counts and not valid.all():
        counts, touch = _without_invalid(counts, valid)
    outlines = trace(decode_runs(counts, *valid.shape))
    sizes = (outlines.ring_sizes, outlines.rings_per_part, outlines.parts_per_mask)
    ends = tuple(np.concatenate(([0], np.cumsum(n))) for n in sizes)
    x, y = outlines.corners.T
    corners = np.column_stack(scene.window_transform(window) @ (x, y))
    shapes: NDArray[np.object_] = shapely.from_ragged_array(
        shapely.GeometryType.MULTIPOLYGON, corners, ends
    )
    return shapes, touch


def _trace(
    candidates: Candidates,
    scene: Scene,
    grid: TileGrid,
    valid: Mapping[tuple[int, int], NDArray[np.bool_]],
) -> gpd.GeoDataFrame:
    """Trace a few masks at once."""
    counts: list[bytes] = candidates.table.column("rle").to_pylist()
    touches_invalid = np.zeros(len(counts), bool)
    index = np.column_stack([candidates.column("tile_row"), candidates.column("tile_col")])
    found, tile_of = np.unique(index, axis=0, return_inverse=True)
    tiles = [grid.tile(row, col) for row, col in found.tolist()]
    for number, tile in enumerate(tiles):
        tile_valid = valid_in_scene(valid.get((tile.row, tile.col)), tile, grid)
        if tile_valid is not None:
            here = np.flatnonzero(tile_of == number)
            inside, touches_invalid[here] = _without_invalid([counts[i] for i in here], tile_valid)
            for i, rle in zip(here.tolist(), inside, strict=True):
                counts[i] = rle
    runs = decode_runs(counts, candidates.rules.height, candidates.rules.width)
    outlines = trace(runs)
    rows = np.flatnonzero(outlines.parts_per_mask)
    tile_of = tile_of[rows]
    corner = np.array([(t.window.col_off, t.window.row_off) for t in tiles]).reshape(-1, 2)
    clear = np.array([_clear_of_neighbours(tile, grid) for tile in tiles]).reshape(-1, 4)
    parts = outlines.parts_per_mask[rows]
    sizes = (outlines.ring_sizes, outlines.rings_per_part, parts)
    ring_ends, part_ends, ends = (np.concatenate(([0], np.cumsum(n))) for n in sizes)
    corners_per_mask = np.diff(ring_ends[part_ends[ends]])
    pixels = outlines.corners + np.repeat(corner[tile_of], corners_per_mask, axis=0)
    # multiplied once from whole pixel numbers, so that tiles agree on shared corners to the bit
    corners_map = np.column_stack(
        (
            scene.transform.c + scene.transform.a * pixels[:, 0],
            scene.transform.f + scene.transform.e * pixels[:, 1],
        )
    )
    geometry = shapely.from_ragged_array(
        shapely.GeometryType.MULTIPOLYGON, corners_map, (ring_ends, part_ends, ends)
    )
    xmin, ymin, xmax, ymax = (runs.bounds()[rows] + np.tile(corner[tile_of], 2)).T
    left, top, right, bottom = clear[tile_of].T
    on_frame = (xmin <= 0) | (ymin <= 0) | (xmax >= grid.width) | (ymax >= grid.height)
    taken = candidates.take(rows)
    return gpd.GeoDataFrame(
        {
            "source": np.full(len(rows), scene.name, dtype=object),
            "tile_row": taken.column("tile_row"),
            "tile_col": taken.column("tile_col"),
            "ordinal": taken.column("ordinal"),
            "confidence": taken.column("pred_iou").astype(np.float64),
            "stability": taken.column("stability_score").astype(np.float64),
            "area_px": runs.areas()[rows] * scene.scale**2,
            "scale": np.full(len(rows), scene.scale, np.int32),
            "at_edge": on_frame | touches_invalid[rows],
            "seam": (xmin < left) | (ymin < top) | (xmax > right) | (ymax > bottom),
        },
        geometry=geometry,
        crs=scene.crs,
    )


def _without_invalid(
    counts: list[bytes], valid: NDArray[np.bool_]
) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Remove a tile's invalid pixels from its masks; also whether the rest of each touches any."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    near_invalid = cv2.dilate((~valid).view(np.uint8), cross).view(bool)
    near_rle = {"size": list(valid.shape), "counts": encode_masks(near_invalid[None])[0]}
    inside = without_invalid(counts, valid)
    near = [coco.area(coco.merge([rle, near_rle], True)) > 0 for rle in inside]
    return [rle["counts"] for rle in inside], np.array(near, bool)


def _clear_of_neighbours(tile: Tile, grid: TileGrid) -> tuple[float, float, float, float]:
    """The part of a window that no other window reaches: x0, y0, x1, y1 in scene pixels."""
    left, top, right, bottom = -np.inf, -np.inf, np.inf, np.inf
    if tile.col > 0:
        before = grid.tile(tile.row, tile.col - 1).window
        left = before.col_off + before.width
    if tile.col + 1 < grid.n_cols:
        right = grid.tile(tile.row, tile.col + 1).window.col_off
    if tile.row > 0:
        before = grid.tile(tile.row - 1, tile.col).window
        top = before.row_off + before.height
    if tile.row + 1 < grid.n_rows:
        bottom = grid.tile(tile.row + 1, tile.col).window.row_off
    return left, top, right, bottom
