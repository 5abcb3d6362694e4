"""What of the masks lies on the scene: its invalid pixels, and what is beyond it, are no object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates.rle import decode_runs, encode_masks
from workbench.candidates.table import Candidates
from workbench.raster.tiles import Tile, TileGrid


def valid_in_scene(
    valid: NDArray[np.bool_] | None, tile: Tile, grid: TileGrid
) -> NDArray[np.bool_] | None:
    """Add what lies beyond the scene to a tile's invalid pixels; None if all are valid."""
    width = grid.width - tile.window.col_off
    height = grid.height - tile.window.row_off
    if width >= grid.window_width and height >= grid.window_height:
        return valid
    if valid is None:
        valid = np.ones((grid.window_height, grid.window_width), bool)
    valid = valid.copy()
    valid[height:], valid[:, width:] = False, False
    return valid


def without_invalid(counts: Sequence[bytes], valid: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Remove invalid pixels, of `(h, w)`, from masks, which are given and returned as COCO RLEs."""
    size = list(valid.shape)
    there = {"size": size, "counts": encode_masks(valid[None])[0]}
    return [coco.merge([{"size": size, "counts": rle}, there], True) for rle in counts]


def on_valid_pixels(
    candidates: Candidates, grid: TileGrid, valid: Mapping[tuple[int, int], NDArray[np.bool_]]
) -> Candidates:
    """Remove the invalid pixels of a scene's tiles from the masks, and count what is left.

    `valid` is the `(h, w)` validity of each tile (row, column) that has invalid pixels. Boxes stay
    as they are: SAM's own selection goes by them.
    """
    index = np.column_stack([candidates.column("tile_row"), candidates.column("tile_col")])
    partly = {}  # the validity of tiles that are not valid as a whole
    for row, col in np.unique(index, axis=0).tolist():
        there = valid_in_scene(valid.get((row, col)), grid.tile(row, col), grid)
        if there is not None and not there.all():
            partly[row, col] = there
    if not partly:
        return candidates
    counts: list[bytes] = candidates.table.column("rle").to_pylist()
    area = candidates.column("area_px").copy()
    for (row, col), there in partly.items():
        rows = np.flatnonzero((index == (row, col)).all(axis=1))
        inside = without_invalid([counts[i] for i in rows.tolist()], there)
        for i, rle in zip(rows.tolist(), inside, strict=True):
            counts[i] = rle["counts"]
        area[rows] = decode_runs([counts[i] for i in rows.tolist()], *there.shape).areas()
    return candidates.with_column("rle", counts).with_column("area_px", area)
