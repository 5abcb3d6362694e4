"""Masks to outlines along their pixel edges, many masks at once without decoding them.

A mask is held as its vertical runs of pixels, as in COCO's run-length encoding. Work and memory
grow with the number of runs, not with the pixels of the tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from workbench.candidates.rle import Numbers, Runs


@dataclass(frozen=True)
class Outlines:
    """Closed rings of `(m, 2)` corners, x and y in pixels: each part's exterior, then its holes.

    Pixel (row, col) covers x from col to col + 1. `parts_per_mask` is 0 for an empty mask.
    """

    corners: Numbers
    ring_sizes: Numbers
    rings_per_part: Numbers
    parts_per_mask: Numbers

    def parts(self) -> list[list[Numbers]]:
        """The rings of each part of all masks."""
        rings = np.split(self.corners, np.cumsum(self.ring_sizes)[:-1])
        ends = np.cumsum(self.rings_per_part).tolist()
        return [rings[a:b] for a, b in pairwise([0, *ends])]


def trace(runs: Runs) -> Outlines:
    """Trace masks along their pixel edges, one polygon for each 4-connected part.

    The polygons are valid as they are, and their area is the number of pixels.

    Instead of following the outline pixel by pixel, the corners of all masks are found at once:
    along each grid line they pair up into edges, and following the edges, vertical and horizontal
    in turn, closes the rings.
    """
    tall, wide = runs.height + 1, runs.width + 1  # corners; also keeps masks and columns apart
    column = runs.mask * wide + runs.x
    starts, ends = column * tall + runs.y0, column * tall + runs.y1
    # if a run starts or ends in only one of two neighbouring columns, or starts in one and ends in
    # the other, there is a corner on the line between them
    line = np.column_stack((2 * starts, 2 * ends + 1)).ravel()
    key = np.concatenate((line, line + 2 * tall))
    key.sort(kind="stable")  # two sorted halves: merged in one pass
    twin = key[1:] == key[:-1]
    lone = np.ones(len(key), bool)
    lone[1:] &= ~twin
    lone[:-1] &= ~twin
    corner = key[lone] >> 1
    column, y = np.divmod(corner, tall)
    mask, x = np.divmod(column, wide)

    # in column order, corners 2k and 2k + 1 are the ends of a vertical edge; the same holds for
    # horizontal edges in row order
    order = np.argsort((mask * tall + y) * wide + x, kind="stable")
    crossing = np.flatnonzero(corner[1:] == corner[:-1])  # pixels that meet at a corner only
    label: Numbers | None = None
    if len(crossing):
        label = _label(starts, ends, tall)
        _turn_at_crossings(order, crossing, corner, starts, ends, label, tall)
    beside = np.empty(len(order), np.int64)
    beside[order[::2]], beside[order[1::2]] = order[1::2], order[::2]
    path, cuts = _follow(beside.tolist())

    # a ring starts along its leftmost edge: the foreground lies right of it, for a hole left
    first = path[cuts[:-1]]
    pixel = corner[first]
    run = _run_at(pixel, starts)
    outer = (run >= 0) & (pixel < ends[run])
    owner = np.maximum.accumulate(np.where(outer, np.arange(len(first)), 0))
    if not outer.all() and (label is not None or outer.sum() > len(np.unique(mask))):
        if label is None:
            label = _label(starts, ends, tall)
        part = label[_run_at(pixel - tall * ~outer, starts)]
        exterior = np.empty(part.max() + 1, np.int64)
        exterior[part[outer]] = np.flatnonzero(outer)
        owner = exterior[part]
        by_part = np.argsort(owner, kind="stable")  # an exterior starts left of its holes
        sizes = np.diff(cuts)[by_part]
        shift = np.repeat(cuts[:-1][by_part] - (np.cumsum(sizes) - sizes), sizes)
        path = path[np.arange(len(path)) + shift]
        cuts = np.concatenate(([0], np.cumsum(sizes)))
    return Outlines(
        np.column_stack((x[path], y[path])),
        np.diff(cuts),
        np.bincount(owner, minlength=len(owner))[outer],
        np.bincount(mask[first[outer]], minlength=runs.n),
    )


def _run_at(pixel: Numbers, starts: Numbers) -> Numbers:
    """The last run that starts at or before each pixel, -1 if there is none."""
    return np.searchsorted(starts, pixel, side="right") - 1


def _label(starts: Numbers, ends: Numbers, tall: int) -> Numbers:
    """Number the 4-connected parts of all masks, run by run."""
    low = np.searchsorted(ends, starts + tall, side="right")  # runs beside it in the next column
    high = np.searchsorted(starts, ends + tall, side="left")
    beside = np.maximum(high - low, 0)
    one = np.repeat(np.arange(len(starts)), beside)
    other = np.arange(len(one)) + np.repeat(low - (np.cumsum(beside) - beside), beside)
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(starts),) * 2)
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _turn_at_crossings(
    order: Numbers,
    crossing: Numbers,
    corner: Numbers,
    starts: Numbers,
    ends: Numbers,
    label: Numbers,
    tall: int,
) -> None:
    """Decide, in place, how two rings pass a corner at which two diagonal pixels meet.

    As listed, the left edge turns up and the right edge down. Pixels of one part must be joined
    there, so that the ring leaves a hole instead of touching itself; pixels of two parts must be
    kept apart. Swapping the two entries of the corner takes the other turn.
    """
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    lower_right = corner[crossing]
    run = _run_at(lower_right, starts)
    falling = (run >= 0) & (lower_right < ends[run])  # the pixels lie upper left and lower right
    one = label[_run_at(lower_right - np.where(falling, 0, 1), starts)]
    other = label[_run_at(lower_right - tall - np.where(falling, 1, 0), starts)]
    swap = crossing[(one == other) == falling]
    order[position[swap]], order[position[swap + 1]] = swap + 1, swap


def _follow(beside: list[int]) -> tuple[Numbers, Numbers]:
    """Follow edges from corner to corner, vertical (2k to 2k + 1) and horizontal in turn.

    Returns the corners of all closed rings and where each ring begins, with the end.
    """
    path: list[int] = []
    cuts = [0]
    seen = bytearray(len(beside))
    for start in range(0, len(beside), 2):
        if seen[start]:
            continue
        i = start
        while not seen[i]:
            j = i ^ 1
            seen[i] = seen[j] = 1
            path += (i, j)
            i = beside[j]
        path.append(start)
        cuts.append(len(path))
    return np.array(path, np.int64), np.array(cuts, np.int64)
