"""The figures of a run in a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

import geopandas as gpd
import numpy as np
import pandas as pd
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from workbench._support.text import duration, text_of

_COVERAGE_PX = 2048  # the longer side of the grid on which the covered area is counted


def summary_table(layer: Iterable[gpd.GeoDataFrame], tiles: gpd.GeoDataFrame) -> pd.DataFrame:
    """Sum up a run for a person: one row for each quantity, its text in the column `value`.

    `layer` is in batches, at least one, in which the polygons of one raster follow each other.
    """
    kept: list[pd.DataFrame] = []

    def kept_numbers() -> Iterator[gpd.GeoDataFrame]:
        for batch in layer:
            kept.append(pd.DataFrame(batch[["confidence", "area_m2", "at_edge"]]))
            yield batch

    covered = _covered_share(kept_numbers(), tiles)  # one way through a layer that may be large
    numbers = pd.concat(kept)
    statuses = tiles["status"].value_counts()
    rows = {"tiles": f"{len(tiles):,}"}
    for status, meaning in (
        ("ok", "done"),
        ("empty", "without candidates"),
        ("nodata", "without valid pixels"),
        ("failed", "failed"),
    ):
        if status in statuses or status == "failed":
            rows[f"tiles {meaning}"] = f"{statuses.get(status, 0):,}"
    rows["candidates stored"] = f"{tiles['n_candidates'].sum():,}"
    rows["polygons"] = f"{len(numbers):,}"
    rows["polygons at an edge of the imagery"] = f"{numbers['at_edge'].sum():,}"
    rows["area, median (largest)"] = text_of(numbers["area_m2"].median(), "{:,.4g} m²") + text_of(
        numbers["area_m2"].max(), " ({:,.0f} m²)", ""
    )
    low, middle, high = numbers["confidence"].quantile([0.25, 0.5, 0.75])
    rows["confidence, median (quartiles)"] = (
        text_of(middle, "{:.3f}") + text_of(low, " ({:.3f}", "") + text_of(high, " – {:.3f})", "")
    )
    rows["area covered"] = text_of(covered, "{:.1%} of the tiles' area")
    rows["time in tiles"] = duration(float(tiles["seconds"].sum()))
    return pd.DataFrame({"value": rows})


# ----------------------------------------------------------------------------------- summary


def _covered_share(layer: Iterable[gpd.GeoDataFrame], tiles: gpd.GeoDataFrame) -> float:
    """Share of the finished tiles' area that polygons cover, overlaps counted once; else nan.

    Counted on a grid of some million cells for each raster: a union of 200,000 polygons takes
    minutes.
    """
    done = tiles[tiles["status"].isin(["ok", "empty"])]
    finished = {source: here.geometry for source, here in done.groupby("source")}
    tiled_area = covered_area = 0.0
    for here in finished.values():
        tiled, transform = _counted(here)
        tiled_area += transform.a**2 * np.count_nonzero(tiled)
    parts = (part for batch in layer for part in batch.groupby("source", sort=False))
    for source, same in groupby(parts, key=itemgetter(0)):
        if source in finished:
            tiled, transform = _counted(finished[source])
            covered = np.zeros_like(tiled)
            for _, part in same:
                rasterize(part.geometry, out=covered, transform=transform)
            covered_area += transform.a**2 * np.count_nonzero(covered & tiled)
    return float(covered_area / tiled_area) if tiled_area else float("nan")


def _counted(tiles: gpd.GeoSeries) -> tuple[NDArray[np.uint8], Affine]:
    """A grid over a raster's tiles: 1 where they are."""
    left, bottom, right, top = tiles.total_bounds
    cell = max(right - left, top - bottom) / _COVERAGE_PX
    shape = (max(1, round((top - bottom) / cell)), max(1, round((right - left) / cell)))
    transform = Affine(cell, 0, left, 0, -cell, top)
    return rasterize(tiles, shape, transform=transform, dtype=np.uint8), transform
