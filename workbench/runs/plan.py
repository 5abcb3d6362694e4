"""Check a job and plan its run, so that everything wrong is found before long work starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas as gpd
import pyproj
import shapely

from workbench._support.secrets import without_secrets
from workbench.candidates.store import CandidateStore
from workbench.errors import AOIError, JobError, SceneError, SettingError
from workbench.polygons.regularize import require_library
from workbench.raster.aoi import load_aoi, parts_in
from workbench.raster.crs import crs_title, to_lonlat
from workbench.raster.open import open_scene
from workbench.raster.scene import Scene
from workbench.raster.separate_bands import refuse_separate_bands
from workbench.raster.sheets import with_neighbours
from workbench.raster.sources import find_sources
from workbench.raster.stac import is_stac_file, rasters_of
from workbench.raster.tiles import Tile, TileGrid, tiles_over
from workbench.raster.web_tiles import cut_to_area, is_map_service, is_web_tiles
from workbench.runs import choose
from workbench.runs.by_hand import usable_by_hand
from workbench.runs.cluster import SharedRun, segmenter_there
from workbench.runs.exemplars import PlacedExemplars, place_exemplars, read_exemplars
from workbench.runs.exemplars_by_hand import follows_exemplars
from workbench.runs.folder import FolderLock, refuse_foreign, store_in
from workbench.runs.job import Job
from workbench.runs.labels import check_labels, refuse_to_lose_examples
from workbench.runs.prompt_windows import AskedPrompts, ask
from workbench.runs.prompts import read_prompts
from workbench.runs.record import (
    RunRecord,
    claim,
    continue_run,
    name_scenes,
    read_record,
    resolve,
    unless_other_exemplars,
)
from workbench.runs.refresh import protect_review
from workbench.runs.tile_stream import ScenePlan
from workbench.samples.demo import sample_scene
from workbench.segmenters.defaults import defaults_of
from workbench.segmenters.protocol import Segmenter

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Area:
    """The wanted part of the scenes: its tiles, and the AOI as far as it lies in the scenes.

    A scene that is also segmented at coarser scales has a part for each scale.
    """

    parts: tuple[ScenePlan, ...]
    aoi: shapely.Geometry | None  # in the working CRS; None: the whole of the scenes

    @property
    def n_tiles(self) -> int:
        """How many tiles it has."""
        return sum(len(part.tiles) for part in self.parts)

    @property
    def finest(self) -> tuple[ScenePlan, ...]:
        """The parts on the working grid, one for each scene."""
        return tuple(part for part in self.parts if part.scene.scale == 1)

    def only(self, tiles: Collection[tuple[str, int, int]]) -> Area:
        """Keep some of its tiles, given by their index in the ledger."""
        parts = [
            replace(part, tiles=tuple(tile for tile in part.tiles if part.index(tile) in tiles))
            for part in self.parts
        ]
        return replace(self, parts=tuple(parts))


@dataclass(frozen=True)
class Plan:
    """A job that has been checked, with all that its run needs."""

    job: Job
    folder: Path
    area: Area
    segmenter: Segmenter
    record: RunRecord
    lock: FolderLock
    n_read: int  # of the rasters, also outside the AOI
    left_out: Mapping[str, str]  # rasters that cannot be read, and why
    asked: AskedPrompts | None = None
    shown: PlacedExemplars | None = None

    def close(self) -> None:
        """Let other processes have the run folder."""
        self.lock.release()

    @property
    def store(self) -> CandidateStore:
        """The candidates of the run folder."""
        return store_in(self.folder)

    @property
    def scenes(self) -> tuple[ScenePlan, ...]:
        """The scenes, at each scale, with their wanted tiles."""
        return self.area.parts

    @property
    def crs(self) -> pyproj.CRS:
        """The working CRS, which all scenes share."""
        return self.scenes[0].scene.crs

    @property
    def by_grid(self) -> tuple[ScenePlan, ...]:
        """The scenes, at each scale, with the tiles in which everything is segmented."""
        return self.scenes if self.asked is None or self.job.uses_grid else ()

    @property
    def work(self) -> tuple[ScenePlan, ...]:
        """What is to be segmented: those tiles, and the windows around prompts."""
        return self.by_grid + (() if self.asked is None else self.asked.parts)

    @property
    def n_tiles(self) -> int:
        """How many tiles and windows are to be segmented."""
        return sum(len(part.tiles) for part in self.work)

    def segmenter_of(self, part: ScenePlan) -> Callable[[Tile], Segmenter]:
        """What computes each tile of a part of the work."""
        shown, segmenter = self.shown, self.segmenter
        if self.asked is not None and part.scene.name in self.asked.sources:
            alone = segmenter if shown is None else shown.elsewhere(segmenter)
            return self.asked.asker(part, alone)
        return (lambda _: segmenter) if shown is None else shown.asker(part, segmenter)


def prepare(
    job: Job,
    loaded: Segmenter | None = None,
    tiles: Collection[tuple[str, int, int]] | None = None,
) -> Plan:
    """Open and check everything that a job names; if it cannot be done, change nothing on disk.

    The plan has the run folder to itself until it is closed. A Segmenter of an earlier plan that is
    `loaded` is used again if it has the same key. With `tiles`, given by their index in the ledger,
    the plan is to store the candidates of these alone, in the AOI or not, and to make no layer, so
    a folder with a reviewed layer is accepted, and prompts are not read.
    """
    if job.regularize is not None:
        require_library()
    scenes, left_out = open_usable(job)
    aoi = load_aoi(job.aoi) if job.aoi is not None else None
    if job.reference is not None:
        load_reference(job.reference)  # what is wrong with it should not end a long run
    prompts = None
    if job.prompts is not None and tiles is None:
        prompts = read_prompts(job.prompts, scenes, aoi, job.classes)
    drawn = read_exemplars(job)
    lock = FolderLock(folder_of(job, scenes))
    folder = lock.folder
    try:
        recorded = read_record(folder)  # without resume, too: another program's file is refused
        before = recorded if job.resume else None
        scenes = name_scenes(scenes, before)
        area = plan_tiles(job, scenes, aoi if tiles is None else None)
        check_labels(job, scenes)
        shown = None
        if drawn is not None:
            shown = place_exemplars(drawn, scenes, job.tile_size, job.overlap)
        asked = None
        if tiles is not None:
            area = area.only(tiles)
        elif prompts is not None:
            boxes = defaults_of(job.model).takes_boxes
            asked = ask(prompts, area.finest, job.tile_size, with_boxes=boxes)
            if not job.uses_grid:  # tiles without prompts are not looked at
                parts = (part for part in area.only(asked.homes).parts if part.tiles)
                area = replace(area, parts=tuple(parts))
        segmenter = choose.or_loaded(_segmenter(job, lock, before), loaded)
        resolved = resolve(job, scenes, segmenter.key)
        if before is not None and follows_exemplars(job, folder, samples=tiles is not None):
            before = unless_other_exemplars(before, resolved)
        record = continue_run(folder, before, resolved)
        refuse_foreign(folder)
        if tiles is None or before is None:  # without resume, a review would lose its candidates
            protect_review(job, folder, scenes[0].crs)
            refuse_to_lose_examples(job, folder)
        if tiles is None:
            usable_by_hand(folder, scenes[0].crs, job.classes)
        plan = Plan(job, folder, area, segmenter, record, lock, len(scenes), left_out, asked, shown)
        if before is None or pending(plan):
            segmenter.load()
        claim(folder, job, record, before)
        return plan
    except BaseException:
        lock.release()
        raise


def _segmenter(job: Job, lock: FolderLock, before: RunRecord | None) -> Segmenter:
    """Choose the job's Segmenter, here or on the workers of a cluster."""
    key = before.segmenter if before is not None else {}
    if job.scheduler is None:
        return choose.segmenter_for(job, key)
    share = SharedRun(job, lock.folder, lock.owner, choose.segmenter_for)
    return segmenter_there(job.scheduler, share, key)


def load_reference(path: str) -> gpd.GeoSeries:
    """Read the objects as they should be; raises `JobError` where that cannot be done."""
    try:
        return load_aoi(path)
    except AOIError as error:  # what holds for an AOI holds for it, too
        raise JobError(f"Parameter `reference`: {str(error).removeprefix('AOI ')}") from error


def folder_of(job: Job, scenes: Sequence[Scene]) -> Path:
    """The run folder of a job, absolute."""
    return Path(job.out_dir if job.out_dir is not None else f"runs/{scenes[0].name}").absolute()


def plan_tiles(job: Job, scenes: Sequence[Scene], aoi: gpd.GeoSeries | None) -> Area:
    """Choose the scenes and tiles that are wanted."""
    parts = [None] * len(scenes) if aoi is None else parts_in(scenes, aoi)
    planned: list[ScenePlan] = []
    for scene, part in zip(scenes, parts, strict=True):
        if part is None or shapely.area(part) > 0:
            planned += _at_each_scale(job, scene, part)
    return Area(tuple(planned), None if aoi is None else shapely.union_all(parts))


def _at_each_scale(job: Job, scene: Scene, part: shapely.Geometry | None) -> Iterator[ScenePlan]:
    """The tiles of a scene, up to the scale at which one tile shows all of it."""
    for scale in job.scales:
        seen = scene.coarser(scale)
        grid = TileGrid(seen.width, seen.height, job.tile_size, job.overlap)
        yield ScenePlan(seen, grid, tuple(tiles_over(seen, grid, part)))
        if len(grid) == 1:
            return


def open_scenes(job: Job) -> list[Scene]:
    """Open the rasters that a job names, in one working CRS; warn of those that cannot be read."""
    scenes, left_out = open_usable(job)
    for source, cause in left_out.items():
        _log.warning("%s is left out: %s", source, cause)
    return scenes


def open_usable(job: Job) -> tuple[list[Scene], dict[str, str]]:
    """Open the rasters that a job names, in one working CRS.

    Returns the scenes, and of those that cannot be read the name and the cause. Raises `SceneError`
    if none can be read, or if a parameter of the job is at fault.
    """
    sources = _sources_of(job)
    if any(map(is_map_service, sources)):
        sources = _cut_services(sources, job)
    refuse_separate_bands(sources)
    scenes: list[Scene] = []
    left_out: dict[str, str] = {}
    crs = job.crs
    for source in sources:
        try:
            scene = _open(source, job, crs)
        except SettingError:
            raise
        except SceneError as error:
            if len(sources) == 1:
                raise
            left_out[without_secrets(source)] = str(error)
            continue
        scenes.append(scene)
        crs = scenes[0].crs.to_wkt()  # many rasters share one CRS: that of the first
        _refuse_far_away(scene, scenes[0])
    if not scenes:
        first = next(iter(left_out.values()))
        raise SceneError(f"None of {len(left_out)} rasters can be read. The first: {first}")
    return with_neighbours(scenes, round(job.tile_size * job.overlap)), left_out


def _sources_of(job: Job) -> list[str]:
    if job.source is None:
        return [str(sample_scene())]
    if isinstance(job.source, dict):
        bounds = None
        if job.aoi is not None:
            bounds = load_aoi(job.aoi).to_crs(4326).total_bounds.tolist()
        return rasters_of(job.source, bounds)
    if isinstance(job.source, str) and is_stac_file(job.source):
        return rasters_of({"stac": job.source})
    return find_sources(job.source)


def _cut_services(sources: Sequence[str], job: Job) -> list[str]:
    """Name the part of map services that the area needs."""
    if job.aoi is None:
        service = without_secrets(next(filter(is_map_service, sources)))
        raise SettingError(f"{service} is a map of a large area: set aoi to the part you want.")
    aoi = load_aoi(job.aoi)
    return [
        cut_to_area(source, aoi, job.resolution_m) if is_web_tiles(source) else source
        for source in sources
    ]


def _refuse_far_away(scene: Scene, first: Scene) -> None:
    """Refuse a raster that the first one's CRS would distort: more than a UTM zone outside it."""
    use = first.crs.area_of_use
    if scene is first or use is None:
        return
    left, bottom, right, top = scene.bounds
    lon, _ = to_lonlat(first.crs, (left + right) / 2, (bottom + top) / 2)
    if not use.west - 9 <= float(lon) <= use.east + 9:
        raise SceneError(
            f"{scene.source} lies too far from {first.source} for one working CRS, "
            f"{crs_title(first.crs)}. Run them as two jobs, or set crs to one that fits both, for "
            "example EPSG:3857."
        )


def _open(source: str, job: Job, crs: str | None) -> Scene:
    return open_scene(
        source,
        bands=job.bands,
        stretch=job.stretch,
        crs=crs,
        resolution_m=job.resolution_m,
        nodata=job.nodata,
    )


def pending(plan: Plan) -> list[tuple[ScenePlan, Tile]]:
    """The wanted tiles that are not stored yet, or failed."""
    known = plan.store.ledger()
    done = {index for index, (record, _) in known.items() if record.status != "failed"}
    return [
        (part, tile) for part in plan.work for tile in part.tiles if part.index(tile) not in done
    ]
