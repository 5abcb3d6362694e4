"""From a mask's logits to its scores, box and pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from torch import Tensor
from torch.nn.functional import interpolate

STABILITY_SCORE_OFFSET = 1.0  # as SamAutomaticMaskGenerator


@dataclass(frozen=True, eq=False)
class Measured:
    """A mask at full size: its stability, its box, and the pixels of the box as bits.

    Most masks are pruned: packing takes 0.05 ms for a tile of 1024 x 1024, and leaves an eighth.
    Bits stay on the device that made them until `pixels` asks for them.
    """

    stability_score: float  # NaN if no pixel is above the lower offset
    box: tuple[int, int, int, int]  # XYXY, crop pixels, last pixel inclusive; zeros if empty
    area_px: int
    bits: Tensor  # (h, n) uint8: the rows of the box, as np.packbits(..., axis=1)
    before: int = 0  # bits of each row that are left of the box

    @property
    def pixels(self) -> NDArray[np.bool_]:
        """The mask within its box, `(h, w)`."""
        columns = slice(self.before, self.before + self.box[2] + 1 - self.box[0])
        return np.unpackbits(self.bits.cpu().numpy(), axis=1)[:, columns].view(bool)


def measure_enlarged(low_res: Tensor, scale: int, threshold: float) -> Iterator[Measured]:
    """Measure `(n, h, w)` logits on the CPU, enlarged by a power of two, without enlarging all.

    Interpolation exceeds no value that it starts from, so nothing can count outside of the rows and
    columns that hold a logit above the lower offset: a twentieth of the tile for most masks. What
    is inside has the bits of the whole: at a power of two no weight is rounded.
    """
    low, high = threshold - STABILITY_SCORE_OFFSET, threshold + STABILITY_SCORE_OFFSET
    for logits in low_res:
        hot: NDArray[np.bool_] = logits.numpy() > low
        rows, columns = _span(hot.any(axis=1), margin=1), _span(hot.any(axis=0), margin=1)
        part = logits[rows, columns]
        if not part.numel():
            yield _packed(np.nan, (0, 0, 0, 0), np.zeros((1, 1), bool))
            continue
        # as three masks, as the decoder gives them: of one alone torch rounds otherwise
        enlarged = interpolate(
            part.expand(1, 3, -1, -1), scale_factor=scale, mode="bilinear", align_corners=False
        )[0, 0].numpy()
        above, below = (np.count_nonzero(enlarged > limit) for limit in (high, low))
        # in float32, as torch divides
        stability = np.float32(above) / np.float32(below) if below else np.nan
        mask: NDArray[np.bool_] = enlarged > threshold
        yield _cut(mask, float(stability), rows.start * scale, columns.start * scale)


def measure_fused(
    low_res: Tensor,
    side: int,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    threshold: float,
) -> Iterator[Measured]:
    """Measure `(n, h, w)` logits on CUDA, whose masks come to the host as bits, if at all.

    Moves numbers: a logit may differ from torch's in its last bit.
    """
    from workbench.sam.fused import measure_masks  # Triton comes with torch for CUDA alone

    masks = measure_masks(
        low_res.contiguous(), side, input_size, original_size, threshold, STABILITY_SCORE_OFFSET
    )
    numbers = (part.tolist() for part in (masks.stability, masks.areas, masks.boxes))
    for stable, area, (x0, y0, x1, y1), bits in zip(*numbers, masks.bits, strict=True):
        # whole rows, which lie in one piece
        yield Measured(stable, (x0, y0, x1, y1), area, bits[y0 : y1 + 1], x0)


def measure_whole(logits: Tensor, threshold: float) -> Iterator[Measured]:
    """Measure `(n, h, w)` logits of full size, on any device."""
    stability = calculate_stability_score(logits, threshold, STABILITY_SCORE_OFFSET)
    masks = logits > threshold
    boxes = batched_mask_to_box(masks)
    for stable, (x0, y0, x1, y1), mask in zip(
        stability.tolist(), boxes.tolist(), masks.cpu().numpy(), strict=True
    ):
        yield _packed(stable, (x0, y0, x1, y1), mask[y0 : y1 + 1, x0 : x1 + 1])


def _span(wanted: Any, margin: int) -> slice:
    places = np.flatnonzero(wanted)
    if not len(places):
        return slice(0, 0)
    return slice(max(int(places[0]) - margin, 0), int(places[-1]) + 1 + margin)


def _cut(mask: NDArray[np.bool_], stability: float, top: int, left: int) -> Measured:
    rows, columns = _span(mask.any(axis=1), margin=0), _span(mask.any(axis=0), margin=0)
    if rows.stop == 0:
        return _packed(stability, (0, 0, 0, 0), np.zeros((1, 1), bool))
    box = (left + columns.start, top + rows.start, left + columns.stop - 1, top + rows.stop - 1)
    return _packed(stability, box, mask[rows, columns])


def _packed(
    stability: float, box: tuple[int, int, int, int], pixels: NDArray[np.bool_]
) -> Measured:
    packed = torch.from_numpy(np.packbits(pixels, axis=1))
    return Measured(stability, box, int(np.count_nonzero(pixels)), packed)
