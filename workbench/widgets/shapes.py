"""A tool on a map for one polygon at a time.

Somebody draws it, moves its corners, or clicks an object, and the model outlines that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anywidget
import numpy as np
import shapely
import traitlets
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.raster.crs import from_lonlat, to_lonlat
from workbench.review.redraw import sound
from workbench.tuning.questions import Answer, Clicks, Encoding, Reply
from workbench.widgets.asking import Asking
from workbench.widgets.drawn_area import geojson_of
from workbench.widgets.map import SceneMap

NEW = ("draw", "prompt")  # modes in which a shape is made that was not there
ASKING = "…"
ENCODING = "Encoding the tile. Only its first click takes this long …"
NOTHING_HERE = "The model finds nothing here: add a click, or drag a box."
NOTHING_YET = "Click an object first, or drag a box around it."

TakeShape = Callable[[shapely.MultiPolygon], None]


class TakesBoxes(Protocol):
    """What gets the boxes that somebody drags. Each step may raise a `WorkbenchError`."""

    def box(self, bounds: NDArray[np.float64], beside: bool) -> None:
        """Take a box (west, south, east, north); `beside`: dragged with Alt or the right button."""

    def point(self, x: float, y: float) -> None:
        """Take a click."""

    def undo(self) -> None:
        """Take the last step back."""

    def redo(self) -> None:
        """Make it again."""

    def ended(self) -> None:
        """Nothing more will come."""


class ShapeTool(anywidget.AnyWidget):
    """Makes or changes a polygon on a map that has a `PolygonOverlay`.

    Corners are drawn and moved with leaflet-geoman. With clicks and boxes the model is asked: each
    question has all clicks so far, and its answer is shown in place. Boxes that are no question go
    to whoever wants them.

    Shapes are in the working CRS. Corners that nobody has moved keep their coordinates to the last
    bit. While it is `busy`, mouse and keys of the map mean nothing else.

    If `keep` raises a `WorkbenchError`, the shape stays on the map with its corners, so that it can
    be mended, and `tell` says why.
    """

    _esm = Path(__file__).with_suffix(".js")

    map_id = traitlets.Unicode().tag(sync=True)
    mode = traitlets.Enum(
        ["", "draw", "edit", "prompt", "correct", "boxes"], default_value=""
    ).tag(sync=True)  # fmt: skip
    geometry = traitlets.Dict(help="GeoJSON of what is edited, or of the answer").tag(sync=True)
    said = traitlets.Unicode(help="what the model says, instead of what to do").tag(sync=True)
    number = traitlets.Int(help="of this use of the tool: a late message tells another").tag(
        sync=True
    )

    def __init__(self, scene_map: SceneMap, asking: Asking, tell: Callable[[str], None]) -> None:
        super().__init__(map_id=scene_map.map.model_id)
        self._crs, self._asking, self._tell = scene_map.crs, asking, tell
        self._lock = threading.RLock()  # answers come in a thread of their own
        self._corrected: shapely.Geometry | None = None
        self._answer: shapely.MultiPolygon | None = None
        self._n_asked = 0
        self._waits = False  # for an answer
        self._then: Callable[[], None] | None = None  # what to do with it
        self._keep: TakeShape = _nothing
        self._was: shapely.Geometry | None = None
        self._taker: TakesBoxes | None = None
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

    def prompt(self, keep: TakeShape) -> None:
        """Let somebody click an object that the model outlines; `keep` gets the outline.

        Raises `JobError` if the model cannot be asked by clicks.
        """
        self._asking.get_ready()
        self._keep, self._was, self._corners, self._corrected = keep, None, {}, None
        self._begin("prompt", {})

    def correct(self, shape: shapely.Geometry, keep: TakeShape) -> None:
        """Let somebody correct a shape by clicks; as `prompt`."""
        self._asking.get_ready()
        self._keep, self._was, self._corners, self._corrected = keep, None, {}, shape
        self._begin("correct", self._geojson(shape))

    def boxes(self, hint: str, taker: TakesBoxes) -> None:
        """Let somebody drag boxes until they are done, each for `taker`; `hint` says what for."""
        with self._lock, self.hold_sync():
            self._taker = taker
            self._begin("boxes", {})
            self.said = hint

    def drop(self) -> None:
        """Let go of the shape."""
        if self.busy:
            self._begin("", {})
            taker, self._taker = self._taker, None
            if taker is not None:
                taker.ended()

    def _begin(self, mode: str, geometry: dict[str, Any]) -> None:
        with self._lock, self.hold_sync():
            self._forget_answer()
            self.mode, self.geometry = mode, geometry
            self.number += 1

    def _geojson(self, shape: shapely.Geometry) -> dict[str, Any]:
        return geojson_of(shapely.transform(shape, self._to_degrees))

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
        match message["kind"]:
            case "drop":
                self.drop()
            case "ask":
                self._ask(message["points"], message["box"])
            case "keep":
                self._keep_answer(message["again"])
            case "shape":
                self._take(message["geometry"])
            case "box" | "point" | "undo" | "redo":
                self._hand_on(message)

    def _take(self, geometry: dict[str, Any]) -> None:
        shape = shapely.transform(shapely.geometry.shape(geometry), self._to_places)
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

    def _hand_on(self, message: dict[str, Any]) -> None:
        """Give the taker of boxes what somebody did on the map."""
        taker = self._taker
        if taker is None:
            return
        try:
            match message["kind"]:
                case "box":
                    taker.box(self._bounds(message["box"]), bool(message["beside"]))
                case "point":
                    ((x, y),) = self._to_places(np.array([message["point"]])).tolist()
                    taker.point(x, y)
                case "undo":
                    taker.undo()
                case "redo":
                    taker.redo()
        except WorkbenchError as error:
            self._tell(str(error))
        else:
            self._tell("")

    def _bounds(self, box: list[float]) -> NDArray[np.float64]:
        """West, south, east, north in the working CRS, from degrees."""
        around = self._to_places(np.array(box)[[[0, 1], [0, 3], [2, 1], [2, 3]]])
        return np.concatenate([around.min(axis=0), around.max(axis=0)])

    # ---- the model's answers

    def _ask(self, points: list[list[float]], box: list[float] | None) -> None:
        """Ask about all clicks so far: degrees, and 1 on the object; `box` is W, S, E, N."""
        self._forget_answer()
        if not points and box is None:
            self.geometry = self._at_first
            return
        places = np.array(points, np.float64).reshape(-1, 3)
        corners = None if box is None else self._bounds(box)
        clicks = Clicks(self._to_places(places[:, :2]), places[:, 2] > 0, corners, self._corrected)
        number = self._n_asked
        self._waits, self.said = True, ASKING
        try:
            self._asking.ask(clicks, lambda reply: self._hear_reply(number, reply))
        except WorkbenchError as error:
            self._waits, self.said = False, str(error)

    @property
    def _at_first(self) -> dict[str, Any]:
        return {} if self._corrected is None else self._geojson(self._corrected)

    def _forget_answer(self) -> None:
        with self._lock:
            self._n_asked += 1  # a reply on its way is to another question
            self._answer, self._waits, self._then, self.said = None, False, None, ""

    def _hear_reply(self, number: int, reply: Reply) -> None:
        with self._lock, self.hold_sync():
            if number != self._n_asked:
                return
            if isinstance(reply, Encoding):
                self.said = ENCODING
                return
            self._waits = False
            if isinstance(reply, Answer):
                empty = shapely.is_empty(reply.shape)
                self._answer = None if empty else reply.shape
                self.geometry = {} if empty else self._geojson(reply.shape)
                self.said = NOTHING_HERE if empty else ""
            else:
                self.geometry, self.said = self._at_first, reply.reason
            then, self._then = self._then, None
        if then is not None:
            then()

    def _keep_answer(self, again: bool) -> None:
        """Keep the outline, or the one that is about to come; `again`: the next object follows."""
        with self._lock:
            keep, answer = self._keep, self._answer
            if self._waits:
                self._then = partial(self._keep_answer, again)
                return
        # without the lock: what keeps it has locks of its own
        if answer is not None:
            self._offer(answer)
            if again and not self.busy:
                self.prompt(keep)
        elif self._corrected is not None:
            self.drop()
        elif not self.said:
            self.said = NOTHING_YET


def _nothing(shape: shapely.MultiPolygon) -> None:
    """Nobody has asked for a shape."""
