"""Thresholds that separate the polygons somebody has called good from those called bad.

Verdicts on a few polygons say nothing of what nobody has judged, so neither precision nor recall of
a tile is known: precision, recall and F1 are those among the judged objects alone. To count the
verdicts that come out right instead was tried: where most are bad, it hides nearly everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from workbench.candidates.select import Selector, Thresholds, passes
from workbench.candidates.table import Candidates
from workbench.errors import ReviewError
from workbench.evaluation.thresholds import THRESHOLD_STEPS

SAME_IOU = 0.5  # another candidate with this much in common shows the same object


@dataclass(frozen=True)
class JudgedAdvice:
    """Thresholds by verdicts; `advised` is `current` where no others are shown to do better.

    `shown_good` and `shown_bad` count the judged polygons that the advised thresholds show,
    `before_good` and `before_bad` those of the current ones. `held_out` is F1 of verdicts with
    thresholds that they had no part in choosing, `at_current` F1 as it is; verdicts of one tile are
    alike and are held out together, as soon as two tiles have some.
    """

    current: Thresholds
    advised: Thresholds
    n_good: int
    n_bad: int
    shown_good: int
    shown_bad: int
    before_good: int
    before_bad: int
    at_current: float
    held_out: float

    @property
    def is_change(self) -> bool:
        """Whether other thresholds are advised."""
        return self.advised != self.current

    def __str__(self) -> str:
        if not self.is_change:
            return (
                f"The thresholds stay: F1 of the {self.n_good + self.n_bad} verdicts is "
                f"{self.at_current:.2f}, and no others are shown to do better."
            )
        return (
            f"{self.shown_good} of {self.n_good} good polygons are shown ({self.before_good} "
            f"before) and {self.shown_bad} of {self.n_bad} bad ones ({self.before_bad} before). "
            f"F1 of verdicts held out is {self.held_out:.2f} ({self.at_current:.2f} before)."
        )


def advise_judged(
    tiles: Iterable[tuple[Candidates, Mapping[int, bool]]], current: Thresholds
) -> JudgedAdvice:
    """Choose the thresholds of the best F1 among what was judged; takes a second.

    Each tile has its candidates and, by their ordinals, whether they were called good. Of equal
    thresholds the nearest to the current ones are taken, and these stay unless the verdicts that
    are held out gain. Raises `ReviewError` unless some are good and some are bad.
    """
    judged = [(candidates, verdicts) for candidates, verdicts in tiles if verdicts]
    good = np.array([is_good for _, verdicts in judged for is_good in verdicts.values()], bool)
    if not good.any() or good.all():
        raise ReviewError(
            f"Advice needs good and bad ones to tell apart: {good.sum()} polygons are called good "
            f"and {(~good).sum()} bad. Call at least one of each; more of both make it worth more."
        )
    points = _points(judged[0][0], current)
    shown = np.concatenate([_shown(c, verdicts, points) for c, verdicts in judged])
    tile = np.repeat(np.arange(len(judged)), [len(verdicts) for _, verdicts in judged])
    held = tile if len(judged) > 1 else np.arange(len(good))
    by_others = np.zeros(len(good), bool)
    for one in np.unique(held):
        mine = held == one
        by_others[mine] = shown[mine, _f1(shown[~mine], good[~mine]).argmax()]
    f1, held_out = _f1(shown, good), float(_f1(by_others[:, None], good)[0])
    # of equal ones the first, which is the nearest
    best = int(f1.argmax()) if held_out > f1[0] else 0
    return JudgedAdvice(
        current=current,
        advised=points[best],
        n_good=int(good.sum()),
        n_bad=int((~good).sum()),
        shown_good=int(shown[good, best].sum()),
        shown_bad=int(shown[~good, best].sum()),
        before_good=int(shown[good, 0].sum()),
        before_bad=int(shown[~good, 0].sum()),
        at_current=float(f1[0]),
        held_out=held_out,
    )


def _points(candidates: Candidates, current: Thresholds) -> list[Thresholds]:
    """The plane's thresholds above the floors, those nearest to the current ones first."""
    rules, here = candidates.rules, (current.pred_iou_thresh, current.stability_score_thresh)
    points = [
        Thresholds(a, b)
        for a in {*THRESHOLD_STEPS, here[0]}
        for b in {*THRESHOLD_STEPS, here[1]}
        if a >= rules.pred_iou_floor and b >= rules.stability_floor
    ]
    return sorted(points, key=lambda t: (
        abs(t.pred_iou_thresh - here[0]) + abs(t.stability_score_thresh - here[1]),
        -t.pred_iou_thresh,
        -t.stability_score_thresh,
    ))  # fmt: skip


def _f1(shown: NDArray[np.bool_], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F1 at each point of `shown` `(n_verdicts, n_points)`; 0 where there is nothing."""
    whole = np.maximum(shown.sum(axis=0) + good.sum(), 1)
    f1: NDArray[np.float64] = 2 * shown[good].sum(axis=0) / whole
    return f1


def _shown(
    candidates: Candidates, verdicts: Mapping[int, bool], points: list[Thresholds]
) -> NDArray[np.bool_]:
    """Whether each judged object is shown at each pair of thresholds, `(n_verdicts, n_points)`."""
    selector = Selector(candidates)
    candidates = selector.candidates
    row_of = {ordinal: row for row, ordinal in enumerate(candidates.column("ordinal").tolist())}
    size = [candidates.rules.height, candidates.rules.width]
    masks = [{"size": size, "counts": counts} for counts in candidates.table["rle"].to_pylist()]
    mine = [masks[row_of[ordinal]] for ordinal in verdicts]
    iou = np.asarray(coco_mask.iou(masks, mine, [0] * len(mine))).reshape(len(masks), len(mine))
    shows = np.where(iou.max(axis=1) >= SAME_IOU, iou.argmax(axis=1), -1)
    shown = np.zeros((len(mine), len(points)), bool)
    known: dict[bytes, NDArray[np.int64]] = {}  # many thresholds let the same candidates pass
    for at, thresholds in enumerate(points):
        passed = passes(candidates, thresholds).tobytes()
        if passed not in known:
            objects = shows[selector.rows(thresholds)]
            known[passed] = objects[objects >= 0]
        shown[known[passed], at] = True
    return shown
