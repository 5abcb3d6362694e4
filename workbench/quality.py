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
from dataclasses import dataclass, replace
from itertools import product

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.stats import spearmanr

from workbench.candidates import SCHEMA, Candidates, Selector, Thresholds, passes
from workbench.errors import WorkbenchError
from workbench.polygons import only_polygons

COCO_IOU_THRESHS = tuple(percent / 100 for percent in range(50, 100, 5))
# finer where SAM's scores crowd; the default thresholds and floors of a job are among them
THRESHOLD_STEPS = tuple(p / 100 for p in (30, 40, *range(50, 90, 5), *range(90, 99, 2), 99))


@dataclass(frozen=True)
class Pairs:
    """All pairs of polygons with a common area: row numbers in both layers, and their IoU."""

    predicted: NDArray[np.int64]
    reference: NDArray[np.int64]
    iou: NDArray[np.float64]
    n_predicted: int
    n_reference: int

    def n_matched(self, iou_thresh: float) -> int:
        """Count the one-to-one matches with an IoU of at least `iou_thresh`.

        No other assignment has more of them (Hopcroft–Karp), so neither the order of the rows nor
        ties can change the count.
        """
        enough = self.iou >= iou_thresh
        graph = sparse.csr_matrix(
            (
                np.ones(np.count_nonzero(enough), np.int8),
                (self.predicted[enough], self.reference[enough]),
            ),
            shape=(self.n_predicted, self.n_reference),
        )
        return int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))

    def best_iou(self) -> NDArray[np.float64]:
        """Return `(n_reference,)`: each reference's best IoU with any prediction, else 0."""
        best = np.zeros(self.n_reference)
        np.maximum.at(best, self.reference, self.iou)
        return best

    def true_iou(self) -> NDArray[np.float64]:
        """Return `(n_predicted,)`: each prediction's best IoU with any reference, else 0."""
        best = np.zeros(self.n_predicted)
        np.maximum.at(best, self.predicted, self.iou)
        return best

    def only(self, keep: NDArray[np.bool_], references: NDArray[np.bool_] | None = None) -> Pairs:
        """Leave out the predictions that are false in `keep` `(n_predicted,)`; rows close up.

        So with `references` `(n_reference,)`.
        """
        if references is None:
            references = np.ones(self.n_reference, bool)
        kept = keep[self.predicted] & references[self.reference]
        return Pairs(
            (np.cumsum(keep) - 1)[self.predicted[kept]],
            (np.cumsum(references) - 1)[self.reference[kept]],
            self.iou[kept],
            int(np.count_nonzero(keep)),
            int(np.count_nonzero(references)),
        )


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

    `within` is the labelled area: predictions whose representative point lies outside it are left
    out, since nobody can say whether they are right. Raises `WorkbenchError` where a CRS is
    missing.
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


def match(
    predicted: gpd.GeoDataFrame, reference: gpd.GeoDataFrame, *, at_least: float = 0.0
) -> Pairs:
    """Find the pairs with a common area and an IoU of `at_least`, in the CRS of `predicted`.

    Invalid polygons are mended and rows without any area left out, so row numbers count the rows
    that have one: those of `with_area`. Raises `WorkbenchError` where a CRS is missing.
    """
    _require_crs(predicted, "predicted layer")
    _require_crs(reference, "reference layer")
    ours, _ = _polygonal(predicted.geometry)
    theirs, _ = _polygonal(reference.geometry.to_crs(predicted.crs))
    return pairs_of(ours, theirs, at_least=at_least)


def pairs_of(
    ours: NDArray[np.object_], theirs: NDArray[np.object_], *, at_least: float = 0.0
) -> Pairs:
    """As `match`, of polygons in one CRS that are as `with_area` leaves them."""
    if at_least > 0:
        their_row, our_row = _possible_pairs(ours, theirs, at_least)
    else:
        their_row, our_row = shapely.STRtree(ours).query(theirs, predicate="intersects")
    shared = shapely.area(shapely.intersection(ours[our_row], theirs[their_row]))
    union = shapely.area(ours)[our_row] + shapely.area(theirs)[their_row] - shared
    # touching is not overlapping
    overlap = (shared > 0) & (shared >= at_least * union)
    return Pairs(
        our_row[overlap],
        their_row[overlap],
        shared[overlap] / union[overlap],
        len(ours),
        len(theirs),
    )


def _possible_pairs(
    ours: NDArray[np.object_], theirs: NDArray[np.object_], at_least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (theirs, ours) whose areas and boxes do not rule an IoU out; intersections are slow."""
    their_row, our_row = shapely.STRtree(ours).query(theirs)
    our_box, their_box = shapely.bounds(ours)[our_row], shapely.bounds(theirs)[their_row]
    sides = np.minimum(our_box, their_box)[:, 2:] - np.maximum(our_box, their_box)[:, :2]
    our_area, their_area = shapely.area(ours)[our_row], shapely.area(theirs)[their_row]
    most = np.minimum(sides.clip(0).prod(axis=1), np.minimum(our_area, their_area))
    possible = most >= at_least * (our_area + their_area - most) * (1 - 1e-9)
    return their_row[possible], our_row[possible]


def with_area(layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the rows that have an area, mended, so that `match` numbers them as they stand."""
    geometry, row = _polygonal(layer.geometry)
    return layer.iloc[row].set_geometry(geometry, crs=layer.crs)


def inside(layer: gpd.GeoDataFrame, area: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the rows whose representative point lies in an area, as that of the labels."""
    _require_crs(layer, "predicted layer")
    return layer[layer.geometry.representative_point().within(area_of(area, layer.crs))]


def area_of(within: gpd.GeoDataFrame, crs: CRS) -> shapely.Geometry:
    """Return a labelled area as one geometry in a CRS, mended and without lines and points.

    Raises `WorkbenchError` where its CRS is missing.
    """
    _require_crs(within, "labelled area")
    return shapely.union_all(_polygonal(within.geometry.to_crs(crs))[0])


def of_cores(polygons: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the polygons whose representative point lies in the core of their own tile.

    What two tiles saw alike is kept once, so that polygons of tiles can be counted before, or
    without, merging them at seams. Both layers have `source`, `tile_row` and `tile_col`; the
    geometry of `tiles` is the core, as in a run's ledger.
    """
    keys = ["source", "tile_row", "tile_col"]
    cores = tiles.set_index(keys).geometry.reindex(pd.MultiIndex.from_frame(polygons[keys]))
    middle = polygons.geometry.representative_point().to_numpy()
    return polygons[shapely.intersects(cores.to_numpy(), middle)]


def boxes(layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Replace every object by its box, along the axes of the layer's CRS."""
    return layer.set_geometry(layer.geometry.envelope)


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
    rank[np.argsort(-_scores_of(pairs, scores), kind="stable")] = np.arange(pairs.n_predicted)
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
    part 0 to 1 evenly; scores beyond, which SAM gives at times, count in the first and last, and
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


def about(points: gpd.GeoSeries, reference: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Tell which proposals are about a reference: those whose point lies in one.

    Take the points of the prompts where they are known: they ask what is here, and where an object
    is labelled, that is the answer, whatever was proposed. To choose by the overlap of the proposal
    instead would leave out the failures. Without prompts, take representative points. Raises
    `WorkbenchError` where a CRS is missing.
    """
    _require_crs(points, "predicted layer")
    _require_crs(reference, "reference layer")
    theirs, _ = _polygonal(reference.geometry.to_crs(points.crs))
    found = np.zeros(len(points), bool)
    found[shapely.STRtree(theirs).query(points.to_numpy(), predicate="intersects")[0]] = True
    return found


# ------------------------------------------------------------------------------- thresholds


def threshold_plane(
    candidates: Candidates,
    polygons: gpd.GeoDataFrame,
    reference: gpd.GeoDataFrame,
    *,
    iou_thresh: float = 0.5,
    pred_iou_threshs: Sequence[float] = THRESHOLD_STEPS,
    stability_score_threshs: Sequence[float] = THRESHOLD_STEPS,
) -> pd.DataFrame:
    """Count the matches at each pair of thresholds that the floors of the candidates allow.

    The candidates are those of one scene. `polygons` are those of them that count, as
    `to_polygons` gives them (`tile_row`, `tile_col` and `ordinal` say which they are), cleaned or
    not; the others only take part in the suppression. Tiles are counted side by side, without
    merging at seams: limit the polygons to the cores of their tiles, lest the overlaps count twice.
    Columns: `pred_iou_thresh`, `stability_score_thresh`, `n_predicted`, `n_matched` (one to one),
    `n_reference`, `precision`, `recall`, `f1`.
    """
    polygons = with_area(polygons)
    return plane_of_pairs(
        candidates,
        polygons,
        match(polygons, reference, at_least=iou_thresh),
        iou_thresh=iou_thresh,
        pred_iou_threshs=pred_iou_threshs,
        stability_score_threshs=stability_score_threshs,
    )


def plane_of_pairs(
    candidates: Candidates,
    polygons: gpd.GeoDataFrame,
    pairs: Pairs,
    *,
    iou_thresh: float,
    pred_iou_threshs: Sequence[float],
    stability_score_threshs: Sequence[float],
) -> pd.DataFrame:
    """As `threshold_plane`, of polygons that are matched already; all pairs are at `iou_thresh`."""
    scores = _without_masks(candidates)
    tile_and_ordinal = ("tile_row", "tile_col", "ordinal")
    shape = [int(np.max(scores.column(name), initial=0)) + 1 for name in tile_and_ordinal]
    selector = Selector(scores)
    keys = np.ravel_multi_index(
        [selector.candidates.column(name) for name in tile_and_ordinal], shape
    )
    ours = np.ravel_multi_index([polygons[name] for name in tile_and_ordinal], shape)
    counts: dict[bytes, tuple[int, int]] = {}  # many thresholds let the same candidates pass
    rows = []
    for pred_iou_thresh, stability_score_thresh in product(
        (t for t in pred_iou_threshs if t >= candidates.rules.pred_iou_floor),
        (t for t in stability_score_threshs if t >= candidates.rules.stability_floor),
    ):
        thresholds = Thresholds(pred_iou_thresh, stability_score_thresh)
        passed = passes(scores, thresholds).tobytes()
        if passed not in counts:
            left = pairs.only(np.isin(ours, keys[selector.rows(thresholds)]))
            counts[passed] = left.n_predicted, left.n_matched(iou_thresh)
        rows.append((pred_iou_thresh, stability_score_thresh, *counts[passed]))
    columns = ["pred_iou_thresh", "stability_score_thresh", "n_predicted", "n_matched"]
    plane = pd.DataFrame(rows, columns=columns).assign(n_reference=pairs.n_reference)
    return _with_rates(plane)


def pool_planes(planes: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Add up the counts of several scenes, for the same thresholds."""
    thresholds = ["pred_iou_thresh", "stability_score_thresh"]
    counts = ["n_predicted", "n_matched", "n_reference"]
    return _with_rates(pd.concat(planes).groupby(thresholds, as_index=False)[counts].sum())


def best_thresholds(plane: pd.DataFrame) -> pd.Series:
    """Return the row of the highest F1; of equal ones, that of the highest thresholds."""
    order = ["f1", "pred_iou_thresh", "stability_score_thresh"]
    return plane.sort_values(order, na_position="first").iloc[-1]


def _with_rates(plane: pd.DataFrame) -> pd.DataFrame:
    predicted, matched, reference = (
        plane[name].astype(float) for name in ("n_predicted", "n_matched", "n_reference")
    )
    # 0 / 0 is NaN: without predictions precision is unknown, without references recall
    return plane.assign(
        precision=matched / predicted,
        recall=matched / reference,
        f1=2 * matched / (predicted + reference),
    )


def _without_masks(candidates: Candidates) -> Candidates:
    """Leave out what selection does not look at, and would copy at every pair of thresholds."""
    column = SCHEMA.get_field_index("rle")
    nothing = pa.array([b""] * len(candidates), pa.binary())
    return replace(candidates, table=candidates.table.set_column(column, "rle", nothing))


# ---------------------------------------------------------------------------------- inputs


def _scores_of(pairs: Pairs, scores: ArrayLike) -> NDArray[np.float64]:
    given = np.asarray(scores, float)
    if given.shape != (pairs.n_predicted,):
        raise ValueError(
            f"{given.shape} scores for {pairs.n_predicted} predictions: take the scores of the "
            "rows that were matched, which are those of with_area"
        )
    return given


def _require_crs(layer: gpd.GeoDataFrame, name: str) -> None:
    if layer.crs is None:
        raise WorkbenchError(
            f"the {name} has no CRS, so it cannot be compared: "
            "say which one it is in with layer.set_crs(...)"
        )


def _polygonal(geometry: gpd.GeoSeries) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return the polygons that have an area, mended and without lines and points, and their rows.

    Parts of one row stay together, as one object.
    """
    mended = only_polygons(geometry.to_numpy())
    broken = ~shapely.is_valid(mended)  # a tenth of the time that mending takes
    mended[broken] = shapely.make_valid(mended[broken], method="structure", keep_collapsed=False)
    rows = np.flatnonzero(shapely.area(mended) > 0)
    return mended[rows], rows
