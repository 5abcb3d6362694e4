"""What the cells of a notebook show, and what stays when one of them runs again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import ipywidgets as widgets
from IPython import get_ipython

from workbench.runs.job import Job
from workbench.widgets.session import SAMPLES_DEPEND_ON, Session


class Panel(Protocol):
    """The widgets that show a session, complete once made; `widget` is the one to display."""

    widget: widgets.Widget

    def tell(self, text: str) -> None:
        """Show a sentence about something that has gone wrong."""

    def close(self) -> None:
        """Stop following the session, and end the threads; the widgets stay on the page."""


P = TypeVar("P", bound=Panel)


class CellWidget(Generic[P]):
    """What a cell shows of a session: a panel, or a text if nobody is at the notebook.

    `panel` is None in a batch run and after `close`. A cell that runs again keeps its panel as
    long as the session is the same; for another session it gets a new one, and the old one is
    closed.
    """

    text = ""

    def __init__(self, session: Session, make: Callable[[Session], P]) -> None:
        self.session = session
        self.panel: P | None = None
        if session.job.is_interactive:
            self.panel = self._panel_of_cell(make)

    def _panel_of_cell(self, make: Callable[[Session], P]) -> P:
        place = _cell(), type(self).__name__
        before: CellWidget[P] | None = _shown_in_cells.get(place)
        if before is not None and before.panel is not None and before.session is self.session:
            panel = before.panel
        else:
            panel = make(self.session)
            if before is not None:
                before.take_away()
        if place[0]:
            _shown_in_cells[place] = self
        return panel

    @property
    def job(self) -> Job:
        """The job with all changes made so far."""
        return self.session.job

    def take_away(self) -> None:
        """Close the panel and remove it from the page."""
        if self.panel is not None:
            self.panel.close()
            _close_all(self.panel.widget)
            self.panel = None

    def close(self) -> None:
        """Remove the panel, stop what is being computed, and free the model's memory."""
        self.take_away()
        self.session.close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if self.panel is None:
            return {"text/plain": self.text}
        return self.panel.widget._repr_mimebundle_(**options)


_of_cells: dict[str, tuple[Job, Session]] = {}
_shown_in_cells: dict[tuple[str, str], CellWidget[Any]] = {}


def session_of_cell(job: Job) -> Session:
    """Make a session for a job; a cell that runs again keeps what a person has changed by hand.

    A parameter that was edited in the cell since then wins over the change by hand. With another
    source all changes are dropped: area and thresholds were meant for the one before.
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
            if shown.session is earlier and shown.panel is not None:
                shown.panel.tell("The cell of the area has run again. Run this cell again, too.")
    if cell:
        _of_cells[cell] = job, session
    return session


def _close_all(widget: widgets.Widget) -> None:
    """Close a widget and all that it holds, in the browser, too."""
    closing, found = [widget], set()
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
    """The id of the running notebook cell; empty outside a notebook."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return ""
    return str(kernel.get_parent("shell").get("metadata", {}).get("cellId", ""))
