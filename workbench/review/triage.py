"""The triage of a finished layer: which label comes next, and what was said of it.

Every answer is written into the reviewed GeoPackage at once, as `decide` does. So nothing is lost,
and QGIS shows it as soon as the file is opened there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.errors import ReviewError
from workbench.layer.cores import home_in
from workbench.layer.drawn import drawn_label
from workbench.layer.qgis.order import pace_of
from workbench.raster.crs import ground_area_m2
from workbench.review.decide import Stored, stored_labels, write_decisions
from workbench.review.examples import default_class_of
from workbench.review.job import ReviewJob
from workbench.review.read import STATUSES, layer_of, read_review
from workbench.review.redraw import Row, ShapeFile, sound
from workbench.review.tile_by_tile import TileByTile
from workbench.runs.result import Run, read_run

_CODE = {str(status): place for place, status in enumerate(STATUSES)}


@dataclass(frozen=True, eq=False)
class Decision:
    """One step that can be taken back: rows, and what their labels were before and after it."""

    rows: tuple[int, ...]
    before: tuple[Stored, ...]
    after: tuple[Stored, ...]

    @property
    def row(self) -> int:
        """The label to show again, -1 if these are several."""
        return self.rows[0] if len(self.rows) == 1 else -1

    @property
    def turned(self) -> Decision:
        """The step that takes this one back."""
        return Decision(self.rows, self.after, self.before)


@dataclass(frozen=True, eq=False)
class Redrawn:
    """One step about the shape of a label: what the file has of it before and after.

    None: there is no such label. `label` is one that was drawn, as it is in memory.
    """

    row: int
    fid: int
    before: Row | None
    after: Row | None
    label: gpd.GeoDataFrame | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """The only one."""
        return (self.row,)

    @property
    def turned(self) -> Redrawn:
        """The step that takes this one back."""
        return replace(self, before=self.after, after=self.before)


class Triage:
    """The labels of a reviewed layer, what was decided about them, and what comes next.

    Rows count the labels as `read_review` returns them. Raises `ReviewError` for anything but a
    GeoPackage, and as `read_review` does.
    """

    def __init__(self, job: ReviewJob, run: Run | None = None) -> None:
        self.job = job
        self.gpkg = job.gpkg
        self.run = read_run(job.run_dir) if run is None else run
        if self.gpkg.suffix.lower() != ".gpkg":
            raise ReviewError(
                f"{self.gpkg} is no GeoPackage: labels can be answered here only in the GeoPackage "
                "that QGIS opens. Set reviewed to that file, or to None."
            )
        self.labels = read_review(self.gpkg, self.run).labels
        self.n_read = len(self.labels)  # those that follow were drawn here
        self._layer = layer_of(self.gpkg, [])
        self._shapes = ShapeFile(self.gpkg, self._layer, self.run.layer.crs)
        self._fid = self.labels["fid"].tolist()
        stored = stored_labels(self.gpkg, self._layer)
        self._stored: list[Stored] = [stored[fid] for fid in self._fid]
        self.status: list[str] = self.labels["status"].tolist()
        # places in STATUSES
        self.codes = np.array([_CODE[status] for status in self.status], np.uint8)
        # of another shape than the run's, whatever the file says
        reshaped = self.labels["status"].eq("edited").tolist()
        self._reshaped = {row for row, is_edited in enumerate(reshaped)
                          if is_edited and self._stored[row][0] != "edited"}  # fmt: skip
        numbers = [_number(class_id) for _, class_id in self._stored]
        self.class_ids = np.array([-1 if n is None else n for n in numbers], np.int64)  # -1: none
        self.order = TileByTile(self.labels, self.run.tiles, self.status)
        # as the plugin: tiles are sorted by what was learned, labels by any score that there is
        learned = self.labels["class_score"]
        self._own_likely = learned.fillna(0.5).to_numpy(float)
        self._own_score = learned.fillna(self.labels["confidence"]).fillna(1.0).to_numpy(float)
        self._telling_first = True
        self.past: list[Decision | Redrawn] = []
        self.future: list[Decision | Redrawn] = []
        self.n_redrawn = 0  # how often a shape has changed
        self.class_said = default_class_of(job, self.run)  # last; what is drawn has it
        self._times: deque[float] = deque(maxlen=500)
        self.row = -1  # the label that an answer is about
        self.rank(np.full(len(self), np.nan))

    def __len__(self) -> int:
        return len(self.status)

    @property
    def classes(self) -> Mapping[int, str]:
        """The classes of the run, by number."""
        return self.run.job.classes

    @property
    def score(self) -> NDArray[np.float64]:
        """How likely each label is right, `(n,)`: as taught, or its class score or confidence."""
        return self.order.score

    @property
    def waits(self) -> NDArray[np.bool_]:
        """Which labels nobody has judged, `(n,)`."""
        return self.codes == _CODE["unreviewed"]

    def class_of(self, row: int) -> int | None:
        """The class of a label; None: it has none."""
        number = int(self.class_ids[row])
        return None if number < 0 else number

    def n_by_class(self) -> dict[int, int]:
        """How many labels of each class were accepted; at 0, how many were rejected."""
        rejected = self.codes == _CODE["rejected"]
        kept = self.class_ids[~rejected & ~self.waits]
        counts = {number: int((kept == number).sum()) for number in self.classes}
        return counts | {0: int(rejected.sum())}

    # ---- what comes next

    def go(self) -> int:
        """Go to the label that comes next, and return its row; -1: all are judged."""
        found = self.order.next()
        self.row = -1 if found is None else found
        return self.row

    def skip(self) -> int:
        """Leave the label for later, and go to the next."""
        if self.row >= 0:
            self.order.skip(self.row)
        return self.go()

    def sort(self, telling_first: bool) -> None:
        """Begin with the tiles where the model is least sure, or take them as they are listed."""
        self._telling_first = telling_first
        order = self.order
        order.sort(order.most_telling(self.waits) if telling_first else order.listed)

    def rank(self, score: NDArray[np.float64]) -> None:
        """Take other scores `(n,)`, NaN for none: what is left is sorted by them at once.

        Labels that were drawn here may be missing at the end.
        """
        score = np.append(score, np.full(len(self) - len(score), np.nan))
        known = ~np.isnan(score)
        self.order.score = np.where(known, score, self._own_score)
        self.order.likely = np.where(known, score, self._own_likely)
        self.order.rank_again()
        self.sort(self._telling_first)

    # ---- answers

    def decide(self, rows: Sequence[int], status: str, class_id: int | None = None) -> None:
        """Give labels a status, and a class unless it is None, as one step that can be undone.

        A label whose shape was edited stays `edited` when it is accepted. Raises `ReviewError`, and
        changes nothing, if that cannot be written.
        """
        assert status in STATUSES
        after = [
            (
                "edited" if status == "accepted" and self.status[row] == "edited" else status,
                self._stored[row][1] if class_id is None else class_id,
            )
            for row in rows
        ]
        before = [self._stored[row] for row in rows]
        self._take(Decision(tuple(rows), tuple(before), tuple(after)))
        if class_id is not None:
            self.class_said = class_id

    def _take(self, step: Decision | Redrawn) -> None:
        self._make(step)
        self.past.append(step)
        self.future.clear()
        self._times.extend([time.monotonic()] * len(step.rows))

    def answer(self, status: str, class_id: int | None = None) -> int:
        """Decide about the label, and go to the next one."""
        if self.row >= 0:
            self.decide([self.row], status, class_id)
        return self.go()

    def above(self, score: float) -> list[int]:
        """The rows of the labels that wait and have this score or more."""
        return np.flatnonzero(self.waits & (self.score >= score)).tolist()

    def n_above(self, score: float) -> int:
        """How many labels wait and have this score or more."""
        return int(np.count_nonzero(self.waits & (self.score >= score)))

    def accept_above(self, score: float) -> int:
        """Accept all labels that wait and have this score or more; returns how many."""
        return self._decide_all(self.above(score), "accepted")

    def reject_rest(self) -> int:
        """Reject what still waits in this tile; returns how many."""
        return self._decide_all(self.order.rest(), "rejected")

    def _decide_all(self, rows: Sequence[int], status: str) -> int:
        if len(rows):
            self.decide(rows, status)
            self.go()
        return len(rows)

    def undo(self) -> int:
        """Take the last step back, and return the label that it was about; -1: nothing to undo."""
        if not self.past:
            return -1
        step = self.past[-1]
        self._make(step.turned)
        self.future.append(self.past.pop())
        for _ in range(min(len(step.rows), len(self._times))):
            self._times.pop()
        return self._show(step)

    def redo(self) -> int:
        """Make a step again that was taken back; returns the label that comes next."""
        if not self.future:
            return self.go()
        step = self.future[-1]
        self._make(step)
        self.past.append(self.future.pop())
        return self._show(step) if isinstance(step, Redrawn) else self.go()

    def _show(self, step: Decision | Redrawn) -> int:
        """Go to the label of a step, and to its tile; to the next one after a step over many."""
        if not 0 <= step.row < len(self):
            return self.go()
        self.row = step.row
        return self.row

    def _make(self, step: Decision | Redrawn) -> None:
        if isinstance(step, Redrawn):
            self._redraw(step)
        else:
            self._write(step.rows, step.before, step.after)

    def _write(
        self, rows: Sequence[int], before: Sequence[Stored], after: Sequence[Stored]
    ) -> None:
        fids = [self._fid[row] for row in rows]
        write_decisions(
            self.gpkg, self._layer, dict(zip(fids, before, strict=True)),
            dict(zip(fids, after, strict=True)),
        )  # fmt: skip
        for row, stored in zip(rows, after, strict=True):
            self._note(row, stored)

    def _note(self, row: int, stored: Stored) -> None:
        """Know what the file has of a label now."""
        self._stored[row] = stored
        number = _number(stored[1])
        self.class_ids[row] = -1 if number is None else number
        status = stored[0] or "unreviewed"
        reshaped = status == "unreviewed" and row in self._reshaped
        self.status[row] = "edited" if reshaped else status
        self.codes[row] = _CODE[self.status[row]]

    # ---- shapes

    def draw(self, shape: shapely.Geometry) -> int:
        """Add a label with this shape and the class that was given last; returns its row.

        It is a step that can be undone, and the label is shown. Raises `ReviewError`, and changes
        nothing, for an outline that crosses itself, and if it cannot be written.
        """
        label = drawn_label(sound(shape), self.class_said, self.run.tiles, self.labels.crs)
        fid = self._shapes.free_fid()
        self._take(Redrawn(len(self), fid, None, self._shapes.drawn(label), label))
        self.row = len(self) - 1
        return self.row

    def to_edit(self, row: int) -> tuple[Row, shapely.MultiPolygon]:
        """Read what the file has of a label now, and its shape; raises `ReviewError`."""
        stored = self._shapes.read(self._fid[row])
        return stored, self._shapes.shape(stored)

    def reshape(self, row: int, shape: shapely.Geometry, before: Row) -> None:
        """Give a label another shape, and the status `edited`, as one step that can be undone.

        `before` is what `to_edit` returned. Raises as `draw` does.
        """
        after = self._shapes.edited(before, sound(shape))
        self._take(Redrawn(row, self._fid[row], before, after))
        self.row = row

    def _redraw(self, step: Redrawn) -> None:
        self._shapes.write(step.fid, step.before, step.after)
        if step.after is None:
            self._drop_last()
        elif step.before is None:
            self._append(step)
        else:
            shape = self._shapes.shape(step.after)
            shapes = self.labels.geometry.to_numpy().copy()
            shapes[step.row] = shape
            area = self.labels["area_m2"].to_numpy(float).copy()
            area[step.row] = ground_area_m2([shape], self.labels.crs)[0]
            self.labels = self.labels.assign(area_m2=area).set_geometry(shapes)
            self._note(step.row, self._shapes.stored(step.after))
        self.n_redrawn += 1

    def _append(self, step: Redrawn) -> None:
        assert step.label is not None
        assert step.after is not None
        label = step.label.assign(fid=step.fid, unclosed=False)
        self.labels = pd.concat([self.labels, label], ignore_index=True)
        self._fid.append(step.fid)
        self._stored.append((None, None))
        self.class_ids = np.append(self.class_ids, -1)
        self.codes = np.append(self.codes, np.uint8(0))
        self._own_likely = np.append(self._own_likely, 1.0)
        self._own_score = np.append(self._own_score, 1.0)
        self.order.add(int(home_in(self.run.tiles, label)[0]))
        self.status.append("edited")
        self._note(step.row, self._shapes.stored(step.after))
        self.order.rank_again()

    def _drop_last(self) -> None:
        """Forget the label that was drawn last: steps are taken back in their order."""
        self.status.pop()
        self.order.drop_last()
        self.labels = self.labels.iloc[:-1]
        self._fid.pop()
        self._stored.pop()
        self.class_ids, self.codes = self.class_ids[:-1], self.codes[:-1]
        self._own_likely, self._own_score = self._own_likely[:-1], self._own_score[:-1]

    # ---- how far it is

    def tile_progress(self) -> tuple[str, int, int]:
        """The name of this tile, how many of its labels are judged, and how many it has."""
        return self.order.tile or "", *self.order.progress()

    def progress(self) -> tuple[int, int, int, int]:
        """How many tiles are done and how many have labels; labels that are judged, and all."""
        waits, n_tiles = self.waits, len(self.order.tiles)
        open_tiles = int(np.count_nonzero(np.bincount(self.order.home[waits] + 1)))
        return n_tiles - open_tiles, n_tiles, len(self) - int(waits.sum()), len(self)

    def pace(self) -> str:
        """How many labels a minute were decided about lately; empty at the beginning."""
        return pace_of(self._times, time.monotonic())

    def outline(self, row: int) -> gpd.GeoSeries:
        """The shape of a label."""
        return self.labels.geometry.iloc[[row]]

    def at(self, x: float, y: float) -> list[int]:
        """The rows of the labels at a place of the map, the smallest first."""
        found = self.labels.sindex.query(shapely.Point(x, y), predicate="intersects")
        return sorted(found.tolist(), key=lambda row: self.labels["area_m2"].iloc[row])


def _number(value: Any) -> int | None:
    """A class as the file has it: a number, or text in an export."""
    text = "" if value is None else str(value).partition(".")[0]
    return int(text) if text.isdigit() else None
