"""How well a layer, its scores and its thresholds agree with reference polygons.

Everything counts from `Pairs`: the IoU of each prediction with each reference that it overlaps. A
reference is one object, however many parts it has, and so is a prediction. References that are
boxes (of tree crowns) are matched with boxes: `match(boxes(layer), boxes(reference))`, where an
IoU of 0.4 is usual.

Where only some objects are labelled, nothing is known of the others: leave out of a layer what
lies outside the labelled area (`inside`), and out of a calibration what is about no labelled
object (`about`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from workbench.evaluation.matching import (
    Pairs,
    match,
)
from workbench.polygons.areas import inside

COCO_IOU_THRESHS = tuple(percent / 100 for percent in range(50, 100, 5))


@dataclass(frozen=True)
class Quality:
    """Agreement of a layer with its reference; `n_matched` is one-to-one, for each threshold.

    Without references, recall and mean best IoU are NaN; without predictions, precision is NaN
    and recall 0; F1 is NaN only if both layers are empty.
    """

    n_predicted: int
    n_reference: int
    iou_threshs: tuple[float, ...]
    n_matched: tuple[int, ...]
    mean_best_iou: float

    def recall(self, iou_thresh: float) -> float:
        """Share of the references that are found."""
        return _ratio(self._matched_at(iou_thresh), self.n_reference)

    def precision(self, iou_thresh: float) -> float:
        """Share of the predictions that are a reference."""
        return _ratio(self._matched_at(iou_thresh), self.n_predicted)

    def f1(self, iou_thresh: float) -> float:
        """Harmonic mean of recall and precision."""
        return _ratio(2 * self._matched_at(iou_thresh), self.n_predicted + self.n_reference)

    def table(self) -> pd.DataFrame:
        """Return recall, precision and F1, one row for each threshold."""
        rows = [(t, self.recall(t), self.precision(t), self.f1(t)) for t in self.iou_threshs]
        return pd.DataFrame(rows, columns=["iou_thresh", "recall", "precision", "f1"])

    def _matched_at(self, iou_thresh: float) -> int:
        return self.n_matched[self.iou_threshs.index(iou_thresh)]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def compare(
    predicted: gpd.GeoDataFrame,
    reference: gpd.GeoDataFrame,
    *,
    iou_threshs: Sequence[float] = (0.5, 0.75),
    within: gpd.GeoDataFrame | None = None,
) -> Quality:
    """Score a layer against reference polygons.

    Args:
        predicted: The layer, in any CRS.
        reference: The true polygons, in any CRS; each row is one object.
        iou_threshs: IoU from which a pair counts as a match; matches are one to one.
        within: The labelled area. Predictions whose representative point is outside are left out,
            because nobody can say whether they are right.

    Returns:
        Counts and ratios for each threshold; `table()` shows them.

    Raises:
        WorkbenchError: A layer has no CRS.

    Example:
        >>> compare(made.layer, gpd.read_file("roofs.gpkg")).f1(0.5)
    """
    if within is not None:
        predicted = inside(predicted, within)
    pairs = match(predicted, reference)
    return Quality(
        n_predicted=pairs.n_predicted,
        n_reference=pairs.n_reference,
        iou_threshs=tuple(iou_threshs),
        n_matched=tuple(pairs.n_matched(thresh) for thresh in iou_threshs),
        mean_best_iou=float(pairs.best_iou().mean()) if pairs.n_reference else float("nan"),
    )


# -------------------------------------------------------------------------------- proposals


def average_recall(
    pairs: Pairs,
    scores: ArrayLike,
    megapixels: float,
    *,
    per_megapixel: Sequence[int] = (100, 300, 1000),
    iou_threshs: Sequence[float] = (0.5, 0.75),
) -> pd.DataFrame:
    """Measure the recall of the best proposals, one row for each number of them per megapixel.

    `scores` is `(n_predicted,)`, usually the column `confidence`; equal scores rank by row, NaN
    comes last. `megapixels` counts the valid and labelled pixels. A reference is found if any
    proposal that is kept reaches the IoU, even one that finds others, too: proposals are judged
    without regard to classes or duplicates, so this is more than the one-to-one recall of
    `compare`. Columns: `per_megapixel`, `n_proposals`, `n_reference`, one `recall_…` for each of
    `iou_threshs`, and `average_recall` over IoU 0.50 to 0.95 in steps of 0.05, as in COCO; NaN
    without references.
    """
    rank = np.empty(pairs.n_predicted, np.int64)
    rank[np.argsort(-scores_of(pairs, scores), kind="stable")] = np.arange(pairs.n_predicted)
    rows = []
    for budget in per_megapixel:
        best = pairs.only(rank < round(budget * megapixels))
        iou = best.best_iou()
        rows.append(
            {
                "per_megapixel": budget,
                "n_proposals": best.n_predicted,
                "n_reference": best.n_reference,
                **{f"recall_{thresh:g}": _found(iou, thresh) for thresh in iou_threshs},
                "average_recall": float(np.mean([_found(iou, t) for t in COCO_IOU_THRESHS])),
            }
        )
    return pd.DataFrame(rows)


def _found(best_iou: NDArray[np.float64], iou_thresh: float) -> float:
    return _ratio(int(np.count_nonzero(best_iou >= iou_thresh)), len(best_iou))


@dataclass(frozen=True, eq=False)
class Calibration:
    """How well scores foretell the true IoU.

    `spearman` is the rank correlation, NaN where one side does not vary. `bins` has a row for each
    range of scores: `score_from`, `score_to`, `n`, `mean_score`, `mean_true_iou` (NaN where `n` is
    0). `mean_gap` is the absolute difference of the two means, averaged over all proposals.
    """

    n: int
    spearman: float
    mean_gap: float
    bins: pd.DataFrame


def calibration(
    scores: ArrayLike, true_iou: NDArray[np.float64], *, n_bins: int = 10
) -> Calibration:
    """Compare scores `(n,)` with `Pairs.true_iou`, both of the proposals that count.

    All of them count where everything is labelled, else those that are `about` a reference. Bins
    divide 0 to 1 evenly; scores beyond, which SAM gives at times, count in the first and last, and
    NaN not at all.
    """
    score = np.asarray(scores, float)
    known = ~np.isnan(score)
    score, true_iou = score[known], true_iou[known]
    at = np.clip((score * n_bins).astype(int), 0, n_bins - 1)
    n = np.bincount(at, minlength=n_bins)
    filled = np.where(n, n, np.nan)
    edges = np.arange(n_bins + 1) / n_bins
    bins = pd.DataFrame(
        {
            "score_from": edges[:-1],
            "score_to": edges[1:],
            "n": n,
            "mean_score": np.bincount(at, score, n_bins) / filled,
            "mean_true_iou": np.bincount(at, true_iou, n_bins) / filled,
        }
    )
    gaps = (bins["mean_score"] - bins["mean_true_iou"]).abs()
    varied = len(np.unique(score)) > 1 and len(np.unique(true_iou)) > 1
    return Calibration(
        n=len(score),
        spearman=float(spearmanr(score, true_iou).statistic) if varied else float("nan"),
        mean_gap=float((gaps * n).sum() / len(score)) if len(score) else float("nan"),
        bins=bins,
    )


# ---------------------------------------------------------------------------------- inputs


def scores_of(pairs: Pairs, scores: ArrayLike) -> NDArray[np.float64]:
    """Return the scores of the predictions that were matched as `(n,)`; refuse another number."""
    given = np.asarray(scores, float)
    if given.shape != (pairs.n_predicted,):
        raise ValueError(
            f"{given.shape} scores for {pairs.n_predicted} predictions: take the scores of the "
            "rows that were matched, which are those of with_area"
        )
    return given
