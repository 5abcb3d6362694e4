"""A job, done."""

from __future__ import annotations

from contextlib import closing

from tqdm import tqdm

from workbench.runs.finish import finish
from workbench.runs.job import Job
from workbench.runs.plan import pending, prepare
from workbench.runs.result import Run
from workbench.runs.segment import segment


def run(job: Job) -> Run:
    """Do all that a job asks for and return what is in its run folder.

    Raises a `WorkbenchError` before any long work if the job cannot be done, and `RunFailedError`
    after all files are written if some tiles failed.
    """
    with closing(prepare(job)) as plan:
        done = plan.n_tiles - len(pending(plan))  # by an earlier run
        with (
            closing(segment(plan)) as tiles,
            tqdm(total=plan.n_tiles, initial=done, desc="tiles", unit="tile") as bar,
        ):
            for _ in tiles:
                bar.update()
        return finish(plan)
