"""What comes back when known objects that have moved are the prompts: shifts of some metres.

    python benchmarks/prompts.py RASTER=LABELS --model tiny --shifts 0 2 4

The labels are shifted to the east, each asks for one mask, and the masks are compared with the
labels where they were. Two kinds of prompt are compared, and two ways to choose among the masks of
a prompt: by predicted IoU, and by predicted IoU times the IoU of the mask's box with the prompt's
box. An object whose prompt gets no mask above the floors counts with its shifted shape.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from workbench.candidates.table import SAM_RULES, Candidates
from workbench.polygons.build import shapes_in_window
from workbench.raster.open import open_scene
from workbench.raster.scene import Scene
from workbench.runs.prompts import PromptWindow, best_masks, read_prompts, windows_around
from workbench.segmenters.sam import SamSegmenter, sam_segmenter

KINDS = ("point", "box and point")
CHOICES = ("score", "score × box")


def chosen(
    found: Candidates, prompt: NDArray[np.int64], part: PromptWindow, choice: str
) -> list[int]:
    """The row of the best mask of each prompt that has one."""
    boxes = part.boxes if choice == "score × box" else None
    return best_masks(found, prompt, boxes).tolist()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raster", metavar="RASTER=LABELS")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shifts", nargs="+", type=float, default=[0, 2, 4])
    parser.add_argument("--side", type=int, default=1024, help="of a window, pixels")
    parser.add_argument("--floor", type=float, default=0.5, help="of predicted IoU and stability")
    given = parser.parse_args()
    raster, labels = given.raster.split("=")
    scene = open_scene(raster)
    truth = read_prompts(labels, [scene])
    rules = replace(SAM_RULES, pred_iou_floor=given.floor, stability_floor=given.floor)
    segmenter = sam_segmenter(given.model, rules=rules)
    segmenter.load()
    print("| shift | prompt | choice | masks | IoU ≥ 0.5 | IoU ≥ 0.75 | mean IoU | shifted shape |")
    print("|---|---|---|---|---|---|---|---|")
    for shift in given.shifts:
        moved = gpd.GeoSeries(
            truth.geometry.translate(shift * scene_units(scene)), crs=truth.crs, index=truth.index
        )
        rows(segmenter, scene, truth.geometry.to_numpy(), moved, shift, given.side)


def scene_units(scene: Scene) -> float:
    """Map units of a ground metre."""
    return abs(scene.transform.a) / scene.pixel_m


def rows(
    segmenter: SamSegmenter,
    scene: Scene,
    truth: NDArray,
    moved: gpd.GeoSeries,
    shift: float,
    side: int,
) -> None:
    """Print the rows of a shift."""
    as_given = ious_of(moved.to_numpy(), truth)
    result = {(kind, choice): moved.to_numpy().copy() for kind in KINDS for choice in CHOICES}
    n_masks = dict.fromkeys(result, 0)
    start = time.perf_counter()
    for part in windows_around(scene, moved, side):
        image, valid = scene.read(part.window)
        for kind in KINDS:
            boxes = part.boxes if kind == "box and point" else None
            found, prompt = segmenter.answer(image, part.points, boxes)
            if not len(found):
                continue
            shapes = shapes_in_window(found, scene, part.window, valid)
            for choice in CHOICES:
                for row in chosen(found, prompt, part, choice):
                    result[kind, choice][part.features[prompt[row]]] = shapes[row]
                    n_masks[kind, choice] += 1
    seconds = time.perf_counter() - start
    for (kind, choice), shapes in result.items():
        ious = ious_of(shapes, truth)
        print(
            f"| {shift:g} m | {kind} | {choice} | {n_masks[kind, choice]} of {len(truth)} "
            f"| {(ious >= 0.5).mean():.2f} | {(ious >= 0.75).mean():.2f} | {ious.mean():.3f} "
            f"| {as_given.mean():.3f} |",
            flush=True,
        )
    print(f"\n{seconds:.0f} s for all of them\n", flush=True)


def ious_of(shapes: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """Row by row."""
    return shapely.area(shapely.intersection(shapes, truth)) / shapely.area(
        shapely.union(shapes, truth)
    )


if __name__ == "__main__":
    main()
