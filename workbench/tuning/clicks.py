"""The polygon at a person's clicks, from a tile that the network has already encoded."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from workbench.candidates.rle import encode_masks
from workbench.polygons.build import shapes_in_window
from workbench.raster.scene import Scene
from workbench.segmenters.sam.by_hand import EncodedTile


def polygon_at(
    tile: EncodedTile,
    scene: Scene,
    window: Window,
    valid: NDArray[np.bool_],
    points: NDArray[np.float64],
    on_object: NDArray[np.bool_],
    box: NDArray[np.float64] | None = None,
) -> tuple[shapely.MultiPolygon, float]:
    """Return the polygon for some clicks, and its predicted IoU.

    Args:
        tile: The window of the scene, encoded.
        scene: Gives the CRS and the transform.
        window: Where the tile lies in the scene.
        valid: Its valid pixels, `(h, w)`; others are removed from the mask.
        points: `(n, 2)` XY in the scene's CRS; may be empty if there is a box.
        on_object: `(n,)`: whether each click is on the object; false: on the background.
        box: `(4,)` west, south, east, north in the scene's CRS.

    Returns:
        A MultiPolygon along pixel edges, in the scene's CRS; empty if there is no mask.
    """
    to_pixels = ~scene.window_transform(window)
    clicks = np.column_stack(to_pixels @ (points[:, 0], points[:, 1]))
    around = None
    if box is not None:
        corners = np.column_stack(to_pixels @ (box[[0, 2]], box[[1, 3]]))
        around = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    answer = tile.answer(clicks, on_object, around)
    (shape,), _ = shapes_in_window(encode_masks(answer.mask[None]), scene, window, valid)
    return shape, answer.pred_iou
