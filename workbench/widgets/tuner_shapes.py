"""Drawing what no candidate shows, and moving corners of what one shows, in the tuner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import ipyleaflet
import numpy as np
import shapely

from workbench.errors import ReviewError
from workbench.learning.classifier import NONE
from workbench.learning.examples import SAME
from workbench.learning.verdicts import Verdicts
from workbench.polygons.overlap import iou_of
from workbench.runs.by_hand import ShapesByHand
from workbench.runs.looks import color_of
from workbench.tuning.preview import Preview, View
from workbench.widgets.classes import ClassTeaching, label_of
from workbench.widgets.labelling import DRAW, EDIT, PROMPT
from workbench.widgets.map import feature
from workbench.widgets.session import Session
from workbench.widgets.shapes import ShapeTool

_STYLE = {"weight": 3, "fillOpacity": 0.2, "interactive": False}


class TunerShapes:
    """The shapes by hand of a session: `layer` shows them, `tool` makes and changes them.

    What a shape shows is taught by the candidate that is most like it, if there is one. `seen`
    gives the samples and what is left of them, `changed` is called after each change.
    """

    def __init__(
        self,
        session: Session,
        teaching: ClassTeaching,
        tool: ShapeTool,
        seen: Callable[[], tuple[Preview, View]],
        changed: Callable[[], None],
    ) -> None:
        self._session, self._teaching, self._tool = session, teaching, tool
        self._seen, self._changed = seen, changed
        self.layer = ipyleaflet.GeoJSON(data={"type": "FeatureCollection", "features": []})
        self.show()

    def show(self) -> None:
        """Show the shapes in the colours of their classes."""
        frame, colors = self._session.by_hand.frame, self._session.colors
        features = [
            feature(some.geometry, {**_STYLE, "color": colors.get(number, color_of(number))})
            for number, some in frame.groupby("class_id")
        ]  # fmt: skip
        self.layer.data = {"type": "FeatureCollection", "features": features}

    def row_at(self, place: tuple[float, float], row: int) -> int:
        """The place of the shape that keys mean at a point, -1: the candidate `row` is meant."""
        shapes = self._session.by_hand
        mine = shapes.at(*place)
        if mine < 0 or row < 0:
            return mine
        under = self._seen()[0].outline(row).area.sum()
        return mine if shapes.frame.geometry.iloc[mine].area <= under else -1

    # ---- what a person does

    @property
    def begins(self) -> Mapping[str, Callable[[], None]]:
        """What begins another shape, by the key for it."""
        return {DRAW: self.draw, PROMPT: self.prompt}

    def draw(self) -> None:
        """Let a person draw a shape of the palette's class; raises `ReviewError` without one."""
        self._tool.draw(partial(self._add, self._number()))

    def prompt(self) -> None:
        """Let a person click an object of this class, which the model outlines.

        Raises as `draw` does, and `JobError` if the model takes no clicks.
        """
        self._tool.prompt(partial(self._add, self._number()))

    def change(self, key: str, row: int, place: int) -> None:
        """Let a person change the shape by hand at a place, or if that is -1, a candidate.

        `EDIT` moves its corners, `CORRECT` takes clicks. Raises as `prompt` does.
        """
        begin = self._tool.edit if key == EDIT else self._tool.correct
        if place >= 0:
            begin(self._session.by_hand.frame.geometry.iloc[place], partial(self._reshape, place))
            return
        preview, view = self._seen()
        label = label_of(preview, row)
        number = self._session.verdicts.said.get(label, NONE) or self._number()
        keep = partial(self._stand_for, row, number, preview)
        begin(_drawn(row, preview, view), keep)

    def say(self, place: int, number: int) -> None:
        """Give a shape by hand another class; `NONE` takes it away."""
        shapes, verdicts = self._session.by_hand, self._session.verdicts
        one = shapes.frame.iloc[place]
        if number == NONE:
            left = verdicts.without(one["label"]) if one["label"] else verdicts
            self._keep(shapes.without(one["id"]), left)
        elif self._teaching.knows(number):
            self._add(number, one.geometry, one["id"])

    def _number(self) -> int:
        names, tool = self._teaching.names, self._teaching.palette.tool
        if tool in names and tool != NONE:
            return tool
        if len(names) != 1:
            raise ReviewError("Choose a class in the palette first: what you draw is of this one.")
        return next(iter(names))

    def _add(self, number: int, shape: shapely.MultiPolygon, id: str = "") -> None:
        """Keep a shape; the candidate that is most like it is of its class, too."""
        preview, view = self._seen()
        middle = shape.representative_point()
        best, most = -1, SAME
        for row in self._teaching.rows_at((middle.x, middle.y), -1, preview, view):
            outline = preview.outline(row).to_numpy()
            alike = iou_of(outline, np.full(len(outline), shape, object)).max(initial=0)
            best, most = (row, alike) if alike >= most else (best, most)
        if best < 0:
            self._keep(
                self._session.by_hand.with_shape(shape, number, id=id), self._session.verdicts
            )
        else:
            self._stand_for(best, number, preview, shape, id)

    def _stand_for(
        self, row: int, number: int, preview: Preview, shape: shapely.MultiPolygon, id: str = ""
    ) -> None:
        """Keep a shape in place of a candidate's, and teach its class by that."""
        label, outline = label_of(preview, row), preview.outline(row).union_all()
        verdicts = self._teaching.with_verdict(row, number, preview)
        self._keep(self._session.by_hand.with_shape(shape, number, label, outline, id), verdicts)

    def _reshape(self, place: int, shape: shapely.MultiPolygon) -> None:
        one = self._session.by_hand.frame.iloc[place]
        shapes = self._session.by_hand.with_shape(
            shape, int(one["class_id"]), one["label"], one["outline"], one["id"]
        )
        self._keep(shapes, self._session.verdicts)

    def _keep(self, shapes: ShapesByHand, verdicts: Verdicts) -> None:
        self._session.draw(shapes, verdicts)
        self._tool.drop()
        self._teaching.follow()
        self._changed()


def _drawn(row: int, preview: Preview, view: View) -> shapely.Geometry:
    """The shape of a candidate as it is drawn, or with corners as few as those have."""
    for frame in view.drawn:
        here = frame.geometry[frame["row"] == row]
        if len(here):
            return here.iloc[0]
    outline = preview.outline(row).union_all()
    return outline.simplify(preview.part_of(row).sample.part.scene.transform.a)
