"""Classes on sample tiles, taught by one verdict after another.

Uses the same features, classifier and selection as a run. The features of a tile are computed once;
after a verdict only the classifier is fitted again, first with fewer trees, so that the answer
comes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from threading import RLock

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates.offer import ONE_CLASS_PER_PLACE, Shared
from workbench.errors import ExamplesError
from workbench.learning.choose import select_in_tile
from workbench.learning.classifier import NONE, QUICK_TREES, Classifier
from workbench.learning.examples import SAME, Examples, join
from workbench.learning.features import FEATURES
from workbench.learning.held_out import FALLBACK, HeldOut
from workbench.learning.verdicts import Verdicts
from workbench.polygons.overlap import iou_of
from workbench.runs.classes import described, learn
from workbench.runs.job import Job
from workbench.runs.said import Said, Shown, fill_their_tile, select_said
from workbench.runs.tile_stream import SegmentedTile
from workbench.tuning.preview import Fate, Preview, Traced, View
from workbench.tuning.process import Index


@dataclass(frozen=True, eq=False)
class Lesson:
    """A classifier, the threshold that goes with it, and what the verdicts say without it.

    `expected` is None until tiles have been held out, which takes a second.
    """

    classifier: Classifier
    class_thresh: float
    said: Said
    expected: HeldOut | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Classes:
    """The class of each row `(n,)` of a preview, its score, and the rows that are kept.

    Rows of tiles without features have class 0 and score 0. `drawn` is as in `View`.
    """

    class_id: NDArray[np.int64]
    class_score: NDArray[np.float64]
    kept: NDArray[np.int64]
    drawn: tuple[gpd.GeoDataFrame, ...]


@dataclass(frozen=True, eq=False)
class _Known:
    """What does not change with verdicts: the features of a sample's candidates."""

    sample: SegmentedTile
    figures: NDArray[np.float32]
    whole: NDArray[np.bool_]  # candidates that fill their tile
    max_area_share: float | None  # for which `whole` holds
    pairs: Shared


class Teacher:
    """Turns verdicts on some candidates of a preview into classes for all of them."""

    def __init__(self, crs: pyproj.CRS) -> None:
        self._crs = crs
        self._lock = RLock()
        self._known: dict[Index, _Known] = {}
        # by tile and shape: the part, its rows that show the shape, and their IoU
        self._shown: dict[
            tuple[Index, bytes], tuple[Traced, NDArray[np.int64], NDArray[np.float64]]
        ] = {}

    # ---- features

    def describe_one(self, preview: Preview, job: Job) -> bool:
        """Compute the features of one sample; false if none are missing."""
        for part in preview.parts:
            if part.sample.whole and self._of(part, job) is None:
                self._describe(part, job)
                return True
        return False

    def _describe(self, part: Traced, job: Job) -> None:
        with self._lock:
            if self._of(part, job) is not None:
                return  # another thread has done it
            # imports that take a second or two: now, not at the first verdict
            import sklearn.ensemble
            import sklearn.linear_model  # noqa: F401

            sample, candidates = part.sample, part.candidates
            figures = described(sample.part, candidates)
            whole = fill_their_tile(job, sample.part, candidates, [sample.record])
            self._known[sample.record.index] = _Known(
                sample, figures, whole, job.max_area_share, _about_one_place(part)
            )

    def knows(self, preview: Preview, row: int, job: Job) -> bool:
        """Whether the features of a row have been computed."""
        return self._of(preview.part_of(row), job) is not None

    def _of(self, part: Traced, job: Job) -> _Known | None:
        known = self._known.get(part.sample.record.index)
        fits = known is not None and known.sample is part.sample
        return known if fits and known.max_area_share == job.max_area_share else None  # type: ignore[union-attr]

    # ---- verdicts

    def show(self, preview: Preview, row: int, job: Job) -> gpd.GeoDataFrame | None:
        """Describe a row and, after it, all rows of its tile that show the same object.

        For `Verdicts.with_verdict`; None if the mask has no valid pixel, or if its tile
        is not finished. Missing features are computed now.
        """
        part = preview.part_of(row)
        if not part.sample.whole:
            return None
        self._describe(part, job)
        known = self._of(part, job)
        assert known is not None
        rows = _same_object(part, row - part.first)
        polygons = preview.polygons_before_cleaning(part.first + rows)
        if row not in set(polygons["row"]):
            return None
        polygons = polygons.sort_values("row", key=lambda of: of != row, kind="stable")
        rows = polygons["row"].to_numpy() - part.first
        record = part.sample.record
        return gpd.GeoDataFrame(
            {
                "source": record.source,
                "tile": record.name,
                "ordinal": part.candidates.column("ordinal")[rows].astype(np.int64),
            }
            | dict(zip(FEATURES, known.figures[rows].T, strict=True)),
            geometry=polygons.geometry.to_numpy(),
            crs=polygons.crs,
        )

    # ---- classes

    def quick(
        self, verdicts: Verdicts, others: Sequence[Examples], class_thresh: float | None
    ) -> Lesson | None:
        """Learn quickly; None while nothing can be learned. `class_thresh`: the last known one."""
        examples = _joined(verdicts, others)
        if examples is None:
            return None
        known = examples.figures, examples.class_id
        classifier = Classifier.fit(*known, QUICK_TREES, examples.weight)
        thresh = FALLBACK if class_thresh is None else class_thresh
        return Lesson(classifier, thresh, Said.by(examples, self._crs))

    def thorough(
        self, verdicts: Verdicts, others: Sequence[Examples], class_thresh: float | None
    ) -> Lesson | None:
        """Learn as a run does, and estimate on held-out tiles what to expect."""
        examples = _joined(verdicts, others)
        if examples is None:
            return None
        try:
            taught = learn(examples, class_thresh, self._crs)
        except ExamplesError:
            return None
        return Lesson(
            taught.classifier, taught.class_thresh, taught.said, taught.expected, taught.notes
        )

    def classes(self, lesson: Lesson, preview: Preview, job: Job) -> Classes:
        """Give all rows their class, and keep what a run would keep."""
        class_id = np.zeros(preview.n_candidates, np.int64)
        score = np.zeros(preview.n_candidates)
        chosen = [np.empty(0, np.int64)]
        for part in preview.parts:
            known = self._of(part, job)
            if known is None:
                continue
            candidates = part.candidates
            mine = slice(part.first, part.first + len(candidates))
            class_id[mine], score[mine] = lesson.classifier.best(known.figures)
            about = lesson.said.about(len(candidates), self._shown_by(lesson.said, part))
            best = partial(
                select_in_tile, part.masks.candidates, known.pairs, class_thresh=lesson.class_thresh
            )
            kept = select_said(
                candidates, class_id[mine], score[mine], job, known.whole, about, best
            )  # fmt: skip
            class_id[mine] = np.where(about.class_id == NONE, NONE, kept.class_id)
            score[mine] = kept.class_score.clip(0)
            chosen.append(kept.rows + part.first)
        rows = np.concatenate(chosen)
        fates, drawn = preview.fates(rows, job.cleaning)
        return Classes(class_id, score, rows[fates == Fate.KEPT], drawn)

    def _shown_by(self, said: Said, part: Traced) -> Shown:
        """Like `Said.shown_by`, but nothing is computed twice for a shape."""
        sample = part.sample
        keys = [(sample.record.index, shape) for shape in shapely.to_wkb(said.shapes).tolist()]
        new = np.array(
            [
                i
                for i, key in enumerate(keys)
                if key not in self._shown or self._shown[key][0] is not part
            ],
            int,
        )
        some = Said(said.shapes[new], said.class_id[new], said.object[new])
        found = some.shown_by(sample.part, part.candidates, [sample.record])
        for number, i in enumerate(new.tolist()):
            mine = found.shape == number
            self._shown[keys[i]] = part, found.row[mine], found.iou[mine]
        pairs = [self._shown[key] for key in keys]
        shape = np.repeat(np.arange(len(keys)), [len(rows) for _, rows, _ in pairs])
        return Shown(
            np.concatenate([np.empty(0, np.int64), *(rows for _, rows, _ in pairs)]),
            shape,
            np.concatenate([np.empty(0), *(iou for _, _, iou in pairs)]),
        )


def _about_one_place(part: Traced) -> Shared:
    """Pairs of rows of a sample of which only one may be kept."""
    part.masks.compare(np.arange(len(part.candidates)))
    pairs = part.masks.pairs
    return pairs.shared.conflicting(pairs.area, ONE_CLASS_PER_PLACE)


def most_telling(
    preview: Preview, view: View, classes: Classes | None, thresh: float, verdicts: Verdicts
) -> int:
    """The row whose verdict would teach most, -1 if all are judged.

    With classes, it is the least certain one, with a score near the threshold; without, the best
    one that the thresholds show. Tiles with fewer verdicts are preferred.
    """
    judged_ids = set(zip(verdicts.frame["tile"], verdicts.frame["ordinal"], strict=True))
    per_tile = verdicts.frame.drop_duplicates("label")["tile"].value_counts()
    best, most = -1, -np.inf
    for part in preview.parts:
        tile = part.sample.record.name
        rows = np.arange(part.first, part.first + len(part.candidates))
        shown = view.fate[rows] == Fate.KEPT
        worth = preview.scores[rows, 0].astype(float)
        if classes is not None:
            shown |= np.isin(rows, classes.kept)
            score = classes.class_score[rows]
            worth = 1 - np.abs(score - thresh) / max(thresh, 1 - thresh)
        ordinals = part.candidates.column("ordinal")
        judged = np.array([(tile, int(ordinal)) in judged_ids for ordinal in ordinals], bool)
        open_rows = shown & ~judged
        if not open_rows.any():
            continue
        worth = np.where(open_rows, worth / (2 + per_tile.get(tile, 0)) ** 0.5, -np.inf)
        here = int(worth.argmax())
        if worth[here] > most:
            best, most = int(rows[here]), float(worth[here])
    return best


def at_place(
    preview: Preview, view: View, classes: Classes | None, place: tuple[float, float]
) -> list[int]:
    """The rows whose mask covers a place of the map: shown ones, then others, smallest first.

    Masks that are too small to become labels are left out, and so are near duplicates.
    """
    kept = set() if classes is None else set(classes.kept.tolist())
    least = view.cleaning.min_area_px
    entries = []
    for part in preview.parts:
        areas = part.candidates.column("area_px")
        for here in part.candidates.covering(*part.sample.pixel_at(*place)).tolist():
            row, area = part.first + here, int(areas[here])
            shown = row in kept or view.fate[row] == Fate.KEPT
            if shown or area >= least:
                entries.append((not shown, area, row))
    rows = [row for _, _, row in sorted(entries)]
    same = _same_objects(preview, rows)
    order: list[int] = []
    for row in rows:
        if not any((row, other) in same for other in order):
            order.append(row)
    return order


def _same_objects(preview: Preview, rows: list[int]) -> set[tuple[int, int]]:
    """Pairs of rows, in both orders, that show one object, in one tile or in two that overlap."""
    same: set[tuple[int, int]] = set()
    parts = [
        (part, [row for row in rows if preview.part_of(row) is part]) for part in preview.parts
    ]
    parts = [(part, mine) for part, mine in parts if mine]
    for part, mine in parts:
        here = np.array(mine) - part.first
        pairs = part.masks.pairs
        shared = pairs.between(here, here)
        i, j = shared.i, shared.j
        alike = shared.common >= SAME * (pairs.area[i] + pairs.area[j] - shared.common)
        same |= set(
            zip((part.first + i[alike]).tolist(), (part.first + j[alike]).tolist(), strict=True)
        )
    for (_, one), (_, other) in permutations(parts, 2):
        outlines = [[preview.outline(row).to_numpy() for row in some] for some in (one, other)]
        for row, shape in zip(one, outlines[0], strict=True):
            for rival, beside in zip(other, outlines[1], strict=True):
                if len(shape) == len(beside) == 1 and iou_of(shape, beside)[0] >= SAME:
                    same.add((row, rival))
    return same


def _joined(verdicts: Verdicts, others: Sequence[Examples]) -> Examples | None:
    """All examples; None if they have fewer than two classes, counting none of these as one."""
    all_of = [one for one in (verdicts.examples, *others) if len(one)]
    if not all_of:
        return None
    examples = join(all_of)
    return examples if len(set(examples.class_id.tolist())) > 1 else None


def _same_object(part: Traced, row: int) -> NDArray[np.int64]:
    """The rows of a sample, `row` among them, whose mask has an IoU of 0.6 with that of `row`."""
    x0, y0, x1, y1 = part.candidates.boxes.T
    near = np.flatnonzero(
        (x0 <= x1[row]) & (x1 >= x0[row]) & (y0 <= y1[row]) & (y1 >= y0[row])
    )  # fmt: skip
    area = part.candidates.column("area_px").astype(float)
    near = near[(area[near] >= SAME * area[row]) & (area[row] >= SAME * area[near])]
    rules = part.candidates.rules
    rles = [
        {"size": [rules.height, rules.width], "counts": counts}
        for counts in part.candidates.take(near).table.column("rle").to_pylist()
    ]
    mine = rles[int(np.flatnonzero(near == row)[0])]
    return near[np.asarray(coco.iou(rles, [mine], [0]))[:, 0] >= SAME]
