"""Replaces the labels of a reviewed layer, except those that a person has touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from pyproj import CRS

from workbench._support.files import atomic_folder, atomic_path
from workbench.errors import RunFolderError
from workbench.layer.files import refuse_open
from workbench.layer.touched import read_touched
from workbench.runs.folder import refuse_to_lose_review
from workbench.runs.job import Job
from workbench.runs.staying import Staying

GPKG, GEOJSON = "prelabels.gpkg", "prelabels.geojson"
STAGE = ".refresh"  # holds the files of a new layer until all of them are complete
BACKUP = "prelabels-before-"  # and the time: what a refresh has replaced


def protect_review(job: Job, folder: Path, crs: CRS) -> None:
    """Refuse, before any long work, a run that would replace a review or could not keep it.

    Raises `RunFolderError`.
    """
    finish_moving(folder)
    _discard(folder / STAGE)  # killed before the new layer was in its place
    if job.refresh:
        Refresh.of(job, folder, crs)
    else:
        refuse_to_lose_review(folder)


def finish_moving(folder: Path) -> None:
    """Finish a refresh that was killed after its GeoPackage was in place: move its other files."""
    stage = folder / STAGE
    if not stage.exists() or (stage / GPKG).exists():
        return
    for path in stage.iterdir():
        with suppress(FileNotFoundError):  # another process does the same
            os.replace(path, folder / path.name)
    with suppress(FileNotFoundError):
        stage.rmdir()


@dataclass(eq=False)
class Refresh:
    """The labels of a run folder that stay, and how the others are replaced."""

    folder: Path
    staying: Staying
    read_at: tuple[int, int]  # when the GeoPackage was last changed, and its size
    replaced: Path | None = None  # where the old GeoPackage is

    @classmethod
    def of(cls, job: Job, folder: Path, crs: CRS) -> Refresh | None:
        """Read the labels of a run folder that stay; None if nobody has touched one.

        Raises `RunFolderError` if they cannot stay as they are.
        """
        gpkg = folder / GPKG
        refuse_open(gpkg)
        if not gpkg.exists():
            return None
        read_at = state_of(gpkg)
        kept = read_touched(gpkg, crs)
        unknown = kept.now["class_id"].dropna()
        unknown = unknown[~unknown.isin(list(job.classes))]
        if len(unknown):
            raise RunFolderError(
                f"{gpkg} holds {len(unknown)} reviewed labels of class {unknown.iloc[0]}, which is "
                f"not one of classes {job.classes}. Add it there, or correct it in QGIS."
            )
        return cls(folder, Staying(kept), read_at) if kept.ids else None

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Yield a folder for the new files; then all of them replace the old ones, or none.

        The old layer is kept beside it first. Raises `RunFolderError` if somebody has changed it
        meanwhile.
        """
        gpkg, stage = self.folder / GPKG, self.folder / STAGE
        with atomic_folder(stage) as making:
            yield making
        try:
            refuse_open(gpkg)
            if state_of(gpkg) != self.read_at:
                raise RunFolderError(
                    f"{gpkg} has been changed while the run was made, so it was not replaced. Run "
                    "again: stored candidates are used."
                )
            self.replaced = _keep_beside(gpkg)
            os.replace(stage / GPKG, gpkg)  # from here on the new layer counts
        except BaseException:
            if (stage / GPKG).exists():
                _discard(stage)
            raise
        if not (stage / GEOJSON).exists():  # it could not be made; the old one shows another layer
            (self.folder / GEOJSON).unlink(missing_ok=True)
        finish_moving(self.folder)

    def table(self) -> dict[str, str]:
        """What the report says about it: quantities by name."""
        kept, left_out = self.staying.kept, self.staying.left_out
        statuses = kept.now["status"].value_counts()
        rows = {f"kept, {status}": f"{n:,}" for status, n in statuses.items()}
        rows["kept as deleted"] = f"{len(kept.deleted):,}"
        rows |= {f"not offered again, {reason}": f"{n:,}" for reason, n in left_out.items()}
        return rows | ({} if self.replaced is None else {"the old layer": self.replaced.name})


def state_of(gpkg: Path) -> tuple[int, int]:
    """The time of the last change of a file, and its size: they show if it has changed since."""
    now = gpkg.stat()
    return now.st_mtime_ns, now.st_size


def _keep_beside(gpkg: Path) -> Path:
    """Copy a GeoPackage, and the Parquet that a review of it is compared with.

    The names of the copies hold the time. The files are not moved, because a program that still has
    one open would go on writing to it.
    """
    moment = datetime.now().astimezone()
    names = (f"{BACKUP}{moment:%Y-%m-%dT%H-%M-%S}{more}.gpkg" for more in _suffixes())
    kept = next(path for name in names if not (path := gpkg.with_name(name)).exists())
    for path in (gpkg, gpkg.with_suffix(".parquet")):
        if path.exists():
            with atomic_path(kept.with_suffix(path.suffix)) as temporary:
                shutil.copyfile(path, temporary)
    return kept


def _discard(stage: Path) -> None:
    """Remove a staged layer in one step: without its GeoPackage it would count as in place."""
    discarded = stage.with_name(f"{STAGE}-discarded")
    shutil.rmtree(discarded, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.replace(stage, discarded)
        shutil.rmtree(discarded, ignore_errors=True)


def _suffixes() -> Iterator[str]:
    yield ""
    yield from (f"-{n}" for n in count(2))
