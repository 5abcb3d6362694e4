"""The area of interest: read, checked, and the part of it that lies in each scene."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from shapely.affinity import translate

from workbench._support.secrets import without_secrets
from workbench.errors import AOIError
from workbench.raster.crs import crs_title, is_earth
from workbench.raster.scene import Scene
from workbench.raster.vectors import read_vectors

_log = logging.getLogger(__name__)

_SOLID = ("Polygon", "MultiPolygon")
FARTHEST = 1e9  # in no unit of any CRS is Earth that large


def load_aoi(aoi: str | Mapping[str, Any]) -> gpd.GeoSeries:
    """Read an AOI from a vector file, or take a GeoJSON geometry in EPSG:4326.

    Args:
        aoi: path or URL of a vector file in any CRS (`file.gpkg|layername=aoi` names one layer of
            several), or a GeoJSON geometry, feature or collection.

    Returns:
        Its polygons, made valid, in the CRS of the file. Those in collections, too. What encloses
        no area is left out, and a warning is logged that counts it.

    Raises:
        AOIError: if it has no polygons, no CRS that fits its coordinates, or several layers of
            polygons.

    Example:
        >>> load_aoi("area.gpkg").crs.name
    """
    if isinstance(aoi, Mapping):
        return _geojson_aoi(aoi)
    what = f"AOI {without_secrets(aoi)}"
    geometry = read_vectors(aoi, what, AOIError, columns=()).geometry
    return _polygons_of(geometry, what)


def parts_in(scenes: Sequence[Scene], aoi: gpd.GeoSeries) -> list[shapely.Geometry]:
    """Return the part of the AOI in each scene, in the scene's CRS; empty if there is none.

    Raises `AOIError` if the AOI meets no scene at all.
    """
    parts = [_part_in(scene, aoi) for scene in scenes]
    if not any(shapely.area(parts) > 0):
        raise AOIError(_outside(aoi, scenes))
    return parts


def _geojson_aoi(aoi: Mapping[str, Any]) -> gpd.GeoSeries:
    features = aoi.get("features", [aoi])
    try:
        shapes = [shapely.geometry.shape(f.get("geometry", f)) for f in features]
    except Exception as error:  # shapely checks nothing: any error may come
        raise AOIError(
            f"AOI is not a GeoJSON geometry: {error!r}. Give a Polygon or MultiPolygon in degrees, "
            "or the path of a vector file."
        ) from error
    return _polygons_of(gpd.GeoSeries(shapes, crs=4326), "AOI (GeoJSON)")


def _polygons_of(geometry: gpd.GeoSeries, what: str) -> gpd.GeoSeries:
    missing = geometry.isna() | geometry.is_empty
    n_empty = int(missing.sum())
    geometry = geometry[~missing]
    if geometry.crs.is_engineering or not is_earth(geometry.crs):
        raise AOIError(
            f"{what} is in a local CRS ({geometry.crs.name}) with no known place on Earth. Save it "
            "with the CRS that its coordinates are in."
        )
    if not (np.abs(shapely.get_coordinates(geometry)) < FARTHEST).all():
        raise AOIError(
            f"{what} has coordinates that are not finite, or not on Earth. Draw it again."
        )
    polygons, others = _solid(geometry)
    if polygons.empty:
        found = ", ".join(sorted(set(geometry.geom_type))) or "nothing"
        raise AOIError(f"{what} has no polygons ({found}). Draw the area as a polygon.")
    if n_empty:
        others["feature without geometry"] = n_empty
    if others:
        counted = ", ".join(f"{n} × {kind}" for kind, n in sorted(others.items()))
        _log.warning("%s: left out, because it encloses no area: %s.", what, counted)
    x0, y0, x1, y1 = polygons.total_bounds
    if polygons.crs.is_geographic and (x0 < -181 or x1 > 361 or y0 < -91 or y1 > 91):
        raise AOIError(
            f"{what}: bounds {_bounds((x0, y0, x1, y1))} are not degrees, but its CRS is "
            f"{crs_title(polygons.crs)}. GeoJSON without a CRS means EPSG:4326: save it with "
            "the CRS that its coordinates are in."
        )
    return polygons


def _solid(geometry: gpd.GeoSeries) -> tuple[gpd.GeoSeries, Counter[str]]:
    """The polygons in geometry, valid, also those in collections; and how many others there are."""
    parts = _without_collections(geometry)
    solid = parts.geom_type.isin(_SOLID)
    # where a polygon is folded, making it valid may leave a line beside it
    valid = _without_collections(parts[solid].make_valid())
    return valid[valid.geom_type.isin(_SOLID)], Counter(parts[~solid].geom_type)


def _without_collections(geometry: gpd.GeoSeries) -> gpd.GeoSeries:
    while (collections := geometry.geom_type == "GeometryCollection").any():  # may be nested
        parts = geometry[collections].explode(ignore_index=True)
        parts = parts[~parts.is_empty]  # an empty collection would come back for ever
        geometry = gpd.GeoSeries([*geometry[~collections], *parts], crs=geometry.crs)
    return geometry


def _part_in(scene: Scene, aoi: gpd.GeoSeries) -> shapely.Geometry:
    """Return the part of the AOI that lies in the scene, in the scene's CRS; empty if none does.

    Far from the scene, the scene's CRS may map nothing, so the AOI is first cut in its own CRS.
    """
    to_aoi = pyproj.Transformer.from_crs(scene.crs, aoi.crs, always_xy=True)
    west, south, east, north = to_aoi.transform_bounds(*scene.bounds)
    if not np.isfinite([west, south, east, north]).all():
        return shapely.Polygon()
    if aoi.crs.is_geographic and east < west:  # across the antimeridian
        east += 360
    # edges bend between CRSs: some margin, and many vertices
    margin = max(east - west, north - south) / 50
    box = shapely.box(west - margin, south - margin, east + margin, north + margin)
    # in degrees an AOI may run from -180 or from 0
    turns = (-360, 0, 360) if aoi.crs.is_geographic else (0,)
    near = aoi.union_all().intersection(shapely.union_all([translate(box, dx) for dx in turns]))
    bent = gpd.GeoSeries([shapely.segmentize(near, margin)], crs=aoi.crs).to_crs(scene.crs)
    return bent.make_valid().iloc[0].intersection(scene.window_polygon(scene.window))


def _outside(aoi: gpd.GeoSeries, scenes: Sequence[Scene]) -> str:
    scene, others = scenes[0], len(scenes) - 1
    name = Path(scene.source).name + (f" (nor {others} other rasters)" if others else "")
    return (
        f"AOI does not intersect {name}: AOI bounds {_bounds(aoi.to_crs(scene.crs).total_bounds)}, "
        f"raster bounds {_bounds(scene.bounds)}, both in {crs_title(scene.crs)}. Draw it inside "
        "the raster."
    )


def _bounds(bounds: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.7g}" for value in bounds) + ")"
