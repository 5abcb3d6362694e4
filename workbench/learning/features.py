"""Features of candidates, from their masks and the imagery, for a classifier to learn from.

Each candidate is sampled on a grid of 32 × 32 points that covers its box and a margin, so the cost
does not grow with its size: masks are sampled directly from their runs, pixels from the level of an
image pyramid that fits. Many candidates are described at once.

Lengths are ground metres or shares of the object, so features mean the same at another resolution.
Colours are relative to the scene: brightness and two colour differences, as distances from the
scene's median in units of its spread, so that they also hold in the light of another day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.candidates.rle import Runs, decode_runs
from workbench.candidates.table import Candidates
from workbench.raster.scene import Scene

FEATURES_VERSION = 2  # raise it whenever any feature changes, also by a constant below
FEATURES = (
    *(f"{name}_{channel}" for name in ("inside", "spread", "ring", "contrast")
      for channel in ("brightness", "red_green", "yellow_blue")),
    "separation", "edge_inside", "edge_outline", "edge_ring", "edge_ratio",
    "texture_inside", "texture_ring", "spread_ring_brightness",
    "darkest_side", "brightest_side", "weakest_side", "weak_sides", "weakest_edge", "weak_edges",
    "tones", "inner_edges", "edge_spread", "valid_share",
    "log_area", "log_perimeter", "log_width", "compactness", "solidity", "convexity",
    "rectangularity", "rectangle_ratio", "elongation", "box_fill",
    "pred_iou", "stability_score",
    "log_parts", "log_parents", "log_doubles", "share_of_parent", "lead",
    "largest_part", "parts_cover", "tile_sides",
)  # fmt: skip

Float = NDArray[np.float32]

_GRID = 32  # samples along each side
_BOX = 22  # samples along the longer side of the box; the rest is margin
_RING = (1, 4)  # samples from the outline of a mask to the inner and outer edge of its ring
_LEAST_CELL = 0.7  # pixels: with less, the ring would be thinner than the blur of an edge
_BATCH = 512  # candidates that are sampled at once: 10 MB
_LEVELS = 8  # of the pyramid
_DIRECTIONS = 24  # in which the extent of a mask is measured
_SECTORS = 8  # of the ring, to tell on which side the shadow is
# R, G, B to brightness, red against green, yellow against blue
_OPPONENT = np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, -0.5, 0], [0.25, 0.25, -0.5]])
_LEAST_SPREAD = (8.0, 4.0, 4.0)  # of 255: less is noise, as in the colours of a grey raster
_NEUTRAL, _UNIT = 128, 40  # of the scaled colours: the scene's median, and its spread


@dataclass(frozen=True)
class SceneColours:
    """The `(3, 4)` affine map from RGB to colours relative to a scene, 0 to 255."""

    to_relative: NDArray[np.float64]

    @classmethod
    def of(cls, scene: Scene) -> SceneColours:
        """Measure a scene on a small picture of the whole."""
        rgb, valid, _ = scene.overview(512)
        return cls.of_pixels(rgb[valid])

    @classmethod
    def of_pixels(cls, rgb: NDArray[np.uint8]) -> SceneColours:
        """Measure RGB pixels `(n, 3)`; none count as greys from black to white."""
        if not len(rgb):
            rgb = np.array([[0, 0, 0], [128, 128, 128], [255, 255, 255]], np.uint8)
        low, median, high = np.percentile(rgb @ _OPPONENT.T, (16, 50, 84), axis=0)
        gain = _UNIT / np.maximum((high - low) / 2, _LEAST_SPREAD)
        return cls(np.column_stack((_OPPONENT * gain[:, None], _NEUTRAL - median * gain)))

    def apply(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn RGB `(h, w, 3)` into relative colours of the same shape."""
        return np.asarray(cv2.transform(rgb, self.to_relative), np.uint8)


def describe(
    candidates: Candidates,
    image: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    colours: SceneColours,
    pixel_m: float,
) -> Float:
    """Describe all candidates of one tile by `FEATURES`, `(n, len(FEATURES))`, in their order.

    `image` is the tile's RGB `(h, w, 3)`, `valid` its validity `(h, w)`, `pixel_m` the side of a
    pixel in ground metres. Pass all stored candidates of the tile, because some features count what
    lies inside and around a candidate.
    """
    figures = np.zeros((len(candidates), len(FEATURES)), np.float32)
    if not len(candidates):
        return figures
    pyramid = _Pyramid.of(colours.apply(image), valid)
    counts = candidates.table.column("rle").to_pylist()
    for start in range(0, len(candidates), _BATCH):
        part = slice(start, min(start + _BATCH, len(candidates)))
        runs = decode_runs(counts[part], candidates.rules.height, candidates.rules.width)
        seen = _seen(runs, pyramid)
        shape = _shape(runs, seen.perimeter, pixel_m)
        figures[part, : seen.figures.shape[1] + shape.shape[1]] = np.column_stack(
            (seen.figures, shape)
        )
    scores = [candidates.column(name) for name in ("pred_iou", "stability_score")]
    figures[:, -10:] = np.column_stack((*scores, _neighbours(candidates)))
    return np.nan_to_num(figures, posinf=0, neginf=0)


# ------------------------------------------------------------------------------- the imagery


@dataclass(frozen=True)
class _Pyramid:
    """Pixels of all levels in one table `(p, 6)`: colours, edges, texture and validity.

    Level `i` begins at row `start[i]` and has `width[i]` pixels a row.
    """

    pixels: NDArray[np.uint8]
    start: NDArray[np.int64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]

    @classmethod
    def of(cls, colours: NDArray[np.uint8], valid: NDArray[np.bool_]) -> _Pyramid:
        """Halve the colours and validity of a tile again and again."""
        channels = cv2.split(colours)
        fine = cv2.absdiff(channels[0], cv2.GaussianBlur(channels[0], (0, 0), 1.5))
        level = [*channels, fine, valid.view(np.uint8) * np.uint8(255)]
        tables, sizes = [], []
        for _ in range(_LEVELS):
            edges = _edges(np.asarray(cv2.merge(level[:3]), np.uint8))
            tables.append(cv2.merge([*level, edges]).reshape(-1, 6))
            sizes.append(level[0].shape)
            height, width = (max(1, side // 2) for side in level[0].shape)
            level = [
                cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA) for one in level
            ]
        start = np.cumsum([0, *(len(table) for table in tables[:-1])])
        height_of, width_of = np.array(sizes).T
        return cls(np.concatenate(tables), start, width_of, height_of)

    def at(self, level: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64]) -> Float:
        """Pixels at the places `x`, `y` `(n, g)` of `n` grids, each seen at its level `(n,)`.

        Returns `(n, 6, g * g)`, x first.
        """
        level = level[:, None]
        width = self.width[level]
        column = np.minimum(x >> level, width - 1)
        row = self.start[level] + np.minimum(y >> level, self.height[level] - 1) * width
        place = (column[:, :, None] + row[:, None, :]).reshape(len(x), -1)
        return self.pixels.take(place, axis=0).transpose(0, 2, 1).astype(np.float32, order="C")


def _edges(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Strength of the strongest edge of three channels, 0 to 255."""
    smooth = cv2.split(cv2.blur(colours, (3, 3)))
    along = []
    for direction in ((1, 0), (0, 1)):
        steps = [np.abs(cv2.Sobel(one, cv2.CV_16S, *direction, ksize=1)) for one in smooth]
        along.append(cv2.max(cv2.max(steps[0], steps[1]), steps[2]))
    return np.asarray(cv2.convertScaleAbs(cv2.add(along[0], along[1])), np.uint8)


# --------------------------------------------------------------------- what a mask looks like


@dataclass(frozen=True)
class _Seen:
    """The features from the imagery, and the length of each outline in pixels."""

    figures: Float
    perimeter: Float


def _seen(runs: Runs, pyramid: _Pyramid) -> _Seen:
    """Sample masks and their surroundings on their grids."""
    x0, y0, x1, y1 = runs.bounds().T
    cell = np.maximum(np.maximum(x1 - x0, y1 - y0) / _BOX, _LEAST_CELL)
    steps = (np.arange(_GRID) + 0.5 - _GRID / 2) * cell[:, None]
    x, y = steps + (x0 + x1)[:, None] / 2, steps + (y0 + y1)[:, None] / 2
    mask = _sampled(runs, x, y, cell)
    near, wide = (_grown(mask, samples) for samples in _RING)
    core = ~_grown(~mask, 1)
    core = np.where(core.any(axis=(1, 2), keepdims=True), core, mask)  # a thin one is all outline
    masks = (mask, wide & ~near, near & ~core)

    level = np.clip(np.log2(np.maximum(cell, 1)).astype(np.int64), 0, _LEVELS - 1)
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    there_x, there_y = (column >= 0) & (column < runs.width), (row >= 0) & (row < runs.height)
    values = pyramid.at(level, np.clip(column, 0, runs.width - 1), np.clip(row, 0, runs.height - 1))
    there = (there_x[:, :, None] & there_y[:, None, :]).reshape(runs.n, -1)
    there &= values[:, 4] > 127
    areas = [part.reshape(runs.n, -1) & there for part in (*masks, core)]
    weights = np.stack(areas, axis=1).astype(np.float32)
    valid = weights[:, 0].sum(axis=1) / np.maximum(mask.sum(axis=(1, 2)), 1)
    figures = np.column_stack((_colours_and_edges(values, weights), valid)).astype(np.float32)
    across = (mask[:, 1:] != mask[:, :-1]).sum(axis=(1, 2))
    down = (mask[:, :, 1:] != mask[:, :, :-1]).sum(axis=(1, 2))
    return _Seen(figures, (np.pi / 4 * (across + down) * cell).astype(np.float32))


def _colours_and_edges(values: Float, weights: Float) -> Float:
    """Features `(n, k)` of the samples `values` `(n, 6, 1024)`.

    `weights` `(n, 4, 1024)` mark the samples inside, in the ring, at the outline, and in the core:
    inside, and clear of the outline.
    """
    count = np.maximum(weights.sum(axis=2), 1e-6)[..., None]
    mean = weights @ values.transpose(0, 2, 1) / count
    square = weights[:, :2] @ (values[:, :3] ** 2).transpose(0, 2, 1) / count[:, :2]
    spread = np.sqrt(np.maximum(square - mean[:, :2, :3] ** 2, 0))
    # without a ring in the picture the contrast is unknown: 0
    inside, ring, outline, core = mean.transpose(1, 0, 2)
    ring = np.where(count[:, 1] > 0.5, ring, inside)
    contrast = inside[:, :3] - ring[:, :3]
    within = np.sqrt((spread[:, 0] ** 2).sum(axis=1) + (spread[:, 1] ** 2).sum(axis=1)) + 8

    # by sectors: half a roof has no contrast on the side of the other half
    sides = _by_sector(weights[:, 1], values[:, :3], ring[:, :3]) - inside[:, :3, None]
    apart = np.sort(np.sqrt((sides**2).sum(axis=1)) / within[:, None], axis=1)
    tones = _by_sector(weights[:, 0], values[:, :3], inside[:, :3]) - inside[:, :3, None]
    edges = _by_sector(weights[:, 2], values[:, 5:], outline[:, 5:])[:, 0]
    edges = np.sort((edges + 4) / (inside[:, 5:] + 4), axis=1)

    # a mask of two roofs has inner edges as strong as its outline
    strong = (weights[:, 3] * (values[:, 5] > outline[:, 5:])).sum(axis=1) / count[:, 3, 0]
    edge_square = (weights[:, 3] * values[:, 5] ** 2).sum(axis=1) / count[:, 3, 0]
    return np.column_stack(
        (
            inside[:, :3] - _NEUTRAL, spread[:, 0], ring[:, :3] - _NEUTRAL, contrast,
            np.sqrt((contrast**2).sum(axis=1)) / within,
            inside[:, 5], outline[:, 5], ring[:, 5], (outline[:, 5] + 4) / (inside[:, 5] + 4),
            inside[:, 3], ring[:, 3], spread[:, 1, 0],
            sides[:, 0].min(axis=1), sides[:, 0].max(axis=1),
            apart[:, 0], apart[:, 2], edges[:, 0], edges[:, 2],
            np.sqrt((tones**2).sum(axis=1)).max(axis=1), strong,
            np.sqrt(np.maximum(edge_square - core[:, 5] ** 2, 0)),
        )
    )  # fmt: skip


def _sector_of() -> Float:
    """Which of the sectors each sample of a grid lies in, `(1024, 8)` of 0 and 1."""
    middle = np.arange(_GRID) + 0.5 - _GRID / 2
    angle = np.arctan2(middle[None, :], middle[:, None])
    sector = np.floor((angle / (2 * np.pi) % 1) * _SECTORS).astype(int) % _SECTORS
    return (sector.reshape(-1, 1) == np.arange(_SECTORS)).astype(np.float32)


_SECTOR_OF = _sector_of()


def _by_sector(weights: Float, values: Float, instead: Float) -> Float:
    """Means of `values` `(n, c, 1024)` in each sector, `(n, c, 8)`; `instead` `(n, c)` if empty."""
    samples = (weights @ _SECTOR_OF)[:, None]
    means = (weights[:, None] * values) @ _SECTOR_OF / np.maximum(samples, 1)
    return np.where(samples > 0, means, instead[..., None])


def _sampled(runs: Runs, x: NDArray[Any], y: NDArray[Any], cell: NDArray[Any]) -> NDArray[np.bool_]:
    """Sample masks at the places `x`, `y` `(n, 32)` of their grids; `(n, 32, 32)`, x first."""
    column = np.floor(x).astype(np.int64)
    wanted = np.arange(runs.n)[:, None] * (runs.width + 2) + np.clip(column, -1, runs.width) + 1
    key = runs.mask * (runs.width + 2) + runs.x + 1
    wanted = wanted.ravel()
    first = np.searchsorted(key, wanted)
    found = np.searchsorted(key, wanted, "right") - first
    line = np.repeat(np.arange(len(wanted)), found)
    run = np.arange(len(line)) + np.repeat(first - np.cumsum(found) + found, found)
    top, step = y[:, 0][line // _GRID], cell[line // _GRID]
    begin, end = (
        np.clip(np.ceil((edge[run] - top) / step), 0, _GRID).astype(np.int64)
        for edge in (runs.y0, runs.y1)
    )
    size = len(wanted) * (_GRID + 1)
    change = np.bincount(line * (_GRID + 1) + begin, minlength=size).astype(np.int32)
    change -= np.bincount(line * (_GRID + 1) + end, minlength=size).astype(np.int32)
    inside = np.cumsum(change.reshape(-1, _GRID + 1), axis=1)[:, :_GRID] > 0
    return np.asarray(inside.reshape(runs.n, _GRID, _GRID))


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Grow masks `(n, h, w)` by some steps, diagonally too in every second step."""
    for step in range(by):
        grown = mask.copy()
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        wide = grown.copy() if step % 2 else mask
        grown[:, :, 1:] |= wide[:, :, :-1]
        grown[:, :, :-1] |= wide[:, :, 1:]
        mask = grown
    return mask


# ------------------------------------------------------------------------------------- shape


def _shape(runs: Runs, perimeter: Float, pixel_m: float) -> Float:
    """Features of shape, `(n, 10)`; those of empty masks are 0."""
    shape = np.zeros((runs.n, 10), np.float32)
    if not len(runs.mask):
        return shape
    first = np.flatnonzero(np.diff(runs.mask, prepend=-1))
    rows = runs.mask[first]
    length = (runs.y1 - runs.y0).astype(np.float64)
    x, y = runs.x + 0.5, (runs.y0 + runs.y1) / 2
    sums = np.add.reduceat(
        np.column_stack(
            (length, length * x, length * y, length * x * x,
             length * (y * y + (length * length - 1) / 12), length * x * y)
        ), first,
    )  # fmt: skip
    area = sums[:, 0]
    mx, my, xx, yy, xy = (sums[:, 1:] / area[:, None]).T
    xx, yy, xy = xx - mx * mx + 1 / 12, yy - my * my + 1 / 12, xy - mx * my
    root = np.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    elongation = np.sqrt(np.maximum((xx + yy) / 2 - root, 0) / ((xx + yy) / 2 + root))

    # how far each mask reaches in 24 directions gives its convex hull, to 1 % for a circle
    angle = np.arange(_DIRECTIONS, dtype=float) * (2 * np.pi / _DIRECTIONS)
    reach = _reach(runs, first, angle)
    turn = 2 * np.pi / _DIRECTIONS
    side = np.roll(reach, 1, axis=1) + np.roll(reach, -1, axis=1) - 2 * reach * np.cos(turn)
    side = np.maximum(side, 0) / np.sin(turn)
    hull = (reach * side).sum(axis=1) / 2
    half = _DIRECTIONS // 2
    widths = reach[:, :half] + reach[:, half:]
    rectangles = widths * np.roll(widths, half // 2, axis=1)
    best = rectangles.argmin(axis=1)
    rectangle = rectangles.min(axis=1)
    one = np.take_along_axis(widths, best[:, None], 1)[:, 0]
    other = np.take_along_axis(widths, (best[:, None] + half // 2) % half, 1)[:, 0]
    box = widths[:, 0] * widths[:, half // 2]
    around = np.maximum(perimeter[rows].astype(np.float64), 1)
    shape[rows] = np.column_stack(
        (
            np.log(area * pixel_m**2),
            np.log(around * pixel_m),
            np.log(2 * area / around * pixel_m),
            4 * np.pi * area / around**2,
            area / hull,
            side.sum(axis=1) / around,
            area / rectangle,
            np.minimum(one, other) / np.maximum(one, other),
            elongation,
            area / box,
        )
    )
    return shape


def _reach(runs: Runs, first: NDArray[np.int64], angle: NDArray[np.float64]) -> NDArray[Any]:
    """How far masks reach in each direction, `(masks, directions)`; `first` are their first runs.

    The second half of the directions is opposite to the first.
    """
    # only the lowest and the highest pixel of a column can be on the hull
    new = np.flatnonzero(np.diff(runs.mask * (runs.width + 1) + runs.x, prepend=-1))
    x = runs.x[new].astype(np.float32)
    low = np.minimum.reduceat(runs.y0, new).astype(np.float32)
    high = np.maximum.reduceat(runs.y1, new).astype(np.float32)
    begin = np.searchsorted(new, first)
    reach = np.empty((len(angle), len(first)), np.float32)
    half = len(angle) // 2
    for i, (c, s) in enumerate(zip(np.cos(angle[:half]), np.sin(angle[:half]), strict=True)):
        along = x * np.float32(c)
        reach[i] = np.maximum.reduceat(along + high * np.float32(s), begin)
        reach[half + i] = -np.minimum.reduceat(along + low * np.float32(s), begin)
    # a pixel is as wide as its column
    return reach.T.astype(np.float64) + np.maximum(np.cos(angle), 0)


def _neighbours(candidates: Candidates) -> Float:
    """Compare each candidate with the others of its tile, by their boxes, `(n, 8)`.

    In this order: how many others lie inside it, around it and at the same place (logarithms); its
    area divided by that of the smallest one around it; the lead of its predicted IoU over those at
    its place; how much of it is covered by the largest one inside, and by all of those; how many
    edges of the tile it touches.
    """
    x0, y0, x1, y1 = (candidates.boxes + (0, 0, 1, 1)).T.astype(np.float32)
    size = (x1 - x0) * (y1 - y0)
    area = candidates.column("area_px").astype(np.float32)
    score = candidates.column("pred_iou")
    figures = np.zeros((len(size), 8), np.float32)
    rules = candidates.rules
    sides = np.sum((x0 <= 1, y0 <= 1, x1 >= rules.width - 1, y1 >= rules.height - 1), axis=0)
    for start in range(0, len(size), 256):
        i = np.s_[start : start + 256, None]
        wide = np.minimum(x1[i], x1) - np.maximum(x0[i], x0)
        tall = np.minimum(y1[i], y1) - np.maximum(y0[i], y0)
        common = np.maximum(wide, 0) * np.maximum(tall, 0)
        double = common > 0.7 * (size[i] + size - common)
        part = (common > 0.9 * size) & (area < 0.8 * area[i]) & ~double
        parent = (common > 0.9 * size[i]) & (area[i] < 0.8 * area) & ~double
        around = np.where(parent, area, np.inf).min(axis=1)
        rival = np.where(common > 0.5 * (size[i] + size - common), score, -np.inf)
        np.put_along_axis(rival, np.arange(start, start + len(rival))[:, None], -np.inf, 1)
        best = rival.max(axis=1)
        inside = np.where(part, area, 0)
        rows = slice(start, start + len(rival))
        figures[rows] = np.column_stack(
            (
                np.log1p(part.sum(axis=1)), np.log1p(parent.sum(axis=1)),
                np.log1p(double.sum(axis=1) - 1),
                area[rows] / around,
                np.where(np.isfinite(best), score[rows] - best, 0.5),
                inside.max(axis=1) / area[rows],
                np.minimum(inside.sum(axis=1) / area[rows], 4),
                sides[rows],
            )
        )  # fmt: skip
    return figures
