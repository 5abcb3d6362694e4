"""Share the making of a layer out: portions of the work go to the workers of a cluster.

Polygons pass through files in the run folder, which all workers see, and the rest through the
scheduler. What no worker can do is done in this process: a layer can always be made here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyproj

from workbench._support.files import temporary_folder
from workbench.errors import ClusterError, WorkbenchError
from workbench.polygons.portions import Each, Portion, Step, do_here, read_portion, write_portion
from workbench.runs.cluster import connect, map_pieces
from workbench.runs.plan import Plan

if TYPE_CHECKING:
    from distributed import Client

_log = logging.getLogger(__name__)


@contextmanager
def sharing(plan: Plan) -> Iterator[Each]:
    """Yield what does the steps of making a layer: this process, or the job's cluster."""
    with ExitStack() as stack:
        each: Each = do_here
        if plan.job.scheduler is not None:
            try:
                client = stack.enter_context(connect(plan.job.scheduler))
            except ClusterError as error:
                _log.warning("The layer is made in this process. %s", error)
            else:
                folder = stack.enter_context(temporary_folder(plan.folder, "layer"))
                each = partial(_each_there, client, folder, plan.crs)
        yield each


@dataclass(frozen=True)
class _Task:
    """A step to do with a portion whose polygons are in a file."""

    step: Step
    number: int
    folder: Path
    crs: pyproj.CRS
    more: Any
    has_polygons: bool

    @property
    def given(self) -> Path:
        """The polygons that go in."""
        return self.folder / f"{self.number}.given.parquet"


def _do(task: _Task) -> tuple[Path | None, Any]:
    """Do a step, on a worker; returns the file of its polygons, if it has some, and the rest."""
    polygons = read_portion(task.given, task.crs) if task.has_polygons else None
    made = task.step(Portion(polygons, task.more))
    if made.polygons is None:
        return None, made.more
    # a name of its own: a worker that was given up may still be doing the same
    path = task.folder / f"{task.number}.{uuid4().hex}.parquet"
    write_portion(made.polygons, path)
    return path, made.more


def _each_there(
    client: Client, parent: Path, crs: pyproj.CRS, step: Step, portions: Iterable[Portion]
) -> Generator[Portion, None, None]:
    """Let workers do a step, as `do_here` does it; see `Each`."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    begun: dict[int, _Task] = {}
    done: dict[int, tuple[Path | None, Any]] = {}

    def tasks() -> Iterator[_Task]:
        for number, portion in enumerate(portions):
            task = _Task(step, number, folder, crs, portion.more, portion.polygons is not None)
            if portion.polygons is not None:
                write_portion(portion.polygons, task.given)
            begun[number] = task
            yield task

    def results() -> Generator[int, None, None]:
        """Put results into `done`; yields their numbers, in any order."""
        todo = tasks()
        try:
            with closing(map_pieces(client, _do, todo)) as found:
                for task, result in found:
                    if isinstance(result, WorkbenchError):
                        raise result
                    # a task that has killed several workers, or a worker without room on its disk
                    done[task.number] = _do(task) if isinstance(result, Exception) else result
                    yield task.number
        except ClusterError as error:
            _log.warning("The rest of the layer is made in this process. %s", error)
            for task in chain(list(begun.values()), todo):
                if task.number not in done:
                    done[task.number] = _do(task)
                    yield task.number

    turn = 0
    with closing(results()) as numbers:
        for _ in numbers:
            while turn in done:
                task = begun.pop(turn)
                path, more = done.pop(turn)
                yield Portion(None if path is None else read_portion(path, crs), more)
                for used in (task.given, path):
                    if used is not None:
                        used.unlink(missing_ok=True)
                turn += 1
