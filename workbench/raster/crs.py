"""Which CRS to work in, and how long a map unit is on the ground.

Areas in EPSG:3857 are true only at the equator, so every length and area that a user sees is
corrected by the local scale measured here. It comes from geodesics on the CRS's own ellipsoid:
`pyproj.Proj.get_factors` assumes a sphere in web mercator, which is wrong by up to 0.7 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

_EARTH_RADIUS_M = 6_371_000.0
_STEP = 5.0  # map units each way; the geodesic's own rounding (about 10 nm) stays below 1e-8


def metric_crs(crs: pyproj.CRS, lon: float, lat: float) -> pyproj.CRS:
    """The CRS to work in: `crs` itself if it is projected in metres, else UTM at the point.

    `lon`, `lat` are degrees on WGS 84; beyond 84° N and 80° S it is UPS instead of UTM.
    """
    if is_metric(crs):
        return crs
    if lat >= 84:
        return pyproj.CRS.from_epsg(32661)
    if lat < -80:
        return pyproj.CRS.from_epsg(32761)
    zone = int((lon + 180) % 360 // 6) + 1
    return pyproj.CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)


def is_metric(crs: pyproj.CRS) -> bool:
    """Whether `crs` is projected and both its horizontal axes are in metres."""
    # only the first two axes matter, not a height in feet
    axes = crs.axis_info[:2]
    return (
        crs.is_projected
        and len(axes) == 2
        and all(abs(axis.unit_conversion_factor - 1) < 1e-9 for axis in axes)
    )


def as_registered(crs: pyproj.CRS) -> pyproj.CRS:
    """Return the EPSG entry for the same CRS, with the name and code that GIS users know.

    Programs and files have their own texts for a CRS. Without such an entry it is returned as is.
    """
    epsg = crs.to_epsg()
    if epsg:
        known = pyproj.CRS.from_epsg(epsg)
        if known.equals(crs, ignore_axis_order=True):
            return known
    return crs


def is_same_on(bounds: ArrayLike, one: pyproj.CRS, other: pyproj.CRS) -> bool:
    """Whether coordinates mean the same place in both, to 1 cm at the corners of `bounds`.

    `bounds` is left, bottom, right, top. A CRS that was saved to a file may come back with another
    name and another datum (`+ellps=GRS80` as ETRS89), so comparing the two directly says little.
    """
    left, bottom, right, top = np.asarray(bounds, np.float64)
    corners = np.array([left, left, right, right]), np.array([bottom, top, bottom, top])
    try:
        moved = _transformer(one, other).transform(*corners)
    except pyproj.exceptions.ProjError:  # of another planet
        return False
    return bool(np.allclose(moved, corners, rtol=0, atol=0.01))


def is_earth(crs: pyproj.CRS) -> bool:
    """Whether `crs` is tied to a body of the Earth's size; false without any ellipsoid."""
    ellipsoid = crs.ellipsoid
    if ellipsoid is None:
        return False
    # Earth models differ by 0.1 %, the next planet in size (Venus) by 5 %
    return abs(ellipsoid.semi_major_metre / _EARTH_RADIUS_M - 1) < 0.01


def ground_scale(
    crs: pyproj.CRS, x: ArrayLike, y: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """True ground metres per map unit along x and along y, and m² per square map unit.

    `x`, `y` are map units (easting first) of one shape, which the results have too. NaN where the
    projection has no inverse. Not for CRSs in degrees, because a step is some metres.
    """
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    geod = crs.get_geod()
    if geod is None:
        raise ValueError(f"{crs.name} has no ellipsoid: ground distances are not defined")
    along_x, azimuth_x = _geodesic(crs, geod, x - _STEP, y, x + _STEP, y)
    along_y, azimuth_y = _geodesic(crs, geod, x, y - _STEP, x, y + _STEP)
    scale_x, scale_y = along_x / (2 * _STEP), along_y / (2 * _STEP)
    # the grid's axes need not be perpendicular on the ground (equal-area and oblique projections)
    across = np.atleast_1d(np.abs(np.sin(np.radians(azimuth_x - azimuth_y))))
    skew = across < 1 - 1e-7
    if skew.any():
        # near a pole north turns between the starts of the two steps: measure from one point
        x, y = np.atleast_1d(x)[skew], np.atleast_1d(y)[skew]
        _, azimuth_x = _geodesic(crs, geod, x, y, x + _STEP, y)
        _, azimuth_y = _geodesic(crs, geod, x, y, x, y + _STEP)
        across[skew] = np.abs(np.sin(np.radians(azimuth_x - azimuth_y)))
    return scale_x, scale_y, scale_x * scale_y * across.reshape(scale_x.shape)


def ground_area_m2(
    geometries: gpd.GeoSeries | NDArray[np.object_] | Sequence[BaseGeometry], crs: pyproj.CRS
) -> NDArray[np.float64]:
    """True ground areas in m², shape `(n,)`; missing and empty geometries have area 0.0.

    Planar area times the areal scale at the centroid: within 1e-5 of the geodesic area for
    objects up to some kilometres. Lines and points have no area.
    """
    shapes = np.asarray(geometries, dtype=object)
    areas = np.nan_to_num(shapely.area(shapes))
    solid = areas > 0
    if not solid.any():
        return areas
    centroids = shapely.centroid(shapes[solid])
    areas[solid] *= ground_scale(crs, shapely.get_x(centroids), shapely.get_y(centroids))[2]
    return areas


def to_lonlat(
    crs: pyproj.CRS, x: ArrayLike, y: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """WGS 84 longitude and latitude in degrees of map points (easting first).

    Outside the projection's domain they are inf.
    """
    lon, lat = _transformer(crs, pyproj.CRS.from_epsg(4326)).transform(
        np.asarray(x, np.float64), np.asarray(y, np.float64)
    )
    return np.asarray(lon), np.asarray(lat)


def from_lonlat(crs: pyproj.CRS, lon: float, lat: float) -> tuple[float, float]:
    """Return the map point of WGS 84 degrees; inf outside the projection's domain."""
    x, y = _transformer(pyproj.CRS.from_epsg(4326), crs).transform(lon, lat)
    return float(x), float(y)


def _geodesic(
    crs: pyproj.CRS,
    geod: pyproj.Geod,
    x0: NDArray[np.float64],
    y0: NDArray[np.float64],
    x1: NDArray[np.float64],
    y1: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Length in metres and azimuth in degrees of the geodesics between map points."""
    # the CRS's own geodetic CRS, not WGS 84: no datum shift, and it fits the ellipsoid of `geod`
    geodetic = crs.geodetic_crs
    if geodetic is None:
        raise ValueError(f"{crs.name} is not tied to the Earth: ground distances are not defined")
    degrees = np.degrees(geodetic.axis_info[0].unit_conversion_factor)  # 0.9 for CRSs in grads
    transformer = _transformer(crs, geodetic)
    lon0, lat0 = transformer.transform(x0, y0)
    lon1, lat1 = transformer.transform(x1, y1)
    ends = np.array([lon0, lat0, lon1, lat1], np.float64) * degrees
    ends[~np.isfinite(ends)] = np.nan
    azimuth, _, length = geod.inv(*ends)
    # the azimuth at the start of the step: over these few metres it turns by about 1e-6 degrees
    return np.asarray(length, np.float64), np.asarray(azimuth, np.float64)


@lru_cache(maxsize=64)
def _transformer(source: pyproj.CRS, target: pyproj.CRS) -> pyproj.Transformer:
    # pyproj gives each thread its own PROJ context inside one Transformer, so it can be shared
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


def crs_name(crs: CRS) -> str:
    """Name a CRS for programs: `EPSG:xxxx`, or its WKT if EPSG has no such system."""
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else crs.to_wkt()


def crs_short(crs: CRS) -> str:
    """Name a CRS for people in a few characters: `EPSG:xxxx`, or its name if EPSG has no such."""
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else str(crs.name)


def crs_title(crs: CRS) -> str:
    """Name a CRS for people, as in `EPSG:32633 (WGS 84 / UTM zone 33N)`."""
    epsg = crs.to_epsg()
    return f"EPSG:{epsg} ({crs.name})" if epsg else str(crs.name)
