"""What classes that a few labels teach are worth where nobody has labelled anything.

    python benchmarks/classes.py RASTER=LABELS … --boxes RASTER=BOXES … --runs runs/classes
    python benchmarks/classes.py --carry RASTER=LABELS …
    python benchmarks/classes.py --speed 100000 RASTER=LABELS

Rasters of one folder are one campaign. In the first form, a random third of its tiles is labelled
to the end, 20 times, and the other tiles are scored; with `--carry`, each raster teaches all the
others. Beside it stands what a run offers without classes. Tiles are scored by what lies in their
cores, before seams are merged. Figures are means over the draws, F1 with its standard deviation.
`--quick` takes a tenth of the time: fewer trees, and the usual threshold instead of the one that
tiles held out choose.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from mosaic import write_mosaic
from numpy.typing import NDArray

from workbench import Job, run
from workbench.candidates.offer import MaskPairs, Shared, offered
from workbench.candidates.select import passes, select
from workbench.candidates.store import valid_masks
from workbench.candidates.table import Candidates, concat
from workbench.candidates.valid import on_valid_pixels
from workbench.errors import ExamplesError
from workbench.evaluation.cost import cost_of_pairs
from workbench.evaluation.matching import Pairs, boxes, match
from workbench.learning.choose import Places, places_of
from workbench.learning.classifier import Classifier
from workbench.learning.examples import Examples, check, join, match_labels
from workbench.learning.features import FEATURES
from workbench.learning.held_out import FALLBACK, held_out
from workbench.polygons.areas import with_area
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import clean
from workbench.raster.open import open_scene
from workbench.raster.tiles import TileGrid
from workbench.runs.classes import described
from workbench.runs.folder import store_in
from workbench.runs.result import Run, read_run
from workbench.runs.tile_stream import ScenePlan

Shape = Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame]
Teach = Callable[[Examples], tuple[Classifier, float]]  # and the threshold
FEWER_TREES = 100  # for `--quick`
KEYS = ["tile_row", "tile_col", "ordinal"]
HEADER = """\
| campaign | model | tiles | labels taught | F1 | precision | recall | cost of review \
| F1 with classes | precision | recall | cost of review | precision at the recall of before |
|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A scene's stored candidates with all that any draw needs of them, row by row.

    `tile` is the row of `cores` that a candidate is from and `home` whether its middle lies in it;
    `able` is whether it may be kept at all, and `shared` what it has in common with others of its
    tile; `pairs` are of the cleaned polygons, whose rows are `cleaned`.
    """

    candidates: Candidates
    frame: gpd.GeoDataFrame  # described: FEATURES, source, tile, geometry
    tile: NDArray[np.int64]
    home: NDArray[np.bool_]
    able: NDArray[np.bool_]
    shared: Shared
    cores: NDArray[np.object_]
    reference: gpd.GeoDataFrame
    reference_tile: NDArray[np.int64]
    cleaned: NDArray[np.int64]
    pairs: Pairs
    iou_thresh: float
    by_default: NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """Counts over some tiles."""

    n_matched: int
    n_predicted: int
    n_reference: int
    seconds: float
    drawing: float

    def __add__(self, other: Score) -> Score:
        pairs = zip(self.__dict__.values(), other.__dict__.values(), strict=True)
        return Score(*(one + two for one, two in pairs))

    def rates(self) -> list[float]:
        """F1, precision, recall and the cost of review against drawing."""
        return [
            2 * self.n_matched / max(1, self.n_predicted + self.n_reference),
            self.n_matched / max(1, self.n_predicted),
            self.n_matched / max(1, self.n_reference),
            self.seconds / max(1.0, self.drawing),
        ]


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labelled", nargs="*", default=[], metavar="RASTER=LABELS")
    parser.add_argument("--boxes", nargs="+", default=[], metavar="RASTER=BOXES")
    parser.add_argument("--carry", nargs="+", default=[], metavar="RASTER=LABELS")
    parser.add_argument("--model", default="classic")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/classes"), help="kept between calls"
    )
    parser.add_argument("--tile-size", type=int, default=512)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--speed", type=int, metavar="CANDIDATES")
    given = parser.parse_args()
    if given.speed:
        if not given.labelled:
            parser.error("--speed needs a RASTER=LABELS")
        for pair in given.labelled:
            print(speed(given.speed, *map(Path, pair.split("=", 1)), given), flush=True)
        return
    teach = quickly if given.quick else as_a_run_does
    print(HEADER, flush=True)
    for pairs, compared in ((given.labelled, polygons), (given.boxes, boxes)):
        for name, scenes in campaigns(pairs, compared, given):
            drawn = thirds(scenes, given.draws)
            print(row(name, given.model, scenes, drawn, teach), flush=True)
    for name, scenes in campaigns(given.carry, polygons, given, whole=True):
        drawn = each_scene(scenes)
        print(row(f"{name}, carried", given.model, scenes, drawn, teach), flush=True)


def polygons(layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Compare the outlines themselves."""
    return layer


def campaigns(
    pairs: Sequence[str], compared: Shape, given: argparse.Namespace, *, whole: bool = False
) -> Iterator[tuple[str, list[Labelled]]]:
    """Load the scenes of each folder; what is not segmented yet, is."""
    named = [tuple(map(Path, pair.split("=", 1))) for pair in pairs]
    for folder, group in groupby(named, key=lambda pair: pair[0].parent):
        scenes = []
        for raster, labels in group:
            finished = finished_run(raster, given, whole=whole)
            scenes.append(load(finished, gpd.read_file(labels), compared))
        yield folder.name, scenes


def finished_run(raster: Path, given: argparse.Namespace, *, whole: bool = False) -> Run:
    """Segment a raster, `whole` in one tile, or take the run that is there."""
    out_dir = given.runs / given.model / ("whole" if whole else "tiles") / raster.stem
    job = Job.create(source=str(raster), out_dir=str(out_dir), model=given.model)
    if whole:
        scene = open_scene(str(raster))
        job = job.changed(tile_size=max(scene.width, scene.height))
    else:
        job = job.changed(tile_size=given.tile_size)
    if not (out_dir / "report.html").exists():
        run(job)
    return read_run(out_dir)


def load(finished: Run, labels: gpd.GeoDataFrame, compared: Shape) -> Labelled:
    """Describe, trace, clean and match all candidates of a scene."""
    (scene,) = finished.scenes
    job, tiles = finished.job, finished.tiles
    grid = TileGrid(scene.width, scene.height, job.tile_size, job.overlap)
    part = ScenePlan(scene, grid, tuple(grid))
    tables, valid = [], {}
    index = [part.index(tile) for tile in grid]
    for table, records in store_in(finished.folder).read(index):
        tables.append(table)
        valid |= valid_masks(records, table.rules)
    candidates = concat(tables)
    traced = to_polygons(candidates, scene, grid, valid)
    rows = pd.MultiIndex.from_arrays([candidates.column(name) for name in KEYS]).get_indexer(
        pd.MultiIndex.from_frame(traced[KEYS])
    )
    candidates = candidates.take(rows)  # those with a valid pixel
    figures = described(part, candidates)
    number = {
        (row, col): i
        for i, (row, col) in enumerate(zip(tiles["tile_row"], tiles["tile_col"], strict=True))
    }
    tile = np.array(
        [number[key] for key in zip(traced["tile_row"], traced["tile_col"], strict=True)]
    )
    cores = tiles.geometry.to_numpy()
    frame = gpd.GeoDataFrame(
        dict(zip(FEATURES, figures.T, strict=True))
        | {"source": scene.name, "tile": [f"{scene.name}/{i}" for i in tile]},
        geometry=traced.geometry.to_numpy(), crs=scene.crs,
    )  # fmt: skip
    reference = with_area(labels.to_crs(scene.crs)).reset_index(drop=True)
    point, core = shapely.STRtree(cores).query(
        reference.geometry.representative_point().to_numpy(), "intersects"
    )
    reference_tile = np.full(len(reference), -1)
    reference_tile[point[::-1]] = core[::-1]
    cleaned = clean(traced.assign(row=np.arange(len(traced))), job.cleaning)
    is_box = compared is boxes
    selected = offered(select(candidates, job.thresholds), grid, valid, job.offer)
    seen = on_valid_pixels(candidates, grid, valid)  # as in a run
    wide = replace(job.offer, duplicate_iou=None, overlaps="all")
    able = passes(candidates, job.limits) & among(offered(candidates, grid, valid, wide), traced)
    return Labelled(
        seen,
        frame,
        tile,
        shapely.intersects(cores[tile], shapely.point_on_surface(frame.geometry.to_numpy())),
        able,
        shared_within(seen, tile),
        cores,
        reference,
        reference_tile,
        cleaned["row"].to_numpy(),
        match(compared(cleaned), compared(reference)),
        0.4 if is_box else 0.5,
        among(selected, traced),
    )


def among(candidates: Candidates, traced: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Mark the polygons whose masks are among some candidates."""
    keys = pd.MultiIndex.from_arrays([candidates.column(name) for name in KEYS])
    return np.asarray(pd.MultiIndex.from_frame(traced[KEYS]).isin(keys), bool)


def shared_within(candidates: Candidates, tile: NDArray[np.int64]) -> Shared:
    """Pairs of candidates of one tile that have an area in common."""
    found = []
    for number in np.unique(tile):
        rows = np.flatnonzero(tile == number)
        pairs = MaskPairs(candidates.take(rows))
        pairs.compare(np.arange(len(rows)))
        one = pairs.shared
        found.append((rows[one.i], rows[one.j], one.common, one.overlaps))
    return Shared(*map(np.concatenate, zip(*found, strict=True)))


# ---------------------------------------------------------------------------------- drawing

Draw = list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]  # of each scene: tiles taught and scored


def thirds(scenes: Sequence[Labelled], draws: int) -> Iterator[Draw]:
    """Draw random thirds of all tiles in which there is something to learn."""
    rng, n, done = np.random.default_rng(0), [len(scene.cores) for scene in scenes], 0
    while done < draws:
        taught = np.split(rng.permutation(sum(n)) < max(1, sum(n) // 3), np.cumsum(n)[:-1])
        if any(
            np.isin(s.reference_tile, np.flatnonzero(t)).any()
            for s, t in zip(scenes, taught, strict=True)
        ):
            done += 1
            yield [(t, ~t) for t in taught]


def each_scene(scenes: Sequence[Labelled]) -> Iterator[Draw]:
    """Teach by one scene and score all others, each in turn."""
    for teacher in range(len(scenes)):
        yield [
            (np.full(len(scene.cores), i == teacher), np.full(len(scene.cores), i != teacher))
            for i, scene in enumerate(scenes)
        ]


def as_a_run_does(examples: Examples) -> tuple[Classifier, float]:
    """Teach with the threshold that tiles held out choose."""
    classifier = Classifier.fit(examples.figures, examples.class_id, weight=examples.weight)
    return classifier, held_out(examples).class_thresh


def quickly(examples: Examples) -> tuple[Classifier, float]:
    """Teach with fewer trees and the usual threshold."""
    known = examples.figures, examples.class_id
    return Classifier.fit(*known, FEWER_TREES, examples.weight), FALLBACK


def row(
    name: str, model: str, scenes: Sequence[Labelled], draws: Iterator[Draw], teach: Teach
) -> str:
    """Score every draw and return the row of means."""
    before, after, alike, taught = [], [], [], []
    for draw in draws:
        plain = total(scenes, draw, [scene.by_default for scene in scenes])
        try:
            n, thresh, places = with_classes(scenes, draw, teach)
        except ExamplesError:  # no candidate shows any of the labels
            continue
        before.append(plain.rates())
        kept = [one.worth_most(thresh) for one in places]
        after.append(total(scenes, draw, kept).rates())
        alike.append(precision_at(scenes, draw, places, plain.rates()[2]))
        taught.append(n)
        # on the way, for it may take long
        print(f"{name}, {len(after)} draws: {rates_of(before, after)}", file=sys.stderr, flush=True)
    tiles = sum(len(scene.cores) for scene in scenes)
    counts = f"{tiles} | {np.mean(taught):.0f}"
    reached = np.isfinite(alike)
    same = f"{np.mean(np.array(alike)[reached]):.2f}" if reached.mean() > 0.5 else "not reached"
    return f"| {name} | {model} | {counts} | {rates_of(before, after)} | {same} |"


def rates_of(before: list[list[float]], after: list[list[float]]) -> str:
    """Mean rates without and with classes, as cells of a table."""
    cells = []
    for values in (before, after):
        f1, *others = np.mean(values, axis=0)
        cells += [f"{f1:.2f} ± {np.std(values, axis=0)[0]:.2f}", *(f"{one:.2f}" for one in others)]
    return " | ".join(cells)


def with_classes(
    scenes: Sequence[Labelled], draw: Draw, teach: Teach
) -> tuple[int, float, list[Places]]:
    """Teach by the labels of a draw: the number of labels, the threshold, and scores at places."""
    found, n = [], 0
    for scene, (taught, _) in zip(scenes, draw, strict=True):
        here = np.flatnonzero(taught[scene.tile] & scene.home)
        labels = scene.reference[np.isin(scene.reference_tile, np.flatnonzero(taught))]
        n += len(labels)
        if not len(here):
            continue
        area = shapely.union_all(scene.cores[taught])
        labels = labels.assign(class_id=1, label=labels.index.astype(str), said_by="benchmark")
        if scene.iou_thresh < 0.5:  # crowns that are labelled by their boxes
            boxed = match_labels(boxes(labels), boxes(scene.frame.iloc[here]), area)
            found.append(boxed)
        else:
            found.append(match_labels(labels, scene.frame.iloc[here], area))
    examples = join([Examples(one.frame.to_crs(found[0].frame.crs)) for one in found])
    check(examples)
    classifier, thresh = teach(examples)
    places = []
    for scene in scenes:
        _, score = classifier.best(scene.frame[list(FEATURES)].to_numpy(np.float32))
        allowed = np.where(scene.able, score, -1.0)
        places.append(places_of(scene.candidates, scene.shared, allowed))
    return n, thresh, places


def precision_at(
    scenes: Sequence[Labelled], draw: Draw, places: list[Places], recall: float
) -> float:
    """Precision of the highest threshold whose recall is no lower than one without classes."""
    best = float("nan")
    for percent in range(5, 100, 5):
        kept = [one.worth_most(percent / 100) for one in places]
        _, precision, reached, _ = total(scenes, draw, kept).rates()
        if reached < recall:
            break
        best = precision
    return best


def total(scenes: Sequence[Labelled], draw: Draw, kept: list[NDArray[np.bool_]]) -> Score:
    """Count over the scored tiles of all scenes."""
    result = Score(0, 0, 0, 0.0, 0.0)
    for scene, (_, scored), keep in zip(scenes, draw, kept, strict=True):
        here = keep & scene.home & scored[scene.tile]
        known = np.isin(scene.reference_tile, np.flatnonzero(scored))
        pairs = scene.pairs.only(here[scene.cleaned], known)
        cost = cost_of_pairs(pairs)
        result += Score(
            pairs.n_matched(scene.iou_thresh), pairs.n_predicted, pairs.n_reference,
            cost.seconds, cost.drawing_seconds,
        )  # fmt: skip
    return result


def speed(n: int, raster: Path, labels: Path, given: argparse.Namespace) -> str:
    """Teach a mosaic of so many candidates anew; what it takes with and without its features."""
    one = finished_run(raster, given)
    times = math.ceil(math.sqrt(n / max(1, one.tiles["n_candidates"].sum())))
    folder = given.runs / given.model / f"{raster.stem}-{n}"
    folder.mkdir(parents=True, exist_ok=True)
    scene = one.scenes[0]
    mosaic = write_mosaic(raster, folder / "mosaic.vrt", scene.width * times, scene.height * times)
    area = folder / "area.geojson"
    frame = gpd.GeoDataFrame(geometry=[scene.window_polygon(scene.window)], crs=scene.crs)
    frame.to_file(area)
    plain = Job.create(source=str(mosaic), out_dir=str(folder / "run"), model=given.model,
                       tile_size=given.tile_size)  # fmt: skip
    taught = plain.changed(examples=str(labels), labelled_area=str(area))
    candidates = run(plain).tiles["n_candidates"].sum()
    seconds = []
    for job in (plain, taught, taught):
        start = time.perf_counter()
        n_labels = len(run(job).layer)
        seconds.append(time.perf_counter() - start)
    return (
        f"{candidates:,} candidates · other thresholds {seconds[0]:.0f} s · taught for the first "
        f"time {seconds[1]:.0f} s · taught anew {seconds[2]:.0f} s, {n_labels:,} labels"
    )


if __name__ == "__main__":
    main()
