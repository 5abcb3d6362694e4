"""Run a job from its parameters to its files."""

from __future__ import annotations

import sys
import time
from contextlib import closing

from workbench._support.progress import tqdm
from workbench.runs.finish import finish
from workbench.runs.forecast import MEASURED_TILES, Forecast, work_of
from workbench.runs.job import Job
from workbench.runs.plan import pending, prepare
from workbench.runs.result import Run
from workbench.runs.segment import segment


def run(job: Job) -> Run:
    """Do a job and write its run folder.

    Tiles that an earlier run has stored in the same folder are not computed again.

    Args:
        job: All parameters. Relative paths start in the current folder.

    Returns:
        The finished run. Its layer is in the working CRS, areas are ground square metres.

    Raises:
        WorkbenchError: The job cannot be done; raised before any long work.
        RunFailedError: Some tiles failed, or some of several rasters cannot be read; raised after
            all files are written.

    Example:
        >>> made = run(Job(source="ortho.tif", out_dir="runs/ortho"))
        >>> made.layer.to_file("ortho.gpkg")
    """
    with closing(prepare(job)) as plan:
        done = plan.n_tiles - len(pending(plan))  # by an earlier run
        tqdm.write(work_of(plan, done), file=sys.stderr)
        for note in () if plan.shown is None else plan.shown.notes:
            tqdm.write(note, file=sys.stderr)
        with (
            closing(segment(plan)) as tiles,
            tqdm(total=plan.n_tiles, initial=done, desc="tiles", unit="tile") as bar,
        ):
            start, left = time.monotonic(), plan.n_tiles - done
            sizes: list[int] = []
            for tile in tiles:
                bar.update()
                sizes.append(tile.candidates.table.nbytes)
                if len(sizes) == MEASURED_TILES < left:
                    seconds = (time.monotonic() - start) / MEASURED_TILES
                    rest = Forecast(seconds, sum(sizes) / MEASURED_TILES)
                    text = rest.text(left - MEASURED_TILES)
                    bar.write(f"after {MEASURED_TILES} tiles, left: {text}", file=sys.stderr)
        return finish(plan)
