"""Setting B on a second map beside the first: both show the same place."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import ipyleaflet
import ipywidgets as widgets
import shapely

from workbench.tuning.preview import Preview
from workbench.widgets.drawn_polygons import DrawnPolygons
from workbench.widgets.map import SceneMap, feature
from workbench.widgets.overlay import PolygonOverlay
from workbench.widgets.safe_html import Markup, SafeHTML
from workbench.widgets.session import Session

_FRAME = {"color": "#ffffff", "weight": 2, "fill": False, "interactive": False}


class Beside:
    """A switch that shows the samples with setting B on a separate map.

    `widget` is that map, hidden at first. Both maps move and zoom together in the browser.
    """

    def __init__(self, session: Session, first: SceneMap, looks: PolygonOverlay) -> None:
        """`first` is the linked map, `looks` the overlay whose colours are copied."""
        self._session, self._first, self._looks = session, first, looks
        self.preview = Preview(())
        self.scene_map: SceneMap | None = None  # made when first needed
        self.drawn: DrawnPolygons | None = None
        self._frames = ipyleaflet.GeoJSON(data=feature(gpd.GeoSeries([], crs=4326), _FRAME))
        self._links: list[Any] = []
        self.switch = widgets.ToggleButton(
            description="A | B", icon="columns", layout={"width": "auto"},
            tooltip="the kept setting B on a second map beside this one",
        )  # fmt: skip
        self.widget = widgets.VBox([], layout={"display": "none"})
        self.widget.add_class("sam-workbench-beside")
        self.switch.observe(self._switched, "value")
        session.observe(self._other_changed, "other")
        looks.observe(lambda _: self.show(self.preview), ["colour_by", "ramp", "fill", "opacity"])
        self._other_changed()

    def close(self) -> None:
        """Stop following the session, and end the map's thread."""
        self._session.unobserve(self._other_changed, "other")
        if self.scene_map is not None:
            self.scene_map.close()

    def show(self, preview: Preview) -> None:
        """Show the samples with setting B, if the map is switched on."""
        self.preview = preview
        other = self._session.other
        if not self.switch.value or other is None or self.drawn is None:
            return
        view = preview.look(other.thresholds, other.cleaning, other.offer)
        overlay, looks = self.drawn.overlay, self._looks
        with overlay.hold_sync():
            overlay.ramp, overlay.fill, overlay.opacity = looks.ramp, looks.fill, looks.opacity
            overlay.colour_by = "confidence" if looks.colour_by == "class" else looks.colour_by
        self.drawn.show(view, preview, self._session.judged)
        windows = [s.part.scene.window_polygon(s.tile.window) for s in preview.samples]
        around = [shapely.union_all(windows)] if windows else []
        crs = self._session.scenes[0].crs
        self._frames.data = feature(gpd.GeoSeries(around, crs=crs), _FRAME)

    def _other_changed(self, _: Any = None) -> None:
        self.switch.disabled = self._session.other is None
        if self._session.other is None:
            self.switch.value = False
        self.show(self.preview)

    def _switched(self, change: Any) -> None:
        if change["new"] and self.scene_map is None:
            self._make_map()
        self.widget.layout.display = "flex" if change["new"] else "none"
        self.show(self.preview)

    def _make_map(self) -> None:
        self.scene_map = SceneMap(self._session)
        there, here = self.scene_map.map, self._first.map
        with there.hold_sync():
            there.center, there.zoom = here.center, here.zoom
        there.add(self._frames)
        overlay = PolygonOverlay(map_id=there.model_id)
        self.drawn = DrawnPolygons(overlay)
        self._links = [widgets.jslink((here, name), (there, name)) for name in ("center", "zoom")]
        title = SafeHTML(Markup("<b>B</b>, the kept setting"))
        self.widget.children = (title, self.scene_map.widget, overlay)
