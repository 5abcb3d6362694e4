"""Errors that a user can fix; every message says what is wrong, where, and what to do."""


class WorkbenchError(Exception):
    """Base of all errors that are addressed to the user."""


class SceneError(WorkbenchError):
    """A raster cannot be read as a scene."""


class SettingError(SceneError):
    """A parameter of the job, rather than the raster, is why a raster cannot be read as a scene."""


class AOIError(WorkbenchError):
    """An area of interest cannot be used with a scene."""


class CheckpointError(WorkbenchError):
    """Model weights are missing, altered or made for another model."""


class JobError(WorkbenchError):
    """A parameter of a job is unknown or has an impossible value."""


class RunFolderError(WorkbenchError):
    """A run folder cannot be written, or holds another run."""


class OutputError(WorkbenchError):
    """A file cannot be written, mostly because the disk is full."""


class RunFailedError(WorkbenchError):
    """A run has finished, but some of its tiles failed; the ledger says which and why."""


class ReviewError(WorkbenchError):
    """A reviewed layer cannot be read, or is not the review of this run."""


class DatasetError(WorkbenchError):
    """Training data cannot be made from a layer as requested."""


class ClusterError(WorkbenchError):
    """A Dask cluster cannot be reached, or its workers cannot take part in a run."""


class ExamplesError(WorkbenchError):
    """Examples of classes cannot be read, or nothing can be learned from them."""
