"""A tool on a map for one polygon at a time: somebody draws it, or moves its corners."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import pyproj
import shapely
import traitlets
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.raster.crs import from_lonlat, to_lonlat
from workbench.review.redraw import sound
from workbench.widgets.drawn_area import geojson_of

TakeShape = Callable[[shapely.MultiPolygon], None]


class ShapeTool(anywidget.AnyWidget):
    """Lets leaflet-geoman draw or edit a polygon on the map of the `PolygonOverlay` of `map_id`.

    Shapes are in the working CRS. Corners that nobody has moved keep their coordinates to the last
    bit. While it is `busy`, mouse and keys of the map mean nothing else.

    If `keep` raises a `WorkbenchError`, the shape stays on the map with its corners, so that it can
    be mended, and `tell` says why.
    """

    _esm = Path(__file__).with_suffix(".js")

    map_id = traitlets.Unicode().tag(sync=True)
    mode = traitlets.Enum(["", "draw", "edit"], default_value="").tag(sync=True)
    geometry = traitlets.Dict(help="GeoJSON of what is edited").tag(sync=True)
    number = traitlets.Int(help="of this use of the tool: a late message tells another").tag(
        sync=True
    )

    def __init__(self, map_id: str, crs: pyproj.CRS, tell: Callable[[str], None]) -> None:
        super().__init__(map_id=map_id)
        self._crs, self._tell = crs, tell
        self._keep: TakeShape = _nothing
        self._was: shapely.Geometry | None = None
        self._corners: dict[tuple[float, float], tuple[float, float]] = {}  # by degrees
        self.on_msg(self._hear)

    @property
    def busy(self) -> bool:
        """Whether a shape is being drawn or edited."""
        return bool(self.mode)

    def draw(self, keep: TakeShape) -> None:
        """Let somebody draw a polygon, which `keep` gets."""
        self._keep, self._was, self._corners = keep, None, {}
        self._begin("draw", {})

    def edit(self, shape: shapely.Geometry, keep: TakeShape) -> None:
        """Let somebody move the corners of a shape; `keep` gets what becomes of it, if anything."""
        self.mend(shape, keep)
        self._was = shape

    def mend(self, shape: shapely.Geometry, keep: TakeShape) -> None:
        """Let somebody change a shape that was refused; `keep` gets it, changed or not."""
        self._keep, self._was = keep, None
        places = shapely.get_coordinates(shape)
        degrees = shapely.transform(shape, self._to_degrees)
        pairs = zip(shapely.get_coordinates(degrees).tolist(), places.tolist(), strict=True)
        self._corners = {(lon, lat): (x, y) for (lon, lat), (x, y) in pairs}
        self._begin("edit", geojson_of(degrees))

    def drop(self) -> None:
        """Let go of the shape."""
        if self.busy:
            self._begin("", {})

    def _begin(self, mode: str, geometry: dict[str, Any]) -> None:
        with self.hold_sync():
            self.mode, self.geometry = mode, geometry
            self.number += 1

    def _to_degrees(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(to_lonlat(self._crs, places[:, 0], places[:, 1]))

    def _to_places(self, degrees: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array(
            [self._corners.get((lon, lat)) or from_lonlat(self._crs, lon, lat)
             for lon, lat in degrees.tolist()]
        ).reshape(-1, 2)  # fmt: skip

    def _hear(self, widget: ShapeTool, message: dict[str, Any], buffers: Any) -> None:
        if message["number"] != self.number:
            return
        if message["kind"] == "drop":
            self.drop()
            return
        degrees = shapely.geometry.shape(message["geometry"])
        shape = shapely.transform(degrees, self._to_places)
        if self._was is not None and shapely.equals_exact(shape, self._was, normalize=True):
            self.drop()
        else:
            self._offer(shape)

    def _offer(self, shape: shapely.Geometry) -> None:
        try:
            self._keep(sound(shape))
        except WorkbenchError as error:
            if self.mode == "draw":  # the browser has let go of it
                self.mend(shape, self._keep)
            self._tell(str(error))
        else:
            self._tell("")


def _nothing(shape: shapely.MultiPolygon) -> None:
    """Nobody has asked for a shape."""
