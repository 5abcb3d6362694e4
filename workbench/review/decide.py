"""Decisions about labels, written into the GeoPackage that QGIS opens: only these rows change."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from workbench.errors import ReviewError
from workbench.layer.gpkg_shape import add_shape_functions
from workbench.layer.qgis.marks import marks_beside, opened_text

Stored = tuple[str | None, int | None]  # status and class of a label, as the file has them
_BUSY_SECONDS = 0.5  # to wait for a program that is just writing


def stored_labels(gpkg: Path, layer: str) -> dict[int, Stored]:
    """Read status and class of each label by its fid; the file is not touched."""
    with opened(gpkg, "immutable=1") as db:
        rows = db.execute(f"SELECT fid, status, class_id FROM {quoted(layer)}")
        return {fid: (status, class_id) for fid, status, class_id in rows}


def write_decisions(
    gpkg: Path, layer: str, before: Mapping[int, Stored], after: Mapping[int, Stored]
) -> None:
    """Give labels another status and class, all of them or none.

    Raises `ReviewError`, and changes nothing, if QGIS has the file open for editing, if the file
    cannot be written, or if a label is not as in `before` any more.
    """
    changes = [(*after[fid], fid, *before[fid]) for fid in after]
    with changing(gpkg, layer) as db:
        done = db.executemany(
            f"UPDATE {quoted(layer)} SET status = ?, class_id = ? "
            "WHERE fid = ? AND status IS ? AND class_id IS ?",
            changes,
        )
        refuse_unless(done.rowcount == len(changes), gpkg)


@contextmanager
def changing(gpkg: Path, layer: str) -> Iterator[sqlite3.Connection]:
    """Yield a connection for one change of a layer; if an error is raised, nothing is changed.

    Raises `ReviewError` if QGIS has the file open for editing, or if it cannot be written.
    """
    refuse_in_use(gpkg)
    with opened(gpkg) as db:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute(
            "UPDATE gpkg_contents SET last_change = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') "
            "WHERE table_name = ?",
            (layer,),
        )
        db.commit()


def refuse_unless(is_as_read: bool, gpkg: Path) -> None:
    """Refuse to change labels that are not as they were read."""
    if not is_as_read:
        raise ReviewError(
            f"{gpkg} was changed by another program since it was read here. Run this cell "
            "again to go on with what it says now."
        )


def refuse_in_use(gpkg: Path) -> None:
    """Refuse a GeoPackage that is being edited elsewhere."""
    for _, mark in marks_beside(gpkg, time.time()):
        if mark is not None:
            raise ReviewError(
                f"{opened_text(gpkg, mark)}. Close it in QGIS, then answer here again."
            )
    if gpkg.with_name(f"{gpkg.name}-wal").exists():
        raise ReviewError(
            f"{gpkg} is open in another program, probably QGIS. Save and close it there, then "
            "answer here again."
        )


@contextmanager
def opened(gpkg: Path, how: str = "mode=rw") -> Iterator[sqlite3.Connection]:
    """Open a GeoPackage for one change: a lasting connection would be in QGIS's way."""
    try:
        address = f"{gpkg.absolute().as_uri()}?{how}"
        with closing(sqlite3.connect(address, timeout=_BUSY_SECONDS, uri=True)) as db:
            add_shape_functions(db)
            yield db
    except sqlite3.Error as error:
        raise ReviewError(
            f"{gpkg} cannot be written ({error}). Close other programs that use it, and check "
            "that the file is not read-only. Then answer here again."
        ) from error


def quoted(name: str) -> str:
    """Return the name of a table or a column for SQL."""
    return '"' + name.replace('"', '""') + '"'
