"""Shapes as a GeoPackage stores them: WKB behind a header with their bounds."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable

import shapely

_MAGIC = b"GP"
_ENVELOPE_BYTES = (0, 32, 48, 48, 64)  # by the code of the envelope in the flags
_LITTLE, _XY = 0b1, 0b10  # flags: byte order, and an envelope of x and y


def blob_of(shape: shapely.Geometry, srs_id: int) -> bytes:
    """Return a shape that is not empty as GDAL and QGIS write it; `srs_id` names its CRS."""
    x0, y0, x1, y1 = shapely.bounds(shape).tolist()
    header = struct.pack("<2sBBi4d", _MAGIC, 0, _LITTLE | _XY, srs_id, x0, x1, y0, y1)
    return header + bytes(shapely.to_wkb(shape, byte_order=1))


def shape_of(blob: bytes) -> shapely.Geometry:
    """Read a stored shape; raises `ValueError` if it is none."""
    if blob[:2] != _MAGIC:
        raise ValueError("no shape of a GeoPackage")
    return shapely.from_wkb(blob[8 + _ENVELOPE_BYTES[(blob[3] >> 1) & 0b111] :])


def add_shape_functions(db: sqlite3.Connection) -> None:
    """Give a connection the functions that the triggers of a spatial index call."""

    def bound(place: int) -> Callable[[bytes | None], float | None]:
        return lambda blob: None if blob is None else float(shapely.bounds(shape_of(blob))[place])

    def is_empty(blob: bytes | None) -> int | None:
        return None if blob is None else int(shapely.is_empty(shape_of(blob)))

    db.create_function("ST_IsEmpty", 1, is_empty, deterministic=True)
    for name, place in {"ST_MinX": 0, "ST_MinY": 1, "ST_MaxX": 2, "ST_MaxY": 3}.items():
        db.create_function(name, 1, bound(place), deterministic=True)
