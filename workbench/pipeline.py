"""From a job to its run folder: the one place that knows the order of the steps."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyproj
import shapely
from tqdm import tqdm

from workbench import charts, qgis, report
from workbench import layer as layers
from workbench.aoi import load_aoi, parts_in
from workbench.atomic import atomic_path
from workbench.candidates import Candidates, Segmenter, select
from workbench.classic import ClassicSegmenter
from workbench.cluster import Share, segment_there, segmenter_there
from workbench.crs import to_lonlat
from workbench.errors import (
    RunFailedError,
    SceneError,
)
from workbench.finished import Run
from workbench.job import Job
from workbench.opening import open_scene
from workbench.polygons import clean, to_polygons
from workbench.raster import Scene
from workbench.runfolder import (
    FolderLock,
    claim,
    continue_run,
    name_scenes,
    read_record,
    record_change,
    refuse_foreign,
    refuse_to_lose_review,
    resolve,
    store_in,
    write_job,
)
from workbench.sample import sample_scene
from workbench.seams import merge_seams
from workbench.segmenting import ScenePlan, SegmentedTile, TileWatch, segment_tiles, store_tiles
from workbench.sources import find_sources
from workbench.store import CandidateStore, valid_masks
from workbench.tiles import Tile, TileGrid, tile_windows, tiles_over

FLUSH_SECONDS = 20.0  # a kill costs at most this much finished work
FLUSH_TILES = 64


@dataclass(frozen=True)
class Plan:
    """A job that has been checked: everything that can be wrong before long work starts."""

    job: Job
    folder: Path
    scenes: tuple[ScenePlan, ...]
    segmenter: Segmenter
    lock: FolderLock
    aoi: shapely.Geometry | None = None  # as far as it lies in the scenes, in the working CRS

    def close(self) -> None:
        """Let other processes have the run folder."""
        self.lock.release()

    @property
    def store(self) -> CandidateStore:
        """The candidates of the run folder."""
        return store_in(self.folder)

    @property
    def crs(self) -> pyproj.CRS:
        """The working CRS, which all scenes share."""
        return self.scenes[0].scene.crs

    @property
    def n_tiles(self) -> int:
        """How many tiles are wanted."""
        return sum(len(part.tiles) for part in self.scenes)

    def only(self, tiles: Collection[tuple[str, int, int]]) -> Plan:
        """The same plan for some of its tiles, by their index in the ledger."""
        scenes = [
            replace(part, tiles=tuple(tile for tile in part.tiles if part.index(tile) in tiles))
            for part in self.scenes
        ]
        return replace(self, scenes=tuple(scenes))


def run(job: Job) -> Run:
    """Do all that a job asks for and return what is in its run folder.

    Raises a `WorkbenchError` before any long work if the job cannot be done, and `RunFailedError`
    after all files are written if some tiles failed.
    """
    with closing(prepare(job)) as plan:
        done = plan.n_tiles - len(pending(plan))  # by an earlier run
        with (
            closing(segment(plan)) as tiles,
            tqdm(total=plan.n_tiles, initial=done, desc="tiles", unit="tile") as bar,
        ):
            for _ in tiles:
                bar.update()
        return finish(plan)


# --------------------------------------------------------------------------------- 1. check


def prepare(
    job: Job,
    loaded: Segmenter | None = None,
    tiles: Collection[tuple[str, int, int]] | None = None,
) -> Plan:
    """Open and check everything that a job names; leaves no trace if it cannot be done.

    The plan has the run folder to itself until it is closed. A Segmenter of an earlier plan that is
    `loaded` is used again if it has the same key. A plan for some `tiles` only, by their index in
    the ledger, is to store their candidates and no layer: a folder with a reviewed layer will do.
    """
    scenes = open_scenes(job)
    aoi = load_aoi(job.aoi) if job.aoi is not None else None
    lock = FolderLock(folder_of(job, scenes))
    try:
        return _prepare(job, scenes, aoi, lock, loaded, tiles)
    except BaseException:
        lock.release()
        raise


def _prepare(
    job: Job,
    scenes: list[Scene],
    aoi: gpd.GeoSeries | None,
    lock: FolderLock,
    loaded: Segmenter | None,
    tiles: Collection[tuple[str, int, int]] | None,
) -> Plan:
    folder = lock.folder
    recorded = read_record(folder)  # without resume, too: what no run has written is refused
    before = recorded if job.resume else {}
    scenes = name_scenes(scenes, before)
    planned, area = plan_tiles(job, scenes, aoi)
    if job.scheduler is None:
        segmenter = _segmenter(job, before.get("segmenter", {}))
    else:
        share = Share(job, folder, lock.owner, _segmenter)
        segmenter = segmenter_there(job.scheduler, share, before.get("segmenter", {}))
    if loaded is not None and loaded.key == segmenter.key:
        segmenter = loaded
    record = continue_run(folder, before, resolve(job, scenes, segmenter))
    refuse_foreign(folder)
    if tiles is None or not before:  # without resume, candidates go that the review may need
        refuse_to_lose_review(folder)
    plan = Plan(job, folder, planned, segmenter, lock, area)
    if tiles is not None:
        plan = plan.only(tiles)
    if not before or pending(plan):
        segmenter.load()
    claim(folder, job, record, before)
    return plan


def loaded_segmenter(job: Job) -> Segmenter:
    """The job's Segmenter, ready to propose, for a `prepare` that comes later."""
    segmenter = _segmenter(job, {})
    segmenter.load()
    return segmenter


def folder_of(job: Job, scenes: Sequence[Scene]) -> Path:
    """The run folder of a job, absolute."""
    return Path(job.out_dir if job.out_dir is not None else f"runs/{scenes[0].name}").absolute()


def plan_tiles(
    job: Job, scenes: Sequence[Scene], aoi: gpd.GeoSeries | None
) -> tuple[tuple[ScenePlan, ...], shapely.Geometry | None]:
    """Choose the scenes and tiles that are wanted; also returns the AOI in them."""
    parts = [None] * len(scenes) if aoi is None else parts_in(scenes, aoi)
    planned = []
    for scene, part in zip(scenes, parts, strict=True):
        if part is None or shapely.area(part) > 0:
            grid = TileGrid(scene.width, scene.height, job.tile_size, job.overlap)
            planned.append(ScenePlan(scene, grid, tuple(tiles_over(scene, grid, part))))
    return tuple(planned), None if aoi is None else shapely.union_all(parts)


def open_scenes(job: Job) -> list[Scene]:
    """Open all rasters that a job names, in one working CRS."""
    sources = [str(sample_scene())] if job.source is None else find_sources(job.source)
    first = _open(sources[0], job, job.crs)
    # many rasters share one CRS: that of the first
    scenes = [first, *(_open(source, job, first.crs.to_wkt()) for source in sources[1:])]
    for scene in scenes:
        _refuse_far_away(scene, first)
    return scenes


def _refuse_far_away(scene: Scene, first: Scene) -> None:
    """Refuse a raster that the first one's CRS would distort: more than a UTM zone beyond it."""
    use = first.crs.area_of_use
    if scene is first or use is None:
        return
    left, bottom, right, top = scene.bounds
    lon, _ = to_lonlat(first.crs, (left + right) / 2, (bottom + top) / 2)
    if not use.west - 9 <= float(lon) <= use.east + 9:
        raise SceneError(
            f"{scene.source} lies too far from {first.source} for one working CRS "
            f"({layers.crs_name(first.crs)}). Run them as two jobs, or set crs to one that fits "
            "both, for instance EPSG:3857."
        )


def _open(source: str, job: Job, crs: str | None) -> Scene:
    return open_scene(
        source, bands=job.bands, stretch=job.stretch, crs=crs, resolution_m=job.resolution_m
    )


def _segmenter(job: Job, before: Mapping[str, Any]) -> Segmenter:
    """Choose the job's Segmenter; where the job leaves it open, as an earlier run (its key) did."""
    rules: dict[str, Any] = {
        "pred_iou_floor": job.pred_iou_floor,
        "stability_floor": job.stability_floor,
        "box_nms_thresh": job.box_nms_thresh,
        "crop_nms_thresh": job.crop_nms_thresh,
    }
    if job.model == "classic":
        return ClassicSegmenter(**rules)
    from workbench.sam import sam_segmenter  # torch takes seconds to import

    return sam_segmenter(
        job.model,
        checkpoint=job.checkpoint,
        device=before.get("device", "auto") if job.device == "auto" else job.device,
        precision=before.get("precision", "auto") if job.precision == "auto" else job.precision,
        points_per_side=job.points_per_side,
        crop_n_layers=job.crop_n_layers,
        points_per_batch=before.get("points_per_batch"),
        threads=before.get("threads"),
        **rules,
    )


# ------------------------------------------------------------------------------- 2. segment


def segment(
    plan: Plan, flush_seconds: float = FLUSH_SECONDS, watch: TileWatch | None = None
) -> Generator[SegmentedTile, None, None]:
    """Compute, store and yield the wanted tiles that are not stored yet, or failed.

    Finished tiles are stored every `flush_seconds`, and when the iterator is closed or interrupted.
    A model that takes long tells `watch` how far it is.
    """
    job, parts = plan.job, plan.only({part.index(tile) for part, tile in pending(plan)}).scenes
    if job.scheduler is not None:
        share = Share(job, plan.folder, plan.lock.owner, _segmenter)
        yield from segment_there(job.scheduler, share, plan.segmenter.key, parts)
        return
    for part in parts:
        yield from _segment_scene(part, plan, flush_seconds, watch)


def pending(plan: Plan) -> list[tuple[ScenePlan, Tile]]:
    """The wanted tiles that are not stored, or failed."""
    known = plan.store.ledger()
    done = {index for index, (record, _) in known.items() if record.status != "failed"}
    return [
        (part, tile) for part in plan.scenes for tile in part.tiles if part.index(tile) not in done
    ]


def _segment_scene(
    part: ScenePlan,
    plan: Plan,
    flush_seconds: float,
    watch: TileWatch | None,
) -> Iterator[SegmentedTile]:
    done: list[SegmentedTile] = []
    flushed = time.monotonic()
    try:
        with closing(segment_tiles(part, part.tiles, plan.segmenter, watch)) as segmented:
            for tile in segmented:
                done.append(tile)
                yield tile
                if time.monotonic() - flushed > flush_seconds or len(done) >= FLUSH_TILES:
                    _keep(done, plan)
                    done, flushed = [], time.monotonic()
    finally:
        _keep(done, plan)


def _keep(done: list[SegmentedTile], plan: Plan) -> None:
    if done:
        record_change(plan.folder, plan.segmenter)
        store_tiles(done, plan.store, plan.job.rules)


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
    styles = qgis.styles(plan.job.classes, plan.job.planar)
    tiles = layers.write_layer(_layer(plan), ledger, plan.folder, styles=styles).tiles
    scenes = tuple(part.scene for part in plan.scenes)
    result = Run(plan.job, plan.folder, scenes, tiles, plan.aoi)
    _write(result, time.perf_counter() - start)
    failed = tiles[tiles["status"] == "failed"]
    if len(failed):
        first = failed.iloc[0]
        raise RunFailedError(
            f"{len(failed)} of {len(tiles)} tiles failed, the first is {first['tile']}: "
            f"{first['error']}\nThe other tiles are in {plan.folder}, with all errors in "
            "tiles.parquet. Run again to try the failed tiles again."
        )
    return result


def _layer(plan: Plan) -> Iterator[gpd.GeoDataFrame]:
    """Select, trace, merge and clean: the layer in batches, by source, tile and ordinal."""
    merged = merge_seams(_traced(plan), _windows(plan), plan.folder)
    if plan.job.planar:  # any polygon may cut any other
        merged = iter([pd.concat(merged, ignore_index=True)])
    for batch in merged:
        yield _as_layer(_in_aoi(clean(batch, plan.job.cleaning), plan), plan)


def _traced(plan: Plan) -> Iterator[gpd.GeoDataFrame]:
    """The selected polygons of all wanted tiles as the tiles saw them, a few tiles at a time."""
    for part in plan.scenes:
        yield to_polygons(Candidates.empty(plan.job.rules), part.scene, part.grid, {})
        for candidates, records in plan.store.read([part.index(tile) for tile in part.tiles]):
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
    return layers.as_layer(
        polygons.assign(
            id=tile + "/" + polygons["ordinal"].astype(str),
            source_tile=tile,
            class_id=pd.array([plan.job.default_class] * len(polygons), dtype="Int64"),
        )
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
    return layers.as_tiles(ledger)


def _write(result: Run, seconds: float) -> None:
    """Write the rest, when the layer has been written in so many seconds."""
    start = time.perf_counter()
    folder, classes, scene = result.folder, result.job.classes, result.scenes[0]
    numbers = layers.read_numbers(folder / "prelabels.parquet")
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
    report.write_report(
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
        tables={
            "Seams": charts.seams(numbers),
            "Topology": charts.topology(result.batches(), folder),
            "Time": {
                "finished": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
                "segmenting, sum over tiles": report.duration(float(result.tiles["seconds"].sum())),
                "polygons, seams, cleaning and the layer's files": report.duration(seconds),
                "the other files": report.duration(time.perf_counter() - start),
            },
            "Versions": read_record(folder)["versions"],
        },
    )
