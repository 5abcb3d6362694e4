"""How good classes are on tiles that did not teach them, and the threshold that follows.

Objects of one tile are alike, so tiles are held out, not objects: each is scored by a classifier
that has not seen it. Of a single tile the four quarters are held out instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from workbench.candidates.offer import ONE_CLASS_PER_PLACE, Conflicts, Reason, Shared
from workbench.learning.classifier import NONE, Classifier
from workbench.learning.examples import Examples
from workbench.polygons.overlap import common_area

FOLDS = 5
TREES = 100  # enough to see where the threshold lies, in a third of the time
STEPS = tuple(p / 100 for p in range(10, 95, 5))  # the thresholds that are tried
FALLBACK = 0.3  # where nothing can be held out: near the best of all scenes measured


@dataclass(frozen=True)
class HeldOut:
    """What the examples say of one threshold: how many are shown, right and known.

    `n_tiles` is how many tiles were held out; 0: nothing could be, and nothing is known.
    """

    class_thresh: float
    n_shown: int
    n_right: int
    n_known: int
    n_tiles: int

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.n_right / max(1, self.n_shown + self.n_known)

    def text(self) -> str:
        """Say in plain words what to expect."""
        if not self.n_tiles:
            return "not known: too few labels in too few places; label some in other tiles"
        if not self.n_shown:
            return "nothing: label more objects, best in other tiles"
        right = 10 * self.n_right / self.n_shown
        found = 10 * self.n_right / max(1, self.n_known)
        return f"of 10 pre-labels about {right:.0f} right; {found:.0f} of 10 objects found"


def held_out(examples: Examples, class_thresh: float | None = None) -> HeldOut:
    """Score the examples on tiles held out, at a threshold or (None) at the one of the highest F1.

    As in `select_classes`, of two examples of one tile that share half of the smaller the better
    class score counts. An object is right if one of the candidates that show it is shown in its
    class.
    """
    fold = _folds(examples)
    unknown = HeldOut(FALLBACK if class_thresh is None else class_thresh, 0, 0, 0, 0)
    class_id, score = np.zeros(len(fold), np.int64), np.zeros(len(fold))
    figures, truth = examples.figures, examples.class_id
    scored = np.zeros(len(fold), bool)
    for number in np.unique(fold):
        test = fold == number
        if len(set(truth[~test].tolist())) > 1:
            classifier = Classifier.fit(figures[~test], truth[~test], TREES)
            class_id[test], score[test] = classifier.best(figures[test])
            scored |= test
    if not (truth[scored] != NONE).any():
        return unknown
    conflicts = _conflicts(examples, score)
    named = (examples.frame["label"] != "").to_numpy() & (truth != NONE)
    label = examples.frame["source"].str.cat(examples.frame["label"], sep="/").to_numpy()
    n_tiles = examples.frame["tile"].nunique()
    tried = STEPS if class_thresh is None else (class_thresh,)
    results = []
    for step in tried:
        passed = score >= step
        shown = passed & (conflicts.decide(passed).reason == Reason.OFFERED)
        right = shown & named & (class_id == truth)
        results.append(
            HeldOut(step, int(shown.sum()), len(set(label[right])), len(set(label[named])), n_tiles)
        )
    best = max(result.f1 for result in results)
    # the middle of those that are as good: the ends of a plateau are chance
    good = [result for result in results if result.f1 >= best - 0.01]
    return good[len(good) // 2]


def _folds(examples: Examples) -> NDArray[np.int64]:
    """Which fold each example is in: whole tiles together, or the quarters of a single tile."""
    tiles, number = np.unique(examples.frame["tile"].to_numpy(str), return_inverse=True)
    if len(tiles) < 2:
        middle = shapely.get_coordinates(shapely.centroid(examples.frame.geometry.to_numpy()))
        right, upper = (middle > np.median(middle, axis=0)).T
        return np.asarray(2 * upper + right, np.int64)
    # tiles with many objects are dealt out first, so that each fold has some
    objects = np.bincount(number, examples.class_id != NONE, len(tiles))
    fold_of = np.empty(len(tiles), np.int64)
    fold_of[np.argsort(-objects, kind="stable")] = np.arange(len(tiles)) % FOLDS
    return fold_of[number]


def _conflicts(examples: Examples, score: NDArray[np.float64]) -> Conflicts:
    """The pairs of examples at one place, of which the better score stays; equal ones by row."""
    geometry = examples.frame.geometry.to_numpy()
    i, j = shapely.STRtree(geometry).query(geometry)
    tile = examples.frame["tile"].to_numpy(str)
    apart = (i < j) & (tile[i] == tile[j])
    i, j = i[apart], j[apart]
    common = common_area(geometry[i], geometry[j])
    rank = np.empty(len(score), np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(len(score))
    shared = Shared(i, j, common, np.ones(len(i), bool))
    return Conflicts.of(shared, shapely.area(geometry), rank, ONE_CLASS_PER_PLACE)
