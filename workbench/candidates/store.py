"""The store of a run's candidates: what is known of each tile, and the file that holds it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench._support.files import atomic_path
from workbench.candidates.rle import damaged
from workbench.candidates.table import SCHEMA, Candidates, Rules
from workbench.errors import RunFolderError
from workbench.raster.tiles import tile_name

TileStatus = Literal["ok", "empty", "nodata", "failed"]


@dataclass(frozen=True, slots=True)  # a run may have millions
class TileRecord:
    """One row of the ledger; `valid_rle` holds a tile's valid pixels where some are invalid."""

    source: str
    tile_row: int
    tile_col: int
    status: TileStatus
    error: str = ""
    n_candidates: int = 0
    seconds: float = 0.0
    valid_rle: str | None = None

    @property
    def index(self) -> tuple[str, int, int]:
        """Source name, tile row, tile column."""
        return self.source, self.tile_row, self.tile_col

    @property
    def name(self) -> str:
        """For people, as in `ortho/r3c12`."""
        return tile_name(*self.index)


# what is known of each tile, and the file that says so
Ledger = dict[tuple[str, int, int], tuple[TileRecord, Path]]


def valid_masks(
    records: Iterable[TileRecord], rules: Rules
) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """Decode the `(h, w)` validity of those tiles (row, column) that have invalid pixels."""
    size = [rules.height, rules.width]
    return {
        (record.tile_row, record.tile_col): coco.decode(
            {"size": size, "counts": record.valid_rle.encode()}
        ).view(bool)
        for record in records
        if record.valid_rle is not None
    }


@dataclass(frozen=True)
class CandidateStore:
    """A folder of Parquet files, each with the candidates and the ledger rows of a few tiles.

    The ledger rows travel in the file's own metadata, so that a file is either whole, with both,
    or absent; nothing is ever appended in place. A file that is damaged counts as absent, so its
    tiles are computed again.
    """

    folder: Path

    def write(self, candidates: Candidates, records: Sequence[TileRecord]) -> Path:
        """Write the candidates of some tiles of one source, with one record for each tile."""
        tiles = [record.index for record in records]
        digest = hashlib.sha256(json.dumps(tiles).encode()).hexdigest()[:12]
        source, row, col = tiles[0]
        # a file name has 255 bytes, and a letter up to 4; the digest tells long names apart
        # a leading dot would mark a temporary file, and a coarser scale has a slash in its name
        name = re.sub(r"^\.", "_", source[:40].replace("/", "-"))
        path = self.folder / f"{name}-r{row}c{col}-{digest}.parquet"
        metadata = {
            "rules": json.dumps(asdict(candidates.rules)),
            "ledger": json.dumps([asdict(record) for record in records]),
        }
        metadata["checksum"] = _checksum(metadata["rules"].encode(), metadata["ledger"].encode())
        with atomic_path(path) as temporary:
            pq.write_table(
                candidates.table.replace_schema_metadata(metadata),
                temporary,
                compression="zstd",
                write_page_checksum=True,
            )
        return path

    def ledger(self) -> Ledger:
        """What is known of each tile, and the file that says so; success beats failure.

        Reads each new file in full once, to be sure that `read` can. Raises `RunFolderError` where
        masks are damaged though the file is whole.
        """
        known: Ledger = {}
        for path in self._files():
            for record in _sound_records(path):
                if record.index not in known or known[record.index][0].status == "failed":
                    known[record.index] = record, path
        return known

    def read(
        self, tiles: Iterable[tuple[str, int, int]], known: Ledger | None = None
    ) -> Iterator[tuple[Candidates, list[TileRecord]]]:
        """Yield the candidates of the given tiles, file by file, each with its ledger rows.

        If you read several times, pass the ledger as `known`: looking through the folder takes
        longer the more files it has.
        """
        ledger = self.ledger() if known is None else known
        by_file: dict[Path, list[TileRecord]] = {}
        for index in tiles:
            if index in ledger:
                record, path = ledger[index]
                by_file.setdefault(path, []).append(record)
        for path in sorted(by_file):
            records = by_file[path]
            candidates, _ = _read(path)
            wanted = {(record.tile_row, record.tile_col) for record in records}
            tile = zip(candidates.column("tile_row"), candidates.column("tile_col"), strict=True)
            yield candidates.take(np.array([t in wanted for t in tile], bool)), records

    def clear(self) -> None:
        """Delete what `write` has written, and nothing else."""
        for path in self._files():
            if _OUR_NAME.fullmatch(path.name) or _sound_records(path):
                path.unlink()

    def _files(self) -> list[Path]:
        # those with a dot are still being written, or left by a crash
        return sorted(path for path in self.folder.glob("*.parquet") if path.name[0] != ".")


_OUR_NAME = re.compile(r".+-r\d+c\d+-[0-9a-f]{12}\.parquet", re.DOTALL)


def _checksum(rules: bytes, ledger: bytes) -> str:
    """Parquet has checksums for its pages only, none for the metadata."""
    return hashlib.sha256(rules + ledger).hexdigest()


def _read(path: Path) -> tuple[Candidates, list[TileRecord]]:
    """Read a whole file, verifying every checksum."""
    # unlike a memory map, it fails with an error if the disk does; `pq.read_table` would start
    # Arrow's data sets and threads: 40 ms for the first file
    with pq.ParquetFile(path, page_checksum_verification=True, memory_map=False) as file:
        table = file.read(use_threads=False)
    metadata = table.schema.metadata or {}
    rules, ledger = metadata[b"rules"], metadata[b"ledger"]
    table = table.replace_schema_metadata(None).combine_chunks()
    if metadata[b"checksum"].decode() != _checksum(rules, ledger) or table.schema != SCHEMA:
        raise ValueError(f"{path} is damaged")
    records = [TileRecord(**record) for record in json.loads(ledger)]
    return Candidates(table, Rules(**json.loads(rules))), records


def _refuse_damaged_masks(candidates: Candidates, path: Path) -> None:
    """Refuse masks that would make C code read beyond its memory, whoever has written them."""
    rules = candidates.rules
    counts = candidates.table.column("rle").to_pylist()
    broken = damaged(counts, rules.height, rules.width)
    if broken.any():
        row = int(np.flatnonzero(broken)[0])
        raise RunFolderError(
            f"{path}: the mask of row {row} is no run-length encoding of {rules.height} × "
            f"{rules.width} pixels ({int(broken.sum())} of {len(counts)} masks are not). "
            "Delete the file, and its tiles are computed again."
        )


def _sound_records(path: Path) -> tuple[TileRecord, ...]:
    """The ledger rows of a file; none if any part of it is damaged, or it is not ours."""
    try:
        state = path.stat()
        return _records_of(path, state.st_mtime_ns, state.st_size)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return ()


@lru_cache(maxsize=100_000)
def _records_of(path: Path, mtime_ns: int, size: int) -> tuple[TileRecord, ...]:
    """Read once for each state of a file: the ledger is asked for many times."""
    candidates, records = _read(path)
    _refuse_damaged_masks(candidates, path)
    height, width = candidates.rules.height, candidates.rules.width
    for record in records:
        valid = record.valid_rle
        if valid is not None and damaged([valid.encode()], height, width)[0]:
            raise RunFolderError(
                f"{path}: the valid pixels of tile {record.index} are no run-length encoding of "
                f"{height} × {width} pixels. Delete the file, and its tiles are computed again."
            )
    return tuple(records)
