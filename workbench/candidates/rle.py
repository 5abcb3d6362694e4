"""Masks as COCO run-length encodings: packed, and unpacked many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


def encode_masks(masks: NDArray[np.bool_]) -> list[bytes]:
    """Encode `(n, h, w)` masks as COCO compressed counts."""
    if not len(masks):
        return []
    columns = np.asfortranarray(masks.transpose(1, 2, 0).view(np.uint8))
    return [rle["counts"] for rle in coco.encode(columns)]


def encode_edges(
    mask: NDArray[Any], place: NDArray[Any], n: int, height: int, width: int
) -> list[bytes]:
    """Encode `n` masks of `(height, width)`, given where their runs of pixels begin and end.

    One entry, in any order, for each edge of a run: the number of its mask, and its place, x times
    height plus y. A run that ends where the next column's begins need not be joined to it.
    """
    if not n:
        return []
    size = height * width
    stride = size + 2  # of a mask: its places, one after the last pixel, and its end
    end = np.arange(n) * stride + size + 1
    key = np.sort(np.concatenate([mask.astype(np.int64) * stride + place, end]))
    keep = key % stride != size  # a run that ends with the last pixel needs no end
    keep[1:] &= key[1:] != key[:-1]
    keep[:-1] &= key[1:] != key[:-1]
    key = key[keep]
    after = np.searchsorted(key, end) + 1
    counts = np.diff(key, prepend=-1)
    counts[[0, *after[:-1]]] -= 1
    counts[after - 1] -= 1
    parts = np.split(counts.astype(np.uint32), after[:-1])
    rles = coco.frPyObjects([{"size": [height, width], "counts": part} for part in parts], 0, 0)
    return [rle["counts"] for rle in rles]


Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """Pixels (x, y0 ≤ y < y1) of `n` masks of one size, in the order of mask, x and y0."""

    n: int
    height: int
    width: int
    mask: Numbers
    x: Numbers
    y0: Numbers
    y1: Numbers

    def areas(self) -> Numbers:
        """Pixels of each mask, `(n,)`."""
        areas = np.zeros(self.n, np.int64)
        np.add.at(areas, self.mask, self.y1 - self.y0)
        return areas

    def bounds(self) -> Numbers:
        """XYXY of each mask, last pixel exclusive, `(n, 4)`; 0 for empty masks."""
        bounds = np.zeros((self.n, 4), np.int64)
        if len(self.mask):
            first = np.flatnonzero(np.diff(self.mask, prepend=-1))
            for side, (reduce, values) in enumerate(
                (
                    (np.minimum, self.x),
                    (np.minimum, self.y0),
                    (np.maximum, self.x + 1),
                    (np.maximum, self.y1),
                )
            ):
                bounds[self.mask[first], side] = reduce.reduceat(values, first)
        return bounds


def cropped(
    counts: Sequence[bytes], height: int, width: int, box: tuple[int, int, int, int]
) -> list[dict[str, Any]]:
    """The part of masks that lies in a box (x0, y0, x1, y1, end exclusive), as COCO's RLEs."""
    x0, y0, x1, y1 = box
    runs = decode_runs(counts, height, width)
    start, stop = np.maximum(runs.y0, y0) - y0, np.minimum(runs.y1, y1) - y0
    inside = (runs.x >= x0) & (runs.x < x1) & (start < stop)
    size = [y1 - y0, x1 - x0]
    first = (runs.x[inside] - x0) * size[0]
    mask = runs.mask[inside]
    edges = np.concatenate((first + start[inside], first + stop[inside]))
    encoded = encode_edges(np.concatenate((mask, mask)), edges, runs.n, size[0], size[1])
    return [{"size": size, "counts": rle} for rle in encoded]


def damaged(counts: Sequence[bytes], height: int, width: int) -> NDArray[np.bool_]:
    """Whether each of `(n,)` compressed counts is no mask of `(height, width)`.

    COCO's C code trusts them: counts that end in the middle of a number, or add up to another
    number of pixels, make it read and write beyond its memory.
    """
    # a thousand masks fit into the processor's cache: three times as fast as all at once
    parts = [counts[start : start + 1000] for start in range(0, len(counts), 1000)]
    found = [_damaged(part, height, width) for part in parts]
    return np.concatenate([np.empty(0, bool), *found])


def _damaged(counts: Sequence[bytes], height: int, width: int) -> NDArray[np.bool_]:
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    ends = np.cumsum(lengths)
    code = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(48)
    end = np.flatnonzero(code & 0x20 == 0)  # the last digit of each number
    digits = np.diff(end, prepend=-1)
    broken = lengths == 0
    broken[np.searchsorted(ends, np.flatnonzero(code > 0x3F), side="right")] = True  # no digit
    whole = np.flatnonzero(~broken)
    broken[whole] = code[ends[whole] - 1] & 0x20 != 0
    if not broken.any():  # else a number may have taken the digits of a broken mask before it
        # seven digits are 35 bits: more pixels than a tile can have
        broken[np.searchsorted(ends, end[digits > 6], side="right")] = True
    if broken.any():
        whole = np.flatnonzero(~broken)
        broken[whole] = _damaged([counts[i] for i in whole.tolist()], height, width)
    elif len(counts):
        broken = _other_sizes(code, end, digits, np.searchsorted(end, ends), height * width)
    return broken


def _other_sizes(
    code: NDArray[np.uint8], end: Numbers, digits: Numbers, numbers: Numbers, n_pixels: int
) -> NDArray[np.bool_]:
    """Whether the runs of each mask do not add up to its pixels, or one of them is negative.

    `numbers` has how many there are up to the end of each mask. See `_run_lengths` for the rest of
    the format; this is done for all that is stored, so it goes in 32 bits, as in COCO's code.
    """
    number = (code[end] & 0x1F).astype(np.int32)
    number -= (number & 0x10) << 1  # sign
    for k in range(1, int(digits.max())):
        longer = np.flatnonzero(digits > k)
        number[longer] = (number[longer] << 5) | (code[end[longer] - k] & 0x1F)
    per_mask = np.diff(numbers, prepend=0)
    first = numbers - per_mask
    lead = number[first].copy()
    number[first] = 0  # from the fourth on a number is the difference to the last but one
    odd = ((np.arange(len(number)) - np.repeat(first, per_mask)) & 1).astype(np.int32)
    every = np.cumsum(number, dtype=np.int32)
    odds = np.cumsum(number * odd, dtype=np.int32)
    for sums in (every, odds):
        before = np.concatenate((np.zeros(1, np.int32), sums))[first]
        sums -= np.repeat(before, per_mask)
    run = np.where(odd, odds, every - odds)
    run[first] = lead
    total = np.add.reduceat(run, first, dtype=np.int64)
    return np.asarray((total != n_pixels) | (np.minimum.reduceat(run, first) < 0), bool)


def decode_runs(counts: Sequence[bytes], height: int, width: int) -> Runs:
    """Decode COCO compressed counts to runs."""
    pair, mask, pairs_before = _run_lengths(counts)
    length_on = pair[:, 1]
    stop = _cumulated(pair.sum(axis=1, keepdims=True), pairs_before)[:, 0]
    on = length_on > 0
    mask, start, stop = mask[on], (stop - length_on)[on], stop[on]
    # a run may go on in the next columns
    x = start // height
    pieces = (stop - 1) // height - x + 1
    step = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    mask, start, stop = (np.repeat(values, pieces) for values in (mask, start, stop))
    x = np.repeat(x, pieces) + step
    top = x * height
    y0, y1 = np.maximum(start - top, 0), np.minimum(stop - top, height)
    return Runs(len(counts), height, width, mask, x, y0, y1)


def _run_lengths(counts: Sequence[bytes]) -> tuple[Numbers, Numbers, Numbers]:
    """One row `(m, 2)` for each run: pixels off, then pixels on; its mask, and the rows before.

    The format is that of `rleFrString` in COCO's maskApi.c: numbers in groups of 5 bits, lowest
    first, a sixth bit telling that more follow; from the fourth on as the difference to the last
    but one. The last has the number of rows before each mask, and of all.
    """
    code = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(48)
    end = np.flatnonzero(code & 0x20 == 0)
    begin = np.concatenate(([0], end[:-1] + 1)) if len(end) else end
    length = end - begin + 1
    shift = 5 * (np.arange(len(code)) - np.repeat(begin, length))
    number = np.zeros(0, np.int64)
    if len(end):
        number = np.add.reduceat((code & 0x1F).astype(np.int64) << shift, begin)
        number -= (code[end] & 0x10 != 0).astype(np.int64) << (5 * length)  # sign

    # one row for each pair of numbers, pixels off and pixels on, each mask in rows of its own
    bytes_before = np.cumsum([0, *map(len, counts)])
    numbers_before = np.searchsorted(end, bytes_before)
    pairs = (np.diff(numbers_before) + 1) // 2
    pairs_before = np.concatenate(([0], np.cumsum(pairs)))
    mask = np.repeat(np.arange(len(counts)), pairs)
    place = np.arange(len(number)) + np.repeat(
        2 * pairs_before[:-1] - numbers_before[:-1], np.diff(numbers_before)
    )
    pair = np.zeros((len(mask), 2), np.int64)
    pair.ravel()[place] = number
    there = np.zeros((len(mask), 2), bool)
    there.ravel()[place] = True
    first = pairs_before[:-1][pairs > 0]
    lead = pair[first, 0].copy()
    pair[first, 0] = 0
    pair = _cumulated(pair, pairs_before)
    pair[first, 0] = lead
    pair[~there] = 0
    return pair, mask, pairs_before


def _cumulated(rows: Numbers, before: Numbers) -> Numbers:
    """Cumulative sums down the rows, which start again at the row numbers `before`."""
    total = np.concatenate((np.zeros((1, rows.shape[1]), np.int64), np.cumsum(rows, axis=0)))
    return total[1:] - np.repeat(total[before[:-1]], np.diff(before), axis=0)
