"""SAM Workbench: batch pre-labelling of georeferenced rasters with the Segment Anything Model."""

from importlib.metadata import version

from workbench.errors import WorkbenchError
from workbench.job import Job
from workbench.pipeline import Run, run

__version__ = version("sam-workbench")

__all__ = ["Job", "Run", "WorkbenchError", "__version__", "run"]
