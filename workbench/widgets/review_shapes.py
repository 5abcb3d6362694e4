"""Drawing what a run has missed, and moving the corners of a label, in a review."""

from __future__ import annotations

from workbench.errors import ReviewError
from workbench.widgets.layer_session import LayerSession
from workbench.widgets.shapes import ShapeTool


class ReviewShapes:
    """What becomes of shapes that somebody makes with `tool`."""

    def __init__(self, session: LayerSession, tool: ShapeTool) -> None:
        self._session, self._tool = session, tool

    def draw(self) -> None:
        """Let a person draw a label with the class that was given last."""
        self._tool.draw(self._session.draw)

    def edit(self) -> None:
        """Let a person move the corners of the label that is shown; raises `ReviewError`."""
        row, triage = self._session.row, self._session.triage
        if row < 0:
            raise ReviewError("No label is shown: click one first.")
        before, shape = triage.to_edit(row)
        self._tool.edit(shape, lambda changed: self._session.reshape(row, changed, before))
