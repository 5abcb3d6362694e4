"""The tuner: thresholds and cleaning on sample tiles, with polygons that follow the sliders."""

from __future__ import annotations

import html
import threading
import time
from typing import Any

import geopandas as gpd
import ipyleaflet
import ipywidgets as widgets
import numpy as np
import pandas as pd
import shapely

from workbench._support.palette import CONFIDENCE_CLASSES
from workbench.errors import ReviewError
from workbench.evaluation.judged import advise_judged
from workbench.polygons.clean import Cleaning
from workbench.raster.crs import from_lonlat
from workbench.tuning.preview import Fate, Preview, Verdict, View, stack
from workbench.tuning.process import Index
from workbench.tuning.propose import propose_tiles
from workbench.widgets.area import AOIPicker, tile_cores
from workbench.widgets.cells import CellWidget
from workbench.widgets.controls import TUNED, Controls, button, paragraph, row, sentence
from workbench.widgets.map import SceneMap, feature
from workbench.widgets.overlay import Flag, PolygonOverlay
from workbench.widgets.presets import Settings
from workbench.widgets.sample_tiles import SampleTiles
from workbench.widgets.score_plane import ScorePlane

AHEAD_AT_MOST = 30_000  # candidates that are traced before a slider asks for them
AHEAD_AT_ONCE = 20  # a slider waits for no more than these
QUIET_SECONDS = 0.3  # no slider has moved for so long: time for figures and work ahead
_AREA = {"color": "#d500f9", "weight": 2, "fill": False, "interactive": False}
_WINDOW = _AREA | {"color": "#ffffff"}
_ALTERNATIVE = _WINDOW | {"dashArray": "4 4"}
FATES = {
    Fate.KEPT: "✓",
    Fate.BELOW: "below",
    Fate.SUPPRESSED: "overlapped",
    Fate.CLEANED: "cleaned",
    Fate.OUTSIDE: "outside",
    Fate.WHOLE_TILE: "too large",
    Fate.DUPLICATE: "repeated",
    Fate.OVERLAP: "overlapped",
}
# what the plane shows in one colour
_IN_PLANE = np.arange(len(Fate), dtype=np.uint8)
_IN_PLANE[[Fate.WHOLE_TILE, Fate.DUPLICATE, Fate.OVERLAP]] = Fate.SUPPRESSED


class ThresholdTuner(CellWidget):
    """Tune on sample tiles of the area that an `AOIPicker` shows.

    What is drawn is what `select`, `to_polygons` and `clean` give, as in a run. Where nobody is
    at the notebook, it makes no widgets and shows nothing.
    """

    text = "Thresholds and cleaning as in the parameters."

    def __init__(self, picker: AOIPicker) -> None:
        self.session = picker.session
        if picker.job.is_interactive:
            self._build()

    def detach(self) -> None:
        """Let another tuner take over: stop following the session."""
        if self.widget is None:
            return
        self._closed = True
        self._wake.set()
        self.session.unobserve(self._job_changed, "job")
        self.session.unobserve(self._samples_changed, ["samples", "area"])
        self.session.unobserve(self._fit, "area")
        self.tiles.close()
        self.controls.close()
        self.settings.close()
        self.scene_map.close()

    # ------------------------------------------------------------------------------ what is shown

    def _build(self) -> None:
        session = self.session
        self._lock = threading.RLock()
        self._closed = False
        self._wake = threading.Event()
        self._touched = 0.0
        # the polygons that the browser has: their frames, rows, and where each candidate is
        self._drawn: tuple[gpd.GeoDataFrame, ...] = ()
        self._rows = self._place = np.empty(0, np.int64)
        self._drawn_with: Cleaning | None = None
        self._selected = -1  # row
        self._asked: tuple[float, float, int] | None = None  # place and row that are explained

        self.controls = Controls(session)
        self.scene_map = SceneMap(session, height_px=460)  # what a click tells is to be in sight
        self.overlay = PolygonOverlay(map_id=self.scene_map.map.model_id)
        self.overlay.on_click(self._clicked)
        rules = session.job.rules
        self.plane = ScorePlane(floors=[rules.pred_iou_floor, rules.stability_floor])
        self.plane.on_click(self._explain_row)
        for name in ("pred_iou_thresh", "stability_score_thresh"):
            control = self.controls.of[name]
            setattr(self.plane, name, control.value)
            self.plane.observe(lambda c, control=control: setattr(control, "value", c["new"]), name)
            control.observe(lambda c, name=name: setattr(self.plane, name, c["new"]), "value")
        # outlines of a clicked place's other candidates, which need not be among those drawn
        nothing = feature(gpd.GeoSeries([], crs=4326), {})
        self.area, self.frames, self.alternatives = (
            ipyleaflet.GeoJSON(data=nothing) for _ in range(3)
        )
        for layer in (self.area, self.frames, self.alternatives):
            self.scene_map.map.add(layer)
        self.figures, self.message, self.verdicts = (widgets.HTML() for _ in range(3))
        self.settings = Settings(session)
        self.tiles = SampleTiles(session, self.message, self._wake.set)
        box = self._layout()
        self.preview = Preview(())
        self.view = self._look()
        session.observe(self._job_changed, "job")
        session.observe(self._samples_changed, ["samples", "area"])
        session.observe(self._fit, "area")
        threading.Thread(target=self._when_quiet, daemon=True).start()
        self._samples_changed(None)
        self._fit(None)
        self.show(box)

    def take_over(self, before: ThresholdTuner) -> None:
        """Hear the rest of what an earlier tuner has begun."""
        self.tiles.take_over(before.tiles)

    def tell(self, text: str) -> None:
        """Show a sentence over the map."""
        self.message.value = sentence(text)

    def _fit(self, _: Any) -> None:
        self.scene_map.fit_area(self.session.area)

    def _layout(self) -> widgets.Widget:
        self.n_tiles = widgets.BoundedIntText(
            4, min=1, max=64, layout={"width": "60px"}, tooltip="how many tiles to propose"
        )
        propose = button(
            "Propose tiles", self._propose, "spread over the area and over what it looks like"
        )
        clear = button("Clear tiles", self.tiles.clear, "start over with other sample tiles")
        self.mode = widgets.ToggleButtons(
            options=[("Explain", "explain"), ("Good", "good"), ("Bad", "bad")],
            tooltips=[f"click, or Enter at the cross of the map: {what}" for what in (
                "why a polygon is there or not", "call it good", "call it bad")],
            style={"button_width": "76px"},
        )  # fmt: skip
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
            setattr(self.overlay, name, control.value)
            control.observe(lambda c, name=name: setattr(self.overlay, name, c["new"]), "value")
        advise = button(
            "Advise",
            self._advise,
            "move the sliders to where the good ones stay and the bad ones go",
        )
        # what comes of the buttons is said beside them; the map stays where it is meanwhile
        said = row(self.tiles.widget, self.message)
        said.layout.min_height = "36px"
        left = widgets.VBox(
            [
                row(propose, self.n_tiles, clear, self.mode, advise), said,
                self.scene_map.widget, self.overlay, widgets.HTML(_legend()), self.figures,
                self.verdicts,
            ], layout=widgets.Layout(flex="1 1 500px", min_width="0"),
        )  # fmt: skip
        right = widgets.VBox(
            [
                self.controls.thresholds, self.plane, self.controls.cleaning, self.settings.widget,
                row(colour, fill, opacity),
            ],
            layout=widgets.Layout(width="350px", flex="0 0 350px"),
        )  # fmt: skip
        box = widgets.HBox([left, right], layout=widgets.Layout(width="100%"))
        box.add_class("sam-workbench-tuner")
        return box

    # -------------------------------------------------------------------------- what a slider does

    def _job_changed(self, change: Any) -> None:
        before, job = change["old"], change["new"]
        changed = any(getattr(before, name) != getattr(job, name) for name in TUNED)
        changed = changed or before.offer != job.offer
        if changed:
            self.message.value = ""  # what was said of the setting before
            self._refresh()

    def _refresh(self) -> None:
        """Show what the job's thresholds and cleaning leave of the samples."""
        with self._lock:
            try:
                self.view = self._look()
                self._draw(self.view)
            except Exception as error:  # a slider that does nothing must say why
                self.tell(f"{type(error).__name__}: {error}")
                return
        self._touched = time.monotonic()
        self._wake.set()

    def _look(self) -> View:
        """What the job leaves of the samples."""
        job = self.session.job
        return self.preview.look(job.thresholds, job.cleaning, job.offer)

    def _draw(self, view: View) -> None:
        kept = view.kept
        known = len(self._place) == self.preview.n_candidates and self._drawn_with == view.cleaning
        if not known or (self._place[kept] < 0).any() or view.cleaning.planar:
            self._send_outlines(view)
        else:
            self.overlay.shown = self._place[kept].astype("<u4").tobytes()
        self.plane.state = _IN_PLANE[view.fate].tobytes()

    def _send_outlines(self, view: View) -> None:
        frame = stack(view.drawn)
        rows = frame["row"].to_numpy()
        self._place = np.full(self.preview.n_candidates, -1)
        self._place[rows] = np.arange(len(rows))
        self._rows, self._drawn_with, self._drawn = rows, view.cleaning, view.drawn
        self.overlay.draw(frame, self._place[view.kept], self._flags(frame))
        self._point_out()

    def _point_out(self) -> None:
        self.overlay.selected = int(self._place[self._selected]) if self._selected >= 0 else -1

    def _flags(self, frame: gpd.GeoDataFrame) -> bytes:
        if not len(frame):
            return b""
        flags = np.where(frame["seam"], Flag.SEAM, 0).astype(np.uint8)
        for key, good in self.session.judged.items():
            candidate = self.preview.row(key)
            if candidate >= 0 and self._place[candidate] >= 0:
                flags[self._place[candidate]] |= Flag.GOOD if good else Flag.BAD
        return flags.tobytes()

    def _when_quiet(self) -> None:
        """While no slider moves: the figures, and what other thresholds will need."""
        time.sleep(QUIET_SECONDS)  # the maps are to be shown first
        if not self._closed:
            self.session.get_ready()
        done = 0.0
        while True:
            self._wake.wait(timeout=0.3 if self.tiles.underway else None)
            if self._closed:
                return
            self._wake.clear()
            self.tiles.show_progress()
            touched = self._touched
            if touched == done:
                continue  # it was only the progress that had to be shown
            if time.monotonic() - touched < QUIET_SECONDS:
                time.sleep(0.05)
                self._wake.set()
                continue
            done = touched
            try:
                self._show_figures()
                self._explain()
                self._work_ahead()
            except Exception as error:
                self.message.value = sentence(f"{type(error).__name__}: {error}")

    def _work_ahead(self) -> None:
        preview, cleaning, touched = self.preview, self.session.job.cleaning, self._touched
        if preview.n_candidates > AHEAD_AT_MOST:
            return
        while preview.prepare(cleaning, AHEAD_AT_ONCE):
            time.sleep(0.002)  # the lock goes to a slider that waits for it
            if self._touched != touched or self.preview is not preview or self._closed:
                return
        with self._lock:
            view = self._look()
            if self._touched == touched and any(
                new is not old for new, old in zip(view.drawn, self._drawn, strict=False)
            ):
                self.view = view
                self._send_outlines(view)

    def _show_figures(self) -> None:
        session = self.session
        with self._lock:
            preview, view = self.preview, self.view
        if not preview.samples:
            self.figures.value = paragraph("Click a tile, or propose some, to see polygons.")
            return
        figures = preview.figures(view)
        n = len(preview.samples)
        text = [f"<b>{figures.n:,}</b> polygons on {n} tile{'s' if n != 1 else ''}"]
        if figures.n:
            text.append(f"{figures.covered:.0%} of it covered")
            text.append(f"median {figures.median_area_m2:,.3g} m²")
        if figures.n_seam:
            text.append(
                f"{figures.n_seam} dashed ones reach another tile: a run makes one of what two "
                "tiles share"
            )
        shown = {preview.key(int(row)) for row in view.kept} if session.judged else set()
        verdicts = [good for key, good in session.judged.items() if key in shown]
        if verdicts:
            share = sum(verdicts) / len(verdicts)
            text.append(f"<b>{share:.0%}</b> of {len(verdicts)} judged are good")
        if session.area is not None:
            text.append(f"whole area: {session.forecast.text(session.area.n_tiles)}")
        self.figures.value = paragraph(" · ".join(text))

    # ------------------------------------------------------------------------------ sample tiles

    def _samples_changed(self, _: Any) -> None:
        session = self.session
        crs = session.scenes[0].crs
        self.alternatives.data = feature(gpd.GeoSeries([], crs=crs), _ALTERNATIVE)
        self.verdicts.value = ""
        with self._lock:
            self._selected = self.plane.selected = -1
            self._asked = None
            aoi = None if session.area is None else session.area.aoi
            self.preview = Preview(session.samples, aoi, before=self.preview)
            self.view = self._look()
            scores = self.preview.scores
            with self.plane.hold_sync():
                self.plane.points = scores.astype("<f4").tobytes()
                self.plane.state = np.zeros(len(scores), np.uint8).tobytes()
        crs = session.scenes[0].crs
        self.scene_map.show_tiles(None if session.area is None else tile_cores(session.area))
        windows = [s.part.scene.window_polygon(s.tile.window) for s in session.samples]
        # around all of them: the edges of each, where they overlap, would be a mesh of lines
        around = [shapely.union_all(windows)] if windows else []
        self.frames.data = feature(gpd.GeoSeries(around, crs=crs), _WINDOW)
        self.area.data = feature(gpd.GeoSeries([] if aoi is None else [aoi], crs=crs), _AREA)
        self._refresh()

    def _propose(self) -> None:
        area = self.session.area
        if area is None:
            self.message.value = sentence(self.session.problem)
            return
        self.scene_map.fit_area(area)
        chosen = propose_tiles(area.parts, self.n_tiles.value)
        self.tiles.compute({part.index(tile) for part, tile in chosen})

    # ------------------------------------------------------------------------------------ clicks

    def _clicked(self, lon: float, lat: float, place: int) -> None:
        x, y = from_lonlat(self.session.scenes[0].crs, lon, lat)
        for sample in self.session.samples:
            bounds = sample.part.scene.window_polygon(sample.tile.window).bounds
            if bounds[0] <= x <= bounds[2] and bounds[1] <= y <= bounds[3]:
                break
        else:
            self._choose_tile(x, y)
            return
        row = int(self._rows[place]) if 0 <= place < len(self._rows) else -1
        if self.mode.value == "explain":
            self._asked = x, y, row
            self._explain()
        elif row >= 0:
            self._judge(row, self.mode.value == "good")

    def _choose_tile(self, x: float, y: float) -> None:
        for part in self.session.area.parts if self.session.area else ():
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
            self.overlay.flags = self._flags(stack(self._drawn))
        self._show_figures()

    def _advise(self) -> None:
        """Move the sliders to where the verdicts want them; undo takes it back."""
        session, by_tile = self.session, dict[Index, dict[int, bool]]()
        for key, good in session.judged.items():
            if self.preview.row(key) >= 0:
                by_tile.setdefault(key[:3], {})[key[3]] = good
        tiles = [(s.candidates, by_tile.get(s.record.index, {})) for s in self.preview.samples]
        try:
            advice = advise_judged(tiles, session.job.thresholds)
        except ReviewError as error:
            self.message.value = sentence(str(error))
            return
        session.change(
            pred_iou_thresh=advice.advised.pred_iou_thresh,
            stability_score_thresh=advice.advised.stability_score_thresh,
        )
        self.message.value = paragraph(str(advice))

    def _explain_row(self, row: int) -> None:
        if 0 <= row < self.preview.n_candidates:
            self._asked = None
            self._show_verdicts([self.preview.explain(row, self.view)])

    def _explain(self) -> None:
        """Say why the clicked polygon is there, and what else there is at its place."""
        if self._asked is not None:
            x, y, row = self._asked
            verdicts = self.preview.at(x, y, self.view)
            # sorted is stable: what was clicked first, then the best
            self._show_verdicts(sorted(verdicts, key=lambda verdict: verdict.row != row))

    def _show_verdicts(self, verdicts: list[Verdict]) -> None:
        """List candidates of one place, and outline those that are not drawn."""
        lines = [
            f"<tr><td>{FATES[v.fate]}</td><td>{v.pred_iou:.3f}</td><td>{v.stability_score:.3f}</td>"
            f"<td>{v.area_m2:,.{0 if v.area_m2 >= 10 else 1}f}</td>"
            f"<td>{html.escape(v.reason)}</td></tr>"
            for v in verdicts[:10]
        ]
        head = "<tr><th></th><th>predicted IoU</th><th>stability</th><th>m²</th><th></th></tr>"
        more = f"<p>and {len(verdicts) - 10} more</p>" if len(verdicts) > 10 else ""
        self.verdicts.value = (
            f'<table style="line-height: 1.3">{head}{"".join(lines)}</table>{more}'
            if lines
            else "No candidate here."
        )
        hidden = [self.preview.outline(v.row) for v in verdicts[:10] if v.fate != Fate.KEPT]
        crs = self.session.scenes[0].crs
        shapes = pd.concat(hidden) if hidden else gpd.GeoSeries([], crs=crs)
        self.alternatives.data = feature(shapes, _ALTERNATIVE)
        with self._lock:
            kept = verdicts[:1] and verdicts[0].fate == Fate.KEPT
            self._selected = verdicts[0].row if kept else -1
            self._point_out()
        self.plane.selected = verdicts[0].row if verdicts else -1


def _legend() -> str:
    """Name the colours of polygons and lines on the map."""
    highs = [*(low for low, _ in CONFIDENCE_CLASSES[1:]), 1.0]
    classes = [
        f'<span style="border-bottom: 4px solid {colour}; padding: 0 3px">{low:g}–{high:g}</span>'
        for (low, colour), high in zip(CONFIDENCE_CLASSES, highs, strict=True)
    ]
    return paragraph(
        f"{' '.join(classes)} &ensp; dashed: reaches another tile<br>lines: "
        f'<span style="color: {_AREA["color"]}">area</span> &ensp; '
        '<span style="color: #ffffff; background: #757575; padding: 0 3px">tiles; thick: those '
        "computed</span>",
        "font-size: 12px",
    )


def _wide(px: int) -> widgets.Layout:
    return widgets.Layout(width=f"{px}px")
