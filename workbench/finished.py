"""A finished run: what it has made, as it ended or as its folder still tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import shapely

from workbench import report
from workbench.aoi import load_aoi, parts_in
from workbench.errors import RunFolderError
from workbench.job import Job
from workbench.layer import as_tiles, read_layer
from workbench.raster import Scene
from workbench.runfolder import read_record

PICTURE_PX = 2048
PICTURE_MARGIN = 0.1  # around an AOI, of its longer side


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the layer and the ledger as a layer."""

    job: Job
    folder: Path
    scenes: tuple[Scene, ...]
    layer: gpd.GeoDataFrame
    tiles: gpd.GeoDataFrame
    aoi: shapely.Geometry | None = None  # in the CRS of the layer

    @property
    def summary(self) -> pd.DataFrame:
        """What a person wants to know of the run, a row for each quantity."""
        return report.summary_table(self.layer, self.tiles)

    def picture(self) -> bytes:
        """Draw the layer over its imagery (of many scenes: the first; of it the AOI), as PNG."""
        scene = self.scenes[0]
        window = None
        if self.aoi is not None:
            part = shapely.intersection(self.aoi, scene.window_polygon(scene.window))
            window = scene.window_around(part.bounds, PICTURE_MARGIN)
        rgb, valid, transform = scene.overview(PICTURE_PX, window)
        here = self.layer[self.layer["source"] == scene.name]
        n = len(self.scenes)
        aoi = None if self.aoi is None else gpd.GeoDataFrame(geometry=[self.aoi], crs=scene.crs)
        figure = report.draw_map(
            rgb,
            valid,
            transform,
            here,
            tiles=self.tiles,
            aoi=aoi,
            title=f"{scene.name} (1 of {n} rasters)" if n > 1 else scene.name,
        )
        return report.figure_png(figure)


def read_run(folder: Path) -> Run:
    """Read a finished run back from its folder, pre-labels as they were before any review.

    No raster is opened: the scenes are those that `run.yaml` describes. Raises `RunFolderError` if
    the folder holds no finished run.
    """
    folder = Path(folder).absolute()
    record = read_record(folder)
    needed = ("run.yaml", "job.yaml", "prelabels.parquet", "tiles.parquet")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise RunFolderError(
            f"{folder} holds no finished run: {', '.join(missing)} missing. Give the folder that a "
            "run has written, whole."
        )
    job = Job.from_yaml(folder / "job.yaml")
    try:
        layer = read_layer(folder / "prelabels.parquet")
        tiles = as_tiles(gpd.read_parquet(folder / "tiles.parquet"))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise RunFolderError(
            f"{folder}: its layer or its ledger is damaged ({error}). Run again with the same "
            "out_dir to make them anew."
        ) from error
    used = set(tiles["source"])  # a folder may hold candidates of more rasters than its layer has
    scenes = tuple(
        Scene.from_description(scene) for scene in record["scenes"] if scene["name"] in used
    )
    aoi = None
    if job.aoi is not None:
        aoi = shapely.union_all(parts_in(scenes, load_aoi(job.aoi)))
    return Run(job, folder, scenes, layer, tiles, aoi)
