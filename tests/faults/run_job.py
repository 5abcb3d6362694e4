"""Run a job in a process of its own, which can be killed: python run_job.py JOB.yaml."""

import sys
from pathlib import Path

from workbench import Job, run

SCRIPT = Path(__file__)


if __name__ == "__main__":
    run(Job.from_yaml(Path(sys.argv[1])))
