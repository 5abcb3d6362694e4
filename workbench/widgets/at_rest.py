"""What the tuner does while no slider is moving."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from workbench.tuning.preview import Preview, View
from workbench.widgets.classes import ClassTeaching
from workbench.widgets.drawn_polygons import DrawnPolygons
from workbench.widgets.quiet import QuietMoments
from workbench.widgets.session import Session

AHEAD_AT_MOST = 30_000  # candidates that are traced before a slider asks for them
AHEAD_AT_ONCE = 20  # a slider waits for no more than these


class AtRest:
    """The part of `TunerPanel` that works ahead and merges seams."""

    session: Session
    preview: Preview
    view: View
    quiet: QuietMoments
    drawn: DrawnPolygons
    teaching: ClassTeaching
    _lock: threading.RLock

    def _see(self) -> View:
        raise NotImplementedError

    def _draw(self, send: bool = False) -> None:
        raise NotImplementedError

    def _merge_seams(self) -> None:
        """Show what a run makes of polygons that several samples see."""
        before = self.view
        if not self.teaching.active:  # else classes decide before seams do
            self._settle(before, self.preview.merge(before))

    def _work_ahead(self) -> None:
        """Trace and clean what other thresholds will need."""
        preview, cleaning = self.preview, self.session.job.cleaning
        if preview.n_candidates > AHEAD_AT_MOST:
            return
        while preview.prepare(cleaning, AHEAD_AT_ONCE):
            time.sleep(0.002)  # let a slider that waits have the lock
            if self.quiet.overtaken or self.preview is not preview:
                return
        with self._lock:
            before = self.view
            ahead = self._see()
            if self.drawn.misses(ahead):
                self._settle(before, replace(before, drawn=ahead.drawn))
        # who teaches later need not wait for features then
        while not self.quiet.overtaken and self.preview is preview:
            if not self.teaching.describe_one(preview):
                return

    def _settle(self, before: View, view: View) -> None:
        """Draw another view with all coordinates, unless a slider has moved since `before`."""
        with self._lock:
            if view is not before and self.view is before and not self.quiet.overtaken:
                self.view = view
                self._draw(send=True)
