"""What tiling costs: the sample scene in tiles against the same scene in one tile.

    python benchmarks/seams.py [--model tiny] [--sizes 768 512]

Prints, for several tile sizes, the recall (IoU 0.5) of ground-truth objects that reach into an
overlap of tiles and of all others, next to the recall of the same objects in one large tile, and
how many polygons repeat one of another tile (IoU above 0.5), and how many straight edges of over
20 m lie along the edge of a tile.
"""

import argparse
import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from labels import cut_edges

from workbench import Job, run
from workbench.evaluation.matching import match
from workbench.polygons.overlap import iou_of
from workbench.raster.tiles import TileGrid, tile_windows
from workbench.runs.plan import ScenePlan
from workbench.samples.demo import OUTLINED, make_sample, write_sample

SIZE = 1536


def main() -> None:
    """Run all tile sizes on one sample scene."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="classic")
    parser.add_argument("--sizes", type=int, nargs="+", default=[768, 512, 384])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raster = write_sample(make_sample(SIZE, 7), Path(folder))
        objects = gpd.read_file(Path(folder) / "sample_objects.gpkg")
        objects = objects[objects["kind"].isin([*OUTLINED, "garden"]) & (objects.area > 45)]
        whole = run_in_tiles(raster, Path(folder) / "whole", SIZE, given.model)
        untiled = match(whole.layer, objects).best_iou() >= 0.5
        print("| model | tile | tiles | objects on seams | recall tiled / untiled | others "
              "| recall tiled / untiled | polygons tiled / untiled | repeated | cut |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|---|")
        for size in given.sizes:
            result = run_in_tiles(raster, Path(folder) / str(size), size, given.model)
            found = match(result.layer, objects).best_iou() >= 0.5
            on_seam = reaches_overlap(result, objects, size)
            print(
                f"| {given.model} | {size} | {len(result.tiles)} | {on_seam.sum()} "
                f"| {found[on_seam].mean():.2f} / {untiled[on_seam].mean():.2f} "
                f"| {(~on_seam).sum()} "
                f"| {found[~on_seam].mean():.2f} / {untiled[~on_seam].mean():.2f} "
                f"| {len(result.layer)} / {len(whole.layer)} | {repeated(result.layer)} "
                f"| {cuts(result, size)} |",
                flush=True,
            )


def run_in_tiles(raster, folder, size, model):
    """Run a model with one tile size."""
    return run(Job.create(source=str(raster), out_dir=str(folder), tile_size=size, model=model))


def reaches_overlap(result, objects, size):
    """Whether each object lies in more than one tile, as a boolean array."""
    (scene,) = result.scenes
    grid = TileGrid(scene.width, scene.height, size)
    windows = tile_windows(scene, list(grid)).geometry.to_numpy()
    row, _ = shapely.STRtree(windows).query(objects.geometry.to_numpy(), predicate="intersects")
    return np.bincount(row, minlength=len(objects)) > 1


def cuts(result, size):
    """Count straight edges along the edges of tiles."""
    (scene,) = result.scenes
    grid = TileGrid(scene.width, scene.height, size)
    return cut_edges([ScenePlan(scene, grid, tuple(grid))], result.layer)


def repeated(layer):
    """Count pairs of polygons whose best pieces come from different tiles, with IoU above 0.5."""
    geometry, tile = layer.geometry.to_numpy(), layer["source_tile"].to_numpy()
    i, j = shapely.STRtree(geometry).query(geometry, predicate="intersects")
    apart = (i < j) & (tile[i] != tile[j])
    return int((iou_of(geometry[i[apart]], geometry[j[apart]]) > 0.5).sum())


if __name__ == "__main__":
    main()
