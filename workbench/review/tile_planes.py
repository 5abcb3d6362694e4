"""Matches at every pair of thresholds, tile by tile, against reviewed labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.candidates.offer import TileMasks
from workbench.candidates.store import valid_masks
from workbench.candidates.table import Candidates
from workbench.errors import ReviewError
from workbench.evaluation.matching import pairs_of
from workbench.evaluation.thresholds import THRESHOLD_STEPS, plane_of_pairs
from workbench.layer.cores import home_in
from workbench.polygons.areas import area_of, lies_in, with_area
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import clean
from workbench.raster.tiles import TileGrid
from workbench.runs.folder import store_in
from workbench.runs.result import Run

# ---------------------------------------------------------------------------------- counting


def tile_planes(
    run: Run,
    reference: gpd.GeoDataFrame,
    tiles: Iterable[str],
    *,
    within: gpd.GeoDataFrame | None = None,
    iou_thresh: float = 0.5,
) -> dict[str, pd.DataFrame]:
    """Count the matches in each tile, by its name in the ledger: one `threshold_plane` for each.

    `reference` holds all objects in these tiles, or in the part of them that lies `within` an area.
    An object counts in the tile whose core holds its representative point, and so does a polygon
    that matches it. Tiles that failed or have no valid pixels do not count. Cleaning is that of the
    job, without `planar`. The thresholds are the steps of `threshold_plane` and the job's own.
    Raises `ReviewError` if the candidates of a tile are no longer stored, or all are of prompts.
    """
    segmented = run.tiles["status"].isin(["ok", "empty"])
    ledger = run.tiles[run.tiles["tile"].isin(set(tiles)) & segmented].reset_index(drop=True)
    reference = with_area(reference.to_crs(run.layer.crs))
    if not run.job.uses_grid:
        raise ReviewError(
            f"{run.folder}: all labels come from prompts, one for each, so there is nothing to "
            "choose by thresholds. With `grid` the run also finds what the prompts lack."
        )
    area = run.aoi
    if within is not None:
        inside = area_of(within, run.layer.crs)
        area = inside if area is None else shapely.intersection(area, inside)
    home = _home(reference, ledger, area)
    planes = {}
    for place, masks, candidates, polygons in _polygons_by_tile(run, ledger):
        pairs = pairs_of(
            polygons.geometry.to_numpy(), reference.geometry.to_numpy(), at_least=iou_thresh
        )
        own = _home(polygons, ledger, area)
        best = np.argsort(pairs.iou, kind="stable")  # of several matches, the best one comes last
        own[pairs.predicted[best]] = home[pairs.reference[best]]
        planes[str(ledger["tile"][place])] = plane_of_pairs(
            candidates,
            polygons.iloc[own == place],
            pairs.only(own == place, home == place),
            iou_thresh=iou_thresh,
            pred_iou_threshs=_steps(run.job.thresholds.pred_iou_thresh),
            stability_score_threshs=_steps(run.job.thresholds.stability_score_thresh),
            labels_of=partial(masks.labels, offer=run.job.offer),
        )
    if len(planes) < len(ledger):
        missing = ledger["tile"][~ledger["tile"].isin(list(planes))]
        raise ReviewError(
            f"{run.folder}/candidates lacks {len(missing)} of {len(ledger)} labelled tiles, such "
            f"as {missing.iloc[0]}. Bring the run folder back whole, or run its job.yaml again."
        )
    return planes


def _steps(current: float) -> list[float]:
    return sorted({*THRESHOLD_STEPS, current})


def _home(
    layer: gpd.GeoDataFrame, ledger: gpd.GeoDataFrame, area: shapely.Geometry | None
) -> NDArray[np.int64]:
    """Find the tile whose core holds each representative point; -1: none, or outside `area`."""
    home = home_in(ledger, layer)
    if area is not None and len(layer):
        home[~lies_in(layer.geometry.to_numpy(), area)] = -1
    return home


def _polygons_by_tile(
    run: Run, ledger: gpd.GeoDataFrame
) -> Iterator[tuple[int, TileMasks, Candidates, gpd.GeoDataFrame]]:
    """Yield the row of each tile in the ledger, its candidates, and these cleaned as polygons."""
    places = {index: place for place, index in enumerate(_indices(ledger))}
    cleaning = replace(run.job.cleaning, planar=False)  # planar depends on what is selected
    store = store_in(run.folder)
    known = store.ledger()  # once: it looks at every file of the store
    for scene in run.scenes:
        grid = TileGrid(scene.width, scene.height, run.job.tile_size, run.job.overlap)
        here = [index for index in places if index[0] == scene.name]
        for stored, records in store.read(here, known):
            valid = valid_masks(records, stored.rules)
            for record in records:
                index = (record.tile_row, record.tile_col)
                candidates = stored.of_tile(*index)
                candidates = candidates.take(np.argsort(candidates.column("ordinal")))
                masks = TileMasks(candidates, grid.tile(*index), grid, valid.get(index))
                polygons = clean(to_polygons(candidates, scene, grid, valid), cleaning)
                yield places[record.index], masks, candidates, with_area(polygons)


def _indices(ledger: gpd.GeoDataFrame) -> Iterator[tuple[str, int, int]]:
    return zip(ledger["source"], ledger["tile_row"], ledger["tile_col"], strict=True)
