"""Compute and store the candidates of the wanted tiles."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from workbench.runs import choose
from workbench.runs.cluster import SharedRun, segment_there
from workbench.runs.plan import Plan, pending
from workbench.runs.record import plain, record_change
from workbench.runs.tile_stream import SegmentedTile, TileWatch, segment_each, store_tiles

FLUSH_SECONDS = 20.0  # a kill loses at most this much finished work
FLUSH_TILES = 64


def segment(
    plan: Plan, flush_seconds: float = FLUSH_SECONDS, watch: TileWatch | None = None
) -> Generator[SegmentedTile, None, None]:
    """Compute, store and yield the wanted tiles that are not stored yet, or failed.

    The windows around prompts come after the tiles of the grid.

    Finished tiles are stored every `flush_seconds`, and when the iterator is closed or interrupted.
    A slow model tells `watch` how far it is.
    """
    job = plan.job
    wanted = {part.index(tile) for part, tile in pending(plan)}
    parts = replace(plan.area, parts=plan.work).only(wanted).parts
    if job.scheduler is not None:
        share = SharedRun(job, plan.folder, plan.lock.owner, choose.segmenter_for)
        yield from segment_there(job.scheduler, share, plan.segmenter.key, parts)
        return
    keep = _Keeper(plan)
    for part in parts:
        done: list[SegmentedTile] = []
        flushed = time.monotonic()
        try:
            with closing(
                segment_each(part, part.tiles, plan.segmenter_of(part), watch)
            ) as segmented:
                for tile in segmented:
                    done.append(tile)
                    yield tile
                    if time.monotonic() - flushed > flush_seconds or len(done) >= FLUSH_TILES:
                        keep(done)
                        done, flushed = [], time.monotonic()
        finally:
            keep(done)


class _Keeper:
    """Stores finished tiles, and notes in `run.yaml` when the key of the Segmenter has changed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        # kept in memory: `run.yaml` grows with the rasters, so it is read only after a change
        self._recorded = plan.record.segmenter

    def __call__(self, done: list[SegmentedTile]) -> None:
        if not done:
            return
        key = plain(self._plan.segmenter.key)
        if key != self._recorded:
            record_change(self._plan.folder, self._plan.segmenter)
            self._recorded = key
        store_tiles(done, self._plan.store)
