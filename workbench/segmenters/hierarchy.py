"""Superpixels of an image, and hierarchies of the regions that they merge to.

Neighbours are merged, cheapest pair first, until one region is left. Every region that ever existed
is one of the hierarchy. What a merge costs, and what is known of a region, is the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from skimage.segmentation import watershed

# the squared colour difference of two regions, their areas, and the length of their common border
# with the sum of its strength
Price = Callable[[float, int, int, int, float], float]
# merges that can be done at once, because their regions are there by then: the numbers `(k,)` of
# the new regions, and of the two that each is merged from
Merges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Superpixels:
    """A partition of an image, and the graph of its `n` superpixels and `m` common borders.

    `sums` are over a superpixel's pixels, of `maps`; `strengths` over a border's pixel edges, where
    a map of borders counts as the larger one of the two pixels.
    """

    labels: NDArray[np.int32]  # (h, w), 0 to n - 1
    area: NDArray[np.int64]  # (n,)
    sums: NDArray[np.float64]  # (n, maps), those of three colours first
    boxes: NDArray[np.int64]  # (n, 4), XYXY, last pixel inclusive
    at_image_edge: NDArray[np.int64]  # (n,) pixel edges along the edge of the image
    pairs: NDArray[np.int64]  # (m, 2), the lower number first
    length: NDArray[np.int64]  # (m,) pixel edges
    strengths: NDArray[np.float64]  # (m, maps of borders)

    @property
    def colour(self) -> NDArray[np.float64]:
        """The mean colour of each, `(n, 3)`."""
        mean: NDArray[np.float64] = self.sums[:, :3] / self.area[:, None]
        return mean


def flooded(levels: NDArray[np.uint8], smooth: NDArray[Any], reach: int) -> NDArray[np.int32]:
    """Flood levels `(h, w)` from the lowest places of `smooth` within `reach` pixels: numbers."""
    minima = smooth <= cv2.erode(smooth, np.ones((reach, reach), np.uint8))
    _, markers = cv2.connectedComponents(minima.astype(np.uint8), connectivity=8)
    labels: NDArray[np.int32] = watershed(levels, markers) - 1
    return labels


def measure_superpixels(
    labels: NDArray[np.int32],
    maps: Sequence[NDArray[np.float32]],
    borders: Sequence[NDArray[np.float32]],
) -> Superpixels:
    """Sum up maps and maps of borders, all `(h, w)`, of which the first three are colours."""
    n = int(labels.max()) + 1
    flat = labels.ravel()
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    keys, found = [], []
    for one, two in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
    ):
        differ = labels[one] != labels[two]
        a, b = labels[one][differ].astype(np.int64), labels[two][differ].astype(np.int64)
        keys.append(np.minimum(a, b) * n + np.maximum(a, b))
        found.append([np.maximum(x[one][differ], x[two][differ]) for x in borders])
    unique, border = np.unique(np.concatenate(keys), return_inverse=True)
    strengths = [
        np.bincount(border, np.concatenate(parts), len(unique))
        for parts in zip(*found, strict=True)
    ]
    return Superpixels(
        labels,
        np.bincount(flat, minlength=n),
        np.column_stack([np.bincount(flat, x.ravel(), n) for x in maps]).astype(np.float64),
        _boxes(labels, n),
        np.bincount(edges, minlength=n),
        np.column_stack([unique // n, unique % n]),
        np.bincount(border, minlength=len(unique)),
        np.column_stack(strengths).astype(np.float64),
    )


def _boxes(labels: NDArray[np.int32], n: int) -> NDArray[np.int64]:
    height, width = labels.shape
    boxes = np.empty((n, 4), np.int64)
    # the last assignment wins, so in backward order the first row and column remain
    for start, stop, lines, length in (
        (0, 2, labels.T, width),
        (1, 3, labels, height),
    ):
        positions = np.repeat(np.arange(length), lines.shape[1])
        flat = lines.ravel()
        boxes[flat, stop] = positions
        boxes[flat[::-1], start] = positions[::-1]
    return boxes


@dataclass(frozen=True)
class Hierarchy:
    """All `r` regions of a binary merge tree: the `n` superpixels first, then one for each merge.

    The superpixels of region `i` are `order[start[i] : start[i] + count[i]]`.
    """

    merges: NDArray[np.int64]  # (r - n, 2) the two regions of each
    steps: list[Merges]
    removed: NDArray[np.float64]  # (r - n, 2) length and strength of the border between them
    area: NDArray[np.int64]  # (r,)
    boxes: NDArray[np.int64]  # (r, 4)
    order: NDArray[np.int64]  # (n,)
    start: NDArray[np.int64]  # (r,)
    count: NDArray[np.int64]  # (r,)

    @property
    def parent(self) -> NDArray[np.int64]:
        """The region that each one is merged into, `(r,)`; that of the last is itself."""
        parent = np.arange(len(self.area))
        parent[self.merges] = np.arange(len(self.order), len(self.area))[:, None]
        return parent

    @property
    def ranks(self) -> NDArray[np.int64]:
        """Each superpixel's place in `order`, `(n,)`: a region is then a range of ranks."""
        return np.argsort(self.order)

    def totals(
        self, of_superpixels: NDArray[np.float64], removed: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Add up what superpixels `(n, k)` have, `(r, k)`, less what each merge removes."""
        n = len(self.order)
        totals = np.zeros((len(self.area), of_superpixels.shape[1]))
        totals[:n] = of_superpixels
        for region, one, two in self.steps:
            totals[region] = totals[one] + totals[two] - removed[region - n]
        return totals

    def alike(self, share: float) -> NDArray[np.int64]:
        """The largest region that each one makes up at least `share` of, `(r,)`."""
        alike = np.arange(len(self.area))
        for region, *parts in reversed(self.steps):
            group = alike[region]
            least = share * self.area[group]
            for part in parts:
                alike[part] = np.where(self.area[part] >= least, group, part)
        return alike

    def membership(self, rows: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return `(rows, superpixels)`, 1 where the superpixel belongs to the region."""
        count = self.count[rows]
        ends = np.concatenate([[0], np.cumsum(count)])
        within = np.arange(ends[-1]) - np.repeat(ends[:-1], count)
        members = self.order[np.repeat(self.start[rows], count) + within]
        shape = (len(rows), len(self.order))
        return sparse.csr_matrix((np.ones(len(members), np.int64), members, ends), shape)


def hierarchy_of(
    superpixels: Superpixels, strength: NDArray[np.float64], price: Price
) -> Hierarchy:
    """Merge superpixels whose borders have a strength `(m,)`, summed up over their pixel edges."""
    merges, removed = _merge(superpixels, strength, price)
    n = len(superpixels.area)
    steps = list(_steps(n, merges))
    area = np.zeros(n + len(merges), np.int64)
    count = np.ones(n + len(merges), np.int64)
    boxes = np.zeros((n + len(merges), 4), np.int64)
    area[:n] = superpixels.area
    boxes[:n] = superpixels.boxes * (1, 1, -1, -1)  # so that one minimum serves all four
    for region, one, two in steps:
        area[region] = area[one] + area[two]
        count[region] = count[one] + count[two]
        boxes[region] = np.minimum(boxes[one], boxes[two])
    start = np.zeros(len(count), np.int64)
    for region, one, two in reversed(steps):
        start[one] = start[region]
        start[two] = start[region] + count[one]
    boxes *= (1, 1, -1, -1)
    return Hierarchy(merges, steps, removed, area, boxes, np.argsort(start[:n]), start, count)


def _steps(n: int, merges: NDArray[np.int64]) -> Iterable[Merges]:
    """Order the merges of `n` superpixels, as many at a time as do not wait for each other."""
    height = [0] * n
    for one, two in zip(*merges.T.tolist(), strict=True):
        height.append(max(height[one], height[two]) + 1)
    heights = np.array(height[n:], np.int64)
    order = np.argsort(heights, kind="stable")
    for some in np.split(order, np.flatnonzero(np.diff(heights[order])) + 1):
        yield some + n, *merges[some].T


def _merge(
    superpixels: Superpixels, strength: NDArray[np.float64], price_of: Price
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the two regions of each merge, and their border's length and strength `(n - 1, 2)`.

    Uses plain lists and dictionaries, because arrays are slower for about ten neighbours a region.
    The region with more neighbours keeps its number. Only the borders that it takes over get new
    prices, or all if it has grown by 5 % since all were priced: in mere noise, one region with
    thousands of neighbours swallows the others one by one.

    The queue has only the cheapest of the prices that a region got at once. The others wait in a
    sorted list, and most are never needed, because one of their regions is gone by then.
    """
    area = superpixels.area.tolist()
    priced_area = list(area)
    lightness, red, yellow = (colour.tolist() for colour in superpixels.colour.T)
    # of numbers alone, so that Python's garbage collector need not look into them
    length, total = superpixels.length.tolist(), strength.tolist()
    borders: list[dict[int, int]] = [{} for _ in area]  # by neighbour
    node: list[int | None] = list(range(len(area)))  # in the tree; None once merged into another

    def costs(a: int, neighbours: Iterable[int]) -> list[tuple[float, int]]:
        found = []
        light_a, red_a, yellow_a = lightness[a], red[a], yellow[a]
        area_a, of_a = area[a], borders[a]
        for b in neighbours:
            border = of_a[b]
            difference = (
                (light_a - lightness[b]) ** 2 + (red_a - red[b]) ** 2 + (yellow_a - yellow[b]) ** 2
            )
            price = price_of(difference, area_a, area[b], length[border], total[border])
            found.append((price, b))
        return found

    # prices with the neighbour, the cheapest last; none for a price that was put in the queue alone
    waiting: list[list[tuple[float, int]]] = [[]]

    def cheapest(a: int, neighbours: Iterable[int]) -> tuple[float, int, int, int]:
        prices = costs(a, neighbours)
        prices.sort(reverse=True)
        waiting.append(prices)
        price, b = prices.pop()
        return price, a, b, len(waiting) - 1

    for border, (a, b) in enumerate(zip(*superpixels.pairs.T.tolist(), strict=True)):
        borders[a][b] = borders[b][a] = border
    queue = [
        cheapest(a, after)
        for a, neighbours in enumerate(borders)
        if (after := [b for b in neighbours if b > a])
    ]
    heapify(queue)

    merges: list[tuple[int, int]] = []
    removed: list[tuple[int, float]] = []
    while queue:
        price, a, b, at = queue[0]
        node_a, node_b = node[a], node[b]
        if node_a is None:
            heappop(queue)
            continue
        price_now = price if node_b is None else costs(a, (b,))[0][0]
        while waiting[at]:
            next_price, other = waiting[at].pop()
            if node[other] is not None:
                heapreplace(queue, (next_price, a, other, at))
                break
        else:
            heappop(queue)
        if node_b is None:
            continue
        if price_now > price:
            heappush(queue, (price_now, a, b, 0))
            continue
        kept, gone = (a, b) if len(borders[a]) >= len(borders[b]) else (b, a)
        of_kept, taken_over = borders[kept], borders[gone]
        border = of_kept.pop(gone)
        del taken_over[kept]
        merges.append((node_a, node_b))
        removed.append((length[border], total[border]))
        both = area[kept] + area[gone]
        share = area[kept] / both
        for colour in (lightness, red, yellow):
            colour[kept] = colour[kept] * share + colour[gone] * (1 - share)
        area[kept] = both
        node[kept], node[gone] = len(node) + len(merges) - 1, None
        for neighbour, border in taken_over.items():
            of_neighbour = borders[neighbour]
            del of_neighbour[gone]
            if neighbour in of_kept:
                length[of_kept[neighbour]] += length[border]
                total[of_kept[neighbour]] += total[border]
            else:
                of_kept[neighbour] = of_neighbour[kept] = border
        if both > 1.05 * priced_area[kept]:
            priced_area[kept] = both
            taken_over = of_kept
        if taken_over:
            heappush(queue, cheapest(kept, taken_over))
    return (
        np.array(merges, np.int64).reshape(-1, 2),
        np.array(removed, float).reshape(-1, 2),
    )


def joins(superpixels: Superpixels, hierarchy: Hierarchy) -> NDArray[np.int64]:
    """For each border `(m,)` the region whose merge removes it."""
    parent, ranks = hierarchy.parent, hierarchy.ranks
    at, other = superpixels.pairs[:, 0].copy(), ranks[superpixels.pairs[:, 1]]
    ends = hierarchy.start + hierarchy.count
    rows = np.arange(len(at))
    while len(rows):
        region = parent[at[rows]]
        at[rows] = region
        inside = (other[rows] >= hierarchy.start[region]) & (other[rows] < ends[region])
        rows = rows[~inside]
    return at


def best_ious(
    superpixels: Superpixels,
    hierarchy: Hierarchy,
    rows: NDArray[Any],
    other: Hierarchy,
    share: float,
) -> NDArray[np.float64]:
    """The best IoU of some regions with any region of another hierarchy of the same superpixels.

    A region is represented by the largest one that it makes up at least `share` of. Without that,
    the time would grow with the square of the number of regions that hardly differ, as in mere
    noise.
    """
    distinct, row = np.unique(hierarchy.alike(share)[rows], return_inverse=True)
    columns = np.unique(other.alike(share))
    ours, theirs = hierarchy.membership(distinct), other.membership(columns)
    shared = (ours.multiply(superpixels.area).tocsr() @ theirs.T).tocoo()
    union = hierarchy.area[distinct][shared.row] + other.area[columns][shared.col] - shared.data
    best = np.zeros(len(distinct))
    np.maximum.at(best, shared.row, shared.data / union)
    found: NDArray[np.float64] = best[row]
    return found
