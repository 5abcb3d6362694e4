"""What threshold advice from the labels of a third of the tiles is worth on the other tiles.

    python benchmarks/advice.py DIRECTORY/RASTER=LABELS … --models classic tiny --runs FOLDER

Rasters of one folder are one campaign. Many random thirds are drawn; the advice of each is scored
on the tiles that it has not seen, beside the default thresholds and the best there possible.
"""

from __future__ import annotations

import argparse
import time
from itertools import groupby
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd

from workbench import Job, run
from workbench.candidates.select import Thresholds
from workbench.errors import WorkbenchError
from workbench.evaluation.advice import advise
from workbench.evaluation.thresholds import best_thresholds, pool_planes
from workbench.review.tile_planes import tile_planes
from workbench.runs.result import read_run

# of `tiny`, whose scores are low; the other models are only asked for less than they would give
FLOORS = {"pred_iou_floor": 0.3, "stability_floor": 0.3}
HEADER = """\
| campaign | model | tiles | references | F1 at the defaults | as advised | best possible \
| held out, as told | a change advised | s for the plane |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labelled", nargs="+", metavar="RASTER=LABELS")
    parser.add_argument("--models", nargs="+", default=["classic"])
    parser.add_argument("--runs", type=Path, default=Path("runs/advice"), help="kept between calls")
    parser.add_argument("--tile-size", type=int, default=512)
    parser.add_argument("--draws", type=int, default=100)
    given = parser.parse_args()
    pairs = [tuple(map(Path, pair.split("=", 1))) for pair in given.labelled]
    print(HEADER, flush=True)
    for folder, group in groupby(pairs, key=lambda pair: pair[0].parent):
        campaign = list(group)
        for model in given.models:
            planes: list[pd.DataFrame] = []
            seconds = 0.0
            for raster, labels in campaign:
                out_dir = given.runs / model / raster.stem
                job = Job.create(source=str(raster), out_dir=str(out_dir), model=model,
                                 tile_size=given.tile_size, **FLOORS)  # fmt: skip
                if not (out_dir / "report.html").exists():
                    run(job)
                finished = read_run(out_dir)
                start = time.perf_counter()
                reference = gpd.read_file(labels)
                planes += tile_planes(finished, reference, finished.tiles["tile"]).values()
                seconds += time.perf_counter() - start
            told = row(folder.name, model, planes, job.thresholds, given.draws, seconds)
            print(told, flush=True)


def row(
    name: str, model: str, planes: list[pd.DataFrame], default: Thresholds, draws: int,
    seconds: float,
) -> str:  # fmt: skip
    """Score the advice of random thirds of the tiles on the others."""
    rng = np.random.default_rng(0)
    results, changed = [], 0
    while len(results) < draws:
        seen = rng.permutation(len(planes)) < len(planes) // 3
        others = pool_planes([p for p, here in zip(planes, seen, strict=True) if not here])
        try:
            advice = advise([p for p, here in zip(planes, seen, strict=True) if here], default)
        except WorkbenchError:  # no labels in these tiles
            continue
        changed += advice.is_change
        at = others.set_index(["pred_iou_thresh", "stability_score_thresh"])["f1"]
        results.append(
            (
                at[default.pred_iou_thresh, default.stability_score_thresh],
                at[advice.advised.pred_iou_thresh, advice.advised.stability_score_thresh],
                best_thresholds(others)["f1"],
                advice.held_out.f1,
            )
        )
    means, spread = np.mean(results, axis=0), np.std(results, axis=0)
    rates = " | ".join(f"{m:.2f} ± {s:.2f}" for m, s in zip(means, spread, strict=True))
    n = sum(int(plane["n_reference"].iloc[0]) for plane in planes)
    return (f"| {name} | {model} | {len(planes)} | {n} | {rates} | {changed / draws:.0%} "
            f"| {seconds:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
