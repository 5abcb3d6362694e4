"""What the tuner and a review share: a palette of classes, and the label that keys act on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import geopandas as gpd

from workbench.learning.classifier import NONE
from workbench.runs.looks import color_of
from workbench.widgets.map import SceneMap
from workbench.widgets.overlay import PolygonOverlay
from workbench.widgets.palette import ClassPalette

CLASS_KEYS = "0123456789"  # on the map: a class, 0 for none of them
NEXT_KEY = "n"
DRAW, EDIT = "d", "e"  # a shape
PROMPT, CORRECT = "p", "m"  # a shape by clicks, with the model
EXEMPLARS_KEY = "b"  # boxes that show the model what to find
SHAPE_KEYS = DRAW + EDIT + PROMPT + CORRECT


class Labelling(ABC):
    """One key a label. A subclass knows the classes and what an answer does; `tell` shows an error.

    `target` is the row that a key acts on if the mouse is on nothing; -1: none.
    """

    remedy = " in this run."  # ends the message about a class that does not exist

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.palette = ClassPalette()
        self.target = -1

    @property
    @abstractmethod
    def names(self) -> Mapping[int, str]:
        """The classes by number."""

    @property
    @abstractmethod
    def colors(self) -> Mapping[int, str]:
        """The colours that somebody has chosen for them."""

    @property
    @abstractmethod
    def counts(self) -> Mapping[int, int]:
        """How often each was given, `NONE` for none of them."""

    def show_palette(self) -> None:
        """Show the classes and how often each was given."""
        counts = self.counts
        with self.palette.hold_sync():
            self.palette.classes = [
                {
                    "number": number,
                    "name": name,
                    "color": self.colors.get(number, color_of(number)),
                    "count": counts.get(number, 0),
                }
                for number, name in self.names.items()
            ]
            self.palette.n_none = counts.get(NONE, 0)

    @property
    def colours(self) -> list[list[Any]]:
        """`PolygonOverlay.class_colours`."""
        return [[one["number"], one["name"], one["color"]] for one in self.palette.classes]

    def knows(self, number: int) -> bool:
        """Whether a class has this number, or it means none of them; if not, shows an error."""
        if number == NONE or number in self.names:
            return True
        self._tell(f"There is no class {number}{self.remedy}")
        return False


def point_out(
    scene_map: SceneMap, overlay: PolygonOverlay, row: int, outline: gpd.GeoSeries | None
) -> None:
    """Let keys act on the row that was highlighted until the mouse moves; -1: nothing was.

    Moves the map to its outline, if one is given.
    """
    if outline is not None:
        scene_map.bring_into_view(outline)
    overlay.pointed = overlay.pointed + 1 if row >= 0 else 0
