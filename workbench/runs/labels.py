"""The labels that a job names to teach classes: read and checked before any long work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import shapely

from workbench.errors import AOIError, ExamplesError
from workbench.learning.examples import Labels, read_labels
from workbench.raster.aoi import load_aoi
from workbench.raster.crs import crs_name
from workbench.raster.scene import Scene
from workbench.runs.job import Job


def labels_of(job: Job) -> list[Labels]:
    """Read what the parameter `examples` names, one `Labels` for each file."""
    given = [job.examples] if isinstance(job.examples, str) else job.examples or []
    return [read_labels(Path(path), job.classes) for path in given]


def labelled_area_of(job: Job) -> gpd.GeoSeries | None:
    """Read the area in which all objects are labelled, if the job names one."""
    if job.labelled_area is None:
        return None
    try:
        return load_aoi(job.labelled_area)
    except AOIError as error:
        raise ExamplesError(str(error).replace("AOI", "labelled_area", 1)) from error


def check_labels(job: Job, scenes: Sequence[Scene]) -> None:
    """Refuse examples that can teach nothing, before any long work."""
    labels = labels_of(job)
    labelled_area_of(job)
    if labels and all(one.examples is None for one in labels):
        polygons = [on_scene(one, scene.crs) for one in labels for scene in scenes]
        frames = np.array([scene.window_polygon(scene.window) for scene in scenes])
        there = shapely.STRtree(frames)
        if not any(len(there.query(p.geometry.to_numpy(), "intersects")[0]) for p in polygons):
            raise off_the_scene(labels, scenes)


def on_scene(labels: Labels, crs: pyproj.CRS) -> gpd.GeoDataFrame:
    """Bring labels to the CRS of a scene."""
    return labels.polygons.to_crs(crs)


def off_the_scene(labels: Sequence[Labels], scenes: Sequence[Scene]) -> ExamplesError:
    """Say where the labels lie, and where the scene."""
    crs = scenes[0].crs
    theirs = np.array([on_scene(one, crs).total_bounds for one in labels])
    ours = np.array([scene.bounds for scene in scenes])
    return ExamplesError(
        f"the examples do not lie on the scene: their bounds are {_around(theirs)}, those of the "
        f"scene {_around(ours)} ({crs_name(crs)}). Give labels of this place, or the "
        "examples.parquet of another run, which can teach other scenes."
    )


def _around(bounds: np.ndarray) -> str:
    low, high = np.nanmin(bounds[:, :2], axis=0), np.nanmax(bounds[:, 2:], axis=0)
    return ", ".join(f"{value:.0f}" for value in (*low, *high))
