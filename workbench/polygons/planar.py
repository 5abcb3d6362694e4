"""A layer without overlaps, made part by part: memory does not grow with the scene.

Polygons cut each other only where they meet. So a few polygons that lie together are cut with all
that meet them, and then simplified with what is left of their neighbours. Each part sees the same
corners of a common edge, and polygons in the same order, so both sides of the edge agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray

from workbench.polygons.clean import (
    Cleaning,
    chosen,
    cut_overlaps,
    measured,
    shared_tolerance,
    simplified_together,
    tolerances,
)
from workbench.polygons.on_disk import SpilledPolygons
from workbench.polygons.portions import Each, Portion, Step, do_here, polygons_of
from workbench.polygons.seam_pairs import BATCH

PART_BYTES = 2_000_000  # of polygons that are cut at once, not counting those that meet them
MARGIN_PX = 64  # corners of others that are closer to a part may affect its edges


def clean_planar(
    polygons: Iterable[gpd.GeoDataFrame],
    cleaning: Cleaning,
    folder: Path | None = None,
    each: Each = do_here,
) -> Iterator[gpd.GeoDataFrame]:
    """Do what `clean` does for a planar layer, in batches that are never in memory together.

    Args:
        polygons: Exact polygons of `merge_seams`, at least one batch.
        cleaning: What to drop, fill and simplify, with `planar`.
        folder: Where to put temporary files; None is the system's folder for such files.
        each: Who cuts and simplifies the parts.

    Yields:
        Batches of the layer, at least one, in the order of the rows; see `clean`.

    Example:
        >>> layer = pd.concat(clean_planar(merge_seams([polygons], windows), Cleaning(planar=True)))
    """
    with closing(SpilledPolygons(folder)) as whole:
        rows, crs = _put_away(polygons, cleaning, whole)
        pixel, metres, scale = (
            rows.pop(name).to_numpy() for name in ("pixel", "tolerance", "metres")
        )
        parts = list(_parts(whole.bounds, whole.sizes))

        def to_cut(at: NDArray[np.int64], own: NDArray[np.int64]) -> Portion:
            frame = gpd.GeoDataFrame({"pixel": pixel[at]}, geometry=whole[at], crs=crs)
            return Portion(frame, (cleaning, own))

        flat = _made(whole, parts, _cut, to_cut, 0.0, folder, each)
    tolerance = shared_tolerance(metres, scale)
    margin = MARGIN_PX * float(np.sqrt(np.median(pixel))) if len(pixel) else 0.0
    rows["area_px"] = np.rint(flat.area / pixel).astype(np.int64)
    with closing(flat):

        def to_simplify(at: NDArray[np.int64], own: NDArray[np.int64]) -> Portion:
            return Portion(gpd.GeoDataFrame(geometry=flat[at], crs=crs), (tolerance, own))

        done = _made(flat, parts, _simplify, to_simplify, margin, folder, each)
    with closing(done):
        left = np.flatnonzero(done.area > 0)
        for batch in np.split(left, np.arange(BATCH, len(left), BATCH)):
            frame = rows.iloc[batch].reset_index(drop=True)
            yield measured(gpd.GeoDataFrame(frame, geometry=done[batch], crs=crs))


def _cut(given: Portion) -> Portion:
    """Cut the overlaps of a part's own polygons with each other and with its neighbours."""
    frame, (cleaning, own) = polygons_of(given), given.more
    geometry, pixel = frame.geometry.to_numpy(), frame["pixel"].to_numpy()
    flat = cut_overlaps(geometry, pixel, cleaning, frame.crs)
    return Portion(gpd.GeoDataFrame(geometry=flat[own], crs=frame.crs))


def _simplify(given: Portion) -> Portion:
    """Simplify a part's own polygons together with its neighbours."""
    frame, (tolerance, own) = polygons_of(given), given.more
    simple = simplified_together(frame.geometry.to_numpy(), tolerance)
    return Portion(gpd.GeoDataFrame(geometry=simple[own], crs=frame.crs))


def _put_away(
    polygons: Iterable[gpd.GeoDataFrame], cleaning: Cleaning, shapes: SpilledPolygons
) -> tuple[pd.DataFrame, pyproj.CRS]:
    """Put the chosen polygons into the file; returns the other columns, and the CRS."""
    columns: list[pd.DataFrame] = []
    crs: pyproj.CRS | None = None
    for batch in polygons:
        batch, pixel = chosen(batch, cleaning)
        crs = batch.crs
        metres, scale = tolerances(batch, pixel, cleaning)
        shapes.append(batch.geometry.to_numpy())
        others = pd.DataFrame(batch.drop(columns=batch.geometry.name))
        columns.append(others.assign(pixel=pixel, tolerance=metres, metres=scale))
    shapes.settle()
    assert crs is not None  # there is at least one batch, and all have the same CRS
    return pd.concat(columns, ignore_index=True), crs


def _parts(bounds: NDArray[np.float64], size: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows that lie together, of at most `PART_BYTES`; one wider than its part is alone."""
    middle = (bounds[:, :2] + bounds[:, 2:]) / 2
    sides = bounds[:, 2:] - bounds[:, :2]
    waiting = [np.arange(len(bounds))] if len(bounds) else []
    while waiting:
        rows = waiting.pop()
        extent = np.ptp(middle[rows], axis=0)
        if size[rows].sum() <= PART_BYTES or len(rows) == 1:
            large = (sides[rows] > max(*extent, 0)).any(axis=1) & (len(rows) > 1)
            yield from np.split(rows[large], np.count_nonzero(large)) if large.any() else []
            if not large.all():
                yield rows[~large]
            continue
        rows = rows[np.argsort(middle[rows, np.argmax(extent)], kind="stable")]
        cut = int(np.searchsorted(np.cumsum(size[rows]), size[rows].sum() / 2))
        cut = min(max(cut, 1), len(rows) - 1)
        waiting += [np.sort(rows[:cut]), np.sort(rows[cut:])]


def _made(
    shapes: SpilledPolygons,
    parts: Sequence[NDArray[np.int64]],
    step: Step,
    portion: Callable[[NDArray[np.int64], NDArray[np.int64]], Portion],
    margin: float,
    folder: Path | None,
    each: Each,
) -> SpilledPolygons:
    """What becomes of each part beside all that meets it, or comes as near as `margin`.

    `portion` gives the polygons of some rows, of which those at some places are the part's own.
    """
    made = SpilledPolygons(folder)

    def portions() -> Iterator[Portion]:
        for part in parts:
            at = _with_neighbours(shapes, part, margin)
            yield portion(at, np.searchsorted(at, part))

    with closing(each(step, portions())) as results:
        for result in results:
            made.append(polygons_of(result).geometry.to_numpy())
    if not parts:
        made.append(np.empty(0, object))
    made.settle(np.argsort(np.concatenate([np.empty(0, np.int64), *parts]), kind="stable"))
    return made


def _with_neighbours(
    shapes: SpilledPolygons, part: NDArray[np.int64], margin: float
) -> NDArray[np.int64]:
    """The rows of a part and all others that it needs, in order."""
    bounds = shapes.bounds
    frames = bounds[part] + np.array([-margin, -margin, margin, margin])
    with np.errstate(invalid="ignore"):
        low, high = (
            np.nanmin(frames[:, :2], axis=0, initial=np.inf),
            np.nanmax(frames[:, 2:], axis=0, initial=-np.inf),
        )
        near = np.flatnonzero(
            (bounds[:, 0] <= high[0]) & (bounds[:, 2] >= low[0])
            & (bounds[:, 1] <= high[1]) & (bounds[:, 3] >= low[1])
        )  # fmt: skip
    there = ~np.isnan(frames[:, 0])
    tree = shapely.STRtree(shapely.box(*frames[there].T))
    met = near[np.unique(tree.query(shapely.box(*bounds[near].T))[0])]
    if len(part) == 1 and len(met) > BATCH:  # a large one: much lies in its bounds but not near it
        own = shapely.buffer(shapes[part][0], margin) if margin else shapes[part][0]
        shapely.prepare(own)
        batches = np.split(met, np.arange(BATCH, len(met), BATCH))
        met = np.concatenate([rows[shapely.intersects(own, shapes[rows])] for rows in batches])
    return np.union1d(part, met)
