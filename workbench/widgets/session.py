"""The state that the widgets of a notebook share: the job with all changes, and its rasters.

The state of the user interface is a `Job`. Each widget shows some of its parameters and replaces
the job when a person changes them. So saving, presets, undo and the command line need no state of
their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pyproj
from traitlets import Any as AnyTrait
from traitlets import Bool, Dict, HasTraits, Instance, Int, Tuple, Unicode, observe

from workbench.candidates.table import Candidates
from workbench.errors import ExamplesError, JobError, ReviewError, WorkbenchError
from workbench.learning.verdicts import VERDICTS, Verdicts, read_verdicts
from workbench.raster.aoi import load_aoi
from workbench.raster.scene import Scene
from workbench.raster.tiles import TileGrid, tile_named
from workbench.runs.by_hand import BY_HAND, ShapesByHand, read_by_hand
from workbench.runs.exemplars_by_hand import (
    EXEMPLARS,
    ExemplarsByHand,
    names_own,
    read_by_hand_or_given,
    showing,
)
from workbench.runs.forecast import Forecast
from workbench.runs.job import Job
from workbench.runs.looks import read_looks, with_looks, write_looks
from workbench.runs.plan import Area, ScenePlan, folder_of, open_scenes, plan_tiles
from workbench.runs.record import name_scenes, read_record
from workbench.runs.stored import read_stored
from workbench.runs.tile_stream import SegmentedTile
from workbench.tuning.preview import Key
from workbench.tuning.process import (
    Background,
    Event,
    Finished,
    Index,
    Stopped,
    TileDone,
    TileUnderway,
    Work,
)
from workbench.tuning.questions import Answer, Encoding, NoAnswer
from workbench.widgets.asking import Asking
from workbench.widgets.hand_files import HandFiles
from workbench.widgets.history import STATE, History, State
from workbench.widgets.saved import KEPT, Keeper, SavedSession, read_saved

SAMPLES_DEPEND_ON = (
    "model", "checkpoint", "concepts", "exemplars", "tile_size", "overlap", "points_per_side",
    "crop_n_layers", "pred_iou_floor", "stability_floor", "box_nms_thresh", "crop_nms_thresh",
)  # fmt: skip


class Session(HasTraits):
    """The shared state; observe its traits.

    A person changes what `State` has; `history` has all states so far, and `session.json` in the
    run folder the last one, so that a restarted kernel goes on with it. `restored` counts the
    states that undo and redo have brought.

    `area` is None while the AOI cannot be used; `problem` then says why. `samples` are the computed
    sample tiles. `notice` is a message about `session.json`. `files` are those of an earlier
    session that hold verdicts, drawn shapes and exemplars. `interrupted` says
    whether a run was under way when an earlier session ended.
    `busy` says whether something is being computed; `listener` gets the events, in a separate
    thread, and may be replaced at any time. `cell` is the job of the notebook's cell. `given` is
    the job that was opened in its place, or `cell`; both are without later changes.
    """

    job = Instance(Job)
    verdicts = Instance(Verdicts)
    colors: dict[int, str] = Dict()  # type: ignore[assignment]  # a trait
    tiles: frozenset[Index] = AnyTrait(frozenset())  # type: ignore[assignment]  # a trait
    judged: dict[Key, bool] = Dict()  # type: ignore[assignment]  # a trait
    other = Instance(Job, allow_none=True)
    by_hand = Instance(ShapesByHand)
    exemplars = Instance(ExemplarsByHand)
    history = Instance(History)
    restored = Int()
    area = Instance(Area, allow_none=True)
    problem = Unicode()
    notice = Unicode()
    forecast = Instance(Forecast)
    samples: tuple[SegmentedTile, ...] = Tuple()  # type: ignore[assignment]  # a trait
    busy = Bool()

    def __init__(self, job: Job, earlier: Session | None = None) -> None:
        """Open the job's rasters, and continue from the changes by hand in its run folder.

        `earlier` is the previous session of the same notebook cell, if any.
        """
        self.cell, self.notice_at_start = job, ""
        scenes = open_scenes(job)
        self.home: Path = folder_of(job, scenes)  # of the notebook's cell
        kept = self._read_saved(self.home)
        opened = kept.opened if kept is not None else None
        if opened is not None:
            try:
                there = opened.job_for(job)
                scenes, job = (scenes, job) if there == job else (open_scenes(there), there)
            except WorkbenchError as error:
                self.notice_at_start = f"What was opened by hand is no longer there: {error}"
        self.given = job
        self.folder: Path = folder_of(job, scenes)
        if self.folder != self.home:
            kept = self._read_saved(self.folder)
        if kept is None and earlier is not None and earlier.folder != self.folder:
            kept = earlier.kept
        self._opened = kept.opened if kept is not None and self.folder != self.home else opened
        try:
            recorded = read_record(self.folder) if job.resume else None
        except WorkbenchError:
            recorded = None  # a run will refuse the folder and say why
        self.scenes: tuple[Scene, ...] = tuple(name_scenes(scenes, recorded))
        self._background = Background(self._hear)
        self.asking = Asking(lambda: self.job, self.scenes, lambda: self._background)
        self.listener: Callable[[Event], None] = _ignore
        self.files = HandFiles(self.folder)
        self._running = False
        state = self._state_of(job, kept)
        self.interrupted = kept is not None and kept.running
        self._keeper = Keeper(self.folder / KEPT, lambda: self.kept, self._tell)
        super().__init__(
            **{name: value for name in STATE if (value := getattr(state, name)) is not None},
            history=History(state), forecast=Forecast(), notice=self.notice_at_start,
        )  # fmt: skip
        if kept is not None and kept != self.kept:  # the cell was edited, or a run interrupted
            self._keep()

    def _read_saved(self, folder: Path) -> SavedSession | None:
        if not self.cell.is_interactive:  # a batch run only follows its parameters
            return None
        try:
            return read_saved(folder)
        except WorkbenchError as error:
            self.notice_at_start = str(error)
            return None

    def _state_of(self, job: Job, kept: SavedSession | None) -> State:
        """What a person has done by hand so far, as the run folder has it."""
        crs, path = self.scenes[0].crs, self.folder / VERDICTS
        try:
            verdicts, by_hand = read_verdicts(path, crs), read_by_hand(self.folder / BY_HAND, crs)
        except ExamplesError as error:
            verdicts, by_hand = Verdicts.none(crs), ShapesByHand.none(crs)
            self.files.problem = str(error)
        tiles, judged, other = frozenset[Index](), dict[Key, bool](), None
        if kept is not None and kept.fits(job, "source"):
            try:
                changed = kept.applied(job)
                if kept.fits(job, *SAMPLES_DEPEND_ON):  # else these are other candidates
                    tiles = frozenset(kept.tiles)
                    judged = {one[:4]: one[4] for one in kept.judged}
                job, other = changed, kept.other_for(changed)
            except WorkbenchError as error:  # the cell has changed, and the rest does not fit it
                self.notice_at_start = f"{KEPT} of the run folder does not fit: {error}"
        job, colors = with_looks(job, read_looks(self.folder))
        said = {tile_named(label.rpartition("/")[0]) for label in verdicts.said}
        job, exemplars = self._shown(_taught(job, path, verdicts), crs)
        return State(job, verdicts, colors, by_hand, exemplars, tiles | said, judged, other)

    def _shown(self, job: Job, crs: pyproj.CRS) -> tuple[Job, ExemplarsByHand]:
        """The exemplars of the run folder or of the job, and the job with the folder's."""
        path, none = self.folder / EXEMPLARS, ExemplarsByHand.none(crs)
        try:
            exemplars = read_by_hand_or_given(path, job, crs) if job.finds_concepts else none
        except ExamplesError as error:
            self.files.problem = str(error)
            return job, none
        except JobError:  # the process says it, too
            return job, none
        named = job.exemplars is not None
        if not self.cell.is_interactive or (named and not names_own(job, path)):
            return job, exemplars
        return showing(job, path, exemplars), exemplars

    # ---- what a person has done

    @property
    def state(self) -> State:
        """What a person has done so far."""
        return State(**{name: getattr(self, name) for name in STATE})

    @property
    def kept(self) -> SavedSession:
        """What `session.json` should hold."""
        return SavedSession.of(self.given, self.history.now, self._opened, self._running)

    def undo(self) -> None:
        """Take the last change back."""
        self._become(self.history.back())

    def redo(self) -> None:
        """Make the last undone change again."""
        self._become(self.history.forth())

    def _become(self, history: History) -> None:
        state = history.now
        if history is self.history:
            return
        if state.exemplars is not self.exemplars:
            self._refuse_during_run()
        files = (VERDICTS, "verdicts"), (BY_HAND, "by_hand"), (EXEMPLARS, "exemplars")
        for file, name in files:
            if getattr(state, name) is not getattr(self, name):
                self.files.write(file, getattr(state, name))
        if (state.colors, state.job.classes) != (self.colors, self.job.classes):
            write_looks(self.folder, state.job.classes, state.colors)
        with self.hold_trait_notifications():
            self.history = history
            for name in STATE:
                setattr(self, name, getattr(state, name))
            self.restored += 1
        self._keep()

    @observe(*STATE)
    def _note(self, _: Any) -> None:
        state = self.state
        if state != self.history.now:
            self.history = self.history.then(state, time.monotonic())
            self._keep()

    def _keep(self) -> None:
        if self.cell.is_interactive:
            self._keeper.touch()

    def _tell(self, text: str) -> None:
        self.notice = text

    def say(self, verdicts: Verdicts) -> None:
        """Replace the verdicts, also in the run folder, and let the job learn from them.

        Raises `WorkbenchError`, and changes nothing, if they cannot be written.
        """
        self.files.write(VERDICTS, verdicts)
        job = _taught(self.job, self.folder / VERDICTS, verdicts)
        with self.hold_trait_notifications():  # one step
            self.verdicts = verdicts
            if job != self.job:
                self.job = job

    def draw(self, by_hand: ShapesByHand, verdicts: Verdicts) -> None:
        """Keep other shapes by hand, and what is said of the objects that they show, in one step.

        Raises as `say` does.
        """
        self.files.write(BY_HAND, by_hand)
        with self.hold_trait_notifications():
            self.by_hand = by_hand
            if verdicts is not self.verdicts:
                self.say(verdicts)

    def exemplify(self, exemplars: ExemplarsByHand) -> None:
        """Keep other exemplars, and name them in the job if they are of use.

        What was called good or bad is forgotten, because other candidates come. Raises
        `WorkbenchError`, and changes nothing, during a run, if there are verdicts on the candidates
        so far, or if the exemplars cannot be written.
        """
        self._refuse_during_run()
        if len(self.verdicts):
            raise ReviewError(
                f"Classes were given to {len(self.verdicts)} objects here, and with other "
                "exemplars other objects are found. Undo that first, or draw the exemplars in "
                "another out_dir."
            )
        path = self.folder / EXEMPLARS
        self.files.write(EXEMPLARS, exemplars)
        with self.hold_trait_notifications():  # one step
            self.exemplars, self.judged = exemplars, {}
            self.job = showing(self.job, path, exemplars)

    def _refuse_during_run(self) -> None:
        if self._running:
            raise ReviewError("A run is using these exemplars: wait for its end, or cancel it.")

    def name_classes(self, classes: Mapping[int, str], colors: Mapping[int, str]) -> None:
        """Give the classes other names and colours, and keep them in the run folder.

        Raises `WorkbenchError`, and changes nothing, if a name is bad or they cannot be written.
        """
        job = self.job.changed(classes=dict(classes))
        write_looks(self.folder, job.classes, colors)
        with self.hold_trait_notifications():  # one step
            self.colors = dict(colors)
            if job != self.job:
                self.job = job

    def change(self, **parameters: Any) -> None:
        """Replace parameters of the job; a bad value raises `JobError` and changes nothing."""
        job = self.job.changed(**parameters)
        if job != self.job:
            self.job = job

    def known(self, tiles: Collection[Index]) -> set[Index]:
        """The given tiles that exist in the scenes, inside the area or not."""
        grids = {scene.name: grid for scene, grid in zip(self.scenes, self.grids, strict=True)}

        def has(name: str, row: int, col: int) -> bool:
            grid = grids.get(name)
            return grid is not None and row < grid.n_rows and col < grid.n_cols

        return {tile for tile in tiles if has(*tile)}

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

    def read_stored(self, tiles: Collection[Index]) -> list[SegmentedTile]:
        """Read those of some tiles that are stored, if that takes no network."""
        found = read_stored(self.job, self.folder, self.scenes, tiles)
        return [self.sample_of(TileDone(*tile, stored=True)) for tile in found]

    # ---- the process that computes

    def compute(self, tiles: frozenset[Index] | None, listener: Callable[[Event], None]) -> None:
        """Start to segment some tiles, or (None) to run the whole job.

        Raises `WorkbenchError` if something is being computed, or the process cannot be started.
        """
        if not self._background.busy:  # if it is busy, `start` raises
            self.listener, self.busy = listener, True  # before the first event can come
            self._set_running(tiles is None)
        try:
            self._background.start(Work(self.job, tiles))
        except OSError as error:
            self.busy = False
            self._set_running(False)
            raise WorkbenchError(
                f"The process that segments cannot be started: {error}. Close other programs and "
                "try again."
            ) from error

    def _set_running(self, running: bool) -> None:
        """Note whether a run is under way, for the next session if the kernel dies."""
        if running != self._running:
            self._running = running
            self._keep()
            self._keeper.flush()

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

    def let_go(self) -> None:
        """Stop what is being computed, and leave `session.json` to the next session."""
        self.cancel()
        self._running = False
        self._keep()
        self._keeper.close()

    def close(self) -> None:
        """End the process and free the model's memory."""
        was_busy = self._background.busy
        self._background.close()
        self.busy = False
        self._set_running(False)
        self._keeper.close()
        if was_busy:
            self.listener(Stopped("The widgets were closed. Finished tiles are stored."))

    def _hear(self, event: Event) -> None:
        if isinstance(event, Encoding | Answer | NoAnswer):
            self.asking.reply(event)
            return
        try:
            if isinstance(event, TileDone) and not event.stored and event.record.status != "failed":
                self._time(event)
            if isinstance(event, Finished | Stopped):
                self._set_running(False)
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
        self.read_area_again()

    def read_area_again(self) -> None:
        """Plan the tiles of the job's AOI, whose file may have changed."""
        job = self.job
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
