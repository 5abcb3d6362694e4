"""The run panel: the batch command for the current state, or the run itself, here."""

from __future__ import annotations

import html
import os
import shlex
import time
from pathlib import Path
from typing import Any

import anywidget
import geopandas as gpd
import ipywidgets as widgets
import shapely
import traitlets

from workbench._support.files import atomic_path
from workbench._support.text import duration
from workbench.errors import OutputError, WorkbenchError
from workbench.layer.files import read_layer
from workbench.layer.report.tally import summary_table
from workbench.runs.folder import refuse_to_lose_review
from workbench.runs.job import Job
from workbench.tuning.preview import Preview, stack
from workbench.tuning.process import Event, Finished, Planned, Stopped, TileDone, TileUnderway
from workbench.widgets.area import tile_cores
from workbench.widgets.cells import CellWidget
from workbench.widgets.controls import button, row, sentence
from workbench.widgets.map import SceneMap
from workbench.widgets.overlay import PolygonOverlay
from workbench.widgets.tuner import ThresholdTuner

DRAWN_AT_MOST = 20_000  # polygons; a run may make many more than a map can show
REDRAW_SECONDS = 1.0
TUNED_AT_MOST = 48  # tiles of a finished run that go back to the sliders


class CopyButton(anywidget.AnyWidget):
    """A button that puts `text` into the clipboard."""

    _esm = Path(__file__).with_name("copy.js")

    text = traitlets.Unicode().tag(sync=True)


class RunPanel(CellWidget):
    """Save the job, copy its command, or run it here with the state of a `ThresholdTuner`."""

    text = "Shown where a person is at the notebook."

    def __init__(self, tuner: ThresholdTuner) -> None:
        self.tuner, self.session = tuner, tuner.session
        if tuner.job.is_interactive:
            self._build()

    def detach(self) -> None:
        """Let another panel take over: stop following the session."""
        if self.widget is None:
            return
        self.session.unobserve(self._show_command, "job")
        self.session.unobserve(self._show_forecast, ["area", "forecast", "problem"])
        if self.scene_map is not None:
            self.scene_map.close()

    # ------------------------------------------------------------------------------ what is shown

    def _build(self) -> None:
        self.scene_map: SceneMap | None = None
        self._saved: tuple[Path, Job] | None = None  # the last job file, and what it holds
        self._job_run = self.session.job  # the job that is run, and its AOI
        self._aoi: shapely.Geometry | None = None
        self._failed: list[str] = []
        self._frames: list[gpd.GeoDataFrame] = []
        self._drawn = self._n_drawn = 0.0
        self._tiles: tuple[int, int, int] = (0, 0, 0)  # wanted, done, of which by an earlier run
        self._began = 0.0
        self.command = widgets.HTML()
        self.copy = CopyButton()
        self.path = widgets.Text(
            str(self.session.folder.with_name(f"{self.session.folder.name}-job.yaml")),
            description="job file", layout={"flex": "1"}, style={"description_width": "60px"},
        )  # fmt: skip
        self.run_button = button("Run here", self.start, "all tiles of the area, in this machine")
        self.run_button.button_style = "primary"
        self.cancel_button = button("Cancel", self.session.cancel, "finished tiles stay", "stop")
        self.cancel_button.disabled = True
        self.progress = widgets.FloatProgress(max=1.0, layout={"width": "240px"})
        self.status, self.message, self.failures, self.result = (widgets.HTML() for _ in range(4))
        self.again = button(
            "Tune on these tiles", self._tune, "all tiles of the run at the sliders", disabled=True
        )
        self.map_box = widgets.VBox([])
        panel = widgets.VBox(
            [
                self.command,
                row(self.copy, self.path, button("Save", self.save, "the parameters, as YAML")),
                row(self.run_button, self.cancel_button, self.progress, self.status, self.again),
                self.message, self.failures, self.map_box, self.result,
            ]
        )  # fmt: skip
        panel.add_class("sam-workbench-run")
        self.session.observe(self._show_command, "job")
        self.session.observe(self._show_forecast, ["area", "forecast", "problem"])
        self._show_command()
        self._show_forecast(None)
        self.show(panel)

    def take_over(self, before: RunPanel) -> None:
        """Go on with the run of an earlier panel, or show what it has shown."""
        self.result.value, self.again.disabled = before.result.value, before.again.disabled
        self.path.value, self.failures.value = before.path.value, before.failures.value
        self.message.value = before.message.value
        if before.scene_map is None:
            return
        self._job_run, self._aoi = before._job_run, before._aoi
        self._failed, self._frames, self._n_drawn = before._failed, before._frames, before._n_drawn
        self._tiles, self._began = before._tiles, before._began
        self.progress.value, self.status.value = before.progress.value, before.status.value
        self.run_button.disabled = before.run_button.disabled
        self.cancel_button.disabled = before.cancel_button.disabled
        self._show_map()
        if not self.cancel_button.disabled:
            self.session.listener = self._hear
            self._draw()
        elif not self.again.disabled:
            self._draw_layer(read_layer(self.session.folder / "prelabels.parquet"))

    def tell(self, text: str) -> None:
        """Show a sentence under the buttons."""
        self.message.value = sentence(text)

    def _show_command(self, _: Any = None) -> None:
        job, output = self._job(), f"{self.session.folder.name}.ipynb"
        if self._saved is not None and self._saved[1] == job:
            words = ["papermill", _notebook(), output, "-f", str(self._saved[0])]
            if job.scheduler is not None:  # which a file does not keep
                words += ["-p", "scheduler", job.scheduler]
            text = shlex.join(words)
        else:
            given = self.session.given.changed(interactive=None)
            text = job.command(_notebook(), output, given)
        text += " --log-output --no-progress-bar"  # papermill hides what a run tells otherwise
        self.copy.text = text
        self.command.value = (
            '<pre style="white-space: pre-wrap; overflow-wrap: anywhere; margin: 0">'
            f"{html.escape(text)}</pre>"
        )

    def _show_forecast(self, _: Any) -> None:
        session = self.session
        if session.area is None:
            self.message.value = sentence(session.problem)
        elif not session.busy:
            self.message.value = ""
            self.status.value = session.forecast.text(session.area.n_tiles)

    def _job(self) -> Job:
        # the kernel works in the notebook's folder, papermill in the caller's
        return self.session.job.changed(out_dir=str(self.session.folder), interactive=None)

    # ------------------------------------------------------------------------------ what it does

    def save(self) -> None:
        """Write the job file that is named."""
        path = Path(self.path.value).expanduser().absolute()
        try:
            with atomic_path(path) as temporary:
                temporary.write_text(self._job().to_yaml(), encoding="utf-8")
        except OutputError as error:
            self.message.value = sentence(str(error))
            return
        self._saved = path, self._job()
        self._show_command()
        self.message.value = "Saved. The command above runs it as a batch job."
        try:
            refuse_to_lose_review(self.session.folder)
        except WorkbenchError as error:
            self.message.value = sentence(f"Saved, but as it is it cannot be run: {error}")

    def start(self) -> None:
        """Run the job in the background; what is stored already is not computed again."""
        if self.session.area is None:
            self.message.value = sentence(self.session.problem)
            return
        self._failed, self._frames, self._n_drawn = [], [], 0
        self.failures.value = self.result.value = self.message.value = ""
        self._aoi, self._job_run = self.session.area.aoi, self.session.job
        self._tiles, self._began = (self.session.area.n_tiles, 0, 0), time.monotonic()
        self.progress.value = 0
        try:
            self.session.compute(None, self._hear)
        except WorkbenchError as error:
            self.message.value = sentence(str(error))
            return
        self.status.value = "checking the job and loading the model"
        self.run_button.disabled, self.cancel_button.disabled = True, False
        self._show_map()

    def _show_map(self) -> None:
        if self.scene_map is None:
            self.scene_map = SceneMap(self.session)
            self.overlay = PolygonOverlay(map_id=self.scene_map.map.model_id)
            self.map_box.children = (self.scene_map.widget, self.overlay)
        area = self.session.area
        self.scene_map.fit_area(area)
        self.scene_map.show_tiles(None if area is None else tile_cores(area))
        self.overlay.draw(stack(()))

    def _hear(self, event: Event) -> None:
        try:
            self._show(event)
        except Exception as error:  # in a thread of its own, where nobody would see it
            self.message.value = sentence(f"{type(error).__name__}: {error}")

    def _show(self, event: Event) -> None:
        match event:
            case Planned():
                self._tiles = (event.n_tiles, event.n_stored, event.n_stored)
                self._began = time.monotonic()
                self._show_progress()
            case TileUnderway(share):
                n, done, _ = self._tiles
                self.progress.value = (done + share) / max(n, 1)
            case TileDone():
                n, done, stored = self._tiles
                self._tiles = (n, done + 1, stored)
                self._show_progress()
                self._show_tile(event)
            case Finished():
                self._end()
                self.message.value = sentence(event.problem) if event.problem else ""
                self._show_result(event.folder)
            case Stopped():
                self._end()
                n, done, _ = self._tiles
                cancelled = f"Cancelled; {done} of {n} tiles are stored. Run again to go on."
                self.message.value = sentence(event.reason) if event.reason else cancelled

    def _end(self) -> None:
        self.run_button.disabled, self.cancel_button.disabled = False, True
        self.status.value = f"took {duration(time.monotonic() - self._began)}"

    def _show_progress(self) -> None:
        n, done, stored = self._tiles
        self.progress.value = done / max(n, 1)
        if done == n:
            self.status.value = f"{n} tiles · making the layer"
        elif done == stored:
            self.status.value = f"tile {done + 1} of {n}"
        else:
            left = (time.monotonic() - self._began) / (done - stored) * (n - done)
            self.status.value = f"tile {done + 1} of {n} · {duration(left)} left"

    def _show_tile(self, event: TileDone) -> None:
        record = event.record
        if record.status == "failed":
            name = f"{record.source}/r{record.tile_row}c{record.tile_col}"
            self._failed.append(f"<li>{html.escape(f'{name}: {record.error}')}</li>")
            self.failures.value = (
                f"<p>{len(self._failed)} tiles failed:</p><ul>{''.join(self._failed[:20])}</ul>"
            )
        elif self._n_drawn < DRAWN_AT_MOST:
            preview = Preview([self.session.sample_of(event)], self._aoi)
            job = self._job_run  # whatever the sliders say by now
            self._frames.append(preview.look(job.thresholds, job.cleaning, job.offer).polygons)
            self._n_drawn += len(self._frames[-1])
            if time.monotonic() - self._drawn > REDRAW_SECONDS:
                self._draw()

    def _draw(self) -> None:
        self.overlay.draw(stack(self._frames))
        self._drawn = time.monotonic()

    def _draw_layer(self, layer: gpd.GeoDataFrame) -> None:
        self.overlay.draw(layer.assign(seam=False)[:DRAWN_AT_MOST])

    def _show_result(self, folder: Path) -> None:
        layer = read_layer(folder / "prelabels.parquet")
        tiles = gpd.read_parquet(folder / "tiles.parquet")
        self._draw_layer(layer)
        more = "" if len(layer) <= DRAWN_AT_MOST else f" The map shows the first {DRAWN_AT_MOST:,}."
        self.result.value = (
            f"<p>Run folder: <code>{html.escape(str(folder))}</code>; open <code>review.qgz</code> "
            f"in QGIS to review; <code>report.html</code> tells of the run.{more}</p>"
            f"{summary_table(layer, tiles).to_html(header=False)}"
        )
        self.again.disabled = False

    def _tune(self) -> None:
        """Hand the tiles of the area, which are stored, to the sliders."""
        if self.session.area is None:
            self.message.value = sentence(self.session.problem)
            return
        tiles = [part.index(tile) for part in self.session.area.parts for tile in part.tiles]
        step = -(-len(tiles) // TUNED_AT_MOST)
        self.tuner.tiles.compute(tiles[::step])
        n = len(tiles[::step])
        which = f"All {n}" if step == 1 else f"{n} of {len(tiles)}"
        self.message.value = f"{which} tiles of the area are at the sliders above."


def _notebook() -> str:
    """The path of the notebook that is open."""
    open_here = Path(os.environ.get("JPY_SESSION_NAME", ""))
    known = open_here.suffix == ".ipynb" and open_here.exists()
    return str(open_here.absolute()) if known else "notebooks/prelabel.ipynb"
