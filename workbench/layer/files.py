"""The files of a layer: written in one pass, and read."""

from __future__ import annotations

import inspect
import io
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from workbench._support.attempts import Attempts
from workbench._support.files import atomic_path, naming
from workbench.errors import RunFolderError
from workbench.layer.antimeridian import cut_at_antimeridian
from workbench.layer.kept import Kept
from workbench.layer.progress import LabelHomes, keep_count
from workbench.layer.schema import (
    BATCH,
    COLUMNS,
    GEOMETRY_COLUMN,
    LABELS,
    TILES,
    as_layer,
    as_multi,
    as_tiles,
    further_columns,
    typed,
)
from workbench.raster.crs import crs_name

# a GeoPackage stamps the time; with a fixed one, equal runs give equal files
TIMESTAMP = "1980-01-01T00:00:00.000Z"

# what pyogrio raises if a file is missing or damaged, or lacks the layer
GPKG_ERRORS = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError)

_GPKG: Mapping[str, Any] = {
    "driver": "GPKG",
    # GDAL 3.12 would write 1.4, and QGIS 3.22 warns about that at every open
    "dataset_options": {"VERSION": "1.2"},
    "layer_options": {"GEOMETRY_NAME": GEOMETRY_COLUMN, "FID": "fid", "SPATIAL_INDEX": "YES"},
}


@dataclass(frozen=True)
class LayerFiles:
    """Where `write_layer` put the layer, and the layer of tiles that it wrote."""

    tiles: gpd.GeoDataFrame
    gpkg: Path
    geojson: Path
    parquet: Path
    qml: Path


def write_layer(
    layer: Iterable[gpd.GeoDataFrame],
    tiles: Callable[[Mapping[str, int]], gpd.GeoDataFrame],
    folder: Path,
    *,
    styles: Callable[[], Mapping[str, Mapping[str, str]]],
    attempts: Attempts | None = None,
    kept: Kept | None = None,
) -> LayerFiles:
    """Write `prelabels.gpkg`, `.geojson`, `.parquet` and `.qml`, each whole or not at all.

    `layer` comes in batches as `as_layer` makes them, at least one. Each is taken once, goes to all
    files, and is forgotten. `tiles` makes the layer of tiles from the number of polygons by
    `source_tile`; it is called before any file is replaced. All share one CRS. `styles` returns
    QML by its name for the layers `prelabels` and `tiles`, the default first; it is called after
    the last batch, because colours follow the whole layer. The GeoJSON is RFC 7946
    (EPSG:4326, 7 decimals), with the CRS of the layer in the property `crs`; if it cannot be made,
    `attempts` has the reason, and the other files are written. If `layer` has the labels of `kept`
    among it, the Parquet has them as they were before their review. Raises `RunFolderError` if QGIS
    has the old GeoPackage open.
    """
    files = {
        suffix: folder / f"prelabels.{suffix}" for suffix in ("gpkg", "geojson", "parquet", "qml")
    }
    refuse_open(files["gpkg"])
    batches = iter(layer)
    first = next(batches)
    # a review is compared with the Parquet: it is put in place last, so that it never belongs to an
    # older GeoPackage
    with atomic_path(files["parquet"]) as parquet:
        with (
            _geojson(files["geojson"], attempts or Attempts()) as add_to_geojson,
            atomic_path(files["gpkg"]) as gpkg,
            frozen_time(),
        ):
            counts: Counter[str] = Counter()
            homes = LabelHomes()
            with closing(_GeoParquet(parquet, files["parquet"], first)) as table:

                def written() -> Iterator[pa.RecordBatch]:
                    if kept is not None:
                        table.add(kept.before)
                    for batch in chain([first], batches):
                        counts.update(batch["source_tile"])
                        add_to_geojson(batch)
                        homes.add(batch)
                        rows = table.add(batch if kept is None else kept.new_in(batch))
                        if kept is not None:
                            rows = _as_arrow(batch, schema)
                        yield from rows.to_batches(BATCH)

                schema = table.schema if kept is None else kept.schema(table.schema)
                _write_labels(written(), schema, first.crs, gpkg)
            ledger = as_tiles(tiles(counts))
            if first.crs is None or first.crs != ledger.crs:
                raise ValueError(f"layer and tiles need one CRS, not {first.crs} and {ledger.crs}")
            progress = homes.progress(ledger)
            write_gpkg_layer(progress.tiles, gpkg, TILES, "Polygon")
            looks = styles()
            _add_styles(gpkg, looks)
            _add_index(gpkg)
            keep_count(gpkg, progress)
        with atomic_path(files["qml"]) as qml:
            qml.write_text(next(iter(looks[LABELS].values())), encoding="utf-8")
    return LayerFiles(ledger, **files)


class _GeoParquet:
    """A GeoParquet file that is written batch by batch, with the columns of its first batch.

    geopandas writes frames that are whole, and GDAL in pyogrio's wheels has no Parquet driver. So
    pyarrow writes, with the metadata that geopandas gives an empty frame. Errors tell of `name`,
    which the file has in the end.
    """

    def __init__(self, path: Path, name: Path, first: gpd.GeoDataFrame) -> None:
        like = io.BytesIO()
        first[:0].to_parquet(like, index=False)
        found = pq.read_schema(like)
        self._geo = json.loads(found.metadata[b"geo"])
        self.schema = found.with_metadata({b"pandas": found.metadata[b"pandas"]})
        self._bounds: list[NDArray[np.float64]] = []
        self._name = name
        with naming(name):
            self._writer = pq.ParquetWriter(path, self.schema, compression="snappy")

    def add(self, batch: gpd.GeoDataFrame) -> pa.Table:
        """Write a batch, and return it as a table."""
        table = _as_arrow(batch, self.schema)
        with naming(self._name):
            self._writer.write_table(table)
        self._bounds += [batch.total_bounds] if len(batch) else []
        return table

    def close(self) -> None:
        """Finish the file with what is known only now: the bounds of the layer."""
        if self._bounds:
            found = np.array(self._bounds)
            around = [*found[:, :2].min(axis=0).tolist(), *found[:, 2:].max(axis=0).tolist()]
            self._geo["columns"]["geometry"] |= {
                "geometry_types": ["MultiPolygon"], "bbox": around,
            }  # fmt: skip
        with naming(self._name):
            self._writer.add_key_value_metadata({"geo": json.dumps(self._geo)})
            self._writer.close()


def _as_arrow(batch: gpd.GeoDataFrame, schema: pa.Schema) -> pa.Table:
    """Return polygons as an Arrow table; columns that they lack are null."""
    arrow = pa.table(batch.to_arrow(index=False, geometry_encoding="WKB"))
    columns = []
    for field in schema:
        if field.name not in arrow.column_names:
            columns.append(pa.nulls(len(batch), field.type))
        elif field.name != "geometry" and arrow[field.name].type != field.type:
            # such as a column of nothing but null
            columns.append(arrow[field.name].cast(field.type))
        else:
            columns.append(arrow[field.name])
    return pa.Table.from_arrays(columns, schema=schema)


def _write_labels(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, crs: CRS, gpkg: Path
) -> None:
    """Begin a GeoPackage with polygons; errors raised by `batches` come out unchanged."""
    raised: list[BaseException] = []
    at_end = False

    def handed_on() -> Generator[pa.RecordBatch, None, None]:
        nonlocal at_end
        try:
            yield from batches
            at_end = True
        except BaseException as error:
            raised.append(error)  # Arrow's C interface would keep only its text
            raise

    stream = handed_on()
    try:
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(schema, stream),
            gpkg,
            layer=LABELS,
            geometry_name="geometry",
            geometry_type="MultiPolygon",
            crs=None if crs is None else crs_name(crs),
            **_GPKG,
        )
    except Exception:
        if raised:
            raise raised[0] from None
        if not at_end and inspect.getgeneratorstate(stream) == inspect.GEN_CLOSED:
            raise KeyboardInterrupt from None  # it came as the generator was entered
        raise


def read_batches(
    parquet: Path, columns: Collection[str] | None = None
) -> Iterator[gpd.GeoDataFrame]:
    """Read the pre-labels of a `.parquet` in batches, the first without rows.

    `columns` are those to read beside the geometry; None reads them all.
    """
    wanted = {name: COLUMNS[name] for name in columns or ()}

    def as_frame(batch: pa.Table | pa.RecordBatch) -> gpd.GeoDataFrame:
        frame = batch.to_pandas()
        shapes = shapely.from_wkb(frame.pop("geometry").to_numpy())
        polygons = gpd.GeoDataFrame(frame, geometry=shapes, crs=crs)
        if columns is not None:
            return typed(polygons, wanted, "MultiPolygon")
        return as_layer(polygons, further_columns(polygons))

    with pq.ParquetFile(parquet) as file:
        geo = json.loads(file.metadata.metadata[b"geo"])
        crs = CRS.from_json_dict(geo["columns"]["geometry"]["crs"])
        yield as_frame(file.schema_arrow.empty_table())
        read = None if columns is None else [*wanted, "geometry"]
        yield from map(as_frame, file.iter_batches(BATCH, columns=read))


def read_layer(path: Path) -> gpd.GeoDataFrame:
    """Read the pre-labels from a `.gpkg`, `.parquet` or `.geojson`, with columns as written.

    A GeoJSON is turned back to the CRS of its property `crs`; an empty one has none and stays in
    EPSG:4326. Polygons drawn by hand have no scores (NaN), and 0 or `''` where QGIS left NULL.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".gpkg":
            polygons = pyogrio.read_dataframe(path, layer=LABELS)
        case ".parquet":
            polygons = gpd.read_parquet(path)
            return as_layer(polygons, further_columns(polygons))
        case ".geojson":
            polygons = _read_geojson(path)
        case suffix:
            raise ValueError(f"{path}: a layer is a .gpkg, .parquet or .geojson, not {suffix!r}")
    if polygons.empty:  # an empty GeoJSON has no columns at all
        polygons = polygons.reindex(columns=[*COLUMNS, polygons.geometry.name])
    return as_layer(polygons)


def write_gpkg_layer(
    frame: gpd.GeoDataFrame,
    path: Path,
    name: str,
    geometry_type: Literal["Polygon", "MultiPolygon"],
) -> None:
    """Add a layer to a GeoPackage that QGIS 3.22 reads without a warning."""
    # an existing GeoPackage already has its version
    options = {**_GPKG, "dataset_options": {} if path.exists() else _GPKG["dataset_options"]}
    pyogrio.write_dataframe(frame, path, layer=name, geometry_type=geometry_type, **options)


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
        # GDAL hides an unregistered table as soon as there is another table of attributes
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
    """Let QGIS find the least certain unreviewed label quickly, among any number."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            f"CREATE INDEX {LABELS}_to_review ON {LABELS} "
            "(status, coalesce(class_score, confidence))"
        )


@contextmanager
def frozen_time() -> Iterator[None]:
    """Let GDAL write `TIMESTAMP` instead of the current time."""
    option = "OGR_CURRENT_DATE"  # GDAL writes it as a GeoPackage's last_change
    before = pyogrio.get_gdal_config_option(option)
    pyogrio.set_gdal_config_options({option: TIMESTAMP})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({option: before})


def describe_layer(gpkg: Path, text: str) -> None:
    """Keep a text in the metadata of the layer, where QGIS and GDAL show it as its description."""
    with naming(gpkg), closing(sqlite3.connect(gpkg)) as file, file:
        file.execute(
            "UPDATE gpkg_contents SET description = ? WHERE table_name = ?", (text, LABELS)
        )


def refuse_open(gpkg: Path) -> None:
    """Refuse to replace a GeoPackage that has a write-ahead log beside it.

    SQLite would apply the log of the old file to the new one.
    """
    log = gpkg.with_name(gpkg.name + "-wal")
    if log.exists():
        raise RunFolderError(
            f"{gpkg} is open in another program, probably QGIS: {log.name} beside it holds edits. "
            "Close it there, or choose another out_dir."
        )


class _NotMadeError(Exception):
    """A file could not be made; the reason is told elsewhere."""


@contextmanager
def _geojson(path: Path, attempts: Attempts) -> Iterator[Callable[[gpd.GeoDataFrame], object]]:
    """Yield what adds a batch to a GeoJSON file, which appears if all of them could be added."""
    try:
        with atomic_path(path) as temporary, closing(_GeoJSON(temporary, path)) as file:
            yield attempts.each(path.name, file.add)
            if path.name in attempts.missed:
                raise _NotMadeError
    except _NotMadeError:
        path.unlink(missing_ok=True)  # that of an earlier layer


class _GeoJSON:
    """A GeoJSON file as RFC 7946 wants it, complete when it is closed.

    GDAL's option of that name makes the same, and takes four times as long. Errors tell of `name`,
    which the file has in the end.
    """

    def __init__(self, path: Path, name: Path) -> None:
        self._name = name
        self._encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
        with naming(name):
            self._file = path.open("w", encoding="utf-8", newline="\n")
            self._file.write('{"type":"FeatureCollection","name":"prelabels","features":[')
        self._separator = "\n"

    def add(self, batch: gpd.GeoDataFrame) -> None:
        """Write the polygons of a batch."""
        with naming(self._name):
            for start in range(0, len(batch), BATCH):
                self._add(batch[start : start + BATCH])

    def _add(self, batch: gpd.GeoDataFrame) -> None:
        columns = pd.DataFrame(batch.drop(columns="geometry")).assign(crs=crs_name(batch.crs))
        rows = pa.Table.from_pandas(columns, preserve_index=False).to_pylist()  # NaN: None
        shapes = shapely.to_geojson(_lonlat(batch.geometry))
        for properties, shape in zip(rows, shapes, strict=True):
            self._file.write(
                f'{self._separator}{{"type":"Feature","properties":{self._encode(properties)},'
                f'"geometry":{shape}}}'
            )
            self._separator = ",\n"

    def close(self) -> None:
        """Write the end."""
        with naming(self._name), self._file:
            self._file.write("\n]}\n")


def _lonlat(geometry: gpd.GeoSeries) -> np.ndarray:
    """Transform to EPSG:4326 with 7 decimals (1 cm), exteriors counterclockwise, and valid."""
    exact = np.asarray(geometry.to_crs(4326).array)
    exact = cut_at_antimeridian(exact, geometry)
    rounded = shapely.transform(exact, lambda lonlat: np.round(lonlat, 7))
    broken = ~shapely.is_valid(rounded)  # rounding closed a thin neck
    # what somebody drew may have been broken before
    mended = shapely.set_precision(shapely.make_valid(exact[broken], method="structure"), 1e-7)
    rounded[broken] = as_multi(shapely.transform(mended, lambda lonlat: np.round(lonlat, 7)))
    return shapely.orient_polygons(rounded)


def _read_geojson(path: Path) -> gpd.GeoDataFrame:
    # a scene may be called 2019-05-01, which is a name, not a date
    polygons = pyogrio.read_dataframe(path, DATE_AS_STRING="YES")
    if polygons.empty:
        return polygons
    names = polygons["crs"].unique() if "crs" in polygons else []
    if len(names) != 1:
        raise ValueError(f"{path}: the property `crs` must name one working CRS, not {names}")
    return polygons.to_crs(names[0])
