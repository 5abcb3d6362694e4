"""Candidates of the wanted tiles, computed and stored."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing

from workbench.runs import choose
from workbench.runs.cluster import Share, segment_there
from workbench.runs.plan import (
    Plan,
    pending,
)
from workbench.runs.record import (
    record_change,
)
from workbench.runs.tile_stream import (
    ScenePlan,
    SegmentedTile,
    TileWatch,
    segment_tiles,
    store_tiles,
)

FLUSH_SECONDS = 20.0  # a kill costs at most this much finished work
FLUSH_TILES = 64


# ------------------------------------------------------------------------------- 2. segment


def segment(
    plan: Plan, flush_seconds: float = FLUSH_SECONDS, watch: TileWatch | None = None
) -> Generator[SegmentedTile, None, None]:
    """Compute, store and yield the wanted tiles that are not stored yet, or failed.

    Finished tiles are stored every `flush_seconds`, and when the iterator is closed or interrupted.
    A model that takes long tells `watch` how far it is.
    """
    job, parts = plan.job, plan.only({part.index(tile) for part, tile in pending(plan)}).scenes
    if job.scheduler is not None:
        share = Share(job, plan.folder, plan.lock.owner, choose.segmenter_for)
        yield from segment_there(job.scheduler, share, plan.segmenter.key, parts)
        return
    for part in parts:
        yield from _segment_scene(part, plan, flush_seconds, watch)


def _segment_scene(
    part: ScenePlan,
    plan: Plan,
    flush_seconds: float,
    watch: TileWatch | None,
) -> Iterator[SegmentedTile]:
    done: list[SegmentedTile] = []
    flushed = time.monotonic()
    try:
        with closing(segment_tiles(part, part.tiles, plan.segmenter, watch)) as segmented:
            for tile in segmented:
                done.append(tile)
                yield tile
                if time.monotonic() - flushed > flush_seconds or len(done) >= FLUSH_TILES:
                    _keep(done, plan)
                    done, flushed = [], time.monotonic()
    finally:
        _keep(done, plan)


def _keep(done: list[SegmentedTile], plan: Plan) -> None:
    if done:
        record_change(plan.folder, plan.segmenter)
        store_tiles(done, plan.store, plan.job.rules)
