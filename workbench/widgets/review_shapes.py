"""Shapes that somebody makes or changes in a review: what was missed, and the label shown."""

from __future__ import annotations

from collections.abc import Callable

import shapely

from workbench.errors import ReviewError
from workbench.widgets.layer_session import LayerSession
from workbench.widgets.shapes import ShapeTool, TakeShape


class ReviewShapes:
    """What becomes of shapes that somebody makes with `tool`.

    New labels have the class that was given last. Raises `ReviewError` if no label is shown that
    could be changed.
    """

    def __init__(self, session: LayerSession, tool: ShapeTool) -> None:
        self._session, self._tool = session, tool

    def draw(self) -> None:
        """Let a person draw a label."""
        self._tool.draw(self._session.draw)

    def prompt(self) -> None:
        """Let a person click an object, which the model outlines; raises `JobError`."""
        self._tool.prompt(self._session.draw)

    def edit(self) -> None:
        """Let a person move the corners of the label that is shown."""
        self._change(self._tool.edit)

    def correct(self) -> None:
        """Let a person correct the label that is shown by clicks; raises `JobError`."""
        self._change(self._tool.correct)

    def _change(self, begin: Callable[[shapely.MultiPolygon, TakeShape], None]) -> None:
        row, triage = self._session.row, self._session.triage
        if row < 0:
            raise ReviewError("No label is shown: click one first.")
        before, shape = triage.to_edit(row)
        begin(shape, lambda changed: self._session.reshape(row, changed, before))
