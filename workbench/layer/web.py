"""The layer in formats for maps on the web, made from its GeoParquet file without holding it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
from pyproj import CRS

from workbench._support.files import atomic_path
from workbench.layer.schema import BATCH, COLUMNS, LABELS
from workbench.raster.crs import crs_name

# the names of the formats, GDAL's drivers, and the files in a run folder
FORMATS = {"flatgeobuf": "FlatGeobuf", "pmtiles": "PMTiles"}
FILES = {"flatgeobuf": "prelabels.fgb", "pmtiles": "prelabels.pmtiles"}
_EQUATOR_M = 40075016.686
_UNITS = 4096  # to a side of a vector tile
_ZOOMS = 8  # of a PMTiles file, the finest first


def write_format(layer: Path, name: str, crs: CRS, pixel_m: float) -> None:
    """Write a layer beside its file, GeoParquet or a GeoPackage, in a format of `FORMATS`.

    Columns have the names and types of the other files. `pixel_m` is the pixel size of the imagery
    in ground metres: the finest zoom of PMTiles shows half of it. There are no tiles of nothing: an
    empty layer gives no PMTiles.
    """
    options: dict[str, Any] = {}
    if name == "pmtiles":
        if _length(layer) == 0:
            return
        finest = math.ceil(math.log2(_EQUATOR_M / _UNITS / (pixel_m / 2)))
        finest = min(22, max(0, finest))
        options = {"MINZOOM": max(0, finest - _ZOOMS), "MAXZOOM": finest, "NAME": LABELS}
    with (
        atomic_path(layer.with_name(FILES[name])) as temporary,
        _reading(layer) as (batches, geometry),
    ):
        pyogrio.write_arrow(
            batches,
            temporary,
            layer=LABELS,
            driver=FORMATS[name],
            geometry_name=geometry,
            geometry_type="MultiPolygon",
            crs=crs_name(crs),
            **options,
        )


def _length(layer: Path) -> int:
    if layer.suffix == ".parquet":
        return int(pq.read_metadata(layer).num_rows)
    return int(pyogrio.read_info(layer, layer=LABELS, force_feature_count=True)["features"])


@contextmanager
def _reading(layer: Path) -> Iterator[tuple[pa.RecordBatchReader, str]]:
    """Yield the batches of a layer, and the name of their column of shapes."""
    if layer.suffix == ".parquet":
        with pq.ParquetFile(layer) as file:
            rows = file.iter_batches(BATCH)
            yield pa.RecordBatchReader.from_batches(file.schema_arrow, rows), "geometry"
        return
    # columns that somebody has added in QGIS are for the review alone
    with pyogrio.open_arrow(
        layer, layer=LABELS, columns=list(COLUMNS), batch_size=BATCH, use_pyarrow=True
    ) as (about, rows):
        yield rows, about["geometry_name"] or "wkb_geometry"
