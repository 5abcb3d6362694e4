"""What an area amounts to, in words: its size, its tiles, and what of it is left out."""

from __future__ import annotations

import geopandas as gpd
import shapely

from workbench.raster.aoi import load_aoi
from workbench.raster.crs import ground_area_m2
from workbench.widgets.safe_html import paragraph
from workbench.widgets.session import Session

_EQUAL_AREA = 6933  # EPSG; for shares


def caption(session: Session) -> str:
    """Return the raster's name, the size of the area and its tiles."""
    assert session.area is not None
    scene, n = session.area.parts[0].scene, len(session.scenes)
    name = f"{scene.name} (1 of {n} rasters)" if n > 1 else scene.name
    text = session.forecast.text(session.area.n_tiles)
    return f"{name} · {size_text(area_m2(session))} · {text}"


def area_m2(session: Session) -> float:
    """Ground area of what will be segmented; where scenes overlap, it counts once."""
    assert session.area is not None
    aoi = session.area.aoi
    if aoi is None:
        aoi = shapely.union_all([s.window_polygon(s.window) for s in session.scenes])
    return float(ground_area_m2(shapely.get_parts(aoi), session.scenes[0].crs).sum())


def size_text(area_m2: float) -> str:
    """Return an area in m², hectares or km²."""
    if area_m2 < 10_000:
        return f"{area_m2:,.0f} m²"
    return f"{area_m2 / 1e4:,.2f} ha" if area_m2 < 1e6 else f"{area_m2 / 1e6:,.2f} km²"


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


def bend_step(shapes: gpd.GeoSeries) -> float:
    """Longest segment for lines that are straight in one CRS and bent in another."""
    left, bottom, right, top = shapes.total_bounds
    return float(max(right - left, top - bottom) / 50)
