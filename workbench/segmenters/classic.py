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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.candidates.rle import encode_edges
from workbench.candidates.select import prune
from workbench.candidates.table import SAM_RULES, Candidates, Rules
from workbench.segmenters.hierarchy import (
    Hierarchy,
    Superpixels,
    best_ious,
    flooded,
    hierarchy_of,
    measure_superpixels,
)
from workbench.segmenters.protocol import Watch

VERSION = 1  # part of the key; goes up if the method or a constant changes

# the strength of a border counts in the second hierarchy only
EDGE_EXPONENTS = (0, 2)
SAME_SHARE = 0.97  # a region that makes up so much of another one stands for it


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
        first, second = (_regions(superpixels, exponent) for exponent in EDGE_EXPONENTS)
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
            _deepest_pixels(superpixels, of.hierarchy, rows)
            for of, rows in zip((first, second), regions, strict=True)
        ]
        masks = [
            _encode(superpixels, of.hierarchy, rows)
            for of, rows in zip((first, second), regions, strict=True)
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
        self, superpixels: Superpixels, found: _Regions, other: _Regions
    ) -> dict[str, NDArray[Any]]:
        """Return region numbers, scores, boxes and areas, in the order of the merges."""
        hierarchy, pred_iou = found.hierarchy, _pred_iou(found)
        regions = np.flatnonzero(
            (hierarchy.area >= self.min_region_px)
            & (pred_iou > np.float32(self.rules.pred_iou_floor))
        )
        stability = _stability(
            best_ious(superpixels, hierarchy, regions, other.hierarchy, SAME_SHARE)
        )
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


def _superpixels(image: NDArray[np.uint8]) -> Superpixels:
    """Flood the gradient from its minima: about 9,000 superpixels per megapixel of aerial imagery.

    With fewer, thin objects are lost; with more, it takes longer. Colours are CIELAB, so a gradient
    is in colour differences per pixel.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    gradient = gradient_of(lab, 1.0)
    levels = np.clip(gradient * 4, 0, 255).astype(np.uint8)  # a quarter of a colour difference
    labels = flooded(levels, cv2.GaussianBlur(gradient, (0, 0), 1.5), reach=5)
    return measure_superpixels(labels, [*lab.transpose(2, 0, 1), gradient], [gradient])


def gradient_of(lab: NDArray[Any], sigma: float) -> NDArray[np.float32]:
    """How fast colours `(h, w, 3)` change at each pixel, after some smoothing."""
    smooth = cv2.GaussianBlur(lab, (0, 0), sigma)
    along_x = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=1 / 32)
    along_y = cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=1 / 32)
    return np.sqrt((along_x**2 + along_y**2).sum(axis=2))


@dataclass(frozen=True)
class _Regions:
    """A hierarchy, and what the scores of its regions are made of."""

    hierarchy: Hierarchy
    gradient: NDArray[np.float64]  # sum over the region's pixels
    outline: NDArray[np.int64]  # pixel edges against other regions
    strength: NDArray[np.float64]  # sum of the gradient over them
    at_tile_edge: NDArray[np.int64]  # pixel edges along the tile's edge


def _regions(superpixels: Superpixels, edge_exponent: int) -> _Regions:
    def price(difference: float, a: int, b: int, length: int, strength: float) -> float:
        return a * b / (a + b) * difference / length * (strength / length) ** edge_exponent

    strength = superpixels.strengths[:, 0]
    hierarchy = hierarchy_of(superpixels, strength, price)
    n = len(superpixels.area)
    one, two = superpixels.pairs.T
    both = np.concatenate([one, two])
    own = [
        superpixels.sums[:, 3],
        np.bincount(both, np.tile(superpixels.length, 2), n),
        np.bincount(both, np.tile(strength, 2), n),
        superpixels.at_image_edge,
    ]
    removed = np.zeros((len(hierarchy.merges), 4))
    removed[:, 1:3] = 2 * hierarchy.removed
    gradient, outline, along, at_edge = hierarchy.totals(np.column_stack(own), removed).T
    return _Regions(hierarchy, gradient, outline.astype(np.int64), along, at_edge.astype(np.int64))


def _pred_iou(regions: _Regions) -> NDArray[np.float32]:
    """Map evidence to 0..1: 0.5 at 2.4, 0.85 at 4.3; 0 without any outline."""
    area = regions.hierarchy.area
    inside = regions.gradient / area
    along = regions.strength / np.maximum(regions.outline, 1)
    # 1: a colour difference that noise alone makes
    contrast = along / (inside + 1)
    compactness = 4 * np.pi * area / (regions.outline + regions.at_tile_edge) ** 2
    # a long outline is less likely to be strong by chance than a short one: hence the size
    evidence = contrast * compactness**0.75 * area**0.2
    power = evidence**3
    return (power / (power + 2.4**3)).astype(np.float32)


def _stability(best_iou: NDArray[np.float64]) -> NDArray[np.float32]:
    """Map the best IoU with any region of the other hierarchy: 0.2 becomes 0.5, 0.57 0.92."""
    return (1 - (1 - best_iou) ** 3).astype(np.float32)


def _deepest_pixels(
    superpixels: Superpixels, hierarchy: Hierarchy, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return `(n, 2)`, x and y of the pixel furthest from the outline and the tile's edge."""
    ranks = hierarchy.ranks.astype(np.int32)[superpixels.labels]
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
    superpixels: Superpixels, hierarchy: Hierarchy, rows: NDArray[np.int64]
) -> NDArray[np.object_]:
    """Encode regions as COCO compressed counts of the whole tile, without making masks."""
    height, width = superpixels.labels.shape
    columns_first = superpixels.labels.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(columns_first)) + 1])
    stops = np.append(starts[1:], len(columns_first))
    ranks = hierarchy.ranks[columns_first[starts]]
    by_rank = np.argsort(ranks, kind="stable")
    starts, stops, ranks = starts[by_rank], stops[by_rank], ranks[by_rank]
    first = np.searchsorted(ranks, hierarchy.start[rows])
    last = np.searchsorted(ranks, hierarchy.start[rows] + hierarchy.count[rows])
    encoded = np.empty(len(rows), object)
    for i, (low, high) in enumerate(zip(first, last, strict=True)):
        place = np.concatenate((starts[low:high], stops[low:high]))
        encoded[i] = encode_edges(np.zeros(len(place), int), place, 1, height, width)[0]
    return encoded
