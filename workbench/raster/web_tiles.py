"""Web tiles as a raster: `https://…/{z}/{x}/{y}.png`, cut to the tiles around an area."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import geopandas as gpd
import pooch

from workbench.errors import SceneError

_HALF = 20037508.342789244  # metres of EPSG:3857 from its centre to its edge
_TILE_PX = 256
_FINEST = 24
_ALIGNED = 8  # tiles at whose multiples a raster begins: an area may be redrawn a little
_CONNECTIONS = 2  # at once: many servers are run by volunteers


def is_web_tiles(name: str) -> bool:
    """Whether a source is the address of web tiles."""
    return name.startswith(("http://", "https://")) and "{z}" in name


def is_map_service(name: str) -> bool:
    """Whether a source is a map of the whole world, of which a run needs to know the part."""
    return is_web_tiles(name) or name.startswith(("WMTS:", "WMS:", "<GDAL_WMS"))


def cut_to_area(name: str, aoi: gpd.GeoSeries, resolution_m: float | None) -> str:
    """Name the tiles around an area: `…/{y}.png|zoom=19|tiles=…`, which stands for one raster.

    The zoom is that of the name (`…/{y}.png|zoom=19`), or the first that is as fine as
    `resolution_m`. Raises `SceneError` if there is neither.
    """
    url, options = _parts(name)
    if "{-y}" in url or not ("{x}" in url and "{y}" in url):
        raise SceneError(
            f"{name} is not an address of web tiles: it needs {{z}}, {{x}} and {{y}}, with {{y}} "
            "counted from the north. For other services give GDAL's name or XML file."
        )
    west, south, east, north = aoi.to_crs(3857).total_bounds
    lat = math.degrees(math.atan(math.sinh((south + north) / 2 / _HALF * math.pi)))
    if "zoom" in options:
        zoom = options["zoom"]
        if not zoom.isdecimal() or int(zoom) > _FINEST:
            raise SceneError(f"{name}: zoom {zoom} is not a whole number from 0 to {_FINEST}.")
        level = int(zoom)
    elif resolution_m is not None:
        coarsest = 2 * _HALF / _TILE_PX * math.cos(math.radians(lat))
        level = min(_FINEST, max(0, math.ceil(math.log2(coarsest / resolution_m) - 1e-6)))
    else:
        raise SceneError(
            f"{name}: at which zoom? Add it to the address, for example {url}|zoom=19, or set "
            "resolution_m."
        )
    size = 2 * _HALF / 2**level
    edges = (west + _HALF, _HALF - north, east + _HALF, _HALF - south)
    left, top = (int(edge / size) // _ALIGNED * _ALIGNED for edge in edges[:2])
    right, bottom = (
        min(2**level, -(-math.ceil(edge / size) // _ALIGNED) * _ALIGNED) for edge in edges[2:]
    )
    more = {"zoom": str(level), "tiles": f"{left},{top},{right},{bottom}"}
    return "|".join([url, *(f"{key}={value}" for key, value in (options | more).items())])


def given_attribution(name: str) -> str:
    """Whom the imagery of a map service is to be attributed to, by hand: `…|attribution=© …`."""
    return _parts(name)[1].get("attribution", "") if is_map_service(name) else ""


def without_attribution(name: str) -> str:
    """The name of a WMTS or WMS as GDAL knows it."""
    return re.sub(r"\|attribution=[^|]*", "", name) if is_map_service(name) else name


def document(name: str) -> str:
    """The XML by which GDAL opens tiles that `cut_to_area` has named."""
    url, options = _parts(name)
    try:
        level = int(options["zoom"])
        left, top, right, bottom = map(int, options["tiles"].split(","))
    except (KeyError, ValueError):
        raise SceneError(
            f"{name} can be opened only with the part that is wanted: set aoi."
        ) from None
    size = 2 * _HALF / 2**level
    root = ElementTree.Element("GDAL_WMS")
    service = ElementTree.SubElement(root, "Service", name="TMS")
    address = re.sub(r"\{([zxy])\}", r"${\1}", url.replace("{s}", "a").replace("{r}", ""))
    ElementTree.SubElement(service, "ServerUrl").text = address
    window = ElementTree.SubElement(root, "DataWindow")
    for tag, value in {
        "UpperLeftX": left * size - _HALF, "UpperLeftY": _HALF - top * size,
        "LowerRightX": right * size - _HALF, "LowerRightY": _HALF - bottom * size,
        "TileLevel": level, "TileX": left, "TileY": top,
        "SizeX": (right - left) * _TILE_PX, "SizeY": (bottom - top) * _TILE_PX,
        "YOrigin": "top",
    }.items():  # fmt: skip
        ElementTree.SubElement(window, tag).text = (
            repr(value) if isinstance(value, float) else str(value)
        )
    cache = Path(os.environ.get("SAM_WORKBENCH_CACHE") or pooch.os_cache("sam-workbench"))
    for tag, value in {
        "Projection": "EPSG:3857", "BlockSizeX": _TILE_PX, "BlockSizeY": _TILE_PX,
        "BandsCount": 4, "OverviewCount": 0,  # other zooms may show another date, or nothing
        "MaxConnections": _CONNECTIONS, "Timeout": 60, "UserAgent": "sam-workbench",
        "ZeroBlockHttpCodes": "204,404",
    }.items():  # fmt: skip
        ElementTree.SubElement(root, tag).text = str(value)
    element = ElementTree.SubElement(root, "Cache")
    ElementTree.SubElement(element, "Path").text = str(cache / "tiles")
    return ElementTree.tostring(root, encoding="unicode")


def _parts(name: str) -> tuple[str, dict[str, str]]:
    url, *options = name.split("|")
    return url, dict(option.partition("=")[::2] for option in options)
