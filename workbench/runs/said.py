"""What a person has said about single objects; it overrides the classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray

from workbench.candidates.offer import offered
from workbench.candidates.select import passes
from workbench.candidates.store import TileRecord, valid_masks
from workbench.candidates.table import Candidates
from workbench.evaluation.matching import pairs_of
from workbench.learning.classifier import NONE
from workbench.learning.examples import PERSON, SAME, Examples
from workbench.polygons.build import to_polygons
from workbench.polygons.overlap import may_reach, most_common
from workbench.runs.job import Job
from workbench.runs.tile_stream import ScenePlan

_KEYS = ("tile_row", "tile_col", "ordinal")


@dataclass(frozen=True, eq=False)
class Said:
    """Shapes `(k,)` whose class is known for sure, and which object each of them shows `(k,)`.

    These are all verdicts of a person, and what any labels call none of the classes.
    """

    shapes: NDArray[np.object_]
    class_id: NDArray[np.int64]
    object: NDArray[np.int64]

    @classmethod
    def by(cls, examples: Examples, crs: pyproj.CRS) -> Said:
        """Take what examples say, in a CRS."""
        frame = examples.frame
        sure = (frame["said_by"] == PERSON) | (frame["class_id"] == NONE)
        frame = frame[sure & (frame["label"] != "")].to_crs(crs)
        number = frame.groupby(["source", "label"], sort=False).ngroup().to_numpy(np.int64)
        return cls(frame.geometry.to_numpy(), frame["class_id"].to_numpy(np.int64), number)

    def shown_by(
        self, part: ScenePlan, candidates: Candidates, records: Sequence[TileRecord]
    ) -> Shown:
        """Find the candidates of some tiles of a scene that show these objects: IoU 0.6 or more."""
        rows = self._possible(part, candidates)
        if not len(rows):
            return Shown(rows, rows, np.empty(0))
        some = candidates.take(rows)
        polygons = to_polygons(some, part.scene, part.grid, valid_masks(records, candidates.rules))
        at = rows[traced_rows(some, polygons)]
        pairs = pairs_of(polygons.geometry.to_numpy(), self.shapes, at_least=SAME)
        return Shown(at[pairs.predicted], pairs.reference, pairs.iou)

    def about(self, n: int, shown: Shown) -> About:
        """What is said of `n` candidates, by the shape that each of them fits best."""
        about = About(np.full(n, -1), np.full(n, -1), np.zeros(n))
        # what is written last stays: the best fit, of equal ones the last shape
        order = np.lexsort((shown.shape, shown.iou))
        row, shape = shown.row[order], shown.shape[order]
        about.class_id[row], about.object[row] = self.class_id[shape], self.object[shape]
        about.iou[row] = shown.iou[order]
        return about

    def _possible(self, part: ScenePlan, candidates: Candidates) -> NDArray[np.int64]:
        """The rows whose boxes and areas do not rule out that they show one of the shapes."""
        if not len(candidates) or not len(self.shapes):
            return np.empty(0, np.int64)
        index = np.column_stack([candidates.column(name) for name in ("tile_row", "tile_col")])
        tiles, tile_of = np.unique(index, axis=0, return_inverse=True)
        windows = [part.grid.tile(row, col).window for row, col in tiles.tolist()]
        corner = np.array([(window.col_off, window.row_off) for window in windows])
        boxes = candidates.boxes + np.tile(corner[tile_of.ravel()], 2) + (0, 0, 1, 1)
        to_map = part.scene.transform  # north-up
        x0, y1 = to_map.c + to_map.a * boxes[:, 0], to_map.f + to_map.e * boxes[:, 1]
        x1, y0 = to_map.c + to_map.a * boxes[:, 2], to_map.f + to_map.e * boxes[:, 3]
        area = candidates.column("area_px") * abs(to_map.a * to_map.e)
        of, row = shapely.STRtree(shapely.box(x0, y0, x1, y1)).query(self.shapes)
        ours = np.column_stack((x0, y0, x1, y1))[row]
        theirs, their_area = shapely.bounds(self.shapes)[of], shapely.area(self.shapes)[of]
        most = most_common(ours, theirs, area[row], their_area)
        return np.unique(row[may_reach(SAME, most, area[row], their_area)])


@dataclass(frozen=True, eq=False)
class Shown:
    """Pairs `(m,)` of a candidate and a shape of `Said` that it shows, and their IoU."""

    row: NDArray[np.int64]
    shape: NDArray[np.int64]
    iou: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class About:
    """What is said of candidates `(n,)`: class (-1: nothing), object (-1: none) and IoU with it."""

    class_id: NDArray[np.int64]
    object: NDArray[np.int64]
    iou: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Chosen:
    """The rows that are kept, ascending, and the class and score of all candidates `(n,)`.

    `by_person` `(n,)` marks what stays whatever else is found: a person has given its class.
    """

    rows: NDArray[np.int64]
    class_id: NDArray[np.int64]
    class_score: NDArray[np.float64]
    by_person: NDArray[np.bool_]


# which rows are kept, by their class scores; -1 may not
Choose = Callable[[NDArray[np.float64]], NDArray[np.int64]]


def select_said(
    candidates: Candidates,
    class_id: NDArray[np.int64],
    class_score: NDArray[np.float64],
    job: Job,
    whole: NDArray[np.bool_],
    about: About,
    choose: Choose,
) -> Chosen:
    """Let `choose` keep the best at each place, and see to it that a person has the last word.

    `class_id` and `class_score` are the classifier's, `whole` marks the candidates that fill their
    tile, as `fill_their_tile` does. What a person has classed scores 1 and is kept, once in each
    tile: the candidate that was judged, or else the one most like it. What is none of the classes
    is not kept.
    """
    given, refused = about.class_id > NONE, about.class_id == NONE
    by_person = _most_like(candidates, about, given, class_score)
    fits = passes(candidates, job.limits) & ~whole
    class_score = np.where(given | refused | ~fits, -1.0, class_score)
    class_score[by_person] = 1.0
    class_id = np.where(given, about.class_id, class_id)
    rows = choose(class_score)
    # a person may call both a field and the house on it an object: neither suppresses the other
    rows = np.union1d(rows, np.flatnonzero(by_person))
    return Chosen(rows, class_id, class_score, by_person)


def _most_like(
    candidates: Candidates,
    about: About,
    given: NDArray[np.bool_],
    class_score: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Mark of the `given` rows the one of each tile that is most like each object."""
    rows = np.flatnonzero(given)
    keys = [about.object, *(candidates.column(name) for name in ("tile_row", "tile_col"))]
    ordinal = candidates.column("ordinal")
    order = np.lexsort((ordinal[rows], -class_score[rows], -about.iou[rows]))
    _, first = np.unique(
        np.column_stack([key[rows[order]] for key in keys]), axis=0, return_index=True
    )
    best = np.zeros(len(given), bool)
    best[rows[order[first]]] = True
    return best


def fill_their_tile(
    job: Job, part: ScenePlan, candidates: Candidates, records: Sequence[TileRecord]
) -> NDArray[np.bool_]:
    """Mark the candidates `(n,)` that cover more of their tile than a label may."""
    offer = replace(job.offer, duplicate_iou=None, overlaps="all")
    valid = valid_masks(records, candidates.rules)
    whole = np.ones(len(candidates), bool)
    whole[rows_of(candidates, offered(candidates, part.grid, valid, offer))] = False
    return whole


def rows_of(candidates: Candidates, some: Candidates) -> NDArray[np.int64]:
    """The row of each of `some` candidates among those of the same scene."""
    keys, wanted = (
        pd.MultiIndex.from_arrays([c.column(name) for name in _KEYS]) for c in (candidates, some)
    )
    return np.asarray(keys.get_indexer(wanted), np.int64)


def traced_rows(candidates: Candidates, polygons: gpd.GeoDataFrame) -> NDArray[np.int64]:
    """The row of each polygon's candidate: masks without a valid pixel have no polygon."""
    keys = pd.MultiIndex.from_arrays([candidates.column(name) for name in _KEYS])
    wanted = pd.MultiIndex.from_frame(polygons[list(_KEYS)])
    return np.asarray(keys.get_indexer(wanted), np.int64)
