"""The regions of a picture that `tiny` knows of, and what tells good ones from bad ones.

A watershed of borders cuts the picture into superpixels, and two hierarchies merge them: one by
borders that a network has seen (`bordernet`), one by colour. Another network reads from the traits
of a region how well it fits an object.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from workbench.segmenters.classic import gradient_of
from workbench.segmenters.hierarchy import (
    Hierarchy,
    Superpixels,
    best_ious,
    flooded,
    hierarchy_of,
    joins,
    measure_superpixels,
)

MIN_AREA_PX = 30
OWN_SHARE = 0.2  # of the gradient, in the borders that are flooded
FLAT = 0.02  # what is less strong is the inside of one superpixel
N_TREES = 2
N_TRAITS = 3 * 49 + N_TREES  # its own, and what its parent and its larger part have more
OUTLINE_TRAIT = 10  # the first of `LIKELY` traits: shares of the outline that are likely borders
SMALL = 0.01  # under which a squared difference of colours is none
SURE = (0.2, 0.5)  # a border above is a likely one
LIKELY = len(SURE)
SAME_SHARE = 0.95  # a region that makes up so much of another one stands for it
GRADIENT_SCALE = np.float32(1 / 16)  # so that a strong edge between two surfaces is about 1
# columns of the borders' strengths
SEEN, PART, WHOLE, STEP = range(4)


@dataclass(frozen=True)
class Regions:
    """All regions of both hierarchies, one after the other.

    `tree` says which one `(r,)`; the pixels of a region are those whose rank in it, of
    `ranks[tree]` `(trees, h, w)`, is at least `first` and less than `last`.
    """

    superpixels: Superpixels
    trees: tuple[Hierarchy, ...]
    ranks: NDArray[np.int32]
    tree: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    area: NDArray[np.int64]
    boxes: NDArray[np.int64]  # (r, 4)
    outline: NDArray[np.int64]  # (r,) pixel edges, with those along the edge of the image
    traits: NDArray[np.float32]  # (r, n)

    def held(self, rows: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return `(rows, superpixels)`, 1 where the superpixel belongs to the region."""
        offset = np.cumsum([0, *(len(tree.area) for tree in self.trees)])
        mine = [np.flatnonzero(self.tree[rows] == number) for number in range(len(self.trees))]
        parts = [
            tree.membership(rows[some] - start)
            for tree, some, start in zip(self.trees, mine, offset[:-1], strict=True)
        ]
        return sparse.vstack(parts).tocsr()[np.argsort(np.concatenate(mine))]


def superpixels_of(rgb: NDArray[np.uint8], maps: NDArray[np.float32]) -> Superpixels:
    """Cut a picture `(h, w, 3)` along borders: `maps` `(3, h, w)` are those of `BorderNet`, 0 to 1.

    The sums are those of three colours and their squares, of the gradient, and of the maps.
    """
    lab = cv2.cvtColor(rgb.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    gradient = gradient_of(lab, 0.7) * GRADIENT_SCALE
    colours = list(lab.transpose(2, 0, 1) / np.float32(10))
    part, whole, on_object = maps
    # the gradient finds what the network has not seen, and where exactly its borders run
    seen = (part + whole) / 2 + np.float32(OWN_SHARE) * np.minimum(gradient, 1)
    levels = np.clip(np.sqrt(seen) * 230, 0, 255).astype(np.uint8)
    smooth = np.maximum(cv2.GaussianBlur(seen, (0, 0), 1.0), np.float32(FLAT))
    labels = flooded(levels, smooth, reach=3)
    squares = sum(x * x for x in colours)
    return measure_superpixels(
        labels,
        [*colours, squares, gradient, part, on_object],
        [seen, part, whole, gradient],
    )


def by_border(difference: float, a: int, b: int, length: int, strength: float) -> float:
    """The mean strength of the border; small and kindred regions go first where that is equal."""
    return (strength / length) * ((difference + 0.1) * a * b / (a + b)) ** 0.25


def by_colour(difference: float, a: int, b: int, length: int, strength: float) -> float:
    """The price of the second hierarchy of `classic`."""
    return a * b / (a + b) * difference / length * (strength / length) ** 2


def regions_of(superpixels: Superpixels) -> Regions:
    """Merge superpixels to regions, and describe them."""
    trees = (
        hierarchy_of(superpixels, superpixels.strengths[:, SEEN], by_border),
        hierarchy_of(superpixels, superpixels.strengths[:, STEP], by_colour),
    )
    which = np.repeat(np.arange(N_TREES), [len(tree.area) for tree in trees])
    first = np.concatenate([tree.start for tree in trees])
    borders = _border_columns(superpixels)
    leaves = _leaf_columns(superpixels, borders)
    own, outlines = zip(
        *(_traits(superpixels, borders, leaves, one, other) for one, other in (trees, trees[::-1])),
        strict=True,
    )
    traits = [_with_kin(of_tree, tree) for of_tree, tree in zip(own, trees, strict=True)]
    return Regions(
        superpixels,
        trees,
        np.stack([tree.ranks[superpixels.labels] for tree in trees]).astype(np.int32),
        which,
        first,
        first + np.concatenate([tree.count for tree in trees]),
        np.concatenate([tree.area for tree in trees]),
        np.concatenate([tree.boxes for tree in trees]),
        np.concatenate(outlines).astype(np.int64),
        np.column_stack([np.concatenate(traits), np.eye(N_TREES)[which]]).astype(np.float32),
    )


def _traits(
    superpixels: Superpixels,
    own: NDArray[np.float64],
    leaves: NDArray[np.float64],
    tree: Hierarchy,
    other: Hierarchy,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Describe the regions of a hierarchy, `(r, 49)`, and tell the length of their outlines.

    What all of it is made of is known of borders, `own` `(m, 7)`, and superpixels, `leaves`.
    """
    n = len(superpixels.area)
    at = joins(superpixels, tree)
    removed: NDArray[np.float64] = np.column_stack(
        [np.bincount(at, x, len(tree.area)) for x in own.T]
    )
    less = np.zeros((len(tree.merges), leaves.shape[1]))
    less[:, -own.shape[1] :] = 2 * removed[n:]
    totals = tree.totals(leaves, less)
    area = tree.area
    mean = totals[:, :7] / area[:, None]
    at_edge, length = totals[:, 12], totals[:, 13]
    outline = totals[:, 14:] / np.maximum(length, 1)[:, None]
    born = removed[:, 1:] / np.maximum(removed[:, :1], 1)
    inside = tree.totals(np.zeros((n, removed.shape[1])), -removed[n:])
    perimeter = length + at_edge
    width, height = (tree.boxes[:, 2:] - tree.boxes[:, :2] + 1).T
    strongest = born[:, 1].copy()
    for region, one, two in tree.steps:
        inner = np.maximum(strongest[one], strongest[two])
        strongest[region] = np.maximum(strongest[region], inner)
    up = tree.parent
    away = (area[up] / np.maximum(area[up] - area, 1))[:, None]
    # how far the rest of the parent is from the region
    apart = (mean[up] - mean) * away
    spread = np.log(np.maximum(mean[:, 3] - (mean[:, :3] ** 2).sum(1), 0) + SMALL)
    filled, elongated = _shape(totals[:, 7:12], area)
    rows = np.arange(len(area))
    columns = [
        np.log(area),
        4 * np.pi * area / np.maximum(perimeter, 1) ** 2,
        area / (width * height),
        filled,
        elongated,
        np.log(np.maximum(width, height) / np.minimum(width, height)),
        1 - length / np.maximum(perimeter, 1),
        removed[:, 0] / np.maximum(perimeter, 1),
        np.log(area / area[up]),
        _agreement(superpixels, tree, other),
        *outline[:, STEP + 1 :].T,
        *outline[:, : STEP + 1].T,
        *born[:, : STEP + 1].T,
        *born[up, : STEP + 1].T,
        *outline[up].T,
        strongest,
        strongest[up],
        outline[:, PART] - strongest,
        inside[:, 1 + PART] / np.maximum(inside[:, 0], 1),
        inside[:, 1 + PART] / np.maximum(perimeter, 1),
        inside[:, 0] / area,
        mean[:, 4],
        mean[:, 5],
        mean[:, 6],
        outline[:, STEP] / (mean[:, 4] + GRADIENT_SCALE),
        spread,
        spread[up] - spread,
        np.log((apart[:, :3] ** 2).sum(1) + SMALL),
        np.abs(apart[:, 0]),
        apart[:, 4],
        apart[:, 6],
        born[up, PART] - born[:, PART],
        outline[up, PART] - outline[:, PART],
        tree.alike(SAME_SHARE) == rows,
    ]
    return np.column_stack(columns).astype(float), perimeter


def _with_kin(traits: NDArray[np.float64], tree: Hierarchy) -> NDArray[np.float64]:
    """Add to traits `(r, n)` what those of the parent and of the larger part differ by."""
    part = np.arange(len(tree.area))
    larger = tree.area[tree.merges].argmax(axis=1)
    part[len(tree.order) :] = tree.merges[np.arange(len(larger)), larger]
    return np.column_stack([traits, traits[tree.parent] - traits, traits[part] - traits])


def _border_columns(superpixels: Superpixels) -> NDArray[np.float64]:
    """What is summed up along outlines, `(m, 7)`: length, strengths, length where one is likely."""
    likely = superpixels.strengths[:, PART] / superpixels.length
    sure = [superpixels.length * (likely > above) for above in SURE]
    return np.column_stack([superpixels.length, superpixels.strengths, *sure]).astype(float)


def _leaf_columns(superpixels: Superpixels, borders: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is summed up over superpixels `(n, 20)`: pixels, edges, and `borders` around them."""
    n, both = len(superpixels.area), superpixels.pairs.T.ravel()
    outer = [np.bincount(both, np.tile(x, 2), n) for x in borders.T]
    inner = [superpixels.sums, _moments(superpixels), superpixels.at_image_edge]
    return np.column_stack([*inner, *outer])


def _moments(superpixels: Superpixels) -> NDArray[np.float64]:
    """Sums over pixels `(n, 5)` of x, y, x², y² and xy, with the unit of a hundred pixels."""
    height, width = superpixels.labels.shape
    flat, n = superpixels.labels.ravel(), len(superpixels.area)
    y, x = (0.01 * axis.ravel() for axis in np.mgrid[:height, :width])
    return np.column_stack([np.bincount(flat, z, n) for z in (x, y, x * x, y * y, x * y)])


def _shape(
    moments: NDArray[np.float64], area: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much of the ellipse of equal moments a region fills, and how long that is."""
    x, y, xx, yy, xy = (moments / area[:, None]).T
    pixel = 1e-4 / 12  # of one pixel alone
    var_x, var_y, cov = xx - x * x + pixel, yy - y * y + pixel, xy - x * y
    middle = (var_x + var_y) / 2
    off = np.sqrt(((var_x - var_y) / 2) ** 2 + cov**2)
    long, short = middle + off, np.maximum(middle - off, pixel)
    filled = area * 1e-4 / (4 * np.pi * np.sqrt(long * short))
    return filled, np.log(long / short) / 2


def _agreement(superpixels: Superpixels, tree: Hierarchy, other: Hierarchy) -> NDArray[np.float64]:
    """The best IoU of each region with any of the other hierarchy, `(r,)`; 0 for small ones."""
    found = np.zeros(len(tree.area))
    large = np.flatnonzero(tree.area >= MIN_AREA_PX)
    found[large] = best_ious(superpixels, tree, large, other, SAME_SHARE)
    return found


def distinct(
    regions: Regions, scores: NDArray[np.float32], most: int, same_iou: float
) -> NDArray[np.int64]:
    """The regions that differ, those with the best scores first, `most` of them at most."""
    chosen, offset = [], 0
    for tree in regions.trees:
        # the best one of each line of regions that hardly grow: what is left is bounded
        group, mine = tree.alike(0.85), scores[offset : offset + len(tree.area)]
        order = np.lexsort((-mine, group))
        chosen.append(order[np.r_[True, np.diff(group[order]) != 0]] + offset)
        offset += len(tree.area)
    rows = np.concatenate(chosen)
    rows = rows[regions.area[rows] >= MIN_AREA_PX]
    rows = rows[np.lexsort((rows, -scores[rows]))][: 2 * most]
    return rows[_survivors(regions, rows, same_iou)][:most]


def _survivors(regions: Regions, rows: NDArray[np.int64], same_iou: float) -> NDArray[np.int64]:
    """Suppress each of the rows, best first, that overlaps a better one too much."""
    inside = regions.held(rows)
    shared = (inside.multiply(regions.superpixels.area).tocsr() @ inside.T).tocoo()
    area = regions.area[rows]
    iou = shared.data / (area[shared.row] + area[shared.col] - shared.data)
    close = (iou > same_iou) & (shared.row < shared.col)
    order = np.argsort(shared.row[close], kind="stable")
    alive = np.ones(len(rows), bool)
    for one, other in zip(
        shared.row[close][order].tolist(), shared.col[close][order].tolist(), strict=True
    ):
        if alive[one]:
            alive[other] = False
    return np.flatnonzero(alive)
