"""Drawing what a run has missed, and moving the corners of a label, in a review."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import shapely

from workbench.errors import ReviewError, WorkbenchError
from workbench.review.redraw import Row
from workbench.widgets.layer_session import LayerSession
from workbench.widgets.shapes import ShapeTool


class ReviewShapes:
    """What becomes of shapes that somebody draws or edits; `tell` shows why one is refused.

    A shape that is refused stays on the map with its corners, so that it can be mended.
    """

    def __init__(self, session: LayerSession, tool: ShapeTool, tell: Callable[[str], None]) -> None:
        self._session, self._tool, self._tell = session, tool, tell

    def draw(self) -> None:
        """Let a person draw a label with the class that was given last."""
        self._tool.draw(self._drawn)

    def edit(self) -> None:
        """Let a person move the corners of the label that is shown; raises `ReviewError`."""
        row, triage = self._session.row, self._session.triage
        if row < 0:
            raise ReviewError("No label is shown: click one first.")
        before, shape = triage.to_edit(row)
        self._tool.edit(shape, partial(self._edited, row, before))

    def _drawn(self, shape: shapely.Geometry) -> None:
        try:
            self._session.draw(shape)
        except WorkbenchError as error:
            self._tool.mend(shape, self._drawn)
            self._tell(str(error))
        else:
            self._tell("")

    def _edited(self, row: int, before: Row, shape: shapely.Geometry) -> None:
        try:
            self._session.reshape(row, shape, before)
        except WorkbenchError as error:
            self._tell(str(error))
        else:
            self._tell("")
