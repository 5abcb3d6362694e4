"""Labels that stay when the rest of a layer is made anew, and which new ones may lie beside them.

Those that a person has touched stay in a refresh, shapes drawn in the tuner in any run, and
reviewed labels where several reviews are joined.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.candidates.offer import (
    ONE_CLASS_PER_PLACE,
    Offer,
    Reason,
    Shared,
    one_label_per_object,
)
from workbench.layer.kept import Kept
from workbench.polygons.clean import only_polygons
from workbench.polygons.overlap import common_area
from workbench.raster.crs import ground_area_m2
from workbench.runs.job import Job

_SCORES = ["confidence", "stability"]


@dataclass(eq=False)
class Staying:
    """The labels that stay; `left_out` counts the new ones that gave way, by the reason."""

    kept: Kept
    left_out: dict[str, int] = field(default_factory=dict)

    def among(self, batches: Iterable[gpd.GeoDataFrame], job: Job) -> Iterator[gpd.GeoDataFrame]:
        """Join the labels that stay with the new labels that duplicate none of them."""
        return self.kept.among(self.beside(batches, job))

    def beside(self, batches: Iterable[gpd.GeoDataFrame], job: Job) -> Iterator[gpd.GeoDataFrame]:
        """Leave out what a person has already judged, and give the rest free ids."""
        now = self.kept.now
        there = now["status"].ne("rejected").to_numpy()
        standing = _Standing(now.geometry.to_numpy()[there], _offer(job))
        # a shape that was edited, deleted or rejected is not offered again, but its place is free
        gone = np.concatenate([now.geometry.to_numpy()[~there], self.kept.before.geometry])
        refused = _Standing(gone, replace(_offer(job), overlaps="all"))
        scores = {
            (label, *own)
            for frame in (now, self.kept.before)
            for label, own in zip(frame["id"], frame[_SCORES].to_numpy(float).tolist(), strict=True)
        }
        for batch in batches:
            new = self._with_free_ids(batch, scores)
            known = len(batch) - len(new)
            shapes = new.geometry.to_numpy()
            free = standing.leaves(shapes) & refused.leaves(shapes)
            new = new[free].reset_index(drop=True)
            if job.planar:
                new = standing.cut_from(new)
            for reason, n in (
                ("already judged", known), ("duplicates of these", np.count_nonzero(~free)),
            ):  # fmt: skip
                self.left_out[reason] = self.left_out.get(reason, 0) + int(n)
            yield new

    def _with_free_ids(
        self, batch: gpd.GeoDataFrame, scores: Collection[tuple[str, float, float]]
    ) -> gpd.GeoDataFrame:
        """Leave out the candidates that were judged; rename those whose id is taken.

        Another model, or other tiles, give other candidates the same ids. `scores` are the ids and
        scores of what stays.
        """
        taken = self.kept.ids
        ids = batch["id"].to_numpy(object).copy()
        judged, own_scores = np.zeros(len(ids), bool), batch[_SCORES].to_numpy(float).tolist()
        for row in np.flatnonzero(batch["id"].isin(taken)):
            for name in chain([ids[row]], (f"{ids[row]}/{n}" for n in count(2))):
                if name not in taken or (name, *own_scores[row]) in scores:
                    judged[row] = name in taken
                    ids[row] = name
                    break
        # also without rows, of which pandas would not know that these are texts
        named = batch.assign(id=pd.Series(ids, batch.index, dtype=batch["id"].dtype))
        return named[~judged].reset_index(drop=True)


def _offer(job: Job) -> Offer:
    """Which new labels may lie beside those that stay: as beside any label, but no duplicates."""
    twice = Offer.duplicate_iou if job.duplicate_iou is None else job.duplicate_iou
    rule = ONE_CLASS_PER_PLACE if job.knows_classes else job.offer
    return replace(rule, duplicate_iou=twice)


class _Standing:
    """Shapes `(k,)` that stay, and what may lie beside them."""

    def __init__(self, shapes: NDArray[np.object_], offer: Offer) -> None:
        self._shapes, self._offer = _sound(shapes), offer
        self._tree = shapely.STRtree(self._shapes)

    def leaves(self, shapes: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Mark the new shapes `(n,)` that may lie beside these."""
        new, old = self._tree.query(shapes, "intersects")
        common = common_area(shapes[new], self._shapes[old])
        area = shapely.area(np.concatenate([self._shapes, shapes]))
        k = len(self._shapes)
        pairs = Shared(old, new + k, common, np.ones(len(new), bool))
        decided = one_label_per_object(pairs, area, np.arange(len(area)), self._offer)
        return np.asarray(decided.reason[k:] == Reason.OFFERED)

    def cut_from(self, layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        """Cut the shapes that stay out of a layer; drop labels of which nothing is left."""
        shapes = layer.geometry.to_numpy().copy()
        new, old = self._tree.query(shapes, "intersects")
        for row in np.unique(new):
            shapes[row] = shapely.difference(
                shapes[row], shapely.union_all(self._shapes[old[new == row]])
            )
        changed = np.unique(new)
        shapes[changed] = only_polygons(shapes[changed])
        area = layer["area_m2"].to_numpy(float).copy()
        area[changed] = ground_area_m2(shapes[changed], layer.crs)
        left = layer.assign(area_m2=area).set_geometry(shapes, crs=layer.crs)
        return left[~shapely.is_empty(shapes)].reset_index(drop=True)


def _sound(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Mend what somebody drew, to compare it; the label itself stays as it is."""
    shapes = np.asarray(shapes, object).copy()
    broken = ~shapely.is_valid(shapes)
    shapes[broken] = only_polygons(shapely.make_valid(shapes[broken], method="structure"))
    return shapes
