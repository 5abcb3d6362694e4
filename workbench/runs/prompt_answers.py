"""The best usable mask for each prompt, from the stored answers."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco
from rasterio.features import rasterize

from workbench.candidates.offer import SIDES, TOUCH_PX
from workbench.candidates.rle import encode_masks
from workbench.candidates.select import passes
from workbench.candidates.store import Ledger, valid_masks
from workbench.candidates.table import Candidates
from workbench.polygons.build import shapes_in_window
from workbench.runs.plan import Plan
from workbench.runs.prompt_windows import AskedPrompts, PromptWindow
from workbench.runs.tile_stream import ScenePlan
from workbench.segmenters.at_points import MOST_MASKS, best_of_each

# a mask whose IoU with the old shape is lower is another object: on roofs moved by 2 m these masks
# were always worse than the old shapes (benchmarks/README.md)
LEAST = 0.2
# why there is no new shape
NO_MASK, LOW, CUT, ELSEWHERE, INVALID = (
    "no mask",
    "scores below the thresholds",
    "the mask reaches the edge of its window, or covers it",
    "the mask shares too little with the old shape",
    "no valid pixels",
)


def answers(plan: Plan, asked: AskedPrompts, why: NDArray[np.object_]) -> gpd.GeoDataFrame:
    """The best usable mask of each feature that has one; `why` is filled in for the others."""
    known: Ledger = plan.store.ledger()
    found = [frame_of(plan, np.empty(0, int), np.empty(0, object))]
    for part in asked.parts:
        for candidates, records in plan.store.read([part.index(t) for t in part.tiles], known):
            valid = valid_masks(records, candidates.rules)
            for record in records:
                window = asked.windows[record.index]
                some = candidates.of_tile(record.tile_row, record.tile_col)
                if record.status in ("failed", "nodata"):
                    failed = record.status == "failed"
                    why[window.features] = f"failed: {record.error}" if failed else INVALID
                    continue
                here = valid.get((record.tile_row, record.tile_col))
                found.append(_best(plan, part, window, some, here, why))
    return pd.concat(found, ignore_index=True)


def _best(
    plan: Plan,
    part: ScenePlan,
    window: PromptWindow,
    found: Candidates,
    valid: NDArray[np.bool_] | None,
    why: NDArray[np.object_],
) -> gpd.GeoDataFrame:
    """The best usable mask of each feature of a window, traced."""
    prompt = found.column("ordinal") // MOST_MASKS
    scored = passes(found, plan.job.limits)
    whole = scored & _whole(found, part, window, plan.job.max_area_share)
    fit, sound = found.column("pred_iou").astype(float), whole
    if plan.asked is not None and not plan.asked.prompts.are_points:
        shared = _ious(found, part, window, plan.asked.prompts.shapes)[
            prompt, np.arange(len(prompt))
        ]
        fit, sound = fit * shared, whole & (shared >= LEAST)
    why[window.features] = NO_MASK
    why[window.features[prompt]] = LOW
    why[window.features[prompt[scored]]] = CUT
    why[window.features[prompt[whole]]] = ELSEWHERE
    found, prompt = found.take(sound), prompt[sound]
    best = best_of_each(prompt, fit[sound])
    chosen, rows = found.take(best), window.features[prompt[best]]
    side = window.tile.window.height, window.tile.window.width
    valid = np.ones(side, bool) if valid is None else valid
    rles = chosen.table.column("rle").to_pylist()
    shapes, touches = shapes_in_window(rles, part.scene, window.tile.window, valid)
    there = ~shapely.is_empty(shapes)
    why[rows[~there]] = INVALID
    why[rows[there]] = ""
    made = frame_of(plan, rows[there], _largest_parts(shapes[there]))
    bounds = (chosen.boxes + (0, 0, 1, 1))[there]
    left, top = window.tile.window.col_off, window.tile.window.row_off
    on_frame = (bounds[:, :2] + (left, top) <= 0).any(axis=1)
    on_frame |= (bounds[:, 2:] + (left, top) >= (part.scene.width, part.scene.height)).any(axis=1)
    pixel = abs(part.scene.transform.a * part.scene.transform.e) / part.scene.scale**2
    return made.assign(
        confidence=chosen.column("pred_iou")[there].astype(float),
        stability=chosen.column("stability_score")[there].astype(float),
        area_px=np.rint(shapely.area(made.geometry.to_numpy()) / pixel).astype(np.int64),
        at_edge=on_frame | touches[there],
        scale=part.scene.scale,
    )


def _ious(
    found: Candidates, part: ScenePlan, window: PromptWindow, shapes: NDArray[np.object_]
) -> NDArray[np.float64]:
    """IoU of each feature's polygon with each mask of its window, `(features, masks)`."""
    size = [window.tile.window.height, window.tile.window.width]
    counts = found.table.column("rle").to_pylist()
    if not counts:
        return np.zeros((len(window.features), 0))
    to_map = part.scene.window_transform(window.tile.window)
    old = [
        encode_masks(rasterize([shape], size, transform=to_map, dtype=np.uint8).view(bool)[None])[0]
        for shape in shapes[window.features]
    ]
    ours, theirs = ([{"size": size, "counts": rle} for rle in some] for some in (old, counts))
    return np.asarray(coco.iou(ours, theirs, [0] * len(theirs)))


def frame_of(plan: Plan, rows: NDArray[np.intp], shapes: NDArray[np.object_]) -> gpd.GeoDataFrame:
    """Labels of some features, with the columns that `clean` needs, and no scores yet."""
    n = len(rows)
    return gpd.GeoDataFrame(
        {
            "row": rows.astype(np.int64),
            "confidence": np.full(n, np.nan),
            "stability": np.full(n, np.nan),
            "area_px": np.zeros(n, np.int64),
            "at_edge": np.zeros(n, bool),
            "scale": np.ones(n, np.int64),
        },
        geometry=shapes,
        crs=plan.crs,
    )


def _whole(
    found: Candidates, part: ScenePlan, window: PromptWindow, most: float | None
) -> NDArray[np.bool_]:
    """Whether masks `(n,)` end inside the window or with the scene, and do not fill it."""
    place, boxes = window.tile.window, found.boxes
    x0, y0, x1, y1 = boxes.T
    right, bottom = part.scene.width - place.col_off, part.scene.height - place.row_off
    ends = (x0 < TOUCH_PX, y0 < TOUCH_PX,
            x1 >= min(place.width, right) - TOUCH_PX,
            y1 >= min(place.height, bottom) - TOUCH_PX)  # fmt: skip
    of_scene = (place.col_off <= 0, place.row_off <= 0, right <= place.width,
                bottom <= place.height)  # fmt: skip
    cut = np.zeros(len(found), bool)
    for touches, is_end in zip(ends, of_scene, strict=True):
        cut |= touches & (not is_end)
    if most is not None:
        cut |= found.column("area_px") > most * min(place.width, right) * min(place.height, bottom)
        cut |= np.sum(ends, axis=0) >= SIDES
    return ~cut


def _largest_parts(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """The largest part of each mask: a prompt stands for one object."""
    parts, of = shapely.get_parts(shapes, return_index=True)
    order = np.lexsort((-shapely.area(parts), of))
    _, first = np.unique(of[order], return_index=True)
    return np.asarray(shapely.multipolygons(parts[order[first]], indices=np.arange(len(first))))
