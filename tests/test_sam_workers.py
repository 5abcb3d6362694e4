"""Batches of prompts in threads of their own: order, errors, stopping, and the same bits."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from small_sams import picture, small_sam

from workbench.candidates.table import Rules
from workbench.segmenters.sam import SamSegmenter
from workbench.segmenters.sam.workers import each_by_one_thread


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items() -> None:
    def slower_at_first(item: int) -> int:
        time.sleep(0.02 / (1 + item))
        return item

    assert list(each_by_one_thread(slower_at_first, range(30), 3)) == list(range(30))


def test_items_are_computed_side_by_side_each_by_one_thread() -> None:
    together = threading.Barrier(3)

    def meet(_: int) -> tuple[int, str]:
        together.wait(timeout=10)  # breaks if fewer than three are at work at once
        return torch.get_num_threads(), threading.current_thread().name

    seen = list(each_by_one_thread(meet, range(6), 3))
    assert {n for n, _ in seen} == {1}
    assert threading.current_thread().name not in {name for _, name in seen}


def test_other_threads_keep_theirs() -> None:
    list(each_by_one_thread(str, range(6), 2))
    assert torch.get_num_threads() == 3
    found = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [3]


def test_with_one_thread_the_caller_does_it() -> None:
    names = each_by_one_thread(lambda _: threading.current_thread().name, range(3), 1)
    assert set(names) == {threading.current_thread().name}


def test_an_error_reaches_the_caller() -> None:
    def refuse(item: int) -> int:
        if item == 5:
            raise ValueError("no fifth")
        return item

    results = each_by_one_thread(refuse, range(100), 2)
    with pytest.raises(ValueError, match="no fifth"):
        list(results)


def test_closing_it_leaves_out_the_rest() -> None:
    begun: list[int] = []

    def note(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        return item

    results = each_by_one_thread(note, range(1000), 2)
    assert next(results) == 0
    results.close()
    so_far = len(begun)
    time.sleep(0.1)
    assert so_far <= len(begun) <= 10


def test_C3_candidates_have_the_same_bits_for_any_number_of_threads() -> None:
    image, rules = picture(200, 160), Rules(200, 160, 0.3, 0.3, crop_n_layers=1)
    one, *more = (
        SamSegmenter(small_sam, "", "", 8, rules, points_per_batch=5, threads=threads).propose(
            image
        )
        for threads in (1, 2, 3)
    )
    assert len(one) > 10
    for other in more:
        assert other.table == one.table


def test_a_watch_that_stops_the_tile_is_heard_at_once() -> None:
    shares: list[float] = []

    def stop(share: float, _: object) -> None:
        shares.append(share)
        if len(shares) == 2:
            raise KeyboardInterrupt

    segmenter = SamSegmenter(
        small_sam, "", "", 8, Rules(128, 128, 0.3, 0.3), points_per_batch=4, threads=3
    )
    with pytest.raises(KeyboardInterrupt):
        segmenter.propose(picture(128, 128), stop)
    assert shares == [4 / 64, 8 / 64]
    assert segmenter.propose(picture(128, 128)).table is not None  # and the next one works
