"""A review from its parameters to its files: what `review.ipynb` runs and shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import pandas as pd
from matplotlib.figure import Figure

from workbench._support.files import atomic_path
from workbench.dataset.chips import Chips
from workbench.dataset.write import Dataset, write_dataset
from workbench.errors import DatasetError, ReviewError, SceneError
from workbench.evaluation.judged import JudgedAdvice
from workbench.layer.report.map import figure_png
from workbench.review.changes import changes
from workbench.review.charts import draw_advice, draw_change_map, draw_changes, summary_of
from workbench.review.job import ReviewJob
from workbench.review.next_job import advise_run, forget_advice, write_advised_job
from workbench.review.read import Reviewed, read_review
from workbench.review.shapes import find_issues, write_issues
from workbench.runs.result import Run, read_run

_FEW_TILES = (
    "Fewer than two tiles are fully reviewed, so the thresholds are those that fit the decisions "
    "so far. They say nothing about objects that were missed."
)


@dataclass(frozen=True)
class Finding:
    """One thing that a review has found, as a notebook shows it: text, PNG pictures, a table."""

    text: str
    pictures: tuple[bytes, ...] = ()
    table: pd.DataFrame | None = None


@dataclass(frozen=True)
class Review:
    """What came out of a review. All files are in `folder`.

    `shapes`: what is wrong with the labels' shapes. `changes`: what became of the pre-labels.
    `thresholds`: those for the next scene. `dataset`: what there is to train on. Where something
    cannot be made, its text says why.
    """

    folder: Path
    labels: gpd.GeoDataFrame
    shapes: Finding
    changes: Finding
    thresholds: Finding
    dataset: Finding


def review(job: ReviewJob) -> Review:
    """Read a reviewed layer, and write all that can be learned from it.

    The reviewed file itself is not touched. Raises `RunFolderError` if the run folder holds no
    finished run, and `ReviewError` if the reviewed file is not a review of that run.
    """
    run = read_run(Path(job.run_dir))
    reviewed = read_review(job.gpkg, run)
    labels = reviewed.labels
    return Review(
        folder=job.folder,
        labels=labels,
        shapes=_shapes(job, run, reviewed),
        changes=_changes(job, run, labels),
        thresholds=_thresholds(job, run, labels),
        dataset=_dataset(job, run, labels),
    )


def _shapes(job: ReviewJob, run: Run, reviewed: Reviewed) -> Finding:
    labels = reviewed.labels
    read = "".join(f"{note}\n" for note in reviewed.notes)
    finest = min(scene.transform.a for scene in run.scenes)
    issues = find_issues(labels, finest, planar=run.job.planar)
    path = job.folder / "issues.gpkg"
    write_issues(issues, path)
    counts = issues["kind"].value_counts().rename("labels").to_frame().rename_axis(None)
    n, mended = len(issues), int(issues["mended"].notna().sum())
    if not n:
        return Finding(f"{read}No issues in {len(labels):,} labels of {job.gpkg}.", table=counts)
    return Finding(
        f"{read}{n:,} issues in {len(labels):,} labels of {job.gpkg}, {mended:,} of them with a "
        f"safe fix: {path}",
        table=counts,
    )


def _changes(job: ReviewJob, run: Run, labels: gpd.GeoDataFrame) -> Finding:
    told = changes(labels, run.layer)
    pictures = [_saved(job.folder / "changes.png", draw_changes(told, run.job.classes))]
    text, path = "", job.folder / "changes_map.png"
    try:
        pictures.append(_saved(path, draw_change_map(told, labels, run)))
    except SceneError as error:
        path.unlink(missing_ok=True)  # of an earlier review
        text = f"No map: {error}"
    return Finding(text, tuple(pictures), summary_of(told))


def _thresholds(job: ReviewJob, run: Run, labels: gpd.GeoDataFrame) -> Finding:
    try:
        advice = advise_run(job, run, labels)
    except ReviewError as error:
        return Finding(f"No advice: {error}{forget_advice(job.folder)}")
    path, effect = write_advised_job(job, run, labels, advice)
    text = f"{advice}\nThe job with the advised thresholds: {path}\n{effect}"
    picture = job.folder / "advice.png"
    if isinstance(advice, JudgedAdvice):
        picture.unlink(missing_ok=True)  # of an earlier review
        return Finding(f"{_FEW_TILES}\n{text}")
    return Finding(text, (_saved(picture, draw_advice(advice)),))


def _dataset(job: ReviewJob, run: Run, labels: gpd.GeoDataFrame) -> Finding:
    try:
        dataset = export_run(job, run, labels)
    except DatasetError as error:
        return Finding(f"No data set: {error}")
    return Finding(str(dataset), table=dataset.summary)


def export_run(job: ReviewJob, run: Run, labels: gpd.GeoDataFrame) -> Dataset:
    """Write the data set of a review, as `write_dataset` does."""
    default_class = run.job.default_class if job.default_class is None else job.default_class
    chips = Chips(
        chip_size=job.chip_size,
        val=job.val,
        test=job.test,
        seed=job.seed,
        default_class=default_class,
    )
    folder = job.folder / "dataset"
    return write_dataset(
        labels, run.tiles, run.scenes, folder, classes=run.job.classes, aoi=run.aoi, chips=chips
    )


def _saved(path: Path, figure: Figure) -> bytes:
    """Write a picture, and return it."""
    picture = figure_png(figure)
    with atomic_path(path) as temporary:
        temporary.write_bytes(picture)
    return picture
