"""The layer in formats for maps on the web, made from its GeoParquet file without holding it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
from pyproj import CRS

from workbench._support.files import atomic_path
from workbench.layer.schema import BATCH, LABELS
from workbench.raster.crs import crs_name

# the names of the formats, GDAL's drivers, and the files in a run folder
FORMATS = {"flatgeobuf": "FlatGeobuf", "pmtiles": "PMTiles"}
FILES = {"flatgeobuf": "prelabels.fgb", "pmtiles": "prelabels.pmtiles"}
_EQUATOR_M = 40075016.686
_UNITS = 4096  # to a side of a vector tile
_ZOOMS = 8  # of a PMTiles file, the finest first


def write_format(parquet: Path, name: str, crs: CRS, pixel_m: float) -> None:
    """Write a layer beside its GeoParquet file in a format of `FORMATS`.

    Columns have the names and types of the other files. `pixel_m` is the pixel size of the imagery
    in ground metres: the finest zoom of PMTiles shows half of it. There are no tiles of nothing: an
    empty layer gives no PMTiles.
    """
    options: dict[str, Any] = {}
    if name == "pmtiles":
        if pq.read_metadata(parquet).num_rows == 0:
            return
        finest = math.ceil(math.log2(_EQUATOR_M / _UNITS / (pixel_m / 2)))
        finest = min(22, max(0, finest))
        options = {"MINZOOM": max(0, finest - _ZOOMS), "MAXZOOM": finest, "NAME": LABELS}
    with (
        atomic_path(parquet.with_name(FILES[name])) as temporary,
        pq.ParquetFile(parquet) as file,
    ):
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches(BATCH)),
            temporary,
            layer=LABELS,
            driver=FORMATS[name],
            geometry_name="geometry",
            geometry_type="MultiPolygon",
            crs=crs_name(crs),
            **options,
        )
