"""A review to be done in the desktop: bright roofs on a field, and labels that are right or not."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine

from workbench.layer.files import write_layer
from workbench.layer.qgis import ProjectRaster, styles, write_project
from workbench.layer.schema import as_layer

UTM = pyproj.CRS.from_epsg(32636)
LEFT, TOP = 452_000.0, 35_000.0
CLASSES = {1: "roof", 2: "tin roof", 3: "road"}
TILE, N = 100.0, 2  # metres, tiles a side
STEP = 12.5  # metres between labels: 64 in each tile


def place(row: int, column: int, side: float = 6.0) -> shapely.Polygon:
    x, y = LEFT + 3 + STEP * column, TOP - 3 - STEP * row
    return shapely.box(x, y - side, x + side, y)


def labels(n: int) -> gpd.GeoDataFrame:
    """The first `n` of 256 labels, row by row; every third has no roof below it.

    The first two share an edge. The labels 2 and 3 overlap.
    """
    places = [divmod(i, 16) for i in range(n)]
    shapes = [place(*where) for where in places]
    if n > 3:
        shapes[1] = shapely.box(LEFT + 9, TOP - 9, LEFT + 15, TOP - 3)  # beside the first
        shapes[3] = shapes[3].union(shapely.box(LEFT + 32, TOP - 7, LEFT + 42, TOP - 5))
    tile = [f"scene/r{row // 8}c{column // 8}" for row, column in places]
    return as_layer(
        gpd.GeoDataFrame(
            {
                "id": [f"{name}/{i}" for i, name in enumerate(tile)],
                "class_id": None,
                "status": "unreviewed",
                "confidence": [0.6 + 0.3 * (i % 3 > 0) + i / 10_000 for i in range(n)],
                "stability": 0.95,
                "area_m2": shapely.area(shapes),
                "area_px": 100,
                "source_tile": tile,
                "source": "scene",
                "n_tiles": 1,
                "at_edge": False,
            },
            geometry=shapes,
            crs=UTM,
        )
    )


def tiles() -> gpd.GeoDataFrame:
    cells = [(row, col) for row in range(N) for col in range(N)]
    boxes = [
        shapely.box(
            LEFT + TILE * col, TOP - TILE * (row + 1), LEFT + TILE * (col + 1), TOP - TILE * row
        )
        for row, col in cells
    ]
    rows = {
        "tile": [f"scene/r{row}c{col}" for row, col in cells],
        "source": "scene",
        "tile_row": [row for row, _ in cells],
        "tile_col": [col for _, col in cells],
        "status": "ok",
        "error": "",
        "n_candidates": 64,
        "n_polygons": 64,
        "seconds": 1.0,
    }
    return gpd.GeoDataFrame(rows, geometry=boxes, crs=UTM)


def raster(path: Path, layer: gpd.GeoDataFrame) -> Path:
    """Paint a checked roof below two of three labels, 0.25 m a pixel."""
    size = round(N * TILE * 4)
    rng = np.random.default_rng(0)
    pixels = rng.integers(70, 110, (3, size, size)).astype("uint8")
    pixels[1] += 25
    for i, shape in enumerate(layer.geometry):
        if i % 3 == 0:
            continue
        x0, y0, x1, y1 = shape.bounds
        rows = slice(round((TOP - y1) * 4), round((TOP - y0) * 4))
        columns = slice(round((x0 - LEFT) * 4), round((x1 - LEFT) * 4))
        roof = pixels[:, rows, columns]
        checks = (np.indices(roof.shape[1:]).sum(0) // 3) % 2
        roof[0], roof[1], roof[2] = 150 + 60 * checks, 110 + 60 * checks, 90 + 60 * checks
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8", crs=UTM,
        transform=Affine(0.25, 0, LEFT, 0, -0.25, TOP),
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


def hand_off(folder: Path, n: int = 256, *, planar: bool = False) -> Path:
    """Write a run folder's files for QGIS, and return the project."""
    folder.mkdir(parents=True, exist_ok=True)
    layer = labels(n)
    ortho = raster(folder / "scene.tif", layer)
    files = write_layer([layer], lambda _: tiles(), folder, styles=lambda: styles(CLASSES, planar))
    project = folder / "review.qgz"
    write_project(
        project, gpkg=files.gpkg, rasters=[ProjectRaster(ortho, "scene", UTM, (1, 2, 3))],
        crs=UTM, bounds=(LEFT, TOP - N * TILE, LEFT + N * TILE, TOP), classes=CLASSES,
        title="review", tiles=tiles(), planar=planar,
    )  # fmt: skip
    return project
