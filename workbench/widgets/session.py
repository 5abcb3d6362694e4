"""What the widgets of one notebook share: the job with all changes, and its opened rasters.

The state of the user interface is a `Job`. Each widget shows some of its parameters and replaces
the job when a person changes them. So saving, presets, undo and the command line need no state of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from traitlets import Bool, Dict, HasTraits, Instance, Tuple, Unicode, observe

from workbench.candidates.table import Candidates
from workbench.errors import ExamplesError, WorkbenchError
from workbench.learning.verdicts import VERDICTS, Verdicts, read_verdicts
from workbench.raster.aoi import load_aoi
from workbench.raster.scene import Scene
from workbench.raster.tiles import TileGrid
from workbench.runs.forecast import Forecast
from workbench.runs.job import Job
from workbench.runs.looks import read_looks, with_looks, write_looks
from workbench.runs.plan import Area, ScenePlan, folder_of, open_scenes, plan_tiles
from workbench.runs.record import name_scenes, read_record
from workbench.runs.tile_stream import SegmentedTile
from workbench.tuning.preview import Key
from workbench.tuning.process import Background, Event, Index, Stopped, TileDone, TileUnderway, Work

SAMPLES_DEPEND_ON = (
    "model", "checkpoint", "tile_size", "overlap", "points_per_side", "crop_n_layers",
    "pred_iou_floor", "stability_floor", "box_nms_thresh", "crop_nms_thresh",
)  # fmt: skip


def tile_cores(area: Area) -> gpd.GeoDataFrame:
    """The cores of an area's tiles on the working grid.

    Ten thousand take a few hundredths of a second.
    """
    boxes: list[Any] = []
    for part in area.finest:
        cores = [tile.core for tile in part.tiles]
        pixels = np.array([(c.col_off, c.row_off, c.width, c.height) for c in cores], np.float64)
        column, row, width, height = pixels.reshape(-1, 4).T
        a, _, left, _, e, top = part.scene.transform[:6]  # north-up
        x, y = left + a * column, top + e * row
        boxes.append(shapely.box(x, y + e * height, x + a * width, y))
    return gpd.GeoDataFrame(geometry=np.concatenate(boxes), crs=area.parts[0].scene.crs)


class Session(HasTraits):
    """The shared state; observe its traits.

    `area` is None while the AOI cannot be used; `problem` then says why. `samples` are the computed
    sample tiles. `judged` has the candidates that a person has called good (true) or bad (false).
    `verdicts` are what a person has said of classes, as the run folder has them, and `colors` are
    the classes' colours; `verdicts_problem` says why the verdicts cannot be used, if so.
    `busy` tells whether something is being computed; `listener` gets the events, in a separate
    thread, and may be replaced at any time. `given` is the job of the notebook's cell, without
    later changes.
    """

    job = Instance(Job)
    area = Instance(Area, allow_none=True)
    problem = Unicode()
    forecast = Instance(Forecast)
    samples: tuple[SegmentedTile, ...] = Tuple()  # type: ignore[assignment]  # a trait
    judged: dict[Key, bool] = Dict()  # type: ignore[assignment]  # a trait
    verdicts = Instance(Verdicts)
    busy = Bool()

    def __init__(self, job: Job) -> None:
        scenes = open_scenes(job)
        self.folder: Path = folder_of(job, scenes)
        try:
            recorded = read_record(self.folder) if job.resume else None
        except WorkbenchError:
            recorded = None  # a run refuses the folder and says why
        self.scenes: tuple[Scene, ...] = tuple(name_scenes(scenes, recorded))
        self._background = Background(self._hear)
        self.given = job
        self.listener: Callable[[Event], None] = _ignore
        path, self.verdicts_problem = self.folder / VERDICTS, ""
        try:
            verdicts = read_verdicts(path, scenes[0].crs)
        except ExamplesError as error:
            verdicts, self.verdicts_problem = Verdicts.none(scenes[0].crs), str(error)
        job, self.colors = with_looks(job, read_looks(self.folder))
        super().__init__(job=_taught(job, path, verdicts), forecast=Forecast(), verdicts=verdicts)

    def say(self, verdicts: Verdicts) -> None:
        """Keep other verdicts, in the run folder too, and let the job learn from them.

        Raises `WorkbenchError`, and changes nothing, if they cannot be written.
        """
        if self.verdicts_problem:
            raise ExamplesError(self.verdicts_problem)
        path = self.folder / VERDICTS
        verdicts.write(path)
        self.verdicts = verdicts
        job = _taught(self.job, path, verdicts)
        if job != self.job:
            self.job = job

    def name_classes(self, classes: Mapping[int, str], colors: Mapping[int, str]) -> None:
        """Give the classes other names and colours, and keep them in the run folder.

        Raises `WorkbenchError`, and changes nothing, if a name is bad or they cannot be written.
        """
        job = self.job.changed(classes=dict(classes))
        write_looks(self.folder, job.classes, colors)
        self.colors = dict(colors)
        if job != self.job:
            self.job = job

    def change(self, **parameters: Any) -> None:
        """Replace parameters of the job; a bad value raises `JobError` and changes nothing."""
        job = self.job.changed(**parameters)
        if job != self.job:
            self.job = job

    @property
    def grids(self) -> tuple[TileGrid, ...]:
        """The tile grids of the scenes."""
        size, overlap = self.job.tile_size, self.job.overlap
        return tuple(TileGrid(s.width, s.height, size, overlap) for s in self.scenes)

    def sample_of(self, event: TileDone | TileUnderway) -> SegmentedTile:
        """Join the candidates that the process has computed to their scene and tile."""
        record = event.record
        assert record is not None
        place = [scene.name for scene in self.scenes].index(record.source)
        grid = self.grids[place]
        tile = grid.tile(record.tile_row, record.tile_col)
        part = ScenePlan(self.scenes[place], grid, (tile,))
        candidates = event.candidates
        if candidates is None:
            candidates = Candidates.empty(self.job.rules)
        return SegmentedTile(part, tile, candidates, record, whole=isinstance(event, TileDone))

    # ---- the process that computes

    def compute(self, tiles: frozenset[Index] | None, listener: Callable[[Event], None]) -> None:
        """Start to segment some tiles, or (None) to run the whole job.

        Raises `WorkbenchError` if something is being computed, or the process cannot be started.
        """
        if not self._background.busy:  # else `start` raises
            self.listener, self.busy = listener, True  # before the first event can come
        try:
            self._background.start(Work(self.job, tiles))
        except OSError as error:
            self.busy = False
            raise WorkbenchError(
                f"The process that segments cannot be started: {error}. Close other programs and "
                "try again."
            ) from error

    def get_ready(self) -> None:
        """Start the process and load the model ahead of time."""
        self._background.get_ready(self.job)

    def cancel(self) -> None:
        """Stop what is being computed, within a second."""
        self._background.cancel()

    def take_process(self, other: Session) -> None:
        """Take over the process of a session that has ended, with its loaded model."""
        mine, self._background = self._background, other._background
        self._background.notify, other._background = self._hear, mine

    def close(self) -> None:
        """End the process and free the model's memory."""
        was_busy = self._background.busy
        self._background.close()
        self.busy = False
        if was_busy:
            self.listener(Stopped("The widgets were closed. Finished tiles are stored."))

    def _hear(self, event: Event) -> None:
        try:
            if isinstance(event, TileDone) and not event.stored and event.record.status != "failed":
                self._time(event)
            self.listener(event)
        finally:
            self.busy = self._background.busy

    def _time(self, event: TileDone) -> None:
        """Update the forecast with the time and size of a tile."""
        size = 0 if event.candidates is None else event.candidates.table.nbytes
        self.forecast = self.forecast.after(event.record.seconds, size)

    @observe("job")
    def _plan(self, change: Any) -> None:
        before, job = change["old"], change["new"]
        tiling = ("aoi", "tile_size", "overlap", "scales")
        if isinstance(before, Job) and all(
            getattr(before, name) == getattr(job, name) for name in tiling
        ):
            return
        with self.hold_trait_notifications():
            try:
                aoi = None if job.aoi is None else load_aoi(job.aoi)
                self.area = plan_tiles(job, self.scenes, aoi)
                self.problem = ""
            except WorkbenchError as error:
                self.area, self.problem = None, str(error)


def _taught(job: Job, path: Path, verdicts: Verdicts) -> Job:
    """Name verdicts in `examples` of a job if they can teach, and only then."""
    given = [job.examples] if isinstance(job.examples, str) else job.examples or []
    others = [one for one in given if Path(one).absolute() != path]
    examples = [*others, str(path)] if verdicts.can_teach else others
    if examples == given or (not examples and (job.labelled_area, job.class_thresh) != (None,) * 2):
        return job
    return job.changed(examples=examples or None)


def _ignore(_: Event) -> None:
    pass
