"""The labels that a job names to teach classes: read and checked before any long work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import shapely

from workbench._support.secrets import without_secrets
from workbench.errors import AOIError, ExamplesError, RunFolderError
from workbench.learning.examples import PERSON, Examples, Labels, read_examples, read_labels
from workbench.learning.features import FEATURES_VERSION
from workbench.learning.verdicts import VERDICTS
from workbench.raster.aoi import load_aoi
from workbench.raster.crs import crs_short
from workbench.raster.scene import Scene
from workbench.runs.job import Job

EXAMPLES = "examples.parquet"  # of a run folder: what taught its classes


def labels_of(job: Job) -> list[Labels]:
    """Read what the parameter `examples` names, one `Labels` for each file.

    Polygons that have no label are called by their file and row, for example `trees.gpkg:7`. In the
    second file of one name they are called `2/trees.gpkg:7`, because they are other objects.
    """
    given = [job.examples] if isinstance(job.examples, str) else job.examples or []
    read, n_files = [], Counter[str]()
    for path in dict.fromkeys(given):
        name = Path(without_secrets(path)).name
        n_files[name] += 1
        read.append(_renamed(read_labels(path, job.classes), name, n_files[name]))
    return read


def _renamed(labels: Labels, name: str, number: int) -> Labels:
    """Tell the rows of a file from those of an earlier file of the same name."""
    if number == 1:
        return labels
    label = labels.polygons["label"]
    label = label.mask(label.str.startswith(f"{name}:"), f"{number}/" + label)
    return replace(labels, polygons=labels.polygons.assign(label=label))


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
        polygons = [on_scene(one, scenes[0].crs) for one in labels]  # all scenes share one CRS
        frames = np.array([scene.window_polygon(scene.window) for scene in scenes])
        there = shapely.STRtree(frames)
        if not any(len(there.query(p.geometry.to_numpy(), "intersects")[0]) for p in polygons):
            raise off_the_scene(labels, scenes)


def refuse_to_lose_examples(job: Job, folder: Path) -> None:
    """Refuse to replace labels in a run folder that would not be among the new examples."""
    path = folder / EXAMPLES
    if job.examples is None or not path.exists() or (folder / VERDICTS).exists():
        return  # what a person has said in the tuner is in a file of its own
    given = [job.examples] if isinstance(job.examples, str) else job.examples
    said = read_examples(path)
    if said is None or (said.frame["features_version"] != FEATURES_VERSION).any():
        raise RunFolderError(
            f"{path} is not what this version writes, and this run would replace it. Move it out "
            "of the run folder; `examples` can name it where it is then."
        )
    if any(Path(one).absolute() == path.absolute() for one in given):
        return
    known = [_by_person(one.examples) for one in labels_of(job) if one.examples is not None]
    if _by_person(said) - set[tuple[str, str]]().union(*known):
        raise RunFolderError(
            f"{path} holds verdicts of a person, which this run would replace. Name it in "
            "`examples`, too, or move it out of the run folder."
        )


def _by_person(examples: Examples) -> set[tuple[str, str]]:
    """Source and label of what a person has said."""
    frame = examples.frame[examples.frame["said_by"] == PERSON]
    return set(zip(frame["source"], frame["label"], strict=True))


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
        f"scene {_around(ours)} ({crs_short(crs)}). Give labels of this place, or the "
        "examples.parquet of another run, which can teach other scenes."
    )


def _around(bounds: np.ndarray) -> str:
    low, high = np.nanmin(bounds[:, :2], axis=0), np.nanmax(bounds[:, 2:], axis=0)
    return ", ".join(f"{value:.0f}" for value in (*low, *high))
