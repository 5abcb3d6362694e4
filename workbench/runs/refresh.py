"""Replaces the labels of a reviewed layer, except those that a person has touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain, count
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from workbench._support.files import atomic_folder, atomic_path
from workbench.candidates.offer import (
    ONE_CLASS_PER_PLACE,
    Offer,
    Reason,
    Shared,
    one_label_per_object,
)
from workbench.errors import RunFolderError
from workbench.layer.files import refuse_open
from workbench.layer.kept import Kept
from workbench.layer.touched import read_touched
from workbench.polygons.clean import only_polygons
from workbench.polygons.overlap import common_area
from workbench.raster.crs import ground_area_m2
from workbench.runs.folder import refuse_to_lose_review
from workbench.runs.job import Job

GPKG, GEOJSON = "prelabels.gpkg", "prelabels.geojson"
STAGE = ".refresh"  # holds the files of a new layer until all of them are complete
BACKUP = "prelabels-before-"  # and the time: what a refresh has replaced
_SCORES = ["confidence", "stability"]


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
    kept: Kept
    read_at: tuple[int, int]  # when the GeoPackage was last changed, and its size
    replaced: Path | None = None  # where the old GeoPackage is
    left_out: dict[str, int] = field(default_factory=dict)

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
        return cls(folder, kept, read_at) if kept.ids else None

    def among(self, batches: Iterable[gpd.GeoDataFrame], job: Job) -> Iterator[gpd.GeoDataFrame]:
        """Join the labels that stay with the new labels that duplicate none of them."""
        return self.kept.among(self.beside(batches, job))

    def beside(self, batches: Iterable[gpd.GeoDataFrame], job: Job) -> Iterator[gpd.GeoDataFrame]:
        """Leave out what a person has already judged, and give the rest free ids."""
        now = self.kept.now
        there = now["status"].ne("rejected").to_numpy()
        standing = _Standing(now.geometry.to_numpy()[there], _offer(job))
        # a shape that was edited, deleted or rejected is not offered again, but its place is free
        gone = np.concatenate([now.geometry.to_numpy()[~there], self.kept.before.geometry])
        refused = _Standing(gone, replace(_offer(job), overlaps="all"))
        scores = {
            (label, *own)
            for frame in (now, self.kept.before)
            for label, own in zip(frame["id"], frame[_SCORES].to_numpy(float).tolist(), strict=True)
        }
        for batch in batches:
            new = self._with_free_ids(batch, scores)
            known = len(batch) - len(new)
            shapes = new.geometry.to_numpy()
            free = standing.leaves(shapes) & refused.leaves(shapes)
            new = new[free].reset_index(drop=True)
            if job.planar:
                new = standing.cut_from(new)
            for reason, n in (
                ("already judged", known), ("duplicates of these", np.count_nonzero(~free)),
            ):  # fmt: skip
                self.left_out[reason] = self.left_out.get(reason, 0) + int(n)
            yield new

    def _with_free_ids(
        self, batch: gpd.GeoDataFrame, scores: Collection[tuple[str, float, float]]
    ) -> gpd.GeoDataFrame:
        """Leave out the candidates that were judged; rename those whose id is taken.

        Another model, or other tiles, give other candidates the same ids. `scores` are the ids and
        scores of what stays.
        """
        taken = self.kept.ids
        ids = batch["id"].to_numpy(object).copy()
        judged, own_scores = np.zeros(len(ids), bool), batch[_SCORES].to_numpy(float).tolist()
        for row in np.flatnonzero(batch["id"].isin(taken)):
            for name in chain([ids[row]], (f"{ids[row]}/{n}" for n in count(2))):
                if name not in taken or (name, *own_scores[row]) in scores:
                    judged[row] = name in taken
                    ids[row] = name
                    break
        # also without rows, of which pandas would not know that these are texts
        named = batch.assign(id=pd.Series(ids, batch.index, dtype=batch["id"].dtype))
        return named[~judged].reset_index(drop=True)

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
        statuses = self.kept.now["status"].value_counts()
        rows = {f"kept, {status}": f"{n:,}" for status, n in statuses.items()}
        rows["kept as deleted"] = f"{len(self.kept.deleted):,}"
        rows |= {f"not offered again, {reason}": f"{n:,}" for reason, n in self.left_out.items()}
        return rows | ({} if self.replaced is None else {"the old layer": self.replaced.name})


def _offer(job: Job) -> Offer:
    """Which new labels may lie beside those that stay: as beside any label, but no duplicates."""
    twice = Offer.duplicate_iou if job.duplicate_iou is None else job.duplicate_iou
    rule = job.offer if job.examples is None else ONE_CLASS_PER_PLACE
    return replace(rule, duplicate_iou=twice)


class _Standing:
    """Shapes `(k,)` that stay, and what may lie beside them."""

    def __init__(self, shapes: NDArray[np.object_], offer: Offer) -> None:
        self._shapes, self._offer = _sound(shapes), offer
        self._tree = shapely.STRtree(self._shapes)

    def leaves(self, shapes: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Mark the new shapes `(n,)` that may lie beside these."""
        new, old = self._tree.query(shapes, "intersects")
        common = common_area(shapes[new], self._shapes[old])
        area = shapely.area(np.concatenate([self._shapes, shapes]))
        k = len(self._shapes)
        pairs = Shared(old, new + k, common, np.ones(len(new), bool))
        decided = one_label_per_object(pairs, area, np.arange(len(area)), self._offer)
        return np.asarray(decided.reason[k:] == Reason.OFFERED)

    def cut_from(self, layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        """Cut the shapes that stay out of a layer; drop labels of which nothing is left."""
        shapes = layer.geometry.to_numpy().copy()
        new, old = self._tree.query(shapes, "intersects")
        for row in np.unique(new):
            shapes[row] = shapely.difference(
                shapes[row], shapely.union_all(self._shapes[old[new == row]])
            )
        changed = np.unique(new)
        shapes[changed] = only_polygons(shapes[changed])
        area = layer["area_m2"].to_numpy(float).copy()
        area[changed] = ground_area_m2(shapes[changed], layer.crs)
        left = layer.assign(area_m2=area).set_geometry(shapes, crs=layer.crs)
        return left[~shapely.is_empty(shapes)].reset_index(drop=True)


def _sound(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Mend what somebody drew, to compare it; the label itself stays as it is."""
    shapes = np.asarray(shapes, object).copy()
    broken = ~shapely.is_valid(shapes)
    shapes[broken] = only_polygons(shapely.make_valid(shapes[broken], method="structure"))
    return shapes


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
