"""Pairs of predicted and true polygons, each polygon in at most one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from workbench.polygons.areas import lies_in, only_polygonal, require_crs
from workbench.polygons.overlap import iou_of, may_reach, most_common


@dataclass(frozen=True)
class Pairs:
    """All pairs of polygons with a common area: row numbers in both layers, and their IoU."""

    predicted: NDArray[np.int64]
    reference: NDArray[np.int64]
    iou: NDArray[np.float64]
    n_predicted: int
    n_reference: int

    @classmethod
    def join(cls, parts: Sequence[Pairs]) -> Self:
        """Join the pairs of the batches of one layer, at least one, with the same reference."""
        sizes = [part.n_predicted for part in parts]
        before = np.cumsum([0, *sizes])
        return cls(
            np.concatenate([part.predicted + n for part, n in zip(parts, before, strict=False)]),
            np.concatenate([part.reference for part in parts]),
            np.concatenate([part.iou for part in parts]),
            sum(sizes),
            parts[0].n_reference,
        )

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


def match(
    predicted: gpd.GeoDataFrame, reference: gpd.GeoDataFrame, *, at_least: float = 0.0
) -> Pairs:
    """Find the pairs with a common area and an IoU of `at_least`, in the CRS of `predicted`.

    Invalid polygons are mended and rows without any area left out, so row numbers count the rows
    that have one: those of `with_area`. Raises `WorkbenchError` where a CRS is missing.
    """
    require_crs(predicted, "predicted layer")
    require_crs(reference, "reference layer")
    ours, _ = only_polygonal(predicted.geometry)
    theirs, _ = only_polygonal(reference.geometry.to_crs(predicted.crs))
    return pairs_of(ours, theirs, at_least=at_least)


def pairs_of(
    ours: NDArray[np.object_], theirs: NDArray[np.object_], *, at_least: float = 0.0
) -> Pairs:
    """As `match`, of polygons in one CRS that are as `with_area` leaves them."""
    if at_least > 0:
        their_row, our_row = _possible_pairs(ours, theirs, at_least)
    else:
        their_row, our_row = shapely.STRtree(ours).query(theirs, predicate="intersects")
    found = iou_of(ours[our_row], theirs[their_row])
    # touching is not overlapping
    overlap = (found > 0) & (found >= at_least)
    return Pairs(
        our_row[overlap],
        their_row[overlap],
        found[overlap],
        len(ours),
        len(theirs),
    )


def _possible_pairs(
    ours: NDArray[np.object_], theirs: NDArray[np.object_], at_least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (theirs, ours) whose areas and boxes do not rule an IoU out; intersections are slow."""
    their_row, our_row = shapely.STRtree(ours).query(theirs)
    our_box, their_box = shapely.bounds(ours)[our_row], shapely.bounds(theirs)[their_row]
    our_area, their_area = shapely.area(ours)[our_row], shapely.area(theirs)[their_row]
    most = most_common(our_box, their_box, our_area, their_area)
    possible = may_reach(at_least, most, our_area, their_area)
    return their_row[possible], our_row[possible]


def of_cores(polygons: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the polygons whose representative point lies in the core of their own tile.

    What two tiles saw alike is kept once, so that polygons of tiles can be counted before, or
    without, merging them at seams. Both layers have `source`, `tile_row` and `tile_col`; the
    geometry of `tiles` is the core, as in a run's ledger.
    """
    keys = ["source", "tile_row", "tile_col"]
    cores = tiles.set_index(keys).geometry.reindex(pd.MultiIndex.from_frame(polygons[keys]))
    return polygons[lies_in(polygons.geometry.to_numpy(), cores.to_numpy())]


def boxes(layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Replace every object by its box, along the axes of the layer's CRS."""
    return layer.set_geometry(layer.geometry.envelope)


def about(points: gpd.GeoSeries, reference: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Tell which proposals are about a reference: those whose point lies in one.

    Take the points of the prompts where they are known: they ask what is here, and where an object
    is labelled, that is the answer, whatever was proposed. To choose by the overlap of the proposal
    instead would leave out the failures. Without prompts, take representative points. Raises
    `WorkbenchError` where a CRS is missing.
    """
    require_crs(points, "predicted layer")
    require_crs(reference, "reference layer")
    theirs, _ = only_polygonal(reference.geometry.to_crs(points.crs))
    found = np.zeros(len(points), bool)
    found[shapely.STRtree(theirs).query(points.to_numpy(), predicate="intersects")[0]] = True
    return found
