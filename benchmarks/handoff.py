"""The hand-off at scale: seconds to write 200,000 polygons, and for QGIS to open and review them.

    python benchmarks/handoff.py [--polygons 200000]

QGIS is timed by its own Python (Debian: python3-qgis), and left out where there is none.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from affine import Affine

from workbench.layer import qgis
from workbench.layer.files import read_batches, write_layer
from workbench.layer.report.map import MAP_PX, ShownLayer, draw_map, figure_png
from workbench.layer.report.tally import Tally, Topology, counted
from workbench.layer.schema import BATCH, as_layer

CRS = pyproj.CRS.from_epsg(32636)
LEFT, TOP, STEP, PER_TILE = 452_000.0, 35_000.0, 12.0, 16
REVIEW = """
import sys, time
from qgis.core import (
    QgsApplication, QgsExpression, QgsExpressionContext, QgsExpressionContextUtils, QgsProject
)
app = QgsApplication([], False); app.initQgis()
start = time.perf_counter()
assert QgsProject.instance().read(sys.argv[1])
print(time.perf_counter() - start)
(layer,) = QgsProject.instance().mapLayersByName("prelabels")
assert layer.featureCount() == int(sys.argv[2])
(accept,) = [a for a in layer.actions().actions() if a.name() == "Accept"]
context = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
feature, seconds = layer.getFeature(1), []
for _ in range(20):
    context.setFeature(feature)
    code = QgsExpression.replaceExpressionText(accept.command(), context)
    start = time.perf_counter()
    exec(code, {})
    seconds.append(time.perf_counter() - start)
    (feature,) = layer.getSelectedFeatures()
layer.rollBack()
print(sorted(seconds)[10])
QgsProject.instance().clear(); app.exitQgis()
"""


def main():
    """Write and open once, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--polygons", type=int, default=200_000)
    side = int(np.ceil(np.sqrt(parser.parse_args().polygons)))
    layer, tiles = polygons(side), tile_layer(side)
    n_points = shapely.get_num_coordinates(layer.geometry.array).sum()
    print(f"{len(layer)} polygons of {n_points / len(layer):.0f} vertices, {len(tiles)} tiles")
    print("| what | seconds | of it CPU |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start, busy = time.perf_counter(), time.process_time()
        tally, styles = Tally(tiles), qgis.styles({1: "object"})
        batches = [layer[at : at + BATCH] for at in range(0, len(layer), BATCH)]
        with Topology(folder) as topology:
            passing = counted(batches, tally.add, topology.add)
            files = write_layer(passing, lambda _: tiles, folder, styles=lambda: styles)
            what = "write GeoPackage, GeoJSON and GeoParquet, counted in passing"
            print(f"| {what} | {since(start, busy)} |", flush=True)
            start, busy = time.perf_counter(), time.process_time()
            tally.summary(), topology.table()
        shown = ShownLayer(
            lambda: read_batches(files.parquet, ("confidence",)), tally.by_confidence("scene"), CRS
        )
        figure_png(draw_map(*imagery(tiles), shown, tiles=tiles))
        print(f"| summary, checks and map of the report | {since(start, busy)} |", flush=True)
        start, busy = time.perf_counter(), time.process_time()
        project = folder / "review.qgz"
        qgis.write_project(
            project, gpkg=files.gpkg, rasters=[], crs=CRS, bounds=tuple(tiles.total_bounds),
            classes={1: "object"}, title="200,000", tiles=tiles,
        )  # fmt: skip
        print(f"| write the project | {since(start, busy)} |", flush=True)
        opened, accepted = open_in_qgis(project, len(layer))
        print(f"| QGIS opens the project | {opened:.2f} | |")
        print(f"| Accept, and go to the next label (median of 20) | {accepted:.3f} | |")


def since(start, busy):
    """Seconds by the clock and of the processor, as cells of a table."""
    return f"{time.perf_counter() - start:.1f} | {time.process_time() - busy:.1f}"


def polygons(side):
    """`side` × `side` polygons of 24 vertices, some with a hole."""
    rng = np.random.default_rng(1)
    x, y = (a.ravel() for a in np.meshgrid(np.arange(side), np.arange(side)))
    centres = shapely.points(LEFT + STEP * (x + 0.5), TOP - STEP * (y + 0.5))
    shapes = shapely.buffer(centres, rng.uniform(2, 5.5, side**2), quad_segs=6)
    shapes[::10] = shapely.difference(shapes[::10], shapely.buffer(centres[::10], 1, quad_segs=2))
    n, tile = len(shapes), tile_names(x // PER_TILE, y // PER_TILE)
    return as_layer(
        gpd.GeoDataFrame(
            {
                "id": np.char.add(tile + "/", np.arange(n).astype(str)),
                "confidence": rng.uniform(0.85, 1, n), "stability": rng.uniform(0.9, 1, n),
                "area_m2": shapely.area(shapes), "area_px": 1000, "source_tile": tile,
                "source": "scene", "n_tiles": 1, "at_edge": False,
            },
            geometry=shapes,
            crs=CRS,
        )
    )  # fmt: skip


def imagery(tiles):
    """Return grey imagery under the tiles, as a scene gives it."""
    left, _, right, top = tiles.total_bounds
    step = (right - left) / MAP_PX
    grey = np.full((MAP_PX, MAP_PX, 3), 90, np.uint8)
    return grey, np.ones((MAP_PX, MAP_PX), bool), Affine(step, 0, left, 0, -step, top)


def tile_names(col, row):
    """Name tiles as a run does."""
    return np.array([f"scene/r{r}c{c}" for r, c in zip(row, col, strict=True)])


def tile_layer(side):
    """Return tiles with `PER_TILE`² polygons each."""
    n, size = -(-side // PER_TILE), STEP * PER_TILE
    col, row = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(n)))
    x, y = LEFT + size * col, TOP - size * row
    return gpd.GeoDataFrame(
        {
            "tile": tile_names(col, row), "source": "scene", "tile_row": row, "tile_col": col,
            "status": "ok", "error": "", "n_candidates": 900, "n_polygons": PER_TILE**2,
            "seconds": 0.1,
        },
        geometry=shapely.box(x, y - size, x + size, y),
        crs=CRS,
    )  # fmt: skip


def open_in_qgis(project, n):
    """Seconds that `QgsProject.read` and a step of the review take, nan without QGIS."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PROJ"))}
    environment = kept | {"QT_QPA_PLATFORM": "offscreen", "GDAL_PAM_ENABLED": "NO"}
    command = ["/usr/bin/python3", "-c", REVIEW, str(project), str(n)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return float("nan"), float("nan")
    opened, accepted = map(float, done.stdout.split())
    return opened, accepted


if __name__ == "__main__":
    main()
