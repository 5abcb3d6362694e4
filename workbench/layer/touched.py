"""The labels of a GeoPackage that a person has touched, read so that they can be written again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from workbench.errors import RunFolderError
from workbench.layer.files import GPKG_ERRORS, read_layer
from workbench.layer.guard import label_digests
from workbench.layer.kept import Kept
from workbench.layer.schema import COLUMNS, DRAWN, LABELS, LATER, as_layer
from workbench.polygons.clean import only_polygons
from workbench.raster.crs import crs_short, is_same_on


def read_touched(gpkg: Path, crs: CRS) -> Kept:
    """Read what a person has accepted, rejected, edited, drawn, deleted, classed or noted.

    Labels with any status but `unreviewed` are among them, because the tuner may have accepted
    them. A note is a text in a column that somebody, not the run, has added. A label whose shape is
    empty counts as deleted. `crs` is that of the new layer. Raises `RunFolderError` for a file in
    another CRS, and for one that `write_layer` has not written.
    """
    try:
        labels = pyogrio.read_dataframe(gpkg, layer=LABELS, on_invalid="fix")
        written = gpkg.with_suffix(".parquet")
        before = read_layer(written) if written.exists() else None
        missing = [name for name in COLUMNS if name not in labels and name not in LATER]
        if missing:
            raise ValueError(f"its labels lack {', '.join(missing)}")
        shapes = only_polygons(labels.geometry.to_numpy())
        layer = as_layer(labels.set_geometry(shapes, crs=labels.crs))
        more = labels.drop(columns=[name for name in COLUMNS if name in labels])
        more = _whole_numbers(gpkg, pd.DataFrame(more.drop(columns=labels.geometry.name)))
    except (*GPKG_ERRORS, pa.ArrowException, KeyError, ValueError) as error:
        raise RunFolderError(
            f"{gpkg} is no layer of pre-labels that a run has written, or is damaged ({error}). "
            "Move it out of the run folder, or choose another out_dir."
        ) from error
    there = layer[~shapely.is_empty(shapes)]
    by_run = pq.read_schema(written).names if before is not None else []
    notes = more.drop(columns=[name for name in more if name in by_run])
    touched = there[_touched(there, before) | _noted(notes.loc[there.index])]
    if before is None:  # nothing tells what the labels were
        before = touched[~touched["id"].str.startswith(DRAWN)].assign(status="unreviewed")
    before = before[before["id"].isin(touched["id"]) | ~before["id"].isin(there["id"])]
    _refuse_another_crs(gpkg, layer, crs)
    now = pd.concat([touched, more.loc[touched.index]], axis=1)
    return Kept(_in(now, crs), _in(before, crs))


def _whole_numbers(gpkg: Path, columns: pd.DataFrame) -> pd.DataFrame:
    """Give whole numbers their type back, which null values have made floating."""
    about = pyogrio.read_info(gpkg, layer=LABELS)
    types = dict(zip(about["fields"], about["dtypes"], strict=True))
    whole = [name for name in columns if types[name].startswith("int")]
    return columns.astype(dict.fromkeys(whole, "Int64"))


def _in(labels: gpd.GeoDataFrame, crs: CRS) -> gpd.GeoDataFrame:
    # the same CRS may come back from the file in other words
    return gpd.GeoDataFrame(labels.reset_index(drop=True)).set_crs(crs, allow_override=True)


def _touched(labels: gpd.GeoDataFrame, before: gpd.GeoDataFrame | None) -> NDArray[np.bool_]:
    """Mark the labels `(n,)` that are not as they were written, or have been judged."""
    judged = labels["status"].ne("unreviewed").to_numpy(bool)
    if before is None:
        return judged
    written = Counter(label_digests(before))
    changed = np.zeros(len(labels), bool)
    for row, label in enumerate(label_digests(labels)):
        changed[row] = not written[label]  # of a label that was copied, one is as written
        written[label] -= 1
    return judged | changed


def _noted(more: pd.DataFrame) -> NDArray[np.bool_]:
    """Mark the rows that have a text in one of these columns."""
    noted = np.zeros(len(more), bool)
    for name in more:
        values = more[name]
        if pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values):
            noted |= np.array([isinstance(v, str) and bool(v.strip()) for v in values], bool)
    return noted


def _refuse_another_crs(gpkg: Path, layer: gpd.GeoDataFrame, crs: CRS) -> None:
    if not len(layer) or layer.crs is None or is_same_on(layer.total_bounds, layer.crs, crs):
        return
    raise RunFolderError(
        f"{gpkg} is in {crs_short(layer.crs)}, and this run would write {crs_short(crs)}: its "
        f"reviewed labels cannot stay as they are. Set crs to {crs_short(layer.crs)}, or choose "
        "another out_dir."
    )
