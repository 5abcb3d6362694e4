"""How good a layer is against its reference, in a few lines for a report."""

from __future__ import annotations

import geopandas as gpd

from workbench._support.text import duration
from workbench.evaluation.cost import cost_of_pairs
from workbench.evaluation.matching import match


def against_reference(layer: gpd.GeoDataFrame, reference: gpd.GeoDataFrame) -> dict[str, str]:
    """Return recall, precision and the cost of review as rows of a report's table.

    Both layers cover the same area. Raises `WorkbenchError` where a CRS is missing.
    """
    pairs = match(layer, reference)
    cost = cost_of_pairs(pairs)
    rows = {"labels": f"{pairs.n_predicted:,}", "reference objects": f"{pairs.n_reference:,}"}
    for iou_thresh in (0.5, 0.75):
        matched = pairs.n_matched(iou_thresh)
        rows[f"objects found (recall at IoU {iou_thresh:g})"] = _share(matched, pairs.n_reference)
        rows[f"labels that fit (precision at IoU {iou_thresh:g})"] = _share(
            matched, pairs.n_predicted
        )
    if pairs.n_reference:
        rows["estimated time of review"] = (
            f"{duration(cost.seconds)}, {cost.ratio:.2f} times that of drawing everything by hand "
            f"({cost.n_looked_at:,} to look at, {cost.n_mended:,} to mend, {cost.n_drawn:,} to "
            "draw)"
        )
    return rows


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%} ({part:,} of {whole:,})" if whole else "–"
