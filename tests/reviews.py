"""Reviewed GeoPackages: what a person does to the labels of a run in QGIS, done by hand."""

import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyogrio
import shapely


def save_reviewed(
    labels: gpd.GeoDataFrame, path: Path, geometry_type: str = "MultiPolygon"
) -> Path:
    """Write labels as the layer of a reviewed GeoPackage."""
    pyogrio.write_dataframe(
        labels,
        path,
        layer="prelabels",
        driver="GPKG",
        geometry_type=geometry_type,
        promote_to_multi=geometry_type == "MultiPolygon",
        dataset_options={"VERSION": "1.2"},
        layer_options={"GEOMETRY_NAME": "geom", "FID": "fid"},
    )
    return path


def drawn(shape: shapely.Geometry, like: gpd.GeoDataFrame, **columns) -> gpd.GeoDataFrame:
    """One label that somebody has drawn, with what QGIS fills in."""
    row = {"id": "drawn/1", "class_id": 1, "status": "edited", **columns}
    row = {name: row.get(name) for name in like.columns if name != "geometry"}
    return gpd.GeoDataFrame([row], geometry=[shape], crs=like.crs)


def with_rows(*frames: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Stack labels; columns that are all null stay untyped, as QGIS leaves them NULL."""
    rows = [row for frame in frames for row in frame.astype(object).to_dict("records")]
    return gpd.GeoDataFrame(pd.DataFrame(rows), crs=frames[0].crs).infer_objects()


def leave_unclosed(gpkg: Path, fid: int) -> None:
    """Let the last ring of a label end before it is closed, as some programs write it."""
    with closing(sqlite3.connect(gpkg)) as db, db:
        # they call functions that only GDAL has
        triggers = db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:
            db.execute(f'DROP TRIGGER "{name}"')
        (blob,) = db.execute("SELECT geom FROM prelabels WHERE fid = ?", (fid,)).fetchone()
        start = 8 + (32 if blob[3] & 2 else 0)  # the header, and its envelope
        wkb = bytearray(blob[start:])
        (n,) = struct.unpack_from("<I", wkb, 18)
        assert len(wkb) == 22 + 16 * n, "one part, one ring"
        struct.pack_into("<I", wkb, 18, n - 1)
        changed = blob[:start] + bytes(wkb[:-16])
        db.execute("UPDATE prelabels SET geom = ? WHERE fid = ?", (changed, fid))
