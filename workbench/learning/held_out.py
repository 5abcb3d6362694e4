"""How good classes are on tiles that did not teach them, and the threshold that follows.

Objects of one tile are alike, so whole tiles are held out: each is scored by a classifier that has
not seen it. If there is only one tile, its four quarters are held out instead.

The threshold is the one whose layer takes the least time to review: to look at each label, and to
draw what is missing. A few dozen objects of one scene seldom tell which one that is, so the usual
threshold stays unless another one is clearly cheaper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from workbench.candidates.offer import ONE_CLASS_PER_PLACE, Shared
from workbench.evaluation.cost import DRAW_S, LOOK_S
from workbench.learning.choose import Places
from workbench.learning.classifier import NONE, Classifier
from workbench.learning.examples import Examples
from workbench.polygons.overlap import common_area, may_conflict

FOLDS = 5
TREES = 100  # enough to see where the threshold lies, in a third of the time
STEPS = tuple(p / 100 for p in range(5, 95, 5))  # the thresholds that are tried
# the usual threshold: the cheapest to review on average over the scenes of benchmarks/classes.py
FALLBACK = 0.25
# standard errors by which another threshold must be cheaper. With 1, fields from other scenes had
# an F1 of 0.455 and a cost of 0.79; with 3, as with the usual threshold, 0.475 and 0.77
CLEARLY = 3.0


@dataclass(frozen=True)
class HeldOut:
    """Counts at one threshold: labels shown, objects found in the right class, objects known.

    `n_tiles` is the number of tiles held out; 0: none could be, and nothing is known.
    """

    class_thresh: float
    n_shown: int
    n_right: int
    n_known: int
    n_tiles: int
    by_class: tuple[tuple[int, HeldOut], ...] = ()  # the same for each class by its number

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.n_right / max(1, self.n_shown + self.n_known)

    @property
    def seconds(self) -> float:
        """The time of a review: to look at all labels, and to draw what is missing."""
        return LOOK_S * self.n_shown + DRAW_S * (self.n_known - self.n_right)

    def text(self) -> str:
        """Say in plain words what to expect."""
        if not self.n_tiles:
            return "not known: too few labels in too few places; label some in other tiles"
        if not self.n_shown:
            return "nothing: label more objects, preferably in other tiles"
        right = 10 * self.n_right / self.n_shown
        found = 10 * self.n_right / max(1, self.n_known)
        return f"about {right:.0f} of 10 pre-labels right; {found:.0f} of 10 objects found"


def held_out(examples: Examples, class_thresh: float | None = None) -> HeldOut:
    """Score the examples on held-out tiles, at a threshold or (None) at the cheapest to review.

    As in `select_classes`, each place of a tile shows one example. An object is right if one of the
    candidates that show it is shown in its class.
    """
    fold = _folds(examples)
    unknown = HeldOut(FALLBACK if class_thresh is None else class_thresh, 0, 0, 0, 0)
    class_id, score = np.zeros(len(fold), np.int64), np.zeros(len(fold))
    figures, truth, weight = examples.figures, examples.class_id, examples.weight
    scored = np.zeros(len(fold), bool)
    for number in np.unique(fold):
        test = fold == number
        if len(set(truth[~test].tolist())) > 1:
            classifier = Classifier.fit(figures[~test], truth[~test], TREES, weight[~test])
            class_id[test], score[test] = classifier.best(figures[test])
            scored |= test
    if not (truth[scored] != NONE).any():
        return unknown
    tried = STEPS if class_thresh is None else (class_thresh,)
    places = _places(examples, score, min(tried))
    named = (examples.frame["label"] != "").to_numpy() & (truth != NONE)
    label = examples.frame["source"].str.cat(examples.frame["label"], sep="/").to_numpy()
    n_tiles = examples.frame["tile"].nunique()
    results = []
    for step in tried:
        shown = places.worth_most(step)
        right = shown & named & (class_id == truth)
        by_class = tuple(
            (
                number,
                HeldOut(
                    step, int((shown & (class_id == number)).sum()),
                    len(set(label[right & (truth == number)])),
                    len(set(label[named & (truth == number)])), n_tiles,
                ),
            )
            for number in np.unique(truth[named]).tolist()
        )  # fmt: skip
        results.append(
            HeldOut(
                step, int(shown.sum()), len(set(label[right])), len(set(label[named])), n_tiles,
                by_class,
            )
        )  # fmt: skip
    best = min(results, key=lambda one: one.seconds)
    close = [one for one in results if one.seconds - best.seconds <= CLEARLY * _doubt(one, best)]
    return min(close, key=lambda one: (round(abs(one.class_thresh - FALLBACK), 6), one.seconds))


def _doubt(one: HeldOut, other: HeldOut) -> float:
    """The standard error of the difference in time if each label and object differs by chance."""
    shown, right = abs(one.n_shown - other.n_shown), abs(one.n_right - other.n_right)
    return math.sqrt(LOOK_S**2 * shown + DRAW_S**2 * right)


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


def _places(examples: Examples, score: NDArray[np.float64], least: float) -> Places:
    """Find the examples of a tile, with a score of at least `least`, that compete for one place."""
    geometry = examples.frame.geometry.to_numpy()
    area, bounds = shapely.area(geometry), shapely.bounds(geometry)
    tile = examples.frame["tile"].to_numpy(str)
    # intersect only where it can matter: to intersect all took most of the time of teaching
    good = np.flatnonzero(score >= least)
    i, j = good[shapely.STRtree(geometry[good]).query(geometry[good])]
    pairs = (i < j) & (tile[i] == tile[j])
    pairs &= may_conflict(bounds[i], bounds[j], area[i], area[j], ONE_CLASS_PER_PLACE)
    i, j = i[pairs], j[pairs]
    shared = Shared(i, j, common_area(geometry[i], geometry[j]), np.ones(len(i), bool))
    return Places.of(shared, area, score)
