"""Scores of what is left in a triage, taught by its answers as the tuner's classes are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.learning.classifier import NONE, QUICK_TREES, Classifier
from workbench.learning.examples import read_examples
from workbench.learning.features import FEATURES
from workbench.raster.tiles import TileGrid
from workbench.review.examples import default_class_of
from workbench.review.triage import Triage
from workbench.runs.classes import described
from workbench.runs.folder import store_in
from workbench.runs.labels import EXAMPLES
from workbench.runs.tile_stream import ScenePlan

FEWEST = 5  # answers that teach something


class Ranking:
    """The features of a triage's labels, computed tile by tile, and the scores that follow.

    A label is described as the stored candidate that it was made of. Labels that somebody drew, and
    those of coarser scales, are not described and keep their own score.
    """

    def __init__(self, triage: Triage) -> None:
        self._triage = triage
        run = triage.run
        n = triage.n_read  # labels that are drawn meanwhile come after these
        self.figures = np.full((n, len(FEATURES)), np.nan, np.float32)
        self.best_class = np.full(n, NONE)  # what the labels look like, as far as it was learned
        self._rows: dict[str, dict[int, int]] = {}  # by tile and ordinal
        for row, label in enumerate(triage.labels["id"].iloc[:n]):
            tile, _, ordinal = str(label).rpartition("/")
            if ordinal.isdigit():
                self._rows.setdefault(tile, {})[int(ordinal)] = row
        self._ledger = store_in(run.folder).ledger()
        self._index = {
            record.tile: (record.source, int(record.tile_row), int(record.tile_col))
            for record in run.tiles.itertuples()
        }
        self._left = {tile for tile in self._rows if tile in self._index}
        self._parts = {
            scene.name: ScenePlan(
                scene,
                TileGrid(scene.width, scene.height, run.job.tile_size, run.job.overlap),
                (),
            )
            for scene in run.scenes
        }
        self._before = read_examples(run.folder / EXAMPLES)

    @property
    def is_done(self) -> bool:
        """Whether all labels are described that can be."""
        return not self._left

    def class_like(self, row: int) -> int:
        """What a label looks like, `NONE` as long as nothing was learned about it."""
        return int(self.best_class[row]) if row < len(self.best_class) else NONE

    def describe_one(self) -> str | None:
        """Describe the labels of one tile, the current one first, and name it; None: all are.

        Raises `SceneError` if the raster cannot be read, and `RunFolderError` for damaged
        candidates.
        """
        tile = self._next_tile()
        if tile is None:
            return None
        self._left.discard(tile)
        row_of = self._rows[tile]
        for stored, records in store_in(self._triage.run.folder).read(
            [self._index[tile]], self._ledger
        ):
            for record in records:
                candidates = stored.of_tile(record.tile_row, record.tile_col)
                figures = described(self._parts[record.source], candidates)
                for place, ordinal in enumerate(candidates.column("ordinal").tolist()):
                    if ordinal in row_of:
                        self.figures[row_of[ordinal]] = figures[place]
        return tile

    def _next_tile(self) -> str | None:
        order = self._triage.order
        names = [name for name, _ in order.tiles]
        start = names.index(order.tile) if order.tile in names else 0
        for name in names[start:] + names[:start]:
            if name in self._left:
                return name
        return min(self._left, default=None)

    def scores(self) -> NDArray[np.float64] | None:
        """Learn from the answers, and score what waits `(n_read,)`; None: they teach nothing yet.

        NaN for all that is judged or not described. What taught the run counts, too. There must be
        something that was accepted and something that was rejected, `FEWEST` answers in all.
        """
        triage = self._triage
        known = ~np.isnan(self.figures[:, 0])
        class_id = self._said()
        judged = known & (class_id >= 0)
        figures, classes = self.figures[judged], class_id[judged]
        weight = np.ones(len(classes))
        if self._before is not None:
            figures = np.concatenate([figures, self._before.figures])
            classes = np.concatenate([classes, self._before.class_id])
            weight = np.concatenate([weight, self._before.weight])
        if np.count_nonzero(judged) < FEWEST or len(np.unique(classes)) < 2:
            return None
        classifier = Classifier.fit(figures, classes, QUICK_TREES, weight)
        score = np.full(len(known), np.nan)
        rows = np.flatnonzero(known & triage.waits[: len(known)])
        self.best_class[rows], score[rows] = classifier.best(self.figures[rows])
        return score

    def _said(self) -> NDArray[np.int64]:
        """The class of each label that is judged, `NONE` if it was rejected, -1 for all others."""
        triage = self._triage
        default = default_class_of(triage.job, triage.run)
        said = np.full(triage.n_read, -1)
        for row in np.flatnonzero(~triage.waits[: triage.n_read]).tolist():
            if triage.status[row] == "rejected":
                said[row] = NONE
            else:
                number = triage.class_of(row)
                number = default if number is None else number
                said[row] = number if number in triage.classes else -1
        return said
