"""A file or folder of the machine that the notebook runs on, typed or chosen from a list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as widgets

MOST_LISTED = 1000
_UP = ".."


class FileBrowser:
    """A path to type, and a list of a folder below it that *Browse* opens.

    `path` is what was typed or chosen. Choosing a folder in the list also opens it.
    """

    def __init__(self, start: Path, placeholder: str) -> None:
        self._start = start
        self._folder = start
        self._filling = False
        self.path = widgets.Text(
            placeholder=placeholder, layout={"flex": "1 1 120px", "width": "auto"},
            tooltip="a path on the machine that this notebook runs on; to bring a file of your own "
            "there, drop it on JupyterLab's list of files",
        )  # fmt: skip
        self.browse = widgets.ToggleButton(
            description="Browse", icon="folder-open", layout={"width": "auto"},
            tooltip="choose from a list",
        )  # fmt: skip
        self.list = widgets.Select(rows=10, layout={"display": "none", "width": "auto"})
        line = widgets.HBox([self.path, self.browse], layout={"align_items": "center"})
        self.widget = widgets.VBox([line, self.list])
        self.browse.observe(self._toggled, "value")
        self.list.observe(self._chosen, "value")

    @property
    def chosen(self) -> Path | None:
        """The path, absolute; None if there is none."""
        name = self.path.value.strip()
        return Path(name).expanduser().absolute() if name else None

    def _toggled(self, change: Any) -> None:
        self.list.layout.display = "flex" if change["new"] else "none"
        if change["new"]:
            typed = self.chosen
            folders = [] if typed is None else [typed, *typed.parents]
            self._show(next((path for path in folders if path.is_dir()), self._start))

    def _show(self, folder: Path) -> None:
        self._folder, self._filling = folder, True
        try:
            self.list.options = list(_options(folder))
            self.list.value = None
        finally:
            self._filling = False

    def _chosen(self, change: Any) -> None:
        if self._filling or change["new"] is None:
            return
        there = self._folder.parent if change["new"] == _UP else self._folder / change["new"]
        self.path.value = str(there)
        if there.is_dir():
            self._show(there)


def _options(folder: Path) -> Iterator[tuple[str, str]]:
    """The content of a folder, its folders first: a label and a name for each."""
    yield f"⬑ up from {folder}", _UP
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        found = []
    found.sort(key=lambda path: (not path.is_dir(), path.name.lower()))
    for path in found[:MOST_LISTED]:
        yield (f"🗀 {path.name}/" if path.is_dir() else f"\u2003{path.name}"), path.name
