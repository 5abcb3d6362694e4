"""What a review changed: the labels that came back, compared with those that the run wrote."""

from __future__ import annotations

from typing import Literal, get_args

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.layer.schema import DRAWN
from workbench.polygons.overlap import iou_of

Change = Literal["unreviewed", "accepted", "edited", "rejected", "deleted", "added"]
CHANGES: tuple[Change, ...] = get_args(Change)


def changes(labels: gpd.GeoDataFrame, prelabels: gpd.GeoDataFrame) -> pd.DataFrame:
    """List what the review made of each pre-label, and what it added: one row for each of them.

    `labels` is the layer as it came back, `prelabels` as the run wrote it; its shapes that a person
    has drawn in the tuner count as added. Rows are in the order of `labels`, deleted ones last.
    Columns:

    - `id`, and `row` in `labels` (-1: deleted)
    - `change`
    - `confidence` as the run gave it (NaN: added)
    - `class_id` as it is now; of deleted labels, as it was
    - `reclassified` and `reshaped`
    - `iou` of the shapes before and after: 1 if unchanged, NaN if added or deleted

    A label with another shape is `edited`, whatever its status says, unless it is rejected. Another
    class alone says nothing: somebody may have set it for many labels at once. If several labels
    have one id, because one was split, the largest counts as the pre-label and the others as added.
    """
    prelabels = prelabels[~prelabels["id"].str.startswith(DRAWN)]  # by hand, in the tuner
    shape = labels.geometry.to_numpy()
    first = is_first_of_id(labels)
    before_row = pd.Index(prelabels["id"]).get_indexer(labels["id"])
    known = first & (before_row >= 0)
    before = prelabels.iloc[before_row[known]].reset_index(drop=True)
    old_shape = before.geometry.to_numpy()

    iou = np.full(len(labels), np.nan)
    iou[known] = 1.0
    moved = np.flatnonzero(known)[~same_shapes(shape[known], old_shape)]
    old_row = before_row[moved]
    iou[moved] = iou_of_pairs(shape[moved], prelabels.geometry.to_numpy()[old_row])
    reshaped = np.zeros(len(labels), bool)
    reshaped[moved] = True
    reclassified = np.zeros(len(labels), bool)
    old_class = before["class_id"].to_numpy()
    new_class = labels["class_id"].to_numpy()[known]
    reclassified[known] = (old_class != new_class) & ~pd.isna(old_class)

    change = labels["status"].to_numpy(object).copy()
    change[reshaped & (change != "rejected")] = "edited"
    change[~known] = "added"
    # a drawn polygon that was then rejected does not count
    there = known | (labels["status"] != "rejected").to_numpy()
    confidence = np.full(len(labels), np.nan)
    confidence[known] = before["confidence"]
    now = pd.DataFrame(
        {
            "id": labels["id"].to_numpy(),
            "row": np.arange(len(labels)),
            "change": change,
            "confidence": confidence,
            "class_id": labels["class_id"].to_numpy(),
            "reclassified": reclassified,
            "reshaped": reshaped,
            "iou": iou,
        }
    )[there]
    gone = prelabels[~prelabels["id"].isin(labels["id"])]
    deleted = pd.DataFrame(
        {
            "id": gone["id"].to_numpy(),
            "row": -1,
            "change": "deleted",
            "confidence": gone["confidence"].to_numpy(),
            "class_id": gone["class_id"].to_numpy(),
            "reclassified": False,
            "reshaped": False,
            "iou": np.nan,
        }
    )
    both = pd.concat([frame for frame in (now, deleted) if len(frame)] or [now])
    return both.reset_index(drop=True)


def is_first_of_id(labels: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Mark the largest label `(n,)` of each id: a label that was split has its id twice."""
    order = np.argsort(-shapely.area(labels.geometry.to_numpy()), kind="stable")
    first = np.zeros(len(labels), bool)
    first[order[~labels["id"].iloc[order].duplicated()]] = True
    return first


def same_shapes(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Compare what shapes cover: saving in QGIS may turn a ring or add a vertex on an edge."""
    same = shapely.equals_identical(one, other)
    rest = np.flatnonzero(~same)
    same[rest] = shapely.equals(shapely.make_valid(one[rest]), other[rest])
    return same


def iou_of_pairs(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.float64]:
    """IoU of polygons, row by row, mended where they are invalid; 0 where both are empty."""
    one, other = (shapely.make_valid(shapes, method="structure") for shapes in (one, other))
    return iou_of(one, other)
