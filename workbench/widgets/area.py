"""The AOI picker: the area of interest, drawn on the map or read from a file."""

from __future__ import annotations

import threading
from typing import Any

import geopandas as gpd
import ipyleaflet
import ipywidgets as widgets
import shapely

from workbench._support.text import area_text
from workbench.errors import AOIError, WorkbenchError
from workbench.raster.aoi import load_aoi
from workbench.runs.job import Job
from workbench.tuning.webmap import degrees_from_web
from workbench.widgets.area_files import AreaFiles
from workbench.widgets.area_text import (
    area_m2,
    bend_step,
    caption,
    outside_text,
)
from workbench.widgets.cells import CellWidget, session_of_cell
from workbench.widgets.controls import button, row
from workbench.widgets.drawn_area import (
    STYLE,
    drawn_feature,
    geometry_of,
    parts_of,
    straightened,
)
from workbench.widgets.map import SceneMap, feature, tile_cores
from workbench.widgets.safe_html import Markup, SafeHTML, paragraph, sentence
from workbench.widgets.session import Session
from workbench.widgets.toolbar import MAP_KEYS, Toolbar, panel_of

_INSIDE = {"stroke": False, "fillColor": "#d500f9", "fillOpacity": 0.04, "interactive": False}


class AOIPicker(CellWidget[Session, "AOIPanel"]):
    """A map to draw the area of interest of a job on.

    A drawn shape becomes the `aoi` of the session's job at once. In a batch run the picker makes no
    widgets, and raises `AOIError` for an AOI that cannot be used.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(session_of_cell(job), AOIPanel)
        if self.panel is None and self.session.area is None:
            raise AOIError(self.session.problem)

    @property
    def text(self) -> str:  # type: ignore[override]
        """The text that a batch run shows."""
        return self.session.problem if self.session.area is None else caption(self.session)

    @property
    def scene_map(self) -> SceneMap | None:
        """The map; None without widgets."""
        return None if self.panel is None else self.panel.scene_map

    def close(self) -> None:
        """Remove the picker, and close the rasters that it has opened."""
        super().close()
        for scene in self.session.scenes:
            scene.close()


class AOIPanel:
    """The picker's widgets: map and drawing tools on the left, text and buttons on the right."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.scene_map = SceneMap(session)
        self._lock = threading.RLock()  # JupyterLab may call from two threads while a cell runs
        self._following = False
        self._on_map: Any = None  # the job's AOI that the drawing tools show now
        style = {"pathOptions": STYLE}
        self.control = ipyleaflet.GeomanDrawControl(
            rectangle=style, polygon=style, polyline={}, circle={}, circlemarker={}, marker={},
            text={}, edit=True, drag=True, remove=True, cut=False, rotate=False,
        )  # fmt: skip
        self._inside = ipyleaflet.GeoJSON(data=feature(gpd.GeoSeries([], crs=4326), _INSIDE))
        self.scene_map.map.add(self._inside)
        self.scene_map.map.add(self.control)
        self.figures, self.problem = SafeHTML(), SafeHTML()
        self.files = AreaFiles(session, self.scene_map, self._show_again)
        self.toolbar = Toolbar(session, self.tell, MAP_KEYS)
        self.widget = self._layout()
        self.control.observe(self._drawn, "data")
        session.observe(self._job_changed, "job")
        session.observe(self._show_area, "area")
        session.observe(self._show_figures, ["area", "forecast"])
        session.observe(self._show_problem, ["area", "problem"])
        session.observe(self._show_notice, "notice")
        self._show_shapes()
        self._show_area()
        self._show_figures()
        self._show_problem()
        self._show_notice()
        self.scene_map.fit_area(session.area)

    def tell(self, text: str) -> None:
        """Show an error below the buttons."""
        self.files.tell(text)

    def close(self) -> None:
        """Stop following the session, and end the map's thread."""
        self.session.unobserve(self._job_changed, "job")
        self.session.unobserve(self._show_area, "area")
        self.session.unobserve(self._show_figures, ["area", "forecast"])
        self.session.unobserve(self._show_problem, ["area", "problem"])
        self.session.unobserve(self._show_notice, "notice")
        self.toolbar.let_go()
        self.scene_map.close()

    # ------------------------------------------------------------------------------ what is shown

    def _layout(self) -> widgets.Widget:
        hint = SafeHTML(
            paragraph(
                "Draw one or more shapes with the tools on the map; a rectangle takes two clicks, "
                "at opposite corners. Without any, the area is the whole raster. White lines are "
                "tiles."
            )
        )
        column = widgets.VBox(
            [
                widgets.VBox([self.toolbar, self.figures, self.problem, hint]),
                widgets.VBox(
                    [
                        row(
                            button("Whole raster", self._take_all, "remove all shapes"),
                            button(
                                "Add what the map shows", self._add_view,
                                "a rectangle without a mouse",
                            ),
                        ),
                        self.files.widget,
                    ]
                ),
            ]
        )  # fmt: skip
        return panel_of("sam-workbench-aoi", self.scene_map.widget, column)

    def _job_changed(self, change: Any) -> None:
        if change["old"].aoi != change["new"].aoi:
            self.files.notice.value = ""
            self._show_shapes()
            self._show_problem()

    def _show_again(self) -> None:
        self._on_map = None
        self._show_shapes()

    def _show_shapes(self) -> None:
        """Give the job's AOI to the drawing tools, unless it comes from them."""
        with self._lock:
            aoi = self.session.job.aoi
            if aoi == self._on_map:
                return
            try:
                shapes = [] if aoi is None else parts_of(load_aoi(aoi).to_crs(4326))
            except WorkbenchError:
                shapes = []  # the session's `problem` says why
            self._hold([drawn_feature(shape) for shape in shapes])
            self._on_map = aoi

    def _hold(self, features: list[dict[str, Any]]) -> None:
        self._following = True
        try:
            self.control.data = features
        finally:
            self._following = False

    def _show_area(self, _: Any = None) -> None:
        """Fill the part of the AOI that lies in the scenes, and draw the tiles."""
        session, crs = self.session, self.session.scenes[0].crs
        aoi = None if session.area is None else session.area.aoi
        inside = gpd.GeoSeries([] if aoi is None else [aoi], crs=crs)
        if aoi is not None:  # straight in one CRS is bent in another
            inside = inside.segmentize(bend_step(inside))
        self._inside.data = feature(inside, _INSIDE)
        self.scene_map.show_tiles(None if session.area is None else tile_cores(session.area))

    def _show_figures(self, _: Any = None) -> None:
        session = self.session
        if session.area is None:
            self.figures.value = ""
            return
        what = "Whole raster" if session.area.aoi is None else "Area"
        self.figures.value = paragraph(
            Markup("<b>{}: {}</b><br>{}").format(
                what,
                area_text(area_m2(session)),
                session.forecast.text(session.area.n_tiles),
            )
        )

    def _show_problem(self, _: Any = None) -> None:
        session = self.session
        self.problem.value = (
            sentence(session.problem) if session.area is None else outside_text(session)
        )

    def _show_notice(self, _: Any = None) -> None:
        if self.session.notice:
            self.tell(self.session.notice)

    # ------------------------------------------------------------------------------ what it does

    def _drawn(self, change: Any) -> None:
        """Take over the shapes that a person has drawn, moved or deleted."""
        if self._following:
            return
        with self._lock:
            features = straightened(change["new"], change["old"] or [])
            if features != change["new"]:
                self._hold(features)
            self._on_map = geometry_of(features)
            self._change(self._on_map)

    def _change(self, aoi: Any) -> None:
        try:
            self.session.change(aoi=aoi)
        except WorkbenchError as error:
            self.tell(str(error))

    def _take_all(self) -> None:
        self._change(None)
        self.scene_map.fit_scenes()

    def _add_view(self) -> None:
        left, bottom, right, top = self.scene_map.screen.bounds
        corners = degrees_from_web(left, bottom) + degrees_from_web(right, top)
        self.control.data = [*self.control.data, drawn_feature(shapely.box(*corners))]
