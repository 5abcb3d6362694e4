"""Files whose bytes have changed on the disk."""

from dataclasses import dataclass
from pathlib import Path

import rasterio
from known_objects import write_labels
from numpy.typing import NDArray

from workbench.candidates.store import CandidateStore, TileRecord

BLOCK = 64


def write_in_blocks(path: Path, labels: NDArray) -> Path:
    """Write known objects in compressed blocks of 64 pixels."""
    plain = write_labels(path.with_name("plain.tif"), labels)
    blocks = {
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate",
        "interleave": "pixel",
    }  # fmt: skip
    with (
        rasterio.open(plain) as source,
        rasterio.open(path, "w", **source.profile | blocks) as target,
    ):
        target.write(source.read())
    plain.unlink()
    return path


def break_block(path: Path, row: int, col: int) -> None:
    """Write over the bytes of one block, so that it cannot be decoded."""
    with rasterio.open(path) as raster:
        offset = int(raster.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
        size = int(raster.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)


@dataclass(frozen=True)
class Flips:
    """What became of a file of candidates with one changed byte, time after time."""

    tried: int
    detected: int
    misread: int  # read as something that it did not hold


def flip_bytes(path: Path, step: int) -> Flips:
    """Change every `step`-th byte of a file of candidates, one at a time, and read it again."""
    store = CandidateStore(path.parent)
    whole = path.read_bytes()
    known = _records_in(store, path)
    (before,) = [table for table, _ in store.read(known)]
    tried = detected = misread = 0
    for place in range(0, len(whole), step):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        tried += 1
        found = {
            index: record for index, (record, where) in store.ledger().items() if where == path
        }
        if not found:
            detected += 1
        else:
            (now,) = [table for table, _ in store.read(found)]
            same = found == known and now.table.equals(before.table) and now.rules == before.rules
            misread += not same
    path.write_bytes(whole)
    return Flips(tried, detected, misread)


def _records_in(store: CandidateStore, path: Path) -> dict[tuple[str, int, int], TileRecord]:
    return {index: record for index, (record, where) in store.ledger().items() if where == path}
