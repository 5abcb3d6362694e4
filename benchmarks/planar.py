"""Memory and time of a layer without overlaps, in one piece and in parts.

    python benchmarks/planar.py [--raster RASTER] [--tiles 3 10 30 100] [--whole-up-to 10]
    python benchmarks/planar.py --squares --tiles 10 100 --whole-up-to 0

The labels of one tile of a raster (default: a made one; model `classic`) are repeated side by side,
as many times a side as `--tiles` says, so that all of them are one group of polygons that touch.
`--squares` takes 100 overlapping squares a tile instead, for what is kept of each label. Each row
is a process of its own; its memory is counted from before the first polygon is made.
"""

from __future__ import annotations

import argparse
import json
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


def squares() -> gpd.GeoDataFrame:
    """100 squares in rows, each of which overlaps the next ones; all corners are on pixels."""
    corner = 102 * np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) / 2
    sides = np.linspace(52, 70, 100).round()[:, None] / 2 * [1, 1]
    x0, y0 = (np.array([500_000, 5_300_000]) + corner).T
    frame = gpd.GeoDataFrame(
        {
            "source": "squares", "tile_row": 0, "tile_col": 0, "ordinal": np.arange(100),
            "confidence": np.float32(0.9), "stability": np.float32(0.9),
            "area_px": (sides.prod(axis=1) * 4).astype(int), "at_edge": False,
            "scale": np.int32(1), "n_tiles": 1,
        },
        geometry=shapely.box(x0, y0, *(np.array([x0, y0]) + sides.T)), crs=32633,
    )  # fmt: skip
    return frame.set_geometry(shapely.multipolygons(frame.geometry.to_numpy()[:, None]), crs=32633)


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


def take(raster: Path | None, file: Path) -> None:
    """Write the labels of a raster, or of a made one."""
    raster = raster or write_sample(make_sample(SIDE_PX, 7), file.parent)
    labels(raster).to_parquet(file)


def peak_mb() -> int:
    """The most memory that this process has held; `ru_maxrss` would count who started it, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) // 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raster", type=Path)
    parser.add_argument("--tiles", type=int, nargs="+", default=[3, 10, 30, 100])
    parser.add_argument("--whole-up-to", type=int, default=10)
    parser.add_argument("--squares", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        file, side, whole = given.one
        print(json.dumps(measured(Path(file), int(side), whole == "whole")))
        return
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "labels.parquet"
        if given.squares:
            squares().to_parquet(file)
        else:
            take(given.raster, file)
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
