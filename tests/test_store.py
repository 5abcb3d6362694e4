"""The store of candidates: whole files or none, and success beats failure."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workbench.candidates.rle import damaged, encode_masks
from workbench.candidates.store import CandidateStore, TileRecord
from workbench.candidates.table import SCHEMA, Candidates, Rules, concat
from workbench.errors import RunFolderError

RULES = Rules(100, 100, pred_iou_floor=0.0, stability_floor=0.0)
MASKS = encode_masks(np.arange(2 * 100 * 100).reshape(2, 100, 100) % 7 == 0)


def tile_table(*tiles: tuple[int, int]) -> Candidates:
    """Two candidates in each tile, all columns unlike."""
    values = dict(zip(SCHEMA.names, np.arange(2 * len(SCHEMA)).reshape(-1, 2), strict=True))
    one = Candidates.from_columns(RULES, values | {"rle": MASKS})
    return concat([one.at_tile(*tile) for tile in tiles])


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = CandidateStore(tmp_path / "candidates")
    candidates = tile_table((0, 0), (0, 1))
    records = [
        TileRecord("ortho", 0, 0, "ok", n_candidates=2, seconds=1.5, valid_rle=MASKS[0].decode()),
        TileRecord("ortho", 0, 1, "ok", n_candidates=2),
        TileRecord("ortho", 0, 2, "nodata"),
    ]
    path = store.write(candidates, records)
    assert {index: record for index, (record, _) in store.ledger().items()} == {
        record.index: record for record in records
    }
    [(read, found)] = store.read([record.index for record in records])
    assert (read.table, read.rules, found) == (candidates.table, candidates.rules, records)
    [(read, found)] = store.read([("ortho", 0, 1), ("ortho", 5, 5)])
    assert read.column("tile_col").tolist() == [1, 1]
    assert found == records[1:2]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_absent_store_knows_nothing(tmp_path: Path) -> None:
    store = CandidateStore(tmp_path / "none")
    assert store.ledger() == {}
    assert list(store.read([("ortho", 0, 0)])) == []


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "spoil",
    [cut, lambda _: b"", lambda content: bytes(len(content)), lambda _: b"PAR1"],
)
def test_a_file_that_cannot_be_read_counts_as_absent(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    store = CandidateStore(tmp_path)
    good = store.write(tile_table((0, 0)), [TileRecord("ortho", 0, 0, "ok")])
    bad = store.write(tile_table((0, 1)), [TileRecord("ortho", 0, 1, "ok")])
    bad.write_bytes(spoil(bad.read_bytes()))
    assert {index: path for index, (_, path) in store.ledger().items()} == {("ortho", 0, 0): good}


def test_another_parquet_file_in_the_folder_does_no_harm(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    assert CandidateStore(tmp_path).ledger() == {}


def test_a_file_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    store = CandidateStore(tmp_path)
    path = store.write(tile_table((0, 0)), [TileRecord("ortho", 0, 0, "ok")])
    path.rename(path.with_name(f".tmp-1-{path.name}"))
    assert store.ledger() == {}


def test_flipped_bits_are_noticed_wherever_they_are(tmp_path: Path) -> None:
    store = CandidateStore(tmp_path)
    path = store.write(tile_table((0, 0)), [TileRecord("ortho", 0, 0, "ok")])
    content = path.read_bytes()
    [whole] = store.read([("ortho", 0, 0)])
    noticed = 0
    in_a_page = content.index(b"\x28\xb5\x2f\xfd") + 8
    for place in (in_a_page, *range(0, len(content), 23)):
        spoilt = bytearray(content)
        spoilt[place] ^= 1
        path.write_bytes(spoilt)
        os.utime(path, ns=(place, place))  # a clock may be slower than this test
        # some bytes say nothing: what can be read is as it was
        read = list(store.read([("ortho", 0, 0)]))
        assert read in ([], [whole]), place
        assert (read == []) == (store.ledger() == {})
        noticed += read == []
        assert place != in_a_page or noticed
    assert noticed > 50


def test_long_names_of_sources_fit_in_file_names(tmp_path: Path) -> None:
    store = CandidateStore(tmp_path)
    for end in "ab":  # told apart although they begin alike
        store.write(tile_table((0, 0)), [TileRecord("ö" * 120 + end, 0, 0, "ok")])
    assert {source[-1] for source, _, _ in store.ledger()} == {"a", "b"}


def test_clearing_the_store_leaves_the_files_of_others(tmp_path: Path) -> None:
    store = CandidateStore(tmp_path)
    store.write(tile_table((0, 0)), [TileRecord("ortho", 0, 0, "ok")])
    spoilt = store.write(tile_table((0, 1)), [TileRecord("ortho", 0, 1, "ok")])
    spoilt.write_bytes(b"")
    renamed = store.write(tile_table((0, 2)), [TileRecord("ortho", 0, 2, "ok")])
    renamed.rename(tmp_path / "copy.parquet")
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "elections.parquet")
    store.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["elections.parquet"]


@pytest.mark.parametrize("statuses", [("failed", "ok"), ("ok", "failed"), ("failed", "empty")])
def test_success_beats_failure_whichever_was_written_first(
    tmp_path: Path, statuses: tuple[str, str]
) -> None:
    store = CandidateStore(tmp_path)
    for i, status in enumerate(statuses):  # in different chunks, so both files stay
        records = [TileRecord("ortho", 0, 0, status), TileRecord("ortho", 1, i, "nodata")]
        store.write(Candidates.empty(RULES), records)
    assert len(list(tmp_path.iterdir())) == 2
    assert store.ledger()["ortho", 0, 0][0].status == (set(statuses) - {"failed"}).pop()


def test_a_second_try_of_the_same_tiles_replaces_the_first(tmp_path: Path) -> None:
    store = CandidateStore(tmp_path)
    store.write(Candidates.empty(RULES), [TileRecord("ortho", 0, 0, "failed", "no memory")])
    path = store.write(tile_table((0, 0)), [TileRecord("ortho", 0, 0, "ok", n_candidates=2)])
    assert list(tmp_path.iterdir()) == [path]
    [(read, [record])] = store.read([("ortho", 0, 0)])
    assert (len(read), record.status) == (2, "ok")


@pytest.mark.parametrize(
    "counts",
    [
        b"",
        b"0",  # no pixels at all
        MASKS[0][:-1],  # too few
        MASKS[0] + b"5",  # too many
        MASKS[0][:-1] + b"\x7f",  # ends in the middle of a number
        MASKS[0].replace(b"1", b" ", 1),  # no digit
        b"oooooooooooo0",  # more pixels than a number can hold
        b"X",  # a negative number of pixels
    ],
)
def test_damaged_masks_are_refused_before_any_c_code_sees_them(
    tmp_path: Path, counts: bytes
) -> None:
    store = CandidateStore(tmp_path)
    one = tile_table((0, 0)).with_column("rle", [MASKS[1], counts])
    path = store.write(one, [TileRecord("ortho", 0, 0, "ok", n_candidates=2)])
    with pytest.raises(RunFolderError, match=r"mask of row 1 is no .* Delete the file"):
        store.ledger()
    path.unlink()
    store.write(tile_table((0, 0)), [TileRecord("s", 0, 0, "ok", valid_rle=counts.decode())])
    with pytest.raises(RunFolderError, match=r"valid pixels of tile .* Delete the file"):
        list(store.read([("s", 0, 0)]))


@given(st.lists(st.binary(max_size=8), max_size=5), st.integers(0, 5))
@example([b"\x10\x10\x10", b"\x10\x10\x10"], 2)
@example([b"PPPPPPP0"], 0)
def test_any_bytes_among_good_masks_are_told_apart(found: list[bytes], place: int) -> None:
    told = damaged([*found[:place], *MASKS, *found[place:]], 100, 100)
    at = min(place, len(found))
    assert not told[at : at + 2].any()
    assert len(told) == len(found) + 2


def test_masks_of_all_kinds_are_sound() -> None:
    masks = (
        np.random.default_rng(0).random((6, 37, 91))
        < np.array([0, 0.01, 0.5, 0.9, 1, 0.3])[:, None, None]
    )
    assert not damaged(encode_masks(masks), 37, 91).any()
    assert damaged(encode_masks(masks), 37, 92).all()
    assert len(damaged([], 37, 91)) == 0
