"""The AOI picker: the area of interest, drawn on the map or read from a file."""

from __future__ import annotations

import base64
import html
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import ipyleaflet
import ipywidgets as widgets
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench._support.files import atomic_path
from workbench.errors import AOIError, WorkbenchError
from workbench.layer.report.map import MAP_PX, Shown, draw_map, figure_png
from workbench.raster.aoi import load_aoi
from workbench.raster.crs import ground_area_m2
from workbench.runs.job import Job
from workbench.tuning.webmap import degrees_from_web
from workbench.widgets.cells import CellWidget, session_of_cell
from workbench.widgets.controls import button, paragraph, sentence
from workbench.widgets.map import SceneMap, feature
from workbench.widgets.session import Area, Session

_CLOSE = 1e-6  # degrees: the browser rounds to six decimals
_DRAWN = {"color": "#d500f9", "weight": 2, "fillColor": "#d500f9", "fillOpacity": 0.02}
_INSIDE = {"stroke": False, "fillColor": "#d500f9", "fillOpacity": 0.04, "interactive": False}
_EQUAL_AREA = 6933  # EPSG; for shares


class AOIPicker(CellWidget):
    """The area of interest of a job: a map to draw it on, or a picture where nobody is at work.

    What is drawn becomes the `aoi` of the session's job at once. Raises `AOIError` where nobody
    could draw another one.
    """

    def __init__(self, job: Job) -> None:
        self.session: Session = session_of_cell(job)
        self.panel: AOIPanel | None = None
        if job.is_interactive:
            self.panel = AOIPanel(self.session)
            self.show(self.panel.widget)
        elif self.session.area is None:
            raise AOIError(self.session.problem)

    @property
    def scene_map(self) -> SceneMap | None:
        """The map; None where there are no widgets."""
        return None if self.panel is None else self.panel.scene_map

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if self.widget is not None:
            return super()._repr_mimebundle_(**options)
        picture = base64.b64encode(area_picture(self.session)).decode()
        return {"image/png": picture, "text/plain": _caption(self.session)}

    def detach(self) -> None:
        """Let another picker take over: stop following the session."""
        if self.panel is not None:
            self.panel.detach()

    def close(self) -> None:
        """Take the picker away, and close what it has opened."""
        super().close()
        for scene in self.session.scenes:
            scene.close()


class AOIPanel:
    """The picker's widgets: left the map with tools to draw, right the figures and buttons."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.scene_map = SceneMap(session)
        self._lock = threading.RLock()  # JupyterLab may call from two threads while a cell runs
        self._following = False
        self._on_map: Any = None  # the job's AOI that the drawing tools hold
        self._replaced: Path | None = None  # a file that Save has been asked about
        self._build()
        session.observe(self._job_changed, "job")
        session.observe(self._show_area, "area")
        session.observe(self._show_figures, ["area", "forecast"])
        session.observe(self._show_problem, ["area", "problem"])
        self._show_shapes()
        self._show_area()
        self._show_figures()
        self._show_problem()
        self.scene_map.fit_area(self.session.area)

    def detach(self) -> None:
        """Stop following the session, and end the map's thread."""
        self.session.unobserve(self._job_changed, "job")
        self.session.unobserve(self._show_area, "area")
        self.session.unobserve(self._show_figures, ["area", "forecast"])
        self.session.unobserve(self._show_problem, ["area", "problem"])
        self.scene_map.close()

    # ------------------------------------------------------------------------------ what is shown

    def _build(self) -> None:
        drawn = {"pathOptions": _DRAWN}
        self.control = ipyleaflet.GeomanDrawControl(
            rectangle=drawn, polygon=drawn, polyline={}, circle={}, circlemarker={}, marker={},
            text={}, edit=True, drag=True, remove=True, cut=False, rotate=False,
        )  # fmt: skip
        self.control.observe(self._drawn, "data")
        self._inside = ipyleaflet.GeoJSON(data=feature(gpd.GeoSeries([], crs=4326), _INSIDE))
        self.scene_map.map.add(self._inside)
        self.scene_map.map.add(self.control)
        self.figures, self.problem, self.notice = (widgets.HTML() for _ in range(3))
        self.path = widgets.Text(
            placeholder="area.geojson", layout=widgets.Layout(width="auto"),
            tooltip="a vector file",
        )  # fmt: skip
        hint = widgets.HTML(
            paragraph(
                "Draw with the tools on the map: rectangles (click two opposite corners) or "
                "polygons, several if you like. Without any, the whole raster is the area. White "
                "lines are tiles."
            )
        )
        column = widgets.VBox(
            [
                self.figures, self.problem, hint,
                button("Whole raster", self._take_all, "without an area"),
                button("Add what the map shows", self._add_view, "as a rectangle; needs no mouse"),
                widgets.HTML("Vector file of the area:"), self.path,
                widgets.HBox(
                    [
                        button("Load area", self._load, "from any vector file"),
                        button("Save area", self._save, "as GeoJSON"),
                    ],
                    layout=widgets.Layout(justify_content="space-between"),
                ),
                self.notice,
            ],
            layout=widgets.Layout(width="280px", flex="0 0 280px", padding="0 0 0 12px"),
        )  # fmt: skip
        self.scene_map.widget.layout.flex = "1 1 400px"
        self.widget = widgets.HBox(
            [self.scene_map.widget, column], layout=widgets.Layout(width="100%")
        )
        self.widget.add_class("sam-workbench-aoi")

    def _job_changed(self, change: Any) -> None:
        if change["old"].aoi != change["new"].aoi:
            self.notice.value = ""
            self._show_shapes()
            self._show_problem()

    def _show_shapes(self) -> None:
        """Give the job's AOI to the drawing tools, unless it comes from them."""
        with self._lock:
            aoi = self.session.job.aoi
            if aoi == self._on_map:
                return
            try:
                shapes = [] if aoi is None else _parts(load_aoi(aoi).to_crs(4326))
            except WorkbenchError:
                shapes = []  # the session's problem says why
            self._hold([_drawn_feature(shape) for shape in shapes])
            self._on_map = aoi

    def _hold(self, features: list[dict[str, Any]]) -> None:
        self._following = True
        try:
            self.control.data = features
        finally:
            self._following = False

    def _show_area(self, _: Any = None) -> None:
        """Fill what of the AOI lies in the scenes, and draw the tiles."""
        session, crs = self.session, self.session.scenes[0].crs
        aoi = None if session.area is None else session.area.aoi
        inside = gpd.GeoSeries([] if aoi is None else [aoi], crs=crs)
        if aoi is not None:  # straight in one CRS is bent in another
            inside = inside.segmentize(_step(inside))
        self._inside.data = feature(inside, _INSIDE)
        self.scene_map.show_tiles(None if session.area is None else tile_cores(session.area))

    def _show_figures(self, _: Any = None) -> None:
        session = self.session
        if session.area is None:
            self.figures.value = ""
            return
        what = "Whole raster" if session.area.aoi is None else "Area"
        self.figures.value = paragraph(
            f"<b>{what}: {_area_text(_area_m2(session))}</b><br>"
            f"{html.escape(session.forecast.text(session.area.n_tiles))}"
        )

    def _show_problem(self, _: Any = None) -> None:
        session = self.session
        self.problem.value = (
            sentence(session.problem) if session.area is None else _outside_text(session)
        )

    def _say(self, text: str) -> None:
        self.notice.value = paragraph(html.escape(text))

    # ------------------------------------------------------------------------------ what it does

    def _drawn(self, change: Any) -> None:
        """Take what a person has drawn, moved or deleted."""
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
            self.notice.value = sentence(str(error))

    def _take_all(self) -> None:
        self._change(None)
        self.scene_map.fit_scenes()

    def _add_view(self) -> None:
        left, bottom, right, top = self.scene_map.screen.bounds
        corners = degrees_from_web(left, bottom) + degrees_from_web(right, top)
        self.control.data = [*self.control.data, _drawn_feature(shapely.box(*corners))]

    def _load(self) -> None:
        path = self._path()
        if path is None:
            return
        try:
            load_aoi(str(path))
            if self.session.job.aoi == str(path):  # the file may have changed
                self.session.change(aoi=None)
            self.session.change(aoi=str(path))
        except WorkbenchError as error:
            self.notice.value = sentence(str(error))
            return
        self.scene_map.fit_area(self.session.area)
        self._say(f"Loaded {path.name}.")

    def _save(self) -> None:
        """Write the AOI as it was drawn, also outside of the scenes."""
        path = self._path()
        if path is None:
            return
        aoi = self.session.job.aoi
        if aoi is None:
            self._say("There is nothing to save: the area is the whole raster.")
        elif path.suffix.lower() not in (".geojson", ".json"):
            text = f"{path.name}: an area is saved as GeoJSON. Give a name that ends in .geojson."
            self.notice.value = sentence(text)
        elif path.exists() and path != self._replaced:
            self._replaced = path
            self._say(f"{path.name} is there already. Press Save area again to replace it.")
        else:
            self._write(path, aoi)

    def _write(self, path: Path, aoi: str | Mapping[str, Any]) -> None:
        try:
            features = [
                {"type": "Feature", "properties": {}, "geometry": _geojson(shape)}
                for shape in _parts(load_aoi(aoi).to_crs(4326))
            ]
            with atomic_path(path) as temporary:
                content = json.dumps({"type": "FeatureCollection", "features": features})
                temporary.write_text(content, encoding="utf-8")
        except WorkbenchError as error:
            self.notice.value = sentence(str(error))
            return
        self._replaced = path
        self._say(f"Saved {path}.")

    def _path(self) -> Path | None:
        name = self.path.value.strip()
        if not name:
            self._say("Give the path of a file first.")
            return None
        return Path(name).expanduser().absolute()


# ------------------------------------------------------------------------------ what was drawn


def straightened(
    features: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """GeoJSON features, with rectangles made straight again that were skewed by a dragged corner.

    `before` are the features that they were made of: the browser does not tell which polygons
    were drawn as rectangles.
    """
    rectangles = [corners for corners in map(_corners, before) if _is_rectangle(corners)]
    return [_straightened(each, rectangles) for each in features]


def geometry_of(features: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """All polygons of GeoJSON features in one geometry; None if they have no area."""
    shapes = [shapely.geometry.shape(each["geometry"]) for each in features]
    # a polygon may cross itself, and others
    united = shapely.set_precision(shapely.union_all(shapely.make_valid(shapes)), 1e-7)
    parts = [part for part in shapely.get_parts(united) if part.area > 0]
    if not parts:
        return None
    return _geojson(parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts))


def _straightened(
    each: dict[str, Any], rectangles: Sequence[NDArray[np.float64]]
) -> dict[str, Any]:
    corners = _corners(each)
    if len(corners) != 4 or _is_rectangle(corners):
        return each
    for old in rectangles:
        moved = np.flatnonzero((np.abs(corners - old) > _CLOSE).any(axis=1))
        if len(moved) == 1:
            corner, opposite = corners[moved[0]], corners[moved[0] - 2]
            return _drawn_feature(shapely.box(*np.minimum(corner, opposite),
                                              *np.maximum(corner, opposite)))  # fmt: skip
    return each


def _corners(each: Mapping[str, Any]) -> NDArray[np.float64]:
    """Longitude and latitude of a polygon's vertices, `(n, 2)`; none if it has holes."""
    geometry = each["geometry"]
    if geometry["type"] != "Polygon" or len(geometry["coordinates"]) != 1:
        return np.empty((0, 2))
    return np.array(geometry["coordinates"][0], np.float64)[:-1, :2]


def _is_rectangle(corners: NDArray[np.float64]) -> bool:
    if len(corners) != 4:
        return False
    same = np.abs(corners - np.roll(corners, -1, axis=0)) <= _CLOSE
    # the sides are by turns along a meridian and along a parallel
    return bool((same[:, 0] == ~same[:, 1]).all() and (same[0] != same[1]).all())


def _drawn_feature(shape: shapely.Polygon) -> dict[str, Any]:
    properties = {"type": "polygon", "style": _DRAWN}
    return {"type": "Feature", "properties": properties, "geometry": _geojson(shape)}


def _parts(aoi: gpd.GeoSeries) -> list[shapely.Polygon]:
    """The polygons of an AOI in degrees, rounded to 1 cm, without overlaps."""
    united = shapely.set_precision(aoi.union_all(), 1e-7)
    return [part for part in shapely.get_parts(united) if part.area > 0]


def _geojson(shape: shapely.Geometry) -> dict[str, Any]:
    geometry: dict[str, Any] = json.loads(str(shapely.to_geojson(shapely.orient_polygons(shape))))
    return geometry


# ------------------------------------------------------------------------------ what it amounts to


def area_picture(session: Session) -> bytes:
    """The first scene that has a part in the area, with AOI and tiles, as PNG."""
    if session.area is None:
        raise AOIError(session.problem)
    scene = session.area.parts[0].scene
    rgb, valid, transform = scene.overview(MAP_PX)
    nothing = gpd.GeoDataFrame({"confidence": pd.Series(dtype=float)}, geometry=[], crs=scene.crs)
    aoi = session.area.aoi
    figure = draw_map(
        rgb,
        valid,
        transform,
        Shown.of(nothing),
        tiles=tile_cores(session.area).assign(status="ok"),
        aoi=None if aoi is None else gpd.GeoDataFrame(geometry=[aoi], crs=scene.crs),
    )
    axes, legend = figure.axes
    axes.set_title(_caption(session), loc="left", fontsize=11, parse_math=False)
    legend.remove()  # there are no polygons
    return figure_png(figure)


def _caption(session: Session) -> str:
    assert session.area is not None
    scene, n = session.area.parts[0].scene, len(session.scenes)
    name = f"{scene.name} (1 of {n} rasters)" if n > 1 else scene.name
    text = session.forecast.text(session.area.n_tiles)
    return f"{name} · {_area_text(_area_m2(session))} · {text}"


def tile_cores(area: Area) -> gpd.GeoDataFrame:
    """The cores of an area's tiles; of ten thousand in a few hundredths of a second."""
    boxes: list[Any] = []
    for part in area.parts:
        cores = [tile.core for tile in part.tiles]
        pixels = np.array([(c.col_off, c.row_off, c.width, c.height) for c in cores], np.float64)
        column, row, width, height = pixels.reshape(-1, 4).T
        a, _, left, _, e, top = part.scene.transform[:6]  # north-up
        x, y = left + a * column, top + e * row
        boxes.append(shapely.box(x, y + e * height, x + a * width, y))
    return gpd.GeoDataFrame(geometry=np.concatenate(boxes), crs=area.parts[0].scene.crs)


def _area_m2(session: Session) -> float:
    """Ground area of what will be segmented; where scenes overlap, once."""
    assert session.area is not None
    aoi = session.area.aoi
    if aoi is None:
        aoi = shapely.union_all([s.window_polygon(s.window) for s in session.scenes])
    return float(ground_area_m2(shapely.get_parts(aoi), session.scenes[0].crs).sum())


def _area_text(area_m2: float) -> str:
    if area_m2 < 10_000:
        return f"{area_m2:,.0f} m²"
    return f"{area_m2 / 1e4:,.2f} ha" if area_m2 < 1e6 else f"{area_m2 / 1e6:,.2f} km²"


def _outside_text(session: Session) -> str:
    """Say how much of the AOI lies outside of the scenes; empty if none does."""
    job, area = session.job, session.area
    if job.aoi is None or area is None or area.aoi is None:
        return ""
    given = gpd.GeoSeries([load_aoi(job.aoi).to_crs(4326).union_all()], crs=4326)
    inside = gpd.GeoSeries([area.aoi], crs=session.scenes[0].crs)
    whole, part = (
        float(each.segmentize(_step(each)).to_crs(_EQUAL_AREA).area.iloc[0])
        for each in (given, inside)
    )
    share = 1 - part / whole
    if share < 0.001:
        return ""
    much = f"{share:.0%}".replace("%", " %") if share >= 0.01 else "Less than 1 %"
    where = "raster" if len(session.scenes) == 1 else "rasters"
    return paragraph(
        f"{much} of the area lies outside the {where} and is left out.",
        "border-left: 4px solid var(--jp-warn-color1, #f57c00); padding-left: 8px",
    )


def _step(shapes: gpd.GeoSeries) -> float:
    """Length of segments that bend well enough."""
    left, bottom, right, top = shapes.total_bounds
    return float(max(right - left, top - bottom) / 50)
