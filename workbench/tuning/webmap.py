"""Scenes and polygons for a web map: small images and plain numbers in EPSG:3857."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import geopandas as gpd
import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import reproject
from rasterio.windows import Window

from workbench.errors import SceneError
from workbench.raster.scene import Scene

Bounds = tuple[float, float, float, float]  # left, bottom, right, top

_RADIUS_M = 6_378_137.0  # of the sphere of EPSG:3857
_WEB = pyproj.CRS.from_epsg(3857)
_QUALITY = 85

# rasterio sometimes warns about arrays that it warps, and Jupyter shows this below the last cell
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning, module="rasterio.warp")


@dataclass(frozen=True)
class Picture:
    """An image for a web map, transparent where nothing is valid.

    Rows and columns are evenly spaced in EPSG:3857, as Leaflet draws them between the corners.
    """

    url: str  # a data URL
    bounds: tuple[tuple[float, float], tuple[float, float]]  # (south, west), (north, east): degrees


@dataclass(frozen=True)
class WebOutlines:
    """Polygons as plain numbers, for drawing on a canvas with the non-zero rule.

    The rings of row 0 come first, then those of row 1, …; outer rings run counter-clockwise, holes
    clockwise, and none repeats its first vertex. Within 5 km of the origin the coordinates are
    exact to 1 mm.
    """

    origin: tuple[float, float]  # EPSG:3857
    coords: NDArray[np.float32]  # (n, 2) metres of EPSG:3857 from the origin, x to the east
    ring_sizes: NDArray[np.uint32]  # vertices of each ring
    rings: NDArray[np.uint32]  # rings of each row, those of all parts together


def mosaic(
    scenes: Sequence[Scene], bounds: Bounds, max_px: int, tell: Callable[[str], None]
) -> Picture | None:
    """Draw the part of scenes in `bounds` (EPSG:3857), the first on top; None if nothing shows.

    The longer side of `bounds` has `max_px` pixels; the image ends where the scenes end. A scene
    that cannot be read is left out. `tell` gets a sentence about each such scene and any damage.
    """
    left, bottom, right, top = bounds
    pixel = max(right - left, top - bottom) / max_px
    shown = [(scene, _in_pixels(web_bounds(scene), bounds, pixel)) for scene in scenes]
    shown = [(scene, part) for scene, part in shown if part.width > 0 and part.height > 0]
    if not shown:
        return None
    pieces = []
    for scene, part in shown:
        place = Affine.translation(left, top) @ Affine.scale(pixel, -pixel)
        place @= Affine.translation(part.col_off, part.row_off)
        try:
            pieces.append((part, _warped(scene, place, (part.height, part.width), tell)))
        except SceneError as error:
            tell(str(error))
    if not any(rgba[3].any() for _, rgba in pieces):
        return None
    part, rgba = pieces[0] if len(pieces) == 1 else _stacked(pieces)
    west, north = degrees_from_web(left + part.col_off * pixel, top - part.row_off * pixel)
    east, south = degrees_from_web(
        left + (part.col_off + part.width) * pixel, top - (part.row_off + part.height) * pixel
    )
    return Picture(_data_url(rgba), ((south, west), (north, east)))


def web_bounds(scene: Scene) -> Bounds:
    """The scene's bounds in EPSG:3857; infinite if they cannot be projected."""
    left, bottom, right, top = to_web(scene.crs).transform_bounds(*scene.bounds)
    return left, bottom, right, top


@lru_cache(maxsize=64)
def to_web(crs: pyproj.CRS) -> pyproj.Transformer:
    """Transformer from map coordinates, easting first, to EPSG:3857; threads may share it."""
    return pyproj.Transformer.from_crs(crs, _WEB, always_xy=True)


def web_from_degrees(lon: float, lat: float) -> tuple[float, float]:
    """EPSG:3857 of a point on WGS 84."""
    return _RADIUS_M * math.radians(lon), _RADIUS_M * math.asinh(math.tan(math.radians(lat)))


def degrees_from_web(x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude on WGS 84 of a point in EPSG:3857."""
    return math.degrees(x / _RADIUS_M), math.degrees(math.atan(math.sinh(y / _RADIUS_M)))


def outlines(geometry: gpd.GeoSeries) -> WebOutlines:
    """Return the rings of polygons and multipolygons in EPSG:3857; empty ones have none.

    No rows give empty arrays. Raises `ValueError` for other geometry.
    """
    shapes = shapely.orient_polygons(np.asarray(geometry.array))
    if shapely.is_missing(shapes).all():
        none = np.empty(0, np.uint32)
        return WebOutlines(
            (0.0, 0.0), np.empty((0, 2), np.float32), none, np.zeros(len(shapes), np.uint32)
        )
    kind, vertices, offsets = shapely.to_ragged_array(shapes, include_z=False)
    if kind not in (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON):
        raise ValueError(f"polygons expected, not {kind.name}")
    ring_ends, *owners = (np.asarray(each, np.int64) for each in offsets)
    first_ring = owners[0] if len(owners) == 1 else owners[0][owners[1]]
    kept = np.ones(len(vertices), np.bool_)
    kept[ring_ends[1:] - 1] = False
    vertices = vertices[kept]
    x, y = to_web(geometry.crs).transform(vertices[:, 0], vertices[:, 1])
    origin = (
        (float((x.min() + x.max()) / 2), float((y.min() + y.max()) / 2)) if len(x) else (0.0, 0.0)
    )
    return WebOutlines(
        origin,
        np.column_stack([x - origin[0], y - origin[1]]).astype(np.float32),
        (np.diff(ring_ends) - 1).astype(np.uint32),
        np.diff(first_ring).astype(np.uint32),
    )


def _in_pixels(part: Bounds, bounds: Bounds, pixel: float) -> Window:
    """The whole pixels of `bounds`, counted from its upper left corner, that `part` touches."""
    if not np.isfinite(part).all():
        return Window(0, 0, 0, 0)
    left, bottom, right, top = bounds
    first_col = math.floor((max(part[0], left) - left) / pixel + 1e-6)
    first_row = math.floor((top - min(part[3], top)) / pixel + 1e-6)
    end_col = math.ceil((min(part[2], right) - left) / pixel - 1e-6)
    end_row = math.ceil((top - max(part[1], bottom)) / pixel - 1e-6)
    return Window(first_col, first_row, max(0, end_col - first_col), max(0, end_row - first_row))


def _stacked(
    pieces: Sequence[tuple[Window, NDArray[np.uint8]]],
) -> tuple[Window, NDArray[np.uint8]]:
    """Stack images, the first on top."""
    windows = [part for part, _ in pieces]
    whole = rasterio.windows.union(windows)
    rgba = np.zeros((4, whole.height, whole.width), np.uint8)
    for part, piece in pieces:
        rows, cols = part.row_off - whole.row_off, part.col_off - whole.col_off
        there = rgba[:, rows : rows + part.height, cols : cols + part.width]
        # where two scenes meet, both cover part of a pixel: the larger part wins
        np.copyto(there, piece, where=piece[3] > there[3])
    return whole, rgba


def _warped(
    scene: Scene, place: Affine, shape: tuple[int, int], tell: Callable[[str], None]
) -> NDArray[np.uint8]:
    """RGBA `(4, h, w)` of a scene on a grid in EPSG:3857.

    It is read at about the size at which it is shown, then warped. For 2,000 × 2,000 pixels this
    took 100 + 140 ms; a WarpedVRT took 230 to 440 ms, without the stretch.
    """
    height, width = shape
    transformer = to_web(scene.crs)

    def in_scene(column: float, row: float) -> NDArray[np.float64]:
        x, y = transformer.transform(*(place @ (column, row)), direction="INVERSE")
        return np.array(~scene.transform @ (x, y))

    centre = in_scene(width / 2, height / 2)
    step = np.array([in_scene(width / 2 + 1, height / 2), in_scene(width / 2, height / 2 + 1)])
    scale = float(np.sqrt(abs(np.linalg.det(step - centre))))  # scene pixels in one pixel here
    left, top = place @ (0, 0)
    right, bottom = place @ (width, height)
    bounds = transformer.transform_bounds(left, bottom, right, top, direction="INVERSE")
    around = _window(scene, bounds, margin=2 * max(1.0, scale))
    if around is None or not rasterio.windows.intersect(around, scene.window):
        return np.zeros((4, height, width), np.uint8)
    window = around.intersection(scene.window)
    # near a pole the scale differs at the edges: never read many more pixels than are shown
    shrink = max(1.0, scale, max(window.width, window.height) / (3 * max(shape)))
    size = (math.ceil(window.height / shrink), math.ceil(window.width / shrink))
    rgb, valid = scene.view(window, size, tell)
    bands = np.concatenate([rgb.transpose(2, 0, 1), (valid * np.uint8(255))[None]])
    # without an alpha band the warp takes two thirds of the time
    opaque = window == around and valid.all()
    warped = np.full((4, height, width), 255 * opaque, np.uint8)
    n = 3 if opaque else 4
    reproject(
        bands[:n],
        warped[:n],
        src_transform=scene.window_transform(window)
        @ Affine.scale(window.width / size[1], window.height / size[0]),
        src_crs=rasterio.crs.CRS.from_wkt(scene.crs.to_wkt()),
        dst_transform=place,
        dst_crs=rasterio.crs.CRS.from_wkt(_WEB.to_wkt()),
        # pixels that are much enlarged should look like pixels
        resampling=Resampling.nearest if scale < 0.5 else Resampling.bilinear,
        src_alpha=0 if opaque else 4,
        dst_alpha=0 if opaque else 4,
    )
    return warped


def _window(scene: Scene, bounds: Bounds, margin: float) -> Window | None:
    """The window of whole pixels around bounds in the scene's CRS; None if they are infinite."""
    left, top = ~scene.transform @ (bounds[0], bounds[3])
    right, bottom = ~scene.transform @ (bounds[2], bounds[1])
    edges = np.array([left - margin, top - margin, right + margin, bottom + margin])
    if not np.isfinite(edges).all():
        return None
    first_col, first_row = np.floor(edges[:2]).astype(int).tolist()
    end_col, end_row = np.ceil(edges[2:]).astype(int).tolist()
    return Window(first_col, first_row, end_col - first_col, end_row - first_row)


def _data_url(rgba: NDArray[np.uint8]) -> str:
    """Encode an image. For 2,000 × 2,000 pixels JPEG takes 15 ms, WEBP 100 ms, PNG 260 ms."""
    buffer = io.BytesIO()
    opaque = bool((rgba[3] == 255).all())
    image = Image.fromarray(np.ascontiguousarray(rgba[: 3 if opaque else 4].transpose(1, 2, 0)))
    if opaque:
        image.save(buffer, "JPEG", quality=_QUALITY)
    else:  # method 0 is the fastest
        image.save(buffer, "WEBP", quality=_QUALITY, method=0)
    kind = "jpeg" if opaque else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
