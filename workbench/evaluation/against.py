"""How good a layer is against its reference, in a few lines for a report."""

from __future__ import annotations

import geopandas as gpd
import numpy as np

from workbench._support.text import duration
from workbench.evaluation.cost import cost_of_pairs
from workbench.evaluation.matching import Pairs, pairs_of
from workbench.polygons.areas import only_polygonal


class AgainstReference:
    """Compares a layer with its reference; `add` takes the batches of the layer.

    Both are in one CRS and cover the same area. Memory holds the reference and the pairs.
    """

    def __init__(self, reference: gpd.GeoDataFrame) -> None:
        self._reference, _ = only_polygonal(reference.geometry)
        nothing = np.empty(0, np.int64)
        self._found = [Pairs(nothing, nothing, np.empty(0), 0, len(self._reference))]

    def add(self, batch: gpd.GeoDataFrame) -> None:
        """Compare the polygons of a batch."""
        self._found.append(pairs_of(only_polygonal(batch.geometry)[0], self._reference))

    def rows(self) -> dict[str, str]:
        """Return recall, precision and the cost of review as rows of a report's table."""
        return _rows(Pairs.join(self._found))


def _rows(pairs: Pairs) -> dict[str, str]:
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
