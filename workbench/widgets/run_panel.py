"""The run panel: save the job, copy its batch command, or run it in the notebook."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import ipywidgets as widgets
import shapely

from workbench._support.text import duration
from workbench.errors import WorkbenchError
from workbench.layer.files import read_layer
from workbench.layer.report.tally import summary_table
from workbench.raster.scene import raster_of
from workbench.runs.folder import store_in
from workbench.runs.job import Job
from workbench.runs.plan import Area
from workbench.tuning.preview import Preview, stack
from workbench.tuning.process import Event, Finished, Planned, Stopped, TileDone, TileUnderway
from workbench.widgets.cells import CellWidget
from workbench.widgets.controls import button, row
from workbench.widgets.job_file import JobFile
from workbench.widgets.links import RunLinks
from workbench.widgets.map import SceneMap, tile_cores
from workbench.widgets.overlay import PolygonOverlay
from workbench.widgets.safe_html import Markup, SafeHTML, paragraph, sentence, table
from workbench.widgets.sample_tiles import SampleTiles
from workbench.widgets.session import Session
from workbench.widgets.toolbar import PANEL, Toolbar
from workbench.widgets.tuner import ThresholdTuner

DRAWN_AT_MOST = 20_000  # polygons; a map cannot show all those of a large run
REDRAW_SECONDS = 1.0
FAILURES_AT_MOST = 20  # that are listed
TUNED_AT_MOST = 48  # tiles of a finished run that the tuner shows


class RunPanel(CellWidget[Session, "JobPanel"]):
    """Save the job as the `ThresholdTuner` has left it, copy its command, or run it here."""

    text = "Shown in JupyterLab only: a batch run needs no buttons."

    def __init__(self, tuner: ThresholdTuner) -> None:
        super().__init__(tuner.session, lambda session: JobPanel(session, _tiles_of(tuner)))


def _tiles_of(tuner: ThresholdTuner) -> SampleTiles:
    if tuner.panel is None:
        raise WorkbenchError("The tuner was closed. Run its cell again, then this one.")
    return tuner.panel.tiles


@dataclass(frozen=True)
class Progress:
    """How far a run is, and what has been found so far."""

    job: Job
    aoi: shapely.Geometry | None
    n_tiles: int
    began: float  # time.monotonic()
    done: int = 0
    stored: int = 0  # done by an earlier run
    failed: tuple[Markup, ...] = ()
    frames: tuple[gpd.GeoDataFrame, ...] = ()
    n_polygons: int = 0  # in all frames

    def grown(self, polygons: gpd.GeoDataFrame) -> Progress:
        """Return the progress with the polygons of another tile."""
        n = self.n_polygons + len(polygons)
        return replace(self, frames=(*self.frames, polygons), n_polygons=n)

    def text(self, now: float) -> str:
        """Say which tile is being computed, and how long the rest will take."""
        if self.done == self.n_tiles:
            return f"{self.n_tiles} tiles · writing the layer"
        tile = f"tile {self.done + 1} of {self.n_tiles}"
        if self.done == self.stored:
            return tile
        left = (now - self.began) / (self.done - self.stored) * (self.n_tiles - self.done)
        return f"{tile} · {duration(left)} left"


class JobPanel:
    """The run panel's widgets: command and file of the job, a button to run, and its progress."""

    def __init__(self, session: Session, samples: SampleTiles) -> None:
        self.session, self._samples = session, samples
        self._progress: Progress | None = None  # of the last run
        self._drawn = 0.0  # when the map was last drawn
        self.scene_map: SceneMap | None = None  # made for the first run
        self.overlay: PolygonOverlay | None = None
        self.run_button = button("Run here", self.start, "all tiles of the area, on this machine")
        self.run_button.button_style = "primary"
        self.cancel_button = button("Cancel", session.cancel, "finished tiles are kept", "stop")
        self.cancel_button.disabled = True
        self.progress = widgets.FloatProgress(max=1.0, layout={"width": "240px"})
        self.status, self.message, self.failures, self.result = (SafeHTML() for _ in range(4))
        self.again = button(
            "Tune on these tiles", self.tune, "use the tiles of the run in the tuner", disabled=True
        )
        self.file = JobFile(session, self.message)
        self.map_box = widgets.VBox([])
        self.links = RunLinks()
        self.toolbar = Toolbar(session, self.tell, visible=False)
        self.widget = self._layout()
        session.observe(self._show_forecast, ["area", "forecast", "problem"])
        self._show_forecast()
        self._show_earlier()

    def tell(self, text: str) -> None:
        """Show an error under the buttons."""
        self.message.value = sentence(text)

    def close(self) -> None:
        """Stop following the session, and end the map's thread."""
        self.file.close()
        self.session.unobserve(self._show_forecast, ["area", "forecast", "problem"])
        self.toolbar.let_go()
        if self.scene_map is not None:
            self.scene_map.close()

    # ------------------------------------------------------------------------------ what is shown

    def _layout(self) -> widgets.Widget:
        panel = widgets.VBox(
            [
                self.file.widget,
                row(self.run_button, self.cancel_button, self.progress, self.status, self.again),
                self.message, self.failures, self.map_box, self.links, self.result, self.toolbar,
            ]
        )  # fmt: skip
        panel.add_class("sam-workbench-run")
        panel.add_class(PANEL)
        panel.add_class("sam-workbench-column")
        return panel

    def _show_forecast(self, _: Any = None) -> None:
        session = self.session
        if session.area is None:
            self.tell(session.problem)
        elif not session.busy:
            self.message.value = ""
            self.status.value = session.forecast.text(session.area.n_tiles)

    def _show_earlier(self) -> None:
        """Show the result or the state of an earlier run in this run folder."""
        session, folder = self.session, self.session.folder
        if session.interrupted:
            try:
                done = len(store_in(folder).ledger())
            except WorkbenchError as error:
                self.tell(str(error))
                return
            self.message.value = paragraph(
                f"A run was under way when the kernel ended. {done} tile"
                f"{' is' if done == 1 else 's are'} stored. Press Run here to compute the others."
            )
        elif (folder / "report.html").exists() and (folder / "prelabels.parquet").exists():
            self.links.folder = str(folder)
            self.message.value = "An earlier run has written a layer here:"

    # ------------------------------------------------------------------------------ what it does

    def start(self) -> None:
        """Run the job in the background; tiles that are stored already are not computed again."""
        area = self.session.area
        if area is None:
            self.tell(self.session.problem)
            return
        self.failures.value = self.result.value = self.message.value = self.links.folder = ""
        self._progress = Progress(self.session.job, area.aoi, area.n_tiles, time.monotonic())
        self.progress.value = 0
        try:
            self.session.compute(None, self.hear)
        except WorkbenchError as error:
            self.tell(str(error))
            return
        self.status.value = "checking the job and loading the model"
        self.run_button.disabled, self.cancel_button.disabled = True, False
        self._show_map(area)

    def tune(self) -> None:
        """Show the stored tiles of the area in the tuner."""
        area = self.session.area
        if area is None:
            self.tell(self.session.problem)
            return
        tiles = [part.index(tile) for part in area.finest for tile in part.tiles]
        step = -(-len(tiles) // TUNED_AT_MOST)
        self._samples.compute(tiles[::step])
        n = len(tiles[::step])
        which = f"All {n}" if step == 1 else f"{n} of the {len(tiles)}"
        self.message.value = f"{which} tiles of the area are in the tuner above."

    # ------------------------------------------------------------------------------ while it runs

    def hear(self, event: Event) -> None:
        """Show an event of the run."""
        try:
            self._follow(event)
        except Exception as error:  # in a separate thread, where nobody would see it
            self.tell(f"{type(error).__name__}: {error}")

    def _follow(self, event: Event) -> None:
        progress = self._progress
        assert progress is not None  # `start` has made it
        match event:
            case Planned(n_tiles, n_stored):
                now = time.monotonic()
                self._show_progress(
                    replace(progress, n_tiles=n_tiles, done=n_stored, stored=n_stored, began=now)
                )
            case TileUnderway(share):
                self.progress.value = (progress.done + share) / max(progress.n_tiles, 1)
            case TileDone():
                self._show_progress(replace(progress, done=progress.done + 1))
                self._show_tile(event)
            case Finished():
                self._end(progress)
                self.message.value = sentence(event.problem) if event.problem else ""
                self._show_result(event.folder)
            case Stopped():
                self._end(progress)
                stored = f"{progress.done} of {progress.n_tiles} tiles are stored"
                cancelled = f"Cancelled; {stored}. Run again to continue."
                self.message.value = sentence(event.reason) if event.reason else cancelled

    def _end(self, progress: Progress) -> None:
        self.run_button.disabled, self.cancel_button.disabled = False, True
        self.status.value = f"took {duration(time.monotonic() - progress.began)}"

    def _show_progress(self, progress: Progress) -> None:
        self._progress = progress
        self.progress.value = progress.done / max(progress.n_tiles, 1)
        self.status.value = progress.text(time.monotonic())

    def _show_tile(self, event: TileDone) -> None:
        """Draw a tile's polygons, or list its failure."""
        progress, record = self._progress, event.record
        assert progress is not None
        if record.status == "failed":
            failed = (*progress.failed, Markup("<li>{}: {}</li>").format(record.name, record.error))
            self._progress = replace(progress, failed=failed)
            self.failures.value = Markup("<p>{} tile{} failed:</p><ul>{}</ul>").format(
                len(failed),
                "" if len(failed) == 1 else "s",
                Markup("").join(failed[:FAILURES_AT_MOST]),
            )
        elif raster_of(record.source) != record.source:
            return  # a coarser scale shows the same objects again; the layer has those that count
        elif progress.n_polygons < DRAWN_AT_MOST:
            preview = Preview([self.session.sample_of(event)], progress.aoi)
            job = progress.job  # not the session's job: its sliders may have moved
            view = preview.look(job.thresholds, job.cleaning, job.offer)
            self._progress = progress.grown(view.polygons)
            if time.monotonic() - self._drawn > REDRAW_SECONDS:
                self._draw(stack(self._progress.frames))

    def _show_map(self, area: Area) -> None:
        if self.scene_map is None:
            self.scene_map = SceneMap(self.session)
            self.overlay = PolygonOverlay(map_id=self.scene_map.map.model_id)
            self.map_box.children = (self.scene_map.widget, self.overlay)
        self.scene_map.fit_area(area)
        self.scene_map.show_tiles(tile_cores(area))
        self._draw(stack(()))
        self._drawn = 0.0  # the first tile is drawn at once

    def _draw(self, polygons: gpd.GeoDataFrame) -> None:
        if self.overlay is not None:
            self.overlay.draw(polygons)
            self._drawn = time.monotonic()

    def _show_result(self, folder: Path) -> None:
        layer = read_layer(folder / "prelabels.parquet")
        tiles = gpd.read_parquet(folder / "tiles.parquet")
        self._draw(layer.assign(seam=False)[:DRAWN_AT_MOST])
        more = "" if len(layer) <= DRAWN_AT_MOST else f" The map shows the first {DRAWN_AT_MOST:,}."
        self.links.folder = str(folder)
        self.result.value = Markup(
            "<p>Run folder: <code>{}</code>. Open <code>review.qgz</code> in QGIS to review; "
            "<code>report.html</code> describes the run.{}</p>{}"
        ).format(folder, more, table(summary_table(layer, tiles)))
        self.again.disabled = False
