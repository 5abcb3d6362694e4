"""Shapes of labels, written into the GeoPackage that QGIS opens, with what goes by the shape."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from pyproj import CRS

from workbench.errors import ReviewError
from workbench.layer.drawn import DRAWN_COLUMNS
from workbench.layer.gpkg_shape import blob_of, shape_of
from workbench.polygons.clean import only_polygons
from workbench.raster.crs import ground_area_m2
from workbench.review.decide import Stored, changing, opened, quoted, refuse_unless

Row = Mapping[str, Any]  # columns of a label as the file has them, its shape as bytes


class ShapeFile:
    """The layer of a GeoPackage whose labels get other shapes; shapes come and go in `crs`.

    What it writes is all of a row that a shape decides about. `Row`s are what was there before and
    after, so that a step can be taken back to the last bit.
    """

    def __init__(self, gpkg: Path, layer: str, crs: CRS) -> None:
        self._gpkg, self._layer, self._crs = gpkg, layer, crs
        with opened(gpkg, "immutable=1") as db:
            (found,) = db.execute(
                "SELECT column_name, srs_id, geometry_type_name FROM gpkg_geometry_columns "
                "WHERE table_name = ?",
                (layer,),
            ).fetchall()
            columns = db.execute(f"PRAGMA table_info({quoted(layer)})").fetchall()
        self._geom, self._srs_id, self._kind = found
        self._columns = {column[1] for column in columns}
        own = pyogrio.read_info(gpkg, layer=layer)["crs"]
        self._own_crs = crs if own is None else CRS(own)

    def read(self, fid: int) -> Row:
        """Read what an edited shape would replace; raises `ReviewError` if the label is gone."""
        names = self._known("status", "class_id", "area_m2", self._geom)
        with opened(self._gpkg, "immutable=1") as db:
            found = db.execute(
                f"SELECT {', '.join(map(quoted, names))} FROM {quoted(self._layer)} WHERE fid = ?",
                (fid,),
            ).fetchone()
        refuse_unless(found is not None and found[-1] is not None, self._gpkg)
        return dict(zip(names, found, strict=True))

    def shape(self, row: Row) -> shapely.MultiPolygon:
        """The shape of a row."""
        stored = only_polygons(np.array([shape_of(row[self._geom])]))
        return self._in(stored[0], self._own_crs, self._crs)

    def edited(self, before: Row, shape: shapely.MultiPolygon) -> Row:
        """The row of a label that gets another shape."""
        after = {"status": "edited", "area_m2": float(ground_area_m2([shape], self._crs)[0])}
        known = {name: value for name, value in after.items() if name in before}
        return {**before, **known, self._geom: self._blob(shape)}

    def drawn(self, label: gpd.GeoDataFrame) -> Row:
        """The row of a label that somebody has drawn, as `drawn_label` makes it."""
        values = label[list(DRAWN_COLUMNS)].iloc[0].to_dict()
        # null where QGIS finds no tile, and where no class is known
        row = {
            name: None if pd.isna(value) or value == "" else value
            for name, value in values.items() if name in self._columns
        }  # fmt: skip
        number = row.get("class_id")
        if number is not None:
            row["class_id"] = int(number)
        return {**row, self._geom: self._blob(label.geometry.iloc[0])}

    def free_fid(self) -> int:
        """The number of the next label."""
        with opened(self._gpkg, "immutable=1") as db:
            (last,) = db.execute(f"SELECT max(fid) FROM {quoted(self._layer)}").fetchone()
        return (last or 0) + 1

    def write(self, fid: int, before: Row | None, after: Row | None) -> None:
        """Turn a label from one row into another; None: it is not there.

        Raises `ReviewError`, and changes nothing, if QGIS has the file open for editing, if the
        file cannot be written, or if the label is not as in `before` any more.
        """
        table = quoted(self._layer)
        with changing(self._gpkg, self._layer) as db:
            if before is None:
                assert after is not None
                names = ", ".join(map(quoted, ("fid", *after)))
                places = ", ".join("?" * (1 + len(after)))
                db.execute(
                    f"INSERT INTO {table} ({names}) VALUES ({places})", (fid, *after.values())
                )
            else:
                as_before = " AND ".join(f"{quoted(name)} IS ?" for name in ("fid", *before))
                now = (fid, *before.values())
                if after is None:
                    done = db.execute(f"DELETE FROM {table} WHERE {as_before}", now)
                else:
                    news = ", ".join(f"{quoted(name)} = ?" for name in after)
                    values = (*after.values(), *now)
                    done = db.execute(f"UPDATE {table} SET {news} WHERE {as_before}", values)
                refuse_unless(done.rowcount == 1, self._gpkg)
            if after is not None:
                self._reach(db, shapely.bounds(shape_of(after[self._geom])).tolist())

    def _reach(self, db: sqlite3.Connection, bounds: list[float]) -> None:
        """Let the extent that the file tells of reach to these bounds, as GDAL does."""
        extent = zip(("min_x", "min_y", "max_x", "max_y"), bounds, strict=True)
        for name, value in extent:
            db.execute(
                f"UPDATE gpkg_contents SET {name} = {name[:3]}(coalesce({name}, ?), ?) "
                "WHERE table_name = ?",
                (value, value, self._layer),
            )

    @staticmethod
    def stored(row: Row) -> Stored:
        """Status and class of a row."""
        return row.get("status"), row.get("class_id")

    def _known(self, *names: str) -> list[str]:
        """Those of some columns that the file has: an export may lack some."""
        return [name for name in names if name in self._columns]

    def _blob(self, shape: shapely.MultiPolygon) -> bytes:
        own = self._in(shape, self._crs, self._own_crs)
        is_single = self._kind == "POLYGON" and len(own.geoms) == 1
        return blob_of(own.geoms[0] if is_single else own, self._srs_id)

    def _in(self, shape: shapely.MultiPolygon, crs: CRS, other: CRS) -> shapely.MultiPolygon:
        # unchanged to the last bit in one CRS
        return shape if crs == other else gpd.GeoSeries([shape], crs=crs).to_crs(other).iloc[0]


def sound(shape: shapely.Geometry) -> shapely.MultiPolygon:
    """Return what somebody has drawn as a MultiPolygon; raises `ReviewError` for a bad outline."""
    if shapely.area(shapely.convex_hull(shape)) == 0:
        raise ReviewError("The outline has no area: give it three corners that lie apart.")
    if not shapely.is_valid(shape):
        raise ReviewError(
            f"The outline crosses itself, or a hole in it ({shapely.is_valid_reason(shape)}): move "
            "a corner so that no line crosses another, then press Enter."
        )
    whole: shapely.MultiPolygon = only_polygons(np.array([shape]))[0]
    return whole
