"""Polygons in degrees that cross 180° or hold a pole, as RFC 7946 wants them."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.errors import GEOSException

from workbench.layer.schema import as_multi

_WORLD = shapely.box(-180, -90, 180, 90)
_VERTICES = 256  # on each side of a polygon: near a pole, a straight line on the map is none here


def cut_at_antimeridian(
    lonlat: NDArray[np.object_], projected: gpd.GeoSeries
) -> NDArray[np.object_]:
    """Cut polygons that cross 180° in pieces; leave the others alone.

    `lonlat` is `projected` in EPSG:4326. A polygon around a pole runs along 180° and the pole. A
    polygon that GEOS cannot cut is left as it is.
    """
    west, _, east, _ = shapely.bounds(lonlat).T
    across = np.flatnonzero(east - west > 180)
    if not len(across):
        return lonlat
    lonlat = lonlat.copy()
    whole = projected.iloc[across]
    sides = np.ptp(shapely.bounds(whole.to_numpy()).reshape(-1, 2, 2), axis=1).max(axis=1)
    dense = whole.segmentize(np.maximum(sides, 1e-9) / _VERTICES).to_crs(4326)
    for index, polygon in zip(across, dense, strict=True):
        try:
            lonlat[index] = _cut(polygon)
        except GEOSException:
            continue
    return as_multi(lonlat)


def _cut(polygon: shapely.MultiPolygon) -> shapely.Geometry:
    parts = []
    for part in shapely.get_parts(polygon):
        holes = [_inside(ring) for ring in part.interiors]
        parts.append(shapely.difference(_inside(part.exterior), shapely.union_all(holes)))
    cut = shapely.get_parts(shapely.union_all(parts))
    return shapely.multipolygons(cut[shapely.get_type_id(cut) == shapely.GeometryType.POLYGON])


def _inside(ring: shapely.LinearRing) -> shapely.Geometry:
    """What lies inside of a ring, from -180° to 180°; inside of one around a pole lies the pole."""
    lon, lat = shapely.get_coordinates(ring).T
    steps = (np.diff(lon) + 180) % 360 - 180  # the short way round
    lon = lon[0] + np.append(0, np.cumsum(steps))
    if abs(lon[-1] - lon[0]) > 180:
        pole = np.copysign(90.0, lat.mean())
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    area = shapely.make_valid(shapely.polygons(np.column_stack([lon, lat])))
    first = round(lon.mean() / 360)
    turns: list[Any] = [
        shapely.transform(area, lambda at, turn=turn: at + [360 * (turn - first), 0])
        for turn in (-1, 0, 1)
    ]
    return shapely.intersection(shapely.union_all(turns), _WORLD)
