"""Names that are HTML, for whatever a file can name."""

from pathlib import Path

import pyproj
import rasterio

MARKUP = "<img src=x onerror=alert(1)>"


def name_crs(path: Path, name: str) -> Path:
    """Give a raster a metric CRS that no registry knows, with this name."""
    known = "+proj=tmerc +lon_0=15.1 +k=0.9996 +x_0=500000 +ellps=GRS80 +units=m"
    wkt = pyproj.CRS.from_proj4(known).to_wkt().replace('"unknown"', f'"{name}"', 1)
    with rasterio.open(path, "r+") as file:
        file.crs = rasterio.crs.CRS.from_wkt(wkt)
    return path
