"""The files of a run folder that hold what a person has made by hand, each written at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol

from workbench.errors import ExamplesError
from workbench.learning.verdicts import VERDICTS
from workbench.runs.by_hand import BY_HAND
from workbench.runs.exemplars_by_hand import EXEMPLARS


class Writable(Protocol):
    """Something that a file holds."""

    def write(self, path: Path) -> None:
        """Write it, whole or not at all; raises `OutputError`."""


class HandFiles:
    """Verdicts, drawn shapes and exemplars of a run folder, which one window at a time writes.

    `problem` says why one of them cannot be read, if so; then none is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps = {n: _stamp(folder / n) for n in (VERDICTS, BY_HAND, EXEMPLARS)}
        self.problem = ""

    def write(self, name: str, made: Writable) -> None:
        """Write a file, unless one cannot be read or another window has written it.

        Raises `WorkbenchError`.
        """
        path = self._folder / name
        if self.problem:
            raise ExamplesError(self.problem)
        if _stamp(path) != self._stamps[name]:
            raise ExamplesError(
                f"{path} was changed by another window. Nothing is written over it: run all cells "
                "again to go on with what it says."
            )
        made.write(path)
        self._stamps[name] = _stamp(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    """A value that changes whenever a file does; None if there is no file."""
    with suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    return None
