"""Make the layer from stored candidates, and then all files of the run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from workbench._support.attempts import Attempts
from workbench._support.files import atomic_path
from workbench.errors import RunFailedError
from workbench.evaluation.against import AgainstReference
from workbench.layer import qgis
from workbench.layer.files import describe_layer, write_layer
from workbench.layer.report.tally import Tally, Topology, counted
from workbench.layer.schema import as_layer, as_tiles, coarser, finest, with_left_out
from workbench.polygons.areas import inside, lies_in
from workbench.polygons.clean import clean
from workbench.polygons.planar import clean_planar
from workbench.polygons.portions import Each, Portion, do_here, polygons_of
from workbench.polygons.regularize import regularized
from workbench.polygons.seams import merge_seams
from workbench.raster.attribution import attribution_of
from workbench.raster.scene import raster_of
from workbench.raster.tiles import tile_names, tile_windows
from workbench.runs.by_hand import give_way, kept_by_hand, usable_by_hand
from workbench.runs.by_products import QUALITY, TOPOLOGY, FinishedLayer, write_by_products
from workbench.runs.classes import Taught, keep_examples, teach
from workbench.runs.concepts import ConceptLabels
from workbench.runs.folder import refuse_to_lose_review
from workbench.runs.labels import refuse_to_lose_examples
from workbench.runs.looks import class_colors
from workbench.runs.plan import Plan, load_reference
from workbench.runs.prompted import (
    more_of,
    offer_beside_prompts,
    prompted,
    tile_records,
    write_ledger,
)
from workbench.runs.record import write_job
from workbench.runs.refresh import Refresh
from workbench.runs.result import Run
from workbench.runs.share_out import sharing
from workbench.runs.staying import Staying
from workbench.runs.trace import describe_all, nothing_of, traced
from workbench.samples.demo import sample_truth

_log = logging.getLogger(__name__)


def finish(plan: Plan) -> Run:
    """Make the layer from the stored candidates, and write all files of the run folder.

    The layer is made in batches; it is held whole only with `regularize`, where any polygon may
    change any other. Raises `RunFailedError` after everything is written if tiles have
    failed.
    """
    with sharing(plan) as each:
        return _finish(plan, each)


def _finish(plan: Plan, each: Each) -> Run:
    def with_counts(found: Mapping[str, int]) -> gpd.GeoDataFrame:
        if refresh is None:
            # the last moment: a review may have begun during a long run
            refuse_to_lose_review(plan.folder)
            # if the run is killed now, a Parquet file of the old layer must not be compared with
            # the new GeoPackage
            (plan.folder / "prelabels.parquet").unlink(missing_ok=True)
        counts.update(found)
        return _counted(finest(ledger), counts)

    def styles() -> Mapping[str, Mapping[str, str]]:
        learned = class_colors(plan.folder, plan.job) if plan.job.knows_classes else None
        return qgis.styles(
            plan.job.classes, plan.job.planar, tally.classes, learned, more_of(known)
        )

    start = time.perf_counter()
    describe_all(plan, each)
    taught = teach(plan)
    if taught is not None:
        refuse_to_lose_examples(plan.job, plan.folder)
    # what examples teach decides about classes, whatever the candidates were found as
    concepts = ConceptLabels(plan.job) if plan.job.finds_concepts and taught is None else None
    refresh = Refresh.of(plan.job, plan.folder, plan.crs) if plan.job.refresh else None
    ledger = _ledger_layer(plan)
    counts: dict[str, int] = {}
    attempts = Attempts()
    tally = Tally(ledger, attempts)
    against = attempts.make(QUALITY, partial(_against_reference, plan, ledger))
    with Topology(plan.folder) as topology:
        # one pass over the layer; only the map reads it again
        counting = [tally.add, attempts.each(TOPOLOGY, topology.add)]
        if against is not None:
            counting.append(attempts.each(QUALITY, against.add))
        shapes = usable_by_hand(plan.folder, plan.crs, plan.job.classes)
        made = layer_batches(plan, taught, each, concepts, shapes)
        known = prompted(plan)
        if known is not None:
            made = known.among(made, offer_beside_prompts(plan))
        reviewed = () if refresh is None else refresh.staying.kept.ids
        by_hand = kept_by_hand(shapes, finest(ledger), plan.area.aoi, reviewed)
        if by_hand is not None:  # they stay as labels of a review do
            made = Staying(by_hand).among(made, plan.job)
        if refresh is not None:
            made = refresh.staying.among(made, plan.job)
        layer = counted(made, *counting)
        kept = None if refresh is None else refresh.staying.kept
        with nullcontext(plan.folder) if refresh is None else refresh.staged() as folder:
            tiles = write_layer(
                layer, with_counts, folder, styles=styles, attempts=attempts, kept=kept
            ).tiles
            scenes = tuple(part.scene for part in plan.area.finest)
            named = {scene.opened_as for scene in scenes}
            credits = attempts.make(
                "the attribution of the imagery", lambda: set(map(attribution_of, named)) - {""}
            )
            if credits:
                text = f"Imagery: {', '.join(sorted(credits))}"
                describe_layer(folder / "prelabels.gpkg", text)
            coarse = _counted(coarser(ledger), counts)
            result = Run(plan.job, plan.folder, scenes, tiles, plan.area.aoi, tally, coarse)
            if taught is not None:
                keep_examples(plan, taught)
            write_job(plan.job, folder)
            with atomic_path(folder / "tiles.parquet") as path:
                with_left_out(result.ledger, plan.left_out).to_parquet(path, index=False)
        write_ledger(known, plan.folder)
        seconds = time.perf_counter() - start
        write_by_products(
            FinishedLayer(
                result, plan, taught, concepts, known, topology, against, refresh, attempts, seconds
            )
        )
    for note in () if concepts is None else concepts.notes:
        _log.warning(note)
    _tell_failures(plan, ledger)
    return result


def _tell_failures(plan: Plan, tiles: gpd.GeoDataFrame) -> None:
    """Raise `RunFailedError` if tiles have failed or rasters were left out."""
    failed = tiles[tiles["status"] == "failed"]
    rest = (
        f"\nEverything else is in {plan.folder}, with all errors in tiles.parquet. Run again to "
        "try what failed again."
    )
    if plan.left_out:
        source, cause = next(iter(plan.left_out.items()))
        n = len(plan.left_out)
        raise RunFailedError(
            f"{n} of {n + plan.n_read} rasters cannot be read and were left out, the first is "
            f"{source}: {cause}\n{len(failed)} of {len(tiles)} tiles of the others failed.{rest}"
        )
    if len(failed):
        raise RunFailedError(
            f"{len(failed)} of {len(tiles)} tiles failed, the first is {failed.iloc[0]['tile']}: "
            f"{failed.iloc[0]['error']}{rest}"
        )


def layer_batches(
    plan: Plan,
    taught: Taught | None,
    each: Each = do_here,
    concepts: ConceptLabels | None = None,
    by_hand: gpd.GeoDataFrame | None = None,
) -> Iterator[gpd.GeoDataFrame]:
    """Select, trace, merge, clean and square: the layer in batches, by source, tile and ordinal.

    Candidates in whose place shapes `by_hand` stand are left out. Without tiles in which everything
    is segmented, the layer is one empty batch.
    """
    if not plan.by_grid:
        yield _as_layer(
            _with_class(nothing_of(plan, plan.scenes[0]).assign(n_tiles=1, area_m2=0.0), plan)
        )
        return
    offer = plan.job.offer
    if plan.job.knows_classes:  # which class lies where has been decided tile by tile
        offer = replace(offer, overlaps="all")
    polygons = traced(plan, taught, each, concepts)
    if by_hand is not None and len(by_hand):
        polygons = (give_way(batch, by_hand) for batch in polygons)
    merged = merge_seams(polygons, _windows(plan), plan.folder, offer, each)
    if plan.job.planar:  # any polygon may cut any other
        cleaned = clean_planar(merged, plan.job.cleaning, plan.folder, each)
    else:
        portions = (Portion(batch, plan.job.cleaning) for batch in merged)
        cleaned = (polygons_of(made) for made in each(_clean, portions))
    cleaned = (_with_class(batch, plan) for batch in cleaned)
    if plan.job.regularize is not None:  # a squared polygon may overlap any other
        whole = pd.concat(cleaned, ignore_index=True)
        cleaned = (regularized(each, plan.job.regularize) for each in [whole])
    for batch in cleaned:
        yield _as_layer(_with_status(_in_aoi(batch, plan)))


def _clean(given: Portion) -> Portion:
    return Portion(clean(polygons_of(given), given.more))


def _windows(plan: Plan) -> gpd.GeoDataFrame:
    """The windows of the tiles that did not fail: a failed tile cannot confirm its neighbours."""
    known = plan.store.ledger()
    windows = [
        tile_windows(
            part.scene,
            [tile for tile in part.tiles if known[part.index(tile)][0].status != "failed"],
        )
        for part in plan.scenes
    ]
    return pd.concat(windows, ignore_index=True)


def _in_aoi(polygons: gpd.GeoDataFrame, plan: Plan) -> gpd.GeoDataFrame:
    """Keep the polygons, unclipped, whose representative point is in the AOI."""
    if plan.area.aoi is None or not len(polygons):
        return polygons
    shapely.prepare(plan.area.aoi)
    return polygons[lies_in(polygons.geometry.to_numpy(), plan.area.aoi)].reset_index(drop=True)


def _with_class(polygons: gpd.GeoDataFrame, plan: Plan) -> gpd.GeoDataFrame:
    """Give polygons the job's `default_class` unless classes were learned."""
    if "class_id" in polygons:
        return polygons
    default = pd.array([plan.job.default_class] * len(polygons), dtype="Int64")
    return polygons.assign(class_id=default)


def _with_status(polygons: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Mark as accepted what a person has judged already: nobody does it twice."""
    if "accepted_iou" not in polygons:
        return polygons
    accepted = polygons["accepted_iou"] > 0
    return polygons.assign(status=np.where(accepted, "accepted", "unreviewed"))


def _as_layer(polygons: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    tile = tile_names(polygons)
    return as_layer(
        polygons.assign(
            id=tile + "/" + polygons["ordinal"].astype(str),
            source_tile=tile,
            source=polygons["source"].map(raster_of).astype(object),
        )
    )


def _ledger_layer(plan: Plan) -> gpd.GeoDataFrame:
    """One row for each wanted tile: its core and what the ledger says, polygons not counted yet."""
    known = tile_records(plan)
    rows = [asdict(known[part.index(tile)]) for part in plan.scenes for tile in part.tiles]
    cores = [part.scene.window_polygon(tile.core) for part in plan.scenes for tile in part.tiles]
    ledger = gpd.GeoDataFrame(rows, geometry=cores, crs=plan.crs)
    ledger["tile"] = tile_names(ledger)
    return as_tiles(ledger.assign(n_polygons=0))


def _counted(tiles: gpd.GeoDataFrame, counts: Mapping[str, int]) -> gpd.GeoDataFrame:
    return tiles.assign(n_polygons=[counts.get(tile, 0) for tile in tiles["tile"]])


def _against_reference(plan: Plan, ledger: gpd.GeoDataFrame) -> AgainstReference | None:
    """What compares the layer with its reference, where there is one: the sample scene's own."""
    if plan.job.reference is not None:
        reference = gpd.GeoDataFrame(geometry=load_reference(plan.job.reference))
    elif plan.job.source is None:
        reference = sample_truth()
    else:
        return None
    area = finest(ledger)
    if plan.area.aoi is not None:
        area = gpd.GeoDataFrame(geometry=[plan.area.aoi], crs=ledger.crs)
    return AgainstReference(inside(reference.to_crs(ledger.crs), area))
