"""Run a job in a process of its own, which can be killed: python run_job.py JOB.yaml."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from workbench import Job, run

SCRIPT = Path(__file__)


def until(happened: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)


if __name__ == "__main__":
    run(Job.from_yaml(Path(sys.argv[1])))
