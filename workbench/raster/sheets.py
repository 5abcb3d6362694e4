"""Sheets of one mosaic: each sees a strip of its neighbours, so that no object ends at its edge."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import shapely
from affine import Affine

from workbench.raster.scene import Scene

_log = logging.getLogger(__name__)
_SAME = 0.01  # pixels by which two grids may differ


def with_neighbours(scenes: Sequence[Scene], overlap_px: int) -> list[Scene]:
    """Widen scenes that touch by a strip of their neighbours: together they share `overlap_px`.

    The strips of two sheets are like the overlap of two tiles. Only sheets of one grid, read
    without a warp, with the same bands: for others that touch, a warning is logged. Scenes that
    share as much already, or do not touch, come back as they are.
    """
    boxes = np.array([scene.window_polygon(scene.window) for scene in scenes], dtype=object)
    tree = shapely.STRtree(boxes)
    widened, told = list(scenes), False
    for i, scene in enumerate(scenes):
        touching = [
            j
            for j in tree.query(boxes[i].buffer(_SAME * scene.transform.a)).tolist()
            if j != i and _need(scene, scenes[j], overlap_px)
        ]
        fitting = [j for j in touching if _is_of_one_grid(scene, scenes[j])]
        if len(fitting) < len(touching) and not told:
            other = next(scenes[j] for j in touching if j not in fitting)
            _log.warning(
                "%s and %s touch, but are not of one grid, so objects across their edge are cut "
                "in two. Make a mosaic of them first (gdalbuildvrt, or gdalwarp where CRS or pixel "
                "size differ) and name it as source.",
                scene.source, other.source,
            )  # fmt: skip
            told = True
        if fitting:
            needs = [need for j in fitting if (need := _need(scene, scenes[j], overlap_px))]
            left, top, right, bottom = np.max(needs, axis=0).tolist()
            moved = scene.transform @ Affine.translation(-left, -top)
            wide = replace(
                scene,
                transform=moved,
                width=scene.width + left + right,
                height=scene.height + top + bottom,
            )
            frame = wide.window_polygon(wide.window)
            beside = [
                scenes[j]
                for j in sorted(tree.query(frame, "intersects").tolist())
                if j != i and _is_of_one_grid(scene, scenes[j]) and _share(frame, boxes[j])
            ]
            prints = [scene.fingerprint, *(each.fingerprint for each in beside)]
            widened[i] = replace(
                wide,
                beside=tuple(each.opened_as for each in beside),
                fingerprint=hashlib.sha256(" ".join(prints).encode()).hexdigest(),
            )
    return widened


def _share(one: shapely.Geometry, other: shapely.Geometry) -> bool:
    return bool(shapely.area(shapely.intersection(one, other)) > 0)


def _is_of_one_grid(one: Scene, other: Scene) -> bool:
    """Whether both have the same pixels, as far as they have them."""
    same = ("bands", "alpha", "warped", "nodata", "crs")
    if one.warped or any(getattr(one, name) != getattr(other, name) for name in same):
        return False
    a, b = one.transform, other.transform
    size = max(one.width, one.height, other.width, other.height)
    if abs(a.a / b.a - 1) * size > _SAME or abs(a.e / b.e - 1) * size > _SAME:
        return False
    column, row = _place(one, other)
    return abs(column - round(column)) < _SAME and abs(row - round(row)) < _SAME


def _place(scene: Scene, other: Scene) -> tuple[float, float]:
    """Column and row of the scene at which the other begins."""
    column, row = ~scene.transform @ (other.transform @ (0, 0))
    return float(column), float(row)


def _need(scene: Scene, other: Scene, overlap_px: int) -> tuple[int, int, int, int] | None:
    """How many pixels the scene needs of the other: left, top, right, bottom; None if it has them.

    They touch along an edge or share a strip that is too narrow.
    """
    column, row = _place(scene, other)
    right, bottom = ~scene.transform @ (
        other.transform @ (other.width, other.height)
    )  # of the other
    along_x = min(scene.width, right) - max(0.0, column)  # shared columns
    along_y = min(scene.height, bottom) - max(0.0, row)
    if min(along_x, along_y) < -_SAME or max(along_x, along_y) < 1:
        return None  # apart, or only a corner in common
    if along_x < along_y:
        each = max(0, math.ceil((overlap_px - along_x) / 2))
        need = (each, 0, 0, 0) if column < -_SAME else (0, 0, each, 0)
        return need if each and _is_beyond(column, right, scene.width) else None
    each = max(0, math.ceil((overlap_px - along_y) / 2))
    need = (0, each, 0, 0) if row < -_SAME else (0, 0, 0, each)
    return need if each and _is_beyond(row, bottom, scene.height) else None


def _is_beyond(start: float, end: float, length: int) -> bool:
    """Whether the other goes on where the scene ends, on one side."""
    return (start < -_SAME) != (end > length + _SAME)
