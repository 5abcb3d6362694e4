"""From stored candidates to the layer, the report and the QGIS project."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime

import geopandas as gpd
import pandas as pd
import shapely

from workbench._support.files import atomic_path
from workbench._support.text import duration
from workbench.candidates.select import select
from workbench.candidates.store import valid_masks
from workbench.candidates.table import Candidates
from workbench.errors import RunFailedError
from workbench.layer import qgis
from workbench.layer.files import read_numbers, write_layer
from workbench.layer.report import charts
from workbench.layer.report.page import write_report
from workbench.layer.schema import as_layer, as_tiles
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import clean
from workbench.polygons.seams import merge_seams
from workbench.raster.tiles import tile_windows
from workbench.runs.classes import (
    Taught,
    classed_polygons,
    keep_examples,
    refuse_to_lose_verdicts,
    teach,
    without_class,
)
from workbench.runs.folder import refuse_to_lose_review
from workbench.runs.plan import (
    Plan,
)
from workbench.runs.record import (
    read_record,
    write_job,
)
from workbench.runs.result import Run

# -------------------------------------------------------------------------------- 3. finish


def finish(plan: Plan) -> Run:
    """Make the layer from the stored candidates, and write everything that the folder holds.

    The layer goes through in batches and is held whole only where it must not overlap (`planar`).
    """

    def ledger(counts: Mapping[str, int]) -> gpd.GeoDataFrame:
        # the last moment: a review may have begun during a long run
        refuse_to_lose_review(plan.folder)
        # without it the GeoPackage stands for itself, should this be the last that we get to write
        (plan.folder / "prelabels.parquet").unlink(missing_ok=True)
        return _ledger_layer(plan, counts)

    start = time.perf_counter()
    taught = teach(plan)
    if taught is not None:
        refuse_to_lose_verdicts(plan)
    styles = qgis.styles(plan.job.classes, plan.job.planar)
    tiles = write_layer(_layer(plan, taught), ledger, plan.folder, styles=styles).tiles
    if taught is not None:
        keep_examples(plan, taught)
    scenes = tuple(part.scene for part in plan.scenes)
    result = Run(plan.job, plan.folder, scenes, tiles, plan.aoi)
    _write(result, taught, time.perf_counter() - start)
    failed = tiles[tiles["status"] == "failed"]
    if len(failed):
        first = failed.iloc[0]
        raise RunFailedError(
            f"{len(failed)} of {len(tiles)} tiles failed, the first is {first['tile']}: "
            f"{first['error']}\nThe other tiles are in {plan.folder}, with all errors in "
            "tiles.parquet. Run again to try the failed tiles again."
        )
    return result


def _layer(plan: Plan, taught: Taught | None) -> Iterator[gpd.GeoDataFrame]:
    """Select, trace, merge and clean: the layer in batches, by source, tile and ordinal."""
    merged = merge_seams(_traced(plan, taught), _windows(plan), plan.folder)
    if plan.job.planar:  # any polygon may cut any other
        merged = iter([pd.concat(merged, ignore_index=True)])
    for batch in merged:
        yield _as_layer(_in_aoi(clean(batch, plan.job.cleaning), plan), plan)


def _traced(plan: Plan, taught: Taught | None) -> Iterator[gpd.GeoDataFrame]:
    """The selected polygons of all wanted tiles as the tiles saw them, a few tiles at a time."""
    for part in plan.scenes:
        nothing = to_polygons(Candidates.empty(plan.job.rules), part.scene, part.grid, {})
        yield nothing if taught is None else without_class(nothing)
        for candidates, records in plan.store.read([part.index(tile) for tile in part.tiles]):
            if taught is not None:
                yield classed_polygons(plan, taught, part, candidates, records)
                continue
            chosen = select(candidates, plan.job.thresholds)
            valid = valid_masks(records, candidates.rules)
            yield to_polygons(chosen, part.scene, part.grid, valid)


def _windows(plan: Plan) -> gpd.GeoDataFrame:
    """The windows that were looked at: a failed tile says nothing of what its neighbours saw."""
    known = plan.store.ledger()
    windows = [
        tile_windows(
            part.scene,
            [tile for tile in part.tiles if known[part.index(tile)][0].status != "failed"],
        )
        for part in plan.scenes
    ]
    return pd.concat(windows, ignore_index=True)


def _in_aoi(polygons: gpd.GeoDataFrame, plan: Plan) -> gpd.GeoDataFrame:
    """Keep whole what has its representative point in the AOI."""
    if plan.aoi is None or not len(polygons):
        return polygons
    shapely.prepare(plan.aoi)
    inside = shapely.intersects(plan.aoi, polygons.representative_point().to_numpy())
    return polygons[inside].reset_index(drop=True)


def _as_layer(polygons: gpd.GeoDataFrame, plan: Plan) -> gpd.GeoDataFrame:
    tile = _tile_names(polygons)
    if "class_id" not in polygons:
        default = pd.array([plan.job.default_class] * len(polygons), dtype="Int64")
        polygons = polygons.assign(class_id=default)
    return as_layer(
        polygons.assign(id=tile + "/" + polygons["ordinal"].astype(str), source_tile=tile)
    )


def _tile_names(frame: pd.DataFrame) -> pd.Series:
    row, col = frame["tile_row"].astype(str), frame["tile_col"].astype(str)
    return frame["source"].astype(str) + "/r" + row + "c" + col


def _ledger_layer(plan: Plan, counts: Mapping[str, int]) -> gpd.GeoDataFrame:
    """One row for each wanted tile: its core and what the ledger says."""
    known = plan.store.ledger()
    rows = [asdict(known[part.index(tile)][0]) for part in plan.scenes for tile in part.tiles]
    cores = [part.scene.window_polygon(tile.core) for part in plan.scenes for tile in part.tiles]
    ledger = gpd.GeoDataFrame(rows, geometry=cores, crs=plan.crs)
    ledger["tile"] = _tile_names(ledger)
    ledger["n_polygons"] = [counts.get(tile, 0) for tile in ledger["tile"]]
    return as_tiles(ledger)


def _write(result: Run, taught: Taught | None, seconds: float) -> None:
    """Write the rest, when the layer has been written in so many seconds."""
    start = time.perf_counter()
    folder, classes, scene = result.folder, result.job.classes, result.scenes[0]
    numbers = read_numbers(folder / "prelabels.parquet")
    write_job(result.job, folder)
    with atomic_path(folder / "tiles.parquet") as path:
        result.tiles.to_parquet(path, index=False)
    qgis.write_project(
        folder / "review.qgz",
        gpkg=folder / "prelabels.gpkg",
        rasters=[qgis.scene_raster(scene) for scene in result.scenes],
        crs=scene.crs,
        bounds=tuple(result.tiles.total_bounds),
        classes=classes,
        title=folder.name,
        tiles=result.tiles,
        aoi=result.aoi,
        planar=result.job.planar,
    )
    write_report(
        folder / "report.html",
        title=f"Run {folder.name}",
        picture_png=result.picture(),
        summary=result.summary,
        parameters=result.job.parameters(),
        tiles=result.tiles,
        charts={
            "Tiles": charts.tile_maps(result.tiles),
            "Scores and areas": charts.distributions(
                numbers, result.job.pred_iou_thresh, result.job.stability_score_thresh
            ),
        },
        tables=({} if taught is None else {"Classes": taught.summary(classes)})
        | {
            "Seams": charts.seams(numbers),
            "Topology": charts.topology(result.batches(), folder),
            "Time": {
                "finished": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
                "segmenting, sum over tiles": duration(float(result.tiles["seconds"].sum())),
                "polygons, seams, cleaning and the layer's files": duration(seconds),
                "the other files": duration(time.perf_counter() - start),
            },
            "Versions": read_record(folder)["versions"],
        },
    )
