"""Asking the model of a session about clicks on a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from workbench.raster.scene import Scene
from workbench.runs.job import Job
from workbench.tuning.process import Background
from workbench.tuning.questions import Clicks, Question, Reply, model_of, refuse_without_clicks

Hear = Callable[[Reply], None]
_NUMBERS = count(1)  # a process may outlive the session that has asked it


class Asking:
    """Asks the model of a job in a process; only replies to the last question are heard."""

    def __init__(
        self, job: Callable[[], Job], scenes: Sequence[Scene], process: Callable[[], Background]
    ) -> None:
        self._job, self._scenes, self._process = job, scenes, process
        self._number = 0  # of the last question
        self._hear: Hear = _nobody  # who has asked it
        self._ready: tuple[str | None, ...] = ()

    def get_ready(self) -> None:
        """Load the model ahead of time; raises `JobError` if it cannot be asked by clicks."""
        job = self._job()
        refuse_without_clicks(job)
        if self._ready != model_of(job):  # once: a large file of weights is read for its hash
            self._process().get_ready(job)
            self._ready = model_of(job)

    def ask(self, clicks: Clicks, hear: Hear) -> None:
        """Ask about clicks; `hear` gets the replies, in another thread.

        Raises `ReviewError` outside of the rasters.
        """
        number = next(_NUMBERS)
        question = Question.at(clicks, number, self._job(), self._scenes)
        self._number, self._hear = number, hear
        self._process().ask(question)

    def reply(self, reply: Reply) -> None:
        """Pass a reply on, unless something else was asked since."""
        if reply.number == self._number:
            self._hear(reply)


def _nobody(reply: Reply) -> None:
    """Nobody has asked."""
