"""Why a candidate is not shown, in words."""

from __future__ import annotations

from dataclasses import replace

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray

from workbench.candidates.offer import Offer, Offered, Reason, TileMasks
from workbench.candidates.select import Thresholds
from workbench.polygons.clean import Cleaning, clean


def why_below(scores: NDArray[np.float32], thresholds: Thresholds) -> str:
    """Name the thresholds that the two scores of a candidate, `(2,)`, fail to reach."""
    failing = []
    if not scores[0] > np.float32(thresholds.pred_iou_thresh):
        failing.append(f"predicted IoU {scores[0]:.3f} is not above {thresholds.pred_iou_thresh:g}")
    if not scores[1] >= np.float32(thresholds.stability_score_thresh):
        failing.append(f"stability {scores[1]:.3f} is below {thresholds.stability_score_thresh:g}")
    return " and ".join(failing)


def why_cleaned(polygon: gpd.GeoDataFrame, cleaning: Cleaning) -> str:
    """Name the step of cleaning that removes a polygon, trying them in the order of `clean`."""
    if not len(polygon):
        return "its mask has no valid pixel"
    so_far = Cleaning(min_area_px=0, simplify_m=0, fill_holes_m2=cleaning.fill_holes_m2)
    for name, text in (
        ("min_area_px", "all its parts are smaller than min_area_px ({limit} px)"),
        ("min_area_m2", "{area_m2:.1f} m² is below min_area_m2 ({limit})"),
        ("max_area_m2", "{area_m2:.1f} m² is above max_area_m2 ({limit})"),
        ("min_solidity", "its solidity is below min_solidity ({limit})"),
    ):
        area_m2 = float(clean(polygon, so_far)["area_m2"].iloc[0])
        limit = getattr(cleaning, name)
        so_far = replace(so_far, **{name: limit})
        if not len(clean(polygon, so_far)):
            return text.format(limit=limit, area_m2=area_m2)
    return "polygons on top of it leave too little of it"


def why_not_offered(masks: TileMasks, offered: Offered, row: int, offer: Offer) -> tuple[str, int]:
    """Name the rule that drops a row, and the row that is kept instead, -1 for none."""
    reason, rival = offered.reason[row], int(offered.rival[row])
    if reason == Reason.WHOLE_TILE:
        share = masks.share[row]
        if offer.max_area_share is not None and share > offer.max_area_share:
            limit = f"max_area_share ({offer.max_area_share:g})"
            return f"it covers {share:.0%} of its tile, more than {limit}", -1
        return "it touches three or four edges of the scene", -1
    score = f"predicted IoU {masks.pred_iou[rival]:.3f}"
    if offer.by_class:
        return "other objects at its place score more", rival
    if reason == Reason.DUPLICATE:
        limit = f"duplicate_iou ({offer.duplicate_iou:g})"
        return f"it repeats a better one ({score}): their mask IoU is above {limit}", rival
    return f"it lies on a better one ({score}), but overlaps is `{offer.overlaps}`", rival
