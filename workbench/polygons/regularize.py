"""Right angles: polygons of buildings, squared by the optional library buildingregulariser."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Collection

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from shapely.affinity import translate

from workbench.candidates.offer import INSIDE
from workbench.errors import JobError
from workbench.polygons.clean import metres_per_unit, only_polygons
from workbench.polygons.overlap import SLACK, common_area, holds, iou_of
from workbench.raster.crs import ground_area_m2

LEAST_IOU = 0.85  # with the original shape; below it, squaring has changed the shape too much
ROUND_IOU = 0.9  # with the circle of the same area; above it, the shape has no corners to square
TOLERANCE_M = 0.5  # how far an outline may stray from a wall
TOLERANCE_PX = 2.0  # with less, the steps of a slanted pixel edge leave corners


def require_library() -> None:
    """Raise `JobError` if the library that squares polygons is not installed."""
    if importlib.util.find_spec("buildingregulariser") is None:
        raise JobError(
            "Parameter `regularize` needs the library buildingregulariser, which is not installed "
            'here: pip install "sam-workbench[regularize]", or set regularize to null.'
        )


def regularized(polygons: gpd.GeoDataFrame, which: bool | Collection[int]) -> gpd.GeoDataFrame:
    """Give polygons right angles where that changes them little.

    A shape stays as it is if its IoU with the squared one is below `LEAST_IOU`, if it is round, or
    if the squared one would overlap a neighbour by more than before.

    Args:
        polygons: The whole layer as `clean` returns it, because any two polygons may overlap.
        which: True squares all polygons, a list of class ids only those of these classes.

    Returns:
        The same rows and columns, MultiPolygons; `area_m2` is measured again, and `area_px` is
        still the area in pixels before simplification. No rows give no rows.

    Raises:
        JobError: buildingregulariser is not installed.

    Example:
        >>> layer = regularized(clean(polygons, Cleaning()), True)
    """
    require_library()
    wanted = np.full(len(polygons), which is not False)
    if not isinstance(which, bool):
        wanted = polygons["class_id"].isin(list(which)).to_numpy(bool)
    before = polygons.geometry.to_numpy()
    wanted[wanted] = ~_is_round(before[wanted])
    if not wanted.any():
        return polygons
    squared = before.copy()
    # a raster has one pixel size, and only the library's tolerances depend on it
    for rows in polygons[wanted].groupby("source", sort=False).indices.values():
        here = np.flatnonzero(wanted)[rows]
        tolerance = _tolerance(before[here], polygons["area_px"].to_numpy()[here], polygons.crs)
        squared[here] = _squared(before[here], tolerance)
    likeness = iou_of(before, squared)
    squared = np.where(likeness >= LEAST_IOU, squared, before)
    geometry = _without_new_overlaps(before, squared, likeness)
    if "area_m2" in polygons:
        polygons = polygons.assign(area_m2=ground_area_m2(geometry, polygons.crs))
    return polygons.set_geometry(geometry, crs=polygons.crs)


def _is_round(geometry: NDArray[np.object_]) -> NDArray[np.bool_]:
    radius = np.sqrt(shapely.area(geometry) / np.pi)
    circles = shapely.buffer(shapely.centroid(geometry), radius, quad_segs=16)
    return iou_of(geometry, circles) > ROUND_IOU


def _tolerance(geometry: NDArray[np.object_], area_px: NDArray[np.int64], crs: CRS) -> float:
    """How far, in map units, an outline may stray from a wall, for polygons of one raster."""
    pixel = np.sqrt(np.median(shapely.area(geometry) / np.maximum(area_px, 1)))
    metre = 1 / np.median(metres_per_unit(geometry, crs))
    return float(max(TOLERANCE_M * metre, TOLERANCE_PX * pixel))


def _squared(geometry: NDArray[np.object_], tolerance: float) -> NDArray[np.object_]:
    """Square each geometry; empty where the library returns nothing."""
    from buildingregulariser import regularize_geodataframe

    # near the origin: the library multiplies coordinates and would lose centimetres in Web Mercator
    origin = np.floor(shapely.bounds(geometry)[:, :2])
    near = [
        translate(shape, -x, -y) for shape, (x, y) in zip(geometry, origin.tolist(), strict=True)
    ]
    frame = gpd.GeoDataFrame({"row": np.arange(len(near))}, geometry=near)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about shapes that differ too much: LEAST_IOU handles them
        parts = regularize_geodataframe(
            frame,
            simplify_tolerance=tolerance,
            parallel_threshold=2 * tolerance,  # like its defaults, 0.5 and 1
            allow_circles=False,  # of 168 corners, which nobody wants to edit
            num_cores=1,  # more would start processes, which hang or restart the kernel
        )
    # the library splits multipolygons, and their parts may now touch
    squared = np.full(len(geometry), shapely.MultiPolygon(), dtype=object)
    for row, found in parts.groupby("row").indices.items():
        whole = shapely.union_all(shapely.make_valid(parts.geometry.to_numpy()[found]))
        squared[row] = translate(whole, *origin[row])
    return only_polygons(squared)


def _without_new_overlaps(
    before: NDArray[np.object_], squared: NDArray[np.object_], likeness: NDArray[np.float64]
) -> NDArray[np.object_]:
    """Take the squared shapes, except where one overlaps another by more than `before`.

    Of two such shapes, the one that squaring has changed more is restored. A part may grow on its
    whole, and stick out as far as a review accepts (`holds`).
    """
    geometry, changed = squared.copy(), squared != before
    while changed.any():
        here = np.flatnonzero(changed)
        one, other = shapely.STRtree(geometry).query(geometry[here], predicate="intersects")
        one = here[one]
        one, other = one[one != other], other[one != other]
        was, least_was = _shared(before, one, other)
        now, least = _shared(geometry, one, other)
        # for a part on its whole, what sticks out must not grow; for others, what they share
        nested = was >= INSIDE * least_was
        more = np.where(nested, (least - now) - (least_was - was), now - was)
        grown = (more > SLACK * least) & ~(nested & holds(now, least, least))
        one, other = one[grown], other[grown]
        if not len(one):
            break
        # at equal likeness the later row, so that the order in the tree does not matter
        first = np.where(changed[other], likeness[other], np.inf)
        yields = (likeness[one] < first) | ((likeness[one] == first) & (one > other))
        one, other = one[yields], other[yields]
        # one that yields to a shape that yields itself is checked again
        back = np.unique(one[~np.isin(other, one)])
        geometry[back], changed[back] = before[back], False
    return geometry


def _shared(
    geometry: NDArray[np.object_], one: NDArray[np.int64], other: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The area that each pair shares, and that of its smaller shape."""
    area = shapely.area(geometry)
    return common_area(geometry[one], geometry[other]), np.minimum(area[one], area[other])
