"""Time a tile on a quiet machine, and on one whose cores have other work as well.

    python benchmarks/busy.py
    python benchmarks/busy.py --models tiny mobile_sam vit_b --points-per-side 8

The other work is made here: one process for each core that computes without a pause. Quiet and busy
tiles take turns. A machine that is busy already shows smaller ratios, so the table begins with its
load. Weights that do not come with the package are random, which costs the same time; a tenth of
their proposals pass, as on usual imagery.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np
import torch

from workbench._support.cores import usable_cores
from workbench.candidates.table import Rules
from workbench.samples.demo import DEMO_RESOLUTION_M, DEMO_SEED, make_sample
from workbench.segmenters.sam import MODELS, SamSegmenter, load_model
from workbench.segmenters.weights import Embedded

TILE_PX = 1024
SURVIVING = 0.1
BURN = "while True: sum(range(100_000))"


@contextmanager
def other_work(processes: int) -> Iterator[None]:
    """Keep some cores busy."""
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


def loaded(model: str, points_per_side: int, image: np.ndarray) -> SamSegmenter:
    """Load a model, or build it at random with a floor that a tenth of its masks pass."""
    entry = MODELS[model]
    if isinstance(entry.weights, Embedded):
        sam = load_model(model, entry.weights.fetch())
    else:
        torch.manual_seed(0)
        sam = entry.build().eval()

    def engine(points: int, floor: float) -> SamSegmenter:
        rules = Rules(TILE_PX, TILE_PX, floor, 0.0, box_nms_thresh=1.0)
        return SamSegmenter(lambda: sam, model, "", points, rules, network_of=entry.network_of)

    scores = engine(4, -np.inf).propose(image).column("pred_iou")
    segmenter = engine(points_per_side, float(np.quantile(scores, 1 - SURVIVING)))
    segmenter.load()
    return segmenter


def seconds(segmenter: SamSegmenter, image: np.ndarray) -> float:
    """Time one tile."""
    start = time.perf_counter()
    segmenter.propose(image)
    return time.perf_counter() - start


def main() -> None:
    """Print one row for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["tiny"])
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--busy", type=int, default=usable_cores(), help="processes beside it")
    given = parser.parse_args()
    image = make_sample(TILE_PX, DEMO_SEED, resolution_m=DEMO_RESOLUTION_M).rgb
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"{usable_cores()} cores, {torch.get_num_threads()} threads, load before: {load}\n")
    print(
        "| model | prompts | quiet s | busy s | times slower |\n|---|---|---|---|---|", flush=True
    )
    for model in given.models:
        segmenter = loaded(model, given.points_per_side, image)
        quiet, busy = [], []
        for _ in range(given.turns):
            quiet.append(seconds(segmenter, image))
            with other_work(given.busy):
                time.sleep(0.5)  # until they run
                busy.append(seconds(segmenter, image))
        each = (" ".join(f"{value:.1f}" for value in sorted(row)) for row in (quiet, busy))
        print(
            f"| {model} | {given.points_per_side}² | {' | '.join(each)} "
            f"| {median(busy) / median(quiet):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
