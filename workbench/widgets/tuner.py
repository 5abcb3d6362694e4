"""The tuner: thresholds and cleaning on sample tiles, with polygons that follow the sliders."""

from __future__ import annotations

import threading
import time
from typing import Any

import geopandas as gpd
import ipyleaflet
import ipywidgets as widgets
import numpy as np
import shapely

from workbench._support.palette import confidence_classes
from workbench.errors import ReviewError
from workbench.evaluation.judged import advise_judged
from workbench.raster.crs import from_lonlat
from workbench.tuning.preview import Fate, Preview, Verdict, View
from workbench.tuning.process import Index
from workbench.tuning.propose import propose_tiles
from workbench.widgets.area import AOIPicker
from workbench.widgets.cells import CellWidget
from workbench.widgets.controls import TUNED, Controls, button, row
from workbench.widgets.drawn_polygons import DrawnPolygons
from workbench.widgets.map import SceneMap, feature
from workbench.widgets.overlay import PolygonOverlay
from workbench.widgets.presets import Settings
from workbench.widgets.quiet import QuietMoments
from workbench.widgets.safe_html import SafeHTML, paragraph, sentence
from workbench.widgets.sample_tiles import SampleTiles
from workbench.widgets.score_plane import ScorePlane
from workbench.widgets.session import Session, tile_cores
from workbench.widgets.tuner_text import IN_PLANE, figures_text, legend
from workbench.widgets.verdicts import Verdicts

AHEAD_AT_MOST = 30_000  # candidates that are traced before a slider asks for them
UNCLASSED = (
    "This job has examples: a run keeps what looks like them. Shown here is what the thresholds "
    "keep, without classes."
)
AHEAD_AT_ONCE = 20  # a slider waits for no more than these
_AREA: dict[str, Any] = {"color": "#d500f9", "weight": 2, "fill": False, "interactive": False}
_WINDOW = _AREA | {"color": "#ffffff"}


class ThresholdTuner(CellWidget["TunerPanel"]):
    """Tune on sample tiles of the area that an `AOIPicker` shows.

    It draws what `select`, `to_polygons` and `clean` return, as a run does. In a batch run it
    makes no widgets and shows nothing.
    """

    text = "Thresholds and cleaning as in the parameters."

    def __init__(self, picker: AOIPicker) -> None:
        super().__init__(picker.session, TunerPanel)


class TunerPanel:
    """The tuner's widgets: left the map and what is said of it, right all controls."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._lock = threading.RLock()
        self.preview = Preview(())
        self.view = self._see()
        self.quiet = QuietMoments(session.get_ready, self._look, self._work)
        self.figures, self.message, self.legend = SafeHTML(), SafeHTML(), SafeHTML()
        self.controls = Controls(session)
        self.settings = Settings(session)
        self.tiles = SampleTiles(session, self.message, self.quiet.wake)
        self.scene_map = SceneMap(session, height_px=460)  # leaves room for the reasons below it
        self.overlay = PolygonOverlay(map_id=self.scene_map.map.model_id)
        self.drawn = DrawnPolygons(self.overlay)
        self.verdicts = Verdicts(session.scenes[0].crs)
        nothing = feature(gpd.GeoSeries([], crs=4326), {})
        self.area, self.frames = (ipyleaflet.GeoJSON(data=nothing) for _ in range(2))
        for layer in (self.area, self.frames, self.verdicts.alternatives):
            self.scene_map.map.add(layer)
        self.plane = ScorePlane(
            floors=[session.job.rules.pred_iou_floor, session.job.rules.stability_floor]
        )
        self.n_tiles = widgets.BoundedIntText(
            4, min=1, max=64, layout={"width": "60px"}, tooltip="how many tiles to propose"
        )
        self.mode = widgets.ToggleButtons(
            options=[("Explain", "explain"), ("Good", "good"), ("Bad", "bad")],
            tooltips=[f"click, or Enter at the cross of the map: {what}" for what in (
                "why a polygon is there or not", "call it good", "call it bad")],
            style={"button_width": "76px"},
        )  # fmt: skip
        self.widget = self._layout()
        self._connect()
        self._show_samples()
        self._fit()
        self.quiet.start()

    def tell(self, text: str) -> None:
        """Show an error over the map."""
        self.message.value = sentence(text)

    def close(self) -> None:
        """Stop following the session, and end the threads."""
        self.quiet.close()
        self.session.unobserve(self._job_changed, "job")
        self.session.unobserve(self._show_samples, ["samples", "area"])
        self.session.unobserve(self._fit, "area")
        self.tiles.close()
        self.controls.close()
        self.settings.close()
        self.scene_map.close()

    # ------------------------------------------------------------------------------ what is shown

    def _layout(self) -> widgets.Widget:
        propose = button(
            "Propose tiles", self.propose, "spread over the area and over what it looks like"
        )
        clear = button("Clear tiles", self.tiles.clear, "start over with other sample tiles")
        advise = button(
            "Advise",
            self.advise,
            "move the sliders to where the good polygons stay and the bad ones disappear",
        )
        # messages stand beside the buttons, so that the map does not move when one comes
        said = row(self.tiles.widget, self.message)
        said.layout.min_height = "36px"
        left = widgets.VBox(
            [
                row(propose, self.n_tiles, clear, self.mode, advise), said,
                self.scene_map.widget, self.overlay, self.legend,
                self.figures, self.verdicts.text,
            ], layout=widgets.Layout(flex="1 1 500px", min_width="0"),
        )  # fmt: skip
        right = widgets.VBox(
            [
                self.controls.thresholds, self.plane, self.controls.cleaning, self.settings.widget,
                _looks(self.overlay),
            ],
            layout=widgets.Layout(width="350px", flex="0 0 350px"),
        )  # fmt: skip
        box = widgets.HBox([left, right], layout=widgets.Layout(width="100%"))
        box.add_class("sam-workbench-tuner")
        return box

    def _connect(self) -> None:
        self.overlay.on_click(self.clicked)
        self.plane.on_click(self._explain_row)
        for name in ("pred_iou_thresh", "stability_score_thresh"):
            control = self.controls.of[name]
            setattr(self.plane, name, control.value)
            self.plane.observe(lambda c, control=control: setattr(control, "value", c["new"]), name)
            control.observe(lambda c, name=name: setattr(self.plane, name, c["new"]), "value")
        self.session.observe(self._job_changed, "job")
        self.session.observe(self._show_samples, ["samples", "area"])
        self.session.observe(self._fit, "area")

    def _fit(self, _: Any = None) -> None:
        self.scene_map.fit_area(self.session.area)

    def _show_samples(self, _: Any = None) -> None:
        """Show other sample tiles, or the same ones in another area."""
        session, crs = self.session, self.session.scenes[0].crs
        aoi = None if session.area is None else session.area.aoi
        with self._lock:
            self.verdicts.clear()
            self._point_out([])
            self.preview = Preview(session.samples, aoi, before=self.preview)
            self.view = self._see()
            scores = self.preview.scores
            # by what is shown first: while a slider moves, a polygon keeps its colour
            classes = confidence_classes(scores[self.view.kept, 0])
            self.overlay.ramp = [[low, colour] for low, colour in classes]
            self.legend.value = legend(classes, _AREA["color"])
            with self.plane.hold_sync():
                self.plane.points = scores.astype("<f4").tobytes()
                self.plane.state = np.zeros(len(scores), np.uint8).tobytes()
        self.scene_map.show_tiles(None if session.area is None else tile_cores(session.area))
        windows = [s.part.scene.window_polygon(s.tile.window) for s in session.samples]
        # around all of them: the edges of each, where they overlap, would be a mesh of lines
        around = [shapely.union_all(windows)] if windows else []
        self.frames.data = feature(gpd.GeoSeries(around, crs=crs), _WINDOW)
        self.area.data = feature(gpd.GeoSeries([] if aoi is None else [aoi], crs=crs), _AREA)
        self._refresh()

    # -------------------------------------------------------------------------- what a slider does

    def _job_changed(self, change: Any) -> None:
        before, job = change["old"], change["new"]
        tuned = any(getattr(before, name) != getattr(job, name) for name in TUNED)
        if tuned or before.offer != job.offer:
            self.message.value = ""  # it was about the setting before
            self._refresh()

    def _refresh(self) -> None:
        """Show what the job's thresholds and cleaning leave of the samples."""
        with self._lock:
            try:
                self.view = self._see()
                self.drawn.show(self.view, self.preview, self.session.judged)
                self.plane.state = IN_PLANE[self.view.fate].tobytes()
            except Exception as error:  # a slider that does nothing must say why
                self.tell(f"{type(error).__name__}: {error}")
                return
        self.quiet.touch()

    def _see(self) -> View:
        """What the job leaves of the samples."""
        job = self.session.job
        return self.preview.look(job.thresholds, job.cleaning, job.offer)

    # ------------------------------------------------------------------ while no slider is moving

    def _look(self) -> bool:
        self.tiles.show_progress()
        return self.tiles.underway

    def _work(self) -> None:
        try:
            self._show_figures()
            if self.verdicts.has_place:
                self._point_out(self.verdicts.follow(self.preview, self.view))
            self._work_ahead()
        except Exception as error:  # in a thread, where nobody would see it
            self.tell(f"{type(error).__name__}: {error}")

    def _work_ahead(self) -> None:
        """Trace and clean what other thresholds will need."""
        preview, cleaning = self.preview, self.session.job.cleaning
        if preview.n_candidates > AHEAD_AT_MOST:
            return
        while preview.prepare(cleaning, AHEAD_AT_ONCE):
            time.sleep(0.002)  # let a slider that waits have the lock
            if self.quiet.overtaken or self.preview is not preview:
                return
        with self._lock:
            view = self._see()
            if not self.quiet.overtaken and self.drawn.misses(view):
                self.view = view
                self.drawn.send(view, preview, self.session.judged)

    def _show_figures(self) -> None:
        session = self.session
        with self._lock:
            preview, view = self.preview, self.view
        area = session.area
        forecast = "" if area is None else session.forecast.text(area.n_tiles)
        text = figures_text(preview, view, session.judged, forecast)
        if session.job.examples is not None:
            text += paragraph(UNCLASSED)
        self.figures.value = text

    # --------------------------------------------------------------------------- buttons and clicks

    def propose(self) -> None:
        """Have tiles computed that differ from one another."""
        area = self.session.area
        if area is None:
            self.tell(self.session.problem)
            return
        self.scene_map.fit_area(area)
        chosen = propose_tiles(area.finest, self.n_tiles.value)
        self.tiles.compute({part.index(tile) for part, tile in chosen})

    def clicked(self, lon: float, lat: float, place: int) -> None:
        """Explain or judge the polygon at a place of the overlay, or have the tile computed."""
        x, y = from_lonlat(self.session.scenes[0].crs, lon, lat)
        if not self._in_samples(x, y):
            self._choose_tile(x, y)
            return
        row = self.drawn.row_at(place)
        if self.mode.value == "explain":
            self._point_out(self.verdicts.ask_place(x, y, row, self.preview, self.view))
        elif row >= 0:
            self._judge(row, self.mode.value == "good")

    def _in_samples(self, x: float, y: float) -> bool:
        for sample in self.session.samples:
            bounds = sample.part.scene.window_polygon(sample.tile.window).bounds
            if bounds[0] <= x <= bounds[2] and bounds[1] <= y <= bounds[3]:
                return True
        return False

    def _choose_tile(self, x: float, y: float) -> None:
        for part in self.session.area.finest if self.session.area else ():
            for tile in part.tiles:
                left, bottom, right, top = part.scene.window_polygon(tile.core).bounds
                if left <= x <= right and bottom <= y <= top:
                    self.tiles.compute([part.index(tile)])
                    return

    def _judge(self, row: int, good: bool) -> None:
        key, judged = self.preview.key(row), dict(self.session.judged)
        if judged.get(key) is good:
            del judged[key]  # a second click takes it back
        else:
            judged[key] = good
        self.session.judged = judged
        with self._lock:
            self.drawn.mark_judged(self.preview, judged)
        self._show_figures()

    def advise(self) -> None:
        """Move the sliders to the thresholds that fit the judged polygons; undo takes it back."""
        session, by_tile = self.session, dict[Index, dict[int, bool]]()
        for key, good in session.judged.items():
            if self.preview.row(key) >= 0:
                by_tile.setdefault(key[:3], {})[key[3]] = good
        tiles = [(s.candidates, by_tile.get(s.record.index, {})) for s in self.preview.samples]
        try:
            advice = advise_judged(tiles, session.job.thresholds)
        except ReviewError as error:
            self.tell(str(error))
            return
        if advice.advised != session.job.thresholds:
            session.change(
                pred_iou_thresh=advice.advised.pred_iou_thresh,
                stability_score_thresh=advice.advised.stability_score_thresh,
            )
        self.message.value = paragraph(str(advice))

    def _explain_row(self, row: int) -> None:
        if 0 <= row < self.preview.n_candidates:
            self._point_out(self.verdicts.ask_row(row, self.preview, self.view))

    def _point_out(self, verdicts: list[Verdict]) -> None:
        """Mark the first of some candidates on the map and in the plane."""
        with self._lock:
            kept = verdicts[:1] and verdicts[0].fate == Fate.KEPT
            self.drawn.select(verdicts[0].row if kept else -1)
        self.plane.selected = verdicts[0].row if verdicts else -1


def _looks(overlay: PolygonOverlay) -> widgets.Widget:
    """Controls for how the polygons look."""
    colour = widgets.Dropdown(
        options=["confidence", "stability", "none"], description="colour", layout=_wide(166),
        style={"description_width": "45px"},
    )  # fmt: skip
    fill = widgets.Checkbox(True, description="fill", indent=False, layout=_wide(50))
    opacity = widgets.FloatSlider(
        0.9, min=0.1, max=1, step=0.1, description="opacity", readout=False,
        layout=_wide(122), style={"description_width": "50px"},
    )  # fmt: skip
    for control, name in ((colour, "colour_by"), (fill, "fill"), (opacity, "opacity")):
        setattr(overlay, name, control.value)
        control.observe(lambda c, name=name: setattr(overlay, name, c["new"]), "value")
    return row(colour, fill, opacity)


def _wide(px: int) -> widgets.Layout:
    return widgets.Layout(width=f"{px}px")
