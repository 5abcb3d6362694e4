"""What size costs: runs of 100, 1,000 and 10,000 tiles, and a small AOI in an immense raster.

    python benchmarks/scale.py [--raster RASTER] [--plot FILE.png]

Each run is a process of its own. The first table is of rasters whose objects are known, in tiles of
256 px, and says whether the layer holds exactly those; its last row has many small objects. The
second is of an AOI in a virtual mosaic of 100,000 × 100,000 px that repeats a raster (default: a
made one), with the default job.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import geopandas as gpd
import numpy as np
import shapely
import yaml
from matplotlib.figure import Figure
from mosaic import write_mosaic

from workbench import Job
from workbench.candidates.rle import decode_runs
from workbench.candidates.table import Rules
from workbench.polygons.trace import trace
from workbench.runs import choose
from workbench.runs.finish import finish
from workbench.runs.plan import open_scenes, prepare
from workbench.runs.segment import segment
from workbench.samples.demo import make_sample, write_sample

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from known_objects import TRANSFORM, UTM, KnownObjects, encode_masks, objects_apart, write_labels

CELL_PX, N_TRIED, TILE_PX = 1024, 150, 256
CELLS = (2, 6, 19)  # a side: 11, 32 and 101 tiles
DENSE_CELLS, DENSE_PX = 8, 24  # 43 tiles a side; from one small object to the next
MOSAIC_PX, AOI_PX = 100_000, 3000
STEPS = ("prepare", "segment", "finish")


def small_objects() -> np.ndarray:
    """A cell full of boxes and ellipses, none of which wins over another by suppression."""
    rng, labels = np.random.default_rng(1), np.zeros((CELL_PX, CELL_PX), np.int32)
    corners = range(0, CELL_PX - DENSE_PX, DENSE_PX)
    for number, (y, x) in enumerate(((y, x) for y in corners for x in corners), 1):
        w, h = (int(side) for side in rng.integers(8, DENSE_PX - 4, 2))
        if rng.random() < 0.5:
            cv2.rectangle(labels, (x, y), (x + w, y + h), number, -1)
        else:
            centre = (x + DENSE_PX // 2 - 2, y + DENSE_PX // 2 - 2)
            cv2.ellipse(labels, centre, (w // 2, h // 2), 0, 0, 360, number, -1)
    return labels


def known(cells: int, labels: np.ndarray, folder: Path, **parameters: object) -> dict[str, object]:
    """Run on a raster of cells × cells times the same objects; `taught` by those of the first."""
    side = cells * CELL_PX
    if parameters.pop("taught", False):
        parameters |= first_cell(labels, folder) | {"class_thresh": 0.0}
    raster = write_mosaic(write_labels(folder / "cell.tif", labels), folder / "all.vrt", side, side)
    rules = Rules(TILE_PX, TILE_PX)
    choose.segmenter_for = lambda job, before: KnownObjects(rules)
    job = Job.create(
        source=str(raster), out_dir=str(folder / "run"), tile_size=TILE_PX, overlap=0.25,
        **{"min_area_px": 0, "simplify_m": 0} | parameters,
    )  # fmt: skip
    figures, result = measured(job)
    return figures | {"exact": same(result.layer, truth(labels, cells))}


def first_cell(labels, folder: Path) -> dict[str, str]:
    """Files of the objects of the first cell and of its area, to teach one class and none."""
    objects, place = folder / "objects.gpkg", folder / "labelled.gpkg"
    shapes = truth(labels, 1)
    class_id = (np.arange(len(shapes)) % 10 > 0).astype(int)  # something must be none of these
    gpd.GeoDataFrame({"class_id": class_id}, geometry=shapes, crs=UTM).to_file(objects)
    corners = (TRANSFORM @ (0, CELL_PX), TRANSFORM @ (CELL_PX, 0))
    area = shapely.box(*corners[0], *corners[1])
    more = shapely.box(*(np.array(area.bounds) + [-9, 9, -9, 9]))
    gpd.GeoSeries([more], crs=UTM).to_file(place)
    return {"examples": str(objects), "labelled_area": str(place)}


def truth(labels, cells):
    """The outline of every object of every cell, on the map."""
    rles = [encode_masks(labels[None] == n)[0] for n in np.unique(labels[labels > 0])]
    found = trace(decode_runs(rles, CELL_PX, CELL_PX))
    sizes = (found.ring_sizes, found.rings_per_part, found.parts_per_mask)
    ends = tuple(np.concatenate(([0], np.cumsum(n))) for n in sizes)
    kind = shapely.GeometryType.MULTIPOLYGON
    one = shapely.from_ragged_array(kind, found.corners.astype(float), ends)
    scale, origin = [TRANSFORM.a, TRANSFORM.e], [TRANSFORM.c, TRANSFORM.f]
    return np.concatenate(
        [
            shapely.transform(
                one, lambda xy, x=x, y=y: (xy + [x * CELL_PX, y * CELL_PX]) * scale + origin
            )
            for y in range(cells)
            for x in range(cells)
        ]
    )


def same(layer, objects):
    """Whether the layer holds every object once, with its exact outline, and nothing else."""
    if len(layer) != len(objects):
        return False

    def in_order(shapes):
        area = np.round(shapely.area(shapes), 3)
        return shapes[np.lexsort((area, *np.round(shapely.bounds(shapes), 3).T))]

    return bool(shapely.equals(in_order(layer.geometry.to_numpy()), in_order(objects)).all())


def aoi(raster: Path, folder: Path) -> dict[str, object]:
    """Run on a corner of the mosaic."""
    mosaic = write_mosaic(raster, folder / "mosaic.vrt", MOSAIC_PX, MOSAIC_PX)
    scene = open_scenes(Job.create(source=str(mosaic)))[0]
    middle = MOSAIC_PX // 2
    (x0, y1), (x1, y0) = (scene.transform @ (p, p) for p in (middle, middle + AOI_PX))
    area = gpd.GeoSeries([shapely.box(x0, y0, x1, y1)], crs=scene.crs)
    area.to_file(folder / "aoi.gpkg")
    job = Job.create(source=str(mosaic), out_dir=str(folder / "run"), aoi=str(folder / "aoi.gpkg"))
    return measured(job)[0]


def measured(job: Job):
    """Run a job; seconds of its three steps and peak memory."""
    marks = [time.perf_counter()]
    plan = prepare(job)
    marks.append(time.perf_counter())
    for _ in segment(plan):
        pass
    marks.append(time.perf_counter())
    segment_mb = peak_mb()
    result = finish(plan)
    marks.append(time.perf_counter())
    steps = dict(zip(STEPS, np.diff(marks).round(2).tolist(), strict=True))
    return {
        "tiles": len(result.tiles),
        "stored_kb": sum(p.stat().st_size for p in plan.store.folder.iterdir()) // 1000,
        "polygons": int(result.tiles["n_polygons"].sum()),
        **steps,
        "segment_mb": segment_mb,
        "peak_mb": peak_mb(),
    }, result


def peak_mb() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def apart(*arguments: str) -> dict[str, object]:
    """What this script prints for some arguments, in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def plot(rows, path: Path) -> None:
    """Draw milliseconds per tile, and peak memory against the number of polygons."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    alike = rows[: len(CELLS)]
    tiles, polygons = [row["tiles"] for row in alike], [row["polygons"] for row in rows]
    for step in ("segment", "finish"):
        each = [1000 * row[step] / row["tiles"] for row in alike]
        time_axes.plot(tiles, each, "o-", label=step)
    time_axes.set(ylabel="ms per tile", xlabel="tiles")
    memory_axes.plot(polygons, [row["peak_mb"] for row in rows], "o-", label="peak")
    memory_axes.plot(polygons, [row["segment_mb"] for row in rows], "o-", label="before the merge")
    memory_axes.set(ylabel="MB of memory", xlabel="polygons")
    for axes in (time_axes, memory_axes):
        axes.set(xscale="log")
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raster", type=Path, help="what the mosaic of 100,000 px repeats")
    parser.add_argument("--plot", type=Path, help="where to draw the first table")
    parser.add_argument("--cells", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter of the jobs, for example: --set overlaps one",
    )  # fmt: skip
    parser.add_argument("--dense", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--aoi", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.cells:
            sparse = objects_apart((CELL_PX, CELL_PX), 1, n=N_TRIED, largest=0.5)
            labels = small_objects() if given.dense else sparse
            parameters = {name: yaml.safe_load(value) for name, value in given.set}
            print(json.dumps(known(given.cells, labels, folder, **parameters)))
            return
        if given.aoi:
            raster = given.raster or write_sample(make_sample(CELL_PX, 7), folder)
            print(json.dumps(aoi(raster, folder)))
            return
    print("| tiles | polygons | exact | plan, ms per tile | segment | finish | MB before | peak |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for cells, *dense in (*((cells,) for cells in CELLS), (DENSE_CELLS, "--dense")):
        row = apart("--cells", str(cells), *map(str, dense))
        rows.append(row)
        each = [f"{1000 * row[step] / row['tiles']:.1f}" for step in STEPS]
        print(
            f"| {row['tiles']:,} | {row['polygons']:,} | {'yes' if row['exact'] else 'NO'} "
            f"| {' | '.join(each)} | {row['segment_mb']} | {row['peak_mb']} |",
            flush=True,
        )
    if given.plot:
        plot(rows, given.plot)
    row = apart("--aoi", *(["--raster", str(given.raster)] if given.raster else []))
    print("\n| AOI tiles | polygons | plan, s | segment | finish | stored, kB per tile | peak MB |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {row['tiles']} | {row['polygons']} | {row['prepare']} | {row['segment']} "
        f"| {row['finish']} | {row['stored_kb'] // row['tiles']} | {row['peak_mb']} |"
    )


if __name__ == "__main__":
    main()
