"""A reviewed layer, read from the file that QGIS saved, and checked."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray

from workbench.errors import ReviewError
from workbench.layer import schema
from workbench.layer.schema import LABELS, Status
from workbench.polygons.clean import only_polygons
from workbench.raster.crs import crs_short, is_same_on
from workbench.review.changes import is_first_of_id, same_shapes
from workbench.runs.result import Run

STATUSES: tuple[Status, ...] = get_args(Status)
_NEEDED = ("id", "status")  # the rest can be looked up in the run
_SHAPEFILE_NAME = 10  # characters of a column that a Shapefile keeps
# pixels: other formats and another CRS round coordinates, a person moves a corner further than this
_ROUNDING = 0.1


@dataclass(frozen=True)
class Reviewed:
    """A reviewed layer, and sentences about what in it had to be interpreted."""

    labels: gpd.GeoDataFrame
    notes: tuple[str, ...]


def read_reviewed(path: Path, run: Run) -> gpd.GeoDataFrame:
    """Read the labels of a reviewed layer, as `read_review` does."""
    return read_review(path, run).labels


def read_review(path: Path, run: Run) -> Reviewed:
    """Read the reviewed layer of a run; the file is not touched, not even by a lock.

    It is the GeoPackage of the run, or an export of its labels as GeoPackage, GeoJSON or Shapefile,
    also with another name or in another CRS. The columns are those of a layer and two more: `fid`,
    as QGIS shows it, and `unclosed`, whether a ring of the stored WKB does not end where it starts
    (the geometry returned is closed). From a collection, only polygons are kept; a label without
    polygons has an empty MultiPolygon. A label without a status is `unreviewed`, one that somebody
    drew or reshaped is `edited`. Raises `ReviewError` if the file is open in QGIS, damaged, or not
    the review of this run.
    """
    path = Path(path)
    notes: list[str] = []
    labels, stored = _read(path, notes)
    labels = _columns(path, labels, run, notes)
    labels = _crs(path, labels, run, notes)
    _refuse_another_run(path, labels, run)
    closed = shapely.from_wkb(stored, on_invalid="ignore")
    unclosed = shapely.is_missing(closed) & ~shapely.is_missing(labels.geometry.to_numpy())
    fid = labels.index.to_numpy()
    shapes = only_polygons(labels.geometry.to_numpy())
    labels = labels.assign(
        class_id=_classes(path, labels["class_id"], run.job.classes, notes),
        status=_statuses(path, labels, run, notes),
    )
    labels = schema.as_layer(labels.set_geometry(shapes, crs=run.layer.crs))
    labels = _unmoved(labels, run) if notes else labels
    labels["status"] = _by_shape(labels, fid, run, notes)
    return Reviewed(labels.assign(fid=fid, unclosed=unclosed), tuple(notes))


# ------------------------------------------------------------------------------- files


def _read(path: Path, notes: list[str]) -> tuple[gpd.GeoDataFrame, NDArray[np.object_]]:
    """Return the labels by fid, and their shapes as stored."""
    if not path.is_file():
        raise ReviewError(f"{path}: no such file. Give the GeoPackage that was reviewed.")
    how: dict[str, Any] = {}
    if _is_sqlite(path):
        _refuse_unsaved(path)
        _refuse_damaged(path)
        # immutable: neither a lock nor a journal appears beside the file
        how = {"layer": layer_of(path, notes), "IMMUTABLE": "YES"}
    elif path.suffix.lower() in (".geojson", ".json", ".shp"):
        notes.append(f"{path.name} is an export of the reviewed layer.")
    else:
        raise ReviewError(f"{path} is no GeoPackage. Give the GeoPackage that was reviewed.")
    try:
        labels = pyogrio.read_dataframe(path, fid_as_index=True, on_invalid="fix", **how)
        stored = pyogrio.raw.read(path, columns=[], **how)[2]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise ReviewError(
            f"{path} cannot be read as a vector layer ({error}). Copy it again from where it was "
            "reviewed, with all programs closed that use it."
        ) from error
    if not isinstance(labels, gpd.GeoDataFrame):
        raise ReviewError(
            f"{path}: its labels have no geometry. Give the prelabels.gpkg that was reviewed."
        )
    return labels, stored


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\x00"


def _refuse_unsaved(gpkg: Path) -> None:
    for log in (gpkg.with_name(f"{gpkg.name}-wal"), gpkg.with_name(f"{gpkg.name}-journal")):
        if log.exists() and log.stat().st_size:
            raise ReviewError(
                f"{gpkg} is open in another program, probably QGIS, or came without being closed "
                f"there: {log.name} beside it holds edits that are not in it yet. Save and close "
                "it there, then try again."
            )


def _refuse_damaged(gpkg: Path) -> None:
    try:  # GDAL reads what it can of a damaged file, and reports nothing
        with closing(sqlite3.connect(f"{gpkg.absolute().as_uri()}?immutable=1", uri=True)) as db:
            state = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        state = str(error)
    if state != "ok":
        raise ReviewError(
            f"{gpkg} is damaged ({state}). Copy it again from where it was reviewed, with all "
            "programs closed that use it."
        )


def layer_of(gpkg: Path, notes: list[str]) -> str:
    """Return the name of the layer of labels, which somebody may have renamed."""
    names = [str(name) for name, geometry in pyogrio.list_layers(gpkg) if geometry is not None]
    if LABELS in names:
        return LABELS
    fields = {name: pyogrio.read_info(gpkg, layer=name)["fields"] for name in names}
    like = [name for name in names if set(_NEEDED) <= set(fields[name])
            and "tile_row" not in fields[name]]  # fmt: skip
    if len(like) == 1:
        notes.append(f"Its labels are in the layer `{like[0]}`, not in `{LABELS}`.")
        return like[0]
    several = f"{len(like)} layers could be it: {', '.join(like)}"
    none = f"it has {', '.join(names) or 'none'}"
    raise ReviewError(
        f"{gpkg} has no layer `{LABELS}` ({several if like else none}). Give the prelabels.gpkg "
        "that was reviewed."
    )


# --------------------------------------------------------------------------- what is in them


def _columns(path: Path, labels: gpd.GeoDataFrame, run: Run, notes: list[str]) -> gpd.GeoDataFrame:
    """Give labels the columns of a layer; what an export has lost is looked up in the run."""
    if path.suffix.lower() == ".shp":
        whole = {name[:_SHAPEFILE_NAME]: name for name in schema.COLUMNS}
        labels = labels.rename(columns=whole)
    missing = [name for name in schema.COLUMNS if name not in labels and name not in schema.LATER]
    lost = [name for name in missing if name in _NEEDED]
    if lost:
        raise ReviewError(
            f"{path}: its labels lack the columns {', '.join(lost)}. Give the prelabels.gpkg "
            "that was reviewed, or an export with these columns."
        )
    if missing:
        notes.append(f"It lacks {', '.join(missing)}: taken from the run, by `id`.")
        of_run = run.layer.drop_duplicates("id").set_index("id")
        for name in missing:
            labels[name] = of_run[name].reindex(labels["id"]).to_numpy()
    return labels


def _crs(path: Path, labels: gpd.GeoDataFrame, run: Run, notes: list[str]) -> gpd.GeoDataFrame:
    """Bring labels to the CRS of the run."""
    crs, bounds = run.layer.crs, run.tiles.total_bounds
    if labels.crs is None:
        here = shapely.box(*bounds).buffer(max(bounds[2] - bounds[0], bounds[3] - bounds[1]))
        if not len(labels) or not here.contains(shapely.box(*labels.total_bounds)):
            raise ReviewError(
                f"{path} has no CRS, and its coordinates are not those of the run "
                f"({crs_short(crs)}). Save it again with its CRS."
            )
        notes.append(
            f"It has no CRS; its coordinates lie in the run, so {crs_short(crs)} is meant."
        )
        return labels.set_crs(crs)
    if is_same_on(bounds, labels.crs, crs):
        return labels
    notes.append(f"It is in {crs_short(labels.crs)}; brought to {crs_short(crs)}, that of the run.")
    try:
        return labels.to_crs(crs)
    except pyproj.exceptions.ProjError as error:
        raise ReviewError(
            f"{path} is in {crs_short(labels.crs)}, from where no way leads to {crs_short(crs)}, "
            f"the CRS of the run ({error}). Save it in that CRS."
        ) from error


def _refuse_another_run(path: Path, labels: gpd.GeoDataFrame, run: Run) -> None:
    if len(labels) and len(run.layer) and not labels["id"].isin(run.layer["id"]).any():
        raise ReviewError(
            f"{path} has no label of the run in {run.folder}, so it is the review of another run. "
            "Give the run folder that it came from."
        )


def _classes(
    path: Path, values: pd.Series, classes: Mapping[int, str], notes: list[str]
) -> pd.Series:
    """Read classes as numbers: of a text, its number or the class of that name."""
    if pd.api.types.is_numeric_dtype(values) or not values.notna().any():
        return pd.to_numeric(values)
    by_text = {
        text.casefold(): number
        for number, name in classes.items()
        for text in (name.strip(), f"{number} – {name}", f"{number} - {name}")
    }

    def number_of(value: object) -> object:
        text = "" if value is None else str(value).strip()
        if not text:
            return pd.NA
        if re.fullmatch(r"\d+(\.0*)?", text):
            return int(float(text))
        return by_text.get(text.casefold())

    given = values.astype(object).where(values.notna(), None)
    numbers = [number_of(value) for value in given]  # a mapped Series would turn None into NaN
    unknown = given[[number is None for number in numbers]]
    if len(unknown):
        known = ", ".join(f"{number} ({name})" for number, name in classes.items())
        raise ReviewError(
            f"{path}: {unknown.iloc[0]!r} is no class of the run; {len(unknown)} labels have such "
            f"a class, the first has fid {unknown.index[0]}. Correct it in QGIS: {known}. Or add "
            "the class to `classes` in the job.yaml of the run folder."
        )
    notes.append("Its classes are text; read by number or name.")
    return pd.Series(numbers, values.index, "Int64")


def _statuses(path: Path, labels: gpd.GeoDataFrame, run: Run, notes: list[str]) -> pd.Series:
    known = labels["id"].isin(run.layer["id"])
    default = pd.Series(np.where(known, "unreviewed", "edited"), labels.index)
    given = labels["status"].astype(object)
    given = given.where(given.notna() & (given != ""), default)
    status = given.map(lambda value: str(value).strip().lower())
    strange = given[~status.isin(STATUSES)]
    if len(strange):
        raise ReviewError(
            f"{path}: {strange.iloc[0]!r} is no status; {len(strange)} labels have an invalid one, "
            f"the first has fid {strange.index[0]}. Correct them in QGIS: {', '.join(STATUSES)}."
        )
    return status


# ----------------------------------------------------------------------------- their shapes


def _unmoved(labels: gpd.GeoDataFrame, run: Run) -> gpd.GeoDataFrame:
    """Give labels that rounding alone has changed the exact shapes of the run."""
    row = pd.Index(run.layer["id"]).get_indexer(labels["id"])
    known = np.flatnonzero((row >= 0) & ~shapely.is_empty(labels.geometry.to_numpy()))
    shapes = labels.geometry.to_numpy().copy()
    before = run.layer.geometry.to_numpy()[row[known]]
    pixel = min(scene.transform.a for scene in run.scenes)
    lines = shapely.boundary(shapes[known]), shapely.boundary(before)
    rounded = known[shapely.hausdorff_distance(*lines) < _ROUNDING * pixel]
    shapes[rounded] = run.layer.geometry.to_numpy()[row[rounded]]
    return labels.set_geometry(shapes, crs=labels.crs)


def _by_shape(
    labels: gpd.GeoDataFrame, fid: NDArray[np.int64], run: Run, notes: list[str]
) -> pd.Series:
    """Return the statuses, where an unreviewed label with another shape than the run's is edited.

    Labels that are called edited and have the shape of the run are named: a bulk change of a class
    or a status may have called them so.
    """
    row = pd.Index(run.layer["id"]).get_indexer(labels["id"])
    known = np.flatnonzero(row >= 0)
    moved = np.zeros(len(labels), bool)
    before = run.layer.geometry.to_numpy()[row[known]]
    moved[known] = ~same_shapes(labels.geometry.to_numpy()[known], before)
    status = labels["status"].mask(moved & labels["status"].eq("unreviewed"), "edited")
    same = np.zeros(len(labels), bool)
    same[known] = ~moved[known] & is_first_of_id(labels)[known]
    called = same & status.eq("edited").to_numpy()
    if called.any():
        notes.append(
            f"{called.sum():,} labels are marked `edited`, but nobody has changed their shape (the "
            f"first has fid {fid[called][0]}). They count as accepted. If a class or a status was "
            "set for many labels at once, they may be unreviewed: set their status in QGIS."
        )
    return status
