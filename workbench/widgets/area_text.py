"""An area in words: its size, its tiles, and how much of it is left out."""

from __future__ import annotations

from collections.abc import Sequence

import geopandas as gpd
import pyproj
import shapely

from workbench._support.text import area_text
from workbench.errors import AOIError
from workbench.raster.aoi import load_aoi, parts_in
from workbench.raster.crs import ground_area_m2, to_lonlat
from workbench.raster.scene import Scene
from workbench.widgets.safe_html import paragraph
from workbench.widgets.session import Session

_EQUAL_AREA = 6933  # EPSG; for shares
_EARTH = pyproj.Geod(ellps="WGS84")
_WINDS = (
    "north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west",
)  # fmt: skip


def caption(session: Session) -> str:
    """Return the raster's name, the size of the area and its tiles."""
    assert session.area is not None
    scene, n = session.area.parts[0].scene, len(session.scenes)
    name = f"{scene.name} (1 of {n} rasters)" if n > 1 else scene.name
    text = session.forecast.text(session.area.n_tiles)
    return f"{name} · {area_text(area_m2(session))} · {text}"


def area_m2(session: Session) -> float:
    """Ground area of what will be segmented; where scenes overlap, it counts once."""
    assert session.area is not None
    aoi = session.area.aoi
    if aoi is None:
        aoi = shapely.union_all([s.window_polygon(s.window) for s in session.scenes])
    return float(ground_area_m2(shapely.get_parts(aoi), session.scenes[0].crs).sum())


def outside_text(session: Session) -> str:
    """Say how much of the AOI lies outside the scenes; empty if none does."""
    job, area = session.job, session.area
    if job.aoi is None or area is None or area.aoi is None:
        return ""
    given = gpd.GeoSeries([load_aoi(job.aoi).to_crs(4326).union_all()], crs=4326)
    inside = gpd.GeoSeries([area.aoi], crs=session.scenes[0].crs)
    whole, part = (
        float(each.segmentize(bend_step(each)).to_crs(_EQUAL_AREA).area.iloc[0])
        for each in (given, inside)
    )
    share = 1 - part / whole
    if share < 0.001:
        return ""
    much = f"{share:.0%}".replace("%", " %") if share >= 0.01 else "Less than 1 %"
    where = "raster" if len(session.scenes) == 1 else "rasters"
    return paragraph(
        f"{much} of the area lies outside the {where} and is left out.",
        "border-left: 4px solid var(--jp-warn-color1, #f57c00); padding-left: 8px",
    )


def is_missed(aoi: gpd.GeoSeries, scenes: Sequence[Scene]) -> bool:
    """Whether an AOI overlaps none of the scenes."""
    try:
        parts_in(scenes, aoi)
    except AOIError:
        return True
    return False


def missed_text(name: str, aoi: gpd.GeoSeries, scenes: Sequence[Scene]) -> str:
    """Say where an AOI that overlaps no scene lies, and where the scenes are, in plain words."""
    here = gpd.GeoSeries([s.window_polygon(s.window) for s in scenes], crs=scenes[0].crs)
    (x0, y0), (x1, y1) = (_middle(shapes) for shapes in (here, aoi))
    azimuth, _, metres = _EARTH.inv(x0, y0, x1, y1)
    raster = "the raster" if len(scenes) == 1 else "the rasters"
    return (
        f"{name} does not touch {raster}: it lies {length_text(metres)} to the "
        f"{_WINDS[round(azimuth / 45) % 8]}. Its middle is at {degrees_text(x1, y1)}, that of "
        f"{raster} at {degrees_text(x0, y0)}. Nothing was changed: choose another file, or check "
        "its CRS."
    )


def length_text(metres: float) -> str:
    """Return a length in metres or kilometres."""
    return f"{metres:,.0f} m" if metres < 1000 else f"{metres / 1000:,.0f} km"


def degrees_text(lon: float, lat: float) -> str:
    """Return a place in degrees, to about a metre."""
    north, east = "N" if lat >= 0 else "S", "E" if lon >= 0 else "W"
    return f"{abs(lat):.5f}° {north}, {abs(lon):.5f}° {east}"


def _middle(shapes: gpd.GeoSeries) -> tuple[float, float]:
    """Longitude and latitude of the middle of some shapes."""
    left, bottom, right, top = shapes.total_bounds.tolist()
    lon, lat = to_lonlat(shapes.crs, (left + right) / 2, (bottom + top) / 2)
    return float(lon), float(lat)


def bend_step(shapes: gpd.GeoSeries) -> float:
    """Longest segment for lines that are straight in one CRS and bent in another."""
    left, bottom, right, top = shapes.total_bounds
    return float(max(right - left, top - bottom) / 50)
