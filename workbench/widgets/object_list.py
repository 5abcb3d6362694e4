"""The polygons in view as a list beside the map, to sort, highlight and go to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets


class ObjectList(anywidget.AnyWidget):
    """Lists what the `PolygonOverlay` of the map `map_id` shows in view; folded at first.

    The browser has everything that is listed, so it asks the kernel for nothing. The mouse on a row
    highlights its polygon, and the other way round.
    """

    _esm = Path(__file__).with_suffix(".js")

    map_id = traitlets.Unicode().tag(sync=True)

    def on_go(self, callback: Callable[[int, int], None]) -> None:
        """Call `callback(place, sequence)` when a row was clicked: its place in the outlines."""

        def dispatch(widget: ObjectList, message: dict[str, Any], buffers: Any) -> None:
            if message["kind"] == "go":
                callback(message["row"], message["sequence"])

        self.on_msg(dispatch)
