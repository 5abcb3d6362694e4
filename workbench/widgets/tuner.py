"""The tuner: thresholds and cleaning on sample tiles, with polygons that follow the sliders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import geopandas as gpd
import ipyleaflet
import ipywidgets as widgets
import numpy as np
import shapely

from workbench._support.palette import confidence_classes
from workbench.errors import ReviewError, WorkbenchError
from workbench.raster.crs import from_lonlat
from workbench.tuning.preview import Preview, Verdict, View
from workbench.tuning.propose import propose_tiles
from workbench.widgets.area import AOIPicker
from workbench.widgets.beside import Beside
from workbench.widgets.cells import CellWidget
from workbench.widgets.classes import KEYS, ClassTeaching
from workbench.widgets.controls import Controls, button, row
from workbench.widgets.display import Display
from workbench.widgets.drawn_polygons import DrawnPolygons
from workbench.widgets.history import TUNED
from workbench.widgets.judging import Judging
from workbench.widgets.labelling import EXEMPLARS_KEY, NEXT_KEY, SHAPE_KEYS, point_out
from workbench.widgets.looks import looks
from workbench.widgets.map import SceneMap, feature, tile_cores
from workbench.widgets.object_list import ObjectList
from workbench.widgets.overlay import PolygonOverlay, Pressed
from workbench.widgets.palette import LOOK
from workbench.widgets.presets import Settings
from workbench.widgets.quiet import QUIET_SECONDS, QuietMoments
from workbench.widgets.safe_html import SafeHTML, sentence
from workbench.widgets.sample_tiles import SampleTiles
from workbench.widgets.score_plane import ScorePlane
from workbench.widgets.session import Session
from workbench.widgets.shapes import ShapeTool
from workbench.widgets.toolbar import MAP_KEYS, Toolbar, panel_of
from workbench.widgets.tuner_exemplars import TunerExemplars
from workbench.widgets.tuner_shapes import TunerShapes
from workbench.widgets.tuner_text import (
    IN_PLANE,
    TUNER_KEYS,
    class_swatches,
    confidence_swatches,
    figures_text,
    legend,
)
from workbench.widgets.verdicts import Explained

AHEAD_SECONDS = 3.0  # until the model is loaded ahead: stored tiles are drawn first
_AREA: dict[str, Any] = {"color": "#d500f9", "weight": 2, "fill": False, "interactive": False}
_WINDOW = _AREA | {"color": "#ffffff"}
_HIDDEN = _AREA | {"color": "#00ffff", "weight": 3}  # what is pointed out and not drawn


class ThresholdTuner(CellWidget[Session, "TunerPanel"]):
    """Tune on sample tiles of the area that an `AOIPicker` shows.

    It draws what `select`, `to_polygons` and `clean` return, as a run does. In a batch run it
    makes no widgets and shows nothing.
    """

    text = "Thresholds and cleaning as in the parameters."

    def __init__(self, picker: AOIPicker) -> None:
        super().__init__(picker.session, TunerPanel)


class TunerPanel:
    """The tuner's widgets: the map and texts on the left, all controls on the right."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.quiet = QuietMoments(session.get_ready, self._look, self._work)
        self.figures, self.message, self.legend = SafeHTML(), SafeHTML(), SafeHTML()
        self.controls = Controls(session)
        self.settings = Settings(session)
        self.tiles = SampleTiles(session, self.message, self.quiet.wake)
        self.scene_map = SceneMap(session)
        self.overlay = PolygonOverlay(map_id=self.scene_map.map.model_id)
        self.drawn = DrawnPolygons(self.overlay)
        self.verdicts = Explained(session.scenes[0].crs)
        nothing = feature(gpd.GeoSeries([], crs=4326), {})
        self.area, self.frames, self.hidden = (ipyleaflet.GeoJSON(data=nothing) for _ in range(3))
        self.list = ObjectList(map_id=self.scene_map.map.model_id)
        self.plane = ScorePlane(
            floors=[session.job.rules.pred_iou_floor, session.job.rules.stability_floor]
        )
        self.n_tiles = widgets.BoundedIntText(
            4, min=1, max=64, description="how many", layout={"width": "125px"},
            style={"description_width": "initial"},
        )  # fmt: skip
        self.teaching = ClassTeaching(session, self.tell)
        self.tool = ShapeTool(self.scene_map, session.asking, self.tell)
        self.shapes = TunerShapes(
            session, self.teaching, self.tool, lambda: (self.preview, self.view), self._redrawn
        )
        self.exemplars = TunerExemplars(session, self.teaching, self.tool, self.tiles, self.tell)
        explained, by_hand = self.verdicts.alternatives, (self.shapes.layer, self.exemplars.layer)
        for layer in (self.area, self.frames, explained, *by_hand, self.hidden):
            self.scene_map.map.add(layer)
        self.display = Display(session, self.drawn, self.teaching, self.quiet)
        self._lock = self.display.lock
        self.beside = Beside(session, self.scene_map, self.overlay)
        self.judging = Judging(session, self._stop_teaching)
        self.overlay.hotkeys = KEYS + SHAPE_KEYS + EXEMPLARS_KEY
        keys = (*TUNER_KEYS, *self.exemplars.keys, *MAP_KEYS)
        self.toolbar = Toolbar(session, self.tell, keys)
        self.widget = self._layout()
        self._connect()
        self._show_legend()
        self._show_samples()
        self._fit()
        self._show_notice()
        self.tiles.catch_up()
        self.quiet.start(AHEAD_SECONDS if session.samples else QUIET_SECONDS)

    @property
    def preview(self) -> Preview:
        """The samples."""
        return self.display.preview

    @property
    def view(self) -> View:
        """What is left of the samples."""
        return self.display.view

    def tell(self, text: str) -> None:
        """Show an error over the map, none if it is empty."""
        self.message.value = sentence(text) if text else ""

    def close(self) -> None:
        """Stop following the session, and end the threads."""
        self.quiet.close()
        for handler, names in self._followed:
            self.session.unobserve(handler, names)
        self.toolbar.let_go()
        parts = self.tiles, self.exemplars, self.controls, self.settings, self.beside
        for part in (*parts, self.scene_map):
            part.close()

    # ------------------------------------------------------------------------------ what is shown

    def _layout(self) -> widgets.Widget:
        propose = button("Propose tiles", self.propose, "some that differ in place and appearance")
        clear = button("Clear tiles", self.tiles.clear, "start over with other sample tiles")
        advise = button(
            "Advise",
            self.advise,
            "move the sliders to where the good polygons stay and the bad ones disappear",
        )
        # messages stand beside the buttons, so that the map does not move when one comes
        said = row(self.tiles.widget, self.message)
        said.layout.min_height = "28px"
        answer = self.verdicts.text
        answer.add_class("sam-workbench-answer")
        map_box = widgets.VBox([self.scene_map.widget, answer])
        map_box.add_class("sam-workbench-mapbox")
        maps = widgets.Box([map_box, self.beside.widget])
        maps.add_class("sam-workbench-maps")
        left = widgets.VBox(
            [
                row(propose, self.n_tiles, clear, self.judging.mode, advise, self.toolbar),
                row(self.teaching.palette, self.exemplars.button), said, maps, self.overlay,
                self.tool, self.teaching.text, self.legend, self.figures, self.list,
            ]
        )  # fmt: skip
        right = widgets.VBox(
            [
                self.controls.thresholds, self.plane, self.controls.cleaning,
                widgets.VBox([row(self.beside.switch), self.settings.widget]),
                looks(self.overlay, self.scene_map.imagery),
            ]
        )  # fmt: skip
        return panel_of("sam-workbench-tuner", left, right)

    def _connect(self) -> None:
        self.overlay.on_click(self.clicked)
        self.overlay.on_key(self.pressed)
        self.overlay.observe(self._show_legend, ["colour_by", "ramp", "class_colours"])
        self.teaching.palette.on_next(self.go_to_next)
        self.teaching.palette.observe(self._tool_changed, "tool")
        self.plane.on_click(self._explain_row)
        self.list.on_go(self.go_to)
        for name in ("pred_iou_thresh", "stability_score_thresh"):
            control = self.controls.of[name]
            setattr(self.plane, name, control.value)
            self.plane.observe(lambda c, control=control: setattr(control, "value", c["new"]), name)
            control.observe(lambda c, name=name: setattr(self.plane, name, c["new"]), "value")
        for handler, names in self._followed:
            self.session.observe(handler, names)

    @property
    def _followed(self) -> Sequence[tuple[Callable[[Any], None], Sequence[str]]]:
        """What hears of changes of the session, and of which."""
        return (
            (self._job_changed, ["job"]), (self._show_samples, ["samples", "area"]),
            (self._fit, ["area"]), (self._restored, ["restored"]),
            (self._show_figures, ["forecast"]), (self._show_notice, ["notice"]),
        )  # fmt: skip

    def _fit(self, _: Any = None) -> None:
        self.scene_map.fit_area(self.session.area)

    def _show_samples(self, _: Any = None) -> None:
        """Show other sample tiles, or the same ones in another area."""
        session, crs = self.session, self.session.scenes[0].crs
        aoi = None if session.area is None else session.area.aoi
        with self._lock:
            self.verdicts.clear()
            self._point_out([])
            self.teaching.forget_rows()
            self.display.take(aoi)
            scores = self.preview.scores
            # by what is shown first: while a slider moves, a polygon keeps its colour
            classes = confidence_classes(scores[self.view.kept, 0])
            self.overlay.ramp = [[low, colour] for low, colour in classes]
            with self.plane.hold_sync():
                self.plane.points = scores.astype("<f4").tobytes()
                self.plane.state = np.zeros(len(scores), np.uint8).tobytes()
        self.scene_map.show_tiles(None if session.area is None else tile_cores(session.area))
        windows = [s.part.scene.window_polygon(s.tile.window) for s in session.samples]
        # one outline around all: where they overlap, the edges of each would be a mesh of lines
        around = [shapely.union_all(windows)] if windows else []
        self.frames.data = feature(gpd.GeoSeries(around, crs=crs), _WINDOW)
        self.area.data = feature(gpd.GeoSeries([] if aoi is None else [aoi], crs=crs), _AREA)
        self._refresh()
        self.beside.show(self.preview)

    # -------------------------------------------------------------------------- what a slider does

    def _job_changed(self, change: Any) -> None:
        before, job = change["old"], change["new"]
        tuned = any(getattr(before, name) != getattr(job, name) for name in TUNED)
        if before.classes != job.classes or before.examples != job.examples:
            self.teaching.show_palette()
            self.teaching.show_text()
            self._refresh()
        if tuned or before.offer != job.offer:
            self.message.value = ""  # it was about the setting before
            self._refresh()

    def _restored(self, _: Any) -> None:
        """Show the state after undo or redo, including its verdicts."""
        self.message.value = ""
        if self.tool.mode != "boxes":  # undo is also for slips while boxes are drawn
            self.tool.drop()
        self.shapes.show()
        self.teaching.follow()
        self._refresh()
        self._show_judged()

    def _show_notice(self, _: Any = None) -> None:
        if self.session.notice:
            self.tell(self.session.notice)

    def _refresh(self) -> None:
        """Show what the job's thresholds and cleaning leave of the samples."""
        with self._lock:
            try:
                self.display.refresh()
                self.plane.state = IN_PLANE[self.view.fate].tobytes()
            except Exception as error:  # a slider that does nothing must say why
                self.tell(f"{type(error).__name__}: {error}")
                return
        self.quiet.touch()

    def _show_legend(self, _: Any = None) -> None:
        overlay = self.overlay
        by_class = overlay.colour_by == "class" and overlay.class_colours
        named = [(name, colour) for _, name, colour in overlay.class_colours]
        colours = class_swatches(named) if by_class else confidence_swatches(overlay.ramp)
        self.legend.value = legend(overlay.colour_by, colours, _AREA["color"])

    # ------------------------------------------------------------------ while no slider is moving

    def _look(self) -> bool:
        self.tiles.show_progress()
        return self.tiles.underway

    def _work(self) -> None:
        try:
            self.display.merge_seams()
            self._show_figures()
            if self.teaching.active:
                self.display.teach_on()
            if self.verdicts.has_place:
                self._point_out(self.verdicts.follow(self.preview, self.view))
            self.display.work_ahead()
        except Exception as error:  # in a thread, where nobody would see it
            self.tell(f"{type(error).__name__}: {error}")

    def _show_figures(self, _: Any = None) -> None:
        session = self.session
        with self._lock:
            preview, view = self.preview, self.view
        area = session.area
        forecast = "" if area is None else session.forecast.text(area.n_tiles)
        self.figures.value = figures_text(preview, view, session.judged, forecast)

    # --------------------------------------------------------------------------- buttons and clicks

    def propose(self) -> None:
        """Compute tiles that differ from one another."""
        area = self.session.area
        if area is None:
            self.tell(self.session.problem)
            return
        self.scene_map.fit_area(area)
        chosen = propose_tiles(area.finest, self.n_tiles.value)
        self.tiles.compute({part.index(tile) for part, tile in chosen})

    def clicked(self, lon: float, lat: float, place: int, again: int = 0) -> None:
        """Explain or judge the polygon at a place of the overlay, or compute the tile.

        Clicks `again` at the same place, Tab and the wheel go on to what else lies there, shown or
        not; -1 goes back.
        """
        if self.tool.busy:
            return  # it was one on the shape
        x, y = from_lonlat(self.session.scenes[0].crs, lon, lat)
        self.overlay.alternatives = 0
        if not self.tiles.has(x, y):
            self.tiles.compute_at(x, y)
            return
        row = self.drawn.row_at(place)
        teaching = self.teaching
        if teaching.palette.tool != LOOK:
            if teaching.click((x, y), row, again, self.preview, self.view):
                self._refresh()
            self._show_target()
        elif self.judging.explains:
            row = teaching.look((x, y), row, again, self.preview, self.view)
            self._point_out(self.verdicts.ask_place(x, y, row, self.preview, self.view))
            self._show_target()
        elif row >= 0:
            self.judging.judge(row, self.preview)
            self._show_judged()
        self.overlay.alternatives = teaching.n_here if self.judging.explains else 0

    def pressed(self, key: Pressed) -> None:
        """Say what is pointed at, draw it, or go to the next object."""
        if self.tool.busy:
            return
        if key.key == NEXT_KEY:
            self.go_to_next()
            return
        begins = {**self.shapes.begins, EXEMPLARS_KEY: self.exemplars.begin}
        if key.key in begins:
            self._shape(begins[key.key])
            return
        row = self.teaching.target if key.place is None else self.drawn.row_at(key.row)
        mine = -1  # a shape by hand
        if key.place is not None:
            place = from_lonlat(self.session.scenes[0].crs, *key.place)
            mine = self.shapes.row_at(place, row)
        if row < 0 and mine < 0 and key.place is not None:  # nothing is shown there: what is not?
            rows = self.teaching.rows_at(place, -1, self.preview, self.view)
            row = rows[0] if rows else -1
        if row < 0 and mine < 0:
            self.tell("Nothing is pointed at: move the mouse over an object, or press n.")
        elif key.key in SHAPE_KEYS:
            self._shape(lambda: self.shapes.change(key.key, row, mine))
        elif mine >= 0:
            self._shape(lambda: self.shapes.say(mine, int(key.key)))
        elif self.teaching.say(row, int(key.key), self.preview):
            self.message.value = ""
            self._refresh()
            if key.place is None:
                self._show_target()

    def _shape(self, step: Callable[[], None]) -> None:
        try:
            step()
        except WorkbenchError as error:
            self.tell(str(error))

    def _redrawn(self) -> None:
        """Show other shapes by hand, and what they teach."""
        self.message.value = ""
        self.shapes.show()
        self._refresh()
        self.teaching.target = -1  # its outline is not shown any more
        self._show_target()

    def go_to_next(self) -> None:
        """Highlight the object whose verdict would teach most; keys then act on it."""
        with self._lock:
            row = self.teaching.next(self.preview, self.view)
        if row < 0:
            self.tell("Nothing is left to ask about on these tiles: compute others.")
            return
        self.message.value = ""
        self._show_target(go=True)

    def go_to(self, place: int, sequence: int) -> None:
        """Highlight the polygon at a place of the overlay; keys then act on it."""
        row = self.drawn.row_at(place)
        if row >= 0 and sequence == self.overlay.for_sequence:
            self.teaching.target = row
            self.verdicts.clear()
            self._show_target(go=True)

    def _show_target(self, go: bool = False) -> None:
        """Mark the object that keys act on, shown or not; `go` moves the map to it."""
        row, crs = self.teaching.target, self.session.scenes[0].crs
        with self._lock:
            shown = self.drawn.select(row)
            outline = gpd.GeoSeries([], crs=crs)
            if row >= 0 and not shown:
                outline = self.preview.outline(row)
        self.hidden.data = feature(outline, _HIDDEN)
        self.plane.selected = row
        outline = self.preview.outline(row) if go else None
        point_out(self.scene_map, self.overlay, row, outline)

    def _tool_changed(self, change: Any) -> None:
        if change["new"] != LOOK:
            self.judging.explain()

    def _stop_teaching(self) -> None:
        self.teaching.palette.tool = LOOK

    def _show_judged(self) -> None:
        with self._lock:
            self.drawn.mark_judged(self.preview, self.session.judged)
        self._show_figures()

    def advise(self) -> None:
        """Move the sliders to the thresholds that fit the judged polygons; undo takes it back."""
        try:
            said = self.judging.advise(self.preview)
        except ReviewError as error:
            self.tell(str(error))
        else:
            self.message.value = said

    def _explain_row(self, row: int) -> None:
        if 0 <= row < self.preview.n_candidates:
            self._point_out(self.verdicts.ask_row(row, self.preview, self.view))

    def _point_out(self, verdicts: list[Verdict]) -> None:
        """Mark the first of some candidates on the map and in the plane."""
        with self._lock:
            self.drawn.select(verdicts[0].row if verdicts else -1)
        self.plane.selected = verdicts[0].row if verdicts else -1
