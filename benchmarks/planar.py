"""Memory and time of a layer without overlaps, in one piece and in parts.

    python benchmarks/planar.py [--raster RASTER] [--tiles 3 10 30 100] [--whole-up-to 10]

The labels of one tile of a raster (default: a made one; model `classic`) are repeated side by side,
as many times a side as `--tiles` says, so that all of them are one group of polygons that touch.
Each row is a process of its own; its memory is counted from before the first polygon is made.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

from workbench import Job
from workbench.candidates.offer import offered
from workbench.candidates.select import select
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import Cleaning, clean
from workbench.polygons.planar import clean_planar
from workbench.raster.open import open_scene
from workbench.raster.tiles import TileGrid
from workbench.runs.choose import segmenter_for
from workbench.samples.demo import make_sample, write_sample

SIDE_PX = 1024
CLEANING = Cleaning(planar=True)


def labels(raster: Path) -> gpd.GeoDataFrame:
    """The labels of the first tile of a raster, not cleaned."""
    scene, job = open_scene(raster), Job.create(model="classic")
    grid = TileGrid(SIDE_PX, SIDE_PX, SIDE_PX)
    tile = grid.tile(0, 0)
    segmenter = segmenter_for(job, None)
    segmenter.load()
    found = segmenter.begin(scene.read(tile.window)[0])().at_tile(0, 0)
    return to_polygons(offered(select(found, job.thresholds), grid, {}, job.offer), scene, grid, {})


def repeated(one: gpd.GeoDataFrame, side: int) -> Iterator[gpd.GeoDataFrame]:
    """The labels once for each of `side` × `side` places, row by row."""
    step = SIDE_PX * float(np.sqrt(one.area.sum() / one["area_px"].sum()))
    shapes = one.geometry.to_numpy()
    for row in range(side):
        for column in range(side):
            place = np.array([column * step, -row * step])
            moved = shapely.transform(shapes, lambda xy, by=place: xy + by)
            yield one.set_geometry(moved, crs=one.crs).assign(tile_row=row, tile_col=column)


def measured(file: Path, side: int, whole: bool) -> dict[str, float]:
    """Make the layer, counting what comes out; megabytes, seconds and polygons."""
    one = gpd.read_parquet(file)
    given = repeated(one, side)
    before, start = peak_mb(), time.process_time()
    if whole:
        everything = gpd.GeoDataFrame(gpd.pd.concat(given, ignore_index=True), crs=one.crs)
        n = len(clean(everything, CLEANING))
    else:
        n = sum(len(batch) for batch in clean_planar(given, CLEANING, file.parent))
    return {
        "given": len(one) * side * side, "polygons": n, "mb": peak_mb() - before,
        "peak": peak_mb(), "seconds": time.process_time() - start,
    }  # fmt: skip


def peak_mb() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raster", type=Path)
    parser.add_argument("--tiles", type=int, nargs="+", default=[3, 10, 30, 100])
    parser.add_argument("--whole-up-to", type=int, default=10)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        file, side, whole = given.one
        print(json.dumps(measured(Path(file), int(side), whole == "whole")))
        return
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "labels.parquet"
        raster = given.raster or write_sample(make_sample(SIDE_PX, 7), Path(name))
        labels(raster).to_parquet(file)
        print("| tiles | labels | way | kB a label | MB in all | ms of processor a label |")
        print("|---|---|---|---|---|---|", flush=True)
        for way in ("whole", "parts"):
            for side in given.tiles:
                if way == "whole" and side > given.whole_up_to:
                    continue
                done = subprocess.run(
                    [sys.executable, __file__, "--one", file, str(side), way],
                    check=True, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                row = json.loads(done.stdout)
                print(
                    f"| {side * side:,} | {row['given']:,} | {way} "
                    f"| {1000 * row['mb'] / row['given']:.1f} | {row['peak']} "
                    f"| {1000 * row['seconds'] / row['given']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
