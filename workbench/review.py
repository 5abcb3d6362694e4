"""What came back from review: read without touching it, and compared with what the run wrote."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal, get_args

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from numpy.typing import NDArray

from workbench import layer as layers
from workbench.crs import is_same_on
from workbench.errors import ReviewError
from workbench.finished import Run
from workbench.layer import LABELS, Status, crs_name
from workbench.polygons import only_polygons

Change = Literal["unreviewed", "accepted", "edited", "rejected", "deleted", "added"]
STATUSES: tuple[Status, ...] = get_args(Status)
CHANGES: tuple[Change, ...] = get_args(Change)


def read_reviewed(gpkg: Path, run: Run) -> gpd.GeoDataFrame:
    """Read a reviewed GeoPackage of a run; its file is not touched, not even by a lock.

    The columns are those of a layer and two more: `fid`, as QGIS shows it, and `unclosed`, whether
    a ring does not end where it starts in the stored WKB (the geometry is closed). Of a collection
    the polygons stay; what has none has an empty MultiPolygon. A status that is missing counts as
    `edited` of what somebody has drawn, else as `unreviewed`. Raises `ReviewError` where the file
    is open in QGIS, damaged, or not the review of this run.
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
    labels = layers.as_layer(
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
                "it there, then take it again."
            )
    with gpkg.open("rb") as file:
        if file.read(16) != b"SQLite format 3\x00":
            raise ReviewError(f"{gpkg} is no GeoPackage. Give the GeoPackage that was reviewed.")


def _refuse_damaged(gpkg: Path) -> None:
    try:  # GDAL reads what it can of a damaged file, and says nothing of the rest
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
    missing = [name for name in layers.COLUMNS if name not in labels]
    if missing:
        raise ReviewError(
            f"{gpkg}: its labels lack the columns {', '.join(missing)}. Give the prelabels.gpkg "
            "that was reviewed itself, no export of it."
        )
    known = labels.crs is not None
    if not known or not is_same_on(run.tiles.total_bounds, labels.crs, run.layer.crs):
        here = "no CRS" if labels.crs is None else crs_name(labels.crs)
        raise ReviewError(
            f"{gpkg} is in {here}, the run in {crs_name(run.layer.crs)}. Give the file that was "
            "reviewed itself, no export of it in another CRS."
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
            f"{gpkg}: {strange.iloc[0]!r} is no status; {len(strange)} labels have such a one, the "
            f"first with fid {strange.index[0]}. Labels are {', '.join(STATUSES)}; correct it in "
            "QGIS."
        )
    return status


def changes(labels: gpd.GeoDataFrame, prelabels: gpd.GeoDataFrame) -> pd.DataFrame:
    """Say what review made of each pre-label, and what it added: one row for each of them.

    `labels` is the layer as it came back, `prelabels` as the run wrote it. Rows are in the order of
    `labels`, deleted ones last. Columns: `id`, `row` (in `labels`, -1 for what was deleted),
    `change`, `confidence` (as the run gave it, NaN of what was added), `class_id` (as it is now, or
    was), `reclassified`, `reshaped`, and `iou` of the shapes before and after, 1 where it is the
    same and NaN for what was added or deleted.

    What has another shape or class is `edited`, whatever its status; setting a class that was null
    is part of accepting. Of labels with one id, as when one is split, the largest counts as the
    pre-label and the others as added.
    """
    shape = labels.geometry.to_numpy()
    order = np.argsort(-shapely.area(shape), kind="stable")
    first = np.zeros(len(labels), bool)
    first[order[~labels["id"].iloc[order].duplicated()]] = True
    before_row = pd.Index(prelabels["id"]).get_indexer(labels["id"])
    known = first & (before_row >= 0)
    before = prelabels.iloc[before_row[known]].reset_index(drop=True)
    old_shape = before.geometry.to_numpy()

    iou = np.full(len(labels), np.nan)
    iou[known] = 1.0
    moved = np.flatnonzero(known)[~_same(shape[known], old_shape)]
    old_row = before_row[moved]
    iou[moved] = iou_of_pairs(shape[moved], prelabels.geometry.to_numpy()[old_row])
    reshaped = np.zeros(len(labels), bool)
    reshaped[moved] = True
    reclassified = np.zeros(len(labels), bool)
    old_class = before["class_id"].to_numpy()
    new_class = labels["class_id"].to_numpy()[known]
    reclassified[known] = (old_class != new_class) & ~pd.isna(old_class)

    change = labels["status"].to_numpy(object).copy()
    change[(reshaped | reclassified) & (change != "rejected")] = "edited"
    change[~known] = "added"
    # a drawn polygon that was rejected again was never there
    there = known | (labels["status"] != "rejected").to_numpy()
    confidence = np.full(len(labels), np.nan)
    confidence[known] = before["confidence"]
    now = pd.DataFrame(
        {
            "id": labels["id"].to_numpy(),
            "row": np.arange(len(labels)),
            "change": change,
            "confidence": confidence,
            "class_id": labels["class_id"].to_numpy(),
            "reclassified": reclassified,
            "reshaped": reshaped,
            "iou": iou,
        }
    )[there]
    gone = prelabels[~prelabels["id"].isin(labels["id"])]
    deleted = pd.DataFrame(
        {
            "id": gone["id"].to_numpy(),
            "row": -1,
            "change": "deleted",
            "confidence": gone["confidence"].to_numpy(),
            "class_id": gone["class_id"].to_numpy(),
            "reclassified": False,
            "reshaped": False,
            "iou": np.nan,
        }
    )
    both = pd.concat([frame for frame in (now, deleted) if len(frame)] or [now])
    return both.reset_index(drop=True)


def reviewed_tiles(
    tiles: gpd.GeoDataFrame, labels: gpd.GeoDataFrame, waiting: NDArray[np.bool_]
) -> set[str]:
    """Name the tiles that are reviewed to their end: what seems empty there is empty.

    `waiting` `(n,)` marks the labels that nobody has judged yet. A tile counts if the middle of a
    label lies in its core and none of them waits. Without any label it may be one that nobody has
    come to, so it counts only where no label waits in any tile.
    """
    if len(labels) and not waiting.any():
        return set(tiles["tile"])
    return tiles_of(labels[~waiting], tiles) - tiles_of(labels[waiting], tiles)


def tiles_of(layer: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame) -> set[str]:
    """Name the tiles in whose core the middle of something lies."""
    home = home_in(tiles, layer)
    return set(tiles["tile"].iloc[home[home >= 0]])


def home_in(tiles: gpd.GeoDataFrame, layer: gpd.GeoDataFrame) -> NDArray[np.int64]:
    """Row `(n,)` of the tile in whose core the middle of each shape lies, -1 for none.

    The middle is a point that lies in the shape. Both layers are in one CRS.
    """
    points = layer.geometry.representative_point().to_numpy()
    home = np.full(len(points), -1)
    point, tile = shapely.STRtree(tiles.geometry.to_numpy()).query(points, predicate="intersects")
    home[point[::-1]] = tile[::-1]  # on an edge the first
    return home


def _same(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Whether shapes cover the same; saving in QGIS may turn a ring or add a vertex on an edge."""
    same = shapely.equals_identical(one, other)
    rest = np.flatnonzero(~same)
    same[rest] = shapely.equals(shapely.make_valid(one[rest]), other[rest])
    return same


def iou_of_pairs(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.float64]:
    """IoU of polygons, row by row, mended where they are invalid; 0 where both are empty."""
    one, other = (shapely.make_valid(shapes, method="structure") for shapes in (one, other))
    shared = shapely.area(shapely.intersection(one, other))
    whole = shapely.area(one) + shapely.area(other) - shared
    return np.divide(shared, whole, out=np.zeros(len(whole)), where=whole > 0)
