"""Work that waits until a person pauses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

QUIET_SECONDS = 0.3  # after the last move of a slider: time for figures and for work ahead
LOOK_SECONDS = 0.3  # between two calls of `look`


class QuietMoments:
    """A thread that calls `work` once nothing has been touched for a moment.

    `begin` is called once, a while after `start`. `look` is called each time the thread wakes,
    and regularly while it returns true. Long work checks `overtaken` to know whether to give up.
    """

    def __init__(
        self, begin: Callable[[], None], look: Callable[[], bool], work: Callable[[], None]
    ) -> None:
        self._begin, self._look, self._work = begin, look, work
        self._wake = threading.Event()
        self._closed = False
        self._touched = self._worked_for = 0.0  # times; if they are equal, there is nothing to do
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._beginning: threading.Timer | None = None

    def start(self, begin_after: float = QUIET_SECONDS) -> None:
        """Start the thread; `begin` is called after some seconds, because the maps load first."""
        self._beginning = threading.Timer(begin_after, self._begin)
        self._beginning.daemon = True
        self._beginning.start()
        self._thread.start()

    def touch(self) -> None:
        """Note that something has changed: work follows after a pause."""
        self._touched = time.monotonic()
        self._wake.set()

    def wake(self) -> None:
        """Call `look` soon."""
        self._wake.set()

    def close(self) -> None:
        """End the thread after its current work."""
        self._closed = True
        if self._beginning is not None:
            self._beginning.cancel()
        self._wake.set()

    @property
    def overtaken(self) -> bool:
        """Whether something was touched since the current work began, or the thread should end."""
        return self._closed or self._touched != self._worked_for

    def _run(self) -> None:
        time.sleep(QUIET_SECONDS)  # the maps load first
        underway = False
        while True:
            self._wake.wait(timeout=LOOK_SECONDS if underway else None)
            if self._closed:
                return
            self._wake.clear()
            underway = self._look()
            if self._touched == self._worked_for:
                continue
            if time.monotonic() - self._touched < QUIET_SECONDS:
                time.sleep(0.05)
                self._wake.set()
                continue
            self._worked_for = self._touched
            self._work()
