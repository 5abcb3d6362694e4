"""Rasters of three rectangles on any grid, and whether a scene shows them in their place."""

from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from workbench.raster.scene import Scene

WIDTH, HEIGHT = 240, 160
NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 40_000)
BACKGROUND = (40, 50, 60)
RECTANGLES = {  # colour: column, row, width, height
    (250, 20, 30): (20, 15, 60, 30),
    (20, 240, 40): (150, 20, 40, 70),
    (30, 60, 230): (60, 100, 90, 40),
}


def three_rectangles() -> NDArray[np.uint8]:
    """`(3, HEIGHT, WIDTH)`."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = BACKGROUND
    for colour, (column, row, width, height) in RECTANGLES.items():
        image[row : row + height, column : column + width] = colour
    return image.transpose(2, 0, 1)


def write(
    path: Path,
    image: NDArray,
    crs: str | None = "EPSG:32636",
    transform: Affine | None = NORTH_UP,
    colours: tuple[str, ...] | None = None,
    gcps: list[GroundControlPoint] | None = None,
    mask: NDArray | None = None,
    palette: dict[int, tuple[int, ...]] | None = None,
    **profile: object,
) -> Path:
    image = np.atleast_3d(image.T).T if image.ndim == 2 else image
    count, height, width = image.shape
    place = {"crs": crs} if gcps is None else {"gcps": gcps, "crs": crs}
    if transform is not None and gcps is None:
        place["transform"] = transform
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", width=width, height=height, count=count,
            dtype=image.dtype, **place, **profile,
        ) as target,
    ):  # fmt: skip
        if colours:
            target.colorinterp = [ColorInterp[name] for name in colours]
        if palette:
            target.write_colormap(1, palette)
        target.write(image)
        if mask is not None:
            target.write_mask(mask)
    return path


def whole(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return scene.read(scene.window)


def assert_rectangles_in_place(scene: Scene, source_crs: str, transform: Affine) -> None:
    """Each rectangle has its place (to 0.15 px) and its size (to 2 %) on the scene's map."""
    to_scene = pyproj.Transformer.from_crs(source_crs, scene.crs, always_xy=True)
    rgb, valid = whole(scene)
    # the area that one source pixel takes on the scene's map
    corners = transform @ (np.array([0, 1, 1, 0]) * WIDTH, np.array([0, 0, 1, 1]) * HEIGHT)
    footprint = shapely.Polygon(np.transpose(to_scene.transform(*corners)))
    cell = footprint.area / (WIDTH * HEIGHT)
    pixel = abs(scene.transform.a * scene.transform.e)
    assert valid.sum() * pixel == pytest.approx(footprint.area, rel=0.03)
    rows, columns = np.mgrid[: scene.height, : scene.width] + 0.5
    for colour, (column, row, width, height) in RECTANGLES.items():
        # how much of each pixel is the rectangle: bilinear resampling mixes at the edges
        towards = np.subtract(colour, BACKGROUND)
        share = np.clip((rgb - np.array(BACKGROUND)) @ towards / (towards @ towards), 0, 1)
        assert share.sum() * pixel == pytest.approx(width * height * cell, rel=0.02)
        centre = scene.transform @ (
            (columns * share).sum() / share.sum(),
            (rows * share).sum() / share.sum(),
        )
        expected = to_scene.transform(*(transform @ (column + width / 2, row + height / 2)))
        assert np.hypot(*np.subtract(centre, expected)) < 0.15 * np.sqrt(pixel)


def rotated(degrees: float) -> Affine:
    return Affine.translation(500_000, 40_000) @ Affine.rotation(degrees) @ Affine.scale(0.5, -0.5)


GEOGRAPHIC = Affine(4.5e-6, 0, 10.0, 0, -4.5e-6, 52.0)
GRIDS = {
    "north-up": ("EPSG:32636", NORTH_UP),
    "south-up": ("EPSG:32636", Affine(0.5, 0, 500_000, 0, 0.5, 40_000)),
    "mirrored": ("EPSG:32636", Affine(-0.5, 0, 500_000, 0, -0.5, 40_000)),
    "rotated by 30°": ("EPSG:32636", rotated(30)),
    "rotated by 90°": ("EPSG:32636", rotated(90)),
    "rotated by 200°": ("EPSG:32636", rotated(200)),
    "sheared": ("EPSG:32636", rotated(10) @ Affine.shear(15)),
    "geographic": ("EPSG:4326", GEOGRAPHIC),
    "geographic, south-up": ("EPSG:4326", Affine(4.5e-6, 0, 10.0, 0, 4.5e-6, 52.0)),
    "geographic, rotated": (
        "EPSG:4326",
        Affine.translation(36.0, 0.5) @ Affine.rotation(25) @ Affine.scale(4.5e-6, -4.5e-6),
    ),
    "feet": ("EPSG:2263", Affine(1.5, 0, 984_000, 0, -1.5, 200_000)),
    "southern": ("EPSG:4326", Affine(4.5e-6, 0, 115.2, 0, -4.5e-6, -8.6)),
    "web mercator": ("EPSG:3857", Affine(0.8, 0, 1_113_000, 0, -0.8, 8_399_000)),
    "Swiss": ("EPSG:2056", Affine(0.5, 0, 2_690_000, 0, -0.5, 1_234_000)),
    "Dutch, south-up": ("EPSG:28992", Affine(0.25, 0, 127_000, 0, 0.25, 428_000)),
    "NAD27, geographic": ("EPSG:4267", Affine(4.5e-6, 0, -90, 0, -4.5e-6, 40)),
}
