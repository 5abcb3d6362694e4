"""The state of a review that its panel shows: steps, and scores learned from the answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import shapely
from traitlets import HasTraits, Instance, Int, Unicode

from workbench.errors import WorkbenchError
from workbench.raster.scene import Scene
from workbench.review.job import ReviewJob
from workbench.review.ranking import FEWEST, Ranking
from workbench.review.redraw import Row
from workbench.review.triage import Triage
from workbench.runs.looks import class_colors
from workbench.runs.plan import Area
from workbench.runs.result import Run
from workbench.tuning.process import Background, Event
from workbench.tuning.questions import Answer, Encoding, NoAnswer
from workbench.widgets.asking import Asking

T = TypeVar("T")


@dataclass(frozen=True)
class Steps:
    """How many steps can be undone, and how many redone."""

    past: int = 0
    future: int = 0


class LayerSession(HasTraits):
    """A triage that panels observe: `history` has its steps, `row` is the label that is shown.

    `changes` counts what a person has done, `ranked` how often scores were learned from it.
    `notice` says why scores are not learned, if so.
    """

    history = Instance(Steps, ())
    row = Int(-1)
    changes = Int()
    ranked = Int()
    notice = Unicode()

    def __init__(self, job: ReviewJob, run: Run | None = None) -> None:
        super().__init__()
        self.job = job
        self.triage = Triage(job, run)
        self.scenes: Sequence[Scene] = self.triage.run.scenes
        self.area: Area | None = None
        self.colors = class_colors(self.triage.run.folder, self.triage.run.job)
        self.lock = threading.RLock()  # buttons, keys and learning run in several threads
        self.ranking: Ranking | None = None
        self._ranked_at = 0  # how many steps the scores were learned from
        self._described = False  # whether there is something new to score
        self._background = Background(self._hear)  # starts when the model is asked first
        self.asking = Asking(lambda: self.triage.run.job, self.scenes, lambda: self._background)

    def close(self) -> None:
        """End the process that has the model; answers were written as they were made."""
        self._background.close()

    def _hear(self, event: Event) -> None:
        if isinstance(event, Encoding | Answer | NoAnswer):
            self.asking.reply(event)

    # ---- what a person does

    def start(self) -> None:
        """Show the first label."""
        self._do(self.triage.go)

    def answer(self, status: str, class_id: int | None = None) -> None:
        """Decide about the label that is shown, and go on; raises as `Triage.decide` does."""
        self._do(lambda: self.triage.answer(status, class_id))

    def skip(self) -> None:
        """Show the label later, and go on."""
        self._do(self.triage.skip)

    def accept_above(self, score: float) -> int:
        """Accept all unreviewed labels with at least this score; returns how many."""
        return self._do(lambda: self.triage.accept_above(score))

    def reject_rest(self) -> int:
        """Reject the unreviewed labels of this tile; returns how many."""
        return self._do(self.triage.reject_rest)

    def draw(self, shape: shapely.Geometry) -> None:
        """Add a label, and show it; raises as `Triage.draw` does."""
        self._do(lambda: self.triage.draw(shape))

    def reshape(self, row: int, shape: shapely.Geometry, before: Row) -> None:
        """Give a label another shape, and show it; raises as `Triage.reshape` does."""
        self._do(lambda: self.triage.reshape(row, shape, before))

    def undo(self) -> None:
        """Take the last step back, and show its label."""
        self._do(self.triage.undo)

    def redo(self) -> None:
        """Make the last undone step again."""
        self._do(self.triage.redo)

    def choose(self, row: int) -> None:
        """Show a label that a person has chosen."""
        with self.lock:
            self.triage.row = row
        self._do(lambda: row)

    def sort(self, telling_first: bool) -> None:
        """Begin with tiles where the model is unsure, or take them as they are listed."""
        with self.lock:
            self.triage.sort(telling_first)

    def _do(self, step: Callable[[], T]) -> T:
        triage = self.triage
        with self.lock:
            done = step()
            history = Steps(len(triage.past), len(triage.future))
            row = triage.row
        with self.hold_trait_notifications():
            self.history, self.row = history, row
            self.changes += 1
        return done

    # ---- what is learned

    def describe_one(self) -> bool:
        """Describe the labels of one more tile; false if there is nothing left to do."""
        if self.notice:
            return False
        try:
            if self.ranking is None:
                self.ranking = Ranking(self.triage)
            tile = self.ranking.describe_one()
        except WorkbenchError as error:
            self.notice = f"The order does not follow your answers: {error}"
            return False
        # scoring again after each tile would keep the computer busy
        self._described |= tile == self.triage.order.tile or self.ranking.is_done
        return tile is not None

    def rank(self) -> None:
        """Score what is left again, if there is something new to learn from or to score."""
        ranking, n = self.ranking, len(self.triage.past)
        new = self._described and self._ranked_at > 0
        if ranking is None or (abs(n - self._ranked_at) < FEWEST and not new):
            return
        scores = ranking.scores()
        self._described = False
        if scores is None:
            return
        self._ranked_at = n
        with self.lock:
            self.triage.rank(scores)
        self.ranked += 1
