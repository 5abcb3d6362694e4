"""Masks to exact polygons in map coordinates, and the cleaning of polygons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates import Candidates, encode_masks
from workbench.crs import ground_area_m2, ground_scale
from workbench.outlines import decode_runs, trace
from workbench.raster import Scene
from workbench.tiles import Tile, TileGrid

BATCH = 1000  # masks that are traced at once: memory goes with their runs


@dataclass(frozen=True)
class Cleaning:
    """What is kept of a polygon; None switches a step off. Metres are ground metres.

    `min_area_px` drops parts of a mask, `min_area_m2` and `max_area_m2` whole masks;
    `min_solidity` is area / area of the convex hull. `planar` gives a layer without overlaps,
    smaller polygons on top, whose neighbours share their edges exactly.
    """

    min_area_px: int = 500
    min_area_m2: float | None = None
    max_area_m2: float | None = None
    fill_holes_m2: float | None = None
    min_solidity: float | None = None
    simplify_m: float | None = 0.5
    planar: bool = False


def to_polygons(
    candidates: Candidates,
    scene: Scene,
    grid: TileGrid,
    valid: Mapping[tuple[int, int], NDArray[np.bool_]],
) -> gpd.GeoDataFrame:
    """Turn the masks of candidates into MultiPolygons along pixel edges, in the scene's CRS.

    `valid` holds the `(h, w)` validity mask of the tiles (row, column) that have invalid pixels;
    those leave the masks, and a mask without valid pixels leaves no polygon. `seam` marks polygons
    that reach into another tile's window, so that merging may change them; `at_edge` those that
    touch the scene's edge or invalid pixels.
    """
    traced = [
        _trace(candidates.take(np.arange(i, min(i + BATCH, len(candidates)))), scene, grid, valid)
        for i in range(0, max(1, len(candidates)), BATCH)
    ]
    return traced[0] if len(traced) == 1 else pd.concat(traced, ignore_index=True)


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
        tile_valid = _valid_in_scene(valid.get((tile.row, tile.col)), tile, grid)
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
            "area_px": runs.areas()[rows],
            "at_edge": on_frame | touches_invalid[rows],
            "seam": (xmin < left) | (ymin < top) | (xmax > right) | (ymax > bottom),
        },
        geometry=geometry,
        crs=scene.crs,
    )


def _without_invalid(
    counts: list[bytes], valid: NDArray[np.bool_]
) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Take a tile's invalid pixels out of its masks; also whether what is left touches any."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    near_invalid = cv2.dilate((~valid).view(np.uint8), cross).view(bool)
    size = list(valid.shape)
    valid_rle, near_rle = (
        {"size": size, "counts": rle} for rle in encode_masks(np.stack((valid, near_invalid)))
    )
    inside = [coco.merge([{"size": size, "counts": rle}, valid_rle], True) for rle in counts]
    near = [coco.area(coco.merge([rle, near_rle], True)) > 0 for rle in inside]
    return [rle["counts"] for rle in inside], np.array(near, bool)


def _valid_in_scene(
    valid: NDArray[np.bool_] | None, tile: Tile, grid: TileGrid
) -> NDArray[np.bool_] | None:
    """Add what lies beyond the scene to a tile's invalid pixels; None if all are valid."""
    width = grid.width - tile.window.col_off
    height = grid.height - tile.window.row_off
    if width >= grid.tile_size and height >= grid.tile_size:
        return valid
    if valid is None:
        valid = np.ones((grid.tile_size, grid.tile_size), bool)
    valid = valid.copy()
    valid[height:], valid[:, width:] = False, False
    return valid


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


# --------------------------------------------------------------------------------- cleaning


def clean(polygons: gpd.GeoDataFrame, cleaning: Cleaning) -> gpd.GeoDataFrame:
    """Filter, fill and simplify polygons; adds `area_m2`, the ground area of the result.

    `area_px` becomes the area in pixels before simplification. The geometry of every row that is
    kept is a valid, non-empty MultiPolygon; rows keep their order. In a planar layer, polygons
    that meet a `seam` polygon are marked `seam`, too: its merging may move their edges.
    """
    crs, geometry = polygons.crs, polygons.geometry.to_numpy()
    pixel = (polygons.area / polygons["area_px"].clip(lower=1)).to_numpy()
    geometry = _drop_small_parts(geometry, cleaning.min_area_px * pixel)
    if cleaning.fill_holes_m2 is not None:
        geometry = _fill_holes(geometry, cleaning.fill_holes_m2, crs)
    keep = _within_area_limits(geometry, cleaning, crs)
    if cleaning.min_solidity is not None:
        keep &= _solidity(geometry) >= cleaning.min_solidity
    polygons, geometry, pixel = polygons[keep], geometry[keep], pixel[keep]
    if cleaning.planar:
        if "seam" in polygons:
            polygons = polygons.assign(seam=_meets(geometry, polygons["seam"].to_numpy()))
        geometry = _drop_small_parts(_flatten(geometry), cleaning.min_area_px * pixel)
        keep = _within_area_limits(geometry, cleaning, crs)  # what lies on top was cut away
        polygons, geometry, pixel = polygons[keep], geometry[keep], pixel[keep]
    area_px = np.rint(shapely.area(geometry) / pixel).astype(np.int64)
    if cleaning.simplify_m and len(geometry):
        scale = _metres_per_unit(geometry, crs)
        if cleaning.planar:
            # Visvalingam: a corner goes if its triangle is smaller than the tolerance squared;
            # one tolerance for all, rounded so that it is the same for a tile and its scene
            tolerance = cleaning.simplify_m / max(0.01, round(float(np.median(scale)), 2))
            geometry = shapely.coverage_simplify(geometry, tolerance)
        else:
            geometry = _simplify(geometry, cleaning.simplify_m / scale)
    geometry = only_polygons(geometry)
    area_m2 = ground_area_m2(geometry, crs)
    cleaned = polygons.assign(area_px=area_px, area_m2=area_m2)
    return cleaned.set_geometry(geometry, crs=crs).reset_index(drop=True)


def _within_area_limits(
    geometry: NDArray[np.object_], cleaning: Cleaning, crs: pyproj.CRS
) -> NDArray[np.bool_]:
    keep = ~shapely.is_empty(geometry)
    if cleaning.min_area_m2 is not None or cleaning.max_area_m2 is not None:
        area_m2 = ground_area_m2(geometry, crs)
        keep &= area_m2 >= (cleaning.min_area_m2 or 0)
        keep &= area_m2 <= (cleaning.max_area_m2 or np.inf)
    return keep


def _solidity(geometry: NDArray[np.object_]) -> NDArray[np.float64]:
    hull = shapely.area(shapely.convex_hull(geometry))
    return np.divide(shapely.area(geometry), hull, out=np.zeros(len(hull)), where=hull > 0)


def _meets(geometry: NDArray[np.object_], marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark also what touches or overlaps a marked geometry."""
    row, _ = shapely.STRtree(geometry[marked]).query(geometry, predicate="intersects")
    return marked | (np.bincount(row, minlength=len(geometry)) > 0)


def _metres_per_unit(geometry: NDArray[np.object_], crs: pyproj.CRS) -> NDArray[np.float64]:
    centres = shapely.centroid(geometry)
    _, _, areal = ground_scale(crs, shapely.get_x(centres), shapely.get_y(centres))
    return np.sqrt(areal)


def _drop_small_parts(
    geometry: NDArray[np.object_], min_area: NDArray[np.float64]
) -> NDArray[np.object_]:
    """Keep the parts of each geometry that have at least its `min_area`, in square map units."""
    parts, row = shapely.get_parts(geometry, return_index=True)
    # a pixel's area carries rounding errors: half a pixel of 500 is less than a thousandth
    large = shapely.area(parts) >= min_area[row] * (1 - 1e-6)
    if large.all():
        return only_polygons(geometry)
    return regroup(parts[large], row[large], len(geometry))


def regroup(parts: NDArray[np.object_], row: NDArray[np.int64], n: int) -> NDArray[np.object_]:
    """Collect polygons into one MultiPolygon for each of `n` rows, empty where a row has none."""
    geometry = np.full(n, shapely.MultiPolygon(), dtype=object)
    if len(parts):
        shapely.multipolygons(parts, indices=row, out=geometry)
    return geometry


def only_polygons(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Collect what each geometry has of polygons in one MultiPolygon, empty where that is none.

    Lines and points go, also those in a collection; a missing geometry has none.
    """
    parts, row = shapely.get_parts(geometry, return_index=True)
    parts, part = shapely.get_parts(parts, return_index=True)  # collections of multis
    flat = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    return regroup(parts[flat], row[part][flat], len(geometry))


def _fill_holes(
    geometry: NDArray[np.object_], max_area_m2: float, crs: pyproj.CRS
) -> NDArray[np.object_]:
    """Fill holes of less than `max_area_m2` ground square metres."""
    parts, row = shapely.get_parts(geometry, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    hole = np.append(False, part[1:] == part[:-1]) if len(part) else np.zeros(0, bool)
    areas = ground_area_m2(shapely.polygons(rings), crs)
    drop = hole & (areas < max_area_m2)
    if not drop.any():
        return geometry
    kept = rings[~drop]
    coords = shapely.get_coordinates(kept)
    offsets = tuple(
        np.concatenate(([0], np.cumsum(sizes)))
        for sizes in (shapely.get_num_coordinates(kept), np.bincount(part[~drop]))
    )
    filled = shapely.from_ragged_array(shapely.GeometryType.POLYGON, coords, offsets)
    filled = regroup(filled, row, len(geometry))
    # an island in a filled hole would lie on top of its own polygon
    changed = np.unique(row[part[drop]])
    filled[changed] = shapely.union_all(filled[changed].reshape(-1, 1), axis=1)
    return only_polygons(filled)


def _simplify(geometry: NDArray[np.object_], tolerance: NDArray[np.float64]) -> NDArray[np.object_]:
    """Simplify within `tolerance` map units; what would become invalid stays as it was."""
    simple = shapely.simplify(geometry, tolerance, preserve_topology=True)
    bad = ~shapely.is_valid(simple) | shapely.is_empty(simple)
    return np.where(bad, geometry, simple)


def _flatten(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Cut all overlaps so that the smaller polygon stays on top.

    All outlines are noded together first, so that neighbours share every vertex of their common
    edges, which simplifying them as a coverage needs.
    """
    if not len(geometry):
        return geometry
    outlines = shapely.union_all(shapely.boundary(geometry))
    faces = shapely.get_parts(shapely.polygonize([outlines]))
    inside = shapely.point_on_surface(faces)
    face, owner = shapely.STRtree(geometry).query(inside, predicate="intersects")
    by_size = np.lexsort((owner, shapely.area(geometry)[owner], face))
    face, owner = face[by_size], owner[by_size]
    first = np.append(True, face[1:] != face[:-1])[: len(face)]
    face, owner = face[first], owner[first]
    flat = np.full(len(geometry), shapely.MultiPolygon(), dtype=object)
    order = np.argsort(owner, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        flat[owner[group[0]]] = shapely.coverage_union_all(faces[face[group]])
    return only_polygons(flat)
