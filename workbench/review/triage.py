"""The triage of a finished layer: which label comes next, and what was said of it.

Every answer is written into the reviewed GeoPackage at once, as `decide` does. So nothing is lost,
and QGIS shows it as soon as the file is opened there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from workbench.errors import ReviewError
from workbench.layer.cores import home_in
from workbench.layer.qgis.order import Order, most_doubt_first, pace_of
from workbench.review.decide import Stored, stored_labels, write_decisions
from workbench.review.job import ReviewJob
from workbench.review.read import STATUSES, layer_of, read_review
from workbench.runs.result import Run, read_run

_CODE = {str(status): place for place, status in enumerate(STATUSES)}
OUTSIDE = "outside of all tiles"  # where labels are that nobody finds tile by tile


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


class TileByTile(Order):
    """The order of a review over the rows of a layer in memory."""

    def __init__(
        self, labels: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame, status: list[str]
    ) -> None:
        self._status = status
        self.score = np.ones(len(labels))  # what a tile's labels are sorted by
        self.likely = np.full(len(labels), 0.5)  # and what tiles are: how likely each is right
        bounds, boxes = labels.bounds.to_numpy(), tiles.bounds.to_numpy()
        home = home_in(tiles, labels)
        inside = np.zeros(len(labels), bool)
        there = home >= 0
        mine, tile = bounds[there], boxes[home[there]]
        inside[there] = ((mine[:, :2] >= tile[:, :2]) & (mine[:, 2:] <= tile[:, 2:])).all(axis=1)
        self._reaches = there & ~inside
        self.home = home
        order = np.argsort(home, kind="stable")
        parts = np.split(order, np.searchsorted(home[order], np.arange(len(tiles))))
        names = [OUTSIDE, *tiles["tile"]]
        self._rows = {place - 1: rows for place, rows in enumerate(parts)}
        # last, as nothing else leads to these
        found = [(name, place - 1) for place, name in enumerate(names) if len(parts[place])]
        super().__init__(sorted(found, key=lambda tile: tile[1] < 0))
        self.listed = [name for name, _ in self.tiles]

    def labels_in(self, place: int) -> Iterator[tuple[int, str, float, bool]]:
        """Yield row, status and score of the labels of a tile, and whether they reach beyond it."""
        for row in self._rows[place].tolist():
            yield row, self._status[row], float(self.score[row]), bool(self._reaches[row])

    def statuses(self, fids: Sequence[int]) -> list[tuple[int, str]]:
        """Pairs of row and status."""
        return [(row, self._status[row]) for row in fids]

    def most_telling(self, waits: NDArray[np.bool_]) -> list[str]:
        """The names of the tiles, first those with most labels that the model is unsure about."""
        doubt = waits * self.likely * (1 - self.likely)
        by_place = np.bincount(self.home + 1, doubt, len(self._rows))
        return most_doubt_first({name: by_place[place + 1] for name, place in self.tiles})


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
        self._layer = layer_of(self.gpkg, [])
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
        self.past: list[Decision] = []
        self.future: list[Decision] = []
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
        """Take other scores `(n,)`, NaN for none: what is left is sorted by them at once."""
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
        step = Decision(tuple(rows), tuple(before), tuple(after))
        self._write(step.rows, step.before, step.after)
        self.past.append(step)
        self.future.clear()
        self._times.extend([time.monotonic()] * len(rows))

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
        self._write(step.rows, step.after, step.before)
        self.future.append(self.past.pop())
        for _ in range(min(len(step.rows), len(self._times))):
            self._times.pop()
        return self._show(step)

    def redo(self) -> int:
        """Make a step again that was taken back; returns the label that comes next."""
        if self.future:
            step = self.future[-1]
            self._write(step.rows, step.before, step.after)
            self.past.append(self.future.pop())
        return self.go()

    def _show(self, step: Decision) -> int:
        """Go to the label of a step, and to its tile; to the next one after a step over many."""
        if step.row < 0:
            return self.go()
        self.row = step.row
        return self.row

    def _write(
        self, rows: Sequence[int], before: Sequence[Stored], after: Sequence[Stored]
    ) -> None:
        fids = [self._fid[row] for row in rows]
        write_decisions(
            self.gpkg, self._layer, dict(zip(fids, before, strict=True)),
            dict(zip(fids, after, strict=True)),
        )  # fmt: skip
        for row, stored in zip(rows, after, strict=True):
            self._stored[row] = stored
            number = _number(stored[1])
            self.class_ids[row] = -1 if number is None else number
            status = stored[0] or "unreviewed"
            reshaped = status == "unreviewed" and row in self._reshaped
            self.status[row] = "edited" if reshaped else status
            self.codes[row] = _CODE[self.status[row]]

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
