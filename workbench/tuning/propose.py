"""Sample tiles that differ from one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.raster.tiles import Tile
from workbench.runs.plan import ScenePlan


def propose_tiles(parts: Sequence[ScenePlan], n: int = 4) -> list[tuple[ScenePlan, Tile]]:
    """Choose up to `n` tiles that differ in place and in appearance.

    Each tile is a point: its place, brightness, colour and texture in an overview. The first is the
    most ordinary one; each further one is the farthest from all before it (Gonzalez 1985).
    """
    tiles = [(part, tile) for part in parts for tile in part.tiles]
    if len(tiles) <= n:
        return tiles
    points = np.concatenate([_appearance(part) for part in parts])
    usable = np.isfinite(points).all(axis=1)
    if not usable.any():
        return tiles[:n]
    spread = np.nanstd(points, axis=0)
    points = (points - np.nanmean(points, axis=0)) / np.where(spread > 0, spread, 1)
    points[:, 2:] /= 2  # appearance has four figures and place two: both count the same
    distance = np.where(usable, -np.linalg.norm(points, axis=1), -np.inf)
    chosen = [int(distance.argmax())]
    nearest = np.where(usable, np.inf, -1.0)
    while len(chosen) < min(n, int(usable.sum())):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
        nearest[~usable] = -1
        chosen.append(int(nearest.argmax()))
    return [tiles[i] for i in chosen]


def _appearance(part: ScenePlan) -> NDArray[np.float64]:
    """Place (x, y, map units), brightness, two colours and texture of the tiles' cores.

    `(n, 6)`; NaN for a tile that is mostly invalid.
    """
    rgb, valid, transform = part.scene.overview(1024)
    light = rgb.mean(axis=2, dtype=np.float32)
    edges = np.abs(np.diff(light, axis=0, prepend=light[:1])) + np.abs(
        np.diff(light, axis=1, prepend=light[:, :1])
    )
    red, green, blue = (rgb[..., i].astype(np.float32) for i in range(3))
    figures = []
    for tile in part.tiles:
        left, bottom, right, top = part.scene.window_polygon(tile.core).bounds
        (x0, y0), (x1, y1) = ~transform @ (left, top), ~transform @ (right, bottom)
        here = (
            slice(int(y0), max(int(y0) + 1, int(y1))),
            slice(int(x0), max(int(x0) + 1, int(x1))),
        )
        seen = valid[here]
        if seen.mean() < 0.5:
            figures.append([np.nan] * 6)
            continue
        figures.append(
            [(left + right) / 2, (bottom + top) / 2]
            + [float(of[here][seen].mean()) for of in (light, red - blue, green - red, edges)]
        )
    return np.array(figures, np.float64).reshape(-1, 6)
