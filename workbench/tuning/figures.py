"""Counts and measures of what the preview shows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from workbench.candidates.store import valid_masks
from workbench.runs.tile_stream import SegmentedTile

_COVER_PX = 512  # side of the raster on which the covered share of a tile is measured


@dataclass(frozen=True)
class Figures:
    """Counts and measures of a view; `median_area_m2` is NaN if nothing is shown."""

    n: int
    covered: float  # share of the valid pixels of the tiles; NaN without any
    median_area_m2: float
    n_seam: int


def covered_cells(sample: SegmentedTile, geometry: NDArray[np.object_]) -> tuple[int, int]:
    """How many cells of a raster over the tile some polygons fill, and how many are valid."""
    window, scene = sample.tile.window, sample.part.scene
    side = min(_COVER_PX, window.width)
    valid = np.ones((window.height, window.width), np.uint8)
    for mask in valid_masks([sample.record], sample.candidates.rules).values():
        valid &= mask.view(np.uint8)
    valid[scene.height - window.row_off :], valid[:, scene.width - window.col_off :] = 0, 0
    valid = cv2.resize(valid, (side, side), interpolation=cv2.INTER_NEAREST)
    filled = np.zeros((side, side), np.uint8)
    if not len(geometry):
        return 0, int(valid.sum())
    _, corners, (ring_ends, part_ends, ends) = shapely.to_ragged_array(geometry)
    to_cell = Affine.scale(side / window.width, side / window.height) @ ~scene.window_transform(
        window
    )
    x, y = to_cell @ (corners[:, 0], corners[:, 1])
    cells = np.rint(np.column_stack((x, y)) * 16 - 8).astype(np.int32)  # in sixteenths
    rings = np.split(cells, ring_ends[1:-1])
    for first, last in pairwise(part_ends[ends].tolist()):
        cv2.fillPoly(filled, rings[first:last], 1, shift=4)  # even-odd: holes stay empty
    return int((filled & valid).sum()), int(valid.sum())
