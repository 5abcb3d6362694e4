"""Time models on one tile, from pixels to candidates.

python benchmarks/throughput.py --models tiny vit_b
"""

import argparse
import platform
import resource
import subprocess
import sys
import time
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.sam import MODELS, SamSegmenter, load_model, resolve_device, resolve_precision
from workbench.sam.models import Embedded, Sam
from workbench.sample import DEMO_RESOLUTION_M, DEMO_SEED, make_sample

TILE_PX = 1024
SURVIVING = 0.1  # share of SAM's proposals that pass the predicted-IoU floor on usual imagery


def build(model: str) -> Sam:
    """Load the weights that are shipped; build others at random, which cost the same time."""
    weights = MODELS[model].weights
    if isinstance(weights, Embedded):
        return load_model(model, weights.fetch())
    torch.manual_seed(0)
    return MODELS[model].build()


def segmenter_for(model: str, image: NDArray[np.uint8], points_per_side: int) -> SamSegmenter:
    """Set up a model; of random weights, with a floor that lets a realistic share pass."""
    device = resolve_device("auto")
    make = partial(
        SamSegmenter,
        partial(build, model),
        model,
        "",
        device=device,
        precision=resolve_precision("auto", device),
        stability_floor=0.0,
    )
    if isinstance(MODELS[model].weights, Embedded):
        return make(points_per_side=points_per_side, stability_floor=0.5)
    # no suppression: every proposal of a small grid is wanted
    few = make(points_per_side=4, pred_iou_floor=-np.inf, box_nms_thresh=1.0).propose(image)
    floor = float(np.quantile(few.column("pred_iou"), 1 - SURVIVING))
    return make(points_per_side=points_per_side, pred_iou_floor=floor)


def measure(model: str, points_per_side: int) -> str:
    """Return a row of the table, for one model in this process."""
    image = make_sample(TILE_PX, DEMO_SEED, resolution_m=DEMO_RESOLUTION_M).rgb
    segmenter = segmenter_for(model, image, points_per_side)
    segmenter.load()
    start = time.perf_counter()
    candidates = segmenter.propose(image)
    seconds = time.perf_counter() - start
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"| {model} | {segmenter.device} | {seconds:.1f} | {len(candidates)} | {memory_gb:.2f} |"


def main() -> None:
    """Time each model in a process of its own, which shows how much memory it takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["tiny", "vit_b"])
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(measure(given.models[0], given.points_per_side))
        return
    machine = platform.processor() or platform.machine()
    print(f"{torch.get_num_threads()} threads, {machine}, torch {torch.__version__}\n")
    print("| model | device | s per tile | candidates | peak GB |")
    print("|---|---|---|---|---|", flush=True)
    for model in given.models:
        command = [sys.executable, __file__, "--here", "--models", model]
        subprocess.run([*command, "--points-per-side", str(given.points_per_side)], check=True)


if __name__ == "__main__":
    main()
