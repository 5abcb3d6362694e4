"""Sample tiles for the tuner: which ones are wanted, and the progress of computing them."""

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

NOTHING_SHOWN = (
    "This model finds only what it is shown: press Exemplars, and draw boxes around some objects."
)
USUAL_SECONDS = 10.0  # for a tile, until one has been timed


class SampleTiles:
    """Has tiles computed, adds them to the session's samples, and shows the progress.

    Errors are shown in `message`. `changed` is called, in any thread, whenever there is something
    new to show.
    """

    def __init__(self, session: Session, message: SafeHTML, changed: Callable[[], None]) -> None:
        self._session, self._message, self._changed = session, message, changed
        self._lock = threading.RLock()
        self._queue: set[Index] = set()
        self._computing: frozenset[Index] = frozenset()
        self._timed: tuple[int, int, float] | None = None  # tiles wanted, done, time of the last
        self._share = 0.0  # of the current tile, as the model reports it
        self.progress = widgets.FloatProgress(max=1.0, layout={"width": "160px"})
        self._progress_text = SafeHTML()
        cancel = button("Cancel", self.cancel, "stop computing; finished tiles are kept", "stop")
        self.widget = row(self.progress, self._progress_text, cancel)
        self.widget.layout.display = "none"
        session.observe(self._go_on, "busy")
        session.observe(self._follow_wishes, "tiles")

    @property
    def underway(self) -> bool:
        """Whether sample tiles are being computed."""
        return self._timed is not None

    def close(self) -> None:
        """Stop following the session."""
        self._session.unobserve(self._go_on, "busy")
        self._session.unobserve(self._follow_wishes, "tiles")

    def clear(self) -> None:
        """Remove all sample tiles, and stop computing others."""
        self._session.tiles = frozenset()

    def catch_up(self) -> None:
        """Compute wanted tiles that are missing: those of an earlier session."""
        self.compute(self._session.known(self._session.tiles))

    def _follow_wishes(self, _: Any) -> None:
        """Remove samples that are no longer wanted, and compute missing ones."""
        session = self._session
        self._queue &= session.tiles
        if self._timed is not None and not self._computing & session.tiles:
            session.cancel()
        with self._lock:
            wanted = tuple(old for old in session.samples if old.record.index in session.tiles)
            if len(wanted) < len(session.samples):
                session.samples = wanted
        self._want(session.known(session.tiles))
        self._start()

    def compute(self, tiles: Iterable[Index]) -> None:
        """Compute tiles that are not samples yet, now or after the current work."""
        self._want(tiles)
        wanted = frozenset(self._queue)
        if wanted and self._session.busy and self._timed is None:
            self._message.value = "The run comes first; these tiles follow."
        with self._session.hold_trait_notifications():  # otherwise another panel may be quicker
            self._session.tiles |= wanted
            self._start()

    def renew(self) -> None:
        """Compute all samples again: what they depend on has changed."""
        session = self._session
        self._computing = frozenset()  # what still comes of these does not count
        with self._lock:
            session.samples = ()
        self._queue |= session.known(session.tiles)
        if self.underway:
            session.cancel()
        self._start()

    def has(self, x: float, y: float) -> bool:
        """Whether a point in the working CRS is in a sample tile."""
        for sample in self._session.samples:
            bounds = sample.part.scene.window_polygon(sample.tile.window).bounds
            if bounds[0] <= x <= bounds[2] and bounds[1] <= y <= bounds[3]:
                return True
        return False

    def compute_at(self, x: float, y: float) -> None:
        """Compute the tile of the area at a point in the working CRS, if there is one."""
        for part in self._session.area.finest if self._session.area else ():
            for tile in part.tiles:
                left, bottom, right, top = part.scene.window_polygon(tile.core).bounds
                if left <= x <= right and bottom <= y <= top:
                    self.compute([part.index(tile)])
                    return

    def _want(self, tiles: Iterable[Index]) -> None:
        there = {sample.record.index for sample in self._session.samples}
        self._queue |= set(tiles) - there - self._computing

    def _start(self) -> None:
        """Show what is in the queue, unless something is being computed.

        Stored tiles come at once, the others when they have been computed.
        """
        if self._session.busy or not self._queue:
            return
        if self._session.job.lacks_concepts:
            self._queue.clear()
            self._message.value = sentence(NOTHING_SHOWN)
            return
        wanted, self._queue = frozenset(self._queue), set()
        stored = self._session.read_stored(wanted)
        self._take(*stored)
        wanted -= {sample.record.index for sample in stored}
        if not wanted:
            return
        self._computing = wanted
        self._message.value = ""
        self._timed, self._share = (len(wanted), 0, time.monotonic()), 0.0
        self.progress.value = 0
        self.show_progress()
        try:
            self._session.compute(wanted, self._hear)
        except WorkbenchError as error:
            self._timed, self._computing = None, frozenset()
            self._message.value = sentence(str(error))
        self._changed()

    def _go_on(self, change: Any) -> None:
        if not change["new"]:
            self._start()

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
                if record is not None and record.index in self._computing:
                    self._take(self._session.sample_of(event))
            case TileDone(record):
                self._share = 0.0
                if self._timed is not None:
                    self._timed = (self._timed[0], self._timed[1] + 1, time.monotonic())
                if record.status == "failed":
                    self._message.value = sentence(f"Tile {record.name} failed: {record.error}")
                elif record.index in self._computing:
                    self._take(self._session.sample_of(event))
            case Finished() | Stopped():
                self._timed, self._share, self._computing = None, 0.0, frozenset()
                self._take()
                if isinstance(event, Stopped):
                    if event.reason:
                        self._queue.clear()
                    self._want_only_what_is_there()
                    self._message.value = sentence(event.reason) if event.reason else "Cancelled."

    def _want_only_what_is_there(self) -> None:
        session = self._session
        session.tiles &= self._queue | {sample.record.index for sample in session.samples}

    def _take(self, *samples: SegmentedTile) -> None:
        """Add samples; they replace all earlier versions that were incomplete."""
        with self._lock:
            whole = tuple(old for old in self._session.samples if old.whole)
            # others were cleared in the meantime
            new = [sample for sample in samples if sample.record.index in self._session.tiles]
            if new or len(whole) < len(self._session.samples):
                self._session.samples = (*whole, *new)

    def cancel(self) -> None:
        """Stop computing; finished tiles are kept."""
        self._queue.clear()
        self._session.cancel()

    def show_progress(self) -> None:
        """Show the progress: reported by the model, or estimated from the time of other tiles."""
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
        # the first estimate may have been too short: never go backwards
        self.progress.value = max((done + share) / max(n, 1), done and self.progress.value)
        left = max(1.0, (n - done - share) * usual)
        self._progress_text.value = f"tile {min(done + 1, n)} of {n} · {duration(left)} left"
        self.widget.layout.display = "flex"
