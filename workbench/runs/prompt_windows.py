"""The windows of a raster in which prompts are asked; neighbouring prompts share one.

Each feature lies well inside its window, so no seam cuts its mask. Encoding a window is the
expensive part, so features of a tile that fit into one window share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from workbench.candidates.table import Candidates
from workbench.raster.scene import Scene
from workbench.raster.tiles import Tile, TileGrid
from workbench.runs.prompts import PromptFeatures, middles
from workbench.runs.tile_stream import ScenePlan
from workbench.segmenters.at_points import MOST_MASKS, answer
from workbench.segmenters.protocol import AskedInItsWay, Segmenter, Watch

# of a window, around its features: with less, the roofs of one tile more often fit into one window
MARGIN = 0.05

TileIndex = tuple[str, int, int]  # source, row, column


@dataclass(frozen=True, eq=False)
class PromptWindow:
    """A window, and the features that are asked for in it.

    `tile` has the window in pixels of its scene, which may be a coarser one. Its row and column are
    not a place. They are a hash of everything that the answers depend on, so that the store finds
    the answers again.
    """

    tile: Tile
    home: TileIndex  # the tile of the working grid that the features belong to
    features: NDArray[np.intp]  # (n,) rows of the prompts
    points: NDArray[np.float64]  # (n, 2) XY, pixels of the window
    boxes: NDArray[np.float64] | None  # (n, 4) XYXY, pixels of the window; None for points


@dataclass(frozen=True, eq=False)
class AskedPrompts:
    """The prompts of a run, and the windows in which they are asked.

    `parts` has the windows of each scene, and of each coarser scale of it, as its tiles.
    """

    prompts: PromptFeatures
    parts: tuple[ScenePlan, ...]
    windows: Mapping[TileIndex, PromptWindow]

    @property
    def sources(self) -> set[str]:
        """The names of the scenes of the windows."""
        return {part.scene.name for part in self.parts}

    @property
    def homes(self) -> set[TileIndex]:
        """The tiles of the working grid that have prompts."""
        return {window.home for window in self.windows.values()}

    def asker(self, part: ScenePlan, segmenter: Segmenter) -> Callable[[Tile], Segmenter]:
        """What computes each window: the Segmenter, asked at the prompts there."""
        return lambda tile: _asked(segmenter, self.windows[part.index(tile)])


def ask(
    prompts: PromptFeatures, parts: Sequence[ScenePlan], side: int, with_boxes: bool
) -> AskedPrompts:
    """Put windows of `side` pixels around the prompts.

    `parts` are the scenes on the working grid. A feature belongs to the first scene that holds its
    representative point, and to the tile whose core holds it. A model that does not gain from boxes
    gets points only.
    """
    todo, with_boxes = prompts.asked, with_boxes and not prompts.are_points
    middle = middles(prompts.shapes[todo])
    found: dict[TileIndex, PromptWindow] = {}
    planned: list[ScenePlan] = []
    for part in parts:
        here = shapely.intersects_xy(shapely.box(*part.scene.bounds), middle)
        by_scale: dict[int, list[PromptWindow]] = {}
        for scale, window in _windows(part, prompts, todo[here], middle[here], side, with_boxes):
            by_scale.setdefault(scale, []).append(window)
        for scale, windows in sorted(by_scale.items()):
            asked = _part_of(part.scene, scale, side, [window.tile for window in windows])
            planned.append(asked)
            found |= {asked.index(window.tile): window for window in windows}
        todo, middle = todo[~here], middle[~here]
    return AskedPrompts(prompts, tuple(planned), found)


def _part_of(scene: Scene, scale: int, side: int, tiles: Sequence[Tile]) -> ScenePlan:
    """The windows of a scene at a scale, under a scene name that its tiles do not have."""
    seen = scene.coarser(scale)
    seen = replace(seen, name=f"{seen.name}/prompts")
    # all windows have one size; only the tiles say where they lie
    return ScenePlan(seen, TileGrid(side, side, side, 0), tuple(tiles))


def _windows(
    part: ScenePlan,
    prompts: PromptFeatures,
    rows: NDArray[np.intp],
    middle: NDArray[np.float64],
    side: int,
    with_boxes: bool,
) -> Iterator[tuple[int, PromptWindow]]:
    """The windows of a scene's features and the scale of each, tile by tile."""
    if not len(rows):
        return
    to_pixel = ~part.scene.transform
    points = np.column_stack(to_pixel @ (middle[:, 0], middle[:, 1]))
    corners = shapely.bounds(prompts.shapes[rows])  # of a north-up scene
    x0, y1 = to_pixel @ (corners[:, 0], corners[:, 1])
    x1, y0 = to_pixel @ (corners[:, 2], corners[:, 3])
    boxes = np.column_stack((x0, y0, x1, y1))
    room = side * (1 - 2 * MARGIN)
    longest = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    scales = 2 ** np.ceil(np.log2(np.maximum(longest / room, 1))).astype(np.int64)
    tiles = _tile_of(part.grid, points)
    keys = np.column_stack((tiles, scales))
    unique, group_of = np.unique(keys, axis=0, return_inverse=True)
    members = np.split(
        np.argsort(group_of.ravel(), kind="stable"),
        np.cumsum(np.bincount(group_of.ravel(), minlength=len(unique)))[:-1],
    )
    for (row, col, scale), of_tile in zip(unique.tolist(), members, strict=True):
        seen = part.scene.coarser(scale)
        there: dict[tuple[int, int], list[NDArray[np.intp]]] = {}
        for some in _fitting(boxes, of_tile, room * scale):
            place = _placed(boxes[some] / scale, seen, side)
            there.setdefault(place, []).append(some)
        for (left, top), groups in sorted(there.items(), key=lambda one: one[0][::-1]):
            some = np.sort(np.concatenate(groups))
            asked_points = np.round(points[some] / scale - (left, top), 3)
            asked_boxes = None
            if with_boxes:
                asked_boxes = np.round(boxes[some] / scale - np.tile((left, top), 2), 3)
                asked_boxes = asked_boxes.clip(0, side)
            known = _name(scale, left, top, side, asked_points, asked_boxes)
            window = Window(left, top, side, side)
            home = (part.scene.name, row, col)
            yield (
                scale,
                PromptWindow(
                    Tile(*known, window, window), home, rows[some], asked_points, asked_boxes
                ),
            )


def _tile_of(grid: TileGrid, points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Row and column `(n, 2)` of the tile whose core holds each point."""
    tops = [grid.tile(row, 0).core.row_off for row in range(grid.n_rows)]
    lefts = [grid.tile(0, col).core.col_off for col in range(grid.n_cols)]
    rows = np.searchsorted(tops, points[:, 1], side="right") - 1
    cols = np.searchsorted(lefts, points[:, 0], side="right") - 1
    return np.column_stack((rows.clip(0), cols.clip(0)))


def _fitting(
    boxes: NDArray[np.float64], rows: NDArray[np.intp], room: float
) -> Iterator[NDArray[np.intp]]:
    """Halve features along the longer side, until those of each group fit into the room."""
    waiting = [rows]
    while waiting:
        some = waiting.pop()
        extent = boxes[some, 2:].max(axis=0) - boxes[some, :2].min(axis=0)
        if len(some) == 1 or extent.max() <= room:
            yield some
            continue
        axis = int(np.argmax(extent))
        order = np.argsort(boxes[some, axis] + boxes[some, axis + 2], kind="stable")
        half = len(some) // 2
        waiting += [some[order[half:]], some[order[:half]]]


def _placed(boxes: NDArray[np.float64], scene: Scene, side: int) -> tuple[int, int]:
    """The corner (left, top) of a window around boxes, shifted into the scene."""
    middle = (boxes[:, :2].min(axis=0) + boxes[:, 2:].max(axis=0)) / 2
    corner = np.floor(middle - side / 2)
    most = np.array([scene.width - side, scene.height - side]).clip(0)
    left, top = corner.clip(0, most).astype(int).tolist()
    return left, top


def _name(*content: Any) -> tuple[int, int]:
    """Two whole numbers below 2³¹ that stand for the content of a window."""
    digest = hashlib.sha256()
    for one in content:
        digest.update(one.tobytes() if isinstance(one, np.ndarray) else repr(one).encode())
    bits = digest.digest()
    return int.from_bytes(bits[:4], "big") >> 1, int.from_bytes(bits[4:8], "big") >> 1


def _asked(segmenter: Segmenter, window: PromptWindow) -> Segmenter:
    """A Segmenter that proposes only what it is asked for in one window.

    `ordinal` is the number of the prompt in the window times `MOST_MASKS`, plus that of the mask.
    """

    def begin(image: NDArray[np.uint8], _: Watch | None) -> Callable[[], Candidates]:
        found, prompt = answer(segmenter, image, window.points, window.boxes)
        order = np.argsort(prompt, kind="stable")
        found, prompt = found.take(order), prompt[order]
        first = np.searchsorted(prompt, prompt)  # of the masks of the same prompt
        ordinal = prompt * MOST_MASKS + np.arange(len(prompt)) - first
        numbered = found.with_column("ordinal", ordinal)
        return lambda: numbered

    return AskedInItsWay(segmenter, begin)
