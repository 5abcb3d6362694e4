"""SAM Workbench: batch pre-labelling of georeferenced rasters with the Segment Anything Model."""

from workbench.errors import WorkbenchError
from workbench.job import Job
from workbench.pipeline import Run, run

__all__ = ["Job", "Run", "WorkbenchError", "run"]
