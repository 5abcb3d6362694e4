"""A finished run, in memory or reloaded from its folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import shapely
from shapely.errors import ShapelyError

from workbench.errors import RunFolderError
from workbench.layer.files import read_batches, read_layer
from workbench.layer.report.tally import Tally
from workbench.layer.schema import as_tiles, coarser, finest
from workbench.raster.aoi import load_aoi, parts_in
from workbench.raster.scene import Scene
from workbench.runs.job import Job
from workbench.runs.record import read_record
from workbench.runs.refresh import finish_moving

LAYER = "prelabels.parquet"
PICTURE_MARGIN = 0.1  # around an AOI, of its longer side


@dataclass(frozen=True)
class Run:
    """A finished run: its folder with the layer in it, and the ledger as layers.

    `tiles` are those of the working grid, whose cores partition the scenes; `coarse` are those of
    coarser scales, if the job has any.
    """

    job: Job
    folder: Path
    scenes: tuple[Scene, ...]
    tiles: gpd.GeoDataFrame
    aoi: shapely.Geometry | None = None  # in the CRS of the layer
    counted: Tally | None = field(default=None, repr=False, compare=False)
    coarse: gpd.GeoDataFrame | None = None

    @cached_property
    def layer(self) -> gpd.GeoDataFrame:
        """All pre-labels as the run wrote them: some kB of memory for each. Read when first used.

        Raises `RunFolderError` if the file is damaged.
        """
        with _undamaged(self.folder):
            return read_layer(self.folder / LAYER)

    def batches(self, columns: Collection[str] | None = None) -> Iterator[gpd.GeoDataFrame]:
        """The pre-labels in batches, at least one, for work that need not hold them all.

        Raises `RunFolderError` if the file is damaged.
        """
        with _undamaged(self.folder):
            yield from read_batches(self.folder / LAYER, columns)

    @cached_property
    def tally(self) -> Tally:
        """The figures of the layer, counted in one pass unless the run has just done so."""
        if self.counted is not None:
            return self.counted
        tally = Tally(self.ledger)
        for batch in self.batches():
            tally.add(batch)
        return tally

    @property
    def ledger(self) -> gpd.GeoDataFrame:
        """What happened to each tile, at all scales."""
        if self.coarse is None or not len(self.coarse):
            return self.tiles
        return pd.concat([self.tiles, self.coarse], ignore_index=True)

    @property
    def summary(self) -> pd.DataFrame:
        """The main figures of the run, a row for each quantity."""
        return self.tally.summary()

    def picture(self) -> bytes:
        """Draw the layer over the first scene, or over its part of the AOI, as PNG."""
        # matplotlib takes long to import
        from workbench.layer.report.map import MAP_PX, ShownLayer, draw_map, figure_png

        scene = self.scenes[0]
        window = None
        if self.aoi is not None:
            part = shapely.intersection(self.aoi, scene.window_polygon(scene.window))
            window = scene.window_around(part.bounds, PICTURE_MARGIN)
        rgb, valid, transform = scene.overview(MAP_PX, window)
        n = len(self.scenes)
        aoi = None if self.aoi is None else gpd.GeoDataFrame(geometry=[self.aoi], crs=scene.crs)
        figure = draw_map(
            rgb,
            valid,
            transform,
            ShownLayer(
                lambda: (
                    batch[batch["source"] == scene.name]
                    for batch in self.batches(("source", "confidence"))
                ),
                self.tally.by_confidence(scene.name),
                self.tiles.crs,
                self.tally.classes,
            ),
            tiles=self.tiles,
            aoi=aoi,
            title=f"{scene.name} (1 of {n} rasters)" if n > 1 else scene.name,
        )
        return figure_png(figure)


def read_run(folder: str | Path) -> Run:
    """Read a finished run from its folder, with the pre-labels as they were before any review.

    No raster is opened: `run.yaml` describes the scenes. The layer itself is read when first used.

    Args:
        folder: A run folder.

    Returns:
        The run, as `run` returned it.

    Raises:
        RunFolderError: The folder holds no finished run, or a damaged one.

    Example:
        >>> read_run("runs/ortho").layer["confidence"].median()
    """
    folder = Path(folder).absolute()
    finish_moving(folder)
    record = read_record(folder)
    needed = ("run.yaml", "job.yaml", LAYER, "tiles.parquet")
    missing = [name for name in needed if not (folder / name).exists()]
    if record is None or missing:
        raise RunFolderError(
            f"{folder} holds no finished run: {', '.join(missing)} missing. Give the whole folder "
            "that a run has written (`run_dir` in review.ipynb)."
        )
    job = Job.from_yaml(folder / "job.yaml")
    with _undamaged(folder):
        ledger = as_tiles(gpd.read_parquet(folder / "tiles.parquet"))
        # rasters that could not be read have no tiles
        ledger = ledger[~ledger.geometry.is_empty].reset_index(drop=True)
    tiles = finest(ledger)
    used = set(tiles["source"])  # a folder may hold candidates of more rasters than its layer has
    scenes = tuple(described.scene() for described in record.scenes if described.name in used)
    aoi = None
    if job.aoi is not None:
        aoi = shapely.union_all(parts_in(scenes, load_aoi(job.aoi)))
    run = Run(job, folder, scenes, tiles, aoi, coarse=coarser(ledger))
    next(run.batches())  # the first is empty: it only needs the file's own description
    return run


@contextmanager
def _undamaged(folder: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ShapelyError, OSError, KeyError, ValueError) as error:
        raise RunFolderError(
            f"{folder}: its layer or its ledger is damaged ({error}). Run its job.yaml again to "
            "write them again from the stored candidates."
        ) from error
