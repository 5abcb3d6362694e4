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
from workbench.errors import DatasetError, ExamplesError, ReviewError, SceneError
from workbench.evaluation.advice import Advice
from workbench.evaluation.judged import JudgedAdvice
from workbench.layer.report.map import figure_png
from workbench.review.changes import changes
from workbench.review.charts import draw_advice, draw_change_map, draw_changes, summary_of
from workbench.review.examples import forget_examples, learn_from
from workbench.review.job import ReviewJob
from workbench.review.next_job import (
    advise_run,
    forget_advice,
    write_advised_job,
    write_taught_job,
)
from workbench.review.read import Reviewed, read_review
from workbench.review.shapes import find_issues, write_issues
from workbench.runs.labels import EXAMPLES
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
    `thresholds` and `classes`: what the judged labels teach for the next scene. `dataset`: what
    there is to train on. Where something cannot be made, its text says why.
    """

    folder: Path
    labels: gpd.GeoDataFrame
    rasters: str  # which of them cannot be read any more, and why; empty if all can
    shapes: Finding
    changes: Finding
    thresholds: Finding
    classes: Finding
    dataset: Finding


def review(job: ReviewJob) -> Review:
    """Read a reviewed layer, and write all that can be learned from it.

    The reviewed file itself is not touched. Raises `RunFolderError` if the run folder holds no
    finished run, and `ReviewError` if the reviewed file is not a review of that run.
    """
    run = read_run(Path(job.run_dir))
    reviewed = read_review(job.gpkg, run)
    labels = reviewed.labels
    thresholds, classes = _for_the_next_scene(job, run, labels)
    problems = filter(None, (scene.problem() for scene in run.scenes))
    return Review(
        folder=job.folder,
        labels=labels,
        rasters="".join(f"{problem}\n" for problem in problems),
        shapes=_shapes(job, run, reviewed),
        changes=_changes(job, run, labels),
        thresholds=thresholds,
        classes=classes,
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


def _for_the_next_scene(
    job: ReviewJob, run: Run, labels: gpd.GeoDataFrame
) -> tuple[Finding, Finding]:
    """Advise thresholds and make examples; `job.yaml` is that of the examples, if there are any."""
    advice = None
    try:
        advice = advise_run(job, run, labels)
    except ReviewError as error:
        thresholds = Finding(f"No advice: {error}{forget_advice(job.folder)}")
    else:
        thresholds = _advised(job, advice)
    try:
        lessons = learn_from(job, run, labels)
    except (ExamplesError, ReviewError, SceneError) as error:
        forget_examples(job.folder)
        classes = Finding(f"No examples: {error}")
        if advice is not None:
            path, effect = write_advised_job(job, run, labels, advice)
            text = f"{thresholds.text}\nThe job with the advised thresholds: {path}\n{effect}"
            thresholds = Finding(text, thresholds.pictures)
        return thresholds, classes
    path, effect = write_taught_job(job, run, labels, job.folder / EXAMPLES)
    expected = lessons.expected
    known = f" (F1 {expected.f1:.2f}, class_thresh {expected.class_thresh:g})"
    lines = [
        f"{len(lessons.examples):,} examples: {job.folder / EXAMPLES}",
        *lessons.notes,
        f"On tiles held out they give: {expected.text()}{known if expected.n_tiles else ''}.",
        f"The job that learns from them: {path}",
        effect,
    ]
    return thresholds, Finding("\n".join(lines), table=lessons.table(run.job.classes))


def _advised(job: ReviewJob, advice: Advice | JudgedAdvice) -> Finding:
    picture = job.folder / "advice.png"
    if isinstance(advice, JudgedAdvice):
        picture.unlink(missing_ok=True)  # of an earlier review
        return Finding(f"{_FEW_TILES}\n{advice}")
    return Finding(str(advice), (_saved(picture, draw_advice(advice)),))


def _dataset(job: ReviewJob, run: Run, labels: gpd.GeoDataFrame) -> Finding:
    try:
        dataset = export_run(job, run, labels)
    except (DatasetError, SceneError) as error:
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
