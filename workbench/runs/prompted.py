"""Labels of objects that were already known: the new shape of each, or else its old one.

The answers of the model are stored as candidates, so other thresholds do not need it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench._support.files import atomic_path
from workbench.candidates.offer import (
    ONE_CLASS_PER_PLACE,
    Offer,
    Reason,
    Shared,
    one_label_per_object,
)
from workbench.candidates.store import TileRecord
from workbench.layer.schema import ANSWER, as_layer, further_columns
from workbench.polygons.areas import only_polygonal
from workbench.polygons.clean import Cleaning, clean
from workbench.polygons.overlap import common_area, iou_of, may_conflict
from workbench.polygons.regularize import regularized
from workbench.raster.crs import ground_area_m2, ground_scale
from workbench.raster.scene import raster_of
from workbench.raster.tiles import tile_name
from workbench.runs.plan import Plan
from workbench.runs.prompt_answers import answers, frame_of
from workbench.runs.prompt_windows import AskedPrompts, TileIndex

SAME = 0.9  # from this IoU on a new shape only follows the pixels, and nothing has changed
LEDGER = "prompts.parquet"
# the outcome for a feature
NEW, KEPT, NONE = "new", "kept", "none"


@dataclass(frozen=True, eq=False)
class PromptLabels:
    """The labels of the prompts, and a row for each feature of the file.

    `layer` has the columns of a layer, then those of `ANSWER`, then the attributes of the file.
    `ledger` has the old shapes; `outcome` is `new`, `kept` (the old shape) or `none` (no label),
    and `why` says why it is not `new`.
    """

    layer: gpd.GeoDataFrame
    ledger: gpd.GeoDataFrame

    @property
    def more(self) -> list[str]:
        """The columns that prompts add to the layer."""
        return further_columns(self.layer)

    def among(
        self, batches: Iterable[gpd.GeoDataFrame], offer: Offer
    ) -> Iterator[gpd.GeoDataFrame]:
        """Add them to the labels of the grid, which give way to them, source by source."""
        waiting = self.layer
        shapes = self.layer.geometry.to_numpy()
        tree = shapely.STRtree(shapes)
        for batch in batches:
            left = batch[_beside(batch.geometry.to_numpy(), shapes, tree, offer)]
            now = waiting["source"].isin(batch["source"].unique())
            yield self._joined(left, waiting[now])
            waiting = waiting[~now]
        yield self._joined(self.layer[:0], waiting)

    def _joined(self, grid: gpd.GeoDataFrame, ours: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        """Labels of both kinds, those of the grid with empty columns of the prompts."""
        empty = self.layer[:0][self.more].reindex(range(len(grid)))
        grid = grid.reset_index(drop=True)
        missing = [name for name in self.more if name not in grid]
        grid = as_layer(grid.assign(**{name: empty[name] for name in missing}), self.more)
        if not len(ours):
            return grid
        if not len(grid):
            return ours.reset_index(drop=True)
        both = pd.concat([grid, ours], ignore_index=True)
        both = both.sort_values("source", kind="stable", ignore_index=True)
        return as_layer(both.astype(ours.dtypes[self.more].to_dict()), self.more)

    def table(self) -> dict[str, str]:
        """What the report says about them: quantities by name."""
        outcome, changed = self.ledger["outcome"], self.layer["changed"]
        lines = {
            "features in the file": f"{len(self.ledger):,}",
            "with a new shape": f"{(outcome == NEW).sum():,}",
        }
        if changed.notna().any():
            lines[f"of these changed (IoU below {SAME:g})"] = f"{changed.sum():,}"
            lines["moved, median"] = f"{self.layer['moved_m'].median():.2g} m"
        lines["with their old shape"] = f"{(outcome == KEPT).sum():,}"
        lines["without a label"] = f"{(outcome == NONE).sum():,}"
        why = self.ledger["why"].str.partition(":")[0]
        for reason, count in why[why != ""].value_counts().items():
            lines[f"because: {reason}"] = f"{count:,}"
        return lines


def prompted(plan: Plan) -> PromptLabels | None:
    """Make the labels of a run's prompts from the stored answers; None without prompts."""
    if plan.asked is None:
        return None
    asked, prompts = plan.asked, plan.asked.prompts
    frame, old = prompts.frame, prompts.shapes
    home = np.full(len(frame), "", object)
    for window in asked.windows.values():
        home[window.features] = tile_name(*window.home)
    why = prompts.why_not.copy()
    found = _finished(answers(plan, asked, why), plan)
    twice = _doubles(found, old, plan.job.duplicate_iou)
    fid = frame.index.to_numpy()
    why[found["row"].to_numpy()[twice >= 0]] = [
        f"same mask as another feature: fid {fid[row]}" for row in twice[twice >= 0].tolist()
    ]
    found = found[twice < 0]
    rows = found["row"].to_numpy()
    solid = shapely.get_dimensions(old) == 2
    has_new = np.zeros(len(frame), bool)
    has_new[rows] = True
    has_old = (prompts.why_not == "") & ~has_new & solid
    kept = _old(prompts.frame, np.flatnonzero(has_old), home, plan)
    both = pd.concat([found, kept], ignore_index=True).sort_values("row", ignore_index=True)
    layer = _layer(both, asked, home, plan)
    outcome = np.select([has_new, has_old], [NEW, KEPT], NONE)
    ledger = gpd.GeoDataFrame(
        {"outcome": outcome, "why": np.where(has_new, "", why), "tile": home},
        geometry=old,
        crs=frame.crs,
        index=frame.index.rename("fid"),
    )
    return PromptLabels(layer, ledger)


def more_of(prompted: PromptLabels | None) -> list[str]:
    """The columns that prompts add to the layer; none without prompts."""
    return [] if prompted is None else prompted.more


def write_ledger(prompted: PromptLabels | None, folder: Path) -> None:
    """Write the ledger of the prompts into the run folder, or remove that of an earlier job."""
    if prompted is None:
        (folder / LEDGER).unlink(missing_ok=True)
        return
    with atomic_path(folder / LEDGER) as path:
        prompted.ledger.to_parquet(path)


def tile_records(plan: Plan) -> dict[TileIndex, TileRecord]:
    """The record of each wanted tile, including the windows around its prompts."""
    known = plan.store.ledger()
    records = {part.index(tile): known[part.index(tile)][0]
               for part in plan.by_grid for tile in part.tiles}  # fmt: skip
    if plan.asked is not None:
        for index, window in plan.asked.windows.items():
            one = replace(known[index][0], source=window.home[0],
                          tile_row=window.home[1], tile_col=window.home[2])  # fmt: skip
            records[window.home] = _together(records.get(window.home), one)
    return records


def _together(before: TileRecord | None, now: TileRecord) -> TileRecord:
    if before is None:
        return now
    # the first of these that either of them has
    status = next(
        s for s in ("failed", "ok", "empty", "nodata") if s in (before.status, now.status)
    )
    return replace(
        before,
        status=status,
        error=before.error or now.error,
        n_candidates=before.n_candidates + now.n_candidates,
        seconds=round(before.seconds + now.seconds, 3),
    )


def _finished(answers: gpd.GeoDataFrame, plan: Plan) -> gpd.GeoDataFrame:
    """Fill, simplify and square them, without limits of size: these objects are known to exist."""
    job = plan.job
    cleaning = Cleaning(0, fill_holes_m2=job.fill_holes_m2, simplify_m=job.simplify_m)
    made = clean(answers, cleaning)
    if job.regularize is not None and len(made):
        made = regularized(made.assign(class_id=_class_of(made["row"], plan)), job.regularize)
    return made.drop(columns="class_id", errors="ignore")


def _doubles(
    answers: gpd.GeoDataFrame, old: NDArray[np.object_], duplicate_iou: float | None
) -> NDArray[np.int64]:
    """The feature `(n,)` that has the same mask and is closer to it; -1 for none."""
    shapes, rows = answers.geometry.to_numpy(), answers["row"].to_numpy()
    offer = Offer(None, duplicate_iou, "all")
    i, j = shapely.STRtree(shapes).query(shapes)
    i, j = i[i < j], j[i < j]
    bounds, area = shapely.bounds(shapes), shapely.area(shapes)
    near = may_conflict(bounds[i], bounds[j], area[i], area[j], offer)
    i, j = i[near], j[near]
    shared = Shared(i, j, common_area(shapes[i], shapes[j]), np.zeros(len(i), bool))
    # points are equally close
    order = np.lexsort((rows, -answers["confidence"], -iou_of(shapes, old[rows])))
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(len(rows))
    rival = one_label_per_object(shared, area, rank, offer).rival
    return np.where(rival >= 0, rows[rival], -1)


def _old(
    frame: gpd.GeoDataFrame, rows: NDArray[np.intp], home: NDArray[np.object_], plan: Plan
) -> gpd.GeoDataFrame:
    """Features that keep their shapes."""
    shapes, there = only_polygonal(frame.geometry.iloc[rows])
    rows = rows[there]
    made = frame_of(plan, rows, shapes)
    transforms = {part.scene.name: part.scene.transform for part in plan.area.finest}
    pixel = {name: abs(grid.a * grid.e) for name, grid in transforms.items()}  # map units²
    area_px = shapely.area(shapes) / np.array([pixel[raster_of(tile)] for tile in home[rows]])
    return made.assign(
        area_px=np.rint(area_px).astype(np.int64), area_m2=ground_area_m2(shapes, plan.crs)
    )


def _class_of(rows: pd.Series, plan: Plan) -> pd.Series:
    """The class of features: their own, or the job's."""
    assert plan.asked is not None
    default = plan.job.default_class
    own = plan.asked.prompts.class_id
    if own is None:
        return pd.Series(pd.array([default] * len(rows), dtype="Int64"), rows.index)
    of_rows = pd.Series(own.iloc[rows.to_numpy()].to_numpy(), rows.index, dtype="Int64")
    return of_rows if default is None else of_rows.fillna(default)


def _layer(
    labels: gpd.GeoDataFrame, asked: AskedPrompts, home: NDArray[np.object_], plan: Plan
) -> gpd.GeoDataFrame:
    """The labels with the columns of a layer, of `ANSWER` and of the file."""
    prompts = asked.prompts
    rows = labels["row"].to_numpy(np.int64)
    fid = pd.Series(prompts.frame.index[rows])
    tile = pd.Series(home[rows], dtype=object)
    answered = labels["confidence"].notna().to_numpy()
    old, new = prompts.shapes[rows], labels.geometry.to_numpy()
    compared = answered & (shapely.get_dimensions(old) == 2)
    ious, moved = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    ious[compared] = iou_of(new[compared], old[compared])
    moved[compared] = _metres_between(old[compared], new[compared], plan)
    changed = pd.array(np.where(compared, ious < SAME, False), dtype="boolean")
    changed[~compared] = pd.NA
    is_number = pd.api.types.is_integer_dtype(fid)
    answer = {
        "prompt_fid": fid.astype("Int64") if is_number else fid.astype(str),
        "prompt_iou": ious,
        "moved_m": moved,
        "changed": changed,
    }
    attributes = prompts.attributes().iloc[rows].reset_index(drop=True)
    full = labels.assign(
        id=tile + "/p" + fid.astype(str),
        class_id=_class_of(labels["row"], plan),
        source_tile=tile,
        source=tile.map(raster_of),
        n_tiles=1,
        **answer,
        **{str(name): values for name, values in attributes.items()},
    )
    return as_layer(full, [*ANSWER, *map(str, attributes)])


def _metres_between(
    old: NDArray[np.object_], new: NDArray[np.object_], plan: Plan
) -> NDArray[np.float64]:
    """Ground metres between the centroids of old and new shapes."""
    one, other = (shapely.get_coordinates(shapely.centroid(shapes)) for shapes in (old, new))
    areal = ground_scale(plan.crs, one[:, 0], one[:, 1])[2]
    return np.asarray(np.hypot(*(one - other).T) * np.sqrt(areal), float)


def _beside(
    shapes: NDArray[np.object_],
    prompted: NDArray[np.object_],
    tree: shapely.STRtree,
    offer: Offer,
) -> NDArray[np.bool_]:
    """Which labels of the grid may lie beside those of prompts, which always come first."""
    n = len(shapes)
    i, j = tree.query(shapes)
    bounds, area = shapely.bounds(shapes), shapely.area(shapes)
    their_bounds, their_area = shapely.bounds(prompted), shapely.area(prompted)
    near = may_conflict(bounds[i], their_bounds[j], area[i], their_area[j], offer)
    i, j = i[near], j[near]
    shared = Shared(i, j + n, common_area(shapes[i], prompted[j]), np.ones(len(i), bool))
    rank = np.concatenate([np.arange(n) + len(prompted), np.arange(len(prompted))])
    decided = one_label_per_object(shared, np.concatenate([area, their_area]), rank, offer)
    return np.asarray(decided.reason[:n] == Reason.OFFERED)


def offer_beside_prompts(plan: Plan) -> Offer:
    """Which labels of the grid may overlap those of prompts; with classes, none."""
    return ONE_CLASS_PER_PLACE if plan.job.knows_classes else plan.job.offer
