"""What comes back when known objects that have moved are the prompts: shifts of some metres.

    python benchmarks/prompts.py RASTER=LABELS --models classic tiny --shifts 0 2 4

Each row is a run with the parameter `prompts`: the labels, shifted to the east. Its layer is
compared with the labels where they were, feature by feature; one that keeps its shifted shape
counts with that.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

from workbench import Job, open_scene, run
from workbench.polygons.areas import only_polygonal
from workbench.polygons.overlap import iou_of
from workbench.raster.scene import Scene


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raster", metavar="RASTER=LABELS")
    parser.add_argument("--models", nargs="+", default=["classic", "tiny"])
    parser.add_argument("--shifts", nargs="+", type=float, default=[0, 2, 4])
    given = parser.parse_args()
    raster, labels = given.raster.split("=")
    scene = open_scene(raster)
    truth = truth_in(labels, scene)
    print(
        "| model | shift | new shapes | IoU ≥ 0.5 | IoU ≥ 0.75 | mean IoU | shifted "
        "| of those with a new shape, mean IoU | shifted | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in given.models:
        for shift in given.shifts:
            with tempfile.TemporaryDirectory() as folder:
                print(row(raster, model, shift, scene, truth, Path(folder)), flush=True)


def truth_in(labels: str, scene: Scene) -> gpd.GeoDataFrame:
    """The labels in the scene, numbered."""
    frame = gpd.read_file(labels).to_crs(scene.crs)
    shapes, _ = only_polygonal(frame.geometry)
    inside = shapely.within(shapely.centroid(shapes), shapely.box(*scene.bounds))
    return gpd.GeoDataFrame({"number": range(inside.sum())}, geometry=shapes[inside], crs=scene.crs)


def row(
    raster: str, model: str, shift: float, scene: Scene, truth: gpd.GeoDataFrame, folder: Path
) -> str:
    """Do the run of a shift, and compare."""
    by = shift * abs(scene.transform.a) / scene.pixel_m  # map units
    moved = truth.set_geometry(truth.geometry.translate(by))
    moved.to_file(folder / "moved.gpkg")
    start = time.perf_counter()
    made = run(
        Job(
            source=raster,
            model=model,
            prompts=str(folder / "moved.gpkg"),
            out_dir=str(folder / "run"),
        )
    )
    seconds = time.perf_counter() - start
    shapes, before = truth.geometry.to_numpy(), moved.geometry.to_numpy()
    after, is_new = before.copy(), np.zeros(len(truth), bool)
    layer = made.layer[made.layer["number"].notna()]
    numbers = layer["number"].to_numpy(int)
    after[numbers] = layer.geometry.to_numpy()
    is_new[numbers] = layer["confidence"].notna()
    ious, shifted = iou_of(after, shapes), iou_of(before, shapes)
    return (
        f"| {model} | {shift:g} m | {is_new.sum()} of {len(truth)} | {(ious >= 0.5).mean():.2f} "
        f"| {(ious >= 0.75).mean():.2f} | {ious.mean():.3f} | {shifted.mean():.3f} "
        f"| {ious[is_new].mean():.3f} | {shifted[is_new].mean():.3f} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
