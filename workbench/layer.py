"""The layer: which columns it has, and the files that hold it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyogrio
import shapely
from pyproj import CRS

from workbench.atomic import atomic_path
from workbench.errors import RunFolderError

Status = Literal["unreviewed", "accepted", "rejected", "edited"]

COLUMNS: Mapping[str, str] = {
    "id": "str",
    "class_id": "Int64",  # nullable: a campaign may leave the classes to the reviewers
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
LABELS, TILES = "prelabels", "tiles"  # the names of the two layers in the GeoPackage
GEOMETRY_COLUMN = "geom"  # its name in the GeoPackage
# GPKG and zip archives stamp the time; a fixed one makes equal runs equal files
TIMESTAMP = "1980-01-01T00:00:00.000Z"

_GPKG_ERRORS = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError)

# for what a person draws in QGIS, which fills in no more than it has defaults for
_MISSING: Mapping[str, Any] = {"str": "", "int64": 0, "bool": False}


@dataclass(frozen=True)
class LayerFiles:
    """Where `write_layer` has put the layer."""

    gpkg: Path
    geojson: Path
    parquet: Path
    qml: Path


def as_layer(polygons: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Give polygons the columns of `COLUMNS`, in order and typed, and MultiPolygon geometry.

    Without `class_id` the class is null, without `status` it is `unreviewed`; other columns must
    be there, and columns unknown here are left out. No rows give an empty layer with the same
    columns, dtypes and CRS. Raises `ValueError` for missing columns and other geometry.
    """
    absent = {"class_id": pd.NA, "status": "unreviewed"}
    layer = polygons.assign(**{k: v for k, v in absent.items() if k not in polygons})
    return _typed(layer, COLUMNS, "MultiPolygon")


def as_tiles(tiles: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Give tiles the columns of `TILE_COLUMNS`, in order and typed; raises as `as_layer` does."""
    return _typed(tiles, TILE_COLUMNS, "Polygon")


def write_layer(
    layer: gpd.GeoDataFrame,
    tiles: gpd.GeoDataFrame,
    folder: Path,
    *,
    styles: Mapping[str, Mapping[str, str]],
) -> LayerFiles:
    """Write `prelabels.gpkg`, `.geojson`, `.parquet` and `.qml`, each whole or not at all.

    `layer` and `tiles` share one CRS. `styles` holds QML by its name for the layers `prelabels`
    and `tiles`, the default first. The GeoJSON is RFC 7946 (EPSG:4326, 7 decimals), with the CRS
    of the layer in the property `crs`. Raises `RunFolderError` if QGIS has the old GeoPackage open.
    """
    if layer.crs is None or layer.crs != tiles.crs:
        raise ValueError(f"layer and tiles need one CRS, not {layer.crs} and {tiles.crs}")
    layer, tiles = as_layer(layer), as_tiles(tiles)
    files = LayerFiles(
        gpkg=folder / "prelabels.gpkg",
        geojson=folder / "prelabels.geojson",
        parquet=folder / "prelabels.parquet",
        qml=folder / "prelabels.qml",
    )
    refuse_open(files.gpkg)
    with atomic_path(files.gpkg) as path, frozen_time():
        write_gpkg_layer(layer, path, LABELS, "MultiPolygon")
        write_gpkg_layer(tiles, path, TILES, "Polygon")
        _add_styles(path, styles)
        _add_index(path)
    with atomic_path(files.geojson) as path:
        _write_geojson(layer, path)
    with atomic_path(files.parquet) as path:
        layer.to_parquet(path, index=False)
    with atomic_path(files.qml) as path:
        path.write_text(next(iter(styles[LABELS].values())), encoding="utf-8")
    return files


def read_layer(path: Path) -> gpd.GeoDataFrame:
    """Read the pre-labels from a `.gpkg`, `.parquet` or `.geojson`, with columns as written.

    A GeoJSON goes back to the CRS of its property `crs`; an empty one has none and stays in
    EPSG:4326. Polygons drawn by hand have no scores (NaN), and 0 or `''` where QGIS left NULL.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".gpkg":
            polygons = pyogrio.read_dataframe(path, layer=LABELS)
        case ".parquet":
            polygons = gpd.read_parquet(path)
        case ".geojson":
            polygons = _read_geojson(path)
        case suffix:
            raise ValueError(f"{path}: a layer is a .gpkg, .parquet or .geojson, not {suffix!r}")
    if polygons.empty:  # an empty GeoJSON has no columns at all
        polygons = polygons.reindex(columns=[*COLUMNS, polygons.geometry.name])
    return as_layer(polygons)


def count_reviewed(gpkg: Path) -> int:
    """Count the labels that a person has changed, drawn or deleted since `write_layer`.

    What was written is in the `.parquet` beside it; without that, every status but `unreviewed`
    counts. Raises `RunFolderError` for a file that `write_layer` has not written.
    """
    try:
        now = pyogrio.read_dataframe(gpkg, layer=LABELS)
        labels = _review_of(now)
        written = gpkg.with_suffix(".parquet")
        if not written.exists():
            return int((now["status"] != "unreviewed").sum())
        before = _review_of(gpd.read_parquet(written))
    except (*_GPKG_ERRORS, pa.ArrowException, KeyError, ValueError) as error:
        raise RunFolderError(
            f"{gpkg} is no layer of pre-labels that a run has written, or is damaged ({error}). "
            "Move it out of the run folder, or choose another out_dir."
        ) from error
    deleted = {label[0] for label in before} - {label[0] for label in labels}
    return (labels - before).total() + len(deleted)


def _review_of(layer: gpd.GeoDataFrame) -> Counter[tuple[Any, ...]]:
    """Count what a review may change of each label, by id: split in QGIS, two have the same."""
    classes = _column(layer["class_id"], "Int64").astype(object)
    shapes = shapely.to_wkb(_multi(np.asarray(layer.geometry.array)))
    return Counter(zip(layer["id"], classes.map(str), layer["status"], shapes, strict=True))


def crs_name(crs: CRS) -> str:
    """Name a CRS as `EPSG:xxxx`, or by its WKT where EPSG has no such system."""
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else crs.to_wkt()


def _typed(
    frame: gpd.GeoDataFrame,
    columns: Mapping[str, str],
    geometry_type: Literal["Polygon", "MultiPolygon"],
) -> gpd.GeoDataFrame:
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(f"polygons lack the columns {', '.join(missing)}")
    geometry = np.asarray(frame.geometry.array)
    if geometry_type == "MultiPolygon":
        geometry = _multi(geometry)
    wrong = shapely.get_type_id(geometry) != shapely.GeometryType[geometry_type.upper()]
    if wrong.any():
        raise ValueError(f"{wrong.sum()} of {len(frame)} rows are no {geometry_type}")
    typed = {name: _column(frame[name], dtype) for name, dtype in columns.items()}
    return gpd.GeoDataFrame(typed, geometry=geometry, crs=frame.crs)


def _column(values: pd.Series, dtype: str) -> pd.Series:
    values = values.reset_index(drop=True)
    if dtype in _MISSING and values.hasnans:
        values = values.astype(object).where(values.notna(), _MISSING[dtype])
    if dtype == "Int64":  # GDAL reads a column of nothing but null as text
        values = pd.to_numeric(values)
    return values.astype(pd.api.types.pandas_dtype(dtype))


def _multi(geometry: np.ndarray) -> np.ndarray:
    """Promote polygons to multipolygons of one part."""
    geometry = geometry.copy()
    single = np.flatnonzero(shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON)
    geometry[single] = shapely.multipolygons(geometry[single], indices=np.arange(len(single)))
    return geometry


def write_gpkg_layer(
    frame: gpd.GeoDataFrame,
    path: Path,
    name: str,
    geometry_type: Literal["Polygon", "MultiPolygon"],
) -> None:
    """Add a layer to a GeoPackage that QGIS 3.22 reads without a warning."""
    pyogrio.write_dataframe(
        frame,
        path,
        layer=name,
        driver="GPKG",
        geometry_type=geometry_type,
        # GDAL 3.12 would write 1.4, of which the GDAL of QGIS 3.22 warns at every open
        dataset_options={} if path.exists() else {"VERSION": "1.2"},
        layer_options={"GEOMETRY_NAME": GEOMETRY_COLUMN, "FID": "fid", "SPATIAL_INDEX": "YES"},
    )


def _add_styles(path: Path, styles: Mapping[str, Mapping[str, str]]) -> None:
    """Store QML in the GeoPackage, where QGIS finds it when it opens the layer."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, "
            "f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256), "
            "f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT, "
            "useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
            "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"
        )
        # unregistered, GDAL hides the table as soon as there is another table of attributes
        db.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, "
            "last_change, srs_id) VALUES ('layer_styles', 'attributes', 'layer_styles', '', ?, 0)",
            (TIMESTAMP,),
        )
        # QGIS looks for the schema '' (NULL does not match) and the exact geometry column
        db.executemany(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, "
            "f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, owner, "
            "update_time) VALUES ('', '', ?, ?, ?, ?, '', ?, '', '', ?)",
            [
                (layer, GEOMETRY_COLUMN, name, qml, number == 0, TIMESTAMP)
                for layer in (LABELS, TILES)
                for number, (name, qml) in enumerate(styles[layer].items())
            ],
        )


def _add_index(path: Path) -> None:
    """Let QGIS find the least certain label that waits for review, among any number."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE INDEX {LABELS}_to_review ON {LABELS} (status, confidence)")


@contextmanager
def frozen_time() -> Iterator[None]:
    """Let GDAL write `TIMESTAMP` for the present time."""
    option = "OGR_CURRENT_DATE"  # what GDAL writes as a GeoPackage's last_change
    before = pyogrio.get_gdal_config_option(option)
    pyogrio.set_gdal_config_options({option: TIMESTAMP})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({option: before})


def refuse_open(gpkg: Path) -> None:
    """Refuse to replace a GeoPackage beside which lies a write-ahead log.

    SQLite would apply the log of the old file to the new one.
    """
    log = gpkg.with_name(gpkg.name + "-wal")
    if log.exists():
        raise RunFolderError(
            f"{gpkg} is open in another program, probably QGIS: {log.name} beside it holds edits. "
            "Close it there, or take another out_dir"
        )


def _write_geojson(layer: gpd.GeoDataFrame, path: Path) -> None:
    """Write RFC 7946, as GDAL's option of that name would; GDAL takes four times as long."""
    columns = pd.DataFrame(layer[list(COLUMNS)]).assign(crs=crs_name(layer.crs))
    rows = pa.Table.from_pandas(columns, preserve_index=False).to_pylist()  # NaN becomes None
    shapes = shapely.to_geojson(_lonlat(layer.geometry))
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type":"FeatureCollection","name":"prelabels","features":[')
        separator = "\n"
        for properties, shape in zip(rows, shapes, strict=True):
            file.write(
                f'{separator}{{"type":"Feature","properties":{encode(properties)},'
                f'"geometry":{shape}}}'
            )
            separator = ",\n"
        file.write("\n]}\n")


def _lonlat(geometry: gpd.GeoSeries) -> np.ndarray:
    """Turn to EPSG:4326 with 7 decimals (1 cm), exteriors counterclockwise, and valid."""
    exact = np.asarray(geometry.to_crs(4326).array)
    exact = _cut_at_antimeridian(exact)
    rounded = shapely.transform(exact, lambda lonlat: np.round(lonlat, 7))
    broken = ~shapely.is_valid(rounded)  # a thin neck closes
    mended = shapely.set_precision(exact[broken], 1e-7)
    rounded[broken] = _multi(shapely.transform(mended, lambda lonlat: np.round(lonlat, 7)))
    return shapely.orient_polygons(rounded)


def _cut_at_antimeridian(geometry: np.ndarray) -> np.ndarray:
    """Cut the polygons that cross 180° in two, as RFC 7946 wants it; the rest stay."""
    west, _, east, _ = shapely.bounds(geometry).T
    across = np.flatnonzero(east - west > 180)
    if not len(across):
        return geometry
    geometry = geometry.copy()
    # from 0° to 360° each is in one piece
    around = shapely.transform(
        geometry[across], lambda lonlat: np.where(lonlat < [0, -np.inf], lonlat + [360, 0], lonlat)
    )
    before = shapely.intersection(around, shapely.box(0, -90, 180, 90))
    beyond = shapely.intersection(around, shapely.box(180, -90, 360, 90))
    beyond = shapely.transform(beyond, lambda lonlat: lonlat - [360, 0])
    geometry[across] = _multi(shapely.union(before, beyond))
    return geometry


def _read_geojson(path: Path) -> gpd.GeoDataFrame:
    # a scene may be called 2019-05-01: that is no date
    polygons = pyogrio.read_dataframe(path, DATE_AS_STRING="YES")
    if polygons.empty:
        return polygons
    names = polygons["crs"].unique() if "crs" in polygons else []
    if len(names) != 1:
        raise ValueError(f"{path}: one working CRS is needed in the property `crs`, not {names}")
    return polygons.to_crs(names[0])
