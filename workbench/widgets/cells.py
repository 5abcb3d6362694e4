"""What the cells of a notebook show, and what stays when one of them runs again."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
from IPython import get_ipython

from workbench.runs.job import Job
from workbench.widgets.session import SAMPLES_DEPEND_ON, Session


class CellWidget:
    """What a cell shows of a session: widgets, or a text where nobody is at the notebook."""

    text = ""
    session: Session
    widget: widgets.Widget | None = None

    @property
    def job(self) -> Job:
        """The job as it stands."""
        return self.session.job

    def show(self, widget: widgets.Widget) -> None:
        """Show a widget, in place of what the cell has shown of this kind before."""
        self.widget = widget
        cell = _cell()
        if cell:
            before = _shown_in_cells.get((cell, type(self).__name__))
            _shown_in_cells[cell, type(self).__name__] = self
            if before is not None:
                before.detach()
                if before.session is self.session:
                    self.take_over(before)
                _close_all(before.widget)

    def detach(self) -> None:
        """Let another one take over: stop following the session."""

    def take_over(self, before: Any) -> None:
        """Go on with what an earlier one of this kind, of the same session, was at."""

    def tell(self, text: str) -> None:
        """Show a sentence about something that has gone wrong."""

    def close(self) -> None:
        """Take it away, end what is computed, and give the model's memory back."""
        self.detach()
        self.session.close()
        _close_all(self.widget)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if self.widget is None:
            return {"text/plain": self.text}
        return self.widget._repr_mimebundle_(**options)


_of_cells: dict[str, tuple[Job, Session]] = {}
_shown_in_cells: dict[tuple[str, str], CellWidget] = {}


def session_of_cell(job: Job) -> Session:
    """Make a session for a job; in a cell that runs again, keep what a person has changed there.

    A parameter that the cell's job has changed since then counts more than what was done by hand,
    and another source begins anew: area and thresholds were meant for the one before.
    """
    cell = _cell()
    given, earlier = _of_cells.get(cell, (job, None))
    if earlier is None or given.source != job.source:
        session = Session(job)
    else:
        earlier.cancel()
        by_hand = {
            name: value
            for name, value in earlier.job
            if value != getattr(given, name) and getattr(given, name) == getattr(job, name)
        }
        session = Session(job.changed(**by_hand))
        session.given = job
        if session.scenes == earlier.scenes and all(
            getattr(session.job, name) == getattr(earlier.job, name) for name in SAMPLES_DEPEND_ON
        ):
            session.samples = tuple(sample for sample in earlier.samples if sample.whole)
            session.judged = earlier.judged
            session.take_process(earlier)
            session.forecast = earlier.forecast
    if earlier is not None:
        earlier.close()
        for shown in _shown_in_cells.values():
            if shown.session is earlier:
                shown.tell("The area's cell has run again. Run this cell again, too.")
    if cell:
        _of_cells[cell] = job, session
    return session


def _close_all(widget: widgets.Widget | None) -> None:
    """Close a widget and all that it holds, in the browser, too."""
    closing, found = [widget] if widget is not None else [], set()
    while closing:
        one = closing.pop()
        if one in found or one.comm is None:
            continue
        found.add(one)
        for name in one.keys:
            held = getattr(one, name)
            among = held if isinstance(held, list | tuple) else [held]
            closing += [other for other in among if isinstance(other, widgets.Widget)]
    for one in found:
        one.close()


def _cell() -> str:
    """The id of the running notebook cell; empty outside of a notebook."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return ""
    return str(kernel.get_parent("shell").get("metadata", {}).get("cellId", ""))
