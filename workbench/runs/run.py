"""Run a job from its parameters to its files."""

from __future__ import annotations

from contextlib import closing

from tqdm import tqdm

from workbench.runs.finish import finish
from workbench.runs.job import Job
from workbench.runs.plan import pending, prepare
from workbench.runs.result import Run
from workbench.runs.segment import segment


def run(job: Job) -> Run:
    """Run a job and return the finished run.

    Tiles whose candidates are stored in the run folder are not computed again.

    Args:
        job: the parameters.

    Returns:
        The run: its folder, the layer in it and the ledger of its tiles.

    Raises:
        WorkbenchError: before any long work, if the job cannot be done.
        RunFailedError: after all files are written, if some tiles failed.

    Example:
        >>> result = run(Job(source="ortho.tif", out_dir="runs/ortho"))
        >>> len(result.layer)
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
