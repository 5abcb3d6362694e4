"""Exemplars in the tuner: boxes on the map that show the model what to find, and what not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import geopandas as gpd
import ipyleaflet
import numpy as np
import shapely
from numpy.typing import NDArray

from workbench.errors import ReviewError, WorkbenchError
from workbench.learning.classifier import NONE
from workbench.runs.exemplars import UNLIKE
from workbench.runs.looks import color_of
from workbench.runs.tile_stream import ScenePlan
from workbench.segmenters.exemplars import EVERY_CLASS
from workbench.widgets.classes import ClassTeaching
from workbench.widgets.controls import button
from workbench.widgets.labelling import EXEMPLARS_KEY
from workbench.widgets.palette import LOOK
from workbench.widgets.sample_tiles import SampleTiles
from workbench.widgets.session import Session
from workbench.widgets.shapes import ShapeTool

NO_CLASS_COLOR = "#ffffff"
HOW = (
    "drag boxes around objects of the palette's class, with Alt or the right button around what is "
    "not; click a box to remove it"
)
KEYS = ((EXEMPLARS_KEY, HOW),)
_STYLE: dict[str, Any] = {"weight": 3, "fill": False, "interactive": False}
_UNLIKE = _STYLE | {"weight": 2}


class TunerExemplars:
    """The exemplars of a session: `layer` shows them, `button` and `begin` let somebody draw them.

    Each box is kept at once. The sample tiles are computed anew when somebody has ended drawing.
    """

    def __init__(
        self,
        session: Session,
        teaching: ClassTeaching,
        tool: ShapeTool,
        tiles: SampleTiles,
        tell: Callable[[str], None],
    ) -> None:
        self._session, self._teaching, self._tool = session, teaching, tool
        self._tiles, self._tell = tiles, tell
        self._class = EVERY_CLASS  # of the boxes that are being drawn
        self._seen = session.exemplars  # what the sample tiles were computed with
        self.layer = ipyleaflet.GeoJSON(data={"type": "FeatureCollection", "features": []})
        told = "draw boxes that show the model what to find, or crossed out: what not (b)"
        self.button = button("Exemplars", self.press, told)
        if not self.offered:
            self.button.layout.display = "none"
        session.observe(self._changed, ["exemplars", "colors"])
        self.show()

    @property
    def offered(self) -> bool:
        """Whether the model of the job takes exemplars."""
        return self._session.job.finds_concepts

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """Its keys, and what they do."""
        return KEYS if self.offered else ()

    def close(self) -> None:
        """Stop following the session."""
        self._session.unobserve(self._changed, ["exemplars", "colors"])

    def show(self) -> None:
        """Show the boxes in the colours of their classes, those that are unlike crossed out."""
        frame = self._session.exemplars.frame
        features = [
            _feature(some.geometry, bool(unlike), self._color(int(number)))
            for (number, unlike), some in frame.groupby(["class_id", UNLIKE])
        ]
        self.layer.data = {"type": "FeatureCollection", "features": features}
        n = len(frame)
        self.button.description = f"Exemplars: {n}" if n else "Exemplars"

    def _color(self, number: int) -> str:
        if number == EVERY_CLASS:
            return NO_CLASS_COLOR
        return self._session.colors.get(number, color_of(number))

    # ---- what a person does

    def press(self) -> None:
        """Begin to draw boxes, or end it."""
        if self._tool.mode == "boxes":
            self._tool.drop()
            return
        try:
            self.begin()
        except WorkbenchError as error:
            self._tell(str(error))

    def begin(self) -> None:
        """Let a person drag boxes for the palette's class.

        Raises `ReviewError` if there are several classes and none is chosen, or if the model takes
        no exemplars.
        """
        if not self.offered:
            raise ReviewError(
                f"The model `{self._session.job.model}` takes no exemplars; `sam3` does. Draw a "
                "label with d, or give objects a class: that teaches this model."
            )
        names, tool = self._teaching.names, self._teaching.palette.tool
        if tool == LOOK and len(names) > 1:
            raise ReviewError("Choose a class in the palette first: the boxes are of this one.")
        self._class = next(iter(names)) if tool == LOOK else tool
        if self._class == NONE:
            hint = "Drag boxes around what is of no class."
        else:
            hint = f"Drag boxes around: {names[self._class]}. Alt/right button: not this."
        self._tool.boxes(hint, self)

    def box(self, bounds: NDArray[np.float64], beside: bool) -> None:
        """Keep a box; raises `WorkbenchError`."""
        session = self._session
        drawn = session.exemplars.with_box(bounds, self._class, beside, self._parts)
        session.exemplify(drawn)

    def point(self, x: float, y: float) -> None:
        """Remove the box at a place, if there is one; raises `WorkbenchError`."""
        row = self._session.exemplars.at(x, y)
        if row >= 0:
            self._session.exemplify(self._session.exemplars.without(row))

    def undo(self) -> None:
        """Take the last change of the panel back."""
        self._session.undo()

    def redo(self) -> None:
        """Make it again."""
        self._session.redo()

    def ended(self) -> None:
        """Compute the sample tiles anew, and the tiles that show the boxes."""
        if not self._renew() or self._session.job.lacks_concepts:
            return
        try:
            self._tiles.compute(self._session.exemplars.tiles(self._parts))
        except WorkbenchError as error:
            self._tell(str(error))

    def _changed(self, _: Any) -> None:
        self.show()
        if not self._tool.busy:  # undone or redone; to want more tiles would be a step of its own
            self._renew()

    def _renew(self) -> bool:
        """Compute the sample tiles anew if the exemplars have changed; returns whether they did."""
        before, now = self._seen, self._session.exemplars
        if now is before:
            return False
        self._seen = now
        self._tiles.renew()
        if len(now) and (lacks := now.lacks(self._session.job.concepts or {})):
            self._tell(f"The exemplars are not used yet. {lacks}")
        return True

    @property
    def _parts(self) -> list[ScenePlan]:
        session = self._session
        pairs = zip(session.scenes, session.grids, strict=True)
        return [ScenePlan(scene, grid, ()) for scene, grid in pairs]


def _feature(boxes: gpd.GeoSeries, unlike: bool, color: str) -> dict[str, Any]:
    """Boxes of one class as a GeoJSON feature."""
    shapes = boxes.to_numpy()
    lines = shapely.get_parts(shapely.boundary(shapes))
    if unlike:
        x0, y0, x1, y1 = shapely.bounds(shapes).T
        for ends in ((x0, y0, x1, y1), (x0, y1, x1, y0)):
            crossing = shapely.linestrings(np.column_stack(ends).reshape(-1, 2, 2))
            lines = np.concatenate([lines, crossing])
    whole = gpd.GeoSeries([shapely.multilinestrings(lines)], crs=boxes.crs).to_crs(4326)
    style = (_UNLIKE if unlike else _STYLE) | {"color": color}
    geometry = json.loads(str(shapely.to_geojson(whole.iloc[0])))
    return {"type": "Feature", "geometry": geometry, "properties": {"style": style}}
