"""What the report says of a layer, counted in one pass over its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from workbench._support.attempts import Attempts
from workbench._support.palette import ConfidenceClasses, confidence_classes
from workbench._support.text import duration, text_of
from workbench.layer.schema import BATCH, coarser, finest
from workbench.polygons.on_disk import SpilledPolygons

MAX_CHECKED = 50_000  # polygons; checking all pairs of more would take minutes
_COVERAGE_PX = 2048  # the longer side of the grid on which the covered area is counted
_COVERED = "the area covered"
_NUMBERS = ["confidence", "stability", "area_m2", "n_tiles", "at_edge"]


class Tally:
    """Figures of a layer; `add` takes its batches in their order.

    Memory holds some numbers for each polygon, and one grid of the area that they cover. `tiles` is
    the ledger, with the tiles of coarser scales. The polygons of one raster follow each other.
    A covered area that cannot be counted is told in `attempts`.
    """

    def __init__(self, tiles: gpd.GeoDataFrame, attempts: Attempts | None = None) -> None:
        self._tiles = tiles
        self._covered = _Coverage(tiles)
        self._attempts = attempts or Attempts()
        self._numbers: list[pd.DataFrame] = []
        self._confidence: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, batch: gpd.GeoDataFrame) -> None:
        """Count the polygons of a batch."""
        self._numbers.append(pd.DataFrame(batch[_NUMBERS]))
        for source, part in batch.groupby("source", sort=False):
            self._attempts.make(_COVERED, partial(self._covered.add, source, part.geometry))
            confidence = part["confidence"].to_numpy(np.float64)
            self._confidence.setdefault(source, []).append(confidence)

    @property
    def numbers(self) -> pd.DataFrame:
        """Scores, areas and counts of all polygons, a row for each."""
        return pd.concat(self._numbers, ignore_index=True)

    @property
    def classes(self) -> ConfidenceClasses:
        """The classes of confidence that fit the layer as a whole, see `confidence_classes`."""
        return confidence_classes(self.numbers["confidence"])

    def by_confidence(self, source: str) -> NDArray[np.int64]:
        """Count the polygons of a raster in `classes`, as `count_by_confidence` does."""
        confidence = np.concatenate([np.zeros(0), *self._confidence.get(source, [])])
        return count_by_confidence(confidence, self.classes)

    def summary(self) -> pd.DataFrame:
        """Sum up for a person: one row for each quantity, its text in the column `value`."""
        numbers, tiles = self.numbers, self._tiles
        statuses = tiles["status"].value_counts()
        rows = {"tiles": f"{len(tiles):,}"}
        if n_coarser := len(coarser(tiles)):
            rows["tiles at a coarser scale"] = f"{n_coarser:,}"
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
        rows["area, median (largest)"] = text_of(
            numbers["area_m2"].median(), "{:,.4g} m²"
        ) + text_of(numbers["area_m2"].max(), " ({:,.0f} m²)", "")
        low, middle, high = numbers["confidence"].quantile([0.25, 0.5, 0.75])
        rows["confidence, median (quartiles)"] = (
            text_of(middle, "{:.3f}")
            + text_of(low, " ({:.3f}", "")
            + text_of(high, " – {:.3f})", "")
        )
        share = self._attempts.make(_COVERED, self._covered.share)
        rows["area covered"] = text_of(
            np.nan if share is None else share, "{:.1%} of the tiles' area"
        )
        rows["time in tiles"] = duration(float(tiles["seconds"].sum()))
        return pd.DataFrame({"value": rows})


def summary_table(layer: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame) -> pd.DataFrame:
    """Sum up a layer that is in memory, as `Tally.summary` does."""
    tally = Tally(tiles)
    tally.add(layer)
    return tally.summary()


def seams(layer: pd.DataFrame) -> dict[str, int]:
    """Count the polygons by the number of tiles that saw them."""
    counts = layer["n_tiles"].value_counts().sort_index()
    return {f"seen by {n} tile{'' if n == 1 else 's'}": int(count) for n, count in counts.items()}


def class_of(confidence: NDArray[np.float64], classes: ConfidenceClasses) -> NDArray[np.int64]:
    """Find the class of each confidence `(n,)`, by its place; NaN is after the last."""
    lows = [low for low, _ in classes[1:]]
    return np.where(np.isnan(confidence), len(classes), np.digitize(confidence, lows))


def count_by_confidence(
    confidence: NDArray[np.float64], classes: ConfidenceClasses
) -> NDArray[np.int64]:
    """Count the polygons in each class of confidence, and last those without a confidence."""
    counts = np.bincount(class_of(confidence, classes), minlength=len(classes) + 1)
    return counts.astype(np.int64)


@dataclass(frozen=True)
class _Grid:
    """Cells over the tiles of one raster: 1 in `tiled`, and in `covered` under polygons."""

    source: str
    transform: Affine
    tiled: NDArray[np.uint8]
    covered: NDArray[np.uint8]


class _Coverage:
    """The area that polygons cover, overlaps counted once.

    It is counted on a grid of some million cells for each raster, because a union of 200,000
    polygons takes minutes. Only finished tiles count.
    """

    def __init__(self, tiles: gpd.GeoDataFrame) -> None:
        done = finest(tiles)
        done = done[done["status"].isin(["ok", "empty"])]
        self._finished = {source: here.geometry for source, here in done.groupby("source")}
        self._open: _Grid | None = None  # of the raster whose polygons are coming
        self._covered_area = 0.0

    def add(self, source: str, shapes: gpd.GeoSeries) -> None:
        """Mark the polygons of a raster; a raster that was left does not come again."""
        if source not in self._finished:
            return
        if self._open is None or self._open.source != source:
            self._settle()
            tiled, transform = _grid_over(self._finished[source])
            self._open = _Grid(source, transform, tiled, np.zeros_like(tiled))
        rasterize(shapes, out=self._open.covered, transform=self._open.transform)

    def _settle(self) -> None:
        if self._open is not None:
            cells = np.count_nonzero(self._open.covered & self._open.tiled)
            self._covered_area += self._open.transform.a**2 * cells
            self._open = None

    def share(self) -> float:
        """Return the share of the finished tiles' area that is covered; nan without such tiles."""
        self._settle()
        tiled_area = 0.0
        for tiles in self._finished.values():
            tiled, transform = _grid_over(tiles)
            tiled_area += transform.a**2 * np.count_nonzero(tiled)
        return float(self._covered_area / tiled_area) if tiled_area else float("nan")


def _grid_over(tiles: gpd.GeoSeries) -> tuple[NDArray[np.uint8], Affine]:
    """Make a grid over a raster's tiles: 1 where they are."""
    left, bottom, right, top = tiles.total_bounds
    cell = max(right - left, top - bottom) / _COVERAGE_PX
    shape = (max(1, round((top - bottom) / cell)), max(1, round((right - left) / cell)))
    transform = Affine(cell, 0, left, 0, -cell, top)
    return rasterize(tiles, shape, transform=transform, dtype=np.uint8), transform


class Topology:
    """Checks of geometry: polygons that are invalid or empty, and pairs that partly overlap.

    `add` takes the batches of a layer. The geometry lies in a file in `folder` meanwhile. Close it,
    or use it in a `with` block.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._invalid = self._empty = self._n = 0
        self._shapes = SpilledPolygons(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._shapes.close()

    def add(self, batch: gpd.GeoDataFrame) -> None:
        """Check the polygons of a batch."""
        geometry = np.asarray(batch.geometry.array)
        self._invalid += int(np.count_nonzero(~shapely.is_valid(geometry)))
        self._empty += int(np.count_nonzero(shapely.is_empty(geometry)))
        self._n += len(geometry)
        if self._n <= MAX_CHECKED:
            self._shapes.append(geometry)

    def table(self) -> dict[str, str]:
        """Return what was found; counts the overlaps once, so call it once."""
        overlaps = f"not counted in more than {MAX_CHECKED:,} polygons"
        if self._n <= MAX_CHECKED:
            self._shapes.settle()
            overlaps = f"{_count_overlaps(self._shapes):,}"
        return {
            "invalid polygons": f"{self._invalid:,}",
            "empty polygons": f"{self._empty:,}",
            "overlapping pairs": overlaps,
        }


def counted(
    layer: Iterable[gpd.GeoDataFrame], *adding: Callable[[gpd.GeoDataFrame], object]
) -> Iterator[gpd.GeoDataFrame]:
    """Hand on the batches of a layer, after everything that counts has seen them."""
    for batch in layer:
        for add in adding:
            add(batch)
        yield batch


def _count_overlaps(shapes: SpilledPolygons) -> int:
    frames = np.asarray(shapely.box(*shapes.bounds.T), object)
    tree, count = shapely.STRtree(frames), 0
    for start in range(0, len(frames), BATCH):
        rows = np.arange(start, min(start + BATCH, len(frames)))
        one, other = tree.query(frames[rows])
        one, other = one[rows[one] < other], other[rows[one] < other]
        near, place = np.unique(other, return_inverse=True)
        here = shapes[rows]
        shapely.prepare(here)
        count += int(np.count_nonzero(shapely.overlaps(here[one], shapes[near][place])))
    return count
