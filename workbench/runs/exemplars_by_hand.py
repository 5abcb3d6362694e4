"""Exemplars that a person has drawn in the tuner: boxes on the scene, kept in the run folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyproj
import shapely
from numpy.typing import NDArray

from workbench._support.files import atomic_path
from workbench.errors import ExamplesError, JobError, ReviewError
from workbench.runs.exemplars import UNLIKE, read_exemplars, tile_showing, what_is_lacking
from workbench.runs.job import Job
from workbench.runs.tile_stream import ScenePlan
from workbench.segmenters.exemplars import EVERY_CLASS

EXEMPLARS = "exemplars.parquet"  # in a run folder
_COLUMNS = ["class_id", UNLIKE, "geometry"]


@dataclass(frozen=True, eq=False)
class ExemplarsByHand:
    """Boxes around objects of a class, or around what is unlike them, in the working CRS.

    `frame` has `class_id`, `unlike` and geometry. Class 0 is unlike the objects of all classes.
    """

    frame: gpd.GeoDataFrame

    @classmethod
    def none(cls, crs: pyproj.CRS) -> ExemplarsByHand:
        """No box."""
        columns = {"class_id": pd.array([], "int64"), UNLIKE: pd.array([], "bool")}
        return cls(gpd.GeoDataFrame(columns, geometry=[], crs=crs))

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def like(self) -> NDArray[np.bool_]:
        """Which of them show objects of their class, `(n,)`."""
        return ~self.frame[UNLIKE].to_numpy(bool)

    def with_box(
        self, bounds: NDArray[np.float64], class_id: int, unlike: bool, parts: Sequence[ScenePlan]
    ) -> ExemplarsByHand:
        """Add a box: west, south, east, north.

        Raises `ReviewError` if no tile of the parts' grids can show it to the model.
        """
        try:
            shown = _showing(bounds, parts)
        except JobError as error:
            raise ReviewError(str(error)) from error
        if shown is None:
            raise ReviewError("There is no raster where you drew: draw inside the grey frame.")
        columns = {"class_id": [class_id], UNLIKE: [unlike or class_id == EVERY_CLASS]}
        row = gpd.GeoDataFrame(columns, geometry=[shapely.box(*bounds)], crs=self.frame.crs)
        if len(self):
            row = pd.concat([self.frame, row], ignore_index=True)
        return ExemplarsByHand(row)

    def tiles(self, parts: Sequence[ScenePlan]) -> set[tuple[str, int, int]]:
        """The tiles of the parts' grids that show the boxes, by their index in the ledger.

        Raises `JobError` if a tile cannot show a box to the model.
        """
        shown = (_showing(bounds, parts) for bounds in shapely.bounds(self.frame.geometry))
        return {index for index in shown if index is not None}

    def without(self, row: int) -> ExemplarsByHand:
        """Take a box away."""
        return ExemplarsByHand(self.frame.drop(index=row).reset_index(drop=True))

    def at(self, x: float, y: float) -> int:
        """The row of the smallest box at a place, -1 if there is none."""
        here = self.frame[self.frame.geometry.intersects(shapely.Point(x, y))]
        return int(here.geometry.area.idxmin()) if len(here) else -1

    def equals(self, other: ExemplarsByHand) -> bool:
        """Whether they show a model the same."""
        return bool(self.frame.equals(other.frame))

    def lacks(self, words: Collection[int]) -> str:
        """Say what they lack to be of use beside words for some classes; '' for nothing."""
        class_id = self.frame["class_id"].to_numpy()
        return what_is_lacking("What is drawn", class_id, self.like, words)

    def write(self, path: Path) -> None:
        """Write GeoParquet, whole or not at all; raises `OutputError`."""
        with atomic_path(path) as temporary:
            self.frame.to_parquet(temporary, index=False)


def _showing(
    bounds: NDArray[np.float64], parts: Sequence[ScenePlan]
) -> tuple[str, int, int] | None:
    """The tile of the first part that holds the middle of a box; None if none does."""
    middle = (bounds[:2] + bounds[2:]) / 2
    for part in parts:
        if shapely.intersects_xy(shapely.box(*part.scene.bounds), *middle):
            return part.index(tile_showing("The box", part, bounds))
    return None


def read_by_hand_or_given(path: Path, job: Job, crs: pyproj.CRS) -> ExemplarsByHand:
    """Read the exemplars of a run folder, or those of another file that the job names.

    No box if there is no file. Raises `ExamplesError` if the folder's file is not what this version
    writes, and `JobError` if the other one is of no use.
    """
    if job.exemplars is not None and not names_own(job, path):
        drawn = read_exemplars(job)
        assert drawn is not None
        columns = {"class_id": drawn.class_id, UNLIKE: ~drawn.like}
        boxes = drawn.boxes.to_crs(crs).to_numpy()
        return ExemplarsByHand(gpd.GeoDataFrame(columns, geometry=boxes, crs=crs))
    if not path.exists():
        return ExemplarsByHand.none(crs)
    try:
        frame = gpd.read_parquet(path).to_crs(crs)
        return ExemplarsByHand(frame.astype({"class_id": "int64", UNLIKE: "bool"})[_COLUMNS])
    except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise ExamplesError(
            f"{path} holds no exemplars that this version can read ({error}). Move it out of the "
            "run folder to start again; nothing is written to it until then."
        ) from error


def names_own(job: Job, path: Path) -> bool:
    """Whether a job names the exemplars of its own run folder, which are at `path`."""
    return job.exemplars is not None and Path(job.exemplars).absolute() == path.absolute()


def showing(job: Job, path: Path, exemplars: ExemplarsByHand) -> Job:
    """Name exemplars at `path` in a job whose model takes them, if they are of use."""
    if not job.finds_concepts:
        return job
    useful = len(exemplars) > 0 and not exemplars.lacks(job.concepts or {})
    wanted = str(path) if useful else None
    return job if job.exemplars == wanted else job.changed(exemplars=wanted)


def follows_exemplars(job: Job, folder: Path, *, samples: bool) -> bool:
    """Whether candidates of other exemplars give way in a run folder in which some were drawn.

    They do for `samples` of the tuner, and for a run that names the drawn ones, or none after all
    were taken back. Exemplars of another file do not fit the candidates of an earlier run.
    """
    path = folder / EXEMPLARS
    if not path.exists():
        return False
    return samples or names_own(job, path) or (job.exemplars is None and _is_empty(path))


def _is_empty(path: Path) -> bool:
    """Whether the boxes of a file were all taken back; `job` then names none."""
    try:
        return len(gpd.read_parquet(path)) == 0
    except (OSError, ValueError, pa.ArrowException):
        return False
