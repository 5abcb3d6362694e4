"""A disk that fills up in the middle of a run, at the file that one wants."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from known_runs import equal_layers, files_in

from workbench import Job, run
from workbench._support import files as atomic
from workbench.errors import OutputError, WorkbenchError
from workbench.runs.result import Run

PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes that a tmpfs gives at a time
DISK_PAGES = 2048
# written in one pass: any of them may be the first without room, and then none is there
TOGETHER = {"prelabels.gpkg", "prelabels.geojson", "prelabels.parquet", "prelabels.qml"}


class NotPermittedError(Exception):
    """Only root may mount a disk."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small disk in memory; raises `NotPermittedError` where one may not."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_PAGES * PAGE}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        raise NotPermittedError("a disk of its own may not be mounted here")
    try:
        yield folder
    finally:
        # lazily: a kept error keeps the frames it came from, and with them their files open
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass(frozen=True)
class Starved:
    """A run that had too little room, and its resume when there was enough."""

    step: str  # the first file that had no room
    error: WorkbenchError
    there: frozenset[str]  # the files that it has left, by their path in the run folder
    resumed: Run


def pages_of(undisturbed: Run) -> dict[str, int]:
    """How many pages each file of a run takes."""
    return {
        path.relative_to(undisturbed.folder).as_posix(): -(-path.stat().st_size // PAGE)
        for path in sorted(files_in(undisturbed.folder))
    }


def starve(job: Job, disk: Path, step: str, pages: int) -> Starved:
    """Run a job on a disk that fills up in the middle of a file, then again with room enough.

    As the run begins to write `step`, which takes so many pages, all but half of them are taken.
    """
    folder, filler = Path(job.out_dir), disk / "filler"
    shutil.rmtree(folder, ignore_errors=True)
    writing = atomic.naming

    def filling(path: Path) -> AbstractContextManager[None]:
        if path == folder / step and not filler.exists():
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - pages // 2 * PAGE))
        return writing(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "naming", filling)
        try:
            run(job)
        except WorkbenchError as failure:
            error = failure
        else:
            raise AssertionError(f"there was room for {step}")
    there = frozenset(path.relative_to(folder).as_posix() for path in files_in(folder))
    filler.unlink()
    return Starved(step, error, there, run(job))


def is_well_told(starved: Starved) -> bool:
    """Whether the error names the file, the cause and the remedy, and no half of it is there."""
    words = str(starved.error)
    names = TOGETHER if starved.step in TOGETHER else {starved.step}
    return (
        isinstance(starved.error, OutputError)
        and any(f"{name} cannot be written: its disk is full" in words for name in names)
        and "Free some space" in words
        and not any(name in names or Path(name).name[0] == "." for name in starved.there)
    )


def is_identical(starved: Starved, undisturbed: Run) -> bool:
    """Whether the resumed run has the files and the layer of the undisturbed one."""
    names = [
        {path.relative_to(done.folder).as_posix() for path in files_in(done.folder)}
        for done in (starved.resumed, undisturbed)
    ]
    return names[0] == names[1] and equal_layers(starved.resumed.layer, undisturbed.layer)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, which anyone may do."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
