"""Tiles that an earlier run has stored, read at once, because that takes no network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from workbench.candidates.store import CandidateStore, TileRecord
from workbench.candidates.table import Candidates
from workbench.errors import WorkbenchError
from workbench.raster.scene import Scene
from workbench.runs.choose import key_before_loading
from workbench.runs.folder import store_in
from workbench.runs.job import Job
from workbench.runs.record import continue_run, read_record, resolve

StoredTile = tuple[TileRecord, Candidates]


def read_tiles(
    store: CandidateStore, tiles: Iterable[tuple[str, int, int]]
) -> Iterator[StoredTile]:
    """Yield those of some tiles, given by their index in the ledger, that are stored."""
    known = store.ledger()
    there = [i for i in tiles if i in known and known[i][0].status != "failed"]
    for candidates, records in store.read(there, known):
        rows, cols = candidates.column("tile_row"), candidates.column("tile_col")
        for record in records:
            yield record, candidates.take((rows == record.tile_row) & (cols == record.tile_col))


def read_stored(
    job: Job, folder: Path, scenes: Sequence[Scene], tiles: Collection[tuple[str, int, int]]
) -> list[StoredTile]:
    """Read those of some tiles that the run folder has stored, if they are known to fit the job.

    `scenes` have the names of the run. Empty if only `prepare` can tell whether they fit, or what
    is wrong with the folder.
    """
    try:
        before = read_record(folder) if job.resume else None
        key = None if before is None else key_before_loading(job, before.segmenter)
        if before is None or key is None:
            return []
        continue_run(folder, before, resolve(job, scenes, key))
        return list(read_tiles(store_in(folder), tiles))
    except WorkbenchError:
        return []
