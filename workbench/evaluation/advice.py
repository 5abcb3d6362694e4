"""Thresholds recommended from the labels of a few tiles, and how sure that is.

The stored candidates of the labelled tiles are counted at every pair of thresholds, tile by tile.
Tiles are what is resampled and held out: objects of one tile are alike, so to count them as
independent would make a handful of labels look like much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.candidates.select import Thresholds
from workbench.errors import ReviewError
from workbench.evaluation.thresholds import pool_planes

AXES = ["pred_iou_thresh", "stability_score_thresh"]
_RESAMPLES = 1000
_FOLDS = 10  # at most; with fewer tiles each is held out alone
_SURE = 0.9  # of the resamples


@dataclass(frozen=True)
class Rate:
    """F1 and the interval that holds 90 % of the resamples of tiles."""

    f1: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.f1:.2f} ({self.low:.2f} – {self.high:.2f})"


@dataclass(frozen=True, eq=False)
class Advice:
    """The thresholds recommended from the labels.

    `plane` has a row for each pair of thresholds: the counts and rates of `threshold_plane` over
    all labelled tiles, and `as_good`, whether the labels cannot tell it from the best. `at_current`
    is F1 at the current thresholds, `held_out` that of tiles which had no part in choosing theirs,
    the rate to expect on other tiles; `gain` is the difference of the two. `is_change` is false
    where the labels show no gain, and `advised` then is `current`.
    """

    current: Thresholds
    advised: Thresholds
    plane: pd.DataFrame
    n_tiles: int
    n_reference: int
    at_current: Rate
    held_out: Rate
    gain: Rate

    @property
    def is_change(self) -> bool:
        """Whether other thresholds are advised."""
        return self.advised != self.current

    def __str__(self) -> str:
        a, c = self.advised, self.current
        where = (
            f"pred_iou_thresh {a.pred_iou_thresh:g}, stability_score_thresh "
            f"{a.stability_score_thresh:g}"
        )
        if not self.is_change:
            return f"Keep {where} · F1 {self.at_current}; no other thresholds do better"
        return (
            f"Advised: {where} · F1 on tiles held out {self.held_out}, "
            f"now {self.at_current} at {c.pred_iou_thresh:g}, {c.stability_score_thresh:g}"
        )

    def at(self, thresholds: Thresholds) -> pd.Series:
        """Return the row of the plane that is nearest to some thresholds."""
        far = (self.plane["pred_iou_thresh"] - thresholds.pred_iou_thresh) ** 2
        far += (self.plane["stability_score_thresh"] - thresholds.stability_score_thresh) ** 2
        return self.plane.iloc[int(far.to_numpy().argmin())]


# ---------------------------------------------------------------------------------- advising


@dataclass(frozen=True, eq=False)
class _Counts:
    """Counts of tiles `(t, p)` at points of the plane."""

    predicted: NDArray[np.float64]
    matched: NDArray[np.float64]
    reference: NDArray[np.float64]

    def of(self, tiles: NDArray[np.int64], points: NDArray[np.int64]) -> _Counts:
        """Take one point of each tile, `(t, 1)`."""
        chosen = (of[tiles, points][:, None] for of in
                  (self.predicted, self.matched, self.reference))  # fmt: skip
        return _Counts(*chosen)

    def f1(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """F1 at each point, `(n, p)`, of weighted tiles `(n, t)`; 0 where there is nothing."""
        matched = weights @ self.matched
        whole = weights @ (self.predicted + self.reference)
        return np.divide(2 * matched, whole, out=np.zeros_like(whole), where=whole > 0)


def advise(planes: Sequence[pd.DataFrame], current: Thresholds, *, seed: int = 0) -> Advice:
    """Choose thresholds by what `tile_planes` has counted; takes milliseconds.

    Raises `ReviewError` if there are fewer than two tiles or no references.
    """
    n_reference = sum(int(plane["n_reference"].iloc[0]) for plane in planes if len(plane))
    if len(planes) < 2 or not n_reference:
        raise ReviewError(
            f"advice needs labels in at least two tiles, to hold one out: there are {n_reference} "
            f"labels in {len(planes)} tiles. Review more tiles fully, or run with a smaller "
            "tile_size."
        )
    points = planes[0][AXES]
    columns = ("n_predicted", "n_matched", "n_reference")
    counts = _Counts(*(np.stack([p[name].to_numpy(float) for p in planes]) for name in columns))
    n = len(planes)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(float)
    pooled = pool_planes(list(planes))
    f1 = counts.f1(np.ones((1, n)))
    resampled = counts.f1(draws)
    chosen = _choose(f1)[0]

    # held out: what the others choose, counted in the tile that had no say
    folds = rng.permutation(n) % min(n, _FOLDS)
    others = np.array([(folds != fold).astype(float) for fold in range(folds.max() + 1)])
    picks = _choose(counts.f1(others))[folds]
    held = counts.of(np.arange(n), picks)
    here = int((points - [current.pred_iou_thresh, current.stability_score_thresh])
               .abs().sum(axis=1).to_numpy().argmin())  # fmt: skip
    held_out = held.f1(np.vstack([np.ones(n), draws]))[:, 0]
    at_current = np.concatenate([f1[:, here], resampled[:, here]])
    gain = held_out - at_current
    advised = current
    if gain[0] > 0:
        advised = Thresholds(*points.iloc[chosen].tolist())
    behind = resampled - resampled[:, [chosen]]
    pooled["as_good"] = np.quantile(behind, _SURE, axis=0) >= 0
    return Advice(
        current, advised, pooled, n, n_reference,
        _rate(at_current), _rate(held_out), _rate(gain),
    )  # fmt: skip


def _rate(values: NDArray[np.float64]) -> Rate:
    low, high = np.quantile(values[1:], [0.05, 0.95])
    return Rate(float(values[0]), float(low), float(high))


def _choose(f1: NDArray[np.float64]) -> NDArray[np.int64]:
    """Point of the best F1 `(n, p)`; of equal ones that of the highest thresholds.

    To smooth the plane first, or to average over resamples, was tried and chooses no better
    ones.
    """
    return f1.shape[1] - 1 - f1[:, ::-1].argmax(axis=1)
