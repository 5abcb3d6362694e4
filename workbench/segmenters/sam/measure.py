"""From the logits of masks to their scores, boxes and edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from torch import Tensor
from torch.nn.functional import interpolate, pad

from workbench.segmenters.sam.network import InputFrame

STABILITY_SCORE_OFFSET = 1.0  # as SamAutomaticMaskGenerator
SMALL_PX = 128  # height and width together, up to which torch enlarges images in another way
BYTES_AT_ONCE = 2**28  # of packed masks searched for edges at once; CUDA cannot search 2**31


@dataclass(frozen=True, eq=False)
class Measured:
    """Masks at full size, on the host: what SAM's filters need, and what their RLEs are made of.

    An edge is the first pixel of a run in its column, or the first one after it. A mask has some
    hundreds of them, which take a hundredth of the memory of its bits.
    """

    stability: NDArray[np.float32]  # (n,); NaN if no pixel is above the lower offset
    boxes: NDArray[np.int64]  # (n, 4) XYXY, crop pixels, last pixel inclusive; zeros if empty
    areas: NDArray[np.int64]  # (n,), pixels
    n_edges: NDArray[np.int64]  # (n,)
    edges: NDArray[np.int16]  # (n_edges.sum(), 2): x and y, crop pixels, mask by mask

    def __len__(self) -> int:
        return len(self.areas)

    def take(self, keep: NDArray[np.bool_]) -> Measured:
        """Keep some masks, `(n,)`."""
        return Measured(
            self.stability[keep],
            self.boxes[keep],
            self.areas[keep],
            self.n_edges[keep],
            self.edges.compress(np.repeat(keep, self.n_edges), axis=0),
        )

    def one_by_one(self) -> list[Measured]:
        """Split into as many as there are masks."""
        stops = np.cumsum(self.n_edges).tolist()
        return [
            Measured(
                self.stability[i : i + 1],
                self.boxes[i : i + 1],
                self.areas[i : i + 1],
                self.n_edges[i : i + 1],
                self.edges[start:stop],
            )
            for i, (start, stop) in enumerate(pairwise([0, *stops]))
        ]


def joined(parts: Sequence[Measured]) -> Measured:
    """Join masks of the same crop."""
    none = np.zeros(0, np.int64)
    no_masks = Measured(none.astype(np.float32), none.reshape(0, 4), none, none, _no_edges())
    columns = (
        [getattr(part, field.name) for part in (no_masks, *parts)] for field in fields(Measured)
    )
    return Measured(*(np.concatenate(column) for column in columns))


def measure_enlarged(low_res: Tensor, scale: int, channels: int, threshold: float) -> Measured:
    """Measure `(n, h, w)` logits on the CPU, enlarged by a power of two, without enlarging all.

    Interpolated values never exceed the values that they come from, so only the rows and columns
    with a logit above the lower offset matter: a twentieth of the tile for most masks. The bits
    inside are those of the whole, because no weight is rounded at a power of two, if the decoder
    has as many `channels`.
    """
    return joined([_measure_enlarged(logits, scale, channels, threshold) for logits in low_res])


def _measure_enlarged(logits: Tensor, scale: int, channels: int, threshold: float) -> Measured:
    rows, columns = _hot(logits, threshold - STABILITY_SCORE_OFFSET, margin=1)
    part = _enlarged(logits[rows, columns], scale, channels)
    return _measure_part(part, (rows.start * scale, columns.start * scale), threshold)


def measure_resized(
    low_res: Tensor, frame: InputFrame, scale: int, channels: int, threshold: float
) -> Measured:
    """Measure `(n, h, w)` logits on the CPU at the size of any image, `scale` a power of two.

    As `measure_enlarged`, but from the network's square to the image all of it is interpolated,
    because these weights are rounded and depend on the place: the bits are those of the whole. As
    many masks at once as the decoder has `channels`: for others torch rounds differently.
    """
    # cold values must stay cold, although the weights of four of them may add up to more than one
    cold = threshold - STABILITY_SCORE_OFFSET - 1e-3
    square = low_res.new_empty((1, channels, frame.side, frame.side))
    measured = []
    for some in low_res.split(channels) if len(low_res) else ():
        square.fill_(cold)
        hot = [_hot(logits, cold, margin=2) for logits in some]  # so that neighbours are exact, too
        for channel, logits, (rows, columns) in zip(square[0], some, hot, strict=False):
            there = [slice(scale * of.start, scale * of.stop) for of in (rows, columns)]
            channel[there[0], there[1]] = _enlarged(logits[rows, columns], scale, channels)
        whole = frame.cut_out(square)[0]
        for logits, (rows, columns) in zip(whole, hot, strict=False):
            y, x = (
                _scaled(of, scale * size / inside, size)
                for of, size, inside in zip(
                    (rows, columns), frame.original_size, frame.input_size, strict=True
                )
            )
            measured.append(_measure_part(logits[y, x], (y.start, x.start), threshold))
    return joined(measured)


def _hot(logits: Tensor, low: float, margin: int) -> tuple[slice, slice]:
    """The rows and columns of `(h, w)` logits with a value above `low`, and some around them."""
    hot: NDArray[np.bool_] = logits.numpy() > low
    return _span(hot.any(axis=1), margin), _span(hot.any(axis=0), margin)


def _enlarged(part: Tensor, scale: int, channels: int) -> Tensor:
    """Enlarge `(h, w)` logits by a power of two."""
    if not part.numel():
        return part
    # torch rounds by how many masks it enlarges and, up to a size, by that: so as many as the
    # decoder gives together, and never a small one
    height, width = part.shape
    wide = pad(part, (0, max(SMALL_PX // scale + 1 - height - width, 0)), mode="replicate")
    return interpolate(
        wide.expand(1, channels, -1, -1), scale_factor=scale, mode="bilinear", align_corners=False
    )[0, 0, :, : width * scale]


def _scaled(span: slice, factor: float, size: int) -> slice:
    """A span in an image of `size` pixels that is `factor` times as large, and a pixel more."""
    if span.stop == span.start:
        return slice(0, 0)
    return slice(
        max(int(span.start * factor) - 1, 0), min(int(np.ceil(span.stop * factor)) + 1, size)
    )


def _measure_part(part: Tensor, corner: tuple[int, int], threshold: float) -> Measured:
    """Measure one mask by the part of it, `(h, w)`, that has all logits above the lower offset.

    `corner` is the row and column of its first pixel.
    """
    logits: NDArray[np.float32] = part.numpy()
    low, high = threshold - STABILITY_SCORE_OFFSET, threshold + STABILITY_SCORE_OFFSET
    above, below = (np.count_nonzero(logits > limit) for limit in (high, low))
    # in float32, as torch divides
    stability = float(np.float32(above) / np.float32(below)) if below else np.nan
    mask: NDArray[np.bool_] = logits > threshold
    y, x = _span(mask.any(axis=1), margin=0), _span(mask.any(axis=0), margin=0)
    if not y.stop:
        return _one(stability, (0, 0, 0, 0), mask[y, x])
    top, left = corner
    box = (left + x.start, top + y.start, left + x.stop - 1, top + y.stop - 1)
    return _one(stability, box, mask[y, x])


def measure_fused(
    low_res: Tensor,
    side: int,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    threshold: float,
) -> Measured:
    """Measure `(n, h, w)` logits on CUDA; only the edges of the masks are copied to the host.

    A logit may differ from torch's in its last bit.
    """
    from workbench.segmenters.sam.fused import (
        measure_masks,  # Triton comes with torch for CUDA alone
    )

    masks = measure_masks(
        low_res.contiguous(), side, input_size, original_size, threshold, STABILITY_SCORE_OFFSET
    )
    return Measured(
        masks.stability.cpu().numpy(),
        masks.boxes.cpu().numpy().astype(np.int64),
        masks.areas.cpu().numpy().astype(np.int64),
        *edges_of_bits(masks.bits),
    )


def measure_whole(logits: Tensor, threshold: float) -> Measured:
    """Measure `(n, h, w)` logits of full size, on any device."""
    masks = logits > threshold
    pixels: NDArray[np.bool_] = masks.cpu().numpy()
    return Measured(
        calculate_stability_score(logits, threshold, STABILITY_SCORE_OFFSET).cpu().numpy(),
        batched_mask_to_box(masks).cpu().numpy(),
        np.count_nonzero(pixels, axis=(1, 2)),
        *edges_of(pixels),
    )


def edges_of(masks: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    """Find the edges of `(n, h, w)` masks; return `n_edges` and `edges` as in `Measured`."""
    changes = np.concatenate([masks[:, :1], masks[:, 1:] ^ masks[:, :-1], masks[:, -1:]], axis=1)
    mask, y, x = np.unravel_index(np.flatnonzero(changes), changes.shape)
    return np.bincount(mask, minlength=len(masks)), np.column_stack((x, y)).astype(np.int16)


def edges_of_bits(bits: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    """Do the same on any device for masks packed as by `np.packbits(masks, axis=2)`."""
    some = bits.split(max(1, BYTES_AT_ONCE // (bits.shape[1] * bits.shape[2])))
    n_edges, edges = zip(*(_edges_of_bits(part) for part in some), strict=True)
    return np.concatenate(n_edges), np.concatenate(edges)


def _edges_of_bits(bits: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    changes = torch.cat([bits[:, :1], bits[:, 1:] ^ bits[:, :-1], bits[:, -1:]], 1)
    mask, y, byte = changes.nonzero(as_tuple=True)
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    at, bit = (changes[mask, y, byte, None] >> shifts & 1).nonzero(as_tuple=True)
    n_edges = torch.bincount(mask[at], minlength=len(bits))
    edges = torch.stack([8 * byte[at] + bit, y[at]], 1).to(torch.int16)
    return n_edges.cpu().numpy(), edges.cpu().numpy()


def _no_edges() -> NDArray[np.int16]:
    return np.zeros((0, 2), np.int16)


def _span(wanted: Any, margin: int) -> slice:
    places = np.flatnonzero(wanted)
    if not len(places):
        return slice(0, 0)
    return slice(max(int(places[0]) - margin, 0), min(int(places[-1]) + 1 + margin, len(wanted)))


def _one(stability: float, box: tuple[int, int, int, int], pixels: NDArray[np.bool_]) -> Measured:
    """One mask, given by the `(h, w)` pixels of its box."""
    n_edges, edges = edges_of(pixels[None])
    edges += np.array(box[:2], np.int16)
    return Measured(
        np.array([stability], np.float32),
        np.array([box], np.int64),
        np.array([np.count_nonzero(pixels)]),
        n_edges,
        edges,
    )
