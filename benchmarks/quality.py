"""Score models side by side on labelled rasters: raw proposals, their scores, and the whole job.

    python benchmarks/quality.py RASTER=LABELS … --models classic felzenszwalb
    python benchmarks/quality.py RASTER=LABELS … --boxes RASTER=BOXES … --models classic vit_b
    python benchmarks/quality.py --layer runs/scene labels.geojson [--within area.geojson]

Rows come one by one, as Markdown. Rasters of one folder that are named one after another are
pooled in a row of their own. The last form scores a layer that is there already.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from rasterio.features import shapes
from skimage.segmentation import felzenszwalb

from workbench import Job
from workbench._support.files import atomic_path
from workbench.candidates.select import Thresholds, select
from workbench.candidates.store import valid_masks
from workbench.candidates.table import Candidates, concat
from workbench.evaluation.matching import about, boxes, match, of_cores
from workbench.evaluation.metrics import Quality, average_recall, calibration, compare
from workbench.evaluation.thresholds import best_thresholds, pool_planes, threshold_plane
from workbench.polygons.areas import with_area
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import clean
from workbench.raster.open import open_scene
from workbench.raster.scene import Scene
from workbench.raster.tiles import TileGrid
from workbench.runs.finish import finish
from workbench.runs.plan import Plan, ScenePlan, prepare
from workbench.runs.segment import segment

PER_MEGAPIXEL = (100, 300, 1000)
# of felzenszwalb; as many scales as make 1000 segments per megapixel, for what is enough of a
# busy town is a quarter of that on bare fields
SCALES, SIGMA, MIN_SIZE = (1600, 800, 400, 200, 100, 50, 25), 0.8, 300
# as many as SAM's grid of 32 × 32 prompts gives; other models may store every superpixel
MOST_PER_TILE = 3 * 32**2
KEYS = ["tile_row", "tile_col", "ordinal"]

Shape = Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame]


@dataclass(frozen=True)
class Labelled:
    """A raster, its labels, and what of polygons is compared at which IoU."""

    raster: Path
    labels: Path
    compared: Shape
    iou_threshs: tuple[float, ...]

    def reference(self, scene: Scene) -> gpd.GeoDataFrame:
        """Return what is compared of the labels, in the scene's CRS."""
        return self.compared(read(self.labels).to_crs(scene.crs))


@dataclass(frozen=True, eq=False)
class Result:
    """What one model, or the baseline (no scores and no job), does on one or more rasters.

    `scores` and `true_iou` are those of the proposals that are about a reference.
    """

    raster: str
    model: str
    iou_threshs: tuple[float, ...]
    megapixels: float
    seconds: float
    n_proposals: int
    recall: pd.DataFrame
    scores: np.ndarray
    true_iou: np.ndarray
    job: Quality | None
    plane: pd.DataFrame | None


# ----------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labelled", nargs="*", default=[], metavar="RASTER=LABELS")
    parser.add_argument("--boxes", nargs="+", default=[], metavar="RASTER=BOXES")
    parser.add_argument("--models", nargs="+", default=["classic", "felzenszwalb"])
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="MODEL=FILE")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of the job")
    parser.add_argument("--json", type=Path, help="a file for the same results, unrounded")
    parser.add_argument("--layer", nargs=2, type=Path, metavar=("LAYER", "LABELS"))
    parser.add_argument("--within", type=Path, help="with --layer: the labelled area")
    given = parser.parse_args(arguments)
    if given.layer:
        print_layer(given.layer[0], given.layer[1], given.within)
        return
    if not given.labelled and not given.boxes:
        parser.error("name at least one RASTER=LABELS")
    parameters = dict(split(given.set))
    checkpoints = dict(split(given.checkpoint))
    print(machine(given.models), flush=True)
    results: list[Result] = []
    for header, row, rasters in (
        (POLYGONS, polygon_row, labelled(given.labelled, lambda layer: layer, (0.5, 0.75))),
        (BOXES, box_row, labelled(given.boxes, boxes, (0.4,))),
    ):
        print(f"\n{header}" if rasters else "", flush=True)
        for result in measure_all(rasters, given.models, checkpoints, parameters):
            print(row(result), flush=True)
            results.append(result)
            if given.json:
                write_json(results, given.json)


def split(pairs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Split `LEFT=RIGHT`."""
    for pair in pairs:
        left, equals, right = pair.partition("=")
        if not equals:
            sys.exit(f"{pair}: expected two names with = between them")
        yield left, right


def labelled(
    pairs: Sequence[str], compared: Shape, iou_threshs: tuple[float, ...]
) -> list[Labelled]:
    """Read the rasters and labels off the command line."""
    return [Labelled(Path(r), Path(ref), compared, iou_threshs) for r, ref in split(pairs)]


def print_layer(layer: Path, labels: Path, within: Path | None) -> None:
    """Print how well a layer agrees with its labels."""
    quality = compare(read(layer), read(labels), within=read(within) if within else None)
    print(f"polygons        {quality.n_predicted}")
    print(f"references      {quality.n_reference}")
    print(f"mean best IoU   {quality.mean_best_iou:.3f}")
    print(quality.table().to_string(index=False, float_format="{:.2f}".format))


def read(path: Path) -> gpd.GeoDataFrame:
    """Read a vector file, or the prelabels of a run folder."""
    if path.is_dir():
        path = path / "prelabels.parquet"
    return gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)


def machine(models: Sequence[str]) -> str:
    """Name the machine, the versions and the day."""
    name = platform.processor() or platform.machine()
    about_cpu = Path("/proc/cpuinfo")
    if about_cpu.exists():
        lines = about_cpu.read_text().splitlines()
        name = next((x.split(": ")[1] for x in lines if x.startswith("model name")), name)
    parts = [f"{os.cpu_count()} cores ({name})"]
    if set(models) - {"classic", "felzenszwalb"}:
        import torch  # takes seconds

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        parts += [gpu, f"torch {torch.__version__}"]
    return ", ".join([*parts, f"Python {platform.python_version()}", str(datetime.date.today())])


# -------------------------------------------------------------------------------- measuring


def measure_all(
    rasters: Sequence[Labelled],
    models: Sequence[str],
    checkpoints: Mapping[str, str],
    parameters: Mapping[str, str],
) -> Iterator[Result]:
    """Yield each raster's results, model by model, and after several of one folder their pool."""
    for folder, group in groupby(rasters, key=lambda labelled: labelled.raster.parent):
        done: dict[str, list[Result]] = {model: [] for model in models}
        for one in group:
            for model in models:
                if model == "felzenszwalb":
                    result = measure_baseline(one, parameters)
                else:
                    weights = {"checkpoint": checkpoints[model]} if model in checkpoints else {}
                    result = measure_model(one, model, {**parameters, **weights})
                done[model].append(result)
                yield result
        for results in done.values():
            if len(results) > 1:
                yield pool(f"{folder.name} ({len(results)} rasters)", results)


def measure_model(one: Labelled, model: str, parameters: Mapping[str, Any]) -> Result:
    """Run the whole job with floors of 0: what it stores are the raw proposals.

    Thresholds, and so the layer, are the usual ones. Time is that of the job with its model loaded.
    """
    floors = {"pred_iou_floor": 0, "stability_floor": 0}
    with tempfile.TemporaryDirectory() as folder:
        given = {"source": str(one.raster), "out_dir": folder, "model": model} | floors
        job = Job.create(**given | dict(parameters))
        plan = prepare(job)
        start = time.perf_counter()
        for _ in segment(plan):
            pass
        run = finish(plan)
        layer = run.layer  # read while its folder is there
        seconds = time.perf_counter() - start
        (part,) = plan.scenes
        candidates, polygons = proposals_of(plan, part)
    reference = one.reference(part.scene)
    polygons = of_cores(polygons, run.tiles)
    raw = with_area(polygons[polygons["raw"]])
    pairs = match(one.compared(raw), reference)
    prompts = gpd.GeoSeries(gpd.points_from_xy(raw["prompt_x"], raw["prompt_y"], crs=raw.crs))
    counts = about(prompts, reference)
    megapixels = valid_megapixels(part.scene)
    return Result(
        one.raster.stem,
        model,
        one.iou_threshs,
        megapixels,
        seconds,
        len(raw),
        average_recall(
            pairs,
            raw["confidence"],
            megapixels,
            per_megapixel=PER_MEGAPIXEL,
            iou_threshs=one.iou_threshs,
        ),
        raw["confidence"].to_numpy()[counts],
        pairs.true_iou()[counts],
        compare(one.compared(layer), reference, iou_threshs=one.iou_threshs),
        # trees stand among much else, so their precision, and with it F1, means nothing
        None
        if one.compared is boxes
        else threshold_plane(candidates, clean(polygons, job.cleaning), reference),
    )


def open_for(job: Job) -> Scene:
    """Open the job's raster on its working grid."""
    return open_scene(
        str(job.source),
        bands=job.bands,
        stretch=job.stretch,
        crs=job.crs,
        resolution_m=job.resolution_m,
    )


def proposals_of(plan: Plan, part: ScenePlan) -> tuple[Candidates, gpd.GeoDataFrame]:
    """Return the best stored candidates of each tile and their polygons.

    Leaving out the worst of a tile changes nothing for the others. Those that non-maximum
    suppression leaves without any thresholds are `raw`; `prompt_x` and `prompt_y` are map
    coordinates.
    """
    tables: list[Candidates] = []
    valid: dict[tuple[int, int], np.ndarray] = {}
    for table, records in plan.store.read([part.index(tile) for tile in part.tiles]):
        tables.append(table)
        valid |= valid_masks(records, table.rules)
    stored = concat(tables)
    by_tile = pd.DataFrame({name: stored.column(name) for name in (*KEYS, "pred_iou")})
    rank = by_tile.groupby(KEYS[:2])["pred_iou"].rank(method="first", ascending=False)
    candidates = stored.take((rank <= MOST_PER_TILE).to_numpy())
    prompts = pd.DataFrame(
        {name: candidates.column(name) for name in (*KEYS, "point_x", "point_y")}
    )
    selected = select(candidates, Thresholds(0, 0))
    raw = pd.MultiIndex.from_arrays([selected.column(name) for name in KEYS])
    prompts["raw"] = pd.MultiIndex.from_frame(prompts[KEYS]).isin(raw)
    windows = {(tile.row, tile.col): tile.window for tile in part.tiles}
    at = [windows[index] for index in zip(prompts["tile_row"], prompts["tile_col"], strict=True)]
    x = prompts.pop("point_x") + [window.col_off for window in at]
    y = prompts.pop("point_y") + [window.row_off for window in at]
    prompts["prompt_x"] = part.scene.transform.c + part.scene.transform.a * x
    prompts["prompt_y"] = part.scene.transform.f + part.scene.transform.e * y
    polygons = to_polygons(candidates, part.scene, part.grid, valid)
    return candidates, polygons.merge(prompts, on=KEYS, validate="1:1")


def measure_baseline(one: Labelled, parameters: Mapping[str, Any]) -> Result:
    """Segment the raster as a whole, scale by scale, until every budget can be spent.

    The segments of all scales are the proposals. They have no scores: a share of the budget goes
    to each scale, larger segments first.
    """
    scene = open_for(Job.create(source=str(one.raster), **parameters))
    megapixels = valid_megapixels(scene)
    start = time.perf_counter()
    segments = segments_of(scene, SCALES[0])
    for scale in SCALES[1:]:
        if len(segments) < PER_MEGAPIXEL[-1] * megapixels:
            segments = pd.concat([segments, segments_of(scene, scale)], ignore_index=True)
    seconds = time.perf_counter() - start
    segments = with_area(segments)
    by_size = segments.area.groupby(segments["scale"])
    reference = one.reference(scene)
    pairs = match(one.compared(segments), reference)
    return Result(
        one.raster.stem,
        "felzenszwalb",
        one.iou_threshs,
        megapixels,
        seconds,
        len(segments),
        average_recall(
            pairs,
            by_size.rank(method="first", pct=True),
            megapixels,
            per_megapixel=PER_MEGAPIXEL,
            iou_threshs=one.iou_threshs,
        ),
        np.empty(0),
        np.empty(0),
        None,
        None,
    )


def segments_of(scene: Scene, scale: int) -> gpd.GeoDataFrame:
    """Return the segments of one scale; where pixels are invalid there are none."""
    rgb, valid = scene.read(scene.window)
    labels = felzenszwalb(rgb, scale=scale, sigma=SIGMA, min_size=MIN_SIZE).astype(np.int32)
    pieces = [
        (shapely.geometry.shape(outline), label)
        for outline, label in shapes(labels, mask=valid, transform=scene.transform)
    ]
    pieces.sort(key=lambda piece: piece[1])  # segments may hang together by corners only
    _, segment_of = np.unique([label for _, label in pieces], return_inverse=True)
    outlines = np.array([outline for outline, _ in pieces], object)
    geometry = np.atleast_1d(shapely.multipolygons(outlines, indices=segment_of))
    return gpd.GeoDataFrame({"scale": scale}, index=range(len(geometry)), geometry=geometry,
                            crs=scene.crs)  # fmt: skip


def valid_megapixels(scene: Scene) -> float:
    """Count the valid pixels, in millions."""
    grid = TileGrid(scene.width, scene.height)
    return sum(int(np.count_nonzero(scene.read(tile.core)[1])) for tile in grid) / 1e6


def pool(name: str, results: Sequence[Result]) -> Result:
    """Treat several rasters as one: each keeps its own best proposals, thresholds are common."""
    recall = pd.concat([result.recall for result in results])
    rates = [f"recall_{thresh:g}" for thresh in results[0].iou_threshs] + ["average_recall"]
    # a recall is a mean over references, so the mean of recalls needs their number as weight
    recall[rates] = recall[rates].mul(recall["n_reference"], axis=0)
    recall = recall.groupby("per_megapixel", as_index=False).sum()
    recall[rates] = recall[rates].div(recall["n_reference"], axis=0)
    jobs = [result.job for result in results if result.job is not None]
    planes = [result.plane for result in results if result.plane is not None]
    return Result(
        name,
        results[0].model,
        results[0].iou_threshs,
        sum(result.megapixels for result in results),
        sum(result.seconds for result in results),
        sum(result.n_proposals for result in results),
        recall,
        np.concatenate([result.scores for result in results]),
        np.concatenate([result.true_iou for result in results]),
        pool_jobs(jobs) if jobs else None,
        pool_planes(planes) if planes else None,
    )


def pool_jobs(jobs: Sequence[Quality]) -> Quality:
    """Add up the counts of several layers."""
    n_reference = sum(job.n_reference for job in jobs)
    found = sum(job.mean_best_iou * job.n_reference for job in jobs if job.n_reference)
    return Quality(
        n_predicted=sum(job.n_predicted for job in jobs),
        n_reference=n_reference,
        iou_threshs=jobs[0].iou_threshs,
        n_matched=tuple(map(sum, zip(*(job.n_matched for job in jobs), strict=True))),
        mean_best_iou=found / n_reference if n_reference else math.nan,
    )


# ----------------------------------------------------------------------------------- tables

POLYGONS = """\
| raster | model | references | raw per Mpx | R@0.5 of 100 / 300 / 1000 per Mpx | R@0.75 | AR \
| Spearman | gap | polygons | R@0.5 | R@0.75 | P@0.5 | F1@0.5 | best F1@0.5 | at | s per Mpx |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""
BOXES = """\
| raster | model | boxes | raw per Mpx | R@0.4 of 100 / 300 / 1000 per Mpx | polygons | R@0.4 \
| s per Mpx |
|---|---|---|---|---|---|---|---|"""


def polygon_row(result: Result) -> str:
    """Format what is known where references are polygons."""
    scored = calibration(result.scores, result.true_iou)
    cells = [
        *first_cells(result),
        in_turn(result.recall["recall_0.5"]),
        in_turn(result.recall["recall_0.75"]),
        in_turn(result.recall["average_recall"]),
        number(scored.spearman),
        number(scored.mean_gap),
    ]
    if result.job is None or result.plane is None:
        cells += ["—"] * 7
    else:
        job, best = result.job, best_thresholds(result.plane)
        cells += [str(job.n_predicted), number(job.recall(0.5)), number(job.recall(0.75))]
        cells += [number(job.precision(0.5)), number(job.f1(0.5)), number(best["f1"])]
        cells += [f"{best['pred_iou_thresh']:.2f}, {best['stability_score_thresh']:.2f}"]
    return as_row([*cells, per_megapixel(result)])


def box_row(result: Result) -> str:
    """Format what is known where references are boxes."""
    job = result.job
    return as_row(
        [
            *first_cells(result),
            in_turn(result.recall["recall_0.4"]),
            "—" if job is None else str(job.n_predicted),
            "—" if job is None else number(job.recall(0.4)),
            per_megapixel(result),
        ]
    )


def first_cells(result: Result) -> list[str]:
    """What both tables begin with."""
    n_reference = str(result.recall["n_reference"].iloc[0])
    raw = f"{result.n_proposals / result.megapixels:.0f}" if result.megapixels else "—"
    return [result.raster, result.model, n_reference, raw]


def in_turn(recalls: pd.Series) -> str:
    """Format the recalls of all budgets."""
    return " / ".join(map(number, recalls))


def number(value: float) -> str:
    """Two digits; a dash for what is not known."""
    return "—" if math.isnan(value) else f"{value:.2f}"


def per_megapixel(result: Result) -> str:
    """Format the time."""
    return f"{result.seconds / result.megapixels:.1f}" if result.megapixels else "—"


def as_row(cells: Sequence[str]) -> str:
    """Join cells to a row of Markdown."""
    return f"| {' | '.join(cells)} |"


def write_json(results: Sequence[Result], path: Path) -> None:
    """Write all results, whole or not at all; what is not known is null."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps([plain(result) for result in results], indent=1))


def plain(result: Result) -> dict[str, Any]:
    """Return a result as plain values, with its reliability table."""
    scored = calibration(result.scores, result.true_iou)
    values: dict[str, Any] = {
        "raster": result.raster,
        "model": result.model,
        "megapixels": result.megapixels,
        "seconds": result.seconds,
        "n_proposals": result.n_proposals,
        "recall": records(result.recall),
        "calibration": {
            "n": scored.n,
            "spearman": known(scored.spearman),
            "mean_gap": known(scored.mean_gap),
            "bins": records(scored.bins),
        },
    }
    if result.job is not None and result.plane is not None:
        job = result.job
        best = result.plane.loc[[best_thresholds(result.plane).name]]
        values["job"] = {
            "n_predicted": job.n_predicted,
            "n_reference": job.n_reference,
            "mean_best_iou": known(job.mean_best_iou),
            "rates": records(job.table()),
        }
        values["best"] = records(best)[0]
    return values


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain values."""
    return [
        {str(name): known(value) for name, value in row.items()} for row in frame.to_dict("records")
    ]


def known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


if __name__ == "__main__":
    main()
