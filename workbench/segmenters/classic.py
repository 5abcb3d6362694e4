"""A Segmenter without weights, from hierarchies of merged superpixels.

A watershed cuts the tile into superpixels. Neighbours are merged, cheapest pair first, until one
region is left, by the full lambda schedule of Koepfler, Lopez and Morel (1994): the squared colour
difference, weighted with both areas, per length of the common border. This happens twice, once
with the plain cost and once with the cost times the squared strength of the border. Every region
that ever existed in either hierarchy is a proposal.

- `pred_iou` stands for boundary evidence: how much stronger the gradient along the outline is than
  inside, times compactness and, weakly, size.
- `stability_score` stands for persistence: the best IoU with a region of the other hierarchy.

Both are mapped to 0..1 by fixed curves, so that SAM's usual thresholds keep a sensible set.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from skimage.segmentation import watershed

from workbench.candidates.rle import encode_edges
from workbench.candidates.select import prune
from workbench.candidates.table import SAM_RULES, Candidates, Rules
from workbench.segmenters.protocol import Watch

VERSION = 1  # part of the key; goes up if the method or a constant changes

# the strength of a border counts in the second hierarchy only
EDGE_EXPONENTS = (0, 2)


@dataclass(frozen=True)
class ClassicSegmenter:
    """Proposes regions of two superpixel hierarchies; a `Segmenter`.

    The rules are SAM's and hold for tiles of any size. There are no crops, whatever they say.
    """

    rules: Rules = SAM_RULES
    min_region_px: int = 30

    @property
    def key(self) -> Mapping[str, Any]:
        """All that the candidates depend on."""
        limits = self.rules.limits
        del limits["crop_n_layers"]
        return {
            "model": "classic",
            "version": VERSION,
            **limits,
            "min_region_px": self.min_region_px,
        }

    def load(self) -> None:
        """Nothing to load."""

    def propose(self, image: NDArray[np.uint8], watch: Watch | None = None) -> Candidates:
        """Return the pruned candidates of one RGB tile `(h, w, 3)`, at tile row and column 0.

        It is too quick to tell `watch` anything. A tile of one colour has no candidates. The point
        is the pixel deepest inside the region.
        """
        height, width = image.shape[:2]
        rules = replace(self.rules, height=height, width=width, crop_n_layers=0)
        superpixels = _superpixels(image)
        first, second = (_hierarchy(superpixels, exponent) for exponent in EDGE_EXPONENTS)
        of_first = self._above_floors(superpixels, first, second)
        of_second = self._above_floors(superpixels, second, first)
        columns = {name: np.concatenate([of_first[name], of_second[name]]) for name in of_first}
        n = len(columns["region"])
        columns |= {
            "tile_row": np.zeros(n),
            "tile_col": np.zeros(n),
            "ordinal": np.arange(n),
            "crop_x0": np.zeros(n),
            "crop_y0": np.zeros(n),
            "crop_x1": np.full(n, width),
            "crop_y1": np.full(n, height),
        }
        # most proposals are pruned, so points and masks are made afterwards
        unfilled = {"point_x": np.zeros(n), "point_y": np.zeros(n), "rle": [b""] * n}
        kept = prune(Candidates.from_columns(rules, columns | unfilled)).column("ordinal")
        columns = {name: column[kept] for name, column in columns.items()}
        regions = np.split(columns["region"], [np.searchsorted(kept, len(of_first["region"]))])
        points = [
            _deepest_pixels(superpixels, hierarchy, rows)
            for hierarchy, rows in zip((first, second), regions, strict=True)
        ]
        masks = [
            _encode(superpixels, hierarchy, rows)
            for hierarchy, rows in zip((first, second), regions, strict=True)
        ]
        columns["point_x"], columns["point_y"] = np.concatenate(points).T
        return Candidates.from_columns(rules, columns | {"rle": [*masks[0], *masks[1]]})

    def begin(
        self, image: NDArray[np.uint8], watch: Watch | None = None
    ) -> Callable[[], Candidates]:
        """Do all of `propose` now."""
        found = self.propose(image, watch)
        return lambda: found

    def _above_floors(
        self, superpixels: _Superpixels, hierarchy: _Hierarchy, other: _Hierarchy
    ) -> dict[str, NDArray[Any]]:
        """Return region numbers, scores, boxes and areas, in the order of the merges."""
        pred_iou = _pred_iou(hierarchy)
        regions = np.flatnonzero(
            (hierarchy.area >= self.min_region_px)
            & (pred_iou > np.float32(self.rules.pred_iou_floor))
        )
        stability = _stability(superpixels, hierarchy, regions, other)
        stable = stability >= np.float32(self.rules.stability_floor)
        regions, stability = regions[stable], stability[stable]
        x0, y0, x1, y1 = hierarchy.boxes[regions].T
        return {
            "region": regions,
            "pred_iou": pred_iou[regions],
            "stability_score": stability,
            "x0": x0,
            "y0": y0,
            "x1": x1,
            "y1": y1,
            "area_px": hierarchy.area[regions],
        }


@dataclass(frozen=True)
class _Superpixels:
    """A partition of the tile, and the graph of its `n` superpixels and `m` common borders.

    `gradient` is the sum over the superpixel's pixels, `strength` the sum of the gradient over
    the border's pixel edges; colours are CIELAB, so a gradient is in colour differences per pixel.
    """

    labels: NDArray[np.int32]  # (h, w), 0 to n - 1
    area: NDArray[np.int64]  # (n,)
    colour: NDArray[np.float64]  # (n, 3)
    gradient: NDArray[np.float64]  # (n,)
    boxes: NDArray[np.int64]  # (n, 4), XYXY, last pixel inclusive
    at_tile_edge: NDArray[np.int64]  # (n,) pixel edges along the tile's edge
    pairs: NDArray[np.int64]  # (m, 2), the lower number first
    length: NDArray[np.int64]  # (m,) pixel edges
    strength: NDArray[np.float64]  # (m,)


def _superpixels(image: NDArray[np.uint8]) -> _Superpixels:
    """Flood the gradient from its minima: about 9,000 superpixels per megapixel of aerial imagery.

    With fewer, thin objects are lost; with more, it takes longer.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    gradient = _gradient(lab)
    smooth = cv2.GaussianBlur(gradient, (0, 0), 1.5)
    minima = smooth <= cv2.erode(smooth, np.ones((5, 5), np.uint8))
    _, markers = cv2.connectedComponents(minima.astype(np.uint8), connectivity=8)
    levels = np.clip(gradient * 4, 0, 255).astype(np.uint8)  # a quarter of a colour difference
    labels: NDArray[np.int32] = watershed(levels, markers) - 1

    n = int(labels.max()) + 1
    flat = labels.ravel()
    area = np.bincount(flat, minlength=n)
    colour = [np.bincount(flat, lab[..., c].ravel(), n) / area for c in range(3)]
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    pairs, length, strength = _borders(labels, gradient, n)
    return _Superpixels(
        labels,
        area,
        np.column_stack(colour),
        np.bincount(flat, gradient.ravel(), n).astype(np.float64),
        _boxes(labels, n),
        np.bincount(edges, minlength=n),
        pairs,
        length,
        strength,
    )


def _gradient(lab: NDArray[Any]) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(lab, (0, 0), 1.0)
    along_x = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=1 / 32)
    along_y = cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=1 / 32)
    return np.sqrt((along_x**2 + along_y**2).sum(axis=2))


def _borders(
    labels: NDArray[np.int32], gradient: NDArray[np.float32], n: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the pairs of neighbours, the lengths of their borders, and the strengths."""
    keys, strengths = [], []
    for one, two in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
    ):
        differ = labels[one] != labels[two]
        a, b = labels[one][differ].astype(np.int64), labels[two][differ].astype(np.int64)
        keys.append(np.minimum(a, b) * n + np.maximum(a, b))
        strengths.append(np.maximum(gradient[one][differ], gradient[two][differ]))
    unique, border = np.unique(np.concatenate(keys), return_inverse=True)
    length = np.bincount(border, minlength=len(unique))
    strength = np.bincount(border, np.concatenate(strengths), len(unique))
    return np.column_stack([unique // n, unique % n]), length, strength


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
class _Hierarchy:
    """All regions of a binary merge tree: the `n` superpixels first, then one for each merge.

    The superpixels of region `i` are `order[start[i] : start[i] + count[i]]`.
    """

    area: NDArray[np.int64]
    gradient: NDArray[np.float64]  # sum over the region's pixels
    outline: NDArray[np.int64]  # pixel edges against other regions
    strength: NDArray[np.float64]  # sum of the gradient over them
    at_tile_edge: NDArray[np.int64]  # pixel edges along the tile's edge
    boxes: NDArray[np.int64]
    order: NDArray[np.int64]
    start: NDArray[np.int64]
    count: NDArray[np.int64]
    alike: NDArray[np.int64]  # the largest region that the region makes up at least 97 % of


def _hierarchy(superpixels: _Superpixels, edge_exponent: int) -> _Hierarchy:
    merges, shared = _merge(superpixels, edge_exponent)
    n = len(superpixels.area)
    a, b = superpixels.pairs.T
    both = np.concatenate([a, b])
    totals = np.zeros((n + len(merges), 6))
    totals[:n] = np.column_stack(
        [
            superpixels.area,
            superpixels.gradient,
            np.bincount(both, np.tile(superpixels.length, 2), n),
            np.bincount(both, np.tile(superpixels.strength, 2), n),
            superpixels.at_tile_edge,
            np.ones(n),
        ]
    )
    boxes = np.zeros((n + len(merges), 4), np.int64)
    boxes[:n] = superpixels.boxes * (1, 1, -1, -1)  # so that one minimum serves all four
    for region, (one, two) in enumerate(merges, start=n):
        totals[region] = totals[one] + totals[two]
        totals[region, 2:4] -= 2 * shared[region - n]
        np.minimum(boxes[one], boxes[two], out=boxes[region])
    area, gradient, outline, strength, at_tile_edge = totals[:, :5].T
    count = totals[:, 5].astype(np.int64)
    start = np.zeros(len(count), np.int64)
    alike = np.arange(len(count))
    for region in range(len(count) - 1, n - 1, -1):
        one, two = merges[region - n]
        start[one] = start[region]
        start[two] = start[region] + count[one]
        for part in (one, two):
            if area[part] >= 0.97 * area[alike[region]]:
                alike[part] = alike[region]
    return _Hierarchy(
        area.astype(np.int64),
        gradient,
        outline.astype(np.int64),
        strength,
        at_tile_edge.astype(np.int64),
        boxes * (1, 1, -1, -1),
        np.argsort(start[:n]),
        start,
        count,
        alike,
    )


def _merge(
    superpixels: _Superpixels, edge_exponent: int
) -> tuple[list[tuple[int, int]], NDArray[np.float64]]:
    """Return the two regions of each merge, and their border's length and strength `(n - 1, 2)`.

    Uses plain lists and dictionaries, because arrays are slower for about ten neighbours a region.
    The region with more neighbours keeps its number. Only the borders that it takes over get new
    prices, or all if it has grown by 5 % since all were priced: in mere noise, one region with
    thousands of neighbours swallows the others one by one.
    """
    area = superpixels.area.tolist()
    priced_area = list(area)
    colour = superpixels.colour.tolist()
    borders: list[dict[int, tuple[int, float]]] = [{} for _ in area]
    node: list[int | None] = list(range(len(area)))  # in the tree; None once merged into another

    def cost(a: int, b: int) -> float:
        (l0, a0, b0), (l1, a1, b1) = colour[a], colour[b]
        length, strength = borders[a][b]
        difference = (l0 - l1) ** 2 + (a0 - a1) ** 2 + (b0 - b1) ** 2
        weight = area[a] * area[b] / (area[a] + area[b])
        return weight * difference / length * (strength / length) ** edge_exponent

    for (a, b), length, strength in zip(
        superpixels.pairs.tolist(),
        superpixels.length.tolist(),
        superpixels.strength.tolist(),
        strict=True,
    ):
        borders[a][b] = borders[b][a] = length, strength
    queue = [(cost(a, b), a, b) for a, b in superpixels.pairs.tolist()]
    heapq.heapify(queue)

    merges: list[tuple[int, int]] = []
    shared: list[tuple[int, float]] = []
    while queue:
        price, a, b = heapq.heappop(queue)
        node_a, node_b = node[a], node[b]
        if node_a is None or node_b is None:
            continue
        if (price_now := cost(a, b)) > price:
            heapq.heappush(queue, (price_now, a, b))
            continue
        kept, gone = (a, b) if len(borders[a]) >= len(borders[b]) else (b, a)
        merges.append((node_a, node_b))
        shared.append(borders[kept].pop(gone))
        share = area[kept] / (area[kept] + area[gone])
        colour[kept] = [
            p * share + q * (1 - share) for p, q in zip(colour[kept], colour[gone], strict=True)
        ]
        area[kept] += area[gone]
        node[kept], node[gone] = len(node) + len(merges) - 1, None
        taken_over = borders[gone]
        del taken_over[kept]
        for neighbour, (length, strength) in taken_over.items():
            length_too, strength_too = borders[kept].get(neighbour, (0, 0.0))
            border = length + length_too, strength + strength_too
            borders[kept][neighbour] = borders[neighbour][kept] = border
            del borders[neighbour][gone]
        if area[kept] > 1.05 * priced_area[kept]:
            priced_area[kept] = area[kept]
            taken_over = borders[kept]
        for neighbour in taken_over:
            heapq.heappush(queue, (cost(kept, neighbour), kept, neighbour))
    return merges, np.array(shared, float).reshape(-1, 2)


def _pred_iou(hierarchy: _Hierarchy) -> NDArray[np.float32]:
    """Map evidence to 0..1: 0.5 at 2.4, 0.85 at 4.3; 0 without any outline."""
    area = hierarchy.area
    inside = hierarchy.gradient / area
    along = hierarchy.strength / np.maximum(hierarchy.outline, 1)
    # 1: a colour difference that noise alone makes
    contrast = along / (inside + 1)
    compactness = 4 * np.pi * area / (hierarchy.outline + hierarchy.at_tile_edge) ** 2
    # a long outline is less likely to be strong by chance than a short one: hence the size
    evidence = contrast * compactness**0.75 * area**0.2
    power = evidence**3
    return (power / (power + 2.4**3)).astype(np.float32)


def _stability(
    superpixels: _Superpixels, hierarchy: _Hierarchy, rows: NDArray[np.int64], other: _Hierarchy
) -> NDArray[np.float32]:
    """Map the best IoU with any region of `other`: 0.2 becomes 0.5, 0.57 becomes 0.92.

    A region is represented by the largest one that it makes up at least 97 % of. Without that, the
    time would grow with the square of the number of regions that hardly differ, as in mere noise.
    """
    distinct, row = np.unique(hierarchy.alike[rows], return_inverse=True)
    columns = np.unique(other.alike)
    ours = _membership(hierarchy, distinct)
    theirs = _membership(other, columns)
    shared = (ours.multiply(superpixels.area).tocsr() @ theirs.T).tocoo()
    union = hierarchy.area[distinct][shared.row] + other.area[columns][shared.col] - shared.data
    best = np.zeros(len(distinct))
    np.maximum.at(best, shared.row, shared.data / union)
    return (1 - (1 - best[row]) ** 3).astype(np.float32)


def _membership(hierarchy: _Hierarchy, rows: NDArray[np.int64]) -> sparse.csr_matrix:
    """Return `(rows, superpixels)`, 1 where the superpixel belongs to the region."""
    count = hierarchy.count[rows]
    ends = np.concatenate([[0], np.cumsum(count)])
    within = np.arange(ends[-1]) - np.repeat(ends[:-1], count)
    members = hierarchy.order[np.repeat(hierarchy.start[rows], count) + within]
    shape = (len(rows), len(hierarchy.order))
    return sparse.csr_matrix((np.ones(len(members), np.int64), members, ends), shape)


def _ranks(hierarchy: _Hierarchy) -> NDArray[np.int64]:
    """Return each superpixel's place in `order`: a region is then a range of ranks."""
    return np.argsort(hierarchy.order)


def _deepest_pixels(
    superpixels: _Superpixels, hierarchy: _Hierarchy, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return `(n, 2)`, x and y of the pixel furthest from the outline and the tile's edge."""
    ranks = _ranks(hierarchy).astype(np.int32)[superpixels.labels]
    points = np.empty((len(rows), 2))
    for point, region in zip(points, rows, strict=True):
        x0, y0, x1, y1 = hierarchy.boxes[region]
        first = int(hierarchy.start[region])
        last = first + int(hierarchy.count[region]) - 1
        mask = cv2.inRange(ranks[y0 : y1 + 1, x0 : x1 + 1], first, last)
        mask = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
        y, x = np.unravel_index(np.argmax(depth), depth.shape)
        point[:] = x0 + x - 1, y0 + y - 1
    return points


def _encode(
    superpixels: _Superpixels, hierarchy: _Hierarchy, rows: NDArray[np.int64]
) -> NDArray[np.object_]:
    """Encode regions as COCO compressed counts of the whole tile, without making masks."""
    height, width = superpixels.labels.shape
    columns_first = superpixels.labels.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(columns_first)) + 1])
    stops = np.append(starts[1:], len(columns_first))
    ranks = _ranks(hierarchy)[columns_first[starts]]
    by_rank = np.argsort(ranks, kind="stable")
    starts, stops, ranks = starts[by_rank], stops[by_rank], ranks[by_rank]
    first = np.searchsorted(ranks, hierarchy.start[rows])
    last = np.searchsorted(ranks, hierarchy.start[rows] + hierarchy.count[rows])
    encoded = np.empty(len(rows), object)
    for i, (low, high) in enumerate(zip(first, last, strict=True)):
        place = np.concatenate((starts[low:high], stops[low:high]))
        encoded[i] = encode_edges(np.zeros(len(place), int), place, 1, height, width)[0]
    return encoded
