"""How well a layer agrees with reference polygons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from workbench.errors import WorkbenchError


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
        predicted = _inside(predicted, within)
    pairs = match(predicted, reference)
    return Quality(
        n_predicted=pairs.n_predicted,
        n_reference=pairs.n_reference,
        iou_threshs=tuple(iou_threshs),
        n_matched=tuple(pairs.n_matched(thresh) for thresh in iou_threshs),
        mean_best_iou=float(pairs.best_iou().mean()) if pairs.n_reference else float("nan"),
    )


def match(predicted: gpd.GeoDataFrame, reference: gpd.GeoDataFrame) -> Pairs:
    """Find the pairs with a common area, in the CRS of `predicted`.

    Invalid polygons are mended and rows without any area left out, so row numbers count the rows
    that have one. Raises `WorkbenchError` where a CRS is missing.
    """
    _require_crs(predicted, "predicted layer")
    _require_crs(reference, "reference layer")
    ours = _polygonal(predicted.geometry)
    theirs = _polygonal(reference.geometry.to_crs(predicted.crs))
    their_row, our_row = shapely.STRtree(ours).query(theirs, predicate="intersects")
    shared = shapely.area(shapely.intersection(ours[our_row], theirs[their_row]))
    union = shapely.area(ours)[our_row] + shapely.area(theirs)[their_row] - shared
    overlap = shared > 0  # touching is not overlapping
    return Pairs(
        our_row[overlap],
        their_row[overlap],
        shared[overlap] / union[overlap],
        len(ours),
        len(theirs),
    )


def _inside(predicted: gpd.GeoDataFrame, within: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    _require_crs(predicted, "predicted layer")
    _require_crs(within, "labelled area")
    area = within.geometry.to_crs(predicted.crs).make_valid(method="structure").union_all()
    return predicted[predicted.geometry.representative_point().within(area)]


def _require_crs(layer: gpd.GeoDataFrame, name: str) -> None:
    if layer.crs is None:
        raise WorkbenchError(
            f"the {name} has no CRS, so it cannot be compared: "
            "say which one it is in with layer.set_crs(...)"
        )


def _polygonal(geometry: gpd.GeoSeries) -> NDArray[np.object_]:
    """Return the rows that have an area, mended and without the lines and points in them."""
    parts, row = shapely.get_parts(geometry.to_numpy(), return_index=True)
    parts, within_parts = shapely.get_parts(parts, return_index=True)  # collections of multis
    row = row[within_parts]
    flat = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    if not flat.any():
        return np.empty(0, object)
    _, row = np.unique(row[flat], return_inverse=True)
    polygons = shapely.multipolygons(parts[flat], indices=row)
    mended = shapely.make_valid(polygons, method="structure", keep_collapsed=False)
    return mended[shapely.area(mended) > 0]
