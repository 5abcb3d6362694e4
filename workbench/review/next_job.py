"""Thresholds for the next scene: what a review knows for sure, and the job that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import shapely

from workbench._support.files import atomic_path
from workbench._support.secrets import without_secrets
from workbench.errors import ReviewError
from workbench.evaluation.advice import Advice, advise
from workbench.evaluation.judged import JudgedAdvice
from workbench.layer.cores import reviewed_tiles, tiles_of
from workbench.layer.schema import DRAWN, LABELS
from workbench.polygons.areas import area_of, with_area
from workbench.raster.crs import crs_short
from workbench.raster.vectors import read_vectors
from workbench.review.changes import changes
from workbench.review.decisions import advise_by_decisions
from workbench.review.job import ReviewJob
from workbench.review.tile_planes import tile_planes
from workbench.runs.result import Run

ADVICE = ("advice.png", "job.yaml")


def advise_run(job: ReviewJob, run: Run, labels: gpd.GeoDataFrame) -> Advice | JudgedAdvice:
    """Advise thresholds by a reference if one is given, else by the reviewed labels.

    Only tiles where the labels are complete count. These are the tiles in the labelled area, if one
    is given. Else they are the tiles where the reference has labels, or the fully reviewed ones.
    If fewer than two tiles are fully reviewed, the decisions themselves count, wherever they were
    made. Raises `ReviewError` if neither can be, or if the labels lie outside the run.
    """
    crs, n = run.layer.crs, len(run.tiles)
    within = None
    if job.reference is not None:
        truth = _of_run(run, "reference", job.reference)
        tiles = tiles_of(truth, run.tiles)
        known = f"all labels of reference {job.reference} lie in {len(tiles)} of {n} tiles"
    else:
        truth = labels[labels["status"].isin(["accepted", "edited"])]
        tiles = reviewed_tiles(run.tiles, labels, labels["status"].eq("unreviewed").to_numpy())
        known = f"{len(tiles)} of {n} tiles are fully reviewed"
    if job.labelled_area is not None:
        within = labelled_area_of_run(job, run)
        shared = shapely.intersection(run.tiles.geometry.to_numpy(), area_of(within, crs))
        tiles = set(run.tiles["tile"][shapely.area(shared) > 0])
        known = f"labelled_area {job.labelled_area} reaches into {len(tiles)} of {n} tiles"
    by_review = job.reference is None and job.labelled_area is None and not run.job.knows_classes
    if len(tiles) < 2 and by_review and _has_both(labels):
        return advise_by_decisions(run, labels)
    if len(tiles) < 2:
        remedy = "Review more tiles fully, or run with a smaller tile_size."
        if n == 1:
            known = "this run has only one"
            remedy = f"Run with a tile_size below {run.job.tile_size} and review that."
        if by_review:
            remedy += " Or accept some labels and reject others."
        raise ReviewError(
            f"advice needs labels in at least two tiles, to hold one out: {known}. {remedy}"
        )
    if run.job.examples is not None:
        raise ReviewError(
            "this run has learned classes, and thresholds do not decide about those. To learn from "
            "this review, name the reviewed layer in `examples` of the next run."
        )
    if run.job.finds_concepts:
        raise ReviewError(
            "this run has looked for concepts, and advice about their score is not made yet. Set "
            "pred_iou_thresh by hand and run again: other values take seconds."
        )
    planes = tile_planes(run, truth, tiles, within=within)
    return advise(list(planes.values()), run.job.thresholds, seed=job.seed)


def labelled_area_of_run(job: ReviewJob, run: Run) -> gpd.GeoDataFrame:
    """Read the labelled area of a review; raises `ReviewError` if it lies outside the run."""
    return _of_run(run, "labelled_area", str(job.labelled_area))


def _has_both(labels: gpd.GeoDataFrame) -> bool:
    """Whether some labels are kept and some are rejected, of those that the run made."""
    made = labels["status"][~labels["id"].str.startswith(DRAWN)]
    return bool(made.isin(["accepted", "edited"]).any() and made.eq("rejected").any())


def _of_run(run: Run, name: str, path: str) -> gpd.GeoDataFrame:
    """Read polygons in the CRS of the run, and refuse those that lie elsewhere."""
    given = without_secrets(path)
    frame = with_area(read_vectors(path, f"{name} {given}", ReviewError, layer=LABELS))
    if frame.empty:
        raise ReviewError(f"{name} {given} has no polygons. Give a vector file with polygons.")
    frame = frame.to_crs(run.layer.crs)
    here = shapely.box(*run.tiles.total_bounds)
    if not frame.intersects(here).any():
        theirs, ours = (
            ", ".join(f"{value:.6g}" for value in of.total_bounds) for of in (frame, run.tiles)
        )
        raise ReviewError(
            f"{name} {given} lies outside the run: its bounds are {theirs}, those of the run "
            f"{ours} ({crs_short(run.layer.crs)}). Give the file of this scene, and check its CRS."
        )
    return frame


def write_advised_job(
    job: ReviewJob, run: Run, labels: gpd.GeoDataFrame, advice: Advice | JudgedAdvice
) -> tuple[Path, str]:
    """Write the job of the next scene with the advised thresholds; see `_write_job`."""
    learned: dict[str, float | str] = {
        "pred_iou_thresh": advice.advised.pred_iou_thresh,
        "stability_score_thresh": advice.advised.stability_score_thresh,
    }
    if run.job.examples is not None and job.next_source is not None:
        learned["examples"] = str(run.folder / "examples.parquet")
    return _write_job(job, run, labels, learned)


def write_taught_job(
    job: ReviewJob, run: Run, labels: gpd.GeoDataFrame, examples: Path
) -> tuple[Path, str]:
    """Write the job of the next scene with the examples of a review; see `_write_job`.

    Both thresholds are open then: where classes decide, the model's usual ones would only hide
    objects.
    """
    learned = dict.fromkeys(("pred_iou_thresh", "stability_score_thresh", "labelled_area"))
    return _write_job(job, run, labels, {**learned, "examples": str(examples)})


def _write_job(
    job: ReviewJob, run: Run, labels: gpd.GeoDataFrame, learned: Mapping[str, Any]
) -> tuple[Path, str]:
    """Write the job of the next scene with what was learned, as `papermill -f` takes it.

    Without a next scene, the job is for this scene again, and uses its stored candidates. If
    somebody has reviewed `labels`, it refreshes the layer, so that all decisions stay. Returns the
    file, and a sentence that says which of these it is.
    """
    place: dict[str, str | bool | None]
    if job.next_source is not None:
        # what belongs to a place stays with this scene
        belongs = ("aoi", "out_dir", "reference", "labelled_area")
        place = {"source": job.next_source, "refresh": False, **dict.fromkeys(belongs)}
        effect = f"It labels {job.next_source}."
    elif changes(labels, run.layer)["change"].eq("unreviewed").all():
        place = {"out_dir": str(run.folder), "refresh": False}
        effect = (
            "It labels this scene again, from its stored candidates, in seconds. Set next_source "
            "to label another scene."
        )
    else:
        place = {"out_dir": str(run.folder), "refresh": True}
        effect = (
            "It labels this scene again, from its stored candidates, in seconds, and keeps every "
            "label that a person has touched. Set next_source to label another scene."
        )
    with atomic_path(job.folder / "job.yaml") as path:
        # a scheduler of this run may be gone by then
        changed = {"scheduler": None, **place, **learned}
        path.write_text(run.job.changed(**changed).to_yaml(), encoding="utf-8")
    return job.folder / "job.yaml", effect


def forget_advice(folder: Path) -> str:
    """Remove the advice of an earlier review; return a sentence that says so, if there was any."""
    there = [path for name in ADVICE if (path := folder / name).exists()]
    for path in there:
        path.unlink()
    names = " and ".join(path.name for path in there)
    return f" Removed {names} of an earlier review." if there else ""
