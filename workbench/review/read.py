"""A reviewed layer, read from the GeoPackage that QGIS saved, and checked."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import get_args

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely

from workbench.errors import ReviewError
from workbench.layer import schema
from workbench.layer.schema import LABELS, Status
from workbench.polygons.clean import only_polygons
from workbench.raster.crs import crs_short, is_same_on
from workbench.runs.result import Run

STATUSES: tuple[Status, ...] = get_args(Status)


def read_reviewed(gpkg: Path, run: Run) -> gpd.GeoDataFrame:
    """Read a reviewed GeoPackage of a run; the file is not touched, not even by a lock.

    The columns are those of a layer and two more: `fid`, as QGIS shows it, and `unclosed`, whether
    a ring of the stored WKB does not end where it starts (the geometry returned is closed). From a
    collection, only polygons are kept; a label without polygons has an empty MultiPolygon. A label
    without a status is `edited` if somebody drew it, else `unreviewed`. Raises `ReviewError` if the
    file is open in QGIS, damaged, or not the review of this run.
    """
    gpkg = Path(gpkg)
    _refuse_unsaved(gpkg)
    _refuse_damaged(gpkg)
    try:
        # immutable: neither a lock nor a journal appears beside the file
        labels = pyogrio.read_dataframe(
            gpkg, layer=LABELS, fid_as_index=True, on_invalid="fix", IMMUTABLE="YES"
        )
        stored = pyogrio.raw.read(gpkg, layer=LABELS, columns=[], IMMUTABLE="YES")[2]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise ReviewError(
            f"{gpkg} cannot be read as a GeoPackage ({error}). Copy it again from where it was "
            "reviewed, with all programs closed that use it."
        ) from error
    if not isinstance(labels, gpd.GeoDataFrame):
        raise ReviewError(
            f"{gpkg}: its layer `{LABELS}` has no geometry. Give the "
            "prelabels.gpkg that was reviewed."
        )
    _refuse_another_layer(gpkg, labels, run)
    closed = shapely.from_wkb(stored, on_invalid="ignore")
    unclosed = shapely.is_missing(closed) & ~shapely.is_missing(labels.geometry.to_numpy())
    fid = labels.index.to_numpy()
    labels = schema.as_layer(
        labels.assign(status=_statuses(gpkg, labels, run)).set_geometry(
            only_polygons(labels.geometry.to_numpy()), crs=run.layer.crs
        )
    )
    return labels.assign(fid=fid, unclosed=unclosed)


def _refuse_unsaved(gpkg: Path) -> None:
    if not gpkg.is_file():
        raise ReviewError(f"{gpkg}: no such file. Give the GeoPackage that was reviewed.")
    for log in (gpkg.with_name(f"{gpkg.name}-wal"), gpkg.with_name(f"{gpkg.name}-journal")):
        if log.exists() and log.stat().st_size:
            raise ReviewError(
                f"{gpkg} is open in another program, probably QGIS, or came without being closed "
                f"there: {log.name} beside it holds edits that are not in it yet. Save and close "
                "it there, then try again."
            )
    with gpkg.open("rb") as file:
        if file.read(16) != b"SQLite format 3\x00":
            raise ReviewError(f"{gpkg} is no GeoPackage. Give the GeoPackage that was reviewed.")


def _refuse_damaged(gpkg: Path) -> None:
    try:  # GDAL reads what it can of a damaged file, and reports nothing
        with closing(sqlite3.connect(f"{gpkg.absolute().as_uri()}?immutable=1", uri=True)) as db:
            state = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            found = [row[0] for row in db.execute("SELECT table_name FROM gpkg_contents")]
    except sqlite3.DatabaseError as error:
        state, found = str(error), []
    if state != "ok":
        raise ReviewError(
            f"{gpkg} is damaged ({state}). Copy it again from where it was reviewed, with all "
            "programs closed that use it."
        )
    if LABELS not in found:
        raise ReviewError(
            f"{gpkg} has no layer `{LABELS}` (it has {', '.join(found) or 'none'}). Give the "
            "prelabels.gpkg that was reviewed."
        )


def _refuse_another_layer(gpkg: Path, labels: gpd.GeoDataFrame, run: Run) -> None:
    missing = [name for name in schema.COLUMNS if name not in labels and name not in schema.LATER]
    if missing:
        raise ReviewError(
            f"{gpkg}: its labels lack the columns {', '.join(missing)}. Give the prelabels.gpkg "
            "that was reviewed, not an export of it."
        )
    crs = run.layer.crs
    if labels.crs is None or not is_same_on(run.tiles.total_bounds, labels.crs, crs):
        theirs = "no CRS" if labels.crs is None else crs_short(labels.crs)
        raise ReviewError(
            f"{gpkg} is in {theirs}, the run in {crs_short(crs)}. Give the file that was reviewed, "
            "not an export of it in another CRS."
        )
    if len(labels) and len(run.layer) and not labels["id"].isin(run.layer["id"]).any():
        raise ReviewError(
            f"{gpkg} has no label of the run in {run.folder}, so it is the review of another run. "
            "Give the run folder that it came from."
        )


def _statuses(gpkg: Path, labels: gpd.GeoDataFrame, run: Run) -> pd.Series:
    known = labels["id"].isin(run.layer["id"])
    default = pd.Series(np.where(known, "unreviewed", "edited"), labels.index)
    status = labels["status"].astype(object).where(labels["status"].notna(), default)
    strange = status[~status.isin(STATUSES)]
    if len(strange):
        raise ReviewError(
            f"{gpkg}: {strange.iloc[0]!r} is no status; {len(strange)} labels have an invalid one, "
            f"the first has fid {strange.index[0]}. Correct them in QGIS: {', '.join(STATUSES)}."
        )
    return status
