"""The palette of classes: their names and looks, and the class that a click means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

LOOK = -1  # a click explains


class ClassPalette(anywidget.AnyWidget):
    """A chip for each class: its key, colour and name, and its number of verdicts.

    `classes` is a list of `{number, name, color, count}`; `tool` is the class that a click on the
    map means, 0 for none of the classes, `LOOK` to look at what lies there. `n_none` counts the
    verdicts for none of them. `on_edit` gets the changed list, `on_add` asks for another class,
    `on_next` for the object to judge next. If the palette is not `editable`, a click on a class
    answers with it: `on_answer`.
    """

    _esm = Path(__file__).with_suffix(".js")

    classes: list[dict[str, Any]] = traitlets.List().tag(sync=True)  # type: ignore[assignment]
    n_none = traitlets.Int(0).tag(sync=True)
    tool = traitlets.Int(LOOK).tag(sync=True)
    editable = traitlets.Bool(True).tag(sync=True)

    def on_edit(self, callback: Callable[[list[dict[str, Any]]], None]) -> None:
        """Call `callback(classes)` when a person has changed a name or a colour."""
        self._on("edit", lambda message: callback(message["classes"]))

    def on_add(self, callback: Callable[[], None]) -> None:
        """Call `callback` when a person wants another class."""
        self._on("add", lambda _: callback())

    def on_next(self, callback: Callable[[], None]) -> None:
        """Call `callback` when a person wants to see the next object."""
        self._on("next", lambda _: callback())

    def on_answer(self, callback: Callable[[int], None]) -> None:
        """Call `callback(number)` when a person answers with a class, 0 for none of them."""
        self._on("answer", lambda message: callback(int(message["number"])))

    def _on(self, kind: str, callback: Callable[[dict[str, Any]], None]) -> None:
        def dispatch(widget: ClassPalette, message: dict[str, Any], buffers: Any) -> None:
            if message["kind"] == kind:
                callback(message)

        self.on_msg(dispatch)
