"""Which candidates of a tile become labels: as SAM selects them, or one class at each place."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray

from workbench.candidates.concepts import concepts_of_ordinals
from workbench.candidates.offer import ONE_CLASS_PER_PLACE, Offer, Offered, Reason, TileMasks
from workbench.candidates.select import Selector, Thresholds, passes
from workbench.learning.choose import select_in_tile


def choose_labels(
    selector: Selector, masks: TileMasks, thresholds: Thresholds, offer: Offer
) -> tuple[NDArray[np.int64], Offered]:
    """The rows that the thresholds select, and which of them are offered as labels.

    Of a model for concepts the thresholds select all that pass, and at each place one class is
    offered, as in `ConceptLabels`.
    """
    if not offer.by_class:
        rows = selector.rows(thresholds)
        return rows, masks.offered(rows, offer)
    found, n = selector.candidates, len(selector.candidates)
    thresholds.refuse_below(found.rules)
    good = passes(found, thresholds)
    whole = good & masks.as_large_as_the_tile(offer)
    masks.compare(np.flatnonzero(good & ~whole))
    score = np.where(good & ~whole, masks.pred_iou, -1.0)
    kept = np.zeros(n, bool)
    at_least = thresholds.pred_iou_thresh
    kept[select_in_tile(masks.candidates, masks.pairs.shared, score, at_least)] = True
    lost = good & ~whole & ~kept
    reason = np.full(n, Reason.OFFERED, np.uint8)
    reason[whole], reason[lost] = Reason.WHOLE_TILE, Reason.OVERLAP
    return np.flatnonzero(good), Offered(reason, _rivals(masks, lost, kept))


def with_class(polygons: gpd.GeoDataFrame, offer: Offer) -> gpd.GeoDataFrame:
    """Give polygons of a model for concepts their class and its score, as in a run."""
    if not offer.by_class:
        return polygons
    class_id = concepts_of_ordinals(polygons["ordinal"].to_numpy())
    return polygons.assign(class_id=class_id, class_score=polygons["confidence"])


def _rivals(
    masks: TileMasks, lost: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For each row `(n,)` that is lost the best kept one at its place, -1 for none."""
    pairs = masks.pairs.shared.conflicting(masks.pairs.area, ONE_CLASS_PER_PLACE)
    row, other = np.append(pairs.i, pairs.j), np.append(pairs.j, pairs.i)
    told = lost[row] & kept[other]
    row, other = row[told], other[told]
    order = np.argsort(masks.pred_iou[other], kind="stable")  # the best is written last
    rival = np.full(len(lost), -1, np.int64)
    rival[row[order]] = other[order]
    return rival
