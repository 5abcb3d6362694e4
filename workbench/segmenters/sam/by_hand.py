"""Answers to a person's clicks and boxes on one tile, whose features are kept between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from workbench.segmenters.defaults import defaults_of
from workbench.segmenters.sam.network import Ask, InputFrame, Prompts
from workbench.segmenters.sam.segmenter import SamSegmenter

SURE = 0.001  # how far from 0 and 1 a mask prompt is: logits of about 7, as networks give


@dataclass(frozen=True, eq=False)
class HandAnswer:
    """The mask `(h, w)` that fits the clicks best, and its predicted IoU; it may be empty."""

    mask: NDArray[np.bool_]
    pred_iou: float


@dataclass(frozen=True, eq=False)
class EncodedTile:
    """A tile that a network has seen: it can be asked about it again and again.

    Encoding takes as long as a tile of a run, an answer a fraction of a second.

    Example:
        >>> tile = EncodedTile.of(sam_segmenter("tiny"), image)
        >>> tile.answer(np.array([[300.0, 200.0]]), np.array([True])).mask.sum()
    """

    segmenter: SamSegmenter
    frame: InputFrame
    ask: Ask

    @classmethod
    @torch.inference_mode()
    def of(cls, segmenter: SamSegmenter, image: NDArray[np.uint8]) -> EncodedTile:
        """Encode an RGB tile `(h, w, 3)`."""
        height, width = image.shape[:2]
        frame = InputFrame(segmenter.loaded.network.side, (height, width))
        return cls(segmenter, frame, segmenter.loaded.look(frame, image))

    @torch.inference_mode()
    def answer(
        self,
        points: NDArray[np.float64],
        on_object: NDArray[np.bool_],
        box: NDArray[np.float64] | None = None,
        before: NDArray[np.bool_] | None = None,
    ) -> HandAnswer:
        """Return the mask for some clicks on one object, and beside it.

        Args:
            points: `(n, 2)` XY, pixels of the tile; may be empty with a box or a mask.
            on_object: `(n,)`: whether a click is on the object, or on what does not belong to it.
            box: `(4,)` XYXY around the object.
            before: `(h, w)`: a mask of the object that the clicks correct.

        A model that does not join clicks is asked for each alone, and the masks are joined with
        each other and with the mask before. Those of clicks beside the object are taken away.
        """
        if defaults_of(self.segmenter.name).joins_clicks:
            return self._together(points, on_object, box, before)
        if box is not None and not on_object.any():
            points = np.vstack([points, (box[:2] + box[2:]) / 2])
            on_object = np.append(on_object, True)
        return self._one_by_one(points, on_object, box, before)

    def _together(
        self,
        points: NDArray[np.float64],
        on_object: NDArray[np.bool_],
        box: NDArray[np.float64] | None,
        before: NDArray[np.bool_] | None,
    ) -> HandAnswer:
        around = placed = labels = None
        if box is not None:
            around = self.segmenter.loaded.placed(self.frame, box.reshape(1, 2, 2)).reshape(1, 4)
        if len(points):
            placed = self.segmenter.loaded.placed(self.frame, points[None])
            labels = torch.as_tensor(on_object[None].astype(np.int32), device=placed.device)
        mask = None if before is None else self._as_prompt(before)
        ious, masks = self._masks(Prompts(placed, labels, around, mask))
        best = _best(ious[0], masks[0], points, on_object, box, before)
        return HandAnswer(masks[0][best], float(ious[0][best]))

    def _one_by_one(
        self,
        points: NDArray[np.float64],
        on_object: NDArray[np.bool_],
        box: NDArray[np.float64] | None,
        before: NDArray[np.bool_] | None,
    ) -> HandAnswer:
        mask = np.zeros(self.frame.original_size, bool) if before is None else before.copy()
        if not mask.any() and not on_object.any():
            return HandAnswer(mask, 0.0)
        labels = torch.ones((len(points), 1), dtype=torch.int)
        placed = self.segmenter.loaded.placed(self.frame, points[:, None])
        ious, masks = self._masks(Prompts(placed, labels.to(placed.device)))
        scores = []
        for i in np.flatnonzero(on_object):
            found, iou = _holding(points[i], masks[i], ious[i])
            best = _best(iou, found, points, on_object, box)
            mask |= found[best]
            scores.append(float(iou[best]))
        for i in np.flatnonzero(~on_object):
            x, y = _pixel(points[i], mask)
            if mask[y, x]:
                found, iou = _holding(points[i], masks[i], ious[i])
                best = _best(iou, found, points, ~on_object, None)
                mask &= ~found[best]
                scores.append(float(iou[best]))
        return HandAnswer(mask, min(scores, default=0.0))

    def _as_prompt(self, mask: NDArray[np.bool_]) -> Tensor:
        """A mask `(h, w)` as logits, `(1, 1, side / 4, side / 4)`."""
        side, (height, width) = self.frame.side, self.frame.input_size
        share = torch.as_tensor(mask, dtype=torch.float32)[None, None]
        share = interpolate(share, (height, width), mode="area")
        share = avg_pool2d(pad(share, (0, side - width, 0, side - height)), 4)
        return share.logit(SURE).to(self.segmenter.device)

    def _masks(self, prompts: Prompts) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Predicted IoUs `(b, m)` and masks `(b, m, h, w)`."""
        with self.segmenter.loaded.autocast():
            ious, logits_of = self.ask(prompts)
            low_res = logits_of(torch.ones_like(ious, dtype=torch.bool)).float()
        masks = self.frame.enlarged(low_res[None])[0] > self.segmenter.loaded.network.mask_threshold
        return ious.float().cpu().numpy(), masks.unflatten(0, ious.shape).cpu().numpy()


def _holding(
    point: NDArray[np.float64], masks: NDArray[np.bool_], ious: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The masks `(m, h, w)` that hold a click, with their predicted IoUs; all if none does."""
    x, y = _pixel(point, masks[0])
    here = masks[:, y, x]
    return (masks[here], ious[here]) if here.any() else (masks, ious)


def _best(
    ious: NDArray[np.float32],
    masks: NDArray[np.bool_],
    points: NDArray[np.float64],
    on_object: NDArray[np.bool_],
    box: NDArray[np.float64] | None,
    before: NDArray[np.bool_] | None = None,
) -> int:
    """The mask that most clicks agree with; of several the best one, most like box and mask."""
    agree = np.zeros(len(masks))
    for point, inside in zip(points, on_object, strict=True):
        x, y = _pixel(point, masks[0])
        agree += masks[:, y, x] == inside
    fit = ious.astype(float)
    if box is not None:
        x0, y0, x1, y1 = np.rint(box).astype(int)
        there = masks[:, max(y0, 0) : y1, max(x0, 0) : x1].sum((1, 2))
        union = masks.sum((1, 2)) + max((x1 - x0) * (y1 - y0), 1) - there
        fit = fit * there / union
    if before is not None:
        common = (masks & before).sum((1, 2))
        fit = fit * common / np.maximum((masks | before).sum((1, 2)), 1)
    return int(np.lexsort((-fit, -agree))[0])


def _pixel(point: NDArray[np.float64], mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel of the image that holds a point, or is nearest to it."""
    height, width = mask.shape
    x, y = np.floor(point).astype(int).clip(0, (width - 1, height - 1)).tolist()
    return x, y
