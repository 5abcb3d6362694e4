"""From a job to its run folder: the one place that knows the order of the steps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas as gpd
import pyproj
import shapely

from workbench.candidates.store import CandidateStore
from workbench.errors import SceneError
from workbench.raster.aoi import load_aoi, parts_in
from workbench.raster.crs import crs_name, to_lonlat
from workbench.raster.open import open_scene
from workbench.raster.scene import Scene
from workbench.raster.sources import find_sources
from workbench.raster.tiles import Tile, TileGrid, tiles_over
from workbench.runs import choose
from workbench.runs.cluster import Share, segmenter_there
from workbench.runs.folder import FolderLock, refuse_foreign, refuse_to_lose_review, store_in
from workbench.runs.job import Job
from workbench.runs.labels import check_labels
from workbench.runs.record import (
    claim,
    continue_run,
    name_scenes,
    read_record,
    resolve,
)
from workbench.runs.tile_stream import (
    ScenePlan,
)
from workbench.samples.demo import sample_scene
from workbench.segmenters.protocol import Segmenter


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
    check_labels(job, scenes)
    if job.scheduler is None:
        segmenter = choose.segmenter_for(job, before.get("segmenter", {}))
    else:
        share = Share(job, folder, lock.owner, choose.segmenter_for)
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
            f"({crs_name(first.crs)}). Run them as two jobs, or set crs to one that fits "
            "both, for instance EPSG:3857."
        )


def _open(source: str, job: Job, crs: str | None) -> Scene:
    return open_scene(
        source, bands=job.bands, stretch=job.stretch, crs=crs, resolution_m=job.resolution_m
    )


def pending(plan: Plan) -> list[tuple[ScenePlan, Tile]]:
    """The wanted tiles that are not stored, or failed."""
    known = plan.store.ledger()
    done = {index for index, (record, _) in known.items() if record.status != "failed"}
    return [
        (part, tile) for part in plan.scenes for tile in part.tiles if part.index(tile) not in done
    ]
