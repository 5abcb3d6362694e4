"""Shapes of an area as the drawing tools of the map have them: GeoJSON features in degrees."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

_CLOSE = 1e-6  # degrees: the browser rounds to six decimals
STYLE = {"color": "#d500f9", "weight": 2, "fillColor": "#d500f9", "fillOpacity": 0.02}


def straightened(
    features: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return GeoJSON features; a rectangle that a dragged corner has skewed becomes one again.

    `before` are the features before the drag: the browser does not tell which polygons were drawn
    as rectangles.
    """
    rectangles = [corners for corners in map(_corners, before) if _is_rectangle(corners)]
    return [_straightened(each, rectangles) for each in features]


def geometry_of(features: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Unite the polygons of GeoJSON features; None if they have no area."""
    shapes = [shapely.geometry.shape(each["geometry"]) for each in features]
    # polygons may cross themselves and each other
    united = shapely.set_precision(shapely.union_all(shapely.make_valid(shapes)), 1e-7)
    parts = [part for part in shapely.get_parts(united) if part.area > 0]
    if not parts:
        return None
    return geojson_of(parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts))


def _straightened(
    each: dict[str, Any], rectangles: Sequence[NDArray[np.float64]]
) -> dict[str, Any]:
    corners = _corners(each)
    if len(corners) != 4 or _is_rectangle(corners):
        return each
    for old in rectangles:
        moved = np.flatnonzero((np.abs(corners - old) > _CLOSE).any(axis=1))
        if len(moved) == 1:
            corner, opposite = corners[moved[0]], corners[moved[0] - 2]
            return drawn_feature(shapely.box(*np.minimum(corner, opposite),
                                              *np.maximum(corner, opposite)))  # fmt: skip
    return each


def _corners(each: Mapping[str, Any]) -> NDArray[np.float64]:
    """Longitude and latitude of a polygon's vertices, `(n, 2)`; none if it has holes."""
    geometry = each["geometry"]
    if geometry["type"] != "Polygon" or len(geometry["coordinates"]) != 1:
        return np.empty((0, 2))
    return np.array(geometry["coordinates"][0], np.float64)[:-1, :2]


def _is_rectangle(corners: NDArray[np.float64]) -> bool:
    if len(corners) != 4:
        return False
    same = np.abs(corners - np.roll(corners, -1, axis=0)) <= _CLOSE
    # the sides follow meridians and parallels in turn
    return bool((same[:, 0] == ~same[:, 1]).all() and (same[0] != same[1]).all())


def drawn_feature(shape: shapely.Polygon) -> dict[str, Any]:
    """Return a polygon in degrees in the format of the drawing tools."""
    properties = {"type": "polygon", "style": STYLE}
    return {"type": "Feature", "properties": properties, "geometry": geojson_of(shape)}


def parts_of(aoi: gpd.GeoSeries) -> list[shapely.Polygon]:
    """The polygons of an AOI in degrees, rounded to 1 cm, without overlaps."""
    united = shapely.set_precision(aoi.union_all(), 1e-7)
    return [part for part in shapely.get_parts(united) if part.area > 0]


def geojson_of(shape: shapely.Geometry) -> dict[str, Any]:
    """Return a geometry as GeoJSON, outer rings counter-clockwise."""
    geometry: dict[str, Any] = json.loads(str(shapely.to_geojson(shapely.orient_polygons(shape))))
    return geometry
