"""What a person asks the model about one object by clicks, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from workbench.errors import JobError, ReviewError
from workbench.raster.scene import Scene
from workbench.raster.tiles import TileGrid
from workbench.runs.job import Job
from workbench.segmenters.defaults import defaults_of


@dataclass(frozen=True, eq=False)
class Clicks:
    """Clicks on one object and beside it, in the working CRS.

    `points` `(n, 2)` are XY, `on_object` `(n,)` is false for what does not belong to it. `box`
    `(4,)` is west, south, east, north. `shape` is an outline that they correct.
    """

    points: NDArray[np.float64]
    on_object: NDArray[np.bool_]
    box: NDArray[np.float64] | None = None
    shape: shapely.Geometry | None = None

    def __len__(self) -> int:
        return len(self.points) + (self.box is not None)

    @property
    def place(self) -> tuple[float, float]:
        """Where the object is, XY: the middle of the box, or the first click on it."""
        if self.box is not None:
            x, y = (self.box[:2] + self.box[2:]) / 2
        else:
            x, y = self.points[int(self.on_object.argmax())]
        return float(x), float(y)


@dataclass(frozen=True, eq=False)
class Question:
    """Clicks in one window of a scene, and the job whose model is asked.

    `number` is in each reply to it.
    """

    number: int
    job: Job
    scene: Scene
    window: Window
    clicks: Clicks

    @classmethod
    def at(cls, clicks: Clicks, number: int, job: Job, scenes: Sequence[Scene]) -> Question:
        """Ask in the tile of the job where the object is; raises `ReviewError` outside of all."""
        for scene in scenes:
            column, line = ~scene.transform @ clicks.place
            if 0 <= column < scene.width and 0 <= line < scene.height:
                grid = TileGrid(scene.width, scene.height, job.tile_size, job.overlap)
                tile = next(grid.within(column, line, column, line))
                return cls(number, job, scene, tile.window, clicks)
        raise ReviewError("There is no raster where you clicked: click inside the grey frame.")


@dataclass(frozen=True)
class Encoding:
    """The tile is being encoded, which takes a moment; later answers about it are quick."""

    number: int


@dataclass(frozen=True, eq=False)
class Answer:
    """The outline at the clicks, in the working CRS; empty if the model finds nothing there."""

    number: int
    shape: shapely.MultiPolygon
    pred_iou: float


@dataclass(frozen=True)
class NoAnswer:
    """Why there is no answer."""

    number: int
    reason: str


Reply = Encoding | Answer | NoAnswer


def model_of(job: Job) -> tuple[str | None, ...]:
    """What a job says about its model, and where that runs."""
    return job.model, job.checkpoint, job.device, job.precision


def refuse_without_clicks(job: Job) -> None:
    """Raise `JobError` if the job's model cannot be asked by clicks."""
    if not defaults_of(job.model).takes_clicks:
        raise JobError(
            f"The model `{job.model}` takes no clicks. `tiny` does, which comes with the package, "
            "and so does every SAM but SAM 3: set `model` in the parameters of prelabel.ipynb."
        )
