"""The polygons of all wanted tiles, as the tiles saw them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray

from workbench.candidates.offer import TileMasks, offered
from workbench.candidates.select import select
from workbench.candidates.store import Ledger, valid_masks
from workbench.candidates.table import Candidates, concat
from workbench.polygons.build import to_polygons
from workbench.polygons.continuation import Continuations, RowCol, ShownBeside, shown_to_neighbours
from workbench.polygons.portions import Each, Portion, polygons_of
from workbench.raster.tiles import Tile
from workbench.runs.classes import Taught, classed_polygons, figures_of, without_class
from workbench.runs.concepts import ConceptLabels, without_concept
from workbench.runs.folder import store_in
from workbench.runs.job import Job
from workbench.runs.plan import Plan
from workbench.runs.tile_stream import ScenePlan


def traced(
    plan: Plan, taught: Taught | None, each: Each, concepts: ConceptLabels | None = None
) -> Iterator[gpd.GeoDataFrame]:
    """Yield the polygons of all wanted tiles, a few tiles at a time.

    First what becomes labels, then what continues it beyond the edge of a tile.
    """
    known = plan.store.ledger()  # once: to look through the folder takes as long as it has files
    if taught is not None:
        yield from _classed(plan, taught, known)
        return
    if concepts is not None:
        yield from _of_concepts(plan, concepts, known)
        return
    stored = [_by_file(plan, part, known) for part in plan.scenes]
    portions = (Portion(None, some) for of_part in stored for some in of_part)
    with closing(each(_trace, portions)) as results:
        for part, of_part in zip(plan.scenes, stored, strict=True):
            yield nothing_of(plan, part).assign(continues=False, no_label=False)
            cut = Continuations(part.grid)
            labels: dict[RowCol, NDArray[np.int64]] = {}  # ordinals
            for made in islice(results, len(of_part)):
                for tile, ordinals, shown in made.more:
                    labels[tile.row, tile.col] = ordinals
                    cut.note(tile, shown)
                yield polygons_of(made)
            yield from _continued(plan, part, known, cut, labels)


def describe_all(plan: Plan, each: Each) -> None:
    """Let the workers of a cluster compute and store the features that taught classes need.

    In one process they are computed where they are needed first.
    """
    if plan.job.examples is None or plan.job.scheduler is None:
        return
    known = plan.store.ledger()
    stored = (some for part in plan.scenes for some in _by_file(plan, part, known))
    with closing(each(_describe, (Portion(None, some) for some in stored))) as results:
        for _ in results:
            pass


def nothing_of(plan: Plan, part: ScenePlan) -> gpd.GeoDataFrame:
    """No polygons, with all columns that those of a scene have."""
    return to_polygons(Candidates.empty(plan.job.rules), part.scene, part.grid, {})


@dataclass(frozen=True)
class _StoredTiles:
    """Tiles of one scene whose candidates are in one file."""

    job: Job
    folder: Path
    part: ScenePlan
    known: Ledger


class _TracedTile(NamedTuple):
    """The ordinals of a tile's labels, and what these show its neighbours."""

    tile: Tile
    ordinals: NDArray[np.int64]
    shown: ShownBeside


def _by_file(plan: Plan, part: ScenePlan, known: Ledger) -> list[_StoredTiles]:
    """The stored tiles of a scene, in the order of their files."""
    files: dict[Path, list[Tile]] = {}
    for tile in part.tiles:
        if part.index(tile) in known:
            files.setdefault(known[part.index(tile)][1], []).append(tile)
    return [
        _StoredTiles(
            plan.job,
            plan.folder,
            ScenePlan(part.scene, part.grid, tuple(files[path])),
            {part.index(tile): known[part.index(tile)] for tile in files[path]},
        )
        for path in sorted(files)
    ]


def _trace(given: Portion) -> Portion:
    """Select what becomes labels of some tiles, and trace it; see `_TracedTile`."""
    stored: _StoredTiles = given.more
    job, part = stored.job, stored.part
    ((candidates, records),) = store_in(stored.folder).read(stored.known, stored.known)
    valid = valid_masks(records, candidates.rules)
    chosen = offered(select(candidates, job.thresholds), part.grid, valid, job.offer)
    tiles = []
    for tile in (part.grid.tile(r.tile_row, r.tile_col) for r in records):
        of_tile = chosen.of_tile(tile.row, tile.col)
        shown = shown_to_neighbours(tile, of_tile, part.grid)
        tiles.append(_TracedTile(tile, of_tile.column("ordinal"), shown))
    polygons = to_polygons(chosen, part.scene, part.grid, valid)
    return Portion(polygons.assign(continues=False, no_label=False), tiles)


def _describe(given: Portion) -> Portion:
    """Store the features of all candidates of some tiles."""
    stored: _StoredTiles = given.more
    for candidates, _ in store_in(stored.folder).read(stored.known, stored.known):
        figures_of(stored.folder, stored.part, candidates)
    return Portion(None)


def _continued(
    plan: Plan,
    part: ScenePlan,
    known: Ledger,
    cut: Continuations,
    labels: dict[RowCol, NDArray[np.int64]],
) -> Iterator[gpd.GeoDataFrame]:
    """What continues the labels of a scene beyond the edges of their tiles."""
    job = plan.job
    while wanted := [(part.scene.name, *index) for index in cut.turn()]:
        for candidates, records in plan.store.read(wanted, known):
            valid = valid_masks(records, candidates.rules)
            more, too_large = ([Candidates.empty(candidates.rules)] for _ in range(2))
            for tile in (part.grid.tile(r.tile_row, r.tile_col) for r in records):
                index = (tile.row, tile.col)
                stored = candidates.of_tile(*index)
                masks = TileMasks(stored, tile, part.grid, valid.get(index))
                rows = np.flatnonzero(np.isin(stored.column("ordinal"), labels[index]))
                found = cut.found(tile, stored, rows, masks, job.offer)
                more.append(stored.take(found.continues))
                too_large.append(stored.take(found.too_large))
            for some, no_label in ((more, False), (too_large, True)):
                polygons = to_polygons(concat(some), part.scene, part.grid, valid)
                yield polygons.assign(continues=True, no_label=no_label)


def _classed(plan: Plan, taught: Taught, known: Ledger) -> Iterator[gpd.GeoDataFrame]:
    """The polygons that look like examples; which class lies where is decided tile by tile."""
    for part in plan.scenes:
        yield without_class(nothing_of(plan, part))
        for candidates, records in plan.store.read([part.index(t) for t in part.tiles], known):
            yield classed_polygons(plan, taught, part, candidates, records)


def _of_concepts(plan: Plan, concepts: ConceptLabels, known: Ledger) -> Iterator[gpd.GeoDataFrame]:
    """The polygons of concepts; which class lies where is decided tile by tile."""
    for part in plan.scenes:
        yield without_concept(nothing_of(plan, part))
        for candidates, records in plan.store.read([part.index(t) for t in part.tiles], known):
            yield concepts.polygons(part, candidates, records)
