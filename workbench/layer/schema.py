"""The columns of the layer and of the tiles, and frames that have exactly these.

To add a column of the layer: name it in `COLUMNS`; fill it in `runs.finish` and `runs.prompted`;
say in `LATER` and `as_layer` what older layers have instead; give it a field in `layer.qgis.style`
and a row in `docs/outputs.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from workbench.raster.scene import raster_of

Status = Literal["unreviewed", "accepted", "rejected", "edited"]

COLUMNS: Mapping[str, str] = {
    "id": "str",
    "class_id": "Int64",  # nullable: a campaign may leave the classes to the reviewers
    "class_score": "float64",  # probability of the class; NaN where none was learned
    "status": "str",
    "confidence": "float64",
    "stability": "float64",
    "area_m2": "float64",
    "area_px": "int64",
    "source_tile": "str",
    "source": "str",
    "n_tiles": "int64",
    "at_edge": "bool",
}
# layers of earlier versions lack them
LATER = ("class_score",)
TILE_COLUMNS: Mapping[str, str] = {
    "tile": "str",
    "source": "str",
    "tile_row": "int64",
    "tile_col": "int64",
    "status": "str",  # ok, empty, nodata or failed
    "error": "str",
    "n_candidates": "int64",
    "n_polygons": "int64",
    "seconds": "float64",
}
# further columns where prompts were given: what came of each
ANSWER: Mapping[str, str] = {
    "prompt_fid": "Int64",  # text where the file has no numbers
    "prompt_iou": "float64",
    "moved_m": "float64",
    "changed": "boolean",
}
BATCH = 1024  # polygons in memory at once, when a layer is written or read in batches
LABELS, TILES = "prelabels", "tiles"  # the names of the two layers in the GeoPackage
WAITING = "n_unreviewed"  # a further column of the layer of tiles in the GeoPackage
DRAWN = "drawn/"  # the ids of polygons that somebody drew begin with it
GEOMETRY_COLUMN = "geom"  # its name in the GeoPackage

# for polygons drawn in QGIS, which fills in only what has a default
_MISSING: Mapping[str, Any] = {"str": "", "int64": 0, "bool": False}


def as_layer(polygons: gpd.GeoDataFrame, more: Sequence[str] = ()) -> gpd.GeoDataFrame:
    """Give polygons the columns of `COLUMNS`, in order and typed, and MultiPolygon geometry.

    Without `class_id` the class is null, without `class_score` (layers of earlier versions) the
    score is NaN, without `status` it is `unreviewed`. Other columns must be there; unknown columns
    are dropped, except for those named in `more`, which follow as they are. No rows give an empty
    layer with the same columns, dtypes and CRS. Raises `ValueError` for missing columns and other
    geometry.
    """
    absent = {"class_id": pd.NA, "class_score": np.nan, "status": "unreviewed"}
    layer = polygons.assign(**{k: v for k, v in absent.items() if k not in polygons})
    made = typed(layer, COLUMNS, "MultiPolygon")
    place = made.columns.get_loc("geometry")
    for i, name in enumerate(more):
        made.insert(place + i, name, layer[name].reset_index(drop=True))
    return made


def further_columns(frame: gpd.GeoDataFrame) -> list[str]:
    """The columns that a layer has besides `COLUMNS`: of prompts, or added by somebody."""
    return [name for name in frame if name not in COLUMNS and name != frame.geometry.name]


def as_tiles(tiles: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Give tiles the columns of `TILE_COLUMNS`, in order and typed; raises as `as_layer` does."""
    return typed(tiles, TILE_COLUMNS, "Polygon")


def with_left_out(tiles: gpd.GeoDataFrame, left_out: Mapping[str, str]) -> gpd.GeoDataFrame:
    """Add a failed row for each raster that could not be read, with its cause.

    It has no place: its row and column are -1, and its geometry is empty.
    """
    if not left_out:
        return tiles
    rows = gpd.GeoDataFrame(
        {
            "tile": list(left_out), "source": list(left_out), "tile_row": -1, "tile_col": -1,
            "status": "failed", "error": list(left_out.values()), "n_candidates": 0,
            "n_polygons": 0, "seconds": 0.0,
        },
        geometry=[shapely.Polygon()] * len(left_out),
        crs=tiles.crs,
    )  # fmt: skip
    return pd.concat([tiles, as_tiles(rows)], ignore_index=True)


def finest(tiles: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the tiles of a ledger whose cores partition the scenes: those of the working grid."""
    return tiles[tiles["source"].map(raster_of) == tiles["source"]].reset_index(drop=True)


def coarser(tiles: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the other tiles of a ledger: those that show a scene again with larger pixels."""
    return tiles[tiles["source"].map(raster_of) != tiles["source"]].reset_index(drop=True)


def typed(
    frame: gpd.GeoDataFrame,
    columns: Mapping[str, str],
    geometry_type: Literal["Polygon", "MultiPolygon"],
) -> gpd.GeoDataFrame:
    """Keep the given columns in their types; refuse missing columns and other geometry."""
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(f"polygons lack the columns {', '.join(missing)}")
    geometry = np.asarray(frame.geometry.array)
    if geometry_type == "MultiPolygon":
        geometry = as_multi(geometry)
    wrong = shapely.get_type_id(geometry) != shapely.GeometryType[geometry_type.upper()]
    if wrong.any():
        raise ValueError(f"{wrong.sum()} of {len(frame)} rows are not a {geometry_type}")
    typed = {name: as_column(frame[name], dtype) for name, dtype in columns.items()}
    return gpd.GeoDataFrame(typed, geometry=geometry, crs=frame.crs)


def as_column(values: pd.Series, dtype: str) -> pd.Series:
    """Return the values in a type of `COLUMNS`; nulls of GDAL become the type's empty value."""
    values = values.reset_index(drop=True)
    if dtype in _MISSING and values.hasnans:
        values = values.astype(object).where(values.notna(), _MISSING[dtype])
    if dtype == "Int64":  # GDAL reads a column of nothing but null as text
        values = pd.to_numeric(values)
    return values.astype(pd.api.types.pandas_dtype(dtype))


def as_multi(geometry: np.ndarray) -> np.ndarray:
    """Turn polygons into multipolygons of one part."""
    geometry = geometry.copy()
    single = np.flatnonzero(shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON)
    geometry[single] = shapely.multipolygons(geometry[single], indices=np.arange(len(single)))
    return geometry
