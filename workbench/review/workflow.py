"""The parameters of a review, and what they ask of the run and of the labels that came back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import pyogrio
import shapely

from workbench._support.files import atomic_path
from workbench.dataset.chips import Chips
from workbench.dataset.write import Dataset, write_dataset
from workbench.errors import ReviewError
from workbench.evaluation.advice import Advice, advise
from workbench.layer.cores import reviewed_tiles, tiles_of
from workbench.polygons.areas import area_of, with_area
from workbench.raster.crs import crs_name
from workbench.review.changes import changes
from workbench.review.job import ReviewJob
from workbench.review.tile_planes import tile_planes
from workbench.runs.result import Run

ADVICE = ("advice.png", "job.yaml")


def read_vector(path: str) -> gpd.GeoDataFrame:
    """Read polygons with a CRS, mended where invalid; raises `ReviewError` if there are none."""
    try:
        frame = pyogrio.read_dataframe(path)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise ReviewError(f"{path} cannot be read as a vector file: {error}") from error
    if isinstance(frame, gpd.GeoDataFrame) and frame.crs is not None:
        frame = with_area(frame)
        if len(frame):
            return frame
    raise ReviewError(f"{path} has no polygons with a CRS. Give a vector file with both.")


def advise_run(job: ReviewJob, run: Run, labels: gpd.GeoDataFrame) -> Advice:
    """Advise thresholds by a reference, where one is given, else by the reviewed labels.

    What is complete is the labelled area if one is given; else the tiles that a reference reaches,
    or `reviewed_tiles`. Raises `ReviewError` if that is less than two tiles, or elsewhere.
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
        known = f"{len(tiles)} of {n} tiles are reviewed to their end"
    if job.labelled_area is not None:
        within = _of_run(run, "labelled_area", job.labelled_area)
        shared = shapely.intersection(run.tiles.geometry.to_numpy(), area_of(within, crs))
        tiles = set(run.tiles["tile"][shapely.area(shared) > 0])
        known = f"labelled_area {job.labelled_area} reaches into {len(tiles)} of {n} tiles"
    if len(tiles) < 2:
        remedy = "Label more tiles to their end, or run with a smaller tile_size."
        if n == 1:
            known = "this run has one"
            remedy = f"Run with a tile_size below {run.job.tile_size} and review that."
        raise ReviewError(
            f"advice needs labels in at least two tiles, to hold one out, and {known}. {remedy}"
        )
    planes = tile_planes(run, truth, tiles, within=within)
    return advise(list(planes.values()), run.job.thresholds, seed=job.seed)


def _of_run(run: Run, name: str, path: str) -> gpd.GeoDataFrame:
    """Read polygons in the CRS of the run, and refuse those of another place."""
    frame = read_vector(path).to_crs(run.layer.crs)
    here = shapely.box(*run.tiles.total_bounds)
    if not frame.intersects(here).any():
        theirs, ours = (
            ", ".join(f"{value:.6g}" for value in of.total_bounds) for of in (frame, run.tiles)
        )
        raise ReviewError(
            f"{name} {path} lies outside the run: its bounds are {theirs}, those of the run {ours} "
            f"({crs_name(run.layer.crs)}). Give the one of this scene, and check its CRS."
        )
    return frame


def write_advised_job(
    job: ReviewJob, run: Run, labels: gpd.GeoDataFrame, advice: Advice
) -> tuple[Path, str]:
    """Write the job of the next scene with the advised thresholds, as `papermill -f` takes it.

    Without a next scene it is this one again: from its stored candidates, in seconds, where nobody
    has reviewed `labels` yet; else in a run folder of its own, where it is segmented anew, for the
    labels of this one are to stay. Returns the file, and a sentence that says which.
    """
    thresholds: dict[str, Any] = {
        "pred_iou_thresh": advice.advised.pred_iou_thresh,
        "stability_score_thresh": advice.advised.stability_score_thresh,
        "scheduler": None,  # by then another one, or none
    }
    place: dict[str, str | None]
    if job.next_source is not None:
        place = {"source": job.next_source, "aoi": None, "out_dir": None}
        effect = f"It labels {job.next_source}."
    elif changes(labels, run.layer)["change"].eq("unreviewed").all():
        place = {"out_dir": str(run.folder)}
        effect = (
            "It labels this scene again, from its stored candidates, in seconds. For another set "
            "next_source."
        )
    else:
        place = {"out_dir": f"{run.folder}-advised"}
        effect = (
            "It segments this scene anew, which takes as long as the first time, into "
            f"{place['out_dir']}: reviewed labels are not replaced. For another scene set "
            "next_source."
        )
    with atomic_path(job.folder / "job.yaml") as path:
        path.write_text(run.job.changed(**thresholds, **place).to_yaml(), encoding="utf-8")
    return job.folder / "job.yaml", effect


def forget_advice(job: ReviewJob) -> str:
    """Remove the advice of an earlier review; return a sentence that says so, if there was any."""
    there = [path for name in ADVICE if (path := job.folder / name).exists()]
    for path in there:
        path.unlink()
    return f" {' and '.join(p.name for p in there)} of an earlier review are gone." if there else ""


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
