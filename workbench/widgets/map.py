"""The map of a session: imagery, tiles, the position of the cursor, a basemap on demand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import anywidget
import geopandas as gpd
import ipyleaflet
import ipywidgets as widgets
import numpy as np
import pyproj
import shapely
import traitlets

from workbench.raster.crs import crs_short, crs_title
from workbench.raster.scene import Scene
from workbench.runs.plan import Area
from workbench.tuning.webmap import Bounds, degrees_from_web, to_web, web_from_degrees
from workbench.widgets.controls import button
from workbench.widgets.imagery import Imagery, Screen
from workbench.widgets.safe_html import Markup, SafeHTML, small

MAX_ZOOM = 24  # 9 mm a pixel at the equator: a pixel of 5 cm is seen as a square
ZOOM_STEP = 0.25  # with whole steps a scene may fill only half of the map
HEIGHT = "clamp(320px, 56vh, 1500px)"  # a map and its buttons fit a small screen
MOST_TILES = 2000  # outlines that are drawn at once
WELL_IN_VIEW, LEAST_IN_VIEW = 0.8, 0.08  # shares of the map's width and height
USUAL_PX = (800, 560)  # size of a map that no browser has shown yet
_NO_ZOOM = 1e-6  # so little that the browser rounds it away
_WORLD = 2 * math.pi * 6_378_137.0  # width of EPSG:3857
_FRAME = {"color": "#757575", "weight": 2, "fill": False, "interactive": False}
_TILE = {"color": "#ffffff", "weight": 0.7, "opacity": 0.7, "fill": False, "interactive": False}


class Mapped(Protocol):
    """What a map shows: scenes, and the area in them, if there is one."""

    @property
    def scenes(self) -> Sequence[Scene]:
        """All of one CRS, at least one."""

    @property
    def area(self) -> Area | None:
        """The part to show first; None: all scenes."""


class MapPage(anywidget.AnyWidget):
    """Shows nothing itself; adapts its map to a scrolling page and to the keyboard.

    The wheel scrolls the page until the map is clicked; Enter clicks at the middle of the map.
    """

    _esm = Path(__file__).with_name("mappage.js")
    _css = """
    [data-jp-theme-light="false"] .sam-workbench-map .leaflet-container {
      background: var(--jp-layout-color2);
    }
    [data-jp-theme-light="false"] .sam-workbench-map .leaflet-pm-toolbar .control-icon {
      filter: invert(1);  /* the tools' icons are dark, and so are the buttons in a dark theme */
    }
    """
    pixel_ratio = traitlets.Float(1.0, help="screen pixels per page pixel").tag(sync=True)


class SceneMap:
    """A map of a session's scenes; `widget` is the one to display, `map` the ipyleaflet map in it.

    Imagery is read in a separate thread. Nothing is loaded from other servers unless a person
    ticks "Basemap", which loads tiles of OpenStreetMap.
    """

    def __init__(self, session: Mapped) -> None:
        self._session = session
        self.scenes: Sequence[Scene] = session.scenes
        self.crs: pyproj.CRS = session.scenes[0].crs
        self._from_degrees = pyproj.Transformer.from_crs(4326, self.crs, always_xy=True)
        self._clicks: list[Callable[[float, float], None]] = []
        self._notes: dict[str, str] = {}  # by subject: imagery, tiles
        self._tiles = gpd.GeoSeries([], crs=4326)
        self.screen = Screen((0.0, 0.0, 1.0, 1.0), 1.0)
        self._wanted: Bounds | None = None  # to fit once the size of the map is known
        self._basemap: ipyleaflet.TileLayer | None = None
        self._page = MapPage()
        self.message = SafeHTML()
        self.cursor = SafeHTML(small(crs_title(self.crs)))
        self.imagery = Imagery(self.scenes, self._say)
        self._tile_lines = ipyleaflet.GeoJSON(data=feature(self._tiles, _TILE))
        layers = (*self.imagery.layers, self._frame(), self._tile_lines)
        self.map = ipyleaflet.Map(
            layers=layers, scroll_wheel_zoom=True, max_zoom=MAX_ZOOM, zoom_snap=ZOOM_STEP,
            layout=widgets.Layout(height=HEIGHT),
        )  # fmt: skip
        self.widget = self._layout()
        self.map.observe(self._moved, "bounds")
        self.map.on_interaction(self._on_interaction)
        self._page.observe(self._moved, "pixel_ratio")
        self.fit_scenes()

    def fit(self, bounds: Bounds) -> None:
        """Zoom to bounds (left, bottom, right, top in the working CRS)."""
        left, bottom, right, top = to_web(self.crs).transform_bounds(*bounds)
        if not np.isfinite([left, bottom, right, top]).all():
            return
        width, height = self._size()
        self._wanted = bounds if (width, height) == USUAL_PX else None
        fits = min(width / max(right - left, 0.1), height / max(top - bottom, 0.1))
        steps = math.floor(math.log2(fits * _WORLD / 256) / ZOOM_STEP)
        zoom = max(0.0, min(MAX_ZOOM, steps * ZOOM_STEP))
        x, y, pixel = (left + right) / 2, (bottom + top) / 2, _WORLD / 256 / 2**zoom
        lon, lat = degrees_from_web(x, y)
        with self.map.hold_sync():
            # ipyleaflet glides to another centre, and jumps if the zoom changes, too
            self.map.zoom = zoom if zoom != self.map.zoom else zoom + _NO_ZOOM
            self.map.center = (lat, lon)
        dx, dy = pixel * width / 2, pixel * height / 2
        self._look_at((x - dx, y - dy, x + dx, y + dy))

    def bring_into_view(self, shape: gpd.GeoSeries) -> None:
        """Move the map to a shape unless it is well in view, neither too small nor too large."""
        x0, y0, x1, y1 = shape.total_bounds.tolist()
        bounds = np.array(to_web(self.crs).transform_bounds(x0, y0, x1, y1))
        left, bottom, right, top = self.screen.bounds
        middle, size = np.array([left + right, bottom + top]) / 2, (right - left, top - bottom)
        inside = np.abs(bounds.reshape(2, 2) - middle) <= WELL_IN_VIEW / 2 * np.array(size)
        share = ((bounds[2:] - bounds[:2]) / size).max()
        if not inside.all() or not LEAST_IN_VIEW <= share <= WELL_IN_VIEW:
            margin = 1.5 * max(x1 - x0, y1 - y0)
            self.fit((x0 - margin, y0 - margin, x1 + margin, y1 + margin))

    def fit_scenes(self) -> None:
        """Zoom to all scenes."""
        outlines = [scene.window_polygon(scene.window) for scene in self.scenes]
        left, bottom, right, top = shapely.total_bounds(outlines).tolist()
        self.fit((left, bottom, right, top))

    def fit_area(self, area: Area | None) -> None:
        """Zoom to an area, or to all scenes if it has no AOI; None changes nothing."""
        if area is not None and area.aoi is not None:
            left, bottom, right, top = shapely.bounds(area.aoi).tolist()
            self.fit((left, bottom, right, top))
        elif area is not None:
            self.fit_scenes()

    def _fit(self) -> None:
        if self._session.area is None:  # the AOI lies elsewhere
            self.fit_scenes()
        self.fit_area(self._session.area)

    def show_tiles(self, frame: gpd.GeoDataFrame | None) -> None:
        """Draw the outlines of tiles instead of those before; none if there are too many."""
        self._tiles = self._tiles[:0] if frame is None else frame.geometry.to_crs(4326)
        self._draw_tiles()

    def on_click(self, callback: Callable[[float, float], None]) -> None:
        """Call `callback(x, y)` at each click on the map, in the working CRS."""
        self._clicks.append(callback)

    def close(self) -> None:
        """End the thread that reads imagery, and close the rasters; the map stays on the page."""
        self.imagery.close()

    # ---- what is shown

    def _frame(self) -> ipyleaflet.GeoJSON:
        """The outlines of the scenes."""
        frames = gpd.GeoSeries([s.window_polygon(s.window) for s in self.scenes], crs=self.crs)
        # straight in one CRS is bent in another
        bent = frames.segmentize(frames.length.max() / 40)
        return ipyleaflet.GeoJSON(data=feature(bent, _FRAME))

    def _layout(self) -> widgets.Widget:
        self.map.add(ipyleaflet.ScaleControl(position="bottomleft", imperial=False))
        fit = button("", self._fit, "the whole area, or the whole raster", "expand")
        self.map.add(ipyleaflet.WidgetControl(widget=fit, position="topright"))
        basemap = widgets.Checkbox(
            False, description="Basemap", indent=False, layout=widgets.Layout(width="auto"),
            tooltip="loads OpenStreetMap from the internet",
        )  # fmt: skip
        basemap.observe(lambda change: self._show_basemap(change["new"]), "value")
        below = widgets.HBox(
            [self.cursor, basemap], layout=widgets.Layout(justify_content="space-between")
        )
        box = widgets.VBox(
            [self.map, below, self.message, self._page],
            layout=widgets.Layout(width="100%", min_width="0"),
        )
        box.add_class("sam-workbench-map")
        return box

    def _show_basemap(self, wanted: bool) -> None:
        if self._basemap is None:
            self._basemap = ipyleaflet.TileLayer(
                url="https://tile.openstreetmap.org/{z}/{x}/{y}.png",
                attribution="© OpenStreetMap contributors",
                max_native_zoom=19,
                max_zoom=MAX_ZOOM,
            )
        if wanted:  # it lies lowest even if added last, so the other layers can stay
            self.map.add(self._basemap)
        else:
            self.map.remove(self._basemap)

    def _on_interaction(self, **event: Any) -> None:
        kind = event.get("type")
        if kind not in ("mousemove", "click"):
            return
        lat, lon = event["coordinates"]
        x, y = self._from_degrees.transform(lon, lat)
        if kind == "click":
            for callback in self._clicks:
                callback(x, y)
        elif math.isfinite(x) and math.isfinite(y):
            digits = max(0, -math.floor(math.log10(self.scenes[0].transform.a)))
            place = [f"E {x:.{digits}f}", f"N {y:.{digits}f}"]
            self.cursor.value = small(Markup(" &ensp; ").join([*place, crs_short(self.crs)]))

    def _say(self, about: str, text: str) -> None:
        """Show a note about imagery or tiles under the map; an empty text removes it."""
        if text != self._notes.get(about, ""):
            self._notes[about] = text
            self.message.value = Markup("").join(self._notes.values())

    # ---- where the map is

    def _size(self) -> tuple[float, float]:
        """Width and height of the map in pixels of the page."""
        width, height = self.map.right - self.map.left, self.map.bottom - self.map.top
        return (width, height) if width > 0 and height > 0 else USUAL_PX

    def _moved(self, _: Any) -> None:
        """Follow the part that the browser shows."""
        edges = np.array([self.map.west, self.map.south, self.map.east, self.map.north])
        if not np.isfinite(edges).all() or edges[0] >= edges[2] or edges[1] >= edges[3]:
            return
        west, south, east, north = edges.clip(
            [-np.inf, -85, -np.inf, -85], [np.inf, 85, np.inf, 85]
        )
        if self._wanted is not None and self._size() != USUAL_PX:
            self.fit(self._wanted)  # it was fitted to a map of another size
        else:
            self._look_at((*web_from_degrees(west, south), *web_from_degrees(east, north)))

    def _look_at(self, bounds: Bounds) -> None:
        ratio = max(1.0, min(2.0, self._page.pixel_ratio))
        self.screen = Screen(bounds, max(self._size()) * ratio)
        self.imagery.look_at(self.screen)
        if len(self._tiles) > MOST_TILES:
            self._draw_tiles()

    # ---- tiles

    def _draw_tiles(self) -> None:
        tiles, note = self._tiles, ""
        if len(tiles) > MOST_TILES:
            left, bottom, right, top = self.screen.bounds
            west, south = degrees_from_web(left, bottom)
            east, north = degrees_from_web(right, top)
            tiles = tiles.cx[west:east, south:north]
            if len(tiles) > MOST_TILES:
                note = f"{len(tiles):,} tiles are in view: zoom in to see their outlines."
                tiles = tiles[:0]
        self._tile_lines.data = feature(tiles, _TILE)
        self._say("tiles", note)


def feature(polygons: gpd.GeoSeries, style: Mapping[str, Any]) -> dict[str, Any]:
    """Polygons as one GeoJSON feature, which a browser draws as fast as a single polygon.

    No polygons give a feature collection without features.
    """
    parts = shapely.get_parts(shapely.get_parts(np.asarray(polygons.to_crs(4326).array)))
    parts = parts[shapely.get_dimensions(parts) == 2]  # clipping may have left lines
    if not len(parts):
        return {"type": "FeatureCollection", "features": []}
    rounded = shapely.transform(shapely.multipolygons(parts), lambda degrees: degrees.round(7))
    geometry = json.loads(str(shapely.to_geojson(rounded)))
    return {"type": "Feature", "geometry": geometry, "properties": {"style": dict(style)}}


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
