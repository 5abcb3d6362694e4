"""Runs that happen in processes of their own, so that they can be killed, stopped and starved."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_job import SCRIPT

from workbench import Job


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Job], subprocess.Popen[str]]]:
    """Start a job in a process of its own; whatever is left of it goes with the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(job: Job) -> subprocess.Popen[str]:
        path = tmp_path / f"job-{len(started)}.yaml"
        path.write_text(job.to_yaml(), encoding="utf-8")
        started.append(
            subprocess.Popen(
                [sys.executable, SCRIPT, path],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()
