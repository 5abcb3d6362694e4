"""Masks to exact polygons in map coordinates, and the cleaning of polygons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import geopandas as gpd
import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from workbench.candidates import Candidates
from workbench.crs import ground_area_m2, ground_scale
from workbench.raster import Scene
from workbench.tiles import Tile, TileGrid


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


def trace(mask: NDArray[np.bool_]) -> list[list[NDArray[np.int64]]]:
    """Trace a `(h, w)` mask along its pixel edges.

    Returns one list of closed rings per 4-connected part, the outer ring first, then its holes;
    a ring is `(n, 2)` corners, x and y in pixels, where pixel (row, col) covers x from col to
    col + 1. The polygons are valid as they are, their area is the number of pixels, and empty
    masks give an empty list.

    Instead of following the outline pixel by pixel, all corners are found at once: along each
    grid line they pair up to edges, and following the edges, horizontal and vertical in turn,
    closes the rings.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    across = padded[:-1] ^ padded[1:]  # horizontal edges
    down = padded[:, :-1] ^ padded[:, 1:]  # vertical edges
    corner = across[:, :-1] ^ across[:, 1:]
    crossing = across[:, :-1] & across[:, 1:] & down[:-1] & down[1:]
    touches = bool(crossing.any())  # pixels that meet at a corner only
    ys, xs = np.nonzero(corner | crossing)
    if not len(ys):
        return []
    twice = crossing[ys, xs].view(bool) if touches else np.zeros(len(ys), bool)
    repeats = 1 + twice.astype(np.int64)
    ys, xs, twice = np.repeat(ys, repeats), np.repeat(xs, repeats), np.repeat(twice, repeats)

    # in row order, corners 2k and 2k + 1 are the ends of a horizontal edge; the same holds for
    # vertical edges in column order
    order = np.lexsort((ys, xs))
    labels: NDArray[np.int32] | None = None
    if touches:
        labels = _label(padded)
        _join_at_crossings(order, ys, xs, twice, padded, labels)
    below = np.empty(len(order), np.int64)
    below[order[::2]], below[order[1::2]] = order[1::2], order[::2]

    rings = _follow(below.tolist())
    starts = np.array([ring[0] for ring in rings])
    outer = padded[ys[starts] + 1, xs[starts] + 1] == 1  # a ring starts along its topmost edge
    corners = np.column_stack((xs, ys))
    closed = [corners[[*ring, ring[0]]] for ring in rings]
    if outer.sum() == 1:
        first = int(np.flatnonzero(outer)[0])
        return [[closed[first], *(closed[i] for i in np.flatnonzero(~outer))]]
    if labels is None:
        labels = _label(padded)
    # the foreground lies below the first edge of an outer ring, above that of a hole
    owner = labels[ys[starts] + outer, xs[starts] + 1]
    parts = {int(owner[i]): [closed[i]] for i in np.flatnonzero(outer)}
    for i in np.flatnonzero(~outer):
        parts[int(owner[i])].append(closed[i])
    return list(parts.values())


def _label(padded: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Number the 4-connected parts of a mask, from 1."""
    return np.asarray(cv2.connectedComponents(padded, connectivity=4)[1], np.int32)


def _join_at_crossings(
    order: NDArray[np.int64],
    ys: NDArray[np.int64],
    xs: NDArray[np.int64],
    twice: NDArray[np.bool_],
    padded: NDArray[np.uint8],
    labels: NDArray[np.int32],
) -> None:
    """Decide how two rings pass a corner at which two diagonal pixels meet, in place.

    As listed, the left edge turns up and the right edge down. Pixels of one part must be joined
    there, so that the ring leaves a hole instead of touching itself; pixels of two parts must be
    kept apart. Swapping the two entries of the corner takes the other turn.
    """
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    first = np.flatnonzero(twice)[::2]
    y, x = ys[first], xs[first]
    falling = padded[y, x] == 1  # the pixels lie upper left and lower right
    one = np.where(falling, labels[y, x], labels[y, x + 1])
    other = np.where(falling, labels[y + 1, x + 1], labels[y + 1, x])
    swap = first[(one == other) == falling]
    order[position[swap]], order[position[swap + 1]] = swap + 1, swap


def _follow(below: list[int]) -> list[list[int]]:
    """Follow edges from corner to corner, horizontal (2k to 2k + 1) and vertical in turn."""
    rings = []
    seen = bytearray(len(below))
    for start in range(0, len(below), 2):
        if seen[start]:
            continue
        ring: list[int] = []
        i = start
        while not seen[i]:
            j = i ^ 1
            seen[i] = seen[j] = 1
            ring += (i, j)
            i = below[j]
        rings.append(ring)
    return rings


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
    coords: list[NDArray[np.int64]] = []
    ring_sizes: list[int] = []
    rings_per_part: list[int] = []
    parts_per_mask: list[int] = []
    rows, area_px, at_edge, seam = [], [], [], []
    boxes = candidates.boxes
    tile_index = np.column_stack([candidates.column("tile_row"), candidates.column("tile_col")])
    tile: Tile | None = None
    for i, mask in enumerate(candidates.masks()):
        row, col = map(int, tile_index[i])
        if tile is None or (tile.row, tile.col) != (row, col):
            tile = grid.tile(row, col)
            left, top = tile.window.col_off, tile.window.row_off
            tile_valid = _valid_in_scene(valid.get((row, col)), tile, grid)
            near_invalid = None
            if tile_valid is not None:
                cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
                near_invalid = cv2.dilate((~tile_valid).view(np.uint8), cross).view(bool)
            clear = _clear_of_neighbours(tile, grid)
        x0, y0, x1, y1 = map(int, boxes[i])
        inside = (slice(y0, y1 + 1), slice(x0, x1 + 1))
        crop = mask[inside]
        if tile_valid is not None:
            crop = crop & tile_valid[inside]
        parts = trace(crop)
        if not parts:
            continue
        offset = np.array([left + x0, top + y0])
        corners = [ring + offset for part in parts for ring in part]
        coords += corners
        ring_sizes += [len(ring) for ring in corners]
        rings_per_part += [len(part) for part in parts]
        parts_per_mask.append(len(parts))
        rows.append(i)
        area_px.append(int(np.count_nonzero(crop)))
        xmin, ymin = np.min([ring.min(axis=0) for ring in corners], axis=0)
        xmax, ymax = np.max([ring.max(axis=0) for ring in corners], axis=0)
        touches_invalid = near_invalid is not None and bool((crop & near_invalid[inside]).any())
        on_frame = xmin <= 0 or ymin <= 0 or xmax >= grid.width or ymax >= grid.height
        at_edge.append(bool(on_frame or touches_invalid))
        seam.append(bool(xmin < clear[0] or ymin < clear[1] or xmax > clear[2] or ymax > clear[3]))

    pixels = np.concatenate(coords) if coords else np.empty((0, 2), np.int64)
    # multiplied once from whole pixel numbers, so that tiles agree on shared corners to the bit
    corners_map = np.column_stack(
        (
            scene.transform.c + scene.transform.a * pixels[:, 0],
            scene.transform.f + scene.transform.e * pixels[:, 1],
        )
    )
    offsets = tuple(
        np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        for sizes in (ring_sizes, rings_per_part, parts_per_mask)
    )
    geometry = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, corners_map, offsets)
    taken = candidates.take(np.array(rows, np.int64))
    return gpd.GeoDataFrame(
        {
            "source": np.full(len(rows), scene.name, dtype=object),
            "tile_row": taken.column("tile_row"),
            "tile_col": taken.column("tile_col"),
            "ordinal": taken.column("ordinal"),
            "confidence": taken.column("pred_iou").astype(np.float64),
            "stability": taken.column("stability_score").astype(np.float64),
            "area_px": np.array(area_px, np.int64),
            "at_edge": np.array(at_edge, bool),
            "seam": np.array(seam, bool),
        },
        geometry=geometry,
        crs=scene.crs,
    )


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
    geometry = _as_multi(geometry)
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
        return _as_multi(geometry)
    return _regroup(parts[large], row[large], len(geometry))


def _regroup(parts: NDArray[np.object_], row: NDArray[np.int64], n: int) -> NDArray[np.object_]:
    """Collect polygons into one MultiPolygon for each of `n` rows, empty where a row has none."""
    geometry = np.full(n, shapely.MultiPolygon(), dtype=object)
    if len(parts):
        shapely.multipolygons(parts, indices=row, out=geometry)
    return geometry


def _as_multi(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    parts, row = shapely.get_parts(geometry, return_index=True)
    return _regroup(parts, row, len(geometry))


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
    filled = _regroup(filled, row, len(geometry))
    # an island in a filled hole would lie on top of its own polygon
    changed = np.unique(row[part[drop]])
    filled[changed] = shapely.union_all(filled[changed].reshape(-1, 1), axis=1)
    return _as_multi(filled)


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
    return _as_multi(flat)
