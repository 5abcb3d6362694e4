"""The map with the imagery: an overview at once, and what the screen shows at its resolution."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import geopandas as gpd
import ipyleaflet
import ipywidgets as widgets
import numpy as np
import pyproj
import shapely
import traitlets

from workbench.raster.scene import Scene
from workbench.tuning.webmap import (
    Bounds,
    Picture,
    degrees_from_web,
    mosaic,
    to_web,
    web_bounds,
    web_from_degrees,
)
from workbench.widgets.controls import button, sentence
from workbench.widgets.session import Area, Session

MAX_ZOOM = 24  # 7 mm a pixel at the equator: a pixel of 5 cm is seen as a square
ZOOM_STEP = 0.25  # with whole steps a scene may fill only half of the map
MOST_OVERVIEWS = 20
OVERVIEW_PX = 2048  # the longer side of one overview; many share as many pixels
SHARP_PX = 2048  # the longer side of the sharp part at most
MARGIN = 0.25  # of the screen, on each side of it: what a short pan brings into sight
MOST_TILES = 2000  # outlines that are drawn at once
SETTLE_SECONDS = 0.06  # pans and zooms that follow one another sooner are one
SWAP_SECONDS = 0.15  # a browser takes less to decode a picture
USUAL_PX = (800, 560)  # of a map that no browser has shown yet
_WORLD = 2 * math.pi * 6_378_137.0  # width of EPSG:3857
_BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_FRAME = {"color": "#757575", "weight": 2, "fill": False, "interactive": False}
_TILE = {"color": "#ffffff", "weight": 0.7, "opacity": 0.7, "fill": False, "interactive": False}


@dataclass(frozen=True)
class Screen:
    """What a map shows: its part of EPSG:3857, and the pixels of its longer side."""

    bounds: Bounds
    px: float

    @property
    def pixel(self) -> float:
        """Width of a pixel in EPSG:3857."""
        left, bottom, right, top = self.bounds
        return max(right - left, top - bottom) / self.px

    def grown(self, share: float) -> Screen:
        """Return it with a margin on each side."""
        left, bottom, right, top = self.bounds
        dx, dy = share * (right - left), share * (top - bottom)
        return Screen((left - dx, bottom - dy, right + dx, top + dy), self.px * (1 + 2 * share))

    def covers(self, other: Screen) -> bool:
        """Whether all of the other is shown, as sharply."""
        low, high = np.array(self.bounds[:2]), np.array(self.bounds[2:])
        return bool(
            (low <= other.bounds[:2]).all()
            and (high >= other.bounds[2:]).all()
            and self.pixel <= other.pixel * 1.01
        )

    def meets(self, bounds: Bounds) -> bool:
        """Whether it shows any of some bounds; not of infinite ones."""
        left, bottom, right, top = self.bounds
        return bounds[0] < right and bounds[2] > left and bounds[1] < top and bounds[3] > bottom


class LastWish:
    """A thread that paints the screen wished for last, once no other wish follows for a moment.

    `paint` may ask whether it is `overtaken`; `end` is called in the thread as it ends.
    """

    def __init__(self, paint: Callable[[Screen], None], end: Callable[[], None]) -> None:
        self._paint, self._end = paint, end
        self._changed = threading.Condition()
        self._wish: Screen | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def overtaken(self) -> bool:
        """Whether the thread has something newer to do, or shall end."""
        return self._wish is not None or self._closed

    def wish(self, screen: Screen) -> None:
        """Ask for a screen; one that was asked for before and has not begun is dropped."""
        with self._changed:
            self._wish = screen
            self._changed.notify()

    def close(self) -> None:
        """End the thread after what it is doing; again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while (screen := self._settled()) is not None:
            self._paint(screen)
        self._end()

    def _settled(self) -> Screen | None:
        with self._changed:
            self._changed.wait_for(lambda: self.overtaken)
            while self._changed.wait(SETTLE_SECONDS) and not self._closed:
                pass  # another wish has come
            screen, self._wish = self._wish, None
            return None if self._closed else screen


class MapPage(anywidget.AnyWidget):
    """Shows nothing; makes the map beside it one of a page that scrolls and is used by keyboard.

    The wheel scrolls the page until the map is clicked, Enter is a click at the map's middle.
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
    pixel_ratio = traitlets.Float(1.0, help="of the screen's pixels to the page's").tag(sync=True)


class SceneMap:
    """A map of a session's scenes; `widget` is what to display, `map` the ipyleaflet map in it.

    Imagery is read in a thread of its own. Nothing is loaded from other servers, unless a person
    ticks "Basemap": then OpenStreetMap's tiles are.
    """

    def __init__(self, session: Session, height_px: int = 560) -> None:
        self._session, self._height_px = session, height_px
        self.scenes: Sequence[Scene] = session.scenes
        self.crs: pyproj.CRS = session.scenes[0].crs
        self._from_degrees = pyproj.Transformer.from_crs(4326, self.crs, always_xy=True)
        self._boxes = [web_bounds(scene) for scene in self.scenes]
        self._clicks: list[Callable[[float, float], None]] = []
        self._shown: dict[int, ipyleaflet.ImageOverlay] = {}  # the overview of each scene
        self._sharp: Screen | None = None
        self._notes: dict[str, str] = {}  # what is to be said of imagery and tiles
        self._damaged: list[str] = []  # what the overviews have found
        self._tiles = gpd.GeoSeries([], crs=4326)
        self._build()
        self.screen = Screen((0.0, 0.0, 1.0, 1.0), 1.0)
        self._wanted: Bounds | None = None  # to be fitted once the browser has told the map's size
        self._painter = LastWish(self._paint, self._close_scenes)
        self.fit_scenes()

    def fit(self, bounds: Bounds) -> None:
        """Show bounds (left, bottom, right, top in the working CRS) as large as they fit."""
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
            self.map.zoom = zoom
            self.map.center = (lat, lon)
        dx, dy = pixel * width / 2, pixel * height / 2
        self._look_at((x - dx, y - dy, x + dx, y + dy))

    def fit_scenes(self) -> None:
        """Show the whole of the scenes."""
        outlines = [scene.window_polygon(scene.window) for scene in self.scenes]
        left, bottom, right, top = shapely.total_bounds(outlines).tolist()
        self.fit((left, bottom, right, top))

    def fit_area(self, area: Area | None) -> None:
        """Show an area as large as it fits, one without an AOI whole; none: leave all as it is."""
        if area is not None and area.aoi is not None:
            left, bottom, right, top = shapely.bounds(area.aoi).tolist()
            self.fit((left, bottom, right, top))
        elif area is not None:
            self.fit_scenes()

    def _fit(self) -> None:
        if self._session.area is None:  # the AOI lies somewhere else
            self.fit_scenes()
        self.fit_area(self._session.area)

    def show_tiles(self, frame: gpd.GeoDataFrame | None) -> None:
        """Draw the outlines of tiles, in place of those shown before; of too many, none."""
        self._tiles = self._tiles[:0] if frame is None else frame.geometry.to_crs(4326)
        self._draw_tiles()

    def on_click(self, callback: Callable[[float, float], None]) -> None:
        """Call `callback(x, y)` at each click on the map, in the working CRS."""
        self._clicks.append(callback)

    def close(self) -> None:
        """End the thread that reads imagery, and close what it has opened; the map stays."""
        self._painter.close()

    # ---- what is shown

    def _build(self) -> None:
        self._slots = [self._image() for _ in self.scenes[:MOST_OVERVIEWS]]
        # two: while the browser decodes the one, the other is still there
        self._fresh, self._old = self._image(), self._image()
        self._tile_lines = ipyleaflet.GeoJSON(data=feature(self._tiles, _TILE))
        frames = gpd.GeoSeries([s.window_polygon(s.window) for s in self.scenes], crs=self.crs)
        # straight in one CRS is bent in another
        bent = frames.segmentize(frames.length.max() / 40)
        self.map = ipyleaflet.Map(
            layers=(
                *self._slots,
                self._fresh,
                self._old,
                ipyleaflet.GeoJSON(data=feature(bent, _FRAME)),
                self._tile_lines,
            ),
            scroll_wheel_zoom=True,
            max_zoom=MAX_ZOOM,
            zoom_snap=ZOOM_STEP,
            layout=widgets.Layout(height=f"{self._height_px}px"),
        )
        self.map.add(ipyleaflet.ScaleControl(position="bottomleft", imperial=False))
        fit = button("", self._fit, "the whole area, or the whole raster", "expand")
        self.map.add(ipyleaflet.WidgetControl(widget=fit, position="topright"))
        self.map.observe(self._moved, "bounds")
        self.map.on_interaction(self._on_interaction)
        self.cursor = widgets.HTML(_small(_name_of(self.crs)))
        self.message = widgets.HTML()
        basemap = widgets.Checkbox(
            False, description="Basemap", indent=False, layout=widgets.Layout(width="auto"),
            tooltip="loads OpenStreetMap from the internet",
        )  # fmt: skip
        basemap.observe(lambda change: self._show_basemap(change["new"]), "value")
        self._basemap: ipyleaflet.TileLayer | None = None
        self._page = MapPage()
        self._page.observe(self._moved, "pixel_ratio")
        below = widgets.HBox(
            [self.cursor, basemap], layout=widgets.Layout(justify_content="space-between")
        )
        self.widget = widgets.VBox(
            [self.map, below, self.message, self._page],
            layout=widgets.Layout(width="100%", min_width="0"),
        )
        self.widget.add_class("sam-workbench-map")

    def _image(self) -> ipyleaflet.ImageOverlay:
        return ipyleaflet.ImageOverlay(url=_BLANK, bounds=((0, 0), (0, 0)))

    def _show_basemap(self, wanted: bool) -> None:
        if self._basemap is None:
            self._basemap = ipyleaflet.TileLayer(
                url="https://tile.openstreetmap.org/{z}/{x}/{y}.png",
                attribution="© OpenStreetMap contributors",
                max_native_zoom=19,
                max_zoom=MAX_ZOOM,
            )
        if wanted:  # last, though it lies lowest: the layers before it need not be made anew
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
            place = f"E {x:.{digits}f} &ensp; N {y:.{digits}f}"
            epsg = self.crs.to_epsg()
            crs = f"EPSG:{epsg}" if epsg else self.crs.name
            self.cursor.value = _small(f"{place} &ensp; {crs}")

    def _say(self, about: str, text: str) -> None:
        """Say something of imagery or tiles under the map; no text takes it back."""
        if text != self._notes.get(about, ""):
            self._notes[about] = text
            self.message.value = "".join(self._notes.values())

    # ---- where the map is

    def _size(self) -> tuple[float, float]:
        """Width and height of the map in the page's pixels."""
        width, height = self.map.right - self.map.left, self.map.bottom - self.map.top
        return (width, height) if width > 0 and height > 0 else USUAL_PX

    def _moved(self, _: Any) -> None:
        """Follow what the browser says that it shows."""
        edges = np.array([self.map.west, self.map.south, self.map.east, self.map.north])
        if not np.isfinite(edges).all() or edges[0] >= edges[2] or edges[1] >= edges[3]:
            return
        west, south, east, north = edges.clip(
            [-np.inf, -85, -np.inf, -85], [np.inf, 85, np.inf, 85]
        )
        if self._wanted is not None and self._size() != USUAL_PX:
            self.fit(self._wanted)  # made for another size
        else:
            self._look_at((*web_from_degrees(west, south), *web_from_degrees(east, north)))

    def _look_at(self, bounds: Bounds) -> None:
        ratio = max(1.0, min(2.0, self._page.pixel_ratio))
        self.screen = Screen(bounds, max(self._size()) * ratio)
        self._painter.wish(self.screen)
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
                note = f"{len(tiles):,} tiles are in sight: zoom in to see their outlines."
                tiles = tiles[:0]
        self._tile_lines.data = feature(tiles, _TILE)
        self._say("tiles", note)

    # ---- imagery, in the painter's thread

    def _paint(self, screen: Screen) -> None:
        problems: list[str] = []
        try:
            in_sight = [i for i, box in enumerate(self._boxes) if screen.meets(box)]
            seen = in_sight[:MOST_OVERVIEWS]
            self._say(
                "rasters",
                f"Imagery of {len(seen)} of the {len(in_sight)} rasters in sight is shown: zoom in "
                "for the others."
                if len(seen) < len(in_sight)
                else "",
            )
            self._paint_overviews(seen)
            if not self._painter.overtaken:
                self._sharpen(seen, screen, problems.append)
        except Exception as error:  # in a thread nobody would see it
            problems.append(f"The imagery cannot be shown: {type(error).__name__}: {error}")
        said = list(dict.fromkeys([*self._damaged, *problems]))[:3]
        self._say("imagery", "".join(sentence(text) for text in said))

    def _paint_overviews(self, seen: Sequence[int]) -> None:
        px = max(256, round(OVERVIEW_PX / math.sqrt(len(self._slots))))
        for i in seen:
            if i in self._shown or self._painter.overtaken:
                continue
            away = [other for other in self._shown if other not in seen]
            free = [slot for slot in self._slots if slot not in self._shown.values()]
            self._shown[i] = free[0] if free else self._shown.pop(away[0])
            scene = self.scenes[i]
            px_here = min(px, max(scene.width, scene.height))
            _put(self._shown[i], mosaic([scene], self._boxes[i], px_here, self._damaged.append))

    def _sharpen(self, seen: Sequence[int], screen: Screen, tell: Callable[[str], None]) -> None:
        if self._sharp is not None and self._sharp.covers(screen):
            return
        wanted = screen.grown(min(MARGIN, max(0.0, (SHARP_PX / screen.px - 1) / 2)))
        wanted = Screen(wanted.bounds, min(SHARP_PX, wanted.px))
        scenes = [self.scenes[i] for i in seen]
        _put(self._fresh, mosaic(scenes, wanted.bounds, round(wanted.px), tell))
        time.sleep(SWAP_SECONDS)
        self._old.url = _BLANK
        self._fresh, self._old = self._old, self._fresh
        self._sharp = wanted

    def _close_scenes(self) -> None:
        for scene in self.scenes:
            scene.close()


def _put(image: ipyleaflet.ImageOverlay, picture: Picture | None) -> None:
    with image.hold_sync():
        image.url = _BLANK if picture is None else picture.url
        image.bounds = ((0, 0), (0, 0)) if picture is None else picture.bounds


def feature(polygons: gpd.GeoSeries, style: Mapping[str, Any]) -> dict[str, Any]:
    """Polygons as one GeoJSON feature, which a browser draws as fast as a single polygon.

    None give a feature collection without features.
    """
    parts = shapely.get_parts(shapely.get_parts(np.asarray(polygons.to_crs(4326).array)))
    parts = parts[shapely.get_dimensions(parts) == 2]  # cutting may have left lines
    if not len(parts):
        return {"type": "FeatureCollection", "features": []}
    rounded = shapely.transform(shapely.multipolygons(parts), lambda degrees: degrees.round(7))
    geometry = json.loads(str(shapely.to_geojson(rounded)))
    return {"type": "Feature", "geometry": geometry, "properties": {"style": dict(style)}}


def _name_of(crs: pyproj.CRS) -> str:
    epsg = crs.to_epsg()
    return f"EPSG:{epsg} ({crs.name})" if epsg else crs.name


def _small(text: str) -> str:
    return f'<span style="font-variant-numeric: tabular-nums; white-space: nowrap">{text}</span>'
