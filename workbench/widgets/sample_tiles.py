"""Sample tiles for the tuner: which ones are wanted, and how far the computation is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as widgets

from workbench._support.text import duration
from workbench.errors import WorkbenchError
from workbench.runs.tile_stream import SegmentedTile
from workbench.tuning.process import (
    Event,
    Finished,
    Index,
    Planned,
    Stopped,
    TileDone,
    TileUnderway,
)
from workbench.widgets.controls import button, row
from workbench.widgets.safe_html import SafeHTML, sentence
from workbench.widgets.session import Session

USUAL_SECONDS = 10.0  # for a tile, until one was timed


class SampleTiles:
    """Has tiles computed, adds them to the session's samples, and shows the progress.

    Errors are shown in `message`. `changed` is called, in any thread, whenever there is something
    new to show.
    """

    def __init__(self, session: Session, message: SafeHTML, changed: Callable[[], None]) -> None:
        self._session, self._message, self._changed = session, message, changed
        self._lock = threading.RLock()
        self._queue: set[Index] = set()
        self._timed: tuple[int, int, float] | None = None  # tiles wanted, done, time of the last
        self._share = 0.0  # of the tile in progress, as the model reports it
        self.progress = widgets.FloatProgress(max=1.0, layout={"width": "160px"})
        self._progress_text = SafeHTML()
        cancel = button("Cancel", self.cancel, "stop computing; finished tiles are kept", "stop")
        self.widget = row(self.progress, self._progress_text, cancel)
        self.widget.layout.display = "none"
        session.observe(self._go_on, "busy")

    @property
    def underway(self) -> bool:
        """Whether sample tiles are being computed."""
        return self._timed is not None

    def close(self) -> None:
        """Stop following the session."""
        self._session.unobserve(self._go_on, "busy")

    def clear(self) -> None:
        """Remove all sample tiles, and stop computing others."""
        self._queue.clear()
        if self._timed is not None:
            self._session.cancel()
        with self._lock:
            self._session.samples = ()

    def compute(self, tiles: Iterable[Index]) -> None:
        """Compute tiles that are not samples yet, now or after the current work."""
        there = {sample.record.index for sample in self._session.samples}
        self._queue |= set(tiles) - there
        if not self._queue:
            return
        if self._session.busy:
            if self._timed is None:
                self._message.value = "The run comes first; these tiles follow."
            return
        wanted, self._queue = frozenset(self._queue), set()
        self._message.value = ""
        self._timed, self._share = (len(wanted), 0, time.monotonic()), 0.0
        self.progress.value = 0
        self.show_progress()
        try:
            self._session.compute(wanted, self._hear)
        except WorkbenchError as error:
            self._timed = None
            self._message.value = sentence(str(error))
        self._changed()

    def _go_on(self, change: Any) -> None:
        if not change["new"]:
            self.compute(())

    def _hear(self, event: Event) -> None:
        try:
            self._follow(event)
        except Exception as error:  # in a thread, where nobody would see it
            self._message.value = sentence(f"{type(error).__name__}: {error}")
        self.show_progress()
        self._changed()

    def _follow(self, event: Event) -> None:
        match event:
            case Planned(n_tiles):
                self._timed = (n_tiles, 0, time.monotonic())
            case TileUnderway(share, record):
                self._share = share
                if record is not None:
                    self._take(self._session.sample_of(event))
            case TileDone(record):
                self._share = 0.0
                if self._timed is not None:
                    self._timed = (self._timed[0], self._timed[1] + 1, time.monotonic())
                if record.status == "failed":
                    self._message.value = sentence(f"Tile {record.name} failed: {record.error}")
                else:
                    self._take(self._session.sample_of(event))
            case Finished() | Stopped():
                self._timed, self._share = None, 0.0
                self._take(None)
                if isinstance(event, Stopped):
                    self._queue.clear()
                    self._message.value = sentence(event.reason) if event.reason else "Cancelled."

    def _take(self, sample: SegmentedTile | None) -> None:
        """Add a sample; it replaces what was known of its tile before it was whole."""
        with self._lock:
            whole = tuple(old for old in self._session.samples if old.whole)
            if sample is not None or len(whole) < len(self._session.samples):
                self._session.samples = whole if sample is None else (*whole, sample)

    def cancel(self) -> None:
        """Stop computing; finished tiles are kept."""
        self._queue.clear()
        self._session.cancel()

    def show_progress(self) -> None:
        """Show the progress: as the model reports it, or by the time that other tiles took."""
        timed = self._timed  # another thread may change it
        if timed is None:
            self.widget.layout.display = "none"
            return
        n, done, since = timed
        passed = time.monotonic() - since
        usual = self._session.forecast.seconds_per_tile or USUAL_SECONDS
        if self._share > 0.05:  # the model reports its progress
            usual = passed / self._share
        share = self._share or min(0.95, passed / usual)
        # a first guess may have been too short: never go backwards
        self.progress.value = max((done + share) / max(n, 1), done and self.progress.value)
        left = max(1.0, (n - done - share) * usual)
        self._progress_text.value = f"tile {min(done + 1, n)} of {n} · {duration(left)} left"
        self.widget.layout.display = "flex"
