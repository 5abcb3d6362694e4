"""Runs of many rasters of one small tile: the time for each must not grow with their number.

    python benchmarks/many.py [100 400 1600]

The Segmenter is a stand-in that proposes one mask, so that what is measured is everything around
the network: opening, storing, the layer and the files.
"""

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from known_objects import TRANSFORM, KnownObjects, write_labels

from workbench import Job
from workbench._support.cores import usable_cores
from workbench.runs import choose
from workbench.runs.finish import finish
from workbench.runs.plan import prepare
from workbench.runs.segment import segment

NUMBERS = (100, 400, 1600)
SIDE = 96


def rasters(folder: Path, n: int) -> None:
    """Write rasters of one tile with one object each, side by side."""
    labels = np.zeros((SIDE, SIDE), int)
    labels[20:40, 20:40] = 1
    columns = int(np.ceil(np.sqrt(n)))
    for i in range(n):
        place = TRANSFORM.translation(2 * SIDE * (i % columns), 2 * SIDE * (i // columns))
        write_labels(folder / f"{i:05}.tif", labels, TRANSFORM @ place)


def measure(n: int) -> tuple[list[float], float]:
    """Seconds to plan, segment and finish a run of so many rasters, and of processor time in all.

    On a busy machine only the processor time tells whether the time for each raster grows.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rasters").mkdir()
        rasters(folder / "rasters", n)
        job = Job.create(
            source=str(folder / "rasters"), out_dir=str(folder / "run"), tile_size=SIDE,
            min_area_px=0, simplify_m=None,
        )  # fmt: skip
        choose.segmenter_for = lambda job, before: KnownObjects(job.rules)
        times, began = [time.perf_counter()], time.process_time()
        with closing(prepare(job)) as plan:
            times.append(time.perf_counter())
            assert len(list(segment(plan))) == n
            times.append(time.perf_counter())
            assert len(finish(plan).layer) == n
            times.append(time.perf_counter())
        processor = time.process_time() - began
    return np.diff(times).tolist(), processor


if __name__ == "__main__":
    print(f"{usable_cores()} cores\n")
    print("| rasters | plan | segment | finish | in all | a raster | of it processor |")
    print("|---|---|---|---|---|---|---|")
    for n in map(int, sys.argv[1:] or NUMBERS):
        seconds, processor = measure(n)
        parts = " | ".join(f"{part:.1f} s" for part in seconds)
        each, busy = 1000 * sum(seconds) / n, 1000 * processor / n
        print(
            f"| {n:,} | {parts} | {sum(seconds):.1f} s | {each:.0f} ms | {busy:.0f} ms |",
            flush=True,
        )
