"""Polygons on an ipyleaflet map, drawn in one canvas: fast enough to follow a slider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any

import anywidget
import geopandas as gpd
import numpy as np
import traitlets
from numpy.typing import NDArray

from workbench._support.palette import CONFIDENCE_CLASSES, NO_SCORE_COLOR
from workbench.tuning.webmap import outlines


class Flag(IntFlag):
    """Properties of a polygon in `PolygonOverlay.flags`."""

    SEAM = 1  # reaches the overlap with another tile
    GOOD = 2
    BAD = 4


FADED = 255  # in `PolygonOverlay.kinds`
REFUSED, UNSAID = 254, 255  # in `PolygonOverlay.said`


@dataclass(frozen=True)
class Pressed:
    """A key that was pressed on the map, and where the mouse was (None: what is marked)."""

    key: str
    place: tuple[float, float] | None  # degrees
    row: int  # as for a click


class PolygonOverlay(anywidget.AnyWidget):
    """Polygons on the ipyleaflet map whose `model_id` is `map_id`; the kernel decides which.

    `outlines` holds all polygons, little-endian and without gaps, and is empty or complete:

        origin      [x, y] in EPSG:3857, metres
        coords      float32, x and y of each vertex, metres from `origin`
        ring_sizes  uint32, vertices of each ring
        rings       uint32, rings of each polygon
        confidence, stability, area_m2    float32, one for each polygon
        flags       uint8, one `Flag` for each polygon
        sequence    a number that no other `outlines` of this widget has had

    Outer rings run counter-clockwise, holes clockwise (x to the right, y up): polygons of a colour
    are filled in one call, and this leaves holes open and fills overlaps. A polygon may
    have many parts; the first vertex of a ring may be repeated as its last.

    Rows count the polygons of the `outlines` whose `sequence` is `for_sequence`: until both have
    arrived, the map does not change. So assign values that belong together under `hold_sync()`.
    `flags` replaces the flags of `outlines` if it has the same length, so that a verdict does not
    send all coordinates again; `kinds`, `said` and `class_scores` count if they have that length.

    The canvas (class `sam-workbench-polygons`) describes its last frame: `data-shown`,
    `data-sequence`, `data-drawn` (how many of those shown are in view) and `data-painted` (ms,
    `performance.now()`).
    """

    _esm = Path(__file__).with_suffix(".js")

    map_id = traitlets.Unicode().tag(sync=True)
    outlines = traitlets.Dict().tag(sync=True)
    shown = traitlets.Bytes(help="uint32, rows to draw").tag(sync=True)
    flags = traitlets.Bytes(help="uint8, a Flag for each polygon").tag(sync=True)
    selected = traitlets.Int(-1, help="row, -1: none").tag(sync=True)
    for_sequence = traitlets.Int(-1).tag(sync=True)

    kinds = traitlets.Bytes(
        help="uint8, a place in `class_colours` for each polygon, `FADED`: none of the classes"
    ).tag(sync=True)
    said = traitlets.Bytes(
        help="uint8, a person's verdict on each polygon: a place in `class_colours`, "
        "`REFUSED`: none of the classes, `UNSAID`: nothing"
    ).tag(sync=True)
    class_scores = traitlets.Bytes(help="float32, one for each polygon").tag(sync=True)
    class_colours: list[list[Any]] = traitlets.List(  # type: ignore[assignment]
        help="[number, name, colour] of each class"
    ).tag(sync=True)
    hotkeys = traitlets.Unicode(help="keys that are sent while the map has the focus").tag(
        sync=True
    )
    keys_everywhere = traitlets.Bool(
        False, help="whether `hotkeys` count while another part of the panel has the focus"
    ).tag(sync=True)
    alternatives = traitlets.Int(
        help="how many things lie where the last click was: Tab and the wheel go through them"
    ).tag(sync=True)
    pointed = traitlets.Int(
        help="changes whenever the kernel highlights something; 0: nothing is highlighted"
    ).tag(sync=True)

    colour_by = traitlets.Enum(
        ["confidence", "stability", "class", "none"], default_value="confidence"
    ).tag(sync=True)  # fmt: skip
    ramp = traitlets.List(
        default_value=[[low, colour] for low, colour in CONFIDENCE_CLASSES],
        help="[lower bound, colour] of each class, the lowest first",
    ).tag(sync=True)
    plain_colour = traitlets.Unicode(
        NO_SCORE_COLOR, help="without a score, and with `colour_by` none"
    ).tag(sync=True)
    fill = traitlets.Bool(True).tag(sync=True)
    opacity = traitlets.Float(1.0, min=0, max=1, help="of all that is drawn").tag(sync=True)

    def draw(
        self,
        polygons: gpd.GeoDataFrame,
        shown: NDArray[np.integer[Any]] | None = None,
        flags: bytes | None = None,
    ) -> None:
        """Replace the polygons; `shown` are the rows to show first, None means all.

        `polygons` has the columns `confidence`, `stability`, `area_m2` and `seam`.
        """
        sequence = self.for_sequence + 1
        if not len(polygons):
            with self.hold_sync():
                self.outlines, self.shown, self.flags = {"sequence": sequence}, b"", b""
                self.for_sequence = sequence
            return
        shapes = outlines(polygons.geometry)
        if flags is None:
            flags = np.where(polygons["seam"], Flag.SEAM, 0).astype(np.uint8).tobytes()
        scores = {
            name: polygons[name].to_numpy().astype("<f4").tobytes()
            for name in ("confidence", "stability", "area_m2")
        }
        rows = np.arange(len(polygons)) if shown is None else shown
        with self.hold_sync():
            self.flags = flags
            self.outlines = {
                "origin": list(shapes.origin),
                "coords": shapes.coords.astype("<f4").tobytes(),
                "ring_sizes": shapes.ring_sizes.astype("<u4").tobytes(),
                "rings": shapes.rings.astype("<u4").tobytes(),
                "flags": flags,
                "sequence": sequence,
                **scores,
            }
            self.shown = rows.astype("<u4").tobytes()
            self.for_sequence = sequence

    def on_click(self, callback: Callable[[float, float, int, int], None]) -> None:
        """Call `callback(lon, lat, row, again)` at each click on the map.

        Degrees in EPSG:4326; `row` is the smallest polygon shown there, -1 if there is none. It is
        also -1 if the outlines were replaced since the click. `again` is 0 at a new place; at the
        same place it is 1 for the next thing there, or -1 for the one before.
        """

        def dispatch(widget: PolygonOverlay, message: dict[str, Any], buffers: Any) -> None:
            if message["kind"] == "click":
                there = message["sequence"] == self.for_sequence
                row = message["row"] if there else -1
                callback(message["lon"], message["lat"], row, int(message.get("again", 0)))

        self.on_msg(dispatch)

    def on_key(self, callback: Callable[[Pressed], None]) -> None:
        """Call `callback` when one of `hotkeys` is pressed while the map has the focus."""

        def dispatch(widget: PolygonOverlay, message: dict[str, Any], buffers: Any) -> None:
            if message["kind"] == "key":
                there = message["sequence"] == self.for_sequence
                place = None if message["lon"] is None else (message["lon"], message["lat"])
                row = message["row"] if there else -1
                callback(Pressed(message["key"], place, row))

        self.on_msg(dispatch)
