"""Drawing the tuner's samples, while a slider moves and once it rests."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import shapely

from workbench.tuning.preview import Preview, View
from workbench.widgets.classes import ClassTeaching
from workbench.widgets.drawn_polygons import DrawnPolygons
from workbench.widgets.quiet import QuietMoments
from workbench.widgets.session import Session

AHEAD_AT_MOST = 30_000  # candidates that are traced before a slider needs them
AHEAD_AT_ONCE = 20  # candidates: a slider never waits for more


class Display:
    """Draws the polygons that the job's thresholds, cleaning and classes leave.

    `preview` has the samples, `view` what is left of them. Sliders and the thread of `QuietMoments`
    both change and read these, so they hold `lock`.
    """

    def __init__(
        self,
        session: Session,
        drawn: DrawnPolygons,
        teaching: ClassTeaching,
        quiet: QuietMoments,
    ) -> None:
        self._session, self._drawn = session, drawn
        self._teaching, self._quiet = teaching, quiet
        self.lock = threading.RLock()
        self.preview = Preview(())
        self.view = self._see()

    def take(self, aoi: shapely.Geometry | None) -> None:
        """Take the session's samples; nothing is drawn yet."""
        self.preview = Preview(self._session.samples, aoi, before=self.preview)
        self.view = self._see()

    def refresh(self) -> None:
        """Draw what the current job leaves of the samples."""
        self.view = self._see()
        self.draw()

    def draw(self, send: bool = False) -> None:
        """Draw the view and its classes; `send` sends all coordinates again."""
        overlay, classed = self._drawn.overlay, self._teaching.classed(self.preview)
        if classed is not None and not overlay.class_colours:
            overlay.colour_by = "class"  # only the first time; after that the person chooses
        overlay.class_colours = [] if classed is None else self._teaching.colours
        draw = self._drawn.send if send else self._drawn.show
        draw(self.view, self.preview, self._session.judged, classed)

    # -------------------------------------------------------------------------------- at rest

    def merge_seams(self) -> None:
        """Merge polygons that several samples see, as a run does."""
        before = self.view
        if not self._teaching.active:  # with classes, a run chooses by class before it merges seams
            self._settle(before, self.preview.merge(before))

    def teach_on(self) -> None:
        """Compute missing features, learn as a run does, and draw the result."""
        preview = self.preview
        while self._teaching.describe_one(preview):
            with self.lock:
                if self.preview is not preview:
                    return
                self.draw()
            if self._quiet.overtaken:
                return
        if self._teaching.learn():
            with self.lock:
                self.draw()

    def work_ahead(self) -> None:
        """Trace and clean what other thresholds will need."""
        preview, cleaning = self.preview, self._session.job.cleaning
        if preview.n_candidates > AHEAD_AT_MOST:
            return
        while preview.prepare(cleaning, AHEAD_AT_ONCE):
            time.sleep(0.002)  # let a waiting slider take the lock
            if self._quiet.overtaken or self.preview is not preview:
                return
        with self.lock:
            before = self.view
            ahead = self._see()
            if self._drawn.misses(ahead):
                self._settle(before, replace(before, drawn=ahead.drawn))
        # so that nobody has to wait for features when teaching later
        while not self._quiet.overtaken and self.preview is preview:
            if not self._teaching.describe_one(preview):
                return

    def _settle(self, before: View, view: View) -> None:
        """Draw a new view with all coordinates, unless a slider has moved since `before`."""
        with self.lock:
            if view is not before and self.view is before and not self._quiet.overtaken:
                self.view = view
                self.draw(send=True)

    def _see(self) -> View:
        job = self._session.job
        return self.preview.look(job.thresholds, job.cleaning, job.offer)
