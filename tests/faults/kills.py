"""Runs that are killed at one moment or another, and resumed."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from known_runs import equal_layers, files_in, left_over
from run_job import SCRIPT

from workbench import Job, run
from workbench.runs.result import Run


@dataclass(frozen=True)
class Undisturbed:
    """A run in a process of its own that nobody has killed."""

    result: Run
    steps: tuple[str, ...]  # see `run_job`
    seconds: float  # without the imports


@dataclass(frozen=True)
class Resumed:
    """A run that was killed, and has been run again to its end."""

    identical: bool  # to the undisturbed run: the layer, and the names of all files
    orphans: tuple[Path, ...]  # temporary files that are left
    seconds: float


def begin(job: Job, step: str = "") -> subprocess.Popen[str]:
    """Start a job in a process of its own, which kills itself at a step; returns once it runs."""
    path = Path(f"{job.out_dir}.yaml")
    path.write_text(job.to_yaml(), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, SCRIPT, path, step],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


def undisturbed(job: Job) -> Undisturbed:
    """Run a job to its end, without a kill."""
    process = begin(job)
    start = time.monotonic()
    steps, words = process.communicate()
    assert process.returncode == 0, words
    return Undisturbed(run(job), tuple(steps.splitlines()), time.monotonic() - start)


def kill_at_step(job: Job, step: str) -> bool:
    """Let a run kill itself at a step; false if it did not come to it."""
    process = begin(job, step)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def kill_after(job: Job, seconds: float) -> bool:
    """Kill a run so many seconds after its beginning; false if it was done by then."""
    process = begin(job)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def resume(job: Job, expected: Run) -> Resumed:
    """Run a job again that has been killed."""
    start = time.monotonic()
    resumed = run(job)
    seconds = time.monotonic() - start
    same = equal_layers(resumed.layer, expected.layer) and names(resumed) == names(expected)
    return Resumed(same, tuple(left_over(resumed.folder)), seconds)


def names(done: Run) -> set[str]:
    """The files of a run folder; of its candidates only whether there are any."""
    paths = {path.relative_to(done.folder) for path in files_in(done.folder)}
    return {path.parts[0] for path in paths}
