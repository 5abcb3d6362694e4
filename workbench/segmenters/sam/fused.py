"""From the decoder's logits to measured, packed masks on CUDA, in one pass over the pixels.

A mask of 1024 × 1024 pixels has 4 MB of logits, which `postprocess_masks` and
`calculate_stability_score` write and read several times. Here the 256 × 256 logits are read, and
only 128 kB of bits and seven integers are written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, BYTES = 8, 64  # of a program's block: 8 × 512 pixels


class PackedMasks(NamedTuple):
    """Masks of `(h, w)` pixels, eight to a byte, with what SAM's filters ask of their logits."""

    stability: Tensor  # (n,) float32; NaN for a mask without any pixel, as SAM has it
    areas: Tensor  # (n,) int32, pixels
    boxes: Tensor  # (n, 4) int32, XYXY, last pixel inclusive; zeros for a mask without pixels
    bits: Tensor  # (n, h, ceil(w / 8)) uint8, as np.packbits(masks, axis=2)


def measure_masks(
    logits: Tensor,
    side: int,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    threshold: float,
    offset: float,
) -> PackedMasks:
    """Measure and pack the masks of low-resolution `logits`, `(n, h, w)` float32, contiguous.

    The arithmetic of `Sam.postprocess_masks` (to a square of `side`, of it `input_size`, of that
    `original_size`), `calculate_stability_score` and `batched_mask_to_box`. A compiler may fuse
    its products and sums, so logits can differ by their last bit from torch's own.
    """
    n, low_height, low_width = logits.shape
    height, width = original_size
    n_bytes = triton.cdiv(width, 8)
    counts = torch.zeros((3, n), dtype=torch.int32, device=logits.device)  # high, low, area
    first = torch.full((2, n), max(height, width), dtype=torch.int32, device=logits.device)
    last = torch.full((2, n), -1, dtype=torch.int32, device=logits.device)
    bits = torch.empty((n, height, n_bytes), dtype=torch.uint8, device=logits.device)
    if n:
        grid = (triton.cdiv(height, ROWS), triton.cdiv(n_bytes, BYTES), n)
        _measure[grid](
            logits,
            counts,
            first,
            last,
            bits,
            n,
            low_height,
            low_width,
            *input_size,
            height,
            width,
            n_bytes,
            low_height / side,
            low_width / side,
            input_size[0] / height,
            input_size[1] / width,
            threshold,
            threshold + offset,
            threshold - offset,
            resized=tuple(input_size) != tuple(original_size),
            rows=ROWS,
            n_block=BYTES,
        )
    boxes = torch.cat([first, last]).T * (counts[2] > 0)[:, None]
    return PackedMasks(counts[0] / counts[1], counts[2], boxes, bits)


@triton.jit
def _source(pixel, scale, size):  # type: ignore[no-untyped-def]
    """Where a pixel lies between two of a coarser line: their numbers and the second's weight."""
    at = tl.maximum((pixel.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    before = tl.minimum(at.to(tl.int32), size - 1)
    return before, tl.minimum(before + 1, size - 1), at - before.to(tl.float32)


@triton.jit
def _interpolated(logits, y, x, low_height, low_width, scale_y, scale_x):  # type: ignore[no-untyped-def]
    """Bilinear logits at pixels of the square, in torch's order of sums and products."""
    y0, y1, dy = _source(y, scale_y, low_height)
    x0, x1, dx = _source(x, scale_x, low_width)
    above, below = logits + y0 * low_width, logits + y1 * low_width
    return (1 - dy) * ((1 - dx) * tl.load(above + x0) + dx * tl.load(above + x1)) + dy * (
        (1 - dx) * tl.load(below + x0) + dx * tl.load(below + x1)
    )


@triton.jit
def _measure(  # type: ignore[no-untyped-def]
    logits,
    counts,
    first,
    last,
    bits,
    n,
    low_height,
    low_width,
    input_height,
    input_width,
    height,
    width,
    n_bytes,
    low_scale_y,
    low_scale_x,
    scale_y,
    scale_x,
    threshold,
    high,
    low,
    resized: tl.constexpr,
    rows: tl.constexpr,
    n_block: tl.constexpr,
):
    # (row, byte, bit) of one block of one mask; all sums are of integers, so their order is free
    mask = tl.program_id(2)
    y = (tl.program_id(0) * rows + tl.arange(0, rows))[:, None, None]
    byte = (tl.program_id(1) * n_block + tl.arange(0, n_block))[None, :, None]
    bit = tl.arange(0, 8)[None, None, :]
    x = byte * 8 + bit
    inside = (y < height) & (x < width)
    # an offset of more than 2**31 is possible: 2**15 masks of 2**16 logits
    mine = logits + mask.to(tl.int64) * low_height * low_width
    if resized:
        y0, y1, dy = _source(y, scale_y, input_height)
        x0, x1, dx = _source(x, scale_x, input_width)
        a = _interpolated(mine, y0, x0, low_height, low_width, low_scale_y, low_scale_x)
        b = _interpolated(mine, y0, x1, low_height, low_width, low_scale_y, low_scale_x)
        c = _interpolated(mine, y1, x0, low_height, low_width, low_scale_y, low_scale_x)
        d = _interpolated(mine, y1, x1, low_height, low_width, low_scale_y, low_scale_x)
        value = (1 - dy) * ((1 - dx) * a + dx * b) + dy * ((1 - dx) * c + dx * d)
    else:
        value = _interpolated(mine, y, x, low_height, low_width, low_scale_y, low_scale_x)

    set_ = inside & (value > threshold)
    area = tl.sum(set_.to(tl.int32))
    tl.atomic_add(counts + mask, tl.sum((inside & (value > high)).to(tl.int32)))
    tl.atomic_add(counts + n + mask, tl.sum((inside & (value > low)).to(tl.int32)))
    if area > 0:
        tl.atomic_add(counts + 2 * n + mask, area)
        tl.atomic_min(first + mask, tl.min(tl.where(set_, x, width)))
        tl.atomic_min(first + n + mask, tl.min(tl.where(set_, y, height)))
        tl.atomic_max(last + mask, tl.max(tl.where(set_, x, -1)))
        tl.atomic_max(last + n + mask, tl.max(tl.where(set_, y, -1)))
    packed = tl.sum(set_.to(tl.int32) << (7 - bit), axis=2)
    y, byte = tl.reshape(y, (rows, 1)), tl.reshape(byte, (1, n_block))
    here = bits + (mask.to(tl.int64) * height + y) * n_bytes + byte
    tl.store(here, packed.to(tl.uint8), mask=(y < height) & (byte < n_bytes))
