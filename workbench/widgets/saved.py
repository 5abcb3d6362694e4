"""`session.json` in a run folder: what a person has done there by hand, saved at once."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench._support.files import atomic_path
from workbench.errors import OutputError, RunFolderError, WorkbenchError
from workbench.runs.job import Job
from workbench.widgets.history import TUNED, State

KEPT = "session.json"
UNREADABLE = "session-unreadable.json"
SETTLE_SECONDS = 0.3  # changes closer together are written once
MOST_BYTES = 20_000_000
ANOTHER = (
    "Another window has worked in this run folder since. Changes made here are no longer saved: "
    "close one of the two, and run all cells again."
)
# set only by the notebook's cell: a file may come from anybody, and a scheduler is trusted code
_OF_CELL = ("source", "out_dir", "scheduler", "interactive", "resume", "device", "checkpoint")


class Opened(BaseModel):
    """A job opened in place of the notebook's cell, valid while the cell names this source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instead_of: Any
    job: dict[str, Any]

    @classmethod
    def of(cls, cell: Job, job: Job) -> Opened:
        """Say that a job was opened in place of the cell's."""
        return cls(instead_of=cell.parameters()["source"], job=job.parameters())

    def job_for(self, cell: Job) -> Job:
        """The opened job, or the cell's if its source has changed since; raises `JobError`."""
        if self.instead_of != cell.parameters()["source"]:
            return cell
        of_cell = {name: getattr(cell, name) for name in ("scheduler", "interactive", "device")}
        return Job.create(**self.job | of_cell)


class SavedSession(BaseModel):
    """What `session.json` holds.

    `given` are the parameters before any change by hand, `changed` those that a person has changed,
    `other` is setting B, `opened` a job that was opened in place of the cell's job, if this is the
    cell's run folder. `running` says whether a run was under way.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    given: dict[str, Any]
    changed: dict[str, Any] = {}
    tiles: tuple[tuple[str, int, int], ...] = ()
    judged: tuple[tuple[str, int, int, int, bool], ...] = ()
    other: dict[str, Any] | None = None
    opened: Opened | None = None
    running: bool = False

    @classmethod
    def of(cls, given: Job, state: State, opened: Opened | None, running: bool) -> SavedSession:
        """Describe a state; `given` is the job before any change by hand."""
        before, now = given.parameters(), state.job.parameters()
        return cls(
            given=before,
            changed={
                name: value
                for name, value in now.items()
                if value != before[name] and name not in _OF_CELL
            },
            tiles=tuple(sorted(state.tiles)),
            judged=tuple(sorted((*key, good) for key, good in state.judged.items())),
            other=None if state.other is None else _tuned(state.other.parameters()),
            opened=opened,
            running=running,
        )

    def fits(self, job: Job, *names: str) -> bool:
        """Whether a job still has the same values for some parameters."""
        now = job.parameters()
        return all(self.given.get(name) == now[name] for name in names)

    def applied(self, job: Job) -> Job:
        """A job with the changes by hand; a parameter edited in the cell since then wins.

        Raises `JobError` for a bad value.
        """
        now = job.parameters()
        return job.changed(
            **{
                name: value
                for name, value in self.changed.items()
                if self.given.get(name) == now.get(name) and name not in _OF_CELL
            }
        )

    def other_for(self, job: Job) -> Job | None:
        """A job with setting B, None if there is none; raises `JobError`."""
        return None if self.other is None else job.changed(**_tuned(self.other))


def _tuned(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name in TUNED}


def read_saved(folder: Path) -> SavedSession | None:
    """Read the `session.json` of a run folder, None if there is none.

    Raises `RunFolderError` if the file is not what this version writes. It is then set aside.
    """
    path = folder / KEPT
    try:
        if not path.exists():
            return None
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        kept = SavedSession.model_validate_json(path.read_bytes())
        opened = None if kept.opened is None else kept.opened.job
        for job in (kept.given | kept.changed, kept.other, opened):
            if job is not None:
                Job.create(**job)
    except (OSError, ValueError, WorkbenchError, RecursionError) as error:
        with suppress(OSError):
            path.replace(folder / UNREADABLE)
        raise RunFolderError(
            f"{path} holds no session that this version can read ({_reason(error)}). It is now "
            f"called {UNREADABLE}; the tuner starts with the parameters of the notebook."
        ) from error
    return kept


def write_opened(folder: Path, cell: Job, job: Job | None) -> None:
    """Note in the run folder of a notebook's cell which job was opened in its place; None: none.

    Raises `OutputError`.
    """
    kept = read_saved(folder) or SavedSession(given=cell.parameters())
    opened = None if job is None else Opened.of(cell, job)
    _write(folder / KEPT, kept.model_copy(update={"opened": opened}).model_dump_json(indent=1))


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    return str(error).rstrip(".")


class Keeper:
    """Writes `session.json` a moment after `touch`, in a thread, and at the end of the process.

    A file that somebody else has changed since is left alone; `tell` then gets a sentence.
    """

    def __init__(
        self, path: Path, content: Callable[[], SavedSession], tell: Callable[[str], None]
    ):
        self._path, self._content, self._tell = path, content, tell
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._closed = False
        self._text = self._on_disk()
        self._told = False
        atexit.register(self.flush)

    def touch(self) -> None:
        """Note that something has changed."""
        with self._lock:
            if self._timer is None and not self._closed:
                self._timer = threading.Timer(SETTLE_SECONDS, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write pending changes."""
        with self._lock:
            if self._timer is None:
                return
            self._timer.cancel()
            self._timer = None
            text = self._content().model_dump_json(indent=1)
            if text == self._text:
                return
            try:
                if self._on_disk() != self._text:
                    raise RunFolderError(ANOTHER)
                _write(self._path, text)
            except (OutputError, RunFolderError) as error:
                if not self._told:
                    self._tell(str(error))
                self._told = True
            else:
                self._text, self._told = text, False

    def close(self) -> None:
        """Write pending changes for the last time."""
        self.flush()
        self._closed = True
        atexit.unregister(self.flush)

    def _on_disk(self) -> str | None:
        try:
            return self._path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None
