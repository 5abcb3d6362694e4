"""Clean polygons: small parts dropped, holes filled, outlines simplified."""

from __future__ import annotations

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from workbench.raster.crs import ground_area_m2, ground_scale

SIMPLIFY_AT_MOST_M = 1.0  # even where pixels are larger: more would cut off corners of houses


@dataclass(frozen=True)
class Cleaning:
    """How to clean polygons; None switches a step off. Metres are ground metres.

    `simplify_m` None is one pixel, at most `SIMPLIFY_AT_MOST_M`, multiplied by the scale at which a
    polygon was seen; 0 switches it off.

    `min_area_px` drops parts of a mask, `min_area_m2` and `max_area_m2` whole masks;
    `min_solidity` is area / area of the convex hull. `planar` gives a layer without overlaps,
    smaller polygons on top, whose neighbours share their edges exactly.
    """

    min_area_px: int = 500
    min_area_m2: float | None = None
    max_area_m2: float | None = None
    fill_holes_m2: float | None = None
    min_solidity: float | None = None
    simplify_m: float | None = None
    planar: bool = False


def clean(polygons: gpd.GeoDataFrame, cleaning: Cleaning) -> gpd.GeoDataFrame:
    """Filter, fill and simplify polygons, and measure their ground area.

    Args:
        polygons: Exact polygons of `to_polygons` or `merge_seams`, with `area_px`.
        cleaning: What to drop, fill and simplify; metres are ground metres.

    Returns:
        The rows that are kept, in their order, each a valid, non-empty MultiPolygon. `area_m2` is
        the ground area of the result, `area_px` the area in pixels before simplification. In a
        planar layer, polygons that meet a `seam` polygon are marked `seam`, too, because merging
        may move their edges.

    Example:
        >>> layer = clean(polygons, Cleaning(min_area_px=200, simplify_m=1))
    """
    polygons, pixel = chosen(polygons, cleaning)
    crs, geometry = polygons.crs, polygons.geometry.to_numpy()
    metres, scale = tolerances(polygons, pixel, cleaning)
    if cleaning.planar:
        if "seam" in polygons:
            polygons = polygons.assign(seam=_meets(geometry, polygons["seam"].to_numpy()))
        geometry = cut_overlaps(geometry, pixel, cleaning, crs)
    area_px = np.rint(shapely.area(geometry) / pixel).astype(np.int64)
    if cleaning.planar:
        geometry = simplified_together(geometry, shared_tolerance(metres, scale))
    elif cleaning.simplify_m != 0 and len(geometry):
        geometry = only_polygons(_simplify(geometry, metres / scale))
    left = ~shapely.is_empty(geometry)
    polygons = polygons.assign(area_px=area_px).set_geometry(geometry, crs=crs)
    return measured(polygons[left].reset_index(drop=True))


def chosen(
    polygons: gpd.GeoDataFrame, cleaning: Cleaning
) -> tuple[gpd.GeoDataFrame, NDArray[np.float64]]:
    """Drop and fill, polygon by polygon; also returns the area of a pixel of each, map units²."""
    crs, geometry = polygons.crs, polygons.geometry.to_numpy()
    pixel = (polygons.area / polygons["area_px"].clip(lower=1)).to_numpy()
    geometry = _drop_small_parts(geometry, cleaning.min_area_px * pixel)
    if cleaning.fill_holes_m2 is not None:
        geometry = _fill_holes(geometry, cleaning.fill_holes_m2, crs)
    keep = _within_area_limits(geometry, cleaning, crs)
    if cleaning.min_solidity is not None:
        keep &= _solidity(geometry) >= cleaning.min_solidity
    return polygons[keep].set_geometry(geometry[keep], crs=crs), pixel[keep]


def cut_overlaps(
    geometry: NDArray[np.object_],
    pixel: NDArray[np.float64],
    cleaning: Cleaning,
    crs: pyproj.CRS,
) -> NDArray[np.object_]:
    """Leave the smaller polygon on top; empty if nothing is left, or too little."""
    flat = _drop_small_parts(_flatten(geometry), cleaning.min_area_px * pixel)
    keep = _within_area_limits(flat, cleaning, crs)  # what lies on top was cut away
    flat[~keep] = shapely.MultiPolygon()
    return flat


def tolerances(
    polygons: gpd.GeoDataFrame, pixel: NDArray[np.float64], cleaning: Cleaning
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The tolerance of each polygon in metres, and the metres of a CRS unit at its place."""
    scale = metres_per_unit(polygons.geometry.to_numpy(), polygons.crs)
    seen_at = polygons["scale"].to_numpy(np.float64) if "scale" in polygons else 1.0
    return _tolerance_m(cleaning, pixel, scale) * (1 if cleaning.simplify_m else seen_at), scale


def shared_tolerance(metres: NDArray[np.float64], scale: NDArray[np.float64]) -> float:
    """One tolerance in map units for a planar layer, whose edges have two sides; 0 for none.

    It is rounded, so that it is the same for a tile and its scene.
    """
    if not len(metres):
        return 0.0
    return float(np.median(metres)) / max(0.01, round(float(np.median(scale)), 2))


def simplified_together(geometry: NDArray[np.object_], tolerance: float) -> NDArray[np.object_]:
    """Simplify polygons without overlaps so that they still share their edges; empty ones stay.

    Visvalingam: a corner is dropped if its triangle is smaller than the tolerance squared.
    """
    there = ~shapely.is_empty(geometry)
    if tolerance == 0 or not there.any():
        return geometry
    simple = geometry.copy()
    simple[there] = shapely.coverage_simplify(geometry[there], tolerance)
    return only_polygons(simple)


def measured(polygons: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Add the ground area of each polygon as it is."""
    area_m2 = ground_area_m2(polygons.geometry.to_numpy(), polygons.crs)
    return polygons.assign(area_m2=area_m2)


def _within_area_limits(
    geometry: NDArray[np.object_], cleaning: Cleaning, crs: pyproj.CRS
) -> NDArray[np.bool_]:
    keep = ~shapely.is_empty(geometry)
    if cleaning.min_area_m2 is not None or cleaning.max_area_m2 is not None:
        area_m2 = ground_area_m2(geometry, crs)
        keep &= area_m2 >= (cleaning.min_area_m2 or 0)
        keep &= area_m2 <= (cleaning.max_area_m2 or np.inf)
    return keep


def _tolerance_m(
    cleaning: Cleaning, pixel: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The tolerance of simplification of each polygon, whose pixels cover `pixel` map units²."""
    if cleaning.simplify_m is not None:
        return np.full(len(pixel), float(cleaning.simplify_m))
    # to four digits: a polygon's area and pixel count give its pixel size with rounding errors, and
    # the tolerance must be the same for a tile and its scene
    side = np.sqrt(pixel) * scale
    digits = 10.0 ** (4 - np.ceil(np.log10(side)))
    return np.minimum(np.rint(side * digits) / digits, SIMPLIFY_AT_MOST_M)


def _solidity(geometry: NDArray[np.object_]) -> NDArray[np.float64]:
    hull = shapely.area(shapely.convex_hull(geometry))
    return np.divide(shapely.area(geometry), hull, out=np.zeros(len(hull)), where=hull > 0)


def _meets(geometry: NDArray[np.object_], marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Also mark what touches or overlaps a marked geometry."""
    row, _ = shapely.STRtree(geometry[marked]).query(geometry, predicate="intersects")
    return marked | (np.bincount(row, minlength=len(geometry)) > 0)


def metres_per_unit(geometry: NDArray[np.object_], crs: pyproj.CRS) -> NDArray[np.float64]:
    """The ground metres of a CRS unit at each of `(n,)` geometries."""
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
    """Collect the polygons of each geometry in one MultiPolygon, empty if there are none.

    Lines and points are dropped, also those in a collection; a missing geometry becomes empty.
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
    # the start of a ring must not depend on what else was cut
    return only_polygons(shapely.normalize(flat))
