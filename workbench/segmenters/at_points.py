"""What a model finds at given places: its answers to prompts, or the best of what it proposes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates.table import Candidates
from workbench.segmenters.protocol import Segmenter

MOST_MASKS = 8  # of a prompt


@runtime_checkable
class TakesPrompts(Protocol):
    """A model that can be asked for the object at a place."""

    def answer(
        self,
        image: NDArray[np.uint8],
        points: NDArray[np.float64],
        boxes: NDArray[np.float64] | None = None,
    ) -> tuple[Candidates, NDArray[np.int64]]:
        """The masks of prompts on an image, and the prompt of each."""


def answer(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    points: NDArray[np.float64],
    boxes: NDArray[np.float64] | None = None,
) -> tuple[Candidates, NDArray[np.int64]]:
    """Return the masks of prompts on an RGB image `(h, w, 3)`, and the prompt of each.

    Args:
        segmenter: Any model. One that takes no prompts proposes masks for the whole image, and
            those count that hold the point. So do those of a model that is told no box.
        image: The image.
        points: A point on each object, `(n, 2)` XY, pixels of the image.
        boxes: A box around each, `(n, 4)` XYXY, if the model is to be told.

    Returns:
        Masks above the floors, at most `MOST_MASKS` for each prompt, and `(m,)` prompts.
    """
    if isinstance(segmenter, TakesPrompts):
        found, prompt = segmenter.answer(image, points, boxes)
        if boxes is None:
            holds = _hold(found, points[prompt])
            found, prompt = found.take(holds), prompt[holds]
    else:
        found = segmenter.propose(image)
        row, prompt = _at(found, points)
        found = found.take(row)
    worst_first = np.lexsort((np.arange(len(prompt)), -fits(found, prompt, boxes), prompt))
    place = np.arange(len(prompt)) - np.searchsorted(prompt[worst_first], prompt[worst_first])
    kept = np.sort(worst_first[place < MOST_MASKS])
    return found.take(kept), np.asarray(prompt[kept], np.int64)


def fits(
    found: Candidates, prompt: NDArray[np.int64], boxes: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """How well each mask `(m,)` answers its prompt: its predicted IoU.

    With `boxes` `(n, 4)`, times the IoU of the mask's box with that of its prompt.
    """
    scores = found.column("pred_iou").astype(np.float64)
    if boxes is not None and len(scores):
        ours = shapely.box(*(found.boxes + (0, 0, 1, 1)).astype(np.float64).T)
        theirs = shapely.box(*boxes[prompt].T)
        scores *= shapely.area(shapely.intersection(ours, theirs))
        scores /= shapely.area(shapely.union(ours, theirs))
    return np.asarray(scores)


def best_of_each(prompt: NDArray[np.int64], fit: NDArray[np.float64]) -> NDArray[np.intp]:
    """The row `(m,)` with the best fit for each prompt that has one, in the prompts' order."""
    order = np.lexsort((np.arange(len(prompt)), -fit, prompt))
    _, first = np.unique(prompt[order], return_index=True)
    rows: NDArray[np.intp] = order[first]
    return rows


def _at(
    found: Candidates, points: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs `(m,)` of a mask and a point that lies in it."""
    masks, dots = _as_coco(found, points)
    if not masks or not dots:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    shared = np.asarray(coco.iou(masks, dots, [0] * len(dots)))
    row, prompt = np.nonzero(shared)
    return row.astype(np.int64), prompt.astype(np.int64)


def _hold(found: Candidates, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each mask `(m,)` holds its own point of `(m, 2)`."""
    pairs = zip(*_as_coco(found, points), strict=True)
    return np.array([coco.iou([mask], [dot], [0]).any() for mask, dot in pairs], bool)


def _as_coco(found: Candidates, points: NDArray[np.float64]) -> tuple[list[Any], list[Any]]:
    """Masks, and pixels that hold points `(n, 2)`, both as run lengths."""
    height, width = found.rules.height, found.rules.width
    pixels = np.floor(points).clip(0, (width - 1, height - 1)).astype(int)
    pixel_boxes = np.column_stack((pixels, np.ones_like(pixels))).astype(float)
    dots = coco.frPyObjects(pixel_boxes, height, width) if len(pixels) else []
    rles = found.table.column("rle").to_pylist()
    return [{"size": [height, width], "counts": rle} for rle in rles], dots
