"""What the cells of a notebook show, and what they keep when one of them runs again."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import ipywidgets as widgets
from IPython import get_ipython

from workbench.runs.job import Job
from workbench.runs.plan import open_scenes
from workbench.widgets.saved import write_opened
from workbench.widgets.session import SAMPLES_DEPEND_ON, Session

# a kernel that restarts would search all widgets for garbage before it ends: 0.8 s
atexit.register(gc.freeze)


class Panel(Protocol):
    """The widgets that show a session; `widget` is the one to display."""

    widget: widgets.Widget

    def tell(self, text: str) -> None:
        """Show an error."""

    def close(self) -> None:
        """Stop following the session, and end the threads; the widgets stay on the page."""


class SharedState(Protocol):
    """The state that panels show: a job, which knows whether somebody is at the notebook."""

    job: Any

    def close(self) -> None:
        """Stop what is being computed."""


S = TypeVar("S", bound=SharedState)
P = TypeVar("P", bound=Panel)


class CellWidget(Generic[S, P]):
    """What a cell shows of a session: a panel, or a text if nobody is at the notebook.

    `panel` is None in a batch run and after `close`. A cell that runs again keeps its panel as
    long as the session is the same; for another session it gets a new one, and the old one is
    closed. A session may also be replaced while its panels are on the page (`open_job`): the page
    shows `frame`, which holds the current panel.
    """

    text = ""

    def __init__(self, session: S, make: Callable[[S], P]) -> None:
        self.session = session
        self.panel: P | None = None
        self._make = make
        self.frame: widgets.VBox | None = None
        if session.job.is_interactive:
            self._fill_cell()

    def _fill_cell(self) -> None:
        place = _cell(), type(self).__name__
        before: CellWidget[S, P] | None = _shown_in_cells.get(place)
        if before is not None and before.panel is not None and before.session is self.session:
            self.panel, self.frame = before.panel, before.frame
        else:
            self.panel = self._make(self.session)
            self.frame = widgets.VBox([self.panel.widget], layout={"width": "100%"})
            if before is not None:
                before.take_away()
        if place[0]:
            _shown_in_cells[place] = self

    def show(self, session: S) -> None:
        """Show another session from now on."""
        before, self.session = self.panel, session
        assert before is not None
        assert self.frame is not None
        self.panel = self._make(session)
        self.frame.children = (self.panel.widget,)
        before.close()
        _close_all(before.widget)

    @property
    def job(self) -> Any:
        """The job with all changes made so far."""
        return self.session.job

    def take_away(self) -> None:
        """Close the panel and remove it from the page."""
        if self.panel is not None and self.frame is not None:
            self.panel.close()
            _close_all(self.frame)
            self.panel = None

    def close(self) -> None:
        """Remove the panel, stop what is being computed, and free the model's memory."""
        self.take_away()
        self.session.close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if self.panel is None or self.frame is None:
            return {"text/plain": self.text}
        return self.frame._repr_mimebundle_(**options)


_of_cells: dict[str, tuple[Job, Session]] = {}
_shown_in_cells: dict[tuple[str, str], CellWidget[Any, Any]] = {}


def session_of_cell(job: Job) -> Session:
    """Make a session for a job, and continue with the changes by hand in `session.json`.

    A parameter that was edited in the cell since then wins over the change by hand. If the source
    is another one, all changes are dropped: area and thresholds were meant for the old source.
    """
    cell = _cell()
    _, earlier = _of_cells.get(cell, (job, None))
    if earlier is not None:
        earlier.let_go()
    session = Session(job, earlier)
    if earlier is not None:
        _take_over(session, earlier)
        for shown in _shown_in_cells.values():
            if shown.session is earlier and shown.panel is not None:
                shown.panel.tell("The cell of the area has run again. Run this cell again, too.")
    if cell:
        _of_cells[cell] = job, session
    return session


def job_of(path: Path, cell: Job) -> Job:
    """The job for a raster, a job file or a run folder that a person wants to open.

    A raster is opened with the parameters of the notebook's cell, in a run folder of its own.
    Raises `JobError`.
    """
    job_file = path / "job.yaml" if path.is_dir() else path
    if job_file.suffix.lower() in (".yaml", ".yml"):
        if path.is_dir() and not job_file.exists():
            return cell.changed(source=str(path), out_dir=None, aoi=None)  # a folder of rasters
        job = Job.from_yaml(job_file)
        if path.is_dir():
            job = job.changed(out_dir=str(path))
        return job.changed(interactive=cell.interactive)
    return cell.changed(source=str(path), out_dir=None, aoi=None)


def open_job(earlier: Session, job: Job | None) -> Session:
    """Show another job in place of a session's, in all its cells; None: that of the notebook.

    After a restart, the kernel opens it again. Raises `WorkbenchError`, and changes nothing, if its
    rasters or its run folder cannot be opened.
    """
    if job is not None:
        open_scenes(job)  # before anything is closed
    earlier.let_go()
    write_opened(earlier.home, earlier.cell, job)
    session = Session(earlier.cell)
    _take_over(session, earlier)
    for shown in list(_shown_in_cells.values()):  # in the order in which they were made
        if shown.session is earlier and shown.panel is not None:
            shown.show(session)
    for cell, (of_cell, there) in _of_cells.items():
        if there is earlier:
            _of_cells[cell] = of_cell, session
    return session


def _take_over(session: Session, earlier: Session) -> None:
    """Reuse in a session what an earlier one has computed, and end the earlier one."""
    if (
        session.scenes == earlier.scenes
        and all(
            getattr(session.job, name) == getattr(earlier.job, name) for name in SAMPLES_DEPEND_ON
        )
        and session.exemplars.equals(earlier.exemplars)
    ):
        samples = (sample for sample in earlier.samples if sample.whole)
        session.samples = tuple(s for s in samples if s.record.index in session.tiles)
        session.take_process(earlier)
        session.forecast = earlier.forecast
    earlier.close()


def _close_all(widget: widgets.Widget) -> None:
    """Close a widget and everything in it, in the browser, too."""
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
