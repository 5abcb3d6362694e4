"""What all panels share: undo and redo, their keys with a list, and full screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import anywidget
import ipywidgets as widgets
import traitlets

from workbench.errors import WorkbenchError

PANEL = "sam-workbench-panel"  # a CSS class; JupyterLab's shortcuts do nothing inside
MAIN, SIDE = "sam-workbench-main", "sam-workbench-side"  # CSS classes of its map and its controls
COMMON_KEYS = (
    ("Ctrl+Z", "undo: whatever was changed or answered in this panel"),
    ("Ctrl+Shift+Z", "redo"),
    ("f", "full screen, and back"),
    ("?", "this list"),
    ("Ctrl+S", "save the notebook"),
)
MAP_KEYS = (
    ("arrows", "move the map"),
    ("+  −", "zoom"),
    ("Enter", "click at the cross in the middle of the map"),
)
# of what the model outlines by clicks, wherever that can be done
BY_CLICKS = (
    "click it, click more of it, Alt+click or right click what does not belong to it, drag a box; "
    "Ctrl+Z takes the last click back, Enter keeps the outline, Esc drops it"
)


def panel_of(kind: str, main: widgets.Widget, side: widgets.Widget) -> widgets.Widget:
    """Put controls beside a map, or below it if there is no room; `kind` is a CSS class."""
    main.add_class(MAIN)
    side.add_class(SIDE)
    box = widgets.Box([main, side])
    box.add_class(kind)
    box.add_class(PANEL)
    return box


class Undoable(Protocol):
    """Traits with undo and redo: `history` has a `past` and a `future`."""

    history: Any

    def undo(self) -> None:
        """Take the last change back."""

    def redo(self) -> None:
        """Make the last undone change again."""

    def observe(self, handler: Any, names: Any = ..., type: str = ...) -> None:
        """Call `handler` when a trait changes."""

    def unobserve(self, handler: Any, names: Any = ..., type: str = ...) -> None:
        """Stop calling `handler`."""


class Toolbar(anywidget.AnyWidget):
    """Undo, Redo, Full screen and Keys for the panel (class `PANEL`) that it is in.

    While the panel has the focus, JupyterLab's shortcuts do nothing, except for Ctrl+S. Each slider
    of the panel gets its name and value for screen readers. `tell` shows an error.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_name("panel.css")

    listed: list[list[str]] = traitlets.List().tag(sync=True)  # type: ignore[assignment]
    can_undo = traitlets.Bool(False).tag(sync=True)
    can_redo = traitlets.Bool(False).tag(sync=True)
    visible = traitlets.Bool(True).tag(sync=True)

    def __init__(
        self,
        session: Undoable,
        tell: Callable[[str], None],
        keys: Sequence[tuple[str, str]] = (),
        visible: bool = True,
    ) -> None:
        self._session, self._tell = session, tell
        listed = [list(pair) for pair in (*keys, *COMMON_KEYS)]
        super().__init__(listed=listed, visible=visible)
        self.on_msg(self._hear)
        session.observe(self._show, "history")
        self._show()

    def let_go(self) -> None:
        """Stop following the session."""
        self._session.unobserve(self._show, "history")

    def _show(self, _: Any = None) -> None:
        history = self._session.history
        with self.hold_sync():
            self.can_undo, self.can_redo = bool(history.past), bool(history.future)

    def _hear(self, widget: Toolbar, message: dict[str, Any], buffers: Any) -> None:
        try:
            if message["kind"] == "undo":
                self._session.undo()
            elif message["kind"] == "redo":
                self._session.redo()
        except WorkbenchError as error:
            self._tell(str(error))
