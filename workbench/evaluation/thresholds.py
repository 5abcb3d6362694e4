"""Quality at every pair of thresholds, from one matching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from workbench.candidates.select import Selector, Thresholds, passes
from workbench.candidates.table import SCHEMA, Candidates
from workbench.evaluation.matching import (
    Pairs,
    match,
)
from workbench.polygons.areas import with_area

# finer where SAM's scores crowd; the default thresholds and floors of a job are among them
THRESHOLD_STEPS = tuple(p / 100 for p in (30, 40, *range(50, 90, 5), *range(90, 99, 2), 99))


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
    labels_of: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lambda selected: selected,
) -> pd.DataFrame:
    """As `threshold_plane`, of polygons that are matched already; all pairs are at `iou_thresh`.

    `labels_of` tells which of the selected rows become labels, counted by tile and ordinal.
    """
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
            left = pairs.only(np.isin(ours, keys[labels_of(selector.rows(thresholds))]))
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
