"""Examples from a review: what was judged teaches the classes of the next scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from workbench.errors import ExamplesError
from workbench.layer.cores import reviewed_tiles
from workbench.learning.classifier import NONE
from workbench.learning.examples import PERSON, Examples, check, join, read_examples
from workbench.learning.held_out import HeldOut, held_out
from workbench.polygons.areas import area_of
from workbench.raster.tiles import TileGrid
from workbench.review.job import ReviewJob
from workbench.review.next_job import labelled_area_of_run
from workbench.runs.classes import examples_of
from workbench.runs.folder import store_in
from workbench.runs.labels import EXAMPLES
from workbench.runs.result import Run
from workbench.runs.tile_stream import ScenePlan


@dataclass(frozen=True, eq=False)
class Lessons:
    """The examples of a review, what they would have given on tiles held out, and remarks."""

    examples: Examples
    expected: HeldOut
    notes: tuple[str, ...]

    def table(self, classes: Mapping[int, str]) -> pd.DataFrame:
        """A row for each class: how many of its labels are right, and how many are found."""
        rows = {
            f"{number} – {classes.get(number, '?')}": {
                "labelled": one.n_known,
                "pre-labels": one.n_shown,
                "right": one.n_right,
                "precision": round(one.n_right / one.n_shown, 2) if one.n_shown else np.nan,
                "recall": round(one.n_right / one.n_known, 2) if one.n_known else np.nan,
            }
            for number, one in self.expected.by_class
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def learn_from(job: ReviewJob, run: Run, labels: gpd.GeoDataFrame) -> Lessons:
    """Make examples of the judged labels, write them, and hold tiles out to see what they teach.

    Accepted and edited labels are of their class, rejected and deleted ones are none of the
    classes. Where the labels are complete (in `labelled_area`, else in the fully reviewed tiles),
    all other candidates are none of them, too. What taught this run stays, as far as it is from
    other scenes. Raises `ExamplesError` if nothing can be learned.
    """
    judged, notes = _judged(job, run, labels)
    complete = _complete(job, run, labels)
    if judged.empty:
        raise ExamplesError("nobody has judged a label yet: accept or reject some in QGIS first")
    ledger = store_in(run.folder).ledger()
    parts = []
    for scene in run.scenes:
        grid = TileGrid(scene.width, scene.height, run.job.tile_size, run.job.overlap)
        here = run.tiles[(run.tiles["source"] == scene.name) & run.tiles["status"].eq("ok")]
        tiles = zip(here["tile_row"].tolist(), here["tile_col"].tolist(), strict=True)
        parts.append(ScenePlan(scene, grid, tuple(grid.tile(row, col) for row, col in tiles)))
    found = [
        one
        for part in parts
        for one in examples_of(run.folder, part, parts, ledger, judged, complete)
    ]
    before = read_examples(run.folder / EXAMPLES)
    if before is not None:
        names = [scene.name for scene in run.scenes]
        found.append(Examples(before.frame[~before.frame["source"].isin(names)]))
    found = [one for one in found if len(one)]
    if not found:
        raise ExamplesError("no stored candidate shows a judged label")
    examples = join(found)
    notes += check(examples)
    examples.write(job.folder / EXAMPLES)
    return Lessons(examples, held_out(examples, run.job.class_thresh), tuple(notes))


def default_class_of(job: ReviewJob, run: Run) -> int | None:
    """The class of accepted labels that have none; None: it is not known."""
    default = run.job.default_class if job.default_class is None else job.default_class
    if default is None and len(run.job.classes) == 1:
        default = next(iter(run.job.classes))
    return default


def forget_examples(folder: Path) -> None:
    """Remove the examples of an earlier review."""
    (folder / EXAMPLES).unlink(missing_ok=True)


def _judged(
    job: ReviewJob, run: Run, labels: gpd.GeoDataFrame
) -> tuple[gpd.GeoDataFrame, list[str]]:
    """What a person has said: polygons with `class_id`, `label` and `said_by`, and remarks."""
    default = default_class_of(job, run)
    kept = labels[labels["status"].isin(["accepted", "edited"])]
    class_id = kept["class_id"].astype("Int64")
    class_id = class_id if default is None else class_id.fillna(default)
    known = class_id.isin(list(run.job.classes)).to_numpy(bool)
    notes = []
    if not known.all():
        notes.append(
            f"{np.count_nonzero(~known)} accepted labels have no class, or one that `classes` does "
            "not name, and teach nothing. Set their class, or default_class."
        )
    refused = labels[labels["status"] == "rejected"]
    deleted = run.layer[~run.layer["id"].isin(labels["id"])]
    parts = [
        (kept[known], class_id[known].to_numpy(np.int64)),
        (refused, np.full(len(refused), NONE)),
        (deleted, np.full(len(deleted), NONE)),
    ]
    crs = run.layer.crs
    frames = [
        gpd.GeoDataFrame(
            {"class_id": numbers, "label": part["id"].astype(str).to_numpy(), "said_by": PERSON},
            geometry=shapely.make_valid(part.geometry.to_numpy()), crs=crs,
        )
        for part, numbers in parts
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True), notes


def _complete(job: ReviewJob, run: Run, labels: gpd.GeoDataFrame) -> shapely.Geometry | None:
    """Where the labels are complete; None: nowhere."""
    if job.labelled_area is not None:
        area = area_of(labelled_area_of_run(job, run), run.layer.crs)
    else:
        waiting = labels["status"].eq("unreviewed").to_numpy()
        tiles = run.tiles[run.tiles["tile"].isin(reviewed_tiles(run.tiles, labels, waiting))]
        if tiles.empty:
            return None
        area = shapely.union_all(tiles.geometry.to_numpy())
    return area if run.aoi is None else shapely.intersection(area, run.aoi)
