"""What the widgets of one notebook share: the job as it stands, and what was opened for it.

The state of the user interface is a `Job`. Each widget shows some of its parameters and replaces
the job when a person changes them; saving, presets, undo and the command line then need nothing of
their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import shapely
from traitlets import HasTraits, Instance, Unicode, observe

from workbench.aoi import load_aoi
from workbench.errors import WorkbenchError
from workbench.job import Job
from workbench.pipeline import ScenePlan, open_scenes, plan_tiles
from workbench.preview import Forecast
from workbench.raster import Scene


@dataclass(frozen=True)
class Area:
    """The wanted part of the scenes: its tiles, and the AOI as far as it lies in the scenes."""

    parts: tuple[ScenePlan, ...]
    aoi: shapely.Geometry | None  # in the working CRS; None: the whole of the scenes

    @property
    def n_tiles(self) -> int:
        """How many tiles it has."""
        return sum(len(part.tiles) for part in self.parts)


class Session(HasTraits):
    """The shared state; observe `job`, `area` and `problem`.

    `area` is None while the AOI cannot be used; `problem` then says why, in a sentence.
    """

    job = Instance(Job)
    area = Instance(Area, allow_none=True)
    problem = Unicode()
    forecast = Instance(Forecast)

    def __init__(self, job: Job) -> None:
        self.scenes: tuple[Scene, ...] = tuple(open_scenes(job))
        super().__init__(job=job, forecast=Forecast())

    def change(self, **parameters: Any) -> None:
        """Replace parameters of the job; a bad value raises `JobError` and changes nothing."""
        job = self.job.changed(**parameters)
        if job != self.job:
            self.job = job

    @observe("job")
    def _plan(self, change: Any) -> None:
        before, job = change["old"], change["new"]
        tiling = ("aoi", "tile_size", "overlap")
        if isinstance(before, Job) and all(
            getattr(before, name) == getattr(job, name) for name in tiling
        ):
            return
        with self.hold_trait_notifications():
            try:
                aoi = None if job.aoi is None else load_aoi(job.aoi)
                self.area = Area(*plan_tiles(job, self.scenes, aoi))
                self.problem = ""
            except WorkbenchError as error:
                self.area, self.problem = None, str(error)
