"""Run a job in a process of its own, which can be killed: python run_job.py JOB.yaml [STEP].

Prints a line when the run begins, and then its steps: what it makes, renames and removes in its run
folder, as `os.rename prelabels.gpkg`. Kills itself before the first that is STEP.
"""

import os
import re
import signal
import sys
from pathlib import Path

from workbench import Job, run
from workbench.runs import segment as pipeline

SCRIPT = Path(__file__)
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def kill_at(deadly: str, folder: str) -> list[str]:
    """Kill this process before a step; returns the list that the steps are noted in."""
    steps: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS:
            return
        if event == "open" and not int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
            return
        path = str(arguments[event == "os.rename"])
        if path.startswith(folder):
            # the names of temporary files begin with their process
            name = re.sub(r"\.tmp-\w+-\d+-", ".tmp-", path.removeprefix(folder).strip("/"))
            steps.append(f"{event} {name}")
            if steps[-1] == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return steps


if __name__ == "__main__":
    job = Job.from_yaml(Path(sys.argv[1]))
    pipeline.FLUSH_TILES = 3  # several files of candidates
    steps = kill_at(sys.argv[2] if len(sys.argv) > 2 else "", str(job.out_dir))
    print("begins", flush=True)
    run(job)
    print("\n".join(steps))
