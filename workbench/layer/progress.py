"""How many labels of each tile wait for review: the GeoPackage itself keeps count.

Triggers of SQLite count whenever a change is saved, whatever program saves it. So QGIS shows which
tiles are fully reviewed without a plugin, and without reading every label.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.layer.cores import home_of
from workbench.layer.schema import LABELS, TILES, WAITING
from workbench.polygons.areas import middle_of

_HOMES = "label_tiles"  # the tile of a label, if it is not the one that found it


class LabelHomes:
    """Collects where labels lie, batch by batch, as they are written."""

    def __init__(self) -> None:
        self._points: list[NDArray[np.object_]] = []
        self._columns: list[pd.DataFrame] = []

    def add(self, batch: gpd.GeoDataFrame) -> None:
        """Take the labels of a batch."""
        self._points.append(middle_of(batch.geometry.to_numpy()))
        self._columns.append(pd.DataFrame(batch[["source_tile", "status"]]))

    def progress(self, tiles: gpd.GeoDataFrame) -> ReviewProgress:
        """Count the labels that wait, by tile."""
        homes = home_of(tiles, np.concatenate(self._points))
        labels = pd.concat(self._columns, ignore_index=True)
        waiting = labels["status"].eq("unreviewed").groupby(homes).sum()
        counts = waiting.reindex(range(len(tiles))).astype("Int64").array
        names = tiles["tile"].to_numpy(object)
        rows = np.flatnonzero(homes >= 0)
        rows = rows[names[homes[rows]] != labels["source_tile"].to_numpy(object)[rows]]
        elsewhere = dict(zip((rows + 1).tolist(), names[homes[rows]].tolist(), strict=True))
        return ReviewProgress(tiles.assign(**{WAITING: counts}), elsewhere)


@dataclass(frozen=True)
class ReviewProgress:
    """How far the review of each tile is.

    `tiles` has one column more, the number of unreviewed labels; null for tiles without labels.
    `elsewhere` names the tile of each label whose middle does not lie in its `source_tile`, by its
    number in the GeoPackage, which counts from 1.
    """

    tiles: gpd.GeoDataFrame
    elsewhere: Mapping[int, str]


def keep_count(gpkg: Path, progress: ReviewProgress) -> None:
    """Make a GeoPackage that has both layers keep count from now on."""
    with closing(sqlite3.connect(gpkg)) as db, db:
        # not registered: no program shows it as a layer
        db.execute(f"CREATE TABLE {_HOMES} (fid INTEGER PRIMARY KEY, tile TEXT NOT NULL)")
        db.executemany(f"INSERT INTO {_HOMES} VALUES (?, ?)", progress.elsewhere.items())
        for trigger in _TRIGGERS:
            db.execute(trigger)


def _counted(change: str, label: str) -> str:
    """The SQL that changes the number of a label's tile; `label` is `NEW` or `OLD`.

    The `source_tile` of a drawn label is the tile of its middle.
    """
    return (
        f"UPDATE {TILES} SET {WAITING} = coalesce({WAITING}, 0) + ({change}) WHERE tile = "
        f"coalesce((SELECT tile FROM {_HOMES} WHERE fid = {label}.fid), {label}.source_tile);"
    )


_IS, _WAS = "(NEW.status IS 'unreviewed')", "(OLD.status IS 'unreviewed')"
_TRIGGERS = (
    f"CREATE TRIGGER {LABELS}_count_update AFTER UPDATE OF status ON {LABELS} "
    f"WHEN OLD.status IS NOT NEW.status BEGIN {_counted(f'{_IS} - {_WAS}', 'NEW')} END",
    f"CREATE TRIGGER {LABELS}_count_insert AFTER INSERT ON {LABELS} "
    f"BEGIN {_counted(_IS, 'NEW')} END",
    f"CREATE TRIGGER {LABELS}_count_delete AFTER DELETE ON {LABELS} "
    f"BEGIN {_counted(f'- {_WAS}', 'OLD')} DELETE FROM {_HOMES} WHERE fid = OLD.fid; END",
)
